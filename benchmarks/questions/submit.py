"""How fast are jobs accepted, by each way in?

Workers are paused, so all cores go to accepting; a job counts once its acknowledgement, which is
durable, is back. What it doesn't show: accepting while jobs run (see `end_to_end`), and clients on
other machines, whose work would not share these cores.
"""

import asyncio
import json
import time
from collections.abc import Iterator

from benchmarks.asking import Asked, Measured, gathered
from benchmarks.driver import Driver, driving
from benchmarks.figures import Figure
from benchmarks.load import LINE, fire, post
from benchmarks.marks import Marks, marks_file
from benchmarks.server import Server, running

__all__ = ["ask"]

CONNECTIONS = (1, 8, 64)
BATCH = 10_000
#: Bytes of a job's payload, and lines of a batch of them.
PAYLOADS = ((1_000, 5_000), (10_000, 1_000))
SLOTS = 2_000_000
WARM_S = 0.5


def ask(asked: Asked) -> Iterator[Figure]:
    """Measure every way in, so many rounds."""
    seconds, calls = asked.size(2.0, 0.5), asked.size(5, 2)
    with running(*asked.options) as server, driving(server) as driver, marks_file(SLOTS) as marks:
        _round(server, driver, marks, WARM_S, 1)
        rounds = [_round(server, driver, marks, seconds, calls) for _ in range(asked.repeats)]
    yield from gathered("submit", rounds)


def _round(server: Server, driver: Driver, marks: Marks, seconds: float, calls: int) -> Measured:
    measured: Measured = {}
    with server.paused():
        for connections in CONNECTIONS:
            measured |= _posts(server, connections, seconds)
        measured["NDJSON batches of 10,000", "jobs/s"] = _batches(server, LINE, BATCH, calls)
        for size, lines in PAYLOADS:
            line = json.dumps({"type": "bench.noop", "params": {"payload": "x" * size}}).encode()
            rate = _batches(server, line, lines, calls)
            measured[f"NDJSON, payload of {size:,} bytes", "jobs/s"] = rate
        measured["Python client, one at a time", "jobs/s"] = _client(server, seconds)
        measured["Python client, submit_many", "jobs/s"] = _client_many(server, calls)
        said = driver.ask("single", file=marks.path, seconds=seconds, outstanding=1)
        measured["Ray driver, one at a time", "jobs/s"] = said["jobs"] / said["seconds"]
        said = driver.ask("batches", file=marks.path, seconds=seconds)
        measured["Ray driver, batches of 500", "jobs/s"] = said["jobs"] / said["seconds"]
    server.drain()
    return measured


def _posts(server: Server, connections: int, seconds: float) -> Measured:
    load = asyncio.run(fire(server.address, post(server), connections=connections, seconds=seconds))
    assert set(load.statuses) == {202}, load.statuses
    assert not load.lost, f"the edge closed {load.lost} connections"
    name = f"single POSTs, {connections} connection{'s' * (connections > 1)}"
    return {
        (name, "jobs/s"): load.per_s,
        (f"{name}, p50", "ms"): load.percentile_ms(0.5),
        (f"{name}, p99", "ms"): load.percentile_ms(0.99),
    }


def _batches(server: Server, line: bytes, lines: int, calls: int) -> float:
    body = b"\n".join([line] * lines)
    began = time.perf_counter()
    with server.client() as client:
        for _ in range(calls):
            answer = client.post("/v1/jobs/batch", content=body).raise_for_status()
            assert b'"problem"' not in answer.content, answer.text[:300]
    return calls * lines / (time.perf_counter() - began)


def _client(server: Server, seconds: float) -> float:
    count, began = 0, time.perf_counter()
    with server.api() as api:
        while time.perf_counter() - began < seconds:
            api.submit("bench.noop", {"payload": "x" * 80})
            count += 1
        return count / (time.perf_counter() - began)


def _client_many(server: Server, calls: int) -> float:
    jobs = [{"type": "bench.noop", "params": {"payload": "x" * 80}}] * (BATCH * calls)
    with server.api() as api:
        began = time.perf_counter()
        accepted = sum("id" in answer for answer in api.submit_many(jobs))
        assert accepted == len(jobs), f"{len(jobs) - accepted} refused"
    return accepted / (time.perf_counter() - began)
