"""What is killed, stopped or filled up, one row each, under a steady load."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.load import LONG_STEPS, Load, Start
from tests.support.live import LiveDrayman, kill, until

__all__ = ["OPTIONS", "ROWS", "Outcome", "play"]

BEFORE_S, AFTER_S = 4.0, 6.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table."""

    row: str
    acknowledged: int
    refused: int
    lost: int
    doubled: int
    #: Jobs that began again, and those of them whose attempt ran on nothing that was killed.
    again: int
    again_unharmed: int
    #: From the fault, or from the command that ends it, until work goes on.
    resumed_s: float
    #: The slowest acknowledgement.
    ack_max_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """What a row did."""

    at: float
    #: Processes of handlers that it took down.
    pids: set[int]
    #: Whether an attempt tells that work goes on.
    resumes: Callable[[Start], bool]


Row = Callable[[LiveDrayman, Load], Fault]


def play(name: str, drayman: LiveDrayman, folder: Path) -> Outcome:
    """Run one row on a Drayman that is up, and leave it up."""
    folder.mkdir()
    load = Load(drayman, folder)
    with load.running():
        time.sleep(BEFORE_S)
        fault = ROWS[name](drayman, load)
        time.sleep(AFTER_S)
    ended = load.end()
    resumed = [start.at for start in ended.starts if start.at > fault.at and fault.resumes(start)]
    first = {start.job_id: start for start in reversed(ended.starts)}
    unharmed = [job_id for job_id in ended.again if first[job_id].pid not in fault.pids]
    return Outcome(
        name,
        ended.acknowledged,
        ended.refused,
        len(ended.lost),
        ended.doubled,
        len(ended.again),
        len(unharmed),
        min(resumed, default=float("inf")) - fault.at,
        max(one.answered_at - one.asked_at for one in load.acknowledged),
    )


def _handlers(drayman: LiveDrayman) -> set[int]:
    """Return the processes that run handlers."""
    return {pid for pid, line in drayman.processes().items() if "cluster.worker.keeper" in line}


def _running(load: Load, drayman: LiveDrayman) -> Start:
    """Return a long attempt that runs now."""

    def look() -> Start | None:
        live, steps = drayman.processes(), load.steps()
        # Far enough from its end that the blow meets it.
        return next(
            (s for s in load.starts() if 1 < steps[s.job_id] < LONG_STEPS - 4 and s.pid in live),
            None,
        )

    return until(look)


def _after(load: Load, at: float) -> Callable[[Start], bool]:
    """Whether an attempt is of a job that was asked for after the fault."""

    def resumes(start: Start) -> bool:
        return any(one.id == start.job_id and one.asked_at > at for one in load.acknowledged)

    return resumes


def kill_handler(drayman: LiveDrayman, load: Load) -> Fault:
    """The process a handler runs in."""
    victim = _running(load, drayman)
    at = time.time()
    kill(victim.pid)
    return Fault(at, {victim.pid}, lambda s: s.job_id == victim.job_id and s.attempt > 1)


def kill_worker(drayman: LiveDrayman, load: Load) -> Fault:
    """`ray::Worker`, with the child that it supervises."""
    victim = _running(load, drayman)
    # A keeper is nobody's child, so worker and handler are found by the manager's word.
    with drayman.client() as client:
        worker = client.attempts(victim.job_id)[-1]["worker"]
        pid = next(w["pid"] for w in client.workers() if w["name"] == worker)
    at = time.time()
    kill(pid)
    return Fault(at, {victim.pid}, lambda s: s.job_id == victim.job_id and s.attempt > 1)


def kill_manager(drayman: LiveDrayman, load: Load) -> Fault:
    """`ray::QueueManager`: nothing that runs may run again."""
    at = time.time()
    kill(drayman.pid("ray::QueueManager"))
    return Fault(at, set(), _after(load, at))


def kill_replica(drayman: LiveDrayman, load: Load) -> Fault:
    """The HTTP replica."""
    at = time.time()
    kill(drayman.pid("ray::ServeReplica"))
    return Fault(at, set(), _after(load, at))


def kill_one_replica(drayman: LiveDrayman, load: Load) -> Fault:
    """One of two HTTP replicas."""
    at = time.time()
    kill(drayman.pid("ray::ServeReplica"))
    return Fault(at, set(), _after(load, at))


def kill_everything(drayman: LiveDrayman, load: Load) -> Fault:
    """Every process, then `drayman up` again."""
    pids = _handlers(drayman)
    drayman.kill_everything()
    at = time.time()
    drayman.up()
    return Fault(at, pids, lambda start: True)


def kill_head(drayman: LiveDrayman, load: Load) -> Fault:
    """Ray's head: `drayman up` ends by itself and says so, and is started again."""
    pids = _handlers(drayman)
    raylet = next(p for p in drayman.processes() if psutil.Process(p).name() == "gcs_server")
    kill(raylet)
    drayman.wait()
    at = time.time()
    drayman.up()
    return Fault(at, pids, lambda start: True)


def stop_manager(drayman: LiveDrayman, load: Load) -> Fault:
    """The manager hangs for five seconds."""
    manager = drayman.pid("ray::QueueManager")
    os.kill(manager, signal.SIGSTOP)
    time.sleep(5.0)
    at = time.time()
    os.kill(manager, signal.SIGCONT)
    return Fault(at, set(), _after(load, at))


#: What a row's Drayman is started with beyond the usual.
OPTIONS = {"one of two HTTP replicas killed": ["--replicas", "2"]}

ROWS: dict[str, Row] = {
    "handler killed": kill_handler,
    "worker killed": kill_worker,
    "manager killed": kill_manager,
    "manager stopped for 5 s": stop_manager,
    "HTTP replica killed": kill_replica,
    "one of two HTTP replicas killed": kill_one_replica,
    "Ray's head killed, up again": kill_head,
    "everything killed, up again": kill_everything,
}
