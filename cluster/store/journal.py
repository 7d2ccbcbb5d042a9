"""The journal: one ordered run of segments, each committed by the one manager that may.

Rule 1: segment `number` is `journal/<20 digits>.parquet`, from 1, without gaps. Rule 2: whoever
creates a name owns that place in the order; anyone else who tries is `Fenced` and must exit.
Rule 3: a commit in doubt (`Unavailable`) is repeated with the same `Prepared` until it is settled,
never rebuilt: the first try may have landed. Rule 4: a gap, a foreign file or a segment of another
journal is `Corrupt`: a machine must not guess what was acknowledged.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from cluster.store.contract import Objects
from cluster.store.segment import Rows, SegmentHeader, decode, encode
from jobs.errors import Corrupt, DraymanError, Kind, NotFound, Unavailable

__all__ = ["Fenced", "Journal", "Prepared"]

_DIGITS: Final = 20
_NAME = re.compile(rf"(\d{{{_DIGITS}}})\.parquet")

T = TypeVar("T")


class Fenced(DraymanError):
    """Another manager owns this place in the journal: exit, do not retry, answer nobody."""

    kind = Kind.CONFLICT

    def __init__(self, number: int, epoch_found: int) -> None:
        super().__init__(number, epoch_found)
        self.number, self.epoch_found = number, epoch_found

    def __str__(self) -> str:
        return f"segment {self.number} was written by another manager, epoch {self.epoch_found}"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A segment ready to commit: its bytes never change, however often it is tried."""

    number: int
    path: str
    nonce: str
    data: bytes


class Journal:
    """The segments under one prefix of a store.

    With `journal_id`, a segment of any other journal is `Corrupt`.
    """

    def __init__(
        self, objects: Objects, prefix: str = "journal/", *, journal_id: str | None = None
    ) -> None:
        self._objects, self._prefix, self._journal_id = objects, prefix, journal_id

    def __repr__(self) -> str:
        return f"Journal({self._objects!r}, {self._prefix!r})"

    def path(self, number: int) -> str:
        """Return the name of a segment."""
        return f"{self._prefix}{number:0{_DIGITS}d}.parquet"

    def prepare(self, header: SegmentHeader, rows: Rows) -> Prepared:
        """Encode a segment; the part of a commit that needs no I/O."""
        path = self.path(header.number)
        return Prepared(header.number, path, header.nonce, encode(header, rows))

    def commit(self, prepared: Prepared) -> None:
        """Make the segment durable, or raise.

        Idempotent for the same `Prepared`. Fenced: another manager wrote this number.
        Unavailable: in doubt, repeat it.
        """
        if self._objects.put_if_absent(prepared.path, prepared.data):
            return
        try:
            found = self._objects.get(prepared.path)
        except NotFound as error:
            # Compaction may delete a segment of ours that landed; the next try settles it.
            raise Unavailable(f"{prepared.path} exists and then does not; repeat it") from error
        if found == prepared.data:
            return
        header, _ = decode(found, prepared.path)
        if header.nonce == prepared.nonce:
            raise Corrupt(prepared.path, "was rebuilt: our nonce, but other bytes")
        raise Fenced(prepared.number, header.epoch)

    def get_ready(self) -> None:
        """Make the next commit quicker, if that can be done ahead of it."""
        self._objects.get_ready(self._prefix)

    def append(self, header: SegmentHeader, rows: Rows) -> Prepared:
        """Prepare and commit at once, where nobody needs to repeat."""
        prepared = self.prepare(header, rows)
        self.commit(prepared)
        return prepared

    def read(self, after: int = 0) -> Iterator[tuple[SegmentHeader, Rows]]:
        """Yield every segment above `after`, in order; Corrupt at the first thing amiss."""
        previous: SegmentHeader | None = None
        for number, data in self._ahead(self._numbers(after), self._get):
            path = self.path(number)
            header, rows = decode(data, path)
            self._check(path, header, previous)
            yield header, rows
            previous = header

    def read_each(
        self, numbers: Iterable[int]
    ) -> Iterator[tuple[int, tuple[SegmentHeader, Rows] | Corrupt | NotFound]]:
        """Yield each of the segments, or what is wrong with it: for who looks for damage."""
        return self._ahead(numbers, self._read_one)

    def epoch_of(self, number: int) -> int | None:
        """Return who wrote a segment, as the epoch of its manager; None if nobody did."""
        try:
            data = self._objects.get(self.path(number))
        except NotFound:
            return None
        return decode(data, self.path(number))[0].epoch

    def tail(self, after: int = 0) -> int:
        """Return the highest number, or `after` if there is none above it."""
        return max(self._numbers(after), default=after)

    def numbers_upto(self, last: int) -> list[int]:
        """Return the numbers up to `last` that are there; compaction leaves gaps among these."""
        found: list[int] = []
        for info in self._objects.list(self._prefix):
            match = _NAME.fullmatch(info.path.removeprefix(self._prefix))
            if match is None:
                raise Corrupt(info.path, "is no segment; move it out of the journal")
            if int(match[1]) > last:
                break
            found.append(int(match[1]))
        return found

    def _numbers(self, after: int) -> Iterator[int]:
        """Yield the numbers above `after`, making sure that none is missing."""
        expected = after + 1
        for info in self._objects.list(self._prefix, start_after=self.path(after)):
            match = _NAME.fullmatch(info.path.removeprefix(self._prefix))
            if match is None:
                raise Corrupt(info.path, "is no segment; move it out of the journal")
            number = int(match[1])
            if number != expected:
                raise Corrupt(
                    self.path(expected),
                    f"is missing, though {info.path} is there; restore it from a copy",
                )
            yield number
            expected += 1

    def _ahead(self, numbers: Iterable[int], read: Callable[[int], T]) -> Iterator[tuple[int, T]]:
        """Yield what `read` makes of each in order, as many ahead as the store likes."""
        if self._objects.concurrency == 1:
            for number in numbers:
                yield number, read(number)
            return
        ahead: deque[tuple[int, Future[T]]] = deque()
        with ThreadPoolExecutor(self._objects.concurrency, "journal-read") as pool:
            for number in numbers:
                ahead.append((number, pool.submit(read, number)))
                if len(ahead) >= self._objects.concurrency:
                    number, future = ahead.popleft()
                    yield number, future.result()
            while ahead:
                number, future = ahead.popleft()
                yield number, future.result()

    def _read_one(self, number: int) -> tuple[SegmentHeader, Rows] | Corrupt | NotFound:
        path = self.path(number)
        try:
            return decode(self._objects.get(path), path)
        except (Corrupt, NotFound) as error:
            return error

    def _get(self, number: int) -> bytes:
        path = self.path(number)
        try:
            return self._objects.get(path)
        except NotFound as error:
            raise Corrupt(path, "was listed and then was gone; is another manager live?") from error

    def _check(self, path: str, header: SegmentHeader, previous: SegmentHeader | None) -> None:
        if self.path(header.number) != path:
            raise Corrupt(path, f"holds segment {header.number}; put it back under its name")
        expected_id = previous.journal_id if previous else self._journal_id
        if expected_id is not None and header.journal_id != expected_id:
            raise Corrupt(path, f"belongs to journal {header.journal_id}, not {expected_id}")
        if previous is None:
            return
        if header.first_seq != previous.first_seq + previous.rows:
            raise Corrupt(path, f"begins with event {header.first_seq}, out of order")
        if header.epoch < previous.epoch:
            raise Corrupt(path, f"has epoch {header.epoch} after {previous.epoch}")
