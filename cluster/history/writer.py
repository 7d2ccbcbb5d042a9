"""Writing history: by the compactor alone, under names made of what they cover.

    history/<table>/date=YYYY-MM-DD/<first segment>-<last segment>.parquet

The date is the UTC day on which the jobs finished. Rule 1: a file is created, never changed, and
whoever writes one again writes the same. Rule 2: a file whose range lies within another's of the
same day is superseded by it. Rule 3: at most `FILES_MAX` a day, but for large ones.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from cluster.history.lineage import write_lineage
from cluster.history.rows import chunk_table, tables
from cluster.queries import chunk_attempts
from cluster.queue.model import Job, State
from cluster.queue.snapshot import is_final
from cluster.store.contract import Objects
from cluster.store.parquet import encode_table, open_table
from cluster.tasks import finished_views, kept_views
from cluster.views import AttemptView

__all__ = ["TABLES", "HistoryFile", "current_files", "maintain", "write"]

log = structlog.get_logger(__name__)

TABLES = ("jobs", "attempts")
FILES_MAX = 24
#: Files at least so large are left as they are.
MERGED_BYTES_MAX = 64 << 20
#: A look-up by id reads one group.
GROUP_ROWS = 2_000
_NAME = re.compile(
    r"history/(?P<table>\w+)/date=(?P<date>\d{4}-\d\d-\d\d)/(?P<first>\d{20})-(?P<last>\d{20})\.parquet"
)


@dataclass(frozen=True, slots=True)
class HistoryFile:
    """One file of one table and day."""

    path: str
    date: date
    #: The segments whose jobs are in it.
    first: int
    last: int
    bytes: int


def write(objects: Objects, first: int, last: int, jobs: list[Job], state: State) -> None:
    """Write the jobs, which finished in segments `first` to `last` and are sorted by id.

    With them go the chunks that finished there: as attempts, and as lineage.
    """
    chunks: dict[date, list[tuple[Job, AttemptView]]] = {}
    for job in sorted(state.plans.values(), key=lambda job: job.id):
        for attempt in chunk_attempts(job):
            chunks.setdefault(_day_of(attempt.ended_at or attempt.leased_at), []).append(
                (job, attempt)
            )
    by_day = {day: list(mine) for day, mine in groupby(sorted(jobs, key=_day), key=_day)}
    for day in sorted(by_day.keys() | chunks.keys()):
        job_rows, attempt_rows = tables(by_day.get(day, []), state)
        if day in chunks:
            beside = chunk_table(chunks[day])
            attempt_rows = pa.concat_tables([attempt_rows, beside]).sort_by("job_id")
        if job_rows.num_rows:
            objects.put_if_absent(_path("jobs", day, first, last), _encode(job_rows))
        objects.put_if_absent(_path("attempts", day, first, last), _encode(attempt_rows))
    leaving = {job.id for job in jobs if is_final(job)}
    for job in state.plans.values():
        assert job.plan is not None
        steps = job.plan.steps.values()
        views = [view for step in steps for view in finished_views(state, job, step)]
        if job.id in leaving:
            views += kept_views(state, job)
        if views:
            write_lineage(objects, first, last, job.id, views)


def maintain(objects: Objects, now: float, retention_days: float | None) -> None:
    """Delete what is superseded or too old, and merge the small files of a day."""
    oldest = None
    if retention_days is not None:
        oldest = (datetime.fromtimestamp(now, UTC) - timedelta(days=retention_days)).date()
    for table in reversed(TABLES):  # a day's jobs go last: they say what else is to go
        current, superseded = current_files(objects, table)
        objects.delete(file.path for file in superseded)
        for day, group in groupby(current, key=lambda file: file.date):
            files = list(group)
            if oldest is not None and day < oldest:
                _forget(objects, table, files)
            elif len(files) > FILES_MAX:
                _merge(objects, table, [f for f in files if f.bytes < MERGED_BYTES_MAX])


def current_files(objects: Objects, table: str) -> tuple[list[HistoryFile], list[HistoryFile]]:
    """Return the table's files by day and first segment, and those that are superseded."""
    files = sorted(_files(objects, table), key=lambda f: (f.date, f.first, -f.last))
    current: list[HistoryFile] = []
    superseded: list[HistoryFile] = []
    for file in files:
        covers = current[-1] if current and current[-1].date == file.date else None
        (superseded if covers is not None and file.last <= covers.last else current).append(file)
    return current, superseded


def _files(objects: Objects, table: str) -> Iterator[HistoryFile]:
    for info in objects.list(f"history/{table}/"):
        if match := _NAME.fullmatch(info.path):
            first, last = int(match["first"]), int(match["last"])
            day = date.fromisoformat(match["date"])
            yield HistoryFile(info.path, day, first, last, info.bytes)


def _path(table: str, day: date, first: int, last: int) -> str:
    return f"history/{table}/date={day.isoformat()}/{first:020d}-{last:020d}.parquet"


def _day(job: Job) -> date:
    return _day_of(job.finished_at)


def _day_of(moment: float) -> date:
    return datetime.fromtimestamp(moment, UTC).date()


def _encode(table: pa.Table) -> bytes:
    return encode_table(table, GROUP_ROWS)


def _merge(objects: Objects, table: str, files: list[HistoryFile]) -> None:
    if len(files) < 2:
        return
    try:
        parts = [open_table(pa.BufferReader(objects.get(file.path))).read() for file in files]
    except OSError as error:  # it stays as it is: merged, the damage would look whole
        log.error("history_damaged", reason=str(error), next="see drayman doctor --store")
        return
    key = "id" if table == "jobs" else "job_id"
    merged = pa.concat_tables(parts).sort_by([(key, "ascending"), ("revision", "ascending")])
    path = _path(table, files[0].date, files[0].first, files[-1].last)
    objects.put_if_absent(path, _encode(merged))
    objects.delete(file.path for file in files)


def _forget(objects: Objects, table: str, files: list[HistoryFile]) -> None:
    """Delete a day, with the results and logs of its jobs first."""
    if table == "jobs":
        for file in files:
            ids = pq.read_table(pa.BufferReader(objects.get(file.path)), columns=["id"])["id"]
            objects.delete(_belongings(objects, ids.to_pylist()))
    objects.delete(file.path for file in files)


def _belongings(objects: Objects, job_ids: Iterable[str]) -> Iterator[str]:
    for job_id in job_ids:
        for folder in ("results", "logs", "lineage"):
            for info in objects.list(f"{folder}/{job_id}/"):
                yield info.path
