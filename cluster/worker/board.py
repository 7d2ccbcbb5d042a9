"""A page of memory a child shares with its worker: what runs there, and what just ended.

It answers without the child's help what a worker must know when the child is dead, hung in C code,
or busy: which attempt runs and since when, and the outcomes not yet sent.

Rule 1: only the child writes. Rule 2: what is kept here stays until it was sent, so a worker may
see an outcome twice and must go by its token. Rule 3: `running` names the last attempt begun; it is
still running only if its outcome is not known. On an event loop it is who has the turn.

    0   token, started (monotonic ns), offset of its output     begin, enter
    24  loop pulse (monotonic ns)                               pulse
    32  length of the outcomes that follow at 64                keep, clear
    40  bytes by which it grew since its first attempt          weigh
"""

import mmap
import os
import struct

__all__ = ["OUTCOME_BYTES_MAX", "SEPARATOR", "Board"]

#: Between two outcomes. Within one there is no line end, so a bad one spoils none but itself.
SEPARATOR = b",\n"

_RUNNING = struct.Struct("<QQQ")
_NUMBER = struct.Struct("<Q")
_PULSE_AT = 24
_LENGTH_AT = 32
_GROWN_AT = 40
_KEPT_AT = 64
#: Holds several outcomes with the largest inline result (64 KiB) between two sends.
_SIZE_BYTES = 512 * 1024
#: The longest outcome that an empty board can keep.
OUTCOME_BYTES_MAX = _SIZE_BYTES - _KEPT_AT - len(SEPARATOR)


class Board:
    """One child's page. `fd` is an open file of its own; both sides map it."""

    def __init__(self, fd: int, *, create: bool = False) -> None:
        if create:
            os.ftruncate(fd, _SIZE_BYTES)
        self._page = mmap.mmap(fd, _SIZE_BYTES)
        self._length = 0

    # --- the child ----------------------------------------------------------------------------

    def begin(self, token: int, started_ns: int, output_at: int) -> None:
        """Name the attempt that runs from now on; its handler starts then, or soon."""
        _RUNNING.pack_into(self._page, 0, token, started_ns, output_at)

    def enter(self, token: int) -> None:
        """Name the attempt whose code the event loop runs right now; 0 for none."""
        _NUMBER.pack_into(self._page, 0, token)

    def pulse(self, now_ns: int) -> None:
        """Say that the event loop turns."""
        _NUMBER.pack_into(self._page, _PULSE_AT, now_ns)

    def keep(self, outcome: bytes) -> bool:
        """Keep an encoded outcome until it is sent; False if it does not fit now."""
        start = _KEPT_AT + self._length
        end = start + len(outcome) + len(SEPARATOR)
        if end > _SIZE_BYTES:
            return False
        self._page[start:end] = outcome + SEPARATOR
        self._length = end - _KEPT_AT
        _NUMBER.pack_into(self._page, _LENGTH_AT, self._length)
        return True

    def clear(self) -> None:
        """Forget the outcomes kept: they were sent."""
        self._length = 0
        _NUMBER.pack_into(self._page, _LENGTH_AT, 0)

    def weigh(self, grown_bytes: int) -> None:
        """Say by how much the process has grown."""
        _NUMBER.pack_into(self._page, _GROWN_AT, grown_bytes)

    # --- both ---------------------------------------------------------------------------------

    def kept(self) -> bytes:
        """Return the encoded outcomes kept, with a separator between each two."""
        (length,) = _NUMBER.unpack_from(self._page, _LENGTH_AT)
        return self._page[_KEPT_AT : _KEPT_AT + length - len(SEPARATOR)] if length else b""

    # --- the worker ---------------------------------------------------------------------------

    def running(self) -> tuple[int, int, int]:
        """Return (token, started monotonic ns, offset of its output) of the last attempt begun."""
        return _RUNNING.unpack_from(self._page, 0)

    def pulsed_ns(self) -> int:
        """Return when the event loop last turned (monotonic ns); 0 before its first turn."""
        (pulsed,) = _NUMBER.unpack_from(self._page, _PULSE_AT)
        return int(pulsed)

    def grown_bytes(self) -> int:
        """Return by how much the child had grown when it last looked."""
        (grown,) = _NUMBER.unpack_from(self._page, _GROWN_AT)
        return int(grown)

    def close(self) -> None:
        """Unmap the page."""
        self._page.close()
