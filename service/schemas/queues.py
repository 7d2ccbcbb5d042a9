"""Queues, workers and dead letters: what an operator looks at."""

from typing import Annotated

import msgspec
from msgspec import Meta

from service.schemas.jobs import Eta

__all__ = [
    "DeadCount",
    "DeadCounts",
    "PurgeRequest",
    "Purged",
    "Queue",
    "Queues",
    "RedriveRequest",
    "Redriven",
    "WhichDead",
    "Worker",
    "Workers",
]

#: Redriven a second. More is no limit.
REDRIVE_RATE_MAX = 100_000


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
    gpus: Annotated[float, Meta(description="How many a worker of its pool holds.")] = 0.0


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
    error: Annotated[str, Meta(description="What the newest of them says, or its beginning.")] = ""


class DeadCounts(msgspec.Struct, frozen=True):
    """How many dead letters there are of each kind; the most first."""

    counts: list[DeadCount]
