"""A Drayman of one's own for a benchmark: `drayman up` on a free port and a fresh folder.

Nothing of a Ray or a Drayman around this process reaches it, so a benchmark may run as a Ray job.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from service.client import Client
from service.edge import free_port
from service.runfile import RunFile, RunFolder

__all__ = ["ROOT", "Server", "clean_environment", "running"]

ROOT = Path(__file__).resolve().parent.parent
#: Between questions to the server whether it is done, which cost it some milliseconds each.
LOOK_S = 0.1
STOP_S = 60.0
#: Outer settings that would win over those of the Ray that is started here.
FOREIGN = ("RAY_", "DRAYMAN_", "SERVE_")


@dataclass(frozen=True)
class Server:
    """A running Drayman."""

    url: str
    token: str
    pid: int
    store: Path
    run: RunFile

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = httpx.URL(self.url)
        return url.host, url.port or 80

    @property
    def headers(self) -> dict[str, str]:
        """What signs a request in."""
        return {"Authorization": f"Bearer {self.token}"}

    def client(self) -> httpx.Client:
        """Return an HTTP client that is signed in."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=120, trust_env=False)

    def api(self) -> Client:
        """Return the client that users have."""
        return Client(self.url, self.token, patience_s=60.0)

    def queue(self) -> dict[str, Any]:
        """Return the queue that benchmarks use."""
        with self.api() as api:
            return next(queue for queue in api.queues() if queue["name"] == "default")

    def slots(self) -> int:
        """Return how many handlers of that queue run at once."""
        with self.api() as api:
            return sum("default" in worker["queues"] for worker in api.workers())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Run nothing within the block."""
        with self.api() as api:
            api.pause("default")
            try:
                yield
            finally:
                api.resume("default")

    def drain(self) -> None:
        """Return once nothing waits or runs."""
        while (queue := self.queue())["ready"] + queue["leased"]:
            time.sleep(LOOK_S)


def clean_environment() -> dict[str, str]:
    """Return the environment without anything of a Ray or a Drayman around this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path}


@contextlib.contextmanager
def running(
    *options: str, module: tuple[str, ...] = ("service.cli", "up", "--jobs", "benchmarks.jobs")
) -> Iterator[Server]:
    """Run `drayman up`, or a module that does the like, with these options; stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="drayman-bench-") as folder:
        home, store, port = Path(folder) / "home", Path(folder) / "store", free_port()
        scratch = Path(folder) / "tmp"
        scratch.mkdir()
        log = (Path(folder) / "log").open("w+")
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", *module, "--port", str(port), "--store", str(store)),
                *("--no-dashboard", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            # Keepers that a benchmark kills leave their scratch folders behind.
            env=clean_environment() | {"DRAYMAN_HOME": str(home), "TMPDIR": str(scratch)},
        )
        try:
            said = _until_ready(process, log)
            run = RunFolder(home).read(port)
            assert run is not None, "whoever says its url has written its run file"
            yield Server(said["url"], said["token"], process.pid, store, run)
        finally:
            _stop(process)
            log.close()


def _until_ready(process: "subprocess.Popen[str]", log: IO[str]) -> dict[str, str]:
    said: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        name, _, value = line.strip().partition(": ")
        said[name] = value
        if {"url", "token"} <= said.keys():
            return said
    code = process.wait()
    log.seek(0)
    raise RuntimeError(f"drayman up ended early, exit code {code}: {said}\n{log.read()}")


def _stop(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
