"""The API of `tests.support.api` behind a real socket, and the command line before it."""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog
import uvicorn

from jobs.definition import JobDefinition
from service.cli import main
from tests.support.api import RunningApi, ScriptedWorker, running_api

# What the server logs in this process is no output of the command before it.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


class Server:
    """A running API in a thread of its own, with its loop to schedule work on."""

    def __init__(self, *types: JobDefinition) -> None:
        self.url, self._types = "", types
        self.loop: asyncio.AbstractEventLoop
        self.api: RunningApi
        self._ready = threading.Event()
        self._server: uvicorn.Server
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    @property
    def worker(self) -> ScriptedWorker:
        return self.api.worker

    def token(self, tenant: str = "acme", *scopes: Any) -> str:
        return self.api.tokens.create(tenant, list(scopes) or ["submit", "read"])[0]

    def do(self, step: Coroutine[Any, Any, Any]) -> Any:
        """Run a step on the server's loop; return what it returned."""
        return asyncio.run_coroutine_threadsafe(step, self.loop).result(20)

    def soon(self, step: Coroutine[Any, Any, Any]) -> None:
        """Start a step on the server's loop and go on."""
        asyncio.run_coroutine_threadsafe(step, self.loop)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(setattr, self._server, "should_exit", True)
        self._thread.join(20)

    async def _serve(self) -> None:
        async with running_api(types=self._types) as self.api:
            self.loop = asyncio.get_running_loop()
            config = uvicorn.Config(
                self.api.app,
                host="127.0.0.1",
                port=0,
                log_level="error",
                ws="none",
                lifespan="off",
                timeout_graceful_shutdown=1,  # streams of events would stay open
            )
            self._server = _Announced(config, self._listens)
            await self._server.serve()

    def _listens(self) -> None:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._ready.set()


class _Announced(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, listens: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = listens

    async def startup(self, *arguments: Any, **more: Any) -> None:
        await super().startup(*arguments, **more)
        self._announce()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()


class Ran(NamedTuple):
    """What a command said and ended with."""

    code: int
    out: str
    err: str


Drayman = Callable[..., Ran]


@pytest.fixture
def drayman(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Drayman:
    """Run the command line in this process, in an environment that knows of no Drayman."""
    for name in ("DRAYMAN_URL", "DRAYMAN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DRAYMAN_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["drayman", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def connected(server: Server, drayman: Drayman, monkeypatch: pytest.MonkeyPatch) -> Drayman:
    """The command line, told of the server, as a client that may submit and read."""
    monkeypatch.setenv("DRAYMAN_URL", server.url)
    monkeypatch.setenv("DRAYMAN_TOKEN", server.token())
    return drayman
