r"""Where the records of a CSV or NDJSON file begin and end, found near a byte and exactly.

A newline ends a CSV record unless it is quoted, and whether it is may hang on a quote written
gigabytes earlier. It seldom does. Look at a run of k quote signs, with l the byte before it:

    k even              the state stays (doubled quotes, or an empty field, or plain text)
    k odd, l a border   the state flips: a field opens, or one that ends in a border closes
    k odd, l any other  unquoted afterwards: a field closed, or the signs are text inside a field

where a border is the delimiter, a line end or the start of the file. So the state at a byte follows
from the last odd run of the third kind before it and the flips since. That run is almost always the
nearest closing quote; the walk goes back to a known start of a record only where there is none.

Rule 1: the rules are those of Python's `csv` and of Arrow: a quote opens a field only as its first
byte, text after a closing quote belongs to the field, and `\n`, `\r\n` and `\r` end a line.
Rule 2: memory is bounded by the window, whatever the length of a field.
"""

import re
from collections.abc import Iterator
from typing import Protocol

__all__ = ["Ranged", "Splitter", "count_lines"]

_WINDOW_MIN = 1 << 16
_WINDOW_MAX = 1 << 23
_LINE_ENDS = b"\r\n"


class Ranged(Protocol):
    """Bytes read by range."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer only at the end."""


class Splitter:
    r"""Finds the ends of records in `source`.

    `quote` None: quotes mean nothing and every line is a record. `delimiter` and `quote` are single
    ASCII bytes; the encoding is one in which such a byte always means that sign. `json`: a record
    ends with `\n` alone, since a `\r` inside it is white space.
    """

    def __init__(
        self,
        source: Ranged,
        delimiter: bytes = b",",
        quote: bytes | None = b'"',
        *,
        json: bool = False,
        window: int = _WINDOW_MIN,
    ) -> None:
        self._source, self._quote = source, None if json else quote
        self._ends = b"\n" if json else _LINE_ENDS
        #: Bytes of a first read; more follow if they do not tell.
        self._window = window
        self._borders = delimiter + _LINE_ENDS
        self._run = re.compile(re.escape(quote) + b"+") if quote else None
        #: Backwards: an odd run of quotes, and then no border.
        self._closing = None
        if quote:
            sign, border = re.escape(quote), re.escape(quote + self._borders)
            self._closing = re.compile(
                b"(?<!%s)%s(?:%s%s)*+(?![%s])" % (sign, sign, sign, sign, border), re.DOTALL
            )
        stops = self._ends + (self._quote or b"")
        self._stop = re.compile(b"[" + re.escape(stops) + b"]")

    def end_after(self, low: int, near: int) -> int:
        """Return the first end of a record at or after `near`; the file's end if there is none.

        `low` is a known start of a record, `low < near`. The end includes the line end.
        """
        size = self._source.size
        if near >= size:
            return size
        near = self._outside_run(max(near, low + 1))
        if near >= size:
            return size
        before = self._source.read(near - 1, 2)
        if before == _LINE_ENDS:
            near += 1
            before = self._source.read(near - 1, 2)
        quoted = self._quoted_at(low, near)
        if not quoted and before[0] in self._ends:
            return near
        return self._next_end(near, quoted)

    def ends(self, low: int, every: int) -> Iterator[int]:
        """Yield ends of records from `low` on, each at least `every` bytes after the last."""
        while low < self._source.size:
            low = self.end_after(low, low + every)
            yield low

    def unclosed(self, low: int) -> bool:
        """Whether the file ends inside a quoted field; `low` is a known start of a record."""
        return self._quoted_at(low, self._source.size)

    def last_start(self, low: int, high: int) -> int:
        """Return the last start of a record in low..high. Costs much more than `end_after`."""
        for step in (1 << 20, 1 << 14, 1):
            while (end := self.end_after(low, low + step)) < high:
                low = end
        return low

    def _outside_run(self, near: int) -> int:
        """Return `near`, moved behind the run of quotes that it would cut."""
        if self._quote is None:
            return near
        while self._source.read(near - 1, 2) == self._quote * 2:
            window = self._source.read(near, self._window)
            near += len(window) - len(window.lstrip(self._quote))
        return near

    def _quoted_at(self, low: int, near: int) -> bool:
        quote, closing = self._quote, self._closing
        if quote is None or closing is None:
            return False
        flips, end, width = 0, near, self._window
        while end > low:
            start = max(low, end - width)
            window = self._source.read(start, end - start)
            width = min(width * 4, _WINDOW_MAX)
            if start > low:
                # What is before a run that the window begins with lies in the window before.
                cut = len(window) - len(window.lstrip(quote))
                if cut == len(window):
                    width = max(width, 4 * cut)
                window = window[cut:]
                start += cut
            else:
                # The start of a record is a border.
                window = b"\n" + window
            # Backwards, so that the first match is the last such run; the regex goes first to last.
            if quote in window and (found := closing.search(window[::-1])):
                return (flips + window[len(window) - found.start() :].count(quote)) % 2 == 1
            # The other runs that are odd flip, and the even ones do not count: as the signs do.
            flips += window.count(quote)
            end = start
        return flips % 2 == 1

    def _next_end(self, at: int, quoted: bool) -> int:
        """Return the next end of a record after `at`, where the state is `quoted`."""
        size, quote, width = self._source.size, self._quote, self._window
        base = at - 1
        window = self._source.read(base, width)
        place = 1
        while True:
            if quoted:
                found = window.find(quote or b"", place)
            else:
                match = self._stop.search(window, place)
                found = match.start() if match else -1
            if found >= 0 and window[found : found + 1] == quote:
                after = self._run.match(window, found).end()  # type: ignore[union-attr]
            else:
                after = found + 1
            at_end = base + len(window) >= size
            if found < 0 or (after == len(window) and not at_end):
                if at_end:
                    return size
                # Keep the byte before what is not decided yet, and read on.
                keep = (len(window) if found < 0 else found) - 1
                base += keep
                width = min(max(width * 2, 2 * (len(window) - keep)), _WINDOW_MAX)
                if len(window) - keep >= width:
                    width = 2 * (len(window) - keep)
                window, place = self._source.read(base, width), 1
                continue
            if window[found : found + 1] != quote:
                if window[found : found + 2] == _LINE_ENDS:
                    after += 1
                return base + after
            if (after - found) % 2:
                opens = not quoted and (base + found == 0 or window[found - 1] in self._borders)
                quoted = opens
            place = after


def count_lines(data: bytes) -> int:
    r"""Return how many line ends there are: `\n`, `\r\n` or `\r`."""
    lines = data.count(b"\n")
    if b"\r" in data:
        lines += data.count(b"\r") - data.count(b"\r\n")
    return lines
