"""What the manager answers when asked: jobs, attempts, queues and workers as others see them.

Views are snapshots of durable state: nothing in them can be undone by a crash, except `progress`,
which is never journalled. Moments are epoch seconds, UTC.
"""

from typing import Literal

import msgspec

from cluster.protocol import NOTHING, FileInfo, InputInfo
from cluster.queue.schedule import CatchUp
from cluster.queue.spec import Notify

__all__ = [
    "AttemptView",
    "DeadCount",
    "DeadLetterQuery",
    "ErrorView",
    "EtaView",
    "Evicted",
    "JobPage",
    "JobQuery",
    "JobStatus",
    "JobView",
    "LiveIds",
    "LivePage",
    "ProgressView",
    "QueueView",
    "ScheduleView",
    "StepView",
    "TaskPage",
    "TaskView",
    "WorkerView",
]

JobStatus = Literal["scheduled", "pending", "processing", "completed", "failed", "cancelled"]


class EtaView(msgspec.Struct, frozen=True):
    """When a job is expected to start, in seconds from now."""

    seconds: float
    #: It starts between these with probability `confidence`, unless others are put before it.
    low: float
    high: float
    confidence: float


class ProgressView(msgspec.Struct, frozen=True):
    """How far the running attempt says it is."""

    fraction: float | None = None
    message: str = ""


class ErrorView(msgspec.Struct, frozen=True):
    """Why an attempt, or the job, did not succeed. Never a stack trace."""

    message: str
    #: `error`, `discarded`, `timeout`, `oom`, `signal 9`, `lease lost`, ...
    cause: str = "error"
    attempt: int = 0
    at: float = 0.0


class JobView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One job."""

    id: str
    type: str
    status: JobStatus
    queue: str
    tenant: str
    priority: int
    submitted_at: float
    attempts: int
    max_attempts: int
    recoveries: int = 0
    labels: dict[str, str] = {}
    started_at: float | None = None
    finished_at: float | None = None
    run_at: float | None = None
    expires_at: float | None = None
    next_attempt_at: float | None = None
    #: Why a cancelled job is cancelled: `cancelled`, `expired`.
    reason: str | None = None
    #: A stop was asked for and has not bitten yet.
    stopping: str | None = None
    progress: ProgressView | None = None
    #: 0 is next; None when not waiting in a queue.
    queue_position: int | None = None
    #: When it is expected to start; None when unknown.
    eta: EtaView | None = None
    error: ErrorView | None = None
    result: msgspec.Raw = NOTHING
    result_ref: str | None = None
    files: list[FileInfo] = []
    traceparent: str | None = None
    #: The job this id stands for: the key was known, but the manager was away when it was given.
    alias_of: str | None = None
    #: Of a fan-out or a workflow.
    steps: list["StepView"] = []
    #: The job whose attempt submitted it.
    parent: str | None = None
    #: The code it was submitted with; None: what the cluster was started with.
    code: str | None = None
    #: What one that is pending waits for, in words.
    pending_reason: str | None = None
    #: The schedule that submitted it, and the tick.
    schedule: str | None = None
    scheduled_for: float | None = None
    #: Who is told of it.
    notify: list[Notify] = []
    #: Of what lies at `result_ref`.
    result_sha256: str = ""


class JobPage(msgspec.Struct, frozen=True):
    """Newest first; `next_after` is the cursor of the next page, None on the last."""

    jobs: list[JobView]
    next_after: str | None


class LivePage(msgspec.Struct, frozen=True):
    """A page of the jobs the manager has in memory; history has others between and below them."""

    jobs: list[JobView]
    #: The place of each in the order of submission.
    numbers: list[int]
    #: Where the page was cut off: those with a lower number were not looked at. None at the end.
    below: int | None
    #: Place of the newest job, and the last segment that history has.
    submitted: int
    compacted: int


class LiveIds(msgspec.Struct, frozen=True):
    """Which of some jobs the manager has in memory, and the last segment that history has."""

    ids: set[str]
    compacted: int


class Evicted(msgspec.Struct, frozen=True):
    """A job is not in the manager's memory; history may have it."""

    job_id: str
    compacted: int


class JobQuery(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which jobs. None matches all; `tenant` None is for admins only."""

    tenant: str | None = None
    status: JobStatus | None = None
    type: str | None = None
    queue: str | None = None
    label: tuple[str, str] | None = None
    after: str | None = None
    limit: int = 50


class DeadLetterQuery(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which dead letters; all that are given must match."""

    tenant: str | None = None
    type: str | None = None
    queue: str | None = None
    cause: str | None = None
    ids: list[str] | None = None
    after: str | None = None
    limit: int = 50


class DeadCount(msgspec.Struct, frozen=True):
    """Dead letters that are alike."""

    queue: str
    type: str
    cause: str
    count: int
    #: What the newest of them says, or its beginning.
    error: str = ""


class AttemptView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One leased execution of a task, numbered from 1."""

    task_id: str
    number: int
    #: `running`, `succeeded`, `failed`, `discarded`, `crashed`, `interrupted`, `stopped`,
    #: `snoozed`
    outcome: str
    worker: str
    leased_at: float
    started_at: float | None = None
    ended_at: float | None = None
    error: str = ""
    cause: str = ""
    #: Where its log lies in the store; empty if it printed nothing.
    log: str = ""


class TaskView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One unit of dispatch of a job, and its lineage: from what it made its output, and where."""

    task_id: str
    state: str
    attempts: int
    recoveries: int = 0
    worker: str | None = None
    files: list[FileInfo] = []
    #: Step of a workflow it belongs to, and the job type it runs.
    step: str = ""
    type: str = ""
    #: `whole`, `split`, `chunk` or `join`; and the chunk's number.
    role: str = "whole"
    index: int = -1
    node: str = ""
    #: Fingerprints of the code that ran and of the params it got.
    code: str = ""
    params: str = ""
    #: What it read. Those of other tasks begin with `output:`.
    inputs: list[InputInfo] = []
    started_at: float | None = None
    ended_at: float | None = None
    #: Why it failed, or failed last.
    error: str = ""
    #: What its handler returned, inline or in the store.
    result: msgspec.Raw = NOTHING
    result_ref: str | None = None
    result_sha256: str = ""
    #: Tasks it waits for, because their output was lost.
    needs: list[str] = []
    #: It is done and its row is in a lineage file: whoever asked looks there.
    archived: bool = False


class TaskPage(msgspec.Struct, frozen=True):
    """Some of a job's tasks: the split of a step, its chunks in order, its join, the next step."""

    tasks: list[TaskView]
    #: Where the next page begins; None at the end.
    next_after: int | None = None


class StepView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a planned job."""

    name: str
    type: str
    #: `waiting`, `running`, `succeeded`, `failed` or `skipped`.
    state: str
    needs: list[str] = []
    #: Of a fan-out, once it is split: its chunks, and how many are done, running and dead.
    chunks: int | None = None
    done: int = 0
    running: int = 0
    failed: int = 0


class QueueView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One named line."""

    name: str
    pools: list[str]
    paused: bool
    ready: int
    leased: int
    scheduled: int
    backing_off: int
    dead: int
    #: Seconds the oldest ready task has waited.
    oldest_age_s: float = 0.0
    #: Tasks finished a second, measured over the last minute.
    drain_rate: float = 0.0
    workers: int = 0
    depth_max: int = 0
    #: Tasks off the line at a limit.
    parked: int = 0
    #: Unfinished jobs as its limit counts them, and what their specs take.
    depth: int = 0
    bytes: int = 0
    bytes_max: int = 0
    #: It takes nothing new.
    draining: bool = False
    #: Mean run time of its attempts in seconds; None while unknown.
    run_s: float | None = None
    #: When a job that came now would start.
    eta: EtaView | None = None
    #: Why nothing of it runs although something waits.
    pending_reason: str | None = None


class WorkerView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One worker as the manager knows it."""

    name: str
    pool: str
    queues: list[str]
    node: str
    pid: int
    held: int
    started: int
    free: int
    #: Seconds since its last report.
    silent_s: float
    draining: bool = False
    paused: bool = False
    #: GPUs that a worker of its pool holds.
    gpus: float = 0.0


class ScheduleView(msgspec.Struct, frozen=True):
    """One schedule and where it is. Moments are epoch seconds."""

    name: str
    tenant: str
    cron: str
    timezone: str
    catch_up: CatchUp
    jitter_s: float
    overlap: Literal["allow", "skip"]
    starts_at: float | None
    ends_at: float | None
    paused: bool
    #: What each tick submits, as it was asked for.
    request: msgspec.Raw
    next_at: float | None = None
    last_at: float | None = None
    last_job: str | None = None
    fired: int = 0
    skipped: int = 0
