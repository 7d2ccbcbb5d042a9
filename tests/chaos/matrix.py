"""What is killed, stopped or filled up, one row each, under a steady load."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.ground import Ground, MakeGround, a_bucket, a_folder, a_small_disk, two_nodes
from tests.chaos.load import LONG_STEPS, Load, Start
from tests.support.live import LiveDrayman, kill, until

__all__ = ["ROWS", "Outcome", "Row", "play"]

BEFORE_S, AFTER_S = 4.0, 6.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table."""

    row: str
    acknowledged: int
    refused: int
    lost: int
    doubled: int
    in_doubt: int
    overlapping: int
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


@dataclass(frozen=True, slots=True)
class Row:
    """A fault, and what it is done to."""

    fault: Callable[[Ground, Load], Fault]
    ground: MakeGround = a_folder
    #: For `drayman up`, beyond the usual.
    options: tuple[str, ...] = ()


def play(name: str, folder: Path) -> Outcome:
    """Run one row from `drayman up` to its end."""
    row = ROWS[name]
    with row.ground(folder, ["--no-dashboard", *row.options]) as ground:
        ground.drayman.up()
        return _play(name, row, ground, folder / "work")


def _play(name: str, row: Row, ground: Ground, folder: Path) -> Outcome:
    folder.mkdir()
    load = Load(ground.drayman, folder)
    with load.running():
        time.sleep(BEFORE_S)
        fault = row.fault(ground, load)
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
        ended.in_doubt,
        ended.overlapping,
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


def kill_handler(ground: Ground, load: Load) -> Fault:
    """The process a handler runs in."""
    victim = _running(load, ground.drayman)
    at = time.time()
    kill(victim.pid)
    return Fault(at, {victim.pid}, lambda s: s.job_id == victim.job_id and s.attempt > 1)


def kill_worker(ground: Ground, load: Load) -> Fault:
    """`ray::Worker`, with the child that it supervises."""
    victim = _running(load, ground.drayman)
    # A keeper is nobody's child, so worker and handler are found by the manager's word.
    with ground.drayman.client() as client:
        worker = client.attempts(victim.job_id)[-1]["worker"]
        pid = next(w["pid"] for w in client.workers() if w["name"] == worker)
    at = time.time()
    kill(pid)
    return Fault(at, {victim.pid}, lambda s: s.job_id == victim.job_id and s.attempt > 1)


def kill_manager(ground: Ground, load: Load) -> Fault:
    """`ray::QueueManager`: nothing that runs may run again."""
    at = time.time()
    kill(ground.drayman.pid("ray::QueueManager"))
    return Fault(at, set(), _after(load, at))


def kill_replica(ground: Ground, load: Load) -> Fault:
    """A replica of the API."""
    at = time.time()
    kill(ground.drayman.pid("ray::ServeReplica"))
    return Fault(at, set(), _after(load, at))


def kill_everything(ground: Ground, load: Load) -> Fault:
    """Every process, then `drayman up` again."""
    pids = _handlers(ground.drayman)
    ground.drayman.kill_everything()
    at = time.time()
    ground.drayman.up()
    return Fault(at, pids, lambda start: True)


def kill_head(ground: Ground, load: Load) -> Fault:
    """Ray's head: `drayman up` ends by itself and says so, and is started again."""
    pids = _handlers(ground.drayman)
    live = ground.drayman.processes()
    gcs = next(pid for pid in live if psutil.Process(pid).name() == "gcs_server")
    kill(gcs)
    ground.drayman.wait()
    at = time.time()
    ground.drayman.up()
    return Fault(at, pids, lambda start: True)


def stop_manager(ground: Ground, load: Load) -> Fault:
    """The manager hangs for five seconds."""
    manager = ground.drayman.pid("ray::QueueManager")
    os.kill(manager, signal.SIGSTOP)
    time.sleep(5.0)
    at = time.time()
    os.kill(manager, signal.SIGCONT)
    return Fault(at, set(), _after(load, at))


def kill_node(ground: Ground, load: Load) -> Fault:
    """The raylet of the second node, and with it all that ran there."""
    assert ground.nodes is not None
    drayman = ground.drayman
    with ground.drayman.client() as client:
        there = {w["name"] for w in client.workers() if w["node"] == ground.nodes.lost_node}
        until(lambda: client.attempts(_running(load, drayman).job_id)[-1]["worker"] in there)
        at = time.time()
        kill(ground.nodes.raylet)

        def of_the_node(*outcomes: str) -> set[str]:
            """Return the jobs with an attempt there that ended, or goes on, like this."""
            return {
                start.job_id
                for start in load.starts()
                for attempt in client.attempts(start.job_id)[start.attempt - 1 :][:1]
                if attempt["worker"] in there and attempt["outcome"] in outcomes
            }

        # Two workers were there: the manager hears of one after the other.
        until(lambda: not of_the_node("running"))
        hit = of_the_node("crashed", "interrupted")
        assert hit
    pids = {start.pid for start in load.starts() if start.job_id in hit and start.at < at}
    return Fault(at, pids, lambda start: start.job_id in hit and start.at > at)


def stall_store(ground: Ground, load: Load) -> Fault:
    """The store's server hangs for five seconds."""
    assert ground.weed is not None
    with ground.weed.stopped():
        time.sleep(5.0)
    at = time.time()
    return Fault(at, set(), _after(load, at))


def lose_store(ground: Ground, load: Load) -> Fault:
    """The store's server is killed, and is back on its data after 30 seconds."""
    assert ground.weed is not None
    ground.weed.kill()
    time.sleep(30.0)
    ground.weed.start()
    at = time.time()
    return Fault(at, set(), _after(load, at))


def fill_disk(ground: Ground, load: Load) -> Fault:
    """Not a byte fits on the store's disk for five seconds."""
    assert ground.disk is not None
    rest = ground.disk / "rest"
    with rest.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    time.sleep(5.0)
    rest.unlink()
    at = time.time()
    return Fault(at, set(), _after(load, at))


ROWS = {
    "handler killed": Row(kill_handler),
    "worker killed": Row(kill_worker),
    "manager killed": Row(kill_manager),
    "manager stopped for 5 s": Row(stop_manager),
    "one of two HTTP replicas killed": Row(kill_replica, options=("--replicas", "2")),
    "the only HTTP replica killed": Row(kill_replica),
    "raylet of a second node killed": Row(kill_node, two_nodes, ("--pool", "cpu:size=4")),
    "Ray's head killed, up again": Row(kill_head),
    "everything killed, up again": Row(kill_everything),
    "store (S3) stopped for 5 s": Row(stall_store, a_bucket),
    "store (S3) gone for 30 s": Row(lose_store, a_bucket),
    "disk full for 5 s": Row(fill_disk, a_small_disk),
}
