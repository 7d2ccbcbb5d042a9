"""Where in the cluster a part may run: the store of one node is on no other."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.settings import ClusterSettings
from jobs.errors import InvalidInput

__all__ = ["placement", "require_one_node"]


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
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    if settings.needs_one_node and nodes > 1:
        raise InvalidInput(
            "store",
            f"{settings.journal or settings.store} is a folder of one node, but this Ray has "
            f"{nodes}; use a bucket, or say --shared-mount if every node has that folder mounted",
        )
