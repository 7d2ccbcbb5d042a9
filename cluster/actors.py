"""Everything that knows Ray: thin actors around plain classes, and the ports between them.

Rule 1: every `ray.remote` stands here. Rule 2: an actor adds a place to run and nothing else.
Rule 3: mutating calls are never retried by Ray (`max_task_retries=0`): whoever calls repeats with
the same number, so that the receiver can tell.
"""

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import ray
import structlog
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import manager as plain_manager
from cluster.compaction import CompactionPlan, compact
from cluster.gateway import Gateway
from cluster.history.reader import History
from cluster.ids import uuid7_maker
from cluster.protocol import NODE_LOST, WORKER_DIED
from cluster.settings import DATA_DIRS_ENV, NAMESPACE, ClusterSettings, PoolSettings
from cluster.slim import keep_garbage, rarely_collect, take_turns, without_pandas
from cluster.store.journal import Fenced
from cluster.store.objects import Objects, open_store
from cluster.telemetry import configure_logging
from cluster.wire import Endpoint, ManagerAway, NoWire, Wire, WireServer
from cluster.worker import worker as plain_worker
from cluster.worker.memory import MIB
from jobs.errors import DraymanError, InvalidInput, Unavailable

__all__ = ["MANAGER", "connect_gateway", "manager_handle", "start_manager", "stop_cluster"]

log = structlog.get_logger(__name__)

MANAGER = "manager"
#: What gateways and workers call, in the order that stands for their names on a connection.
CALLS = ("submit", "exchange", "record", "call")
#: Set to 1 where Ray's own calls are encrypted.
RAY_TLS = "RAY_USE_TLS"
WORKER_PREFIX = "worker-"
VERSION = "0.1.0"

#: Ray's mailbox is unbounded and a parked poll holds a slot, so the bound is ours: polls of every
#: worker and calls of every gateway fit with room to spare.
MANAGER_CONCURRENCY = 4_000
#: Starting a worker's process and its imports on a busy machine.
WORKER_START_S = 120.0
COMPACTOR_NICENESS = 10
#: Between tries of a restarted manager to read a store in trouble.
RESTART_FIRST_S, RESTART_MAX_S = 0.25, 2.0
#: Threads of the manager for what is in the store beside the journal.
OTHER_THREADS = 8
#: What a worker told to end by SIGTERM gives its attempts. Kubernetes kills after 30 s.
TERM_GRACE_S = 10.0
#: How often a worker looks whether its raylet lives.
RAYLET_LOOK_S = 0.1
#: What Ray says of an actor that went with its node.
NODE_DIED = "node has died"
#: Exit code of a manager that must not go on. Ray starts another, which replays the journal.
FATAL_EXIT = 70


class RealClock:
    """The machine's clocks."""

    def wall(self) -> float:
        """Return epoch seconds, UTC."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        """Wait."""
        await asyncio.sleep(delay_s)


# --- the manager's actor ----------------------------------------------------------------------


class QueueManager:
    """Ray's shell around `cluster.manager.Manager`. Detached; Ray restarts it when it dies."""

    async def __init__(self, settings: bytes) -> None:  # type: ignore[misc]  # Ray awaits it
        configure_logging()
        without_pandas()
        self._settings = msgspec.json.decode(settings, type=ClusterSettings)
        # One thread: segments are written in order, and nothing else blocks it.
        io = ThreadPoolExecutor(1, "journal")
        loop = asyncio.get_running_loop()

        def offload(function: Any, *args: Any) -> Awaitable[Any]:
            return loop.run_in_executor(io, function, *args)

        others = ThreadPoolExecutor(OTHER_THREADS, "store")

        def aside(function: Any, *args: Any) -> Awaitable[Any]:
            return loop.run_in_executor(others, function, *args)

        self._refusal: DraymanError | None = None
        again = ray.get_runtime_context().was_current_actor_reconstructed
        if again:
            # The right to take over was for the first life: two that took a store from each other
            # at each restart would never end.
            self._settings = msgspec.structs.replace(self._settings, take_over=False)

        async def begin() -> plain_manager.Manager:
            manager = await plain_manager.build(
                self._settings,
                RayWorkers(self._settings),
                clock=RealClock(),
                offload=offload,
                draw=random.random,
                nonce=lambda: uuid.uuid4().hex,
                on_fatal=_die,
                compactor=RayCompactor(self._settings),
                aside=aside,
                new_store=not again,
            )
            await manager.start(VERSION)
            return manager

        self._endpoint: Endpoint | None = None

        try:
            self._plain = await (_patiently(begin) if again else begin())
            rarely_collect()
            take_turns()
            if os.environ.get(RAY_TLS, "0") in ("", "0"):  # else only Ray's own calls are private
                self._wire = WireServer({name: getattr(self._plain, name) for name in CALLS})
                self._endpoint = await self._wire.start(ray.util.get_node_ip_address())
        except DraymanError as error:
            # Dying would only have Ray start it again, for ever. Whoever asks is told why.
            log.critical("manager_not_started", reason=str(error))
            self._refusal = error

    @property
    def _manager(self) -> plain_manager.Manager:
        if self._refusal is not None:
            raise self._refusal
        return self._plain

    async def ready(self) -> int:
        """Return the manager's process id once it is started; raise what kept it from starting."""
        _ = self._manager
        return os.getpid()

    async def endpoint(self) -> Endpoint | None:
        """Return where else than through Ray the manager can be called; None: nowhere."""
        _ = self._manager
        return self._endpoint

    async def submit(self, payload: bytes) -> bytes:
        """Accept a batch."""
        return await self._manager.submit(payload)

    async def exchange(self, payload: bytes) -> bytes:
        """Take a worker's report, give orders."""
        return await self._manager.exchange(payload)

    async def record(self, payload: bytes) -> bytes:
        """Make a checkpoint or an effect durable."""
        return await self._manager.record(payload)

    async def call(self, payload: bytes) -> bytes:
        """Answer a query."""
        return await self._manager.call(payload)

    async def drain(self, grace_s: float) -> None:
        """Let every worker finish or hand back its work, then stop deciding."""
        await self._manager.drain(grace_s)


async def _patiently(
    begin: Callable[[], Awaitable[plain_manager.Manager]],
) -> plain_manager.Manager:
    """Repeat it while the store is in trouble: it was there in an earlier life.

    Fenced: one before it, which only seemed dead, wrote once more while this one was reading.
    """
    wait_s = RESTART_FIRST_S
    while True:
        try:
            return await begin()
        except (Unavailable, InvalidInput, Fenced) as error:
            log.error("manager_waits_for_store", reason=str(error), next_try_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(RESTART_MAX_S, wait_s * 2)


def _die(error: DraymanError) -> None:
    """End the process: what it holds in memory may not be what the journal says."""
    log.critical("manager_exits", reason=str(error))
    sys.stderr.flush()
    os._exit(FATAL_EXIT)


# --- the worker's actor -----------------------------------------------------------------------


def on_sigterm(action: Callable[[], None]) -> None:
    """Call `action` on the running loop when SIGTERM comes, and keep Ray from exiting for it.

    An actor's loop is not on the main thread, where alone Python lets signals be handled, and the
    main thread is inside Ray, where it runs no Python for hours. So the handlers are set by a
    pending call, which it runs next, and the news comes through a pipe, at once.
    """
    ours, theirs = os.pipe()
    for end in (ours, theirs):
        os.set_blocking(end, False)

    def install(_: object) -> int:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        return 0

    def read() -> None:
        if signal.SIGTERM in os.read(ours, 4096):
            action()

    call = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(install)
    _pending_calls.append(call)  # it must outlive this call
    ctypes.pythonapi.Py_AddPendingCall(call, None)
    asyncio.get_running_loop().add_reader(ours, read)


_pending_calls: list[object] = []


class Worker:
    """Ray's shell around `cluster.worker.worker.Worker`. Detached, so it outlives the manager."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, name: str, pool: bytes, settings: bytes
    ) -> None:
        configure_logging()
        without_pandas()
        pool_settings = msgspec.json.decode(pool, type=PoolSettings)
        cluster = msgspec.json.decode(settings, type=ClusterSettings)
        cluster.extend_path()
        os.environ[DATA_DIRS_ENV] = os.pathsep.join(cluster.data_dirs)
        self._worker = plain_worker.Worker(
            name=name,
            pool=pool_settings.name,
            queues=pool_settings.queues,
            concurrency=pool_settings.concurrency,
            mode=pool_settings.mode,
            store_url=cluster.store,
            job_modules=cluster.job_modules,
            manager=RayManager(manager_handle()),
            node=ray.get_runtime_context().get_node_id(),
            times=plain_worker.WorkerTimes.within(pool_settings.heartbeat_timeout_s),
            memory_limit_bytes=(pool_settings.memory_limit_mb or 0) * MIB,
        )
        on_sigterm(lambda: self._worker.leave(TERM_GRACE_S))
        rarely_collect()
        loop = asyncio.get_running_loop()
        self._run = loop.create_task(self._run_then_exit())
        self._node = loop.create_task(self._leave_with_node())

    async def _run_then_exit(self) -> None:
        try:
            await self._worker.run()
        except Exception:
            log.critical("worker_broke", exc_info=True)
            sys.stderr.flush()
            os._exit(FATAL_EXIT)
        finally:
            # A worker that ended must not linger as an actor that does nothing.
            os._exit(0)

    async def _leave_with_node(self) -> None:
        """Leave when the raylet, our parent, is gone: Ray takes this node for dead soon.

        Ray leaves us running then, beside those who are given our work (seen with Ray 2.60).
        """
        raylet = os.getppid()
        while os.getppid() == raylet:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(RAYLET_LOOK_S)
        self._worker.leave(0.0, NODE_LOST)

    async def ready(self) -> int:
        """Return the worker's process id."""
        return os.getpid()

    async def watch(self) -> None:
        """Never return: the caller learns of this process's death from the call's failure."""
        await asyncio.Event().wait()

    async def drain(self, grace_s: float) -> None:
        """Finish or hand back everything, then exit."""
        await self._worker.drain(grace_s)


# --- the compactor's task -----------------------------------------------------------------------


def _compact(settings: bytes, plan: bytes) -> bytes:
    """Fold the journal, in a process of its own that steps back for everything else."""
    os.nice(COMPACTOR_NICENESS)
    keep_garbage()
    without_pandas()
    configure_logging()
    cluster = msgspec.json.decode(settings, type=ClusterSettings)
    store = open_store(cluster.store)
    journal = open_store(cluster.journal) if cluster.journal else store
    decoded = msgspec.json.decode(plan, type=CompactionPlan)
    return msgspec.json.encode(compact(store, journal, decoded, now=time.time()))


class RayCompactor:
    """Compaction as a Ray task."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = msgspec.json.encode(settings)
        self._placement = _placement(settings, "DEFAULT")

    async def compact(self, plan: bytes) -> bytes:
        """Carry out an encoded CompactionPlan; return an encoded CompactionDone."""
        # A process that ran one exits with it: it has grown by the whole state.
        task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_compact)
        reply: bytes = await task.options(**self._placement).remote(self._settings, plan)
        return reply


# --- ports ------------------------------------------------------------------------------------


class RayManager:
    """The manager as gateways and workers reach it: by a connection, or through Ray without one."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._wire = Wire(self._find, CALLS)

    async def submit(self, payload: bytes) -> bytes:
        """Accept an encoded Batch."""
        return await self._call("submit", payload)

    async def exchange(self, payload: bytes) -> bytes:
        """Take an encoded Report; return encoded Orders."""
        return await self._call("exchange", payload)

    async def record(self, payload: bytes) -> bytes:
        """Take an encoded Record; return an encoded Recorded or Refused."""
        return await self._call("record", payload)

    async def call(self, payload: bytes) -> bytes:
        """Answer an encoded Query."""
        return await self._call("call", payload)

    async def _call(self, method: str, payload: bytes) -> bytes:
        try:
            return await self._wire.call(method, payload)
        except NoWire:
            reply: bytes = await self._through_ray(method, payload)
            return reply

    async def _find(self) -> Endpoint | None:
        found: Endpoint | None = await self._through_ray("endpoint")
        return found

    async def _through_ray(self, method: str, *args: bytes) -> Any:
        try:
            return await getattr(self._handle, method).remote(*args)
        except (RayActorError, ActorUnavailableError, OutOfMemoryError) as error:
            raise ManagerAway(str(error).partition("\n")[0]) from error
        except RayTaskError as error:
            raise _said(error) from error


class RayWorkers:
    """Workers as the manager starts, watches and ends them."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        #: Where each worker was sent. Those of a manager before this one are not among them.
        self._sent: dict[str, str] = {}

    def _placement(self, name: str, pool: PoolSettings) -> dict[str, Any]:
        """Return options that spread a pool over the nodes, one worker in turn.

        Ray's own strategy `SPREAD` heeds only what is held, and these hold nothing (Ray 2.60 put
        all five on one node of two). What needs a GPU goes where Ray finds one.
        """
        if pool.num_gpus or self._settings.needs_one_node:
            return _placement(self._settings, "DEFAULT")
        live = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        held = Counter(self._sent[w] for w in self._sent if _pool_of(w) == pool.name)
        self._sent[name] = node = min(live, key=lambda each: held[each])
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}

    async def spawn(self, pool: PoolSettings) -> str:
        """Start a worker; return its name once it runs. Raises Unavailable if Ray cannot yet."""
        name = f"{WORKER_PREFIX}{pool.name}-{uuid.uuid4().hex[:8]}"
        actor = ray.remote(Worker).options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=100,
            **self._placement(name, pool),
        )
        handle = actor.remote(name, msgspec.json.encode(pool), msgspec.json.encode(self._settings))
        try:
            await asyncio.wait_for(_ready(handle), WORKER_START_S)
        except (RayError, TimeoutError) as error:
            self._sent.pop(name, None)
            ray.kill(handle)
            raise Unavailable(f"worker {name} did not start: {error}", 1.0) from error
        return name

    async def live(self) -> dict[str, str]:
        """Return the pool of every living worker by name."""
        found: dict[str, str] = {}
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name = actor["name"]
            if actor["namespace"] == NAMESPACE and name.startswith(WORKER_PREFIX):
                found[name] = _pool_of(name)
        return found

    async def watch(self, worker: str) -> str:
        """Return why the worker died, once it did."""
        try:
            return await self._watch(worker)
        finally:
            self._sent.pop(worker, None)

    async def _watch(self, worker: str) -> str:
        while True:
            try:
                handle = ray.get_actor(worker, namespace=NAMESPACE)
                await handle.watch.remote()
            except OutOfMemoryError:  # Ray's memory monitor chose it
                return "oom"
            except ActorDiedError as error:
                return NODE_LOST if NODE_DIED in str(error) else WORKER_DIED
            except ValueError:  # Ray knows no such name (any more)
                return WORKER_DIED
            except ActorUnavailableError:
                # Out of reach is not dead: look again, silence is judged by the heartbeat.
                await asyncio.sleep(1.0)

    async def kill(self, worker: str) -> None:
        """End the worker by force."""
        with contextlib.suppress(ValueError, RayError):  # already gone
            ray.kill(ray.get_actor(worker, namespace=NAMESPACE))


def _pool_of(worker: str) -> str:
    return worker.removeprefix(WORKER_PREFIX).rpartition("-")[0]


async def _ready(handle: Any) -> int:
    pid: int = await handle.ready.remote()
    return pid


def _said(error: RayTaskError) -> Exception:
    """Return the error the callee raised, if it is one of ours."""
    cause = error.cause
    return cause if isinstance(cause, DraymanError) else error


def _placement(settings: ClusterSettings, elsewhere: str | None) -> dict[str, Any]:
    """Return options that keep an actor or Ray task where the store's folder is: on this node.

    A manager that Ray started on another one would find an empty folder there. Where every node
    reaches the store, Ray's strategy `elsewhere` holds; None prefers this node while it lives.
    """
    if elsewhere is not None and not settings.needs_one_node:
        return {"scheduling_strategy": elsewhere}
    node, soft = ray.get_runtime_context().get_node_id(), not settings.needs_one_node
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=soft)}


def _require_one_node(settings: ClusterSettings) -> None:
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    if settings.needs_one_node and nodes > 1:
        raise InvalidInput(
            "store",
            f"{settings.journal or settings.store} is a folder of one node, but this Ray has "
            f"{nodes}; use a bucket, or say --shared-mount if every node has that folder mounted",
        )


def start_manager(settings: ClusterSettings) -> Any:
    """Start the manager, or find the one that runs; return its handle once it is ready.

    Raises what kept it from starting, such as Conflict where another cluster owns the store, or
    InvalidInput where the store is a folder and Ray has several nodes.
    """
    _require_one_node(settings)
    actor = ray.remote(QueueManager).options(
        name=MANAGER,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=MANAGER_CONCURRENCY,
        **_placement(settings, None),
    )
    handle = actor.remote(msgspec.json.encode(settings))
    try:
        ray.get(handle.ready.remote(), timeout=WORKER_START_S)
    except RayTaskError as error:
        ray.kill(handle)
        raise _said(error) from error
    except RayError as error:
        ray.kill(handle)
        raise Unavailable(f"the queue manager did not start: {error}") from error
    return handle


def manager_handle() -> Any:
    """Return the running manager's handle. Raises Unavailable if there is none."""
    try:
        return ray.get_actor(MANAGER, namespace=NAMESPACE)
    except ValueError as error:
        raise Unavailable("no queue manager runs on this Ray cluster; start it first") from error


def connect_gateway(handle: Any, store: Objects) -> Gateway:
    """Return a gateway to the manager, for the running event loop."""
    return Gateway(
        RayManager(handle),
        new_id=uuid7_maker(),
        incarnation=uuid.uuid4().hex,
        history=History(store),
        objects=store,
        wall=time.time,
        monotonic=time.monotonic,
    )


def stop_cluster(grace_s: float) -> None:
    """Drain the workers, then end them and the manager. What is unfinished stays in the store."""
    handle = manager_handle()
    try:
        ray.get(handle.drain.remote(grace_s), timeout=grace_s + 10.0)
    except RayError as error:
        log.warning("drain_failed", error=str(error).partition("\n")[0])
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(WORKER_PREFIX):
            with contextlib.suppress(ValueError):  # it exited by itself meanwhile
                ray.kill(ray.get_actor(actor["name"], namespace=NAMESPACE))
    ray.kill(handle)
