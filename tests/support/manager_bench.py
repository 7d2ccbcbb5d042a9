"""A manager in memory: its clock stands still, its store stalls on demand, its workers are names.

Only the edges are replaced (clock, threads, Ray); the manager, its rules and its journal are real.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from cluster.config import Config, PoolSettings
from cluster.manager import Manager, build
from cluster.protocol import (
    Accepted,
    Batch,
    Orders,
    Outcome,
    Refused,
    Report,
    Submission,
    decode_batch_reply,
    decode_orders,
    encode,
)
from cluster.queue.model import State
from cluster.queue.spec import JobSpec, encode_spec
from cluster.settings import ClusterSettings
from cluster.store.memory import MemoryObjects
from jobs.errors import DraymanError
from tests.support.builders import NOON, a_spec
from tests.support.cluster import InlineCompactor

__all__ = ["ManagerBench", "NamedWorkers", "StandingClock"]

CPU = PoolSettings(name="cpu", queues=["default"], min=0, max=0)


class StandingClock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def wall(self) -> float:
        return NOON + self._passed_s

    def monotonic(self) -> float:
        return 1_000.0 + self._passed_s

    async def sleep(self, delay_s: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._passed_s + delay_s, woken))
        await woken

    async def pass_time(self, seconds: float, step_s: float = 0.1) -> None:
        """Move on in small steps; whoever wakes gets its turn after each."""
        for _ in range(round(seconds / step_s)):
            self._passed_s += step_s
            due = [woken for at, woken in self._sleepers if at <= self._passed_s]
            self._sleepers = [entry for entry in self._sleepers if entry[0] > self._passed_s]
            for woken in due:
                if not woken.done():
                    woken.set_result(None)
            await settled()


class NamedWorkers:
    """Workers that exist by name only."""

    def __init__(self) -> None:
        self.alive: dict[str, str] = {}
        self.killed: list[str] = []
        self.spawned: list[str] = []
        self._numbers = itertools.count(1)
        self._deaths: dict[str, asyncio.Future[str]] = {}

    async def spawn(self, pool: PoolSettings) -> str:
        name = f"worker-{pool.name}-{next(self._numbers)}"
        self.spawned.append(name)
        self.alive[name] = pool.name
        return name

    async def live(self) -> dict[str, str]:
        return dict(self.alive)

    async def watch(self, worker: str) -> str:
        death = self._deaths.setdefault(worker, asyncio.get_running_loop().create_future())
        return await asyncio.shield(death)

    async def kill(self, worker: str) -> None:
        self.killed.append(worker)

    def unplaceable(self, pool: PoolSettings) -> str:
        return ""

    async def ask_for(self, wanted: list[tuple[PoolSettings, int]]) -> None:
        """There is nobody to ask."""

    def die(self, worker: str, cause: str = "worker died") -> None:
        self.alive.pop(worker, None)
        self._deaths[worker].set_result(cause)


class ManagerBench:
    """One manager's life, over a store that outlives it."""

    def __init__(
        self,
        store: MemoryObjects | None = None,
        workers: NamedWorkers | None = None,
        pools: list[PoolSettings] | None = None,
    ) -> None:
        self.store = MemoryObjects() if store is None else store
        self.workers = NamedWorkers() if workers is None else workers
        self.clock = StandingClock()
        self.fatal: list[DraymanError] = []
        #: Cleared, whatever the store is asked to do waits.
        self.store_answers = asyncio.Event()
        self.store_answers.set()
        #: Called before each piece of the store's work; raise to fail it.
        self.before: Callable[[Any], None] = lambda function: None
        self.manager: Manager
        self._settings = ClusterSettings(
            store="memory://",
            config=Config(pools={pool.name: pool for pool in ([CPU] if pools is None else pools)}),
            cluster_id="c1",
        )
        self._numbers = itertools.count(1)
        self._reports: dict[str, int] = {}

    async def start(self) -> "ManagerBench":
        nonces = itertools.count(1)
        self.manager = await build(
            self._settings,
            self.workers,
            clock=self.clock,
            offload=self._offload,
            draw=lambda: 0.5,
            nonce=lambda: f"{id(self)}-{next(nonces)}",
            on_fatal=self.fatal.append,
            compactor=InlineCompactor(self.store),
            store=self.store,
        )
        await self.manager.start("test")
        await settled()
        return self

    async def kill(self) -> None:
        """End it as `kill -9` would: nothing more is written or said."""
        for task in list(self.manager._tasks):
            task.cancel()
        await asyncio.gather(*self.manager._tasks, return_exceptions=True)

    @property
    def state(self) -> State:
        return self.manager._commit.state

    async def submit(
        self, *specs: JobSpec, number: int | None = None, gateway: str = "g1"
    ) -> list[Accepted | Refused]:
        """Submit one batch; ids are `<gateway>-<number>-<place>`."""
        number = next(self._numbers) if number is None else number
        submissions = [
            Submission(f"{gateway}-{number}-{place}", _raw(spec))
            for place, spec in enumerate(specs or (a_spec(),))
        ]
        reply = await self.manager.submit(encode(Batch(gateway, number, submissions)))
        return decode_batch_reply(reply).results(submissions)

    def report(self, worker: str, *, outcomes: list[Outcome] | None = None, **more: Any) -> Report:
        """Return the worker's next report."""
        self._reports[worker] = self._reports.get(worker, 0) + 1
        more = {"applied": 0, "epoch": self.state.epoch, "free": 0} | more
        return Report(
            worker=worker,
            number=self._reports[worker],
            pool="cpu",
            queues=["default"],
            outcomes=outcomes or [],
            **more,
        )

    async def exchange(self, report: Report) -> Orders:
        return decode_orders(await self.manager.exchange(encode(report)))

    async def _offload(self, function: Any, *args: Any) -> Any:
        await self.store_answers.wait()
        self.before(function)
        return function(*args)


def _raw(spec: JobSpec) -> Any:
    import msgspec

    return msgspec.Raw(encode_spec(spec))


async def settled() -> None:
    """Let everything that can go on now go on."""
    for _ in range(20):
        await asyncio.sleep(0)
