"""Whether a block of CSV may hold whole numbers in hexadecimal, which Arrow takes.

Asked of every block, so it costs little: under 5 % of an import. Where it is so, `rows.py` looks
whether such a field is in a column of whole numbers.
"""

import re

import numpy as np

__all__ = ["Hexadecimal"]

#: At once, so that it stays in the processor's cache.
_PIECE_BYTES = 1 << 16


class Hexadecimal:
    """Looks for fields such as 0x1F, quoted or not: as Arrow reads them, and maybe others."""

    def __init__(self, delimiter: str, quote: str | None) -> None:
        self._quote = None if quote is None else ord(quote)
        q = re.escape((quote or "").encode())
        ends = re.escape(delimiter.encode()) + q
        # A quoted field may go on behind its quote: "0"x1F.
        self._field = re.compile(
            rb"(?<![^\r\n \t%b])0(?:%b)?[xX][0-9a-fA-F%b]{1,18}(?=[ \t]*(?:[\r\n%b]|\Z))"
            % (ends, q, q, ends)
        )

    def may_be_in(self, data: bytes) -> bool:
        """Whether there is such a field."""
        return self._has_prefix(data) and self._field.search(data) is not None

    def _has_prefix(self, data: bytes) -> bool:
        """Whether there is `0x` at all: that is found faster than any pattern."""
        if data[:2].lower() == b"0x":
            return True
        signs = np.frombuffer(data, np.uint8)
        for start in range(0, len(data), _PIECE_BYTES):
            near = signs[max(0, start - 2) : start + _PIECE_BYTES]
            is_x, before = (near[2:] | 0x20) == ord("x"), near[1:-1]
            if (is_x & (before == ord("0"))).any():
                return True
            if self._quote is not None:
                is_x &= before == self._quote
                if is_x.any() and (is_x & (near[:-2] == ord("0"))).any():
                    return True
        return False
