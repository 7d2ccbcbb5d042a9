"""What can be asked of the queue. A command may be refused; an event never is."""

import msgspec

from cluster.protocol import Outcome, Record
from cluster.queue.rules import Limit
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import SpecHead

__all__ = [
    "Advance",
    "Alias",
    "Cancel",
    "Command",
    "Configure",
    "DeleteSchedule",
    "EndCompaction",
    "Evict",
    "Finish",
    "FireSchedule",
    "Join",
    "Lease",
    "LoseWorker",
    "PauseQueue",
    "PlanCompaction",
    "Promote",
    "Purge",
    "PutSchedule",
    "Reclaim",
    "Refuse",
    "ResumeQueue",
    "Revive",
    "SaveRecord",
    "Submit",
    "Tick",
]


class Submit(msgspec.Struct, frozen=True, gc=False):
    """Accept a job. Refused: KeyReused, Overloaded, InvalidInput."""

    job_id: str
    spec: SpecHead
    raw: bytes
    #: It was acknowledged already: limits of depth and keys do not apply.
    admitted: bool = False


class Alias(msgspec.Struct, frozen=True):
    """Let an id that was acknowledged stand for the job that had its key before."""

    job_id: str
    first: str


class Refuse(msgspec.Struct, frozen=True):
    """End a job that was acknowledged but cannot run."""

    job_id: str
    raw: bytes
    error: str
    cause: str


class Lease(msgspec.Struct, frozen=True):
    """Give `worker` up to `limit` tasks of `queues`."""

    worker: str
    queues: list[str]
    limit: int
    #: It takes them before it can start them.
    ahead: bool = False
    #: A job that goes first if it waits; turns are charged as ever.
    first: str = ""


class Finish(msgspec.Struct, frozen=True, gc=False):
    """A worker says how attempts ended. An outcome whose token is stale changes nothing."""

    worker: str
    outcomes: list[Outcome]
    #: One an outcome, uniform in [0, 1), drawn by the caller, for the backoff's jitter.
    draws: list[float]


class LoseWorker(msgspec.Struct, frozen=True):
    """A worker is dead: its process ended, or it was silent for too long."""

    worker: str
    cause: str
    #: Tokens it had said to hold; None if it never said anything.
    arrived: frozenset[int] | None = None


class Reclaim(msgspec.Struct, frozen=True):
    """Leases that nobody is to be charged for: their orders never arrived, or their node went."""

    worker: str
    tokens: list[int]
    cause: str = "lease lost"


class Cancel(msgspec.Struct, frozen=True):
    """End a job. Refused with Conflict when it has already ended otherwise."""

    job_id: str


class Revive(msgspec.Struct, frozen=True):
    """Give a failed job's dead tasks a new budget. Refused with Conflict if it has none."""

    job_id: str
    #: Not before this moment; 0: now.
    due_at: float = 0.0
    #: Its spec from now on; empty: as it was. Refused for a planned job.
    raw: bytes = b""


class Purge(msgspec.Struct, frozen=True):
    """Let a failed job go for good: it is redriven no more. Conflict if it has not failed."""

    job_id: str


class Promote(msgspec.Struct, frozen=True):
    """A leased task runs longer than its queue is for, and goes on in another."""

    token: int


class Configure(msgspec.Struct, frozen=True):
    """Let this config hold from now on."""

    config: bytes
    run: str
    weights: dict[str, float]
    limits: dict[str, Limit]
    #: Refused with Conflict if another came since this one; None: whatever holds.
    revision: int | None = None


class PutSchedule(msgspec.Struct, frozen=True):
    """Submit a job at each tick from now on; what it is already changes nothing."""

    spec: ScheduleSpec
    next_at: float | None


class DeleteSchedule(msgspec.Struct, frozen=True):
    """Forget a schedule. NotFound if there is none."""

    tenant: str
    name: str


class FireSchedule(msgspec.Struct, frozen=True):
    """Ticks of a schedule are due. Changes nothing if another was put under its name since.

    Each submits its job in the same commit that notes it, so a tick fires once whoever is alive.
    """

    tenant: str
    name: str
    generation: int
    #: Moment of each, and the id of its job.
    ticks: list[tuple[float, str]]
    next_at: float | None
    #: Ticks that fire nothing.
    missed: int = 0
    #: Of each job that begins a trace, its context, by id.
    traces: dict[str, str] = {}


class SaveRecord(msgspec.Struct, frozen=True):
    """A running attempt wants something durable. Refused with LeaseLost if superseded."""

    record: Record


class Advance(msgspec.Struct, frozen=True):
    """Let planned jobs do what follows from where they are."""


class Join(msgspec.Struct, frozen=True):
    """A worker says where it runs, and which code it has."""

    worker: str
    pool: str
    node: str
    code: dict[str, str]


class Tick(msgspec.Struct, frozen=True):
    """Time passed: what is due moves on."""


class PlanCompaction(msgspec.Struct, frozen=True):
    """Fold everything up to segment `last`, which is durable, unless that is under way."""

    last: int


class EndCompaction(msgspec.Struct, frozen=True):
    """The planned compaction up to segment `last` is durable; `seq` is its last event."""

    last: int
    seq: int


class Evict(msgspec.Struct, frozen=True):
    """Let up to `limit` finished jobs go that history has."""

    limit: int


class PauseQueue(msgspec.Struct, frozen=True):
    """Lease nothing of this queue until it is resumed."""

    queue: str


class ResumeQueue(msgspec.Struct, frozen=True):
    """Lease tasks of this queue again."""

    queue: str


Command = (
    Submit
    | Advance
    | Join
    | Alias
    | Refuse
    | Lease
    | Finish
    | LoseWorker
    | Reclaim
    | Cancel
    | Revive
    | SaveRecord
    | Tick
    | PlanCompaction
    | EndCompaction
    | Evict
    | PauseQueue
    | ResumeQueue
    | Promote
    | Purge
    | Configure
    | PutSchedule
    | DeleteSchedule
    | FireSchedule
)
