"""The manager as an actor, and how a cluster is started and stopped."""

import asyncio
import contextlib
import os
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import ray
import structlog
from ray.exceptions import RayError, RayTaskError

from cluster import manager as plain_manager
from cluster.actors.compactor import RayCompactor
from cluster.actors.holder import HOLDER_PREFIX
from cluster.actors.placement import placement, require_one_node
from cluster.actors.port import CALLS, FATAL_EXIT, MANAGER, manager_handle, raylet_gone, said
from cluster.actors.workers import WORKER_PREFIX, WORKER_START_S, RayWorkers
from cluster.settings import NAMESPACE, ClusterSettings
from cluster.slim import rarely_collect, take_turns, without_pandas
from cluster.spans import SpanExporter
from cluster.store.journal import Fenced
from cluster.telemetry import configure_logging
from cluster.wire import Endpoint, WireServer
from jobs.errors import DraymanError, InvalidInput, Unavailable

__all__ = ["start_manager", "stop_cluster"]

log = structlog.get_logger(__name__)

VERSION = "0.1.0"
#: Set to 1 where Ray's own calls are encrypted.
RAY_TLS = "RAY_USE_TLS"
#: Ray's mailbox is unbounded and a parked poll holds a slot, so the bound is ours: polls of every
#: worker and calls of every gateway fit with room to spare.
MANAGER_CONCURRENCY = 4_000
#: Between tries of a restarted manager to read a store in trouble.
RESTART_FIRST_S, RESTART_MAX_S = 0.25, 2.0
#: Threads of the manager for what is in the store beside the journal.
OTHER_THREADS = 8


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
        self._node = loop.create_task(self._leave_with_node())
        again = ray.get_runtime_context().was_current_actor_reconstructed
        if again:
            # The right to take over was for the first life: two that took a store from each other
            # at each restart would never end.
            self._settings = msgspec.structs.replace(self._settings, take_over=False)

        self._spans: SpanExporter | None = None
        if self._settings.otlp:
            self._spans = SpanExporter(self._settings.otlp)

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
                put_span=self._spans.put if self._spans is not None else None,
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

    async def _leave_with_node(self) -> None:
        """Once the raylet is gone, end as soon as Ray has started another manager, not before.

        That takes Ray a quarter of a minute, in which nobody else would take or give work.
        """
        await raylet_gone()
        log.warning(
            "raylet_gone", next="this manager goes on until another has claimed the journal"
        )
        await self._manager.be_replaced()

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
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)


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


def start_manager(settings: ClusterSettings) -> Any:
    """Start the manager, or find the one that runs; return its handle once it is ready.

    Raises what kept it from starting, such as Conflict where another cluster owns the store, or
    InvalidInput where the store is a folder and Ray has several nodes.
    """
    require_one_node(settings)
    actor = ray.remote(QueueManager).options(
        name=MANAGER,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=MANAGER_CONCURRENCY,
        **placement(settings, None),
    )
    handle = actor.remote(msgspec.json.encode(settings))
    try:
        ray.get(handle.ready.remote(), timeout=WORKER_START_S)
    except RayTaskError as error:
        ray.kill(handle)
        raise said(error) from error
    except RayError as error:
        ray.kill(handle)
        raise Unavailable(f"the queue manager did not start: {error}") from error
    return handle


def stop_cluster(grace_s: float) -> None:
    """Drain the workers, then end them, the holders and the manager.

    What is unfinished stays in the store.
    """
    handle = manager_handle()
    try:
        ray.get(handle.drain.remote(grace_s), timeout=grace_s + 10.0)
    except RayError as error:
        log.warning("drain_failed", error=str(error).partition("\n")[0])
    ours = (WORKER_PREFIX, HOLDER_PREFIX)
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(ours):
            with contextlib.suppress(ValueError):  # it exited by itself meanwhile
                ray.kill(ray.get_actor(actor["name"], namespace=NAMESPACE))
    ray.kill(handle)
