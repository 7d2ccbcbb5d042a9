"""A Drayman of one's own for a benchmark: `drayman up` on a free port and a fresh folder."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

__all__ = ["Server", "running"]

READY_S = 180


@dataclass(frozen=True)
class Server:
    """Where a running Drayman answers, and with which token."""

    url: str
    token: str
    pid: int
    store: Path

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = httpx.URL(self.url)
        return url.host, url.port or 80

    def client(self) -> httpx.Client:
        """Return an HTTP client that is signed in."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)


@contextlib.contextmanager
def running(*options: str) -> Iterator[Server]:
    """Run `drayman up` with these options; stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    drayman = Path(sys.executable).with_name("drayman")
    with tempfile.TemporaryDirectory(prefix="drayman-bench-") as folder:
        store = Path(folder) / "store"
        process = subprocess.Popen(
            [
                *(str(drayman), "up", "--port", str(port), "--store", str(store)),
                *("--jobs", "benchmarks.jobs", "--no-dashboard", *options),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            said = _until_ready(process)
            yield Server(said["url"], said["token"], process.pid, store)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _until_ready(process: "subprocess.Popen[str]") -> dict[str, str]:
    said: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        name, _, value = line.strip().partition(": ")
        said[name] = value
        if {"url", "token"} <= said.keys():
            return said
    raise RuntimeError(f"drayman up ended early, exit code {process.wait()}: {said}")
