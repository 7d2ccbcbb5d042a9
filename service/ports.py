"""What the API needs from the floor below, as a protocol.

Rule 1: every method raises `jobs.errors` classes and nothing else on purpose. Rule 2: `tenant`
None means "any tenant" and is for admins; with a tenant, another's job is NotFound. Rule 3: what
`submit` returned is durable.
"""

from collections.abc import Sequence
from typing import Protocol

from cluster.protocol import Accepted, Refused
from cluster.queue.spec import JobSpec
from cluster.views import (
    AttemptView,
    DeadLetterQuery,
    JobPage,
    JobQuery,
    JobView,
    QueueView,
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

    def check_room(self, count: int) -> None:
        """Raise Overloaded if so many more could not wait at once."""

    async def job(self, job_id: str, tenant: str | None) -> JobView:
        """Return the job as it is now."""

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

    async def redrive(self, query: DeadLetterQuery) -> int:
        """Give every matching failed job a new budget; return how many."""

    async def workers(self) -> list[WorkerView]:
        """Return every worker the manager knows."""

    async def ping(self) -> float:
        """Return the moment of the manager's last event; Unavailable if it is away."""
