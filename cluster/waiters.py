"""Calls that wait for the end of a job."""

import asyncio
import contextlib
from collections.abc import Iterable

from cluster.queue.model import State
from jobs.errors import NotFound

__all__ = ["Waiters"]

#: Longest `wait` for a job: proxies between cut longer polls.
WAIT_MAX_S = 30.0


class Waiters:
    """Those that wait now."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._events: dict[str, list[asyncio.Event]] = {}

    async def wait(self, job_id: str, tenant: str | None, timeout_s: float) -> None:
        """Return when the job is over, or after so long. Raises NotFound for another tenant's."""
        job = self._state.jobs.get(self._state.aliases.get(job_id, job_id))
        if job is None or (tenant is not None and job.tenant != tenant):
            raise NotFound("job", job_id)
        if job.finished_at:
            return
        job_id = job.id
        done = asyncio.Event()
        waiters = self._events.setdefault(job_id, [])
        waiters.append(done)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), min(timeout_s, WAIT_MAX_S))
        finally:  # also if whoever waited has left
            if done in waiters:
                waiters.remove(done)
            if not waiters and self._events.get(job_id) is waiters:
                del self._events[job_id]

    def ended(self, job_ids: Iterable[str]) -> None:
        """Wake those that wait for one of these."""
        if self._events:
            for job_id in job_ids:
                for waiter in self._events.pop(job_id, ()):
                    waiter.set()

    def look(self) -> None:
        """Wake those whose job is over, or gone."""
        jobs = self._state.jobs
        for job_id in [j for j in self._events if j not in jobs or jobs[j].finished_at]:
            for waiter in self._events.pop(job_id):
                waiter.set()
