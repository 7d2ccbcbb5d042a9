"""Reading history: one finished job by its id, or a page of them.

Rule 1: whoever asks says up to which segment the manager has compacted; the list of files is looked
at again only when it is older than that. Rule 2: of a job that finished more than once the last
revision counts. Rule 3: what is kept in memory is a few numbers per group of rows, never rows.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
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
from cluster.store.parquet import open_table
from cluster.views import JobQuery
from jobs.errors import Corrupt, NotFound, Unavailable

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

        One that failed may have been redriven since: the manager and `overtaken` know.
        """
        return self._steadily(as_of, lambda files: self._page(files, query, below))

    def overtaken(self, records: Collection[Record], as_of: int | None = None) -> set[str]:
        """Return the ids of those jobs that have finished again since."""
        if not records:
            return set()
        ids = sorted(record.view.id for record in records)
        latest = self._steadily(as_of, lambda files: self._latest(files, ids))
        return {r.view.id for r in records if latest.get(r.view.id, 0) > r.revision}

    # --- the list of files --------------------------------------------------------------------

    def _steadily(self, as_of: int | None, work: Callable[[list[HistoryFile]], T]) -> T:
        """Repeat what met a file that was merged away meanwhile."""
        for _ in range(TRIES):
            files = self._current(as_of)
            try:
                return work(files)
            except NotFound:
                as_of = None
            except OSError as error:
                told = f"cannot be read ({error}); `drayman doctor --store` says which file"
                raise Corrupt("history/jobs", told) from error
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
            file = open_table(source)
            ids = file.read_row_group(group, columns=["id"])["id"]
            at = pc.index(ids, pa.scalar(job_id)).as_py()
            if at >= 0:
                rows = file.read_row_group(group, columns=["revision", column])
                while at < len(ids) and ids[at].as_py() == job_id:
                    yield rows["revision"][at].as_py(), rows[column][at].as_py()
                    at += 1

    def _latest(self, files: list[HistoryFile], ids: list[str]) -> dict[str, int]:
        """Return the last revision of each of the jobs, whose ids are sorted."""
        since, wanted = _submitted_on(ids[0]), pa.array(ids)
        latest: dict[str, int] = {}
        for file in files:
            for group, (low, high) in enumerate(self._index(file.path).ids):
                if file.date < since or bisect_left(ids, low) == bisect_right(ids, high):
                    continue
                with self._objects.open_read(file.path) as source:
                    rows = open_table(source).read_row_group(group, columns=["id", "revision"])
                rows = rows.filter(pc.is_in(rows["id"], wanted))
                for job_id, revision in zip(*(column.to_pylist() for column in rows), strict=True):
                    latest[job_id] = max(revision, latest.get(job_id, 0))
        return latest

    # --- pages --------------------------------------------------------------------------------

    def _page(self, files: list[HistoryFile], query: JobQuery, below: int) -> list[Record]:
        spans = [
            (high, low, file.path, group)
            for file in files
            for group, (low, high) in enumerate(self._index(file.path).numbers)
            if low < below
        ]
        best: list[tuple[int, int, bytes]] = []
        for high, _, path, group in sorted(spans, reverse=True):
            if len(best) == query.limit and high < best[-1][0]:
                break
            found = self._matches(path, group, query, below)
            # The last revision of a job comes last.
            newest = {row[0]: row for row in sorted([*best, *found])}
            best = heapq.nlargest(query.limit, newest.values())
        return [decode_record(record) for _, _, record in best]

    def _matches(
        self, path: str, group: int, query: JobQuery, below: int
    ) -> list[tuple[int, int, bytes]]:
        """Return the number, revision and record of each job of a group that matches."""
        with self._objects.open_read(path) as source:
            file = open_table(source)
            table = file.read_row_group(group, columns=_FILTERS)
            mask = pc.less(table["number"], below)
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
            records = file.read_row_group(group, columns=["record"])["record"]
        columns = (table["number"], table["revision"], records)
        return list(zip(*(column.take(places).to_pylist() for column in columns), strict=True))


_FILTERS = ["number", "revision", "tenant", "status", "type", "queue", "labels"]


def _submitted_on(job_id: str) -> date:
    """Return the day before the one that the id, a UUIDv7, says: clocks differ."""
    try:
        milliseconds = int(job_id.replace("-", "")[:12], 16)
        day = datetime.fromtimestamp(milliseconds / 1000, UTC) - timedelta(days=1)
    except (ValueError, OverflowError, OSError):
        return date.min
    return day.date()
