"""The tables `history/jobs` and `history/attempts`, and how a finished job becomes rows of them.

Rule 1: columns are what people ask about in SQL; `record` holds the job as we answer it, as JSON,
so that no answer depends on how a column was chosen. Rule 2: columns are only ever added.
Rule 3: a job that finished again (it was redriven) has a row with a higher `revision` each time.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from cluster.queries import attempt_views, chunk_attempts, job_view
from cluster.queue.model import Job, State
from cluster.tasks import task_views
from cluster.views import AttemptView, JobView, TaskView

__all__ = [
    "ATTEMPTS",
    "JOBS",
    "REVISION_ANY",
    "Record",
    "attempt_rows",
    "chunk_table",
    "decode_record",
    "finished_after",
    "job_row",
    "tables",
]

#: Jobs made into rows at once: what bounds the memory above the tables themselves.
TOGETHER = 2_000
#: Stands where a row is right whatever becomes of its job: a chunk that is done is not told again.
REVISION_ANY = 2**31 - 1

_MOMENT = pa.timestamp("us", tz="UTC")
_FILE = pa.struct(
    [("name", pa.string()), ("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())]
)

JOBS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        #: Place in the order of submission.
        pa.field("number", pa.int64(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("queue", pa.string(), nullable=False),
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("priority", pa.int32(), nullable=False),
        pa.field("labels", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("submitted_at", _MOMENT, nullable=False),
        pa.field("started_at", _MOMENT),
        pa.field("finished_at", _MOMENT),
        #: Seconds from submission to the first start, and from there to the end.
        pa.field("queued_s", pa.float64()),
        pa.field("run_s", pa.float64()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("max_attempts", pa.int32(), nullable=False),
        pa.field("recoveries", pa.int32(), nullable=False),
        #: Why it was cancelled.
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("error_cause", pa.string()),
        #: JSON.
        pa.field("params", pa.string()),
        pa.field("result", pa.string()),
        pa.field("files", pa.list_(_FILE), nullable=False),
        #: The job, its tasks and its attempts as the API answers them, as JSON.
        pa.field("record", pa.binary(), nullable=False),
    ]
)

ATTEMPTS = pa.schema(
    [
        pa.field("job_id", pa.string(), nullable=False),
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("queue", pa.string(), nullable=False),
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("cause", pa.string()),
        pa.field("error", pa.string()),
        pa.field("worker", pa.string(), nullable=False),
        pa.field("leased_at", _MOMENT),
        pa.field("started_at", _MOMENT),
        pa.field("ended_at", _MOMENT),
        pa.field("run_s", pa.float64()),
        pa.field("log", pa.string()),
    ]
)


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished job with all that is asked about it."""

    view: JobView
    number: int
    revision: int
    tasks: list[TaskView] = []
    attempts: list[AttemptView] = []
    #: Where large params lie; others are in `params`.
    params_ref: str | None = None


decode_record = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.Encoder().encode


def finished_after(state: State, seq: int) -> list[Job]:
    """Return the jobs that finished after event `seq` and have not begun again, by id."""
    jobs = (*state.finished, *(task.job for task in state.dead.values()))
    found = {job.id: job for job in jobs if job.finished_at and job.finished_seq > seq}
    return [found[job_id] for job_id in sorted(found)]


def tables(jobs: Sequence[Job], state: State) -> tuple[pa.Table, pa.Table]:
    """Return rows of `JOBS` and of `ATTEMPTS`, the latter without finished chunks."""
    job_parts, attempt_parts = [], []
    for first in range(0, len(jobs), TOGETHER):
        job_rows, attempt_rows = [], []
        for job in jobs[first : first + TOGETHER]:
            attempts = attempt_views(job)
            job_rows.append(_job_row(job, attempts, state))
            attempt_rows += [_attempt_row(job, attempt, job.revision) for attempt in attempts]
        job_parts.append(_batch(job_rows, JOBS))
        attempt_parts.append(_batch(attempt_rows, ATTEMPTS))
    return pa.Table.from_batches(job_parts, JOBS), pa.Table.from_batches(attempt_parts, ATTEMPTS)


def chunk_table(chunks: Sequence[tuple[Job, AttemptView]]) -> pa.Table:
    """Return rows of `ATTEMPTS` for attempts of finished chunks."""
    parts = []
    for first in range(0, len(chunks), TOGETHER):
        some = chunks[first : first + TOGETHER]
        parts.append(_batch([_attempt_row(job, one, REVISION_ANY) for job, one in some], ATTEMPTS))
    return pa.Table.from_batches(parts, ATTEMPTS)


def _batch(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema)


def job_row(job: Job, state: State) -> dict[str, Any]:
    """Return a job, finished or not, as one row of `JOBS`; moments are microseconds."""
    return dict(zip(JOBS.names, _job_row(job, attempt_views(job), state), strict=True))


def attempt_rows(job: Job) -> list[dict[str, Any]]:
    """Return a job's attempts as rows of `ATTEMPTS`, oldest first; moments are microseconds.

    Of its finished chunks those that no compaction has written yet.
    """
    rows = [_attempt_row(job, attempt, job.revision) for attempt in attempt_views(job)]
    rows += [_attempt_row(job, attempt, REVISION_ANY) for attempt in chunk_attempts(job)]
    return [dict(zip(ATTEMPTS.names, row, strict=True)) for row in rows]


def _job_row(job: Job, attempts: list[AttemptView], state: State) -> tuple[Any, ...]:
    """Return the columns of `JOBS`, in their order."""
    spec = job.spec
    view = job_view(job, spec=spec)
    submitted_at, started_at, finished_at = view.submitted_at, view.started_at, view.finished_at
    error = view.error
    result = bytes(view.result)
    return (
        job.id,
        job.number,
        job.revision,
        view.type,
        view.status,
        view.queue,
        view.tenant,
        view.priority,
        list(view.labels.items()),
        _moment(submitted_at),
        _moment(started_at),
        _moment(finished_at),
        None if started_at is None else max(0.0, started_at - submitted_at),
        _between(started_at, finished_at),
        view.attempts,
        view.max_attempts,
        view.recoveries,
        view.reason,
        error.message if error else None,
        error.cause if error else None,
        bytes(spec.params) if spec.params_ref is None else None,
        None if result == b"null" else result,
        [
            {"name": f.name, "path": f.path, "bytes": f.bytes, "sha256": f.sha256}
            for f in view.files
        ],
        _encode(
            Record(
                view,
                job.number,
                job.revision,
                task_views(state, job),
                attempts,
                spec.params_ref,
            )
        ),
    )


def _attempt_row(job: Job, attempt: AttemptView, revision: int) -> tuple[Any, ...]:
    """Return the columns of `ATTEMPTS`, in their order."""
    return (
        job.id,
        attempt.task_id,
        attempt.number,
        revision,
        job.type,
        job.queue,
        job.tenant,
        attempt.outcome,
        attempt.cause or None,
        attempt.error or None,
        attempt.worker,
        _moment(attempt.leased_at),
        _moment(attempt.started_at),
        _moment(attempt.ended_at),
        _between(attempt.started_at, attempt.ended_at),
        attempt.log or None,
    )


def _moment(seconds: float | None) -> int | None:
    """Return microseconds: Arrow takes a number ten times faster than a datetime."""
    return round(seconds * 1_000_000) if seconds else None


def _between(start: float | None, end: float | None) -> float | None:
    return None if not start or not end else max(0.0, end - start)
