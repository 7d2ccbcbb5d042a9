"""Where in the cluster a part may run: the store of one node is on no other.

And where a worker may: on nodes that have the labels and the resources of its pool.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray._private.state import state as ray_state
from ray._raylet import node_labels_match_selector  # type: ignore[attr-defined] # not in its stub
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config import PoolSettings
from cluster.settings import ClusterSettings
from jobs.errors import InvalidInput

__all__ = [
    "NODE_LABEL",
    "Node",
    "Recent",
    "actors_placed",
    "has_labels",
    "lacking",
    "living_nodes",
    "placement",
    "require_one_node",
    "selector_of",
]

T = TypeVar("T")
#: One of `ray.nodes()`.
Node = dict[str, Any]

#: Each node has it, with its own id.
NODE_LABEL = "ray.io/node-id"
#: Of an actor, in the order in which it passes them: one that moves on meanwhile is not missed.
STATES = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE")


def placement(settings: ClusterSettings, elsewhere: str | None) -> dict[str, Any]:
    """Return options that keep an actor or Ray task where the store's folder is: on this node.

    A manager that Ray started on another one would find an empty folder there. Where every node
    reaches the store, Ray's strategy `elsewhere` holds; None prefers this node while it lives.
    """
    if elsewhere is not None and not settings.needs_one_node:
        return {"scheduling_strategy": elsewhere}
    node, soft = ray.get_runtime_context().get_node_id(), not settings.needs_one_node
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=soft)}


def require_one_node(settings: ClusterSettings) -> None:
    """Raise InvalidInput where the store is a folder of one node, and Ray has several."""
    nodes = len(living_nodes())
    if settings.needs_one_node and nodes > 1:
        raise InvalidInput(
            "store",
            f"{settings.journal or settings.store} is a folder of one node, but this Ray has "
            f"{nodes}; use a bucket, or say --shared-mount if every node has that folder mounted",
        )


# --- what Ray says ------------------------------------------------------------------------------


class Recent(Generic[T]):
    """What a call that may block said, and for how long that is good enough.

    The call is made on a thread: without its GCS, Ray answers none for a minute.
    """

    def __init__(self, ask: Callable[[], T], for_s: float) -> None:
        self._ask, self._for_s = ask, for_s
        self._said: T | None = None
        self._asked_at = -for_s
        self._asking: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return what it said, once that is recent."""
        if self._said is None or self._is_old():
            return await asyncio.shield(self._again())
        return self._said

    def last(self) -> T | None:
        """Return at once what it said last, if anything; if that is old, it is asked again."""
        if self._is_old():
            self._again()
        return self._said

    def _is_old(self) -> bool:
        return time.monotonic() - self._asked_at >= self._for_s

    def _again(self) -> asyncio.Task[T]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._call())
        return self._asking

    async def _call(self) -> T:
        asked_at = time.monotonic()
        self._said = said = await asyncio.to_thread(self._ask)
        self._asked_at = asked_at
        return said


def living_nodes() -> list[Node]:
    """Return the nodes there are. Blocks while Ray's GCS is away."""
    return [node for node in ray.nodes() if node["Alive"]]


def actors_placed() -> dict[str, bool]:
    """Return for each actor that lives or is to, by name, whether it has a place.

    To Ray (2.60), one is pending until its constructor is done; it has a process as soon as it has
    a place. (It has an address before, of the node that is to find it one.) One just created may be
    missing. Blocks while Ray's GCS is away.
    """
    return {
        actor["Name"]: actor["Pid"] != 0
        for state in STATES
        for actor in ray_state.actor_table(None, actor_state_name=state).values()
    }


# --- what a worker needs ------------------------------------------------------------------------


def selector_of(pool: PoolSettings) -> dict[str, str]:
    """Return the pool's label selector as Ray takes it: `in(a, b)` would match no b."""
    return {key: value.replace(" ", "") for key, value in pool.label_selector.items()}


def has_labels(node: Node, selector: dict[str, str]) -> bool:
    """Whether the node has labels that fit, by the very rules of Ray's scheduler."""
    fits: bool = node_labels_match_selector(node["Labels"], selector)
    return fits


def lacking(pool: PoolSettings, nodes: Sequence[Node], which: str = "") -> str:
    """Return why none of these nodes could hold a worker, were it empty; "" if one could.

    `which` says, after "no node", which nodes these are.
    """
    selector = selector_of(pool)
    labelled = [node for node in nodes if has_labels(node, selector)]
    if not labelled:
        return _labels_lacking(selector, nodes, which)
    totals = [node["Resources"] for node in labelled]
    which += f" with {_labels(selector)}" if selector else ""
    for name, amount in pool.shape.items():
        largest = max(total.get(name, 0.0) for total in totals)
        if largest < amount:
            return f"no node{which} has {name}: {amount:g} (the largest has {largest:g})"
    if any(all(total.get(n, 0.0) >= x for n, x in pool.shape.items()) for total in totals):
        return ""
    shape = ", ".join(f"{name}: {amount:g}" for name, amount in pool.shape.items())
    return f"no node{which} has {shape} together"


def _labels_lacking(selector: dict[str, str], nodes: Sequence[Node], which: str) -> str:
    for key, value in selector.items():
        if not any(has_labels(node, {key: value}) for node in nodes):
            if value.startswith("!"):
                return f"every node{which} has {_labels({key: value[1:]})}"
            return f"no node{which} has {_labels({key: value})}"
    return f"no node{which} has {_labels(selector)} together"


def _labels(selector: dict[str, str]) -> str:
    pairs = ", ".join(f"{key}={value}" for key, value in selector.items())
    return f"the label{'s' if len(selector) > 1 else ''} {pairs}"
