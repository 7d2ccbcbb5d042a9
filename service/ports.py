"""What the API needs from the floor below, as a protocol.

Rule 1: every method raises `jobs.errors` classes and nothing else on purpose. Rule 2: `tenant`
None means "any tenant" and is for admins; with a tenant, another's job is NotFound. Rule 3: what
`submit` returned is durable.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from cluster.config import Config
from cluster.feed import Watch, Watched
from cluster.protocol import Accepted, Refused
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import JobSpec
from cluster.signals import Signal
from cluster.views import (
    AttemptView,
    DeadCount,
    DeadLetterQuery,
    JobPage,
    JobQuery,
    JobView,
    QueueView,
    ScheduleView,
    TaskPage,
    WorkerView,
)

__all__ = ["Gateway"]


class Gateway(Protocol):
    """The way to the manager."""

    async def submit(self, spec: JobSpec) -> Accepted:
        """Make one job durable."""

    async def submit_many(self, specs: Sequence[JobSpec]) -> list[Accepted | Refused]:
        """Make many jobs durable; one result each, in order. Overloaded: none was taken."""

    def check_room(self, count: int, size_bytes: int = 0, tenant: str | None = None) -> None:
        """Raise Overloaded if so many more could not wait at once, or none of this tenant's."""

    def check_spec(self, spec: JobSpec) -> None:
        """Raise Overloaded if it is known that this would be refused."""

    async def job(self, job_id: str, tenant: str | None) -> JobView:
        """Return the job as it is now."""

    async def spec(self, job_id: str, tenant: str | None) -> JobSpec:
        """Return a job that is not over as it was asked for; one that failed is not."""

    async def params(self, job_id: str, tenant: str | None) -> bytes:
        """Return the job's params as JSON."""

    async def jobs(self, query: JobQuery) -> JobPage:
        """Return a page of jobs, newest first."""

    async def tasks(
        self,
        job_id: str,
        tenant: str | None,
        first: int = 0,
        limit: int = 1_000,
        ids: list[str] | None = None,
    ) -> TaskPage:
        """Return some of the job's tasks: from place `first` on, or those named."""

    async def attempts(self, job_id: str, tenant: str | None) -> list[AttemptView]:
        """Return the job's attempts, oldest first."""

    async def cancel(self, job_id: str, tenant: str | None) -> JobView:
        """Ask the job to stop; Conflict if it has ended."""

    async def retry(self, job_id: str, tenant: str | None) -> JobView:
        """Give a failed job a new budget; Conflict if it has not failed."""

    async def wait(self, job_id: str, tenant: str | None, timeout_s: float) -> JobView:
        """Return the job once it has ended or the time is over, whichever comes first."""

    async def queues(self) -> list[QueueView]:
        """Return every queue."""

    async def pause(self, queue: str) -> QueueView:
        """Start nothing more from the queue."""

    async def resume(self, queue: str) -> QueueView:
        """Start from the queue again."""

    async def dead_letters(self, query: DeadLetterQuery) -> JobPage:
        """Return a page of failed jobs, longest dead first."""

    async def redrive(
        self, query: DeadLetterQuery, *, rate: float = 0.0, spec: JobSpec | None = None
    ) -> int:
        """Give every matching failed job a new budget, `rate` a second; return how many.

        The one job that `query` names has `spec` from now on.
        """

    async def dead_counts(self, query: DeadLetterQuery) -> list[DeadCount]:
        """Return how many dead letters match, by queue, type and cause."""

    async def signals(self) -> list[Signal]:
        """Return what became of attempts, by queue and type, since the manager began."""

    async def purge(self, query: DeadLetterQuery) -> int:
        """Let every matching failed job go for good; return how many."""

    async def drain_queue(self, queue: str, *, fill: bool = False) -> QueueView:
        """Take nothing new into a queue; with `fill`, take it again."""

    async def tell_worker(
        self, worker: str, what: Literal["pause", "resume", "drain"]
    ) -> WorkerView:
        """Give a worker nothing for now, or something again, or let it finish and end."""

    async def schedules(self, tenant: str | None) -> list[ScheduleView]:
        """Return a tenant's schedules, or all."""

    async def schedule(self, name: str, tenant: str) -> ScheduleView:
        """Return one schedule."""

    async def put_schedule(self, spec: ScheduleSpec) -> ScheduleView:
        """Let a schedule hold; the same again changes nothing."""

    async def pause_schedule(self, name: str, tenant: str, *, paused: bool) -> ScheduleView:
        """Let a schedule fire nothing, or again from its next tick on."""

    async def delete_schedule(self, name: str, tenant: str) -> None:
        """Let a schedule fire no more."""

    async def fire_schedule(self, name: str, tenant: str) -> str:
        """Submit the job of a schedule now, beside its ticks; return its id."""

    async def workers(self) -> list[WorkerView]:
        """Return every worker the manager knows."""

    async def config(self) -> tuple[Config, int]:
        """Return the config in force, and its revision."""

    async def configure(self, config: Config, revision: int | None) -> int:
        """Put another in force, durably; return its revision. Conflict if `revision` is another.

        None replaces whatever is in force.
        """

    async def events(self, watch: Watch, timeout_s: float) -> Watched:
        """Return what happened to what is watched, once something did or the time is over."""

    async def ping(self) -> float:
        """Return the moment of the manager's last event; Unavailable if it is away."""
