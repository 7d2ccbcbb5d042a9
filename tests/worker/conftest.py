"""Real workers, keepers and children, around a scripted manager."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from cluster.protocol import Outcome, Output
from cluster.worker.processes import descendants
from cluster.worker.slot import Slot
from cluster.worker.worker import Worker, WorkerTimes
from tests.support.eventually import eventually, gone
from tests.support.scripted_manager import ScriptedManager

JOBS = "tests.support.jobs_for_tests"


class Bench:
    """One worker, its manager and its store."""

    def __init__(self, store: Path, **settings: Any) -> None:
        self.store = store
        self.manager = settings.pop("manager", None) or ScriptedManager()
        settings = {
            "name": "w1",
            "pool": "cpu",
            "queues": ["default"],
            "concurrency": 1,
            "mode": "process",
            "job_modules": [JOBS],
            "times": WorkerTimes(heartbeat_s=0.5),
        } | settings
        self.worker = Worker(store_url=str(store), manager=self.manager, **settings)
        self.running: asyncio.Task[None] | None = None
        self._keepers: set[int] = set()

    async def start(self) -> None:
        self.running = asyncio.create_task(self.worker.run())
        await self.manager.reported(lambda report: report.free > 0)

    async def close(self) -> None:
        keepers = [slot.keeper_pid for slot in self.slots if slot.keeper_pid]
        below = [pid for keeper in keepers for pid in descendants(keeper)]
        self.worker.stop()
        if self.running is not None:
            await self.running
        await eventually(lambda: gone(*keepers, *below), within_s=20.0)

    @property
    def slots(self) -> list[Slot]:
        return self.worker._executor._slots

    @property
    def slot(self) -> Slot:
        return self.slots[0]

    def log(self, outcome: Outcome) -> str:
        return (self.store / outcome.log).read_text()


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a worker of its own; it ends with the test."""
    benches: list[Bench] = []

    async def start_bench(**settings: Any) -> Bench:
        bench = Bench(tmp_path / "store", **settings)
        benches.append(bench)
        await bench.start()
        return bench

    yield start_bench
    for bench in benches:
        await bench.close()


def output_of(outcome: Outcome) -> Output:
    """Return the output of a successful attempt."""
    assert outcome.kind == "ok", outcome
    return msgspec.json.decode(outcome.output, type=Output)


def result_of(outcome: Outcome) -> Any:
    """Return the result of a successful attempt."""
    return msgspec.json.decode(output_of(outcome).result)


@pytest.fixture
def output() -> Callable[[Outcome], Output]:
    return output_of


@pytest.fixture
def result() -> Callable[[Outcome], Any]:
    return result_of
