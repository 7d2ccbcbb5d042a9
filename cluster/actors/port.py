"""The manager as gateways and workers reach it."""

import asyncio
import os
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from cluster.settings import NAMESPACE
from cluster.wire import Endpoint, ManagerAway, NoWire, Wire
from jobs.errors import DraymanError, Unavailable

__all__ = ["CALLS", "FATAL_EXIT", "MANAGER", "RayManager", "manager_handle", "raylet_gone", "said"]

MANAGER = "manager"
#: What gateways and workers call, in the order that stands for their names on a connection.
CALLS = ("submit", "exchange", "record", "call")
#: Exit code of an actor that must not go on. Ray starts another manager, which replays the journal.
FATAL_EXIT = 70
#: How often it is looked whether the raylet lives.
RAYLET_LOOK_S = 0.1


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
            raise said(error) from error


async def raylet_gone() -> None:
    """Return when the raylet, the parent of this process, is gone.

    Ray leaves an actor running then, beside the one that takes its place (seen with Ray 2.60).
    """
    raylet = os.getppid()
    while os.getppid() == raylet:  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(RAYLET_LOOK_S)


def manager_handle() -> Any:
    """Return the running manager's handle. Raises Unavailable if there is none."""
    try:
        return ray.get_actor(MANAGER, namespace=NAMESPACE)
    except ValueError as error:
        raise Unavailable("no queue manager runs on this Ray cluster; start it first") from error


def said(error: RayTaskError) -> Exception:
    """Return the error the callee raised, if it is one of ours."""
    cause = error.cause
    return cause if isinstance(cause, DraymanError) else error
