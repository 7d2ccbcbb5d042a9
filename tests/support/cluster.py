"""The real manager, commit loop and journal in one process, over memory; workers are scripted."""

import asyncio
import random
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from cluster.compaction import CompactionPlan, compact
from cluster.config import Config, PoolSettings
from cluster.gateway import Gateway
from cluster.history.reader import History
from cluster.ids import uuid7_maker
from cluster.manager import Manager, build
from cluster.protocol import Orders, Outcome, Output, Report, decode_orders, encode
from cluster.settings import ClusterSettings
from cluster.store.memory import MemoryObjects
from cluster.tracing import Span
from jobs.errors import DraymanError

__all__ = ["FakeClock", "GatedObjects", "Life", "Workers", "life"]


class FakeClock:
    """Time that a test moves; sleeping waits for nothing but a turn of the loop."""

    def __init__(self, *, behind_s: float = 0.0) -> None:
        self.offset_s = 0.0
        #: How far the wall clock was set back.
        self.behind_s = behind_s

    def wall(self) -> float:
        return time.time() + self.offset_s - self.behind_s

    def monotonic(self) -> float:
        return time.monotonic() + self.offset_s

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(min(delay_s, 0.005))


class GatedObjects(MemoryObjects):
    """A store whose journal writes wait until the gate is open."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.gate = threading.Event()
        self.gate.set()
        #: Called with each journal write before it is done; may raise.
        self.before: Any = lambda path: None
        #: Called after it is done; may raise, as a lost reply does.
        self.after: Any = lambda path: None
        self.written: list[tuple[str, bytes]] = []

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if not path.startswith("journal/"):
            return super().put_if_absent(path, data)
        assert self.gate.wait(20), "the test never opened the gate"
        self.before(path)
        self.written.append((path, data))
        created = super().put_if_absent(path, data)
        self.after(path)
        return created


class Workers:
    """The manager's port to workers: a test says who lives and who dies."""

    def __init__(self, *alive: str) -> None:
        self.alive = dict.fromkeys(alive, "cpu")
        self.killed: list[str] = []
        self.cause = "worker died"
        self._deaths: dict[str, asyncio.Event] = {}

    async def spawn(self, pool: PoolSettings) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def live(self) -> dict[str, str]:
        return dict(self.alive)

    async def watch(self, worker: str) -> str:
        await self._deaths.setdefault(worker, asyncio.Event()).wait()
        return self.cause

    async def kill(self, worker: str) -> None:
        self.killed.append(worker)

    def unplaceable(self, pool: PoolSettings) -> str:
        return ""

    async def ask_for(self, wanted: list[tuple[PoolSettings, int]]) -> None:
        """There is nobody to ask."""

    def dies(self, worker: str) -> None:
        self._deaths.setdefault(worker, asyncio.Event()).set()


class InlineCompactor:
    """Compaction in a thread; a test may let it fail first."""

    def __init__(self, objects: MemoryObjects) -> None:
        self._objects = objects
        self.before: Any = lambda: None
        self.done = 0

    async def compact(self, plan: bytes) -> bytes:
        self.before()
        decoded = msgspec.json.decode(plan, type=CompactionPlan)
        done = await asyncio.to_thread(
            compact, self._objects, self._objects, decoded, now=time.time()
        )
        self.done += 1
        return encode(done)


class Life:
    """One life of a manager, a gateway to it, and reports of workers sent by hand."""

    def __init__(
        self, manager: Manager, workers: Workers, clock: FakeClock, objects: MemoryObjects
    ) -> None:
        self.manager, self.workers, self.clock = manager, workers, clock
        self.fatal: list[DraymanError] = []
        self.compactor: InlineCompactor
        self.gateway = Gateway(
            manager,
            new_id=uuid7_maker(),
            incarnation=uuid.uuid4().hex,
            history=History(objects),
            objects=objects,
            wall=time.time,
            monotonic=time.monotonic,
        )
        self._numbers: dict[str, int] = {}
        self._applied: dict[str, int] = {}

    @property
    def state(self) -> Any:
        return self.manager._state

    async def report(self, worker: str = "w1", **fields: Any) -> Orders:
        """Send the worker's next report and return its orders."""
        number = self._numbers[worker] = self._numbers.get(worker, 0) + 1
        applied = self._applied.get(worker, 0)
        known = {
            "applied": applied,
            "epoch": self.state.epoch,
            "pool": "cpu",
            "queues": ["default"],
        }
        report = Report(worker, fields.pop("number", number), **{**known, "free": 0, **fields})
        orders = decode_orders(await self.manager.exchange(encode(report)))
        self._applied[worker] = orders.number or applied
        return orders

    async def take(self, worker: str = "w1", free: int = 1) -> Orders:
        return await self.report(worker, free=free)

    async def finish(self, token: int, worker: str = "w1", kind: Any = "ok") -> Orders:
        outcome = Outcome(token, kind, 1.0, 2.0, msgspec.Raw(encode(Output())))
        return await self.report(worker, outcomes=[outcome])


@asynccontextmanager
async def life(
    objects: MemoryObjects,
    *alive: str,
    cluster_id: str = "here",
    take_over: bool = False,
    pools: Sequence[PoolSettings] = (PoolSettings(name="cpu", queues=["default"], min=0, max=0),),
    clock: FakeClock | None = None,
    new_store: bool = True,
    config: dict[str, Any] | None = None,
    put_span: Callable[[Span], None] | None = None,
    **settings_more: Any,
) -> AsyncIterator[Life]:
    """Start a manager on `objects`; it is dropped at the end as a crash would drop it."""
    settings = ClusterSettings(
        store="memory://",
        config=Config(pools={pool.name: pool for pool in pools}, **(config or {})),
        cluster_id=cluster_id,
        take_over=take_over,
        **settings_more,
    )
    workers, clock = Workers(*alive), clock or FakeClock()
    fatal: list[DraymanError] = []
    manager = await build(
        settings,
        workers,
        clock=clock,
        offload=asyncio.to_thread,
        draw=random.random,
        nonce=lambda: uuid.uuid4().hex,
        on_fatal=fatal.append,
        compactor=(compactor := InlineCompactor(objects)),
        store=objects,
        new_store=new_store,
        put_span=put_span,
    )
    await manager.start("test")
    one = Life(manager, workers, clock, objects)
    one.compactor = compactor
    one.fatal = fatal
    yield one
    for task in list(manager._tasks):
        task.cancel()
    await asyncio.gather(*manager._tasks, return_exceptions=True)
