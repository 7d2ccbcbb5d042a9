"""A million pending jobs: what they cost in memory, in pace, and in a restart.

The pace is that at which no-op jobs end, first in a queue of 10,000 and then in the full one. The
restart is a `kill -9` of the manager: the first status it answers is that of all jobs, replayed.
What it doesn't show: jobs with large params, which the manager keeps in memory too.
"""

import os
import signal
import statistics
import time
from collections.abc import Iterator
from functools import partial

import httpx
import psutil

from benchmarks.asking import DRAYMAN, Asked
from benchmarks.figures import Figure
from benchmarks.load import LINE
from benchmarks.processes import MANAGER, pids_of
from benchmarks.server import Server, running

__all__ = ["ask"]

SHALLOW, BATCH = 10_000, 10_000
#: How many of the deep queue are run to see its pace.
TIMED = 100_000
LOOK_S = 0.02

figure = partial(Figure, "depth", DRAYMAN)


def ask(asked: Asked) -> Iterator[Figure]:
    """Fill a queue, restart its manager, and run a part of it."""
    jobs, rounds = asked.size(1_000_000, 20_000), asked.size(5, 2)
    with running(*asked.options) as server, server.client() as client:
        shallow = [_pace(client, SHALLOW, SHALLOW) for _ in range(rounds + 1)][1:]
        yield figure(f"drain at {SHALLOW:,} pending", "jobs/s", shallow)
        _pause(client)
        began = time.perf_counter()
        _submit(client, jobs)
        yield figure(f"{jobs:,} accepted", "jobs/s", [jobs / (time.perf_counter() - began)])
        yield figure(f"manager's memory, {jobs:,} pending", "MB", [_memory_mb(server)])
        yield figure(f"manager killed: restart, {jobs:,} pending", "s", [_restart(server, client)])
        yield figure(f"new manager's memory, {jobs:,} pending", "MB", [_memory_mb(server)])
        deep = _pace(client, 0, min(TIMED, jobs // 2))
        yield figure(f"drain at {jobs:,} pending", "jobs/s", [deep])
        yield figure("deep drain beside shallow", "%", [100 * deep / statistics.median(shallow)])


def _submit(client: httpx.Client, jobs: int) -> None:
    body = b"\n".join([LINE] * BATCH)
    for _ in range(jobs // BATCH):
        client.post("/v1/jobs/batch", content=body).raise_for_status()


def _pause(client: httpx.Client) -> None:
    client.post("/v1/queues/default/pause").raise_for_status()


def _waiting(client: httpx.Client) -> int:
    queues = client.get("/v1/queues").raise_for_status().json()["queues"]
    queue = next(queue for queue in queues if queue["name"] == "default")
    return int(queue["ready"]) + int(queue["leased"])


def _pace(client: httpx.Client, more: int, timed: int) -> float:
    """Return how many of the next `timed` jobs end in a second, after adding some."""
    _pause(client)
    _submit(client, more)
    before = _waiting(client)
    began = time.perf_counter()
    client.post("/v1/queues/default/resume").raise_for_status()
    while (left := _waiting(client)) > before - timed:
        time.sleep(LOOK_S)
    return (before - left) / (time.perf_counter() - began)


def _manager(server: Server) -> int:
    return next(iter(pids_of(server, MANAGER)))


def _memory_mb(server: Server) -> float:
    return float(psutil.Process(_manager(server)).memory_info().rss / 1e6)


def _restart(server: Server, client: httpx.Client) -> float:
    """Return how long after its death the manager answers for its queues again."""
    os.kill(_manager(server), signal.SIGKILL)
    began = time.perf_counter()
    while True:
        try:
            _waiting(client)
        except httpx.HTTPStatusError:
            time.sleep(LOOK_S)
        else:
            return time.perf_counter() - began
