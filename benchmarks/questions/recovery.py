"""How soon does work go on after `kill -9`?

A long job's child process, its keeper and its worker are killed at once, two seconds after the
job began, while another worker waits: how long until its body starts again there? And the manager
is killed: how long until a new submission is acknowledged, and until a newly submitted job runs?
What it doesn't show: machines that die, which Ray notices later than processes (`make chaos` kills
a node too, and counts what is lost).
"""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

from benchmarks.asking import DRAYMAN, Asked
from benchmarks.figures import Figure, percentile
from benchmarks.marks import marks_file
from benchmarks.processes import MANAGER, pids_of
from benchmarks.server import Server, running
from service.client import Client

__all__ = ["ask"]

JOB_S, HEAD_START_S = 20.0, 2.0
LOOK_S, WITHIN_S = 0.005, 120.0

T = TypeVar("T")


def ask(asked: Asked) -> Iterator[Figure]:
    """Kill workers, then managers."""
    with running(*asked.options) as server, tempfile.TemporaryDirectory() as folder:
        trials = range(asked.size(10, 2))
        yield from _figures(
            "child, keeper and worker killed: body starts elsewhere",
            [_kill_worker(server, Path(folder) / f"trial-{n}") for n in trials],
        )
        trials = range(asked.size(5, 1))
        accepted, ran = zip(*(_kill_manager(server) for _ in trials), strict=True)
        yield from _figures("manager killed: submission acknowledged", accepted)
        yield from _figures("manager killed: new job runs", ran)


def _figures(what: str, took: tuple[float, ...] | list[float]) -> Iterator[Figure]:
    note = f"of {len(took)} trials"
    yield Figure("recovery", DRAYMAN, f"{what}, p50", "s", [percentile(took, 0.5)], note)
    yield Figure("recovery", DRAYMAN, f"{what}, max", "s", [max(took)], note)


def _kill_worker(server: Server, book: Path) -> float:
    """Return the seconds from the kill to the second start of the job's body."""
    with server.api() as api:
        _until(lambda: server.slots() > 1)
        job = api.submit("bench.long", {"file": str(book), "seconds": JOB_S})
        _, child = _until(lambda: _starts(book))[0]
        time.sleep(HEAD_START_S)
        victims = [_worker(api, job["id"]), psutil.Process(child).ppid(), child]
        killed = time.time()
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        again, elsewhere = _until(lambda: _starts(book)[1:])[0]
        assert elsewhere not in victims, "killed processes start nothing"
        api.cancel(job["id"])
        api.wait(job["id"], WITHIN_S)
    return again - killed


def _starts(book: Path) -> list[tuple[float, int]]:
    """Return when the body began each time, and in which process."""
    lines = book.read_text().splitlines() if book.exists() else []
    return [(float(at), int(pid)) for at, pid in map(str.split, lines)]


def _worker(api: Client, job_id: str) -> int:
    """Return the process of the worker that has the job: a keeper is nobody's child."""
    name = api.attempts(job_id)[-1]["worker"]
    return next(int(worker["pid"]) for worker in api.workers() if worker["name"] == name)


def _kill_manager(server: Server) -> tuple[float, float]:
    """Return the seconds from the kill to an acknowledgement, and to the start of a new job."""
    with server.api() as api, marks_file(1) as marks:
        api.submit("bench.noop", {}, wait_s=30)  # a connection that is open already
        pid = next(iter(pids_of(server, MANAGER)))
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        api.submit("bench.mark", {"file": marks.path, "n": 0})
        accepted = time.time()
        marks.wait(1, WITHIN_S)
        (began,) = marks.began(1)
        assert began, "the job never ran"
        _until(lambda: server.slots() > 1)
    return accepted - killed, began - killed


def _until(look: Callable[[], T]) -> T:
    deadline = time.monotonic() + WITHIN_S
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s"
        time.sleep(LOOK_S)
    return seen
