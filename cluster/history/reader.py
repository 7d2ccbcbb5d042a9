"""Reading history: one finished job by its id, or a page of them.

Rule 1: whoever asks says up to which segment the manager has compacted; the list of files is looked
at again only when it is older than that. Rule 2: of a job that finished more than once the last
revision counts. Rule 3: what is kept in memory is a few numbers per group of rows, never rows.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from threading import Lock
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.history.lineage import Lineage
from cluster.history.rows import Record, decode_record
from cluster.history.writer import HistoryFile, current_files
from cluster.store.contract import Objects
from cluster.views import JobQuery
from jobs.errors import NotFound, Unavailable

__all__ = ["History"]

#: Files whose index is kept in memory: some kilobytes each.
INDEXES_MAX = 2_000
#: How often the files may change under a reader before it gives up.
TRIES = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Index:
    """What each group of rows of a file spans."""

    ids: list[tuple[str, str]]
    numbers: list[tuple[int, int]]


class History:
    """The finished jobs of one store. Every call blocks; safe to share between threads."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        #: The finished chunks of jobs.
        self.lineage = Lineage(objects)
        self._files: list[HistoryFile] = []
        self._as_of = -1
        self._indexes: OrderedDict[str, _Index] = OrderedDict()
        self._lock = Lock()

    def find(self, job_id: str, as_of: int | None = None) -> Record | None:
        """Return a finished job, or None. `as_of` None looks at the store anew."""
        record = self._steadily(as_of, lambda files: self._newest(files, job_id, "record"))
        return None if record is None else decode_record(record)

    def params(self, job_id: str) -> bytes | None:
        """Return the params of a job that `find` found, as JSON; None if its row has none."""
        text: str | None = self._steadily(0, lambda files: self._newest(files, job_id, "params"))
        return None if text is None else text.encode()

    def page(self, query: JobQuery, below: int, as_of: int | None = None) -> list[Record]:
        """Return up to `query.limit` jobs that match, with a number below `below`, last first.

        Failed ones are not among them: the manager has all of those.
        """
        return self._steadily(as_of, lambda files: self._page(files, query, below))

    # --- the list of files --------------------------------------------------------------------

    def _steadily(self, as_of: int | None, work: Callable[[list[HistoryFile]], T]) -> T:
        """Repeat what met a file that was merged away meanwhile."""
        for _ in range(TRIES):
            files = self._current(as_of)
            try:
                return work(files)
            except NotFound:
                as_of = None
        raise Unavailable("history is being rewritten", 1.0)

    def _current(self, as_of: int | None) -> list[HistoryFile]:
        with self._lock:
            if as_of is None or as_of > self._as_of:
                self._files = current_files(self._objects, "jobs")[0]
                covered = max((file.last for file in self._files), default=0)
                self._as_of = max(covered, as_of or 0)
                known = {file.path for file in self._files}
                for path in [path for path in self._indexes if path not in known]:
                    del self._indexes[path]
            return self._files

    def _index(self, path: str) -> _Index:
        with self._lock:
            found = self._indexes.get(path)
            if found is not None:
                self._indexes.move_to_end(path)
                return found
        with self._objects.open_read(path) as source:
            metadata = pq.ParquetFile(source).metadata
        columns = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        spans = [
            [group.column(columns[name]).statistics for group in groups]
            for name in ("id", "number")
        ]
        index = _Index(*([(s.min, s.max) for s in column] for column in spans))
        with self._lock:
            self._indexes[path] = index
            while len(self._indexes) > INDEXES_MAX:
                self._indexes.popitem(last=False)
        return index

    # --- one job ------------------------------------------------------------------------------

    def _newest(self, files: list[HistoryFile], job_id: str, column: str) -> Any:
        """Return what the job's last revision has in a column; None if there is no such job."""
        found, last = None, -1
        submitted = _submitted_on(job_id)
        for file in files:
            if file.date < submitted:
                continue
            for group, (low, high) in enumerate(self._index(file.path).ids):
                if low <= job_id <= high:
                    for revision, value in self._rows(file.path, group, job_id, column):
                        if revision >= last:
                            found, last = value, revision
        return found

    def _rows(self, path: str, group: int, job_id: str, column: str) -> Iterator[tuple[int, Any]]:
        with self._objects.open_read(path) as source:
            file = pq.ParquetFile(source)
            ids = file.read_row_group(group, columns=["id"])["id"]
            at = pc.index(ids, pa.scalar(job_id)).as_py()
            if at >= 0:
                rows = file.read_row_group(group, columns=["revision", column])
                while at < len(ids) and ids[at].as_py() == job_id:
                    yield rows["revision"][at].as_py(), rows[column][at].as_py()
                    at += 1

    # --- pages --------------------------------------------------------------------------------

    def _page(self, files: list[HistoryFile], query: JobQuery, below: int) -> list[Record]:
        spans = [
            (high, low, file.path, group)
            for file in files
            for group, (low, high) in enumerate(self._index(file.path).numbers)
            if low < below
        ]
        best: list[tuple[int, bytes]] = []
        for high, _, path, group in sorted(spans, reverse=True):
            if len(best) == query.limit and high < best[-1][0]:
                break
            found = self._matches(path, group, query, below)
            best = heapq.nlargest(query.limit, dict([*best, *found]).items())
        return [decode_record(record) for _, record in best]

    def _matches(
        self, path: str, group: int, query: JobQuery, below: int
    ) -> list[tuple[int, bytes]]:
        with self._objects.open_read(path) as source:
            file = pq.ParquetFile(source)
            table = file.read_row_group(group, columns=_FILTERS)
            # Failed jobs stay with the manager; a row of one tells how it was before its redrive.
            mask = pc.and_(pc.less(table["number"], below), pc.not_equal(table["status"], "failed"))
            for column in ("tenant", "status", "type", "queue"):
                wanted = getattr(query, column)
                if wanted is not None:
                    mask = pc.and_(mask, pc.equal(table[column], wanted))
            if query.label is not None:
                key, value = query.label
                labels = pc.map_lookup(table["labels"], pa.scalar(key), "first")
                mask = pc.and_(mask, pc.fill_null(pc.equal(labels, value), False))
            places = pc.indices_nonzero(mask)
            if not len(places):
                return []
            records = file.read_row_group(group, columns=["record"])["record"].take(places)
        numbers = table["number"].take(places)
        return list(zip(numbers.to_pylist(), records.to_pylist(), strict=True))


_FILTERS = ["number", "tenant", "status", "type", "queue", "labels"]


def _submitted_on(job_id: str) -> date:
    """Return the day before the one that the id, a UUIDv7, says: clocks differ."""
    try:
        milliseconds = int(job_id.replace("-", "")[:12], 16)
        day = datetime.fromtimestamp(milliseconds / 1000, UTC) - timedelta(days=1)
    except (ValueError, OverflowError, OSError):
        return date.min
    return day.date()
