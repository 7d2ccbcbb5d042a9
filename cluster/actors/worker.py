"""The worker as an actor."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable

import msgspec
import ray
import structlog

from cluster.actors.holder import RayHolder
from cluster.actors.port import FATAL_EXIT, RayManager, manager_handle, raylet_gone
from cluster.config import PoolSettings
from cluster.protocol import NODE_LOST
from cluster.settings import DATA_DIRS_ENV, OUTPUT_DIRS_ENV, ClusterSettings
from cluster.slim import rarely_collect, without_pandas
from cluster.telemetry import configure_logging
from cluster.trace_context import TRACED_ENV
from cluster.worker import worker as plain_worker
from cluster.worker.memory import MIB
from jobs.buckets import OWN_URLS_ENV
from jobs.library.http.addresses import HTTP_ALLOW_ENV
from jobs.library.notify.event import PUBLIC_URL_ENV

__all__ = ["Worker"]

log = structlog.get_logger(__name__)

#: What a worker told to end by SIGTERM gives its attempts. Kubernetes kills after 30 s.
TERM_GRACE_S = 10.0


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
        os.environ[OUTPUT_DIRS_ENV] = os.pathsep.join(cluster.output_dirs)
        os.environ[OWN_URLS_ENV] = "\n".join([cluster.store, cluster.journal or ""])
        if cluster.http_allow:
            os.environ[HTTP_ALLOW_ENV] = cluster.http_allow
        if cluster.public_url:
            os.environ[PUBLIC_URL_ENV] = cluster.public_url
        if cluster.otlp:
            os.environ[TRACED_ENV] = "1"
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
            tasks_max=pool_settings.max_tasks_per_worker or 0,
            growth_bytes_max=(pool_settings.renew_above_mb or 0) * MIB,
            holder=RayHolder(cluster.ephemeral_bytes_max),
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
        """Leave when the raylet is gone: Ray takes this node for dead, and gives our work away."""
        await raylet_gone()
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
