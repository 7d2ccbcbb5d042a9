"""Ray, as far as the product sees it: actors that start, die and start again, and calls to them.

Rule 1: a call may arrive late, twice, or not at all, and so may its answer; what is lost is told to
the caller as `ManagerAway`, as Ray does. Rule 2: actors hold the product's own classes and add
nothing. Rule 3: a manager that died is started again, and so is one that only seems dead.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cluster import manager as plain_manager
from cluster.compaction import CompactionDone, CompactionPlan, compact
from cluster.config import PoolSettings
from cluster.gateway import Gateway, ManagerAway
from cluster.history.reader import History
from cluster.protocol import decode_orders, decode_report
from cluster.settings import ClusterSettings
from cluster.store.journal import Fenced
from cluster.worker.worker import Worker, WorkerTimes
from jobs.errors import DraymanError, Unavailable
from tests.support.simulation.auditor import Auditor
from tests.support.simulation.loop import Process
from tests.support.simulation.world import World

__all__ = ["GatewayLife", "Machine", "ManagerLife", "WorkerLife"]

NET_S = (0.0002, 0.005)
MANAGER_START_S = (0.3, 2.0)
WORKER_START_S = (0.2, 1.0)


class Network:
    """What happens to messages."""

    def __init__(self) -> None:
        self.lost = self.doubled = self.late = 0.0


class _Clock:
    def __init__(self, world: World) -> None:
        self.wall, self.monotonic = world.wall, world.monotonic

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class ManagerLife:
    """One process with a manager in it."""

    def __init__(self, machine: "Machine", number: int) -> None:
        self.machine, self.world = machine, machine.world
        self.name = f"manager{number}"
        self.process = self.world.process(self.name)
        self.manager: plain_manager.Manager | None = None
        self.pending: dict[asyncio.Future[bytes], Process] = {}
        #: Done once it can be called.
        self.ready: asyncio.Future[None] = self.world.loop.create_future()
        self.process.on_death.append(self._died)
        self.process.spawn(self._start())

    async def _start(self) -> None:
        world = self.world
        try:
            manager = await self.machine.build_manager(
                self.machine.settings,
                Workers(self.machine, self.process),
                clock=_Clock(world),
                offload=world.offload,
                draw=world.rng.random,
                new_id=world.job_id,
                nonce=world.hex,
                on_fatal=self._fatal,
                store=world.store,
                compactor=Compactor(self.machine, self.process),
            )
            await manager.start("simulation")
        except (Unavailable, Fenced) as error:
            self._fatal(error)
            return
        except DraymanError as error:
            world.violated(f"{self.name} would not start: {error!r}")
            return
        self.manager = manager
        world.note("ready", self.name, f"epoch={manager._commit.state.epoch}")
        self.machine.auditor.managers_back()
        self.ready.set_result(None)

    def _fatal(self, error: DraymanError) -> None:
        self.world.note("fatal", self.name, repr(error))
        self.process.kill()

    def _died(self) -> None:
        if self.manager is not None:
            self.machine.auditor.life_ended(self.name, self.manager._commit)
        self.fail_pending(1.0)
        self.machine.manager_died(self)

    def fail_pending(self, probability: float) -> None:
        """Tell callers that their call came to nothing."""
        for reply, caller in list(self.pending.items()):
            if self.world.chance(probability):
                del self.pending[reply]
                caller.call(self.world.uniform(0.001, 0.03), _fail, reply, "the manager died")

    def take(self, method: str, payload: bytes, reply: Any, caller: Process) -> None:
        """Run one call that arrived. In this process."""
        if method == "exchange":
            self.machine.auditor.heard(decode_report(payload).worker)
        asyncio.get_running_loop().create_task(self._answer(method, payload, reply, caller))

    async def _answer(self, method: str, payload: bytes, reply: Any, caller: Process) -> None:
        if self.manager is None:
            await asyncio.wait({self.ready})
        try:
            answer = await getattr(self.manager, method)(payload)
        except DraymanError as error:
            self._send(caller, reply, error)
            return
        except Exception as error:
            self.world.violated(f"{self.name}.{method} raised {error!r}")
            return
        if method == "exchange":
            self.machine.auditor.ordered(caller.name, decode_orders(answer))
        self._send(caller, reply, answer)

    def _send(self, caller: Process, reply: Any, answer: Any) -> None:
        # From here on the answer is the network's.
        self.pending.pop(reply, None)
        if self.world.chance(self.machine.network.lost):
            caller.call(self.world.uniform(*NET_S), _fail, reply, "the answer was lost")
        else:
            caller.call(self.machine.travel_s(), _settle, reply, answer)


def _fail(reply: "asyncio.Future[bytes]", why: str) -> None:
    if not reply.done():
        reply.set_exception(ManagerAway(why))


def _settle(reply: "asyncio.Future[bytes]", answer: Any) -> None:
    if reply.done():
        return
    if isinstance(answer, Exception):
        reply.set_exception(answer)
    else:
        reply.set_result(answer)


class Link:
    """The manager as one process reaches it."""

    def __init__(self, machine: "Machine", process: Process) -> None:
        self._machine, self._process = machine, process

    async def submit(self, payload: bytes) -> bytes:
        return await self._call("submit", payload)

    async def exchange(self, payload: bytes) -> bytes:
        return await self._call("exchange", payload)

    async def record(self, payload: bytes) -> bytes:
        return await self._call("record", payload)

    async def call(self, payload: bytes) -> bytes:
        return await self._call("call", payload)

    async def _call(self, method: str, payload: bytes) -> bytes:
        machine, world = self._machine, self._machine.world
        life = machine.manager
        if life is None or life.process.dead or world.chance(machine.network.lost):
            await asyncio.sleep(machine.travel_s())
            raise ManagerAway("the manager is out of reach")
        reply = world.loop.create_future()
        life.pending[reply] = self._process
        for _ in range(1 + world.chance(machine.network.doubled)):
            life.process.call(machine.travel_s(), life.take, method, payload, reply, self._process)
        answer: bytes = await reply
        return answer


class WorkerLife:
    """One process with a worker in it."""

    def __init__(self, machine: "Machine", pool: PoolSettings, number: int) -> None:
        self.machine, self.pool = machine, pool
        self.name = f"worker-{pool.name}-{number}"
        self.process = machine.world.process(self.name)
        self.worker: Worker
        self.death: asyncio.Future[None] = machine.world.loop.create_future()
        self.process.on_death.append(self._died)
        machine.auditor.workers[self.name] = self.process

    def start(self) -> None:
        """Start the worker. In its process."""
        self.worker = Worker(
            self.name,
            self.pool.name,
            self.pool.queues,
            self.pool.concurrency,
            self.pool.mode,
            "memory://",
            [],
            Link(self.machine, self.process),
            node="node",
            times=WorkerTimes(),
        )
        self.process.spawn(self._run())

    async def _run(self) -> None:
        await self.worker.run()
        self.process.kill()

    def _died(self) -> None:
        if not self.death.done():
            self.machine.world.later(self.machine.world.uniform(0.005, 0.05), self._noticed)

    def _noticed(self) -> None:
        self.machine.workers.pop(self.name, None)
        if not self.death.done():
            self.death.set_result(None)


class Workers:
    """The manager's port to workers."""

    def __init__(self, machine: "Machine", process: Process) -> None:
        self._machine, self._process = machine, process

    async def spawn(self, pool: PoolSettings) -> str:
        """Start a worker; it lives on even if whoever asked is gone."""
        machine, world = self._machine, self._machine.world
        await asyncio.sleep(machine.travel_s())
        if world.chance(machine.spawn_fails):
            raise Unavailable("no room for a worker", 1.0)
        life = machine.new_worker(pool)
        await asyncio.sleep(world.uniform(*WORKER_START_S))
        return life.name

    async def live(self) -> dict[str, str]:
        await asyncio.sleep(self._machine.travel_s())
        return {name: life.pool.name for name, life in self._machine.workers.items()}

    async def watch(self, worker: str) -> str:
        life = self._machine.workers.get(worker)
        if life is not None:
            await asyncio.wait({life.death})
        return "worker died"

    async def kill(self, worker: str) -> None:
        await asyncio.sleep(self._machine.travel_s())
        if (life := self._machine.workers.get(worker)) is not None:
            life.process.kill()

    def unplaceable(self, pool: PoolSettings) -> str:
        """Any worker has its place here."""
        return ""

    async def ask_for(self, wanted: list[tuple[PoolSettings, int]]) -> None:
        """There is nobody to ask."""


class Compactor:
    """The manager's port to a compactor, which runs in a process of its own."""

    def __init__(self, machine: "Machine", process: Process) -> None:
        self._machine, self._process = machine, process

    async def compact(self, plan: bytes) -> bytes:
        """Fold the journal; whoever asked may be gone before it is done."""
        machine, world = self._machine, self._machine.world
        process = world.process(f"compactor{world.number()}")
        reply: asyncio.Future[bytes] = world.loop.create_future()
        process.on_death.append(
            lambda: self._process.call(0.01, _fail, reply, "the compactor died")
        )
        process.spawn(self._compact(plan, process, reply))
        machine.compactors.append(process)
        try:
            return await reply
        finally:
            machine.compactors.remove(process)

    async def _compact(self, plan: bytes, process: Process, reply: Any) -> None:
        world = self._machine.world
        decoded = msgspec.json.decode(plan, type=CompactionPlan)
        await asyncio.sleep(world.uniform(0.01, 0.5))
        try:
            done = await world.offload(self._fold, decoded)
        except DraymanError as error:
            self._process.call(0.01, _settle, reply, error)
        else:
            self._process.call(0.01, _settle, reply, msgspec.json.encode(done))

    def _fold(self, plan: CompactionPlan) -> CompactionDone:
        world = self._machine.world
        return compact(world.store, world.store, plan, now=world.wall())


class GatewayLife:
    """One process with a way in: an HTTP replica."""

    def __init__(self, machine: "Machine", number: int) -> None:
        world = machine.world
        self.world, self.machine = world, machine
        self.name = f"gateway{number}"
        self.process = world.process(self.name)
        self._asked: set[asyncio.Future[Any]] = set()
        self.process.on_death.append(self._died)
        self.gateway: Gateway = machine.build_gateway(
            Link(machine, self.process),
            new_id=world.job_id,
            incarnation=world.hex(),
            history=History(world.store),
            objects=world.store,
            wall=world.wall,
            monotonic=world.monotonic,
            offload=world.offload,
        )

    def ask(self, work: Callable[[Gateway], Awaitable[Any]]) -> "asyncio.Future[Any]":
        """Have a handler of this replica do `work`; the answer is the client's.

        Cancelled, its client has disconnected.
        """
        answer: asyncio.Future[Any] = self.world.loop.create_future()
        self._asked.add(answer)
        self.process.call(self.world.uniform(*NET_S), self._handle, work, answer)
        return answer

    def _handle(self, work: Any, answer: "asyncio.Future[Any]") -> None:
        if answer.done():
            return
        task = asyncio.get_running_loop().create_task(self._work(work))
        answer.add_done_callback(lambda _: task.cancel())
        task.add_done_callback(lambda task: self._answer(task, answer))

    async def _work(self, work: Any) -> Any:
        return await work(self.gateway)

    def _answer(self, task: "asyncio.Task[Any]", answer: "asyncio.Future[Any]") -> None:
        if task.cancelled():
            return
        error = task.exception()
        result = error if error is not None else task.result()
        self.world.later(self.world.uniform(*NET_S), self._told, answer, result)

    def _told(self, answer: "asyncio.Future[Any]", result: Any) -> None:
        self._asked.discard(answer)
        _settle(answer, result)

    def _died(self) -> None:
        for answer in self._asked:
            self.world.later(0.01, _fail, answer, "the connection was lost")
        self._asked.clear()
        self.machine.gateway_died(self)


class Machine:
    """Everything that runs, and how it comes back."""

    def __init__(self, world: World, auditor: Auditor, settings: ClusterSettings) -> None:
        self.world, self.auditor, self.settings = world, auditor, settings
        self.network = Network()
        self.spawn_fails = 0.0
        self.build_manager: Any = plain_manager.build
        self.build_gateway: Any = Gateway
        self.manager: ManagerLife | None = None
        self.workers: dict[str, WorkerLife] = {}
        self.gateways: list[GatewayLife] = []
        self.compactors: list[Process] = []
        self.has_power = True
        self._replicas = 0
        self._managers: list[ManagerLife] = []
        auditor.is_doubtful = lambda: sum(not m.process.dead for m in self._managers) > 1

    def start(self, gateways: int) -> None:
        """Start the manager and the replicas."""
        self._replicas = gateways
        self.start_manager()
        self._start_gateways()

    @property
    def idle(self) -> bool:
        """Whether no replica has a submission on its way."""
        return not any(
            life.gateway._senders or life.gateway._returning is not None for life in self.gateways
        )

    def any_gateway(self) -> "GatewayLife | None":
        """Return one of the replicas; None if there is none."""
        return self.world.rng.choice(self.gateways) if self.gateways else None

    def travel_s(self) -> float:
        """Return how long one message takes."""
        if self.world.chance(self.network.late):
            return self.world.uniform(0.05, 2.0)
        return self.world.uniform(*NET_S)

    def start_manager(self) -> None:
        """Start a manager, whether or not another still runs."""
        if not self.has_power:
            return
        before = self.manager
        self.manager = ManagerLife(self, self.world.number())
        self._managers.append(self.manager)
        if before is not None and not before.process.dead:
            before.fail_pending(0.5)

    def manager_died(self, life: ManagerLife) -> None:
        """Start another, unless there is one."""
        if life is self.manager:
            self.manager = None
            self.world.later(self.world.uniform(*MANAGER_START_S), self._restart_manager)

    def _restart_manager(self) -> None:
        if self.manager is None:
            self.start_manager()

    def new_worker(self, pool: PoolSettings) -> WorkerLife:
        """Start a worker's process."""
        life = WorkerLife(self, pool, self.world.number())
        self.workers[life.name] = life
        life.process.call(self.world.uniform(0.05, 0.2), life.start)
        return life

    def _start_gateways(self) -> None:
        while self.has_power and len(self.gateways) < self._replicas:
            self.gateways.append(GatewayLife(self, self.world.number()))

    def gateway_died(self, life: GatewayLife) -> None:
        """Start another."""
        self.gateways.remove(life)
        self.world.later(self.world.uniform(0.2, 1.0), self._start_gateways)

    def cut_power(self) -> None:
        """End everything at once, and what was not durable with it."""
        self.has_power = False
        for process in list(self.world.processes):
            process.kill()
        self.world.store.lose_power()
        self.workers.clear()
        self.world.later(self.world.uniform(0.5, 2.0), self._power_back)

    def _power_back(self) -> None:
        self.has_power = True
        self._restart_manager()
        self._start_gateways()
