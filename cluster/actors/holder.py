"""Ephemeral outputs in Ray's object store: a holder on each node, and how workers reach it.

    child -file-> worker -path-> holder of this node: ray.put
    child <-file- worker <-object- Ray <-reference- holder of the node that made it

Rule 1: an object dies with the process that put it (Ray 2.56 took `ray.put(_owner=)` away), and a
worker may go at any time: so the holder reads the file and puts it itself, and does nothing else.
Rule 2: nothing that a job may still read is dropped for what comes after: a holder that is full
says so, and the file goes to the store. Room is made by jobs that ended. Rule 3: what Ray cannot
give is gone, and whoever asked has it made again; a holder that died is followed by an empty one.
"""

import asyncio
import mmap
import os
import pickle
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import ray
import structlog
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.port import RayManager, manager_handle, raylet_gone, said
from cluster.protocol import EPHEMERAL, Refused, encode
from cluster.settings import NAMESPACE
from cluster.slim import rarely_collect, without_pandas
from cluster.telemetry import configure_logging
from cluster.wire import ManagerAway
from jobs.errors import DraymanError, InvalidInput, NotFound, Unavailable

__all__ = ["HOLDER_PREFIX", "RayHolder", "Shelf", "sweep"]

log = structlog.get_logger(__name__)

HOLDER_PREFIX = "holder-"
#: One file may take this part of the room.
FILE_PART = 4
#: How often a holder asks which of the jobs whose files it has are over, of how many at a time,
#: and how long it waits for that.
SWEEP_S, SWEEP_JOBS, ASK_S = 2.0, 50, 10.0
#: A full one asks again after so long, if it is asked for more.
PRESSED_S = 1.0
#: A holder that has nothing, or whose manager is gone, ends itself after so long.
IDLE_S = 300.0
#: Holding a file, the start of the holder's process included. What takes longer is stored, before
#: an `async def` handler counts as blocking its loop; the holder comes up for those after it.
HOLD_S = 20.0
#: A node that is out of reach may come back; what it has can be made again, so this is short.
OUT_OF_REACH_S, PAUSE_S = 20.0, 0.2
#: Holders of one node that died one after the other under one file.
TRIES = 3
CONCURRENCY = 1_000
_ENDED = frozenset({"completed", "failed", "cancelled"})


@dataclass(slots=True)
class _Held:
    attempt: int
    size: int
    #: None while it is being put.
    ref: Any = None


class Shelf:
    """What one node holds, by `<job>/<task>/<attempt>/<name>`, within its room."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max, self.used = bytes_max, 0
        #: By job, then by task and name.
        self._jobs: dict[str, dict[tuple[str, str], _Held]] = {}

    @property
    def jobs(self) -> list[str]:
        """The jobs whose files these are."""
        return list(self._jobs)

    def reserve(self, key: str, size: int) -> bool:
        """Make sure of room for a file; return whether there is any. Raises InvalidInput.

        An earlier attempt's file of that name goes: it is made again because it counts no more.
        """
        job, task, attempt, name = _parts(key)
        limit = self.bytes_max // FILE_PART
        if size > limit:
            told = f"{name!r} has {size} bytes, an ephemeral file {limit} at most"
            raise InvalidInput("ephemeral", f"{told}; keep it without ephemeral=True")
        held = self._jobs.get(job, {}).get((task, name))
        if held is not None and held.attempt > attempt:
            return False
        freed = held.size if held is not None else 0
        if self.used + size - freed > self.bytes_max:
            return False
        self.used += size - freed
        self._jobs.setdefault(job, {})[task, name] = _Held(attempt, size)
        return True

    def put(self, key: str, ref: Any) -> None:
        """Keep the object of a file that has room, unless that was taken from it meanwhile."""
        held = self._find(key)
        if held is not None:
            held.ref = ref

    def drop(self, key: str) -> None:
        """Let go of a file, or of its room."""
        job, task, _, name = _parts(key)
        held = self._find(key)
        if held is not None:
            self.used -= held.size
            del self._jobs[job][task, name]

    def drop_job(self, job: str) -> None:
        """Let go of all that a job kept."""
        self.used -= sum(held.size for held in self._jobs.pop(job, {}).values())

    def put_last(self, job: str) -> None:
        """Let a job be the last of `jobs`."""
        if job in self._jobs:
            self._jobs[job] = self._jobs.pop(job)

    def ref(self, key: str) -> Any:
        """Return the object of a file. Raises NotFound."""
        held = self._find(key)
        if held is None or held.ref is None:
            raise NotFound("file", key)
        return held.ref

    def has(self, key: str) -> bool:
        """Whether a file is here."""
        held = self._find(key)
        return held is not None and held.ref is not None

    def _find(self, key: str) -> _Held | None:
        job, task, attempt, name = _parts(key)
        held = self._jobs.get(job, {}).get((task, name))
        return held if held is not None and held.attempt == attempt else None


async def sweep(shelf: Shelf, call: Callable[[bytes], Awaitable[bytes]]) -> None:
    """Let go of the files of jobs that are over: of some jobs, the others next time.

    `call` is the manager's. Raises what it raises, or answers; the files stay then.
    """
    for job in shelf.jobs[:SWEEP_JOBS]:
        reply = await call(encode({"op": "job", "job_id": job}))
        kind, body = reply[:1], reply[1:]
        if kind == b"-":
            raise msgspec.json.decode(body, type=Refused).exception()
        # `~`: it is in no memory but history's.
        if kind == b"~" or msgspec.json.decode(body, type=_Status).status in _ENDED:
            shelf.drop_job(job)
        else:
            shelf.put_last(job)


class _Status(msgspec.Struct):
    """What a holder reads of a JobView."""

    status: str


def _parts(key: str) -> tuple[str, str, int, str]:
    job, task, attempt, name = key.split("/")
    return job, task, int(attempt), name


class Holder:
    """The holder of one node as an actor. Detached: workers come and go."""

    async def __init__(self, bytes_max: int) -> None:  # type: ignore[misc]  # Ray awaits it
        configure_logging()
        without_pandas()
        self._shelf = Shelf(bytes_max)
        self._manager = RayManager(manager_handle())
        self._sweeping = asyncio.Lock()
        self._swept_s = 0.0
        #: When it last had something that a living manager knows of.
        self._needed_s = time.monotonic()
        rarely_collect()
        loop = asyncio.get_running_loop()
        self._tending = loop.create_task(self._tend())
        self._node = loop.create_task(_leave_with_node())

    async def hold(self, key: str, path: str) -> bool:
        """Put what a file of this node has; return whether there was room. Raises InvalidInput."""
        size = os.path.getsize(path)  # noqa: ASYNC240 - of a file just written on this machine
        if not self._shelf.reserve(key, size):
            await self._sweep(PRESSED_S)
            if not self._shelf.reserve(key, size):
                return False
        try:
            ref = await asyncio.to_thread(_put, path)
        except BaseException:
            self._shelf.drop(key)
            raise
        self._shelf.put(key, ref)
        return True

    async def ref(self, key: str) -> list[Any]:
        """Return the reference to a file, in a list, lest Ray resolve it. Raises NotFound."""
        return [self._shelf.ref(key)]

    async def copy(self, key: str, into: str) -> None:
        """Write what is held to a file of this node. Raises NotFound, Unavailable."""
        try:
            data = await self._shelf.ref(key)
        except RayError as error:
            log.warning("ephemeral_lost", key=key, error=_line(error))
            self._shelf.drop(key)
            raise NotFound("file", key) from error
        await _write(Path(into), data)

    async def missing(self, keys: list[str]) -> list[str]:
        """Return those that are not here."""
        return [key for key in keys if not self._shelf.has(key)]

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            heard = await self._sweep(0.0)
            if heard and self._shelf.jobs:
                self._needed_s = time.monotonic()
            elif time.monotonic() - self._needed_s > IDLE_S:
                log.info("holder_ends", holds_bytes=self._shelf.used, manager_heard=heard)
                os._exit(0)

    async def _sweep(self, unless_within_s: float) -> bool:
        """Let go of the files of jobs that are over; return whether the manager answered."""
        async with self._sweeping:
            if time.monotonic() - self._swept_s < unless_within_s:
                return True
            try:
                async with asyncio.timeout(ASK_S):
                    await sweep(self._shelf, self._manager.call)
            except (ManagerAway, DraymanError, RayError, TimeoutError) as error:
                log.warning("holder_sweep_failed", error=str(error), next_try_s=SWEEP_S)
                return False
            finally:
                self._swept_s = time.monotonic()
            return True


async def _leave_with_node() -> None:
    """End with the raylet: the objects were in its memory."""
    await raylet_gone()
    os._exit(0)


async def _write(path: Path, data: Any) -> None:
    try:
        await asyncio.to_thread(path.write_bytes, data)
    except OSError as error:
        raise Unavailable(f"an input could not be written here: {error}") from error


def _put(path: str) -> Any:
    """Put a file's bytes such that whoever gets them need not copy them out of shared memory."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return ray.put(pickle.PickleBuffer(b""))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            buffer = pickle.PickleBuffer(data)
            try:
                return ray.put(buffer)
            finally:
                buffer.release()


class RayHolder:
    """The holders as the workers of one node reach them (`cluster.worker.ephemeral.Holder`)."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._node: str = ray.get_runtime_context().get_node_id()
        #: By node.
        self._handles: dict[str, Any] = {}
        self._starting = asyncio.Lock()

    async def hold(self, key: str, path: Path) -> str | None:
        """Hold a file; None if there is no room, or no holder."""
        for _ in range(TRIES):
            handle = None
            try:
                async with asyncio.timeout(HOLD_S):
                    handle = await self._own()
                    held = await handle.hold.remote(key, str(path))
            except RayTaskError as error:
                if isinstance(refused := said(error), InvalidInput):
                    raise refused from error
                log.warning("ephemeral_not_held", key=key, error=_line(error), next="it is stored")
                return None
            except TimeoutError:
                log.warning("ephemeral_not_held", key=key, waited_s=HOLD_S, next="it is stored")
                return None
            except (RayError, ValueError) as error:  # ValueError: its name is that of one that died
                log.warning("holder_failed", error=_line(error), next="another one is started")
                self._forget(self._node, handle)
                await asyncio.sleep(PAUSE_S)
            else:
                return f"{EPHEMERAL}{self._node}/{key}" if held else None
        return None

    async def bring(self, path: str, into: Path) -> None:
        """Write what is held to a file. Raises NotFound, or Unavailable if it cannot be written."""
        node, key = _node_and_key(path)

        async def get(handle: Any) -> Any:
            [ref] = await handle.ref.remote(key)
            return await ref

        if node == self._node:  # one call less, and no reference to keep count of
            await self._asked(node, lambda handle: handle.copy.remote(key, str(into)))
        else:
            await _write(into, await self._asked(node, get))

    async def missing(self, paths: list[str]) -> list[str]:
        """Return those that are gone."""
        by_node: dict[str, list[str]] = {}
        for path in paths:
            node, key = _node_and_key(path)
            by_node.setdefault(node, []).append(key)
        found = await asyncio.gather(*(self._missing(n, keys) for n, keys in by_node.items()))
        return [path for paths_of_node in found for path in paths_of_node]

    async def _missing(self, node: str, keys: list[str]) -> list[str]:
        try:
            gone = await self._asked(node, lambda handle: handle.missing.remote(keys))
        except NotFound:
            gone = keys
        return [f"{EPHEMERAL}{node}/{key}" for key in gone]

    async def _asked(self, node: str, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """Return what the holder of a node answers. Raises NotFound if it is not there."""
        give_up_s = time.monotonic() + OUT_OF_REACH_S
        while True:
            handle = await self._holder_of(node)
            try:
                return await ask(handle)
            except ActorUnavailableError as error:
                if time.monotonic() > give_up_s:
                    raise NotFound("holder of node", node) from error
                await asyncio.sleep(PAUSE_S)
            except RayTaskError as error:
                if isinstance(refused := said(error), DraymanError):
                    raise refused from error
                log.error("holder_broke", node=node, error=str(error))
                raise NotFound("holder of node", node) from error
            except RayError as error:
                log.warning("ephemeral_lost", node=node, error=_line(error))
                self._forget(node, handle)
                raise NotFound("holder of node", node) from error

    async def _own(self) -> Any:
        async with self._starting:
            if self._node not in self._handles:
                self._handles[self._node] = await asyncio.to_thread(self._start)
        return self._handles[self._node]

    def _start(self) -> Any:
        """Start the holder of this node, or find the one that runs."""
        here = NodeAffinitySchedulingStrategy(self._node, soft=False)
        actor = ray.remote(Holder).options(
            name=f"{HOLDER_PREFIX}{self._node}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=CONCURRENCY,
            scheduling_strategy=here,
        )
        return actor.remote(self._bytes_max)

    async def _holder_of(self, node: str) -> Any:
        if node not in self._handles:
            name = f"{HOLDER_PREFIX}{node}"
            try:
                found = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
            except ValueError as error:
                raise NotFound("holder of node", node) from error
            self._handles[node] = found
        return self._handles[node]

    def _forget(self, node: str, handle: Any) -> None:
        if handle is not None and self._handles.get(node) is handle:
            del self._handles[node]


def _node_and_key(path: str) -> tuple[str, str]:
    node, _, key = path.removeprefix(EPHEMERAL).partition("/")
    return node, key


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
