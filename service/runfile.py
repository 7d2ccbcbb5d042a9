"""What a running Drayman records about itself, so that the next one can clear up after it.

Rule 1: a process is known by its id *and* its start time, on one boot of one machine; a reused id
is never signalled. Rule 2: descendants nobody recorded are known by the run's nonce, which every
process of the run inherits in its environment. Rule 3: the lock tells whether the run lives: the
kernel releases it, however the holder died. Rule 4: everything here is for its owner alone.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec
import psutil

from jobs.errors import InvalidInput

__all__ = [
    "RUN_ENV",
    "ProcessRecord",
    "RunFile",
    "RunFolder",
    "end_processes",
    "find_descendants",
    "identify",
    "is_alive",
    "make_private",
    "state_dir",
]

#: Names the run in the environment of each of its processes.
RUN_ENV = "DRAYMAN_RUN"
HOME_ENV = "DRAYMAN_HOME"
#: Place of the start time in /proc/<pid>/stat, counted after the command's closing bracket.
STAT_STATE, STAT_STARTED = 0, 19
TERM_GRACE_S = 0.5


def state_dir() -> Path:
    """Return the folder for run files, tokens and logs: $DRAYMAN_HOME, or ~/.drayman."""
    return Path(os.environ.get(HOME_ENV) or Path.home() / ".drayman")


class ProcessRecord(msgspec.Struct, frozen=True):
    """One process, beyond doubt: the id, when it started (in the kernel's ticks), on which boot."""

    what: str
    pid: int
    started: int
    boot: str


class RunFile(msgspec.Struct, kw_only=True):
    """One run on one port. Written by the process of `drayman up` alone."""

    nonce: str
    url: str
    host: str
    port: int
    edge: str
    store: str
    driver: ProcessRecord
    started_at: str
    #: Serves requests; until then the run is starting.
    ready: bool = False
    #: Ray's processes and HAProxy's, where this run started them.
    processes: list[ProcessRecord] = []
    #: Everything temporary: Ray's session and logs, the edge's configuration and sockets.
    folder: str = ""
    #: Started its own Ray, rather than joining one.
    owns_ray: bool = True
    ray_address: str = ""
    dashboard_url: str = ""
    ray_token_path: str = ""
    token_path: str = ""


def make_private(folder: Path) -> None:
    """Make a folder of the state's, for its owner alone. Raises InvalidInput."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            HOME_ENV, f"the folder {folder} can't be made: {error.strerror}; set another"
        ) from error


class RunFolder:
    """The runs of one user on this machine, one file a port."""

    def __init__(self, root: Path) -> None:
        self.root = root / "run"
        make_private(self.root)

    def path(self, port: int, suffix: str = "json") -> Path:
        """Return where the run on `port` keeps its file of this kind."""
        return self.root / f"{port}.{suffix}"

    def read(self, port: int) -> RunFile | None:
        """Return the run recorded for `port`; None if there is none, or none readable."""
        try:
            return msgspec.json.decode(self.path(port).read_bytes(), type=RunFile)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write(self, run: RunFile) -> None:
        """Replace the run's file, as a whole."""
        write_private(self.path(run.port), msgspec.json.format(msgspec.json.encode(run)))

    def remove(self, run: RunFile) -> None:
        """Forget the run and remove its folder. The tokens stay: shells may hold or name them."""
        if run.folder:
            shutil.rmtree(run.folder, ignore_errors=True)
        self.path(run.port).unlink(missing_ok=True)

    def all(self) -> list[RunFile]:
        """Return every recorded run, by port."""
        ports = sorted(int(path.stem) for path in self.root.glob("*.json") if path.stem.isdigit())
        return [run for port in ports if (run := self.read(port)) is not None]

    def is_locked(self, port: int) -> bool:
        """Tell whether a live `drayman up` holds the port."""
        try:
            self.lock(port).close()
        except InvalidInput:
            return True
        return False

    def lock(self, port: int) -> IO[str]:
        """Return a file that holds the port's lock until it is closed.

        Raises InvalidInput, naming the URL, if a live run holds it.
        """
        # Never deleted: two processes could then hold locks on two files of the same name.
        file = self.path(port, "lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            run = self.read(port)
            where = f"at {run.url} (process {run.driver.pid})" if run else "and is starting"
            raise InvalidInput(
                "port",
                f"a Drayman already runs on {port} {where}; stop it with "
                f"`drayman down --port {port}`, or choose another --port",
            ) from None
        return file


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, readable for its owner alone."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    os.replace(fresh, path)


def identify(pid: int, what: str) -> ProcessRecord | None:
    """Return the record of a living process; None if there is none with this id."""
    started = _started(pid)
    return None if started is None else ProcessRecord(what, pid, started, _boot())


def is_alive(process: ProcessRecord) -> bool:
    """Tell whether this very process, and not another of its number, still runs."""
    return process.boot == _boot() and _started(process.pid) == process.started


def read_pids(path: Path, what: str) -> list[ProcessRecord]:
    """Return the processes recorded in a file of JSON lines; none if it isn't there."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [ProcessRecord(what, line["pid"], line["started"], _boot()) for line in lines]


def find_descendants(nonce: str) -> list[ProcessRecord]:
    """Return every process that inherited the run's nonce, whoever its parent is by now."""
    if not nonce:
        return []
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(RUN_ENV) == nonce and process.pid != os.getpid():
                found.append(identify(process.pid, process.name()))
    return [record for record in found if record is not None]


def end_processes(processes: Iterable[ProcessRecord], grace_s: float = TERM_GRACE_S) -> int:
    """Ask the processes to end, kill those that don't within `grace_s`; return how many lived."""
    alive = [process for process in processes if is_alive(process)]
    count = len(alive)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            # It may end between the look and the signal.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        alive = _wait_ended(alive, grace_s)
    return count


def _wait_ended(processes: list[ProcessRecord], timeout_s: float) -> list[ProcessRecord]:
    deadline = time.monotonic() + timeout_s
    while (alive := [p for p in processes if is_alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def _started(pid: int) -> int | None:
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            return None if is_zombie else round(process.create_time() * 100)
        except psutil.NoSuchProcess:
            return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[STAT_STATE] in "ZX" else int(fields[STAT_STARTED])


def _boot() -> str:
    if sys.platform != "linux":
        return str(round(psutil.boot_time()))
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
