"""A real manager and real workers around it in one process: no Ray, a store in memory for one.

Rule: a worker's death is told to the manager as Ray would tell it; nothing else stands between.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cluster.config import PoolSettings
from cluster.queue.model import Task
from cluster.queue.spec import JobSpec
from cluster.worker.worker import Worker, WorkerTimes
from tests.support.cluster import Life, life
from tests.support.eventually import eventually

__all__ = ["Pool", "pool"]

JOBS = "tests.support.jobs_for_tests"


class Pool:
    """One manager's life and the workers that were started for it."""

    def __init__(self, now: Life, settings: PoolSettings, store: Path) -> None:
        self.now, self.settings, self.store = now, settings, store
        self.workers: dict[str, Worker] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, **fields: Any) -> Worker:
        """Start a worker, and return once the manager has heard of it."""
        pool = self.settings
        worker = Worker(
            name, pool.name, pool.queues, pool.concurrency, pool.mode, str(self.store), [JOBS],
            self.now.manager, times=WorkerTimes.within(pool.heartbeat_timeout_s), **fields,
        )  # fmt: skip
        self.workers[name] = worker
        self._running[name] = asyncio.create_task(self._run(name, worker))
        await eventually(lambda: (s := self.session(name)) is not None and s.free > 0, within_s=10)
        return worker

    async def _run(self, name: str, worker: Worker) -> None:
        await worker.run()
        self.now.workers.dies(name)

    def session(self, name: str) -> Any:
        return self.now.manager._sessions.get(name)

    async def submit(self, type: str, params: bytes = b"{}", **fields: Any) -> str:
        import msgspec

        spec = JobSpec(type=type, params=msgspec.Raw(params), **fields)
        return (await self.now.gateway.submit(spec)).job_id

    def task(self, job_id: str) -> Task:
        return self.now.state.jobs[job_id].tasks[0]

    def past(self, job_id: str) -> list[tuple[str, str]]:
        """Return (outcome, cause) of each attempt that ended without success."""
        return [(attempt.outcome, attempt.cause) for attempt in self.task(job_id).past or ()]

    async def ended(self, *job_ids: str, within_s: float = 20.0) -> list[str]:
        """Wait for jobs to end, and return the state of each."""
        jobs = [self.now.state.jobs[job_id] for job_id in job_ids]
        await eventually(lambda: all(job.finished_at for job in jobs), within_s=within_s)
        return [self.task(job_id).state.value for job_id in job_ids]

    async def close(self) -> None:
        for worker in self.workers.values():
            worker.stop()
        await asyncio.gather(*self._running.values())


@asynccontextmanager
async def pool(objects: Any, store: Path, **fields: Any) -> AsyncIterator[Pool]:
    """Start a manager whose one pool is like this; workers are started by the test."""
    settings = PoolSettings(name="cpu", queues=["default"], min=0, max=0, **fields)
    async with life(objects, pools=[settings]) as now:
        one = Pool(now, settings, store)
        try:
            yield one
        finally:
            await one.close()
