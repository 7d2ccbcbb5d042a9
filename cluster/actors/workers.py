"""Workers as the manager starts, watches and ends them."""

import asyncio
import contextlib
import uuid
from collections import Counter
from typing import Any

import msgspec
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.placement import placement
from cluster.actors.worker import Worker
from cluster.protocol import NODE_LOST, WORKER_DIED
from cluster.settings import NAMESPACE, ClusterSettings, PoolSettings
from jobs.errors import Unavailable

__all__ = ["WORKER_PREFIX", "RayWorkers"]

WORKER_PREFIX = "worker-"
#: Starting a worker's process and its imports on a busy machine.
WORKER_START_S = 120.0
#: What Ray says of an actor that went with its node.
NODE_DIED = "node has died"


class RayWorkers:
    """Workers as the manager starts, watches and ends them."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        #: Where each worker was sent. Those of a manager before this one are not among them.
        self._sent: dict[str, str] = {}

    def _placement(self, name: str, pool: PoolSettings) -> dict[str, Any]:
        """Return options that spread a pool over the nodes, one worker in turn.

        Ray's own strategy `SPREAD` heeds only what is held, and these hold nothing (Ray 2.60 put
        all five on one node of two), nor does it hold to a soft affinity. Should the node go before
        the worker is there, it is spawned again. What needs a GPU goes where Ray finds one.
        """
        if pool.num_gpus or self._settings.needs_one_node:
            return placement(self._settings, "DEFAULT")
        live = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        held = Counter(self._sent[w] for w in self._sent if _pool_of(w) == pool.name)
        self._sent[name] = node = min(live, key=lambda each: held[each])
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}

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
