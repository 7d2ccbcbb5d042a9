"""What the API answers, as types: plain dicts with these fields, explained in `docs/http.md`.

Rule: moments are texts (RFC 3339, UTC), and what does not apply is None, not missing. Only events
are different: they have the fields that their type has.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

__all__ = [
    "Attempt",
    "BatchResult",
    "DeadCount",
    "Eta",
    "Event",
    "File",
    "Job",
    "JobError",
    "Json",
    "Overview",
    "Progress",
    "Queue",
    "Status",
    "Step",
    "Task",
    "Upload",
    "Worker",
]

#: Any of these, to be read.
Json = Mapping[str, Any]

Status = Literal["scheduled", "pending", "processing", "completed", "failed", "cancelled"]


class Progress(TypedDict):
    """How far an attempt says it is; `fraction` is 0 to 1."""

    fraction: float | None
    message: str


class JobError(TypedDict):
    """Why the last attempt did not succeed."""

    message: str
    cause: str
    attempt: int
    at: str | None


class File(TypedDict):
    """A file that a job or a task wrote."""

    name: str
    bytes: int
    sha256: str
    media_type: str
    href: str
    ephemeral: bool


class Eta(TypedDict):
    """When something is expected to start, in seconds from now."""

    seconds: float
    low: float
    high: float
    confidence: float


class Step(TypedDict):
    """One step of a job; `chunks` is None until it is split, or if it never is."""

    name: str
    type: str
    state: str
    needs: list[str]
    chunks: int | None
    done: int
    running: int
    failed: int


class Job(TypedDict):
    """One job."""

    id: str
    type: str
    status: Status
    queue: str
    priority: int
    tenant: str
    labels: dict[str, str]
    attempts: int
    max_attempts: int
    recoveries: int
    submitted_at: str
    run_at: str | None
    started_at: str | None
    finished_at: str | None
    expires_at: str | None
    next_attempt_at: str | None
    reason: str | None
    stopping: str | None
    progress: Progress | None
    queue_position: int | None
    eta: Eta | None
    pending_reason: str | None
    error: JobError | None
    result: Any
    files: list[File]
    traceparent: str | None
    steps: list[Step]
    parent: str | None
    code: str | None
    schedule: str | None
    scheduled_for: str | None
    notify: list[dict[str, Any]]
    links: dict[str, str]


class BatchResult(TypedDict):
    """What became of one line: `id`, or `problem`."""

    line: int
    id: NotRequired[str]
    replayed: NotRequired[bool]
    problem: NotRequired[dict[str, Any]]


class Event(TypedDict, total=False):
    """Something that happened (`docs/events.md`); progress has no `seq`."""

    type: str
    seq: int
    at: str
    job_id: str
    tenant: str
    job_type: str
    queue: str
    status: Status
    task_id: str
    attempt: int
    step: str
    cause: str
    error: str
    reason: str
    retry_at: str
    #: Of `job` and `reset`.
    job: Job
    #: Of `progress`.
    fraction: float | None
    message: str
    steps: list[dict[str, Any]]


class Attempt(TypedDict):
    """One leased execution of a task."""

    task_id: str
    number: int
    outcome: str
    worker: str
    leased_at: str
    started_at: str | None
    ended_at: str | None
    error: str
    cause: str
    has_log: bool


class Task(TypedDict):
    """One unit of dispatch of a job, and its lineage."""

    task_id: str
    state: str
    attempts: int
    recoveries: int
    worker: str | None
    step: str
    type: str
    role: Literal["whole", "split", "chunk", "join"]
    index: int | None
    node: str
    code: str
    params: str
    inputs: list[dict[str, Any]]
    files: list[File]
    result: Any
    started_at: str | None
    ended_at: str | None
    error: str | None
    needs: list[str]


class Queue(TypedDict):
    """One named line."""

    name: str
    pools: list[str]
    paused: bool
    ready: int
    leased: int
    scheduled: int
    backing_off: int
    dead: int
    oldest_age_s: float
    drain_rate: float
    workers: int
    depth_max: int
    parked: int
    depth: int
    bytes: int
    bytes_max: int
    draining: bool
    run_s: float | None
    eta: Eta | None
    pending_reason: str | None


class Worker(TypedDict):
    """One worker."""

    name: str
    pool: str
    queues: list[str]
    node: str
    pid: int
    held: int
    started: int
    free: int
    silent_s: float
    draining: bool
    paused: bool
    gpus: float


class DeadCount(TypedDict):
    """Dead letters that are alike."""

    queue: str
    type: str
    cause: str
    count: int
    error: str


class Overview(TypedDict):
    """The workers and the jobs that ended lately, summed up."""

    at: str
    workers: dict[str, int]
    recent: dict[str, Any]


class Upload(TypedDict):
    """Stored data; put `uri` into params."""

    uri: str
    bytes: int
    sha256: str
