"""Four questions about the hot path, each answered against one fresh Drayman.

single      POST /v1/jobs on 64 connections: durable acks a second
batch       POST /v1/jobs/batch, NDJSON of 10,000: jobs accepted a second
backlog     no-op jobs run from a full queue: jobs a second, submitted before the clock starts
idle        one submission at a time on an idle system: ms from before the POST to the start
"""

import asyncio
import json
import statistics
import time

import httpx

from benchmarks.load import fire
from benchmarks.server import Server

__all__ = ["LINE", "QUESTIONS", "post"]

PAYLOAD = "x" * 80
LINE = json.dumps({"type": "bench.noop", "params": {"payload": PAYLOAD}}).encode()


def single(server: Server, connections: int = 64, seconds: float = 8.0) -> dict[str, float]:
    """Measure single POSTs while no worker takes anything."""
    with server.client() as client, _paused(client):
        asyncio.run(fire(server.address, post(server), connections=connections, seconds=2.0))
        load = asyncio.run(
            fire(server.address, post(server), connections=connections, seconds=seconds)
        )
    assert set(load.statuses) == {202}, load.statuses
    assert not load.lost, load.lost
    _drain(server)
    return {
        f"POST/s at {connections} connections": load.per_s,
        f"p50 ms at {connections}": load.percentile_ms(0.5),
        f"p99 ms at {connections}": load.percentile_ms(0.99),
    }


def one_connection(server: Server) -> dict[str, float]:
    """Measure the ack's latency at one connection."""
    return single(server, connections=1, seconds=3.0)


def batch(server: Server, lines: int = 10_000, calls: int = 10) -> dict[str, float]:
    """Measure NDJSON acceptance while no worker takes anything."""
    body = b"\n".join([LINE] * lines)
    with server.client() as client, _paused(client):
        rates = []
        for _ in range(calls + 1):
            started = time.perf_counter()
            client.post("/v1/jobs/batch", content=body).raise_for_status()
            rates.append(lines / (time.perf_counter() - started))
    _drain(server)
    return {"batch jobs/s accepted": statistics.median(rates[1:])}


def backlog(server: Server, jobs: int = 100_000) -> dict[str, float]:
    """Measure how fast a full queue of no-op jobs is run."""
    rates = []
    for _ in range(3):
        with server.client() as client:
            with _paused(client):
                for _ in range(jobs // 10_000):
                    body = b"\n".join([LINE] * 10_000)
                    client.post("/v1/jobs/batch", content=body).raise_for_status()
                started = time.perf_counter()
            _drain(server)
            rates.append(jobs / (time.perf_counter() - started))
    return {"backlog jobs/s": statistics.median(rates)}


def idle(server: Server, jobs: int = 100) -> dict[str, float]:
    """Measure submission to start, one job at a time."""
    waits = []
    with server.client() as client:
        for _ in range(jobs):
            sent_at = time.time()
            job = client.post(
                "/v1/jobs", content=LINE, headers={"Prefer": "wait=10"}
            ).raise_for_status()
            attempts = client.get(f"/v1/jobs/{job.json()['id']}/attempts").json()
            first = (attempts["attempts"] if isinstance(attempts, dict) else attempts)[0]
            waits.append((_epoch(first["started_at"]) - sent_at) * 1000)
    return {
        "idle submit to start p50 ms": statistics.median(waits),
        "idle submit to start p99 ms": sorted(waits)[int(len(waits) * 0.99) - 1],
    }


QUESTIONS = {
    "single": single,
    "one": one_connection,
    "batch": batch,
    "backlog": backlog,
    "idle": idle,
}


def post(server: Server) -> bytes:
    host, port = server.address
    return (
        f"POST /v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Authorization: Bearer {server.token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(LINE)}\r\n\r\n"
    ).encode() + LINE


class _paused:  # noqa: N801 - reads as what it does: `with _paused(client)`
    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def __enter__(self) -> None:
        self.client.post("/v1/queues/default/pause").raise_for_status()

    def __exit__(self, *_: object) -> None:
        self.client.post("/v1/queues/default/resume").raise_for_status()


def _drain(server: Server) -> None:
    with server.client() as client:
        while True:
            queue = next(q for q in _queues(client) if q["name"] == "default")
            if queue["ready"] + queue["leased"] == 0:
                return
            time.sleep(0.02)


def _queues(client: httpx.Client) -> list[dict[str, object]]:
    body = client.get("/v1/queues").raise_for_status().json()
    return body["queues"] if isinstance(body, dict) else body


def _epoch(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()
