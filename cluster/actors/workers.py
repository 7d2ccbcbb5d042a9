"""Workers as the manager starts, places, watches and ends them.

Rule 1: a worker that can't be placed yet stays with Ray as an actor that waits, for that is the
demand its autoscaler sees. Rule 2: no call here stops the loop while Ray is in trouble.
"""

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.placement import (
    NODE_LABEL,
    Node,
    Recent,
    actors_placed,
    has_labels,
    lacking,
    living_nodes,
    selector_of,
)
from cluster.actors.worker import Worker
from cluster.config import PoolSettings
from cluster.protocol import NODE_LOST, WORKER_DIED
from cluster.settings import NAMESPACE, ClusterSettings
from jobs.errors import Unavailable

__all__ = ["WORKER_PREFIX", "RayWorkers"]

WORKER_PREFIX = "worker-"
#: Starting a worker's process and its imports on a busy machine, once it has a place.
WORKER_START_S = 120.0
#: How often it is looked, while a worker waits, what nodes there are and whether it has a place.
LOOK_S = 1.0
#: What Ray says of an actor that went with its node.
NODE_DIED = "node has died"


class RayWorkers:
    """Workers as the manager starts, places, watches and ends them."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._encoded = msgspec.json.encode(settings)
        self._actor = ray.remote(Worker)
        self._nodes = Recent(living_nodes, LOOK_S)
        self._placed = Recent(actors_placed, LOOK_S)
        #: Where each worker was sent, "" where Ray chooses. Those of a manager before this one are
        #: not among them.
        self._sent: dict[str, str] = {}
        #: What Ray's autoscaler was asked for last; None: nothing yet.
        self._asked: list[tuple[dict[str, float], dict[str, str]]] | None = None

    async def spawn(self, pool: PoolSettings) -> str:
        """Start a worker; return its name once it runs, however long it waits for a place.

        Cancelling this calls the worker off. Raises Unavailable if Ray cannot start it: it had a
        place and did not begin in time, its node went, or Ray cannot make sense of what it holds.
        """
        name = f"{WORKER_PREFIX}{pool.name}-{uuid.uuid4().hex[:8]}"
        nodes = await self._nodes.get()
        try:
            handle = self._actor.options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=100,
                **_held(pool),
                **self._placement(name, pool, nodes),
            ).remote(name, msgspec.json.encode(pool), self._encoded)
        except ValueError as error:
            self._sent.pop(name, None)
            raise Unavailable(f"Ray refuses a worker of pool {pool.name}: {error}") from error
        try:
            await self._until_it_runs(name, handle)
        except (RayError, TimeoutError) as error:
            self._call_off(name, handle)
            raise Unavailable(f"worker {name} did not start: {error}", 1.0) from error
        except asyncio.CancelledError:
            self._call_off(name, handle)
            raise
        return name

    def _call_off(self, name: str, handle: Any) -> None:
        self._sent.pop(name, None)
        ray.kill(handle)

    def _placement(self, name: str, pool: PoolSettings, nodes: Sequence[Node]) -> dict[str, Any]:
        """Return options that spread over the nodes, one worker in turn, those that hold nothing.

        Ray's own strategy `SPREAD` heeds only what is held (Ray 2.60 put all five of these on one
        node of two), nor does it hold to a soft affinity. Should the node go before the worker is
        there, it is spawned again. The others go where Ray finds room; those with a GPU not spread,
        so that nodes with GPUs can be given back.
        """
        selector = selector_of(pool) | self._own_node()
        able = [node for node in nodes if has_labels(node, selector)]
        if pool.shape or not able:
            self._sent[name] = ""
            strategy = "DEFAULT" if pool.num_gpus else "SPREAD"
            return {"scheduling_strategy": strategy, "label_selector": selector}
        # A node without CPUs is one that its operator keeps free of work, such as the head.
        able = [node for node in able if node["Resources"].get("CPU")] or able
        held = Counter(self._sent[w] for w in self._sent if _pool_of(w) == pool.name)
        self._sent[name] = node = min(
            (each["NodeID"] for each in able), key=lambda each: held[each]
        )
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}

    def _own_node(self) -> dict[str, str]:
        """Return labels of the nodes that reach the store: of this one, if it is a folder here."""
        if not self._settings.needs_one_node:
            return {}
        return {NODE_LABEL: ray.get_runtime_context().get_node_id()}

    async def _until_it_runs(self, name: str, handle: Any) -> None:
        """Wait for a place without end, then for the start. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        ready = loop.create_task(_ready(handle))
        seeks = not self._sent[name]  # one that was sent to a node has its place
        waited_at = loop.time()  # for a place, as far as is known
        try:
            while not (await asyncio.wait({ready}, timeout=LOOK_S))[0]:
                if seeks and not (await self._placed.get()).get(name):
                    waited_at = loop.time()
                elif loop.time() - waited_at > WORKER_START_S:
                    raise TimeoutError(f"it had a place for {WORKER_START_S:g} s")
            await ready
        finally:
            ready.cancel()

    def unplaceable(self, pool: PoolSettings) -> str:
        """Return why no node, as they are now, could ever hold a worker of it; "" if one could.

        It is known of the nodes of a second ago; also "" before they are.
        """
        if not pool.shape and not pool.label_selector:
            return ""
        try:
            self._actor.options(**_held(pool), label_selector=selector_of(pool))
        except ValueError as error:
            return f"Ray refuses it: {error}"
        own = self._own_node()
        nodes = [node for node in self._nodes.last() or () if has_labels(node, own)]
        return lacking(pool, nodes, " that has the store's folder" if own else "") if nodes else ""

    async def ask_for(self, wanted: Sequence[tuple[PoolSettings, int]]) -> None:
        """Tell Ray's autoscaler how many workers of each pool there should be soon.

        It is a hint, of pools that hold resources; 0 of all takes it back. Ray knows one request
        in all: this replaces what others asked for with `request_resources`, and theirs this.
        Where no autoscaler runs, nothing comes of it. Raises Unavailable if Ray cannot take it now.
        """
        holding = [(pool, count) for pool, count in wanted if pool.shape]
        asked = [(p.shape, selector_of(p)) for p, count in holding for _ in range(count)]
        if asked == self._asked or (self._asked is None and not holding):
            return  # also where it was never for us to ask
        try:
            await asyncio.to_thread(
                request_resources,
                bundles=[shape for shape, _ in asked],
                bundle_label_selectors=[selector for _, selector in asked],
            )
        except RayError as error:
            raise Unavailable(f"Ray's autoscaler was not asked for nodes: {error}") from error
        self._asked = asked

    async def live(self) -> dict[str, str]:
        """Return the pool of every living worker by name.

        What a manager before this one asked for and has no place yet is called off: this one asks
        for what it needs itself.
        """
        named, placed = await asyncio.to_thread(_survey)
        for name in named:
            if placed.get(name) is False and name not in self._sent:
                await self.kill(name)
        return {name: _pool_of(name) for name in named if placed.get(name)}

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


def _held(pool: PoolSettings) -> dict[str, Any]:
    """Return what a worker holds of a node, as Ray's options."""
    return {
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
        "resources": {name: amount for name, amount in pool.resources.items() if amount},
    }


def _pool_of(worker: str) -> str:
    return worker.removeprefix(WORKER_PREFIX).rpartition("-")[0]


def _survey() -> tuple[list[str], dict[str, bool]]:
    """Return the names of all workers, and which actors have a place."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    ours = (actor["name"] for actor in actors if actor["namespace"] == NAMESPACE)
    return [name for name in ours if name.startswith(WORKER_PREFIX)], actors_placed()


async def _ready(handle: Any) -> int:
    pid: int = await handle.ready.remote()
    return pid
