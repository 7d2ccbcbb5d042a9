"""What can happen, as the journal records it.

Rule 1: an event holds everything `evolve` needs: jitter, due times and ids were drawn before.
Rule 2: fields may be added with a default; a field or kind is never repurposed. Rule 3: a new
version of the rules still reads every older event (`SCHEMA_VERSION` stands in each segment).

A row of the journal is (kind, job_id, task_id, attempt, token) and the rest as JSON in `data`.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar

import msgspec

from cluster.queue.rules import Limit
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import SpecHead, decode_head

__all__ = [
    "SCHEMA_VERSION",
    "AttemptCrashed",
    "AttemptFailed",
    "BatchAccepted",
    "CheckpointSaved",
    "Columns",
    "Compacted",
    "CompactionPlanned",
    "ConfigSet",
    "Event",
    "Evicted",
    "InputsLost",
    "JobAliased",
    "JobEdited",
    "JobEnded",
    "JobPurged",
    "JobRefused",
    "JobRevived",
    "JobSubmitted",
    "LeaseReleased",
    "ManagerStarted",
    "ManagerStopped",
    "OnceClaimed",
    "OnceDone",
    "OutputLost",
    "PlanStopped",
    "QueuePaused",
    "QueueResumed",
    "Row",
    "ScheduleDeleted",
    "ScheduleFired",
    "ScheduleSet",
    "StepEnded",
    "StopRequested",
    "TaskCancelled",
    "TaskDied",
    "TaskLeased",
    "TaskMoved",
    "TaskReady",
    "TaskRedriven",
    "TaskSnoozed",
    "TaskSucceeded",
    "TaskUnparked",
    "TasksAdded",
    "TasksWithdrawn",
    "WorkerJoined",
    "from_row",
    "to_columns",
    "to_row",
]

SCHEMA_VERSION = 1
NOTHING = msgspec.Raw(b"null")

#: kind, job_id, task_id, attempt, token, data
Row = tuple[str, str, str | None, int | None, int | None, bytes]
#: The same, a list for each.
Columns = tuple[
    list[str], list[str], list[str | None], list[int | None], list[int | None], list[bytes]
]


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened."""

    kind: ClassVar[str]


class ManagerStarted(Event, frozen=True):
    """A manager claimed the journal; `epoch` is the number of the segment that says so."""

    kind = "manager_started"
    epoch: int
    cluster_id: str
    version: str = ""


class ManagerStopped(Event, frozen=True):
    """The manager stopped in good order: any cluster may go on from here."""

    kind = "manager_stopped"


class BatchAccepted(Event, frozen=True):
    """A gateway's batch is committed; `refused` maps positions to what was refused there."""

    kind = "batch_accepted"
    gateway: str
    number: int
    refused: msgspec.Raw = NOTHING
    #: What was folded, if it came through intake: then others of the batch may still come.
    intake: str = ""


class JobSubmitted(Event, frozen=True):
    """A job was accepted. `data` is the submitted spec, byte for byte."""

    kind = "job_submitted"
    job_id: str
    spec: SpecHead
    raw: bytes


class JobAliased(Event, frozen=True):
    """An id that was acknowledged while the manager was away stands for a job it knew before."""

    kind = "job_aliased"
    job_id: str
    first: str


class JobRefused(Event, frozen=True):
    """A job that was acknowledged while the manager was away cannot run: it ends as failed."""

    kind = "job_refused"
    job_id: str
    spec: msgspec.Raw
    error: str
    cause: str


class TaskEvent(Event, frozen=True):
    """Something that happened to one task."""

    job_id: str
    task_id: str


class LeaseEvent(TaskEvent, frozen=True):
    """Something that happened under one lease."""

    attempt: int
    token: int


class TaskReady(TaskEvent, frozen=True):
    """What the task waited for is there: its time came."""

    kind = "task_ready"


class TaskLeased(LeaseEvent, frozen=True):
    """A worker may run the task."""

    kind = "task_leased"
    worker: str


class AttemptEnd(LeaseEvent, frozen=True):
    """An attempt ended; moments are epoch seconds, 0 where it never started."""

    started_at: float = 0.0
    ended_at: float = 0.0
    log: str = ""


class TaskSucceeded(AttemptEnd, frozen=True):
    """The output is committed: exactly once, by the holder of the token."""

    kind = "task_succeeded"
    output: msgspec.Raw = NOTHING


class AttemptFailed(AttemptEnd, frozen=True):
    """Charged an attempt; tried again at `retry_at`."""

    kind = "attempt_failed"
    error: str = ""
    cause: str = ""
    retry_at: float = 0.0


class AttemptCrashed(AttemptEnd, frozen=True):
    """Its process died under it alone: charged a recovery, ready again at once."""

    kind = "attempt_crashed"
    error: str = ""
    cause: str = ""


class LeaseReleased(AttemptEnd, frozen=True):
    """Ready again, charged nothing. `suspect`: a process died while it ran beside others."""

    kind = "lease_released"
    cause: str = ""
    #: Whether it may have run; if not, the attempt's number is used again.
    started: bool = True
    suspect: bool = False


class TaskSnoozed(AttemptEnd, frozen=True):
    """The handler asked to run later; charged nothing."""

    kind = "task_snoozed"
    retry_at: float = 0.0
    #: Why, if it said so.
    error: str = ""


class TaskDied(AttemptEnd, frozen=True):
    """Into the dead letters: attempts or recoveries exhausted, or discarded by its handler."""

    kind = "task_died"
    error: str = ""
    cause: str = ""
    #: Which budget was charged last: `attempt`, `recovery`, or `interruption`.
    charged: str = "attempt"


class TaskCancelled(TaskEvent, frozen=True):
    """Final. Under a lease: the stop bit (or the lease died)."""

    kind = "task_cancelled"
    reason: str
    attempt: int | None = None
    token: int | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    log: str = ""


class StopRequested(LeaseEvent, frozen=True):
    """The attempt was asked to stop; it keeps its lease and slots until it did."""

    kind = "stop_requested"
    reason: str


class InputsLost(AttemptEnd, frozen=True):
    """It found outputs of tasks that it needs gone; it waits until they are made again."""

    kind = "inputs_lost"
    needs: list[str] = []


class OutputLost(TaskEvent, frozen=True):
    """The output of a task that succeeded is gone, or other than it was: the task runs again."""

    kind = "output_lost"
    #: The attempt that made it.
    attempt: int
    #: Of a chunk: what was known of it (FinishedTask), unless a lineage file has it. Whether memory
    #: still has it then is not the same in a replay.
    row: bytes = b""


class TasksAdded(Event, frozen=True):
    """A step goes on: its first task, its join, or chunks `first` to `first + count - 1`."""

    kind = "tasks_added"
    job_id: str
    step: str
    role: str
    first: int = 0
    count: int = 1


class TasksWithdrawn(Event, frozen=True):
    """What is in line of a job that does not go on left the line."""

    kind = "tasks_withdrawn"
    job_id: str


class StepEnded(Event, frozen=True):
    """A step succeeded, failed, or is skipped because one that it needs failed."""

    kind = "step_ended"
    job_id: str
    step: str
    state: str


class PlanStopped(Event, frozen=True):
    """Nothing of the job begins any more; what runs was asked to stop."""

    kind = "plan_stopped"
    job_id: str
    reason: str


class JobEnded(Event, frozen=True):
    """Nothing of a planned job runs or will; `reason` says why it was cancelled."""

    kind = "job_ended"
    job_id: str
    reason: str = ""


class JobRevived(Event, frozen=True):
    """An operator lets a failed planned job go on where it failed."""

    kind = "job_revived"
    job_id: str


class WorkerJoined(Event, frozen=True):
    """A worker said where it runs, and which code it has."""

    kind = "worker_joined"
    worker: str
    pool: str
    node: str
    code: dict[str, str] = {}


class TaskRedriven(TaskEvent, frozen=True):
    """An operator revived a dead letter with a new budget; ready at `due_at`, or at once if 0."""

    kind = "task_redriven"
    due_at: float = 0.0


class JobEdited(Event, frozen=True):
    """An operator gave a dead letter another spec. `data` is the spec, byte for byte."""

    kind = "job_edited"
    job_id: str
    spec: msgspec.Raw


class JobPurged(Event, frozen=True):
    """An operator let a dead letter go: it stays failed, in history."""

    kind = "job_purged"
    job_id: str


class TaskMoved(TaskEvent, frozen=True):
    """The task waits, or runs, in another queue from now on: `long` or `oom`."""

    kind = "task_moved"
    queue: str
    reason: str
    #: Of one that ran too long: how long.
    ran_s: float = 0.0


class TaskUnparked(TaskEvent, frozen=True):
    """There is room for the task at the limit that it waited for."""

    kind = "task_unparked"


class ConfigSet(Event, frozen=True):
    """An operator changed what can be changed live; what of it moves tasks stands beside it."""

    kind = "config_set"
    config: msgspec.Raw
    run: str
    weights: dict[str, float] = {}
    limits: dict[str, Limit] = {}


class ScheduleSet(Event, frozen=True):
    """A schedule was put, in place of any of its name."""

    kind = "schedule_set"
    spec: ScheduleSpec
    next_at: float | None = None


class ScheduleDeleted(Event, frozen=True):
    """A schedule fires no more."""

    kind = "schedule_deleted"
    tenant: str
    name: str


class ScheduleFired(Event, frozen=True):
    """A tick of a schedule came: its job is submitted beside this, or none is (`job_id` empty)."""

    kind = "schedule_fired"
    tenant: str
    name: str
    tick: float
    next_at: float | None = None
    #: Of its job; the row's own column is kept for jobs.
    job: str = ""
    #: Ticks that fired nothing, this one included.
    skipped: int = 0


class CheckpointSaved(LeaseEvent, frozen=True):
    """The next attempt resumes from `value`."""

    kind = "checkpoint_saved"
    value: msgspec.Raw


class OnceClaimed(LeaseEvent, frozen=True):
    """The effect `key` is about to happen."""

    kind = "once_claimed"
    key: str


class OnceDone(LeaseEvent, frozen=True):
    """The effect `key` happened."""

    kind = "once_done"
    key: str
    value: msgspec.Raw


class CompactionPlanned(Event, frozen=True):
    """Segments `first` to `last` are being folded into history and a snapshot."""

    kind = "compaction_planned"
    first: int
    last: int


class Compacted(Event, frozen=True):
    """History and a snapshot hold everything up to segment `last`, whose last event is `seq`."""

    kind = "compacted"
    last: int
    seq: int


class Evicted(Event, frozen=True):
    """Jobs that finished for good, up to event `through`, left memory: history answers for them."""

    kind = "evicted"
    through: int


class QueuePaused(Event, frozen=True):
    """No task of the queue is leased until it is resumed."""

    kind = "queue_paused"
    queue: str


class QueueResumed(Event, frozen=True):
    """Tasks of the queue are leased again."""

    kind = "queue_resumed"
    queue: str


# --- rows -------------------------------------------------------------------------------------

_COLUMNS = ("job_id", "task_id", "attempt", "token")
_encode = msgspec.json.Encoder().encode


def _field(field: msgspec.structs.FieldInfo) -> tuple[Any, ...]:
    if field.required:
        return field.name, field.type
    if field.default_factory is not msgspec.NODEFAULT:
        return field.name, field.type, msgspec.field(default_factory=field.default_factory)
    return field.name, field.type, field.default


class _Codec:
    """Turns events of one class into rows and back."""

    def __init__(self, cls: type[Event]) -> None:
        self.cls = cls
        fields = msgspec.structs.fields(cls)
        rest = [f for f in fields if f.name not in _COLUMNS]
        self.names = [f.name for f in rest]
        self.data = msgspec.defstruct(
            f"{cls.__name__}Data",
            [_field(f) for f in rest],
            omit_defaults=True,
            gc=False,
        )
        self.decode = msgspec.json.Decoder(self.data).decode
        #: Where each field is found, in the class's own order: a place in the row, or a name.
        self.places = [
            (1 + _COLUMNS.index(f.name), "") if f.name in _COLUMNS else (0, f.name) for f in fields
        ]

    def data_of(self, event: Any) -> bytes:
        return _encode(self.data(*[getattr(event, name) for name in self.names]))

    def to_row(self, event: Any) -> Row:
        return (
            event.kind,
            getattr(event, "job_id", ""),
            getattr(event, "task_id", None),
            getattr(event, "attempt", None),
            getattr(event, "token", None),
            self.data_of(event),
        )

    def from_row(self, row: Row) -> Event:
        data = self.decode(row[5])
        return self.cls(*[row[at] if at else getattr(data, name) for at, name in self.places])


def _classes(cls: type[Event]) -> list[type[Event]]:
    found = [cls] if "kind" in cls.__dict__ else []
    for sub in cls.__subclasses__():
        found += _classes(sub)
    return found


_CODECS = {cls: _Codec(cls) for cls in _classes(Event) if cls is not JobSubmitted}
_BY_KIND = {cls.kind: codec for cls, codec in _CODECS.items()}
_Succeeded: Any = _CODECS[TaskSucceeded].data
_decode_succeeded = _CODECS[TaskSucceeded].decode

# The three rows that every job writes are spelled out, and made by the column: a commit has
# thousands of them, and a generic codec costs several times more.
_quote = msgspec.json.encode


@lru_cache(64)
def _leased_data(worker: str) -> bytes:
    return b'{"worker":%b}' % _quote(worker)


@lru_cache(64)
def _worker_of(data: bytes) -> str:
    leased: Any = _CODECS[TaskLeased].decode(data)
    return str(leased.worker)


def _succeeded_data(event: TaskSucceeded) -> bytes:
    return _encode(_Succeeded(event.started_at, event.ended_at, event.log, event.output))


def to_row(event: Event) -> Row:
    """Return `event` as a row of the journal."""
    return next(zip(*to_columns([event]), strict=True))


def to_columns(events: Iterable[Event]) -> Columns:
    """Return the rows of `events` as columns: kind, job_id, task_id, attempt, token, data."""
    columns: Any = ([], [], [], [], [], [])
    kinds, job_ids, task_ids, attempts, tokens, data = columns
    for cls, group in groupby(events, type):
        run: Any = list(group)
        count = len(run)
        if cls is JobSubmitted:
            kinds += ["job_submitted"] * count
            job_ids += [event.job_id for event in run]
            nothing = [None] * count
            task_ids += nothing
            attempts += nothing
            tokens += nothing
            data += [event.raw for event in run]
        elif cls is TaskLeased or cls is TaskSucceeded:
            kinds += [cls.kind] * count
            job_ids += [event.job_id for event in run]
            task_ids += [event.task_id for event in run]
            attempts += [event.attempt for event in run]
            tokens += [event.token for event in run]
            if cls is TaskLeased:
                data += [_leased_data(event.worker) for event in run]
            else:
                data += [_succeeded_data(event) for event in run]
        else:
            for row in map(_CODECS[cls].to_row, run):
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
    found: Columns = columns
    return found


def from_row(row: Row) -> Event:
    """Return the event a row stands for. Raises KeyError for a kind this version does not know."""
    kind, job_id, task_id, attempt, token, data = row
    if kind == "task_leased":
        return TaskLeased(job_id, task_id, attempt, token, _worker_of(data))  # type: ignore[arg-type]
    if kind == "task_succeeded":
        end: Any = _decode_succeeded(data)
        ended = (end.started_at, end.ended_at, end.log, end.output)
        return TaskSucceeded(job_id, task_id, attempt, token, *ended)  # type: ignore[arg-type]
    if kind == "job_submitted":
        return JobSubmitted(job_id, decode_head(data), data)
    return _BY_KIND[kind].from_row(row)
