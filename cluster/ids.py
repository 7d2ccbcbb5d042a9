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
    prefix = ""
    draw = _random_tails().__next__

    def mint() -> str:
        nonlocal last_ms, count, prefix
        now_ms = time.time_ns() // 1_000_000
        count += 1
        if now_ms > last_ms or count > COUNT_MAX:
            last_ms, count = max(now_ms, last_ms + 1), 0
            digits = f"{last_ms:012x}"
            prefix = f"{digits[:8]}-{digits[8:]}-7"
        return f"{prefix}{_COUNTS[count]}{draw()}"

    return mint


#: The highest count of 12 bits.
COUNT_MAX = 0xFFF
_COUNTS = [f"{count:03x}-" for count in range(COUNT_MAX + 1)]
#: Of the first of the random digits the upper two bits are fixed: 10.
_VARIANT = {f"{digit:x}": f"{digit & 3 | 8:x}" for digit in range(16)}


def _random_tails() -> Iterator[str]:
    """Yield the last 16 digits of ids."""
    while True:
        block = os.urandom(BLOCK).hex()
        yield from [
            f"{_VARIANT[block[at]]}{block[at + 1 : at + 4]}-{block[at + 4 : at + 16]}"
            for at in range(0, 2 * BLOCK, 16)
        ]
