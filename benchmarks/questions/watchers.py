"""What do watchers cost, and how soon do they hear?

2,000 streams of server-sent events through the edge to one replica, each of a job of its own. The
jobs come due one after the other, so that about 500 changes a second happen to them in all; a
change is heard when its message has arrived, and began at the moment that the message says. Before
that, with the jobs still waiting, as many no-op jobs are accepted as without any watcher. What it
doesn't show: networks, and clients on other machines, whose work would not share these cores.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from functools import partial

from benchmarks.asking import DRAYMAN, Asked, Measured, gathered
from benchmarks.figures import Figure, percentile
from benchmarks.load import LINE
from benchmarks.processes import OWN, Meter, pss_mb
from benchmarks.server import Server, running

__all__ = ["ask"]

WATCHERS, CHANGES_A_SECOND = 2_000, 500.0
#: Each watched job comes due, starts, and is done.
CHANGES_A_JOB = 3
#: Streams that are opened at once, and how long that may take.
AT_ONCE, OPEN_S = 50, 45.0
#: How long after the last job came due its watchers may still hear of it.
LATE_S = 30.0
BATCH = 10_000
WARM_WATCHERS = 20

figure = partial(Figure, "watchers", DRAYMAN)


def ask(asked: Asked) -> Iterator[Figure]:
    """Measure so many rounds, each on a Drayman of its own, so that no compaction falls into it."""
    watchers, jobs = asked.size(WATCHERS, 200), asked.size(30_000, 10_000)
    rounds = []
    for _ in range(asked.repeats):
        with running(*asked.options, "--replicas", "1") as server:
            asyncio.run(_round(server, WARM_WATCHERS, BATCH // 2))
            rounds.append(asyncio.run(_round(server, watchers, jobs)))
    yield from gathered("watchers", rounds)


async def _round(server: Server, watchers: int, jobs: int) -> Measured:
    rate = CHANGES_A_SECOND / CHANGES_A_JOB
    without_us = await asyncio.to_thread(_accept_us, server, jobs)
    await asyncio.to_thread(server.drain)
    before_mb = pss_mb(server)["ServeReplica"]
    # Due once all is set up: that takes as long as opening the streams and accepting the jobs do.
    wait_s = OPEN_S * watchers / WATCHERS + 10.0
    due_at = time.time() + wait_s
    ids = await asyncio.to_thread(_submit, server, [due_at + n / rate for n in range(watchers)])
    began = time.perf_counter()
    async with _streams(server, ids) as streams:
        opened_s = time.perf_counter() - began
        held_mb = pss_mb(server)["ServeReplica"] - before_mb
        with_us = await asyncio.to_thread(_accept_us, server, jobs)
        await asyncio.to_thread(server.drain)
        assert time.time() < due_at, "setting up took longer than was thought"
        await asyncio.sleep(due_at - time.time())
        with Meter(server) as meter:
            over = asyncio.gather(*(stream.over for stream in streams))
            await asyncio.wait_for(over, watchers / rate + LATE_S)
        delays = [delay for stream in streams for delay in stream.delays_s]
    server.drain()
    cpu_s = meter.cpu_s()
    return {
        ("streams opened", "a second"): watchers / opened_s,
        ("memory of the replica, a watcher", "kB"): held_mb * 1000 / watchers,
        ("change to message, p50", "ms"): 1000 * percentile(delays, 0.5),
        ("change to message, p99", "ms"): 1000 * percentile(delays, 0.99),
        ("change to message, longest", "ms"): 1000 * max(delays),
        ("messages missing", "of all"): watchers * CHANGES_A_JOB - len(delays),
        ("CPU, a change made and told", "µs"): 1e6
        * sum(cpu_s.get(kind, 0.0) for kind in (*OWN, "edge"))
        / len(delays),
        ("CPU to accept a job, nobody watching", "µs/job"): without_us,
        (f"CPU to accept a job, {watchers:,} watching", "µs/job"): with_us,
        ("CPU to accept a job, rise", "%"): 100 * (with_us / without_us - 1),
    }


def _accept_us(server: Server, jobs: int) -> float:
    """Return the CPU that all of Drayman takes to accept one of so many jobs."""
    with server.paused():
        with Meter(server) as meter:
            _accept(server, jobs)
        cpu_s = meter.cpu_s()
    return 1e6 * sum(cpu_s.get(kind, 0.0) for kind in (*OWN, "edge")) / jobs


def _accept(server: Server, jobs: int) -> None:
    with server.client() as client:
        for first in range(0, jobs, BATCH):
            body = b"\n".join([LINE] * min(BATCH, jobs - first))
            answer = client.post("/v1/jobs/batch", content=body)
            assert answer.status_code == 202, answer.text[:300]


def _submit(server: Server, due: list[float]) -> list[str]:
    """Submit a job for each moment; return their ids."""
    lines = [
        json.dumps(
            {
                "type": "bench.noop",
                "queue": "default",
                "run_at": datetime.fromtimestamp(at).astimezone().isoformat(),
            }
        )
        for at in due
    ]
    with server.client() as client:
        answer = client.post("/v1/jobs/batch", content="\n".join(lines)).raise_for_status()
    return [json.loads(line)["id"] for line in answer.text.splitlines()]


class _Stream(asyncio.Protocol):
    """One watcher: it notes how late each message is, and cares for nothing else in it."""

    def __init__(self, request: bytes) -> None:
        self._request, self._rest = request, b""
        self.delays_s: list[float] = []
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: "):
                continue
            message = json.loads(line[6:])
            if message["type"] == "job":
                self.begun.set_result(None)
            elif "seq" in message:
                self.delays_s.append(now - datetime.fromisoformat(message["at"]).timestamp())
            if message["type"] == "job.completed":
                self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.begun, self.over):
            if not future.done():
                future.set_exception(ConnectionError(f"a stream broke: {exc}"))


@contextlib.asynccontextmanager
async def _streams(server: Server, ids: list[str]) -> AsyncIterator[list[_Stream]]:
    """Watch each job on a connection of its own; all have begun within the block."""
    host, port = server.address
    loop = asyncio.get_running_loop()
    streams: list[_Stream] = []
    try:
        for first in range(0, len(ids), AT_ONCE):
            some = []
            for job_id in ids[first : first + AT_ONCE]:
                request = (
                    f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: {host}:{port}\r\n"
                    f"Authorization: Bearer {server.token}\r\n\r\n"
                ).encode()
                made = partial(_Stream, request)
                some.append((await loop.create_connection(made, host, port))[1])
            streams += some
            await asyncio.wait_for(asyncio.gather(*(one.begun for one in some)), OPEN_S)
        yield streams
    finally:
        for stream in streams:
            stream.transport.abort()
