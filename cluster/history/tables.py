"""All tables whole, for SQL: what history has, and what the manager still has, as Arrow.

Rule 1: live state is read before history, so what moves over meanwhile is in both rather than in
neither; its live row counts. Rule 2: a file is opened when rows of its day are asked for, and
no handle is kept. Rule 3: nothing is changed.
"""

import io
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from cluster.fold import fold_store
from cluster.history.lineage import LINEAGE, lineage_files, lineage_row
from cluster.history.rows import ATTEMPTS, JOBS, attempt_rows, job_row
from cluster.history.writer import HistoryFile, current_files
from cluster.queue.model import Job, State
from cluster.queue.plan import Role, locate, steps_of
from cluster.store.contract import Objects
from cluster.store.identity import read_identities
from cluster.tasks import finished_views, kept_views
from jobs.errors import DraymanError, InvalidInput

__all__ = ["Table", "Tables", "open_tables"]

#: Above every revision there is.
REVISION_MAX = 2**31 - 1
#: Jobs made into rows at once: a row is some kilobytes while it is a Python object.
BATCH_JOBS = 10_000

_DATE = pa.field("date", pa.date32())
#: `record` repeats the other columns, for programs.
_SCHEMAS = {
    "jobs": pa.schema([f for f in JOBS if f.name != "record"]).append(_DATE),
    "attempts": ATTEMPTS.append(_DATE),
    "tasks": pa.schema([f for f in LINEAGE if f.name != "record"]),
}
_STALE = pa.schema([("job_id", pa.string()), ("task_id", pa.string())])
_HIDDEN = pa.schema([("id", pa.string()), ("below", pa.int32())])
_PARQUET = ds.ParquetFileFormat()


@dataclass(frozen=True, slots=True)
class Table:
    """One table in its two parts; `date`, if it has that, is the UTC day the job finished on."""

    live: pa.Table
    history: ds.Dataset


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a store at one moment."""

    jobs: Table
    attempts: Table
    #: Chunks that are done; the part of them in which one may be twice, made again; and those that
    #: have to be made again first.
    tasks: Table
    again: ds.Dataset
    stale: pa.Table
    #: `id`, `below`: rows in history of that job with a lower revision are out of date.
    hidden: pa.Table
    #: Whether history may have what live state has, too: it was compacted in between.
    overtaken: bool
    #: What history consisted of.
    files: list[HistoryFile]
    #: What the store refused while rows were read: nothing else survives the way through Arrow.
    refusals: list[DraymanError] = field(default_factory=list)

    def is_current(self, objects: Objects) -> bool:
        """Tell whether history still consists of the same files."""
        return self.files == _files(objects)


def open_tables(
    objects: Objects,
    journal_objects: Objects | None = None,
    *,
    with_live: bool = True,
    with_tasks: bool = True,
) -> Tables:
    """Return the tables of a store, which may be in use.

    Without `with_live` there is only what history has: it costs nothing to begin with, where
    reading a million waiting jobs takes a minute. Without `with_tasks` that table is empty: there
    is a file of it for each planned job, and more of a large one. Raises InvalidInput where there
    is no store.
    """
    beside = journal_objects or objects
    if read_identities(objects, beside) == (None, None):
        raise InvalidInput("store", f"{objects.url} is no store of Drayman's; name another")
    state = fold_store(objects, beside).state if with_live else State()
    files = _files(objects)
    refusals: list[DraymanError] = []
    job_files, attempt_files = (
        _dataset(objects, table, files, refusals) for table in ("jobs", "attempts")
    )
    # Compacted since live state was read: then any job of it may have finished, too.
    overtaken = with_live and any(file.last > state.compacted for file in files)
    done = state if with_tasks else State()
    chunk_files, again_files = _lineage(objects, refusals, wanted=with_tasks)
    return Tables(
        jobs=Table(_rows("jobs", state), job_files),
        attempts=Table(_rows("attempts", state), attempt_files),
        tasks=Table(_task_rows(done), chunk_files),
        again=again_files,
        stale=_stale(done),
        hidden=_hidden(objects, state, job_files, overtaken=overtaken),
        overtaken=overtaken,
        files=files,
        refusals=refusals,
    )


# --- what is live -----------------------------------------------------------------------------


def _rows(table: str, state: State) -> pa.Table:
    schema, jobs = _SCHEMAS[table], iter(state.jobs.values())
    batches = []
    while batch := list(islice(jobs, BATCH_JOBS)):
        rows = [row for job in batch for row in _rows_of(table, job, state)]
        batches.append(pa.RecordBatch.from_pylist(rows, schema))
    return pa.Table.from_batches(batches, schema)


def _rows_of(table: str, job: Job, state: State) -> list[dict[str, Any]]:
    day = {"date": _day(job)}
    rows = [job_row(job, state)] if table == "jobs" else attempt_rows(job)
    return [{**row, **day} for row in rows]


def _task_rows(state: State) -> pa.Table:
    """Return chunks that are done and that no lineage file has yet."""
    schema, batches = _SCHEMAS["tasks"], []
    for job in state.plans.values():
        done = (view for step in steps_of(job) for view in finished_views(state, job, step))
        views = chain(done, kept_views(state, job))
        while batch := list(islice(views, BATCH_JOBS)):
            *columns, _ = zip(*(lineage_row(job.id, view) for view in batch), strict=True)
            arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
            batches.append(pa.record_batch(arrays, schema))
    return pa.Table.from_batches(batches, schema)


def _stale(state: State) -> pa.Table:
    """Return chunks that files have, but whose output was lost and is not made again yet."""
    found: list[tuple[str, str]] = []
    for job in state.plans.values():
        plan = job.plan
        for task_id in plan.rebuilt if plan is not None else ():
            assert plan is not None
            step, role, index = locate(plan, task_id)
            if role is Role.CHUNK and not step.is_done(index):
                found.append((job.id, task_id))
    columns = zip(*found, strict=True) if found else ((), ())
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=_STALE)


def _day(job: Job) -> date | None:
    return datetime.fromtimestamp(job.finished_at, UTC).date() if job.finished_at else None


# --- what history has -------------------------------------------------------------------------


def _files(objects: Objects) -> list[HistoryFile]:
    return [file for table in ("jobs", "attempts") for file in current_files(objects, table)[0]]


def _dataset(
    objects: Objects, table: str, files: Iterable[HistoryFile], refusals: list[DraymanError]
) -> ds.Dataset:
    fragments = [
        _fragment(
            objects, file.path, file.bytes, pc.field("date") == pa.scalar(file.date), refusals
        )
        for file in files
        if file.path.startswith(f"history/{table}/")
    ]
    return ds.FileSystemDataset(fragments, _SCHEMAS[table], _PARQUET)


def _lineage(
    objects: Objects, refusals: list[DraymanError], *, wanted: bool
) -> tuple[ds.Dataset, ds.Dataset]:
    """Return all lineage files, and those of jobs that have several: no chunk is twice in one."""
    # A query that names a job opens the files of that one alone.
    files = list(lineage_files(objects)) if wanted else []
    fragments = [
        _fragment(objects, path, size, pc.field("job_id") == pa.scalar(job_id), refusals)
        for job_id, path, size in files
    ]
    counts = Counter(job_id for job_id, _, _ in files)
    several = [
        one for one, (job_id, *_) in zip(fragments, files, strict=True) if counts[job_id] > 1
    ]
    schema = _SCHEMAS["tasks"]
    whole, again = (ds.FileSystemDataset(part, schema, _PARQUET) for part in (fragments, several))
    return whole, again


def _fragment(
    objects: Objects, path: str, size: int, within: pc.Expression, refusals: list[DraymanError]
) -> ds.Fragment:
    local = objects.local_path(path)
    if local is not None:
        return _PARQUET.make_fragment(str(local), LocalFileSystem(), partition_expression=within)
    source = _Source(objects, path, size, refusals)
    return _PARQUET.make_fragment(source, partition_expression=within)


def _hidden(objects: Objects, state: State, history: ds.Dataset, *, overtaken: bool) -> pa.Table:
    live = [job.id for job in state.jobs.values() if job.revision or overtaken]
    _warm(objects, history)
    again = history.to_table(columns=["id", "revision"], filter=pc.field("revision") > 1)
    last = again.group_by("id").aggregate([("revision", "max")])
    parts = [
        pa.table([live, [REVISION_MAX] * len(live)], _HIDDEN),
        pa.table([last["id"], last["revision_max"]], _HIDDEN),
    ]
    return pa.concat_tables(parts).combine_chunks()


def _warm(objects: Objects, history: ds.Dataset) -> None:
    """Read the footers, many at once where the way to the store is long."""
    if objects.concurrency > 1:
        with ThreadPoolExecutor(objects.concurrency, "history-footers") as pool:
            for _ in pool.map(lambda one: one.ensure_complete_metadata(), history.get_fragments()):
                pass


class _Source(io.RawIOBase):
    """A file of history, as Arrow reads files; every read is a request of its own."""

    def __init__(
        self, objects: Objects, path: str, size: int, refusals: list[DraymanError]
    ) -> None:
        self._objects, self._path, self._bytes = objects, path, size
        self._refusals = refusals
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._bytes}[whence]
        self._at = begin + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        length = self._bytes - self._at if size < 0 else size
        try:
            data = self._objects.get_range(self._path, self._at, length)
        except DraymanError as error:
            self._refusals.append(error)
            raise
        self._at += len(data)
        return data
