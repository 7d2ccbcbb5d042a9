"""What a POST costs that enqueues a job elsewhere: FastAPI before other queues, and Ray Serve.

FastAPI runs in one process of uvicorn with uvloop, httptools and no access log, and no worker runs.
The load is that of Drayman's own figures (`benchmarks.load`). `fastapi` enqueues nothing: it is
the ceiling of the others.
"""

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.load import Load, fire
from benchmarks.peers.brokers import BROKERS
from benchmarks.peers.counts import Counts
from benchmarks.peers.install import environment
from benchmarks.peers.peer import ADAPTERS, ROOT, temporary
from benchmarks.peers.processes import LOOPBACK, Failed, end, free_port, last_line, start

__all__ = ["APIS", "Api", "post_to"]

BODY = json.dumps({"n": 0, "payload": "x" * 80}).encode()
MANY = 64
READY_S = 120.0
#: Serve takes on a new configuration of its edge once more after the first answer.
SETTLED_S = 2.0

AT_MANY, AT_ONE = f"POST, {MANY} connections", "POST, 1 connection, p50"


@dataclass(frozen=True)
class Api:
    """An HTTP server to load."""

    name: str
    environment: str
    broker: str = "none"
    adapter: str = ""
    note: str = ""

    def answers_to(self, name: str) -> bool:
        """Tell whether a name given by a person means this one."""
        return name in (self.name, self.name.removesuffix(" (fsync)"))


_CELERY = {
    "environment": "celery",
    "adapter": "use_celery",
    "note": "called in an `async def`: faster than in threads, but holds others up",
}

APIS = [
    Api("fastapi", "arq", note="enqueues nothing"),
    Api("fastapi arq", "arq", "redis", "use_arq"),
    Api("fastapi arq (fsync)", "arq", "redis-fsync", "use_arq"),
    Api("fastapi celery-redis", broker="redis", **_CELERY),
    Api("fastapi celery-redis (fsync)", broker="redis-fsync", **_CELERY),
    Api("fastapi celery-rabbitmq", broker="rabbitmq", **_CELERY),
    Api("ray serve", "ray", note="enqueues nothing; HAProxy before it"),
]


def post_to(api: Api, *, seconds: float, repeats: int, report: Callable[[Figure], None]) -> None:
    """Load one server, and report what it answered."""
    many: list[float] = []
    one: list[float] = []
    note = api.note
    try:
        with _serving(api) as port:
            _fire(port, MANY, seconds / 4)
            for _ in range(repeats):
                many.append(_fire(port, MANY, seconds).per_s)
                one.append(_fire(port, 1, seconds).percentile_ms(0.5))
    # As with the queues: whatever happens, the others are measured.
    except Exception as error:
        note = f"{type(error).__name__}: {error}"
    report(Figure("submit", api.name, AT_MANY, "/s", many, note))
    report(Figure("submit", api.name, AT_ONE, "ms", one, note))


def _fire(port: int, connections: int, seconds: float) -> Load:
    load = asyncio.run(
        fire((LOOPBACK, port), _request(port), connections=connections, seconds=seconds)
    )
    if set(load.statuses) != {202} or load.lost:
        raise Failed(f"answers {load.statuses}, connections lost {load.lost}")
    return load


def _request(port: int) -> bytes:
    return (
        f"POST /jobs HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY


@contextlib.contextmanager
def _serving(api: Api) -> Iterator[int]:
    with temporary() as folder, contextlib.closing(Counts()) as counts:
        (folder / "broker").mkdir()
        with BROKERS[api.broker](folder / "broker") as broker:
            env = {
                "PYTHONPATH": str(ADAPTERS),
                "PEER_BROKER": broker.url,
                "PEER_COUNTS": str(counts.path),
                "PEER_ADAPTER": api.adapter,
                "PEER_FOLDER": str(folder),
                "TMPDIR": str(folder),
            }
            serve = _ray_serve if api.environment == "ray" else _uvicorn
            with serve(api, folder, env) as port:
                yield port


@contextlib.contextmanager
def _uvicorn(api: Api, folder: Path, env: dict[str, str]) -> Iterator[int]:
    port = free_port()
    words = f"-m uvicorn api:app --host {LOOPBACK} --port {port} --loop uvloop --http httptools"
    python = str(environment(api.environment))
    command = [python, *words.split(), "--no-access-log", "--log-level", "warning"]
    server = start(command, log=folder / "log", cwd=ADAPTERS, env=env)
    try:
        _wait_for_answer(port, folder / "log")
        yield port
    finally:
        end(server)


@contextlib.contextmanager
def _ray_serve(api: Api, folder: Path, env: dict[str, str]) -> Iterator[int]:
    from service.edge import Edge, EdgePlan
    from service.head import environment as head_environment

    port = free_port()
    plan = EdgePlan(Edge.HAPROXY, LOOPBACK, port, folder / "edge")
    env |= head_environment(folder / "token") | plan.environment()
    env["PYTHONPATH"] = f"{ROOT}:{ADAPTERS}"
    command = [sys.executable, str(ADAPTERS / "ray_serve.py"), str(port)]
    server = start(command, log=folder / "log", cwd=ROOT, env=env)
    try:
        _wait_for_answer(port, folder / "log")
        time.sleep(SETTLED_S)
        yield port
    finally:
        end(server, politely_s=10.0)


def _wait_for_answer(port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 5) as tried:
            tried.sendall(_request(port))
            if tried.recv(100).startswith(b"HTTP/1.1 202"):
                return
        time.sleep(0.2)
    raise Failed(f"no answer in {READY_S:g} s; {last_line(log)}")
