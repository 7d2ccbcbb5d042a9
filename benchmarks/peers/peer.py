"""One system with its broker running: a producer that obeys, workers that come and go.

The producer is `adapters/produce.py` in the system's own environment; what it does is counted in
shared memory. Nothing here knows what is measured.
"""

import contextlib
import json
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.brokers import BROKERS, Broker
from benchmarks.peers.counts import Counts, Passed
from benchmarks.peers.install import environment, node_modules
from benchmarks.peers.processes import Failed, descendants, end, last_line, start
from benchmarks.peers.systems import System

__all__ = ["ADAPTERS", "ROOT", "Peer", "running", "temporary"]

ADAPTERS = Path(__file__).resolve().parent / "adapters"
ROOT = ADAPTERS.parent.parent.parent

#: Between two tries to reach a worker that is still starting.
TRY_S, TRIES, A_TRY = 0.3, 200, 4
#: What a worker may still do after its first job, like talking to its neighbours.
SETTLED_S = 1.0
ANSWER_S = 300.0


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """Make a folder that other accounts may pass through, for PostgreSQL's; drop it at the end."""
    # Short, as Ray puts sockets 65 characters below it and a socket's path may have 107.
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(system: System) -> Iterator["Peer"]:
    """Install the system where needed, run its broker, and end all of it."""
    python, env = _environment(system)
    with temporary() as folder, contextlib.closing(Counts()) as counts:
        (folder / "broker").mkdir()
        with BROKERS[system.broker](folder / "broker") as broker:
            peer = Peer(system, broker, counts, folder, python, env)
            try:
                yield peer
            except Failed as failure:
                raise Failed(f"{failure}; {last_line(peer.log)}") from failure
            finally:
                peer.stop()


def _environment(system: System) -> tuple[Path, dict[str, str]]:
    if system.is_node:
        return Path("node"), {"PEER_MODULES": str(node_modules(system.environment))}
    if system.environment == "ray":
        return Path(sys.executable), {}
    return environment(system.environment), {}


class Peer:
    """A system whose broker runs. Its log is what its programs said, for a note on a failure."""

    def __init__(
        self, system: System, broker: Broker, counts: Counts, folder: Path, python: Path,
        env: dict[str, str],
    ) -> None:  # fmt: skip
        self.system, self.broker, self.counts = system, broker, counts
        self.log = folder / "log"
        self.log.touch()
        self._python = python
        self._env = {
            **env, **system.env,
            "PYTHONPATH": str(ADAPTERS),
            "PEER_BROKER": broker.url,
            "PEER_COUNTS": str(counts.path),
            "PEER_FOLDER": str(folder),
            # What is killed leaves things behind.
            "TMPDIR": str(folder),
        }  # fmt: skip
        if system.environment == "ray":
            self._env |= _ray_environment(folder)
        self.workers: list[subprocess.Popen[str]] = []
        self.producer: subprocess.Popen[str] | None = None
        self.has_bulk = False
        #: Jobs that ran more than once, of all that were watched.
        self.twice = 0

    def fresh(self) -> None:
        """Start over: no workers, an empty broker, a new producer."""
        self.stop()
        self.broker.clear()
        words = [str(self._python), "produce.py", self.system.adapter]
        if self.system.is_node:
            words[1:] = [self.system.adapter, "produce"]
        self.producer = start(
            words, log=self.log, cwd=ADAPTERS, env=self._env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.has_bulk = self.answer()["bulk"]

    def start_workers(self, at_least: int = 1) -> None:
        """Start the workers the system has; the same again where two must die apart."""
        commands = list(self.system.workers)
        while len(commands) < at_least:
            commands += self.system.workers
        for i, command in enumerate(commands):
            words = command.format(
                python=self._python, bin=self._python.parent, url=self.broker.url, i=i
            )
            self.workers.append(
                start(shlex.split(words), log=self.log, cwd=ADAPTERS, env=self._env)
            )

    def warm_up(self) -> None:
        """Run a few jobs until two processes have run one, or it is clear that only one will."""
        seen: set[int] = set()
        for attempt in range(TRIES):
            numbers = self.counts.take_timed(A_TRY)
            self.ask("one", numbers)
            time.sleep(TRY_S)
            self._require_workers()
            seen |= {self._root_of(pid) for n in numbers if (pid := self.counts.started(n)[1])}
            # Some hand all of so little work to the worker that asked first; of a job that ran in
            # a process of its own (0) no one knows any more whose it was.
            if len(seen - {0}) >= 2 or (seen and attempt > TRIES / 10):
                time.sleep(SETTLED_S)
                return
        raise Failed("no worker took a job")

    def ask(self, do: str, numbers: range, **with_: float) -> dict[str, Any]:
        """Have the producer enqueue these; return what it says of it."""
        self.order(do, numbers, **with_)
        return self.answer()

    def order(self, do: str, numbers: range, **with_: float) -> None:
        """Have the producer begin; `answer` waits for its end."""
        assert self.producer is not None
        assert self.producer.stdin is not None
        order = {"do": do, "first": numbers.start, "count": len(numbers), "with": with_}
        try:
            self.producer.stdin.write(json.dumps(order) + "\n")
            self.producer.stdin.flush()
        except BrokenPipeError:
            raise Failed("the producer ended early") from None

    def answer(self) -> dict[str, Any]:
        """Return what the producer says of the last order."""
        assert self.producer is not None
        assert self.producer.stdout is not None
        readable, _, _ = select.select([self.producer.stdout], [], [], ANSWER_S)
        line = self.producer.stdout.readline() if readable else ""
        if not line:
            raise Failed("the producer ended early" if readable else "the producer hangs")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def watch(self, numbers: range) -> Passed:
        """Wait until all of these ran; remember how many ran twice."""
        passed = self.counts.watch(numbers, self._is_alive)
        self.twice += self.counts.twice(numbers)
        return passed

    def stop(self) -> None:
        """End producer and workers."""
        self.stop_workers()
        if self.producer is not None:
            # Ray's driver takes its raylet and workers along where it is asked.
            end(self.producer, politely_s=5.0 if self.system.is_embedded else 0.0)
            self.producer = None

    def stop_workers(self) -> None:
        """End the workers."""
        end(*self.workers)
        self.workers = []

    def kill_worker(self, pid: int) -> None:
        """End the worker one of whose processes this is, and all its processes, by SIGKILL."""
        roots = [worker for worker in self.workers if worker.pid == self._root_of(pid)]
        if roots:
            end(*roots)
            return
        psutil.Process(pid).kill()

    @property
    def worker_pids(self) -> list[int]:
        """Who has the work: the workers, or what the producer started."""
        if not self.system.is_embedded or self.producer is None:
            return [worker.pid for worker in self.workers]
        return [p.pid for p in psutil.Process(self.producer.pid).children()]

    @property
    def pids(self) -> list[int]:
        """All that the work takes: broker, workers, producer."""
        producer = [self.producer.pid] if self.producer else []
        return [*self.broker.pids, *(worker.pid for worker in self.workers), *producer]

    def _root_of(self, pid: int) -> int:
        # One worker with two processes counts twice, two workers with one each too.
        if len(self.workers) < 2:
            return pid
        for worker in self.workers:
            if any(process.pid == pid for process in descendants([worker.pid])):
                return worker.pid
        return 0

    def _is_alive(self) -> bool:
        return all(worker.poll() is None for worker in self.workers)

    def _require_workers(self) -> None:
        if not self._is_alive():
            raise Failed("a worker ended early")


def _ray_environment(folder: Path) -> dict[str, str]:
    # As Drayman's own Ray: a token required, loopback only, no lower priority for workers.
    from service.head import environment as head_environment

    return head_environment(folder / "token")
