"""A whole Drayman in this process, on a port: real manager, workers, API and HTTP; only no Ray.

`python -m tests.support.dashboard` runs one with something to look at, for work on the dashboard.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from cluster.config import PoolSettings
from cluster.store.local import LocalObjects
from cluster.worker.worker import Worker, WorkerTimes
from jobs.registry import Registry
from service.api_settings import ApiSettings
from service.app import create_app
from service.auth import TokenStore
from service.client import Client
from service.edge import free_port
from tests.support.cluster import life
from tests.support.eventually import eventually

__all__ = ["Board", "board"]

JOBS = "tests.support.dashboard_jobs"
#: Their workers are started here, and are not to end for want of work.
POOLS = (
    PoolSettings(name="cpu", queues=["default", "slow"], min=0, max=0, idle_s=86_400),
    PoolSettings(
        name="io", queues=["io"], min=0, max=0, mode="async", concurrency=50, idle_s=86_400
    ),
)


class Board:
    """Where it listens, and who may use it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.tokens = TokenStore(LocalObjects(folder / "store"))
        self.token, _ = self.tokens.create("default", ["admin"], "tests")

    @property
    def link(self) -> str:
        """The link as `drayman up` prints it."""
        return f"{self.url}/#token={self.token}"

    def client(self) -> Client:
        return Client(self.url, self.token)


async def _run(
    one: Board, workers: int, ready: threading.Event, over: asyncio.Event, **settings: Any
) -> None:
    objects = LocalObjects(one.folder / "store")
    async with life(objects, pools=POOLS, **settings) as now:
        app = create_app(now.gateway, Registry.load([JOBS]), objects, ApiSettings())
        config = uvicorn.Config(app, port=one.port, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        started = [
            Worker(
                f"{pool.name}-{number}", pool.name, pool.queues, pool.concurrency, pool.mode,
                str(one.folder / "store"), [JOBS], now.manager, node="node-a",
                times=WorkerTimes.within(pool.heartbeat_timeout_s),
            )
            for pool in POOLS
            for number in range(1, workers + 1 if pool.name == "cpu" else 2)
        ]  # fmt: skip
        running = [asyncio.create_task(worker.run()) for worker in started]
        serving = asyncio.create_task(server.serve())
        sessions = now.manager._sessions
        await eventually(lambda: server.started and len(sessions) == len(started), within_s=20)
        ready.set()
        await over.wait()
        server.should_exit = server.force_exit = True
        await serving
        for worker in started:
            worker.stop()
        await asyncio.gather(*running)
        await now.gateway.close()


@contextmanager
def board(folder: Path, workers: int = 2, **settings: Any) -> Iterator[Board]:
    """Run one in a thread of its own."""
    one, ready = Board(folder), threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    def serve() -> None:
        # It ends what is left of streams, which closing the loop would leave to the collector.
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(_run(one, workers, ready, over, **settings))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        assert ready.wait(30), "it did not start"
        yield one
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)


def _show() -> None:
    """Run one with something to look at, until it is interrupted."""
    import tempfile
    import time

    with tempfile.TemporaryDirectory() as folder, board(Path(folder)) as one:
        print(one.link, flush=True)
        with one.client() as client:
            labels = {"customer": "ada", "<b>x</b>": "<img src=x onerror=alert(1)>"}
            for name in ("invoice", "picture", "film", "stock", "night", "flaky", "fail", "reject"):
                client.submit(f"shop.{name}", {}, labels=labels)
            client.submit("shop.crash", {})
            number = 0
            while True:
                number += 1
                client.submit("shop.sleep", {"seconds": 1 + number % 7}, priority=number % 3)
                if number % 5 == 0:
                    client.submit("shop.fail", {}, labels={"shift": "night"})
                client.submit("shop.echo", {"text": f"hello {number}"}, queue="slow")
                time.sleep(2.2)


if __name__ == "__main__":
    _show()
