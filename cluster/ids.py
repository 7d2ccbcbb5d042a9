"""Job ids: UUIDs of version 7 (RFC 9562), so that they sort by the moment they were minted."""

import os
import time
from collections.abc import Callable, Iterator

__all__ = ["uuid7_maker"]

#: Random bytes drawn from the kernel at once: a system call costs more than the rest of an id.
BLOCK = 4096


def uuid7_maker() -> Callable[[], str]:
    """Return a function that mints one id a call, strictly rising within this process.

    48 bits of milliseconds, then 12 bits that count within the millisecond (RFC 9562, method 1),
    then 62 random bits. When the count is used up, the next millisecond is begun early.
    """
    last_ms = 0
    count = 0
    draw = _random_64().__next__

    def mint() -> str:
        nonlocal last_ms, count
        now_ms = time.time_ns() // 1_000_000
        if now_ms > last_ms:
            last_ms, count = now_ms, 0
        else:
            count += 1
            if count > 0xFFF:
                last_ms, count = last_ms + 1, 0
        low = draw() & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
        h = f"{last_ms:012x}7{count:03x}{low:016x}"
        return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    return mint


def _random_64() -> Iterator[int]:
    while True:
        block = os.urandom(BLOCK)
        for at in range(0, BLOCK, 8):
            yield int.from_bytes(block[at : at + 8])
