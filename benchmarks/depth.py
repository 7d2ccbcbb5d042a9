"""A million pending jobs: what they cost in memory, in pace, and in a restart.

    python -m benchmarks.depth            a million
    python -m benchmarks.depth 100000

The pace is that at which no-op jobs end, first in a queue of 10,000 and then in the full one. The
restart is a `kill -9` of the manager: the first status it answers is a million jobs later.
"""

import argparse
import os
import signal
import statistics
import time

import httpx
import psutil

from benchmarks.server import Server, running
from benchmarks.speed import LINE

__all__ = ["main"]

SHALLOW, ROUNDS = 10_000, 7
#: How many of the deep queue are run to see its pace.
TIMED = 100_000
LOOK_S = 0.02


def main() -> None:
    """Print one row for each figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description=__doc__)
    parser.add_argument("jobs", nargs="?", type=int, default=1_000_000)
    jobs = parser.parse_args().jobs
    with running() as server, server.client() as client:
        shallow = [_pace(client, SHALLOW, SHALLOW) for _ in range(ROUNDS)]
        _pause(client)
        began = time.perf_counter()
        _submit(client, jobs)
        _tell(f"{jobs:,} jobs accepted in NDJSON batches, a second", jobs / _since(began))
        _tell("memory of the manager, GB", _manager(server).memory_info().rss / 1e9)
        _tell("restart of the manager with them, s", _restart(server, client))
        _tell("memory of the new one, GB", _manager(server).memory_info().rss / 1e9)
        deep = _pace(client, 0, TIMED)
        usual = statistics.median(shallow)
        _tell(f"jobs/s at a depth of {SHALLOW:,}", usual)
        _tell(f"jobs/s at a depth of {jobs:,}", deep)
        _tell("ratio", deep / usual)


def _tell(what: str, figure: float) -> None:
    print(f"| {what} | {figure:,.2f} |", flush=True)


def _since(began: float) -> float:
    return time.perf_counter() - began


def _submit(client: httpx.Client, jobs: int) -> None:
    body = b"\n".join([LINE] * 10_000)
    for _ in range(jobs // 10_000):
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
    return (before - left) / _since(began)


def _manager(server: Server) -> psutil.Process:
    tree = psutil.Process(server.pid).children(recursive=True)
    return next(p for p in tree if p.name().startswith("ray::QueueManager"))


def _restart(server: Server, client: httpx.Client) -> float:
    """Return how long after its death the manager answers for its queues again."""
    os.kill(_manager(server).pid, signal.SIGKILL)
    began = time.perf_counter()
    while True:
        try:
            _waiting(client)
        except httpx.HTTPStatusError:
            time.sleep(LOOK_S)
        else:
            return _since(began)


if __name__ == "__main__":
    main()
