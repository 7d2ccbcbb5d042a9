"""What does a job of many tasks cost?

A fan-out of no-op chunks, from its submission to its known end, and what the manager's memory grows
by meanwhile; a million of them once; short jobs, one after the other, beside a fan-out whose chunks
sleep; and a chain of no-op steps: how long after the end of one the next begins. What it doesn't
show: chunks with files, whose store is what limits them (see `real_work`).
"""

import itertools
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any

import psutil

from benchmarks.asking import DRAYMAN, Asked
from benchmarks.figures import Figure, percentile
from benchmarks.marks import marks_file
from benchmarks.processes import MANAGER, pids_of
from benchmarks.server import Server, running

__all__ = ["ask"]

WATCH_S = 0.1
#: Long chunks, and how many short jobs come beside them.
LONG_CHUNKS, CHUNK_S, SHORT_JOBS = 10_000, 0.05, 60
STEPS = 20

figure = partial(Figure, "fanout", DRAYMAN)


def ask(asked: Asked) -> Iterator[Figure]:
    """Run them."""
    chunks, many = asked.size(100_000, 5_000), asked.size(1_000_000, 20_000)
    with running(*asked.options) as server:
        _run(server, 1_000)  # warm
        measured = [_watched(server, chunks) for _ in range(asked.repeats)]
        yield figure(f"{chunks:,} no-op chunks", "chunks/s", [chunks / s for s, _ in measured])
        yield figure("manager's memory added meanwhile, at most", "MB", [mb for _, mb in measured])
        yield from _beside(server, asked)
        gaps = [_gaps_ms(server) for _ in range(max(3, asked.repeats))][1:]
        yield figure(
            "from the end of a step to the next, p50", "ms", [percentile(g, 0.5) for g in gaps]
        )
        seconds, mb = _watched(server, many)
        yield figure(f"{many:,} no-op chunks", "chunks/s", [many / seconds])
        yield figure(f"manager's memory added by {many:,}, at most", "MB", [mb])


def _run(server: Server, chunks: int) -> float:
    """Return the seconds of a fan-out of so many no-op chunks."""
    began = time.perf_counter()
    with server.api() as api:
        job = api.submit("bench.chunks", {"chunks": chunks})
        while (job := api.wait(job["id"]))["status"] not in ("completed", "failed"):
            pass
    assert job["result"] == {"chunks": chunks}, job
    return time.perf_counter() - began


def _watched(server: Server, chunks: int) -> tuple[float, float]:
    """Return the seconds, and by how many MB the manager's memory grew at most."""
    (pid,) = pids_of(server, MANAGER)
    manager = psutil.Process(pid)
    before = highest = manager.memory_info().rss
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(WATCH_S):
            highest = max(highest, manager.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds = _run(server, chunks)
    finally:
        over.set()
        watcher.join()
    return seconds, (highest - before) / 1e6


def _beside(server: Server, asked: Asked) -> Iterator[Figure]:
    """Submit short jobs while a fan-out fills the pool."""
    jobs = asked.size(SHORT_JOBS, 10)
    with server.api() as api, marks_file(jobs) as marks:
        long = api.submit("bench.chunks", {"chunks": LONG_CHUNKS, "seconds": CHUNK_S})
        while not api.status(long["id"])["steps"][0]["done"]:
            time.sleep(WATCH_S)
        sent = []
        for n in range(jobs):
            sent.append(time.time())
            api.submit("bench.mark", {"file": marks.path, "n": n}, wait_s=30)
        waits_ms = [1000 * (b - a) for a, b in zip(sent, marks.began(jobs), strict=True)]
        api.cancel(long["id"])
        api.wait(long["id"])
    for share in (0.5, 0.95):
        what = (
            f"short job beside chunks of {CHUNK_S * 1000:g} ms, submit to start, p{share * 100:g}"
        )
        yield figure(what, "ms", [percentile(waits_ms, share)])


def _gaps_ms(server: Server) -> list[float]:
    """Return, for a chain of steps, the time between the end of one and the start of the next."""
    steps: list[dict[str, Any]] = [
        {"name": f"s{n}", "type": "bench.noop", "after": [f"s{n - 1}"] if n else []}
        for n in range(STEPS)
    ]
    with server.client() as client:
        answer = client.post("/v1/workflows", json={"steps": steps}, headers={"Prefer": "wait=30"})
        job = answer.raise_for_status().json()
        assert job["status"] == "completed", job
        tasks = client.get(f"/v1/jobs/{job['id']}/tasks").raise_for_status().json()["tasks"]
    moments = [(_moment(t["started_at"]), _moment(t["ended_at"])) for t in tasks]
    return [1000 * (b[0] - a[1]) for a, b in itertools.pairwise(sorted(moments))]


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
