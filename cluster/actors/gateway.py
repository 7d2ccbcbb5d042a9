"""A gateway to the manager of this Ray."""

import time
import uuid
from typing import Any

from cluster.actors.port import RayManager
from cluster.gateway import Gateway
from cluster.history.reader import History
from cluster.ids import uuid7_maker
from cluster.store.objects import Objects

__all__ = ["connect_gateway"]


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
