"""A whole Drayman as users start it: `drayman up`, in a session of its own.

Every process of it carries a `DRAYMAN_HOME` that no other has, by which it is found and ended.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from service.client import Client
from service.edge import free_port
from tests.support.weed import BUCKET_ENV, Weed

__all__ = [
    "BIN",
    "LIVE_JOBS",
    "ROOT",
    "START_S",
    "WAIT_S",
    "LiveDrayman",
    "kill",
    "processes_with",
    "run",
    "until",
]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LIVE_JOBS = "tests.support.live_jobs"

#: A shared machine may be slow. None of these is a promise, only an end to waiting.
START_S, WAIT_S = 180.0, 60.0

T = TypeVar("T")


def until(look: Callable[[], T], within_s: float = WAIT_S) -> T:
    """Wait until `look()` returns something true, and return that."""
    pause, deadline = threading.Event(), time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {seen!r}"
        pause.wait(0.02)
    return seen


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    """Wait until `holds()`; return whether it did in time."""
    pause, deadline = threading.Event(), time.monotonic() + within_s
    while not (held := holds()) and time.monotonic() < deadline:
        pause.wait(0.05)
    return held


def kill(*pids: int) -> None:
    """`kill -9`."""
    send(signal.SIGKILL, *pids)


def send(number: signal.Signals, *pids: int) -> None:
    """Send a signal to those that still live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class LiveDrayman:
    """One store and one port, on which Drayman is started once or again."""

    def __init__(
        self,
        folder: Path,
        *,
        jobs: str = LIVE_JOBS,
        cwd: Path = ROOT,
        options: Sequence[str] = (),
        bucket: Weed | None = None,
    ) -> None:
        self.folder, self.home = folder, folder / "home"
        self._bucket = bucket
        #: What `--store` is given: a folder, or where the tests run on S3, one in the bucket.
        self.store_url = str(folder / "store")
        if bucket is not None:
            self.store_url = bucket.url()
        elif beneath := os.environ.get(BUCKET_ENV):
            self.store_url = f"{beneath}/{uuid.uuid4().hex}"
        self.cwd, self.port = cwd, free_port()
        self.said: dict[str, str] = {}
        self._jobs, self._options = jobs, options
        self._log = folder / "up.log"
        self._driver: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.said["url"]

    @property
    def store(self) -> Path:
        """Where the store's files lie; skips a test that looks at them where they are in S3."""
        if "://" in self.store_url:
            pytest.skip("looks at files of the store")
        return Path(self.store_url)

    @property
    def environment(self) -> dict[str, str]:
        """What a shell next to it has."""
        own = {"DRAYMAN_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        return os.environ | own | (self._bucket.environment if self._bucket else {})

    def command(self, *arguments: str) -> list[str]:
        return [str(BIN / "drayman"), *arguments]

    def up(self) -> None:
        """Start it, and return once it said where it is."""
        options = ["--port", str(self.port), "--store", self.store_url, "--jobs", self._jobs]
        with self._log.open("w") as log:
            self._driver = subprocess.Popen(
                self.command("up", *options, *self._options),
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        last = "token" if "--no-dashboard" in self._options else "ray token file"
        until(lambda: self._read(last), START_S)

    def _read(self, last: str) -> bool:
        text = self._log.read_text()
        assert self._driver is not None
        assert self._driver.poll() is None, text
        self.said = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        return last in self.said and text.endswith("\n")

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line next to it."""
        return run(self.command(*arguments), env=self.environment, cwd=self.cwd, **options)

    def client(self) -> Client:
        """Return a client that outlasts a restart."""
        return Client(self.url, self.said["token"], patience_s=WAIT_S)

    def processes(self) -> dict[int, str]:
        """Return the command line of every process of it that lives, by id."""
        return processes_with(f"DRAYMAN_HOME={self.home}")

    def pid(self, title: str) -> int:
        """Return the process whose command line begins so."""
        return until(
            lambda: next((p for p, line in self.processes().items() if line.startswith(title)), 0)
        )

    def kill_everything(self, spare: Callable[[str], bool] = lambda line: False) -> None:
        """`kill -9` of all at once, as if the power went; none has time to act on another's end."""

        def living() -> set[int]:
            return {pid for pid, line in self.processes().items() if not spare(line)}

        stopped: set[int] = set()
        while started := living() - stopped:
            send(signal.SIGSTOP, *started)
            stopped |= started
        kill(*stopped)
        until(lambda: not living())
        if self._driver is not None:
            self._driver.wait(WAIT_S)

    def wait(self) -> int:
        """Return the exit code once `up` has ended by itself."""
        assert self._driver is not None
        return self._driver.wait(WAIT_S)

    def close(self, end_ray: Callable[[], None] = lambda: None) -> None:
        """Stop it as users do; whatever is left then is killed, and fails the test.

        `end_ray` ends a Ray that was only joined.
        """
        if self._driver is None:
            return
        if self._driver.poll() is None:
            self._driver.send_signal(signal.SIGTERM)
        try:
            self._driver.wait(WAIT_S)
            end_ray()
            left = self.processes()
        finally:
            self.kill_everything()
        assert not left, left


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = START_S,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with no terminal and both outputs as text."""
    return subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


def processes_with(mark: str) -> dict[int, str]:
    """Return the command lines of living processes that have `NAME=value` in their environment."""
    needle, found = f"{mark}\0".encode(), {}
    for pid in psutil.pids():
        # It may end between two looks; a zombie has no environment any more.
        with contextlib.suppress(OSError):
            if needle in Path(f"/proc/{pid}/environ").read_bytes():
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                found[pid] = line.replace(b"\0", b" ").decode(errors="replace").strip()
    return found
