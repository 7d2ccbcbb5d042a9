"""The HTTP API over the real gateway and manager, in memory and in one process.

Nothing of Drayman is replaced. What runs jobs is scripted: `ScriptedWorker` speaks the manager's
protocol, as a worker does, and ends attempts the way a test says.
"""

import asyncio
import hashlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from cluster.config import Config, PoolSettings
from cluster.gateway import Gateway, ManagerAway
from cluster.history.reader import History
from cluster.ids import uuid7_maker
from cluster.manager import Manager, build
from cluster.protocol import (
    Assignment,
    FileInfo,
    Outcome,
    Output,
    Progress,
    Report,
    decode_orders,
    encode,
)
from cluster.settings import ClusterSettings
from cluster.store.memory import MemoryObjects
from jobs.context import Context
from jobs.definition import JobDefinition, job
from jobs.errors import DraymanError
from jobs.registry import Registry
from service.api_settings import ApiSettings
from service.app import create_app
from service.auth import Scope, TokenStore
from tests.support.cluster import InlineCompactor

__all__ = ["Away", "RunningApi", "ScriptedWorker", "file_in", "running_api"]


class Greeting(BaseModel):
    """Params with a nested field, a default and a limit."""

    model_config = ConfigDict(extra="forbid")

    name: str
    times: int = Field(default=1, ge=1, le=10)
    note: str = ""


@job("greet")
def greet(ctx: Context, params: Greeting) -> str:
    """Greet somebody."""
    return f"hello {params.name}"


@job("greet.once", unique_for_s=60.0, unique_by=("name",))
def greet_once(ctx: Context, params: Greeting) -> str:
    """Greet somebody, once a minute."""
    return f"hello {params.name}"


class RealClock:
    """The machine's clocks."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class Patience:
    """Time as the gateway waits for an absent manager: waiting passes it, and nothing else."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, delay_s: float) -> None:
        self._now += delay_s
        await asyncio.sleep(0.001)


class NoWorkers:
    """A port with nothing behind it: the pools have no workers of their own."""

    async def spawn(self, pool: PoolSettings) -> str:
        raise AssertionError("pools of size 0 need no workers")

    async def live(self) -> dict[str, str]:
        return {}

    async def watch(self, worker: str) -> str:
        await asyncio.Event().wait()
        return ""

    async def kill(self, worker: str) -> None:
        """There is nothing to end."""

    def unplaceable(self, pool: PoolSettings) -> str:
        return ""

    async def ask_for(self, wanted: list[tuple[PoolSettings, int]]) -> None:
        """There is nobody to ask."""


class Away:
    """The manager's port, with a switch: while `away`, nothing gets through."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self.away = False
        #: While set, submissions are held before they reach the manager.
        self.hold: asyncio.Event | None = None
        #: Set when a submission is held.
        self.held = asyncio.Event()

    async def submit(self, payload: bytes) -> bytes:
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        self._check()
        return await self._manager.submit(payload)

    async def call(self, payload: bytes) -> bytes:
        self._check()
        return await self._manager.call(payload)

    def _check(self) -> None:
        if self.away:
            raise ManagerAway("switched off by the test")


class ScriptedWorker:
    """Speaks the exchange by hand: takes one attempt at a time and ends it as told."""

    def __init__(self, manager: Manager, store: MemoryObjects) -> None:
        self._manager, self._store = manager, store
        self._number = self._applied = self._epoch = 0
        self._held: list[int] = []
        self._started: list[int] = []
        self._parked: asyncio.Future[bytes] | None = None

    async def take(self) -> Assignment:
        """Return the next assignment; it counts as started."""
        orders = await self._exchange(free=1)
        [assignment] = orders.assignments
        self._held.append(assignment.token)
        self._started.append(assignment.token)
        await self._exchange(progress=[Progress(assignment.token, 0.5, "half way")])
        return assignment

    async def succeed(
        self, result: Any = None, files: list[FileInfo] | None = None, ref: str | None = None
    ) -> None:
        """Take the next attempt and complete it; `ref` is where its result lies already."""
        assignment = await self.take()
        output = Output(msgspec.Raw(msgspec.json.encode(result)), None, files or [])
        if ref is not None:
            digest = hashlib.sha256(self._store.get(ref)).hexdigest()
            output = Output(result_ref=ref, files=files or [], result_sha256=digest)
        await self._end(assignment, "ok", output=msgspec.Raw(msgspec.json.encode(output)))

    async def fail(self, error: str, kind: str = "discarded", log: str = "") -> None:
        """Take the next attempt and end it badly; `discarded` is for good at once."""
        assignment = await self.take()
        await self._end(assignment, kind, error=error, cause="error", log=log)

    async def obey_stop(self, assignment: Assignment) -> None:
        """End an attempt that was asked to stop."""
        await self._end(assignment, "stopped", cause="cancel")

    async def _end(self, assignment: Assignment, kind: Any, **how: Any) -> None:
        now = time.time()
        self._held.remove(assignment.token)
        self._started.remove(assignment.token)
        await self._exchange(outcomes=[Outcome(assignment.token, kind, now, now, **how)])

    async def _exchange(self, **what: Any) -> Any:
        self._number += 1
        report = Report(
            worker="scripted",
            number=self._number,
            applied=self._applied,
            epoch=self._epoch,
            pool="cpu",
            queues=["default"],
            free=what.pop("free", 0),
            held=list(self._held) + [o.token for o in what.get("outcomes", ())],
            started=list(self._started),
            **what,
        )
        call = asyncio.ensure_future(self._manager.exchange(encode(report)))
        if self._parked is not None:  # this report released the one that was held
            self._note(await self._parked)
            self._parked = None
        if what.keys() == {"progress"}:  # without news it is held: let it lie, as a worker does
            self._parked = call
            await asyncio.sleep(0)
            return None
        return self._note(await call)

    def _note(self, reply: bytes) -> Any:
        orders = decode_orders(reply)
        self._applied, self._epoch = orders.number or self._applied, orders.epoch
        return orders


class RunningApi:
    """One API with everything behind it, and tokens to speak to it."""

    def __init__(
        self, app: FastAPI, manager: Manager, port: Away, store: MemoryObjects, tokens: TokenStore
    ) -> None:
        self.app, self.manager, self.port, self.store = app, manager, port, store
        self.tokens = tokens
        self.worker = ScriptedWorker(manager, store)
        self._clients: list[httpx.AsyncClient] = []

    def client(self, tenant: str = "acme", *scopes: Scope) -> httpx.AsyncClient:
        """Return a client with a token of the tenant; without scopes, submit and read."""
        token, _ = self.tokens.create(tenant, list(scopes) or ["submit", "read"])
        return self.anonymous({"Authorization": f"Bearer {token}"})

    def anonymous(self, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
        """Return a client that sends only these headers."""
        transport = httpx.ASGITransport(self.app)
        client = httpx.AsyncClient(
            transport=transport, base_url="http://drayman.test", headers=headers
        )
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Let go of everything."""
        for client in self._clients:
            await client.aclose()
        await self.manager.stop()


@asynccontextmanager
async def running_api(
    settings: ApiSettings | None = None,
    *,
    types: Iterable[JobDefinition] = (),
    tracer: Any = None,
) -> AsyncIterator[RunningApi]:
    """Start an API over a new store; `types` are known beside its own."""
    store = MemoryObjects()
    loop = asyncio.get_running_loop()

    def offload(function: Callable[..., Any], *args: Any) -> Any:
        return loop.run_in_executor(None, function, *args)

    def fatal(error: DraymanError) -> None:
        raise AssertionError(f"the manager would exit: {error}")

    pool = PoolSettings(name="cpu", queues=["default", "io"], min=0, max=0)
    manager = await build(
        ClusterSettings(store="memory://", config=Config(pools={"cpu": pool})),
        NoWorkers(),
        clock=RealClock(),
        offload=offload,
        draw=random.Random(1).random,
        nonce=lambda: uuid.uuid4().hex,
        on_fatal=fatal,
        compactor=InlineCompactor(store),
        store=store,
    )
    await manager.start("test")
    port = Away(manager)
    patience = Patience()
    gateway = Gateway(
        port,
        new_id=uuid7_maker(),
        incarnation=uuid.uuid4().hex,
        history=History(store),
        objects=store,
        wall=time.time,
        monotonic=patience.monotonic,
        sleep=patience.sleep,
    )
    app = create_app(
        gateway,
        Registry([greet, greet_once, *types]),
        store,
        settings or ApiSettings(run="run-1"),
        tracer=tracer,
    )
    running = RunningApi(app, manager, port, store, TokenStore(store))
    try:
        yield running
    finally:
        await gateway.close()
        await running.close()


def file_in(store: MemoryObjects, name: str, data: bytes, media_type: str) -> FileInfo:
    """Put an output file into the store, as a worker does."""
    path = f"results/job/task/1/files/{name}"
    store.put(path, data)
    return FileInfo(name, path, len(data), hashlib.sha256(data).hexdigest(), media_type)
