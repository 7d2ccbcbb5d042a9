"""Jobs, their attempts and tasks, and what may be asked of them."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.views import JobStatus
from service.problems import Problem
from service.schemas.files import File

__all__ = [
    "FINISHED",
    "KEPT",
    "Attempt",
    "Attempts",
    "BatchResult",
    "Eta",
    "Input",
    "Job",
    "JobError",
    "JobList",
    "Links",
    "Notification",
    "Progress",
    "RetryRequest",
    "Step",
    "Task",
    "Tasks",
]

FINISHED = frozenset({"completed", "failed", "cancelled"})
#: Nothing was given in its place.
KEPT = msgspec.Raw(b"")


class Progress(msgspec.Struct, frozen=True):
    """How far the running attempt says it is."""

    fraction: Annotated[float | None, Meta(description="0 to 1, or null if it can't be known.")]
    message: str


class JobError(msgspec.Struct, frozen=True):
    """Why the last attempt did not succeed."""

    message: str
    cause: Annotated[
        str, Meta(description="`error`, `discarded`, `timeout`, `oom`, `signal 9` ...")
    ]
    attempt: int
    at: datetime | None


class Links(msgspec.Struct, frozen=True):
    """Where to go from a job."""

    self: str
    result: str
    files: str
    logs: str
    tasks: str
    attempts: str
    cancel: str
    retry: str
    notifications: Annotated[str, Meta(description="The jobs that told of it, or are to.")]


class Notification(msgspec.Struct, frozen=True):
    """Somebody who is told of a job."""

    on: Annotated[list[str], Meta(description="`started`, `completed`, `failed` or `cancelled`.")]
    type: Annotated[str, Meta(description="The job type that tells.")]
    to: Annotated[str, Meta(description="A URL, the name of an endpoint, or addresses.")]


class Eta(msgspec.Struct, frozen=True):
    """When a job is expected to start, in seconds from now."""

    seconds: float
    low: float
    high: Annotated[
        float,
        Meta(
            description="It starts between `low` and `high` with probability `confidence`, "
            "unless others are put before it."
        ),
    ]
    confidence: float


class Step(msgspec.Struct, frozen=True):
    """One step of a job that has several tasks."""

    name: Annotated[str, Meta(description="Empty in a fan-out that is no workflow.")]
    type: str
    state: Annotated[
        str,
        Meta(description="`waiting`, `running`, `succeeded`, `failed`, `skipped`, `cancelled`."),
    ]
    needs: list[str]
    chunks: Annotated[int | None, Meta(description="Of a fan-out, once it is split.")]
    done: int
    running: int
    failed: int


class Job(msgspec.Struct, frozen=True):
    """One job."""

    id: str
    type: str
    status: JobStatus
    queue: str
    priority: int
    tenant: str
    labels: dict[str, str]
    attempts: Annotated[int, Meta(description="Attempts started so far.")]
    max_attempts: int
    recoveries: Annotated[
        int, Meta(description="Times it was started again because a worker was lost.")
    ]
    submitted_at: datetime
    run_at: Annotated[datetime | None, Meta(description="Not before this moment.")]
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    next_attempt_at: Annotated[
        datetime | None, Meta(description="When it is tried again after a failure.")
    ]
    reason: Annotated[
        str | None, Meta(description="Why it was cancelled: `cancelled` or `expired`.")
    ]
    stopping: Annotated[
        str | None, Meta(description="Why a stop was asked for that has not happened yet.")
    ]
    progress: Progress | None
    queue_position: Annotated[int | None, Meta(description="0 is next.")]
    eta: Annotated[
        Eta | None, Meta(description="From measured run times; null while too few are known.")
    ]
    pending_reason: Annotated[
        str | None, Meta(description="What it waits for, where that is not just its turn.")
    ]
    error: JobError | None
    result: Annotated[
        msgspec.Raw,
        Meta(
            description="What the handler returned. Null until `completed`, and for a large "
            "result: fetch that from `links.result`.",
            extra_json_schema={"type": ["object", "array", "string", "number", "boolean", "null"]},
        ),
    ]
    files: list[File]
    traceparent: str | None
    steps: Annotated[list[Step], Meta(description="Of a fan-out or a workflow.")]
    parent: Annotated[str | None, Meta(description="The job whose attempt submitted it.")]
    code: Annotated[
        str | None, Meta(description="The code it was submitted with, if it was deployed.")
    ]
    schedule: Annotated[str | None, Meta(description="The schedule that submitted it.")]
    scheduled_for: Annotated[datetime | None, Meta(description="The tick of the schedule.")]
    notify: Annotated[
        list[Notification],
        Meta(description="Who is told of it; `links.notifications` has the deliveries."),
    ]
    links: Links


class JobList(msgspec.Struct, frozen=True):
    """A page of jobs."""

    jobs: list[Job]
    next_after: Annotated[
        str | None, Meta(description="Send as `after` for the next page; null on the last.")
    ]


class BatchResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of one line: `id`, or `problem`."""

    line: int
    id: str | None = None
    replayed: bool = False
    problem: Problem | None = None


class RetryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /v1/jobs/{id}/retry` may take."""

    params: Annotated[
        msgspec.Raw,
        Meta(
            description="The params it has from now on, all of them, for the type's own schema.",
            extra_json_schema={"type": "object"},
        ),
    ] = msgspec.field(default_factory=lambda: KEPT)
    set: Annotated[
        dict[str, msgspec.Raw],
        Meta(
            description="Params that change; the others stay. Instead of `params`.",
            extra_json_schema={"type": "object", "additionalProperties": True},
        ),
    ] = {}


class Attempt(msgspec.Struct, frozen=True):
    """One leased execution of a task."""

    task_id: str
    number: int
    outcome: Annotated[
        str,
        Meta(
            description="`running`, `succeeded`, `failed`, `discarded`, `crashed`, `interrupted`, "
            "`stopped` or `snoozed`."
        ),
    ]
    worker: str
    leased_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: str
    cause: str
    has_log: bool


class Attempts(msgspec.Struct, frozen=True):
    """The attempts of a job, oldest first."""

    attempts: list[Attempt]


class Input(msgspec.Struct, frozen=True):
    """Something a task read."""

    uri: str
    bytes: int
    sha256: Annotated[str, Meta(description="Empty where it was not read as a whole.")]
    attempt: Annotated[int, Meta(description="Of another task's output: the one that made it.")]


class Task(msgspec.Struct, frozen=True):
    """One unit of dispatch of a job, and its lineage."""

    task_id: str
    state: str
    attempts: int
    recoveries: int
    worker: str | None
    step: Annotated[str, Meta(description="Of a workflow; else empty.")]
    type: str
    role: Annotated[str, Meta(description="`whole`, `split`, `chunk` or `join`.")]
    index: Annotated[int | None, Meta(description="Number of the chunk, from 0.")]
    node: str
    code: Annotated[str, Meta(description="Fingerprint of the code that ran.")]
    params: Annotated[str, Meta(description="Fingerprint of the params it got.")]
    inputs: list[Input]
    files: list[File]
    result: msgspec.Raw
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None
    needs: Annotated[
        list[str], Meta(description="Tasks it waits for: their output was lost, they run again.")
    ]


class Tasks(msgspec.Struct, frozen=True):
    """Tasks of a job: of each step its split, its chunks in order, its join."""

    tasks: list[Task]
    next_after: Annotated[
        int | None, Meta(description="`after` of the next page; null on the last.")
    ]
