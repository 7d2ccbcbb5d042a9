"""What the API answers: the JSON of version 1, and how views become it.

Rule 1: every field is always there, null when it does not apply, so that a client can read it
without asking whether it exists. Rule 2: moments are RFC 3339 in UTC, durations end in `_s`.
Rule 3: no path of the store leaves; what can be fetched is a link.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta
from starlette.responses import Response

from cluster.endpoints import EndpointRecord
from cluster.notify import NOTIFIES
from cluster.protocol import NOTHING, Accepted, FileInfo
from cluster.queue.spec import JobSpec, Notify
from cluster.views import (
    AttemptView,
    ErrorView,
    EtaView,
    JobPage,
    JobStatus,
    JobView,
    QueueView,
    ScheduleView,
    TaskView,
    WorkerView,
)
from service.auth import Scope, TokenRecord
from service.notifying import target_of
from service.problems import Problem

__all__ = [
    "Attempt",
    "Attempts",
    "BatchResult",
    "Code",
    "DeadCount",
    "DeadCounts",
    "DeployRequest",
    "Deployment",
    "Deployments",
    "Ended",
    "Endpoint",
    "EndpointList",
    "EndpointRequest",
    "File",
    "FileList",
    "Health",
    "Input",
    "Job",
    "JobList",
    "JobType",
    "JobTypes",
    "NewEndpoint",
    "NewToken",
    "Overview",
    "PurgeRequest",
    "Purged",
    "Queue",
    "Queues",
    "Ready",
    "Recent",
    "RedriveRequest",
    "Redriven",
    "RetryRequest",
    "Schedule",
    "ScheduleRequest",
    "Schedules",
    "Session",
    "Spread",
    "Step",
    "Task",
    "Tasks",
    "Token",
    "TokenRequest",
    "Tokens",
    "Upload",
    "WhichDead",
    "Worker",
    "WorkerTotals",
    "Workers",
    "accepted_job",
    "attempt_of",
    "endpoint_of",
    "file_of",
    "job_list",
    "job_of",
    "queue_of",
    "reply",
    "schedule_of",
    "task_of",
    "token_of",
    "worker_of",
]

FINISHED = frozenset({"completed", "failed", "cancelled"})

#: Redriven a second. More is no limit.
REDRIVE_RATE_MAX = 100_000
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


class File(msgspec.Struct, frozen=True):
    """One output file."""

    name: str
    bytes: int
    sha256: str
    media_type: str
    href: str
    #: Held for later tasks of the job alone: `href` answers 409.
    ephemeral: Annotated[
        bool, Meta(description="Kept only for other tasks of its job: it cannot be downloaded.")
    ]


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
        str, Meta(description="`waiting`, `running`, `succeeded`, `failed` or `skipped`.")
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


class FileList(msgspec.Struct, frozen=True):
    """The output files of a job."""

    files: list[File]


class Queue(msgspec.Struct, frozen=True):
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
    drain_rate: Annotated[float, Meta(description="Tasks finished a second, over a minute.")]
    workers: int
    depth_max: Annotated[int, Meta(description="Above this, submissions are refused.")]
    parked: Annotated[int, Meta(description="Tasks that wait at a limit, off the line.")]
    depth: Annotated[int, Meta(description="Unfinished jobs, as `depth_max` counts them.")]
    bytes: Annotated[int, Meta(description="What their specs take.")]
    bytes_max: int
    draining: Annotated[bool, Meta(description="It takes nothing new.")]
    run_s: Annotated[
        float | None, Meta(description="Mean run time in seconds; null while unknown.")
    ]
    eta: Annotated[Eta | None, Meta(description="When a job that came now would start.")]
    pending_reason: Annotated[
        str | None, Meta(description="Why nothing of it runs although something waits.")
    ]


class Queues(msgspec.Struct, frozen=True):
    """Every queue."""

    queues: list[Queue]


class Worker(msgspec.Struct, frozen=True):
    """One worker."""

    name: str
    pool: str
    queues: list[str]
    node: str
    pid: int
    held: int
    started: int
    free: int
    silent_s: Annotated[float, Meta(description="Seconds since its last report.")]
    draining: bool
    paused: bool


class Workers(msgspec.Struct, frozen=True):
    """Every worker."""

    workers: list[Worker]


class WhichDead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters; all that are given must match."""

    type: str | None = None
    queue: str | None = None
    cause: str | None = None
    ids: Annotated[list[str], Meta(max_length=10_000)] | None = None
    tenant: Annotated[
        str | None, Meta(description="For admins: one tenant's. Without it, every tenant's.")
    ] = None


class RedriveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /v1/dead-letters/redrive` takes; `{"filter": {}}` means all."""

    filter: WhichDead
    rate: Annotated[
        Annotated[float, Meta(gt=0, le=REDRIVE_RATE_MAX)] | None,
        Meta(description="So many a second; without it all at once."),
    ] = None


class Redriven(msgspec.Struct, frozen=True):
    """How many jobs were given a new budget."""

    redriven: int


class PurgeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /v1/dead-letters/purge` takes; `{"filter": {}}` means all."""

    filter: WhichDead


class Purged(msgspec.Struct, frozen=True):
    """How many dead letters were let go."""

    purged: int


class DeadCount(msgspec.Struct, frozen=True):
    """Dead letters that are alike."""

    queue: str
    type: str
    cause: str
    count: int


class DeadCounts(msgspec.Struct, frozen=True):
    """How many dead letters there are of each kind; the most first."""

    counts: list[DeadCount]


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


class JobType(msgspec.Struct, frozen=True):
    """One job type."""

    name: str
    summary: str
    queue: str
    max_attempts: int
    timeout_s: float | None
    unique_for_s: float | None
    unique_by: list[str]
    expected_s: Annotated[float | None, Meta(description="How long it is said to run.")]
    resumable: Annotated[
        bool, Meta(description="It goes on from its checkpoint when it is stopped and moved.")
    ]
    limits: Annotated[list[str], Meta(description="Keys of limits; `{name}` is a param.")]
    code: Annotated[
        str, Meta(description="Hash of the code that is deployed for it; empty if none is.")
    ]
    params_schema: Annotated[dict[str, Any], Meta(description="JSON Schema of `params`.")]


class JobTypes(msgspec.Struct, frozen=True):
    """The job types this Drayman takes."""

    types: list[JobType]


class ScheduleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `PUT /v1/schedules/{name}` takes."""

    cron: Annotated[
        str,
        Meta(
            description="Minute, hour, day of month, month, day of week; maybe the second before "
            "them. Or `@daily` and the like."
        ),
    ]
    job: Annotated[
        msgspec.Raw,
        Meta(
            description="What each tick submits, as `POST /v1/jobs` takes it: all but `run_at`, "
            "`delay_s` and `expires_at`.",
            extra_json_schema={"$ref": "#/components/schemas/JobRequest"},
        ),
    ]
    timezone: Annotated[str, Meta(description="An IANA name: `Europe/Berlin`.")] = "UTC"
    catch_up: Annotated[
        Literal["none", "latest", "all"],
        Meta(description="Which ticks are made up for that came while nothing could fire them."),
    ] = "latest"
    jitter_s: Annotated[
        Annotated[float, Meta(ge=0, le=86_400)],
        Meta(description="Each job is late by an amount of its own, from 0 to this."),
    ] = 0.0
    overlap: Annotated[
        Literal["allow", "skip"],
        Meta(description="`skip`: no job while that of an earlier tick is unfinished."),
    ] = "allow"
    starts_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None, Meta(description="No tick before this moment.")
    ] = None
    ends_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None, Meta(description="No tick after this moment.")
    ] = None
    paused: Annotated[bool, Meta(description="Keep it, but fire nothing.")] = False


class Schedule(msgspec.Struct, frozen=True):
    """A job that is submitted again and again."""

    name: str
    tenant: str
    cron: str
    timezone: str
    catch_up: Literal["none", "latest", "all"]
    jitter_s: float
    overlap: Literal["allow", "skip"]
    starts_at: datetime | None
    ends_at: datetime | None
    paused: bool
    job: Annotated[
        msgspec.Raw,
        Meta(
            description="What each tick submits.",
            extra_json_schema={"$ref": "#/components/schemas/JobRequest"},
        ),
    ]
    next: Annotated[
        list[datetime],
        Meta(description="The next ticks, before jitter. Empty: it is paused, or over."),
    ]
    last_at: Annotated[datetime | None, Meta(description="The last tick.")]
    last_job: Annotated[str | None, Meta(description="The job it submitted last.")]
    fired: Annotated[int, Meta(description="Ticks that submitted a job.")]
    skipped: Annotated[int, Meta(description="Ticks that did not.")]


class Schedules(msgspec.Struct, frozen=True):
    """Every schedule, each with its next tick."""

    schedules: list[Schedule]


class Code(msgspec.Struct, frozen=True):
    """Modules that are kept, to run job types with."""

    code: Annotated[str, Meta(description="Their hash: put it into `code` of a job.")]
    modules: list[str]
    types: Annotated[list[str], Meta(description="The job types in them.")]


class DeployRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /v1/code/deploy` takes."""

    code: Annotated[
        Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")],
        Meta(
            description="Its hash. Empty: give `types` back to what the cluster was started with."
        ),
    ]
    types: Annotated[
        Annotated[list[str], Meta(max_length=1000)] | None,
        Meta(description="Only these of its types."),
    ] = None


class Deployment(msgspec.Struct, frozen=True):
    """What new jobs of these types run from now on."""

    code: str
    types: list[str]


class Deployments(msgspec.Struct, frozen=True):
    """Which code is deployed."""

    types: Annotated[dict[str, str], Meta(description="Job type -> hash of its code.")]


class Upload(msgspec.Struct, frozen=True):
    """Data to name in params."""

    uri: Annotated[str, Meta(description="Put this into params.")]
    bytes: int
    sha256: str


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /v1/tokens` takes."""

    tenant: str
    scopes: list[Scope]
    name: str = ""


class Token(msgspec.Struct, frozen=True):
    """A token as a list shows it."""

    id: str
    tenant: str
    scopes: list[Scope]
    name: str
    created_at: datetime


class NewToken(msgspec.Struct, frozen=True):
    """A token at its birth: the only time its text is shown."""

    token: str
    id: str
    tenant: str
    scopes: list[Scope]
    name: str
    created_at: datetime


class Tokens(msgspec.Struct, frozen=True):
    """Every token."""

    tokens: list[Token]


class Session(msgspec.Struct, frozen=True):
    """Whose token it is, and what it may do."""

    tenant: str
    scopes: list[str]


class WorkerTotals(msgspec.Struct, frozen=True):
    """The workers, summed up."""

    alive: int
    running: Annotated[int, Meta(description="Attempts that run.")]
    free: Annotated[int, Meta(description="Slots with nothing to do.")]
    paused: int
    draining: int


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """How many jobs ended: completed, failed, cancelled."""

    completed: int
    failed: int
    cancelled: int


class Spread(msgspec.Struct, frozen=True):
    """Half of them took no longer than `p50`, and 95 in a hundred no longer than `p95`."""

    p50: float
    p95: float


class Recent(msgspec.Struct, frozen=True):
    """The newest jobs, as far as they ended within the last ten minutes."""

    begin: datetime
    since: Annotated[datetime, Meta(description="What ended before is not all counted.")]
    bin_s: int
    ended: Annotated[list[Ended], Meta(description="In each `bin_s` seconds from `begin` on.")]
    wait_s: Annotated[Spread | None, Meta(description="From when it might start to its start.")]
    run_s: Annotated[Spread | None, Meta(description="From its first start to its end.")]


class Overview(msgspec.Struct, frozen=True):
    """The state of things, beside what `/v1/queues` tells."""

    at: datetime
    workers: WorkerTotals
    recent: Recent


class EndpointRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `PUT /v1/endpoints/{name}` takes."""

    url: Annotated[
        str,
        Meta(max_length=2048, description="Where webhooks go. Of `default`: leave it out."),
    ] = ""


class Endpoint(msgspec.Struct, frozen=True):
    """Where webhooks of a tenant go, by a name of its own."""

    name: str
    url: Annotated[str, Meta(description="Empty for `default`, which signs for any other URL.")]
    created_at: datetime
    secrets: Annotated[
        list[datetime], Meta(description="When each secret in force was made, newest first.")
    ]
    disabled: Annotated[
        str | None, Meta(description="Why it gets nothing more; put it again to let it.")
    ]
    disabled_at: datetime | None


class NewEndpoint(msgspec.Struct, frozen=True):
    """An endpoint, and a secret at its birth: the only time that its text is shown."""

    secret: Annotated[str, Meta(description="`whsec_...`, as Standard Webhooks has it.")]
    endpoint: Endpoint


class EndpointList(msgspec.Struct, frozen=True):
    """A tenant's endpoints by name."""

    endpoints: list[Endpoint]


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(msgspec.Struct, frozen=True):
    """The manager answers too."""

    status: Literal["ready"]
    manager_s: Annotated[float, Meta(description="How long the manager took to answer.")]


_encoder = msgspec.json.Encoder()
encode = _encoder.encode
encode_lines = _encoder.encode_lines


def reply(
    value: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return `value` as a JSON answer."""
    return Response(encode(value), status, headers=headers, media_type="application/json")


#: The last second of the year 9999, which is as far as a datetime goes.
MOMENT_MAX = 253_402_300_799.0


def moment(at: float) -> datetime:
    """Return epoch seconds as an aware moment, to the millisecond; within the years of ISO 8601."""
    return datetime.fromtimestamp(round(min(max(at, 0.0), MOMENT_MAX), 3), UTC)


def maybe(at: float | None) -> datetime | None:
    """Return the moment, or None for none."""
    return None if at is None else moment(at)


def links_of(job_id: str) -> Links:
    """Return where to go from the job."""
    here = f"/v1/jobs/{job_id}"
    return Links(
        here,
        f"{here}/result",
        f"{here}/files",
        f"{here}/logs",
        f"{here}/tasks",
        f"{here}/attempts",
        f"{here}/cancel",
        f"{here}/retry",
        f"/v1/jobs?label={NOTIFIES}%3D{job_id}",
    )


def file_of(job_id: str, info: FileInfo, task_id: str | None = None) -> File:
    """Return a file, of the job or of one of its tasks, without its place in the store."""
    task = "" if task_id is None else f"/tasks/{quote(task_id, safe='')}"
    href = f"/v1/jobs/{job_id}{task}/files/{quote(info.name, safe='')}"
    return File(info.name, info.bytes, info.sha256, info.media_type, href, info.is_ephemeral)


def error_of(view: ErrorView) -> JobError:
    """Return why it failed as the API shows it."""
    return JobError(view.message, view.cause, view.attempt, maybe(view.at or None))


def _eta_of(view: EtaView | None) -> Eta | None:
    return None if view is None else Eta(view.seconds, view.low, view.high, view.confidence)


def job_of(view: JobView) -> Job:
    """Return the job as the API shows it."""
    progress, error = view.progress, view.error
    return Job(
        id=view.id,
        type=view.type,
        status=view.status,
        queue=view.queue,
        priority=view.priority,
        tenant=view.tenant,
        labels=view.labels,
        attempts=view.attempts,
        max_attempts=view.max_attempts,
        recoveries=view.recoveries,
        submitted_at=moment(view.submitted_at),
        run_at=maybe(view.run_at),
        started_at=maybe(view.started_at),
        finished_at=maybe(view.finished_at),
        expires_at=maybe(view.expires_at),
        next_attempt_at=maybe(view.next_attempt_at),
        reason=view.reason,
        stopping=view.stopping,
        progress=Progress(progress.fraction, progress.message) if progress else None,
        queue_position=view.queue_position,
        eta=_eta_of(view.eta),
        pending_reason=view.pending_reason,
        error=error_of(error) if error else None,
        result=view.result,
        files=[file_of(view.id, info) for info in view.files],
        traceparent=view.traceparent,
        steps=[
            Step(x.name, x.type, x.state, x.needs, x.chunks, x.done, x.running, x.failed)
            for x in view.steps
        ],
        parent=view.parent,
        code=view.code,
        schedule=view.schedule,
        scheduled_for=maybe(view.scheduled_for),
        notify=_told(view.notify),
        links=links_of(view.id),
    )


def accepted_job(accepted: Accepted, spec: JobSpec, now: float) -> Job:
    """Return a job that was accepted this moment, without asking for it."""
    waits = spec.run_at is not None and spec.run_at > now
    return Job(
        id=accepted.job_id,
        type=spec.type,
        status="scheduled" if waits else "pending",
        queue=accepted.queue or spec.queue,
        priority=spec.priority,
        tenant=spec.tenant,
        labels=spec.labels,
        attempts=0,
        max_attempts=spec.max_attempts,
        recoveries=0,
        submitted_at=moment(now),
        run_at=maybe(spec.run_at),
        started_at=None,
        finished_at=None,
        expires_at=maybe(spec.expires_at),
        next_attempt_at=None,
        reason=None,
        stopping=None,
        progress=None,
        queue_position=None,
        eta=None,
        pending_reason=None,
        error=None,
        result=NOTHING,
        files=[],
        traceparent=spec.traceparent,
        steps=[],
        parent=None,
        code=spec.code or None,
        schedule=None,
        scheduled_for=None,
        notify=_told(spec.notify),
        links=links_of(accepted.job_id),
    )


def _told(asked: list[Notify]) -> list[Notification]:
    return [Notification(one.on, *target_of(one)) for one in asked]


def job_list(page: JobPage) -> JobList:
    """Return a page as the API shows it."""
    return JobList([job_of(view) for view in page.jobs], page.next_after)


def attempt_of(view: AttemptView) -> Attempt:
    """Return an attempt as the API shows it."""
    return Attempt(
        task_id=view.task_id,
        number=view.number,
        outcome=view.outcome,
        worker=view.worker,
        leased_at=moment(view.leased_at),
        started_at=maybe(view.started_at),
        ended_at=maybe(view.ended_at),
        error=view.error,
        cause=view.cause,
        has_log=bool(view.log),
    )


def task_of(view: TaskView, job_id: str) -> Task:
    """Return a task as it is answered."""
    return Task(
        view.task_id,
        view.state,
        view.attempts,
        view.recoveries,
        view.worker,
        view.step,
        view.type,
        view.role,
        view.index if view.index >= 0 else None,
        view.node,
        view.code,
        view.params,
        [Input(one.uri, one.bytes, one.sha256, one.attempt) for one in view.inputs],
        [file_of(job_id, info, view.task_id) for info in view.files],
        view.result,
        maybe(view.started_at),
        maybe(view.ended_at),
        view.error or None,
        view.needs,
    )


def schedule_of(view: ScheduleView, coming: list[float]) -> Schedule:
    """Return a schedule and its next ticks as the API shows it."""
    return Schedule(
        name=view.name,
        tenant=view.tenant,
        cron=view.cron,
        timezone=view.timezone,
        catch_up=view.catch_up,
        jitter_s=view.jitter_s,
        overlap=view.overlap,
        starts_at=maybe(view.starts_at),
        ends_at=maybe(view.ends_at),
        paused=view.paused,
        job=view.request,
        next=[moment(tick) for tick in coming],
        last_at=maybe(view.last_at),
        last_job=view.last_job,
        fired=view.fired,
        skipped=view.skipped,
    )


def queue_of(view: QueueView) -> Queue:
    """Return a queue as the API shows it."""
    return Queue(**{**_fields(view, Queue), "eta": _eta_of(view.eta)})


def worker_of(view: WorkerView) -> Worker:
    """Return a worker as the API shows it."""
    return Worker(**_fields(view, Worker))


def endpoint_of(record: EndpointRecord) -> Endpoint:
    """Return an endpoint as the API shows it, without its secrets."""
    return Endpoint(
        record.name,
        record.url,
        moment(record.created_at),
        [moment(at) for at in record.secrets_at],
        record.disabled or None,
        maybe(record.disabled_at or None),
    )


def token_of(record: TokenRecord) -> Token:
    """Return a token as a list shows it."""
    return Token(record.id, record.tenant, record.scopes, record.name, record.created_at)


def _fields(view: msgspec.Struct, shown: type[msgspec.Struct]) -> dict[str, Any]:
    return {name: getattr(view, name) for name in shown.__struct_fields__}


def components(*models: Any) -> dict[str, Any]:
    """Return the JSON Schemas of everything the API says or takes, by name."""
    everything: Iterable[Any] = [*_ANSWERS, *models]
    _, found = msgspec.json.schema_components(
        everything, ref_template="#/components/schemas/{name}"
    )
    return found


_ANSWERS = (
    Problem,
    Job,
    JobList,
    BatchResult,
    Attempts,
    Tasks,
    FileList,
    Queue,
    Queues,
    Worker,
    Workers,
    RedriveRequest,
    Redriven,
    PurgeRequest,
    Purged,
    DeadCounts,
    RetryRequest,
    JobTypes,
    ScheduleRequest,
    Schedule,
    Schedules,
    Code,
    DeployRequest,
    Deployment,
    Deployments,
    Upload,
    EndpointRequest,
    Endpoint,
    NewEndpoint,
    EndpointList,
    TokenRequest,
    NewToken,
    Token,
    Tokens,
    Session,
    Overview,
    Health,
    Ready,
)
