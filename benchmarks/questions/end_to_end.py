"""How fast do jobs get through, submitted and run at the same time, and from a backlog?

One producer process submits while workers run; the clock goes from before the first submission to
the start of the last job's body. The CPU is that of all of Drayman, Ray and Serve, without the
producer's. Bodies leave a mark outside of Drayman (`benchmarks.marks`), so
jobs that never ran, or ran twice, are counted by nobody's word. What it doesn't show: handlers
that need the cores themselves, and producers on other machines.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import httpx

from benchmarks.asking import Asked, Measured, gathered
from benchmarks.driver import Driver, driving
from benchmarks.figures import Figure
from benchmarks.marks import Marks, marks_file
from benchmarks.processes import Meter
from benchmarks.server import Server, running

__all__ = ["ask", "streamed"]

LINES, IN_FLIGHT = 1_000, 2
FILL_LINES = 10_000
SLOTS = 2_000_000
NAP_S = 0.01
#: A drain is long enough to be read off, and its first tenth is not its pace.
DRAIN_JOBS, DRAIN_S = 100_000, 4.5
RISE = 0.1
WARM_JOBS = 20_000
#: Between looks at the processes, which take some milliseconds of a core each.
METER_S = 2.0


@dataclass(frozen=True)
class _Ground:
    server: Server
    driver: Driver
    marks: Marks

    def counted(self, jobs: int) -> Measured:
        """Wait for the jobs; return what marks say of them."""
        self.marks.wait(jobs)
        return {
            ("not run", "jobs"): self.marks.not_run(jobs),
            ("run twice", "jobs"): self.marks.run_twice(jobs),
        }


#: Submits for so many seconds; returns the moment before the first and how many it were.
_Producer = Callable[[_Ground, float], tuple[float, int]]


def ask(asked: Asked) -> Iterator[Figure]:
    """Measure every producer and the drain, so many rounds."""
    seconds = asked.size(3.0, 0.5)
    with running(*asked.options) as server, driving(server) as driver:
        rounds = [_round(server, driver, 1.0, asked.size(WARM_JOBS, 5_000))]
        rate = rounds[0]["backlog drain", "jobs/s"]
        jobs = asked.size(max(DRAIN_JOBS, int(rate * DRAIN_S)), 20_000)
        jobs = -(-jobs // FILL_LINES) * FILL_LINES
        rounds += [_round(server, driver, seconds, jobs) for _ in range(asked.repeats)]
    notes = {"backlog drain": f"{jobs:,} no-op jobs, from 10 % to all done"}
    yield from gathered("end_to_end", rounds[1:], notes)


def _round(server: Server, driver: Driver, seconds: float, jobs: int) -> Measured:
    measured: Measured = {}
    for name, producer in PRODUCERS.items():
        with marks_file(SLOTS) as marks:
            _add(measured, _produced(_Ground(server, driver, marks), name, producer, seconds))
    for part in (_naps, _drain):
        with marks_file(SLOTS) as marks:
            _add(measured, part(_Ground(server, driver, marks), seconds, jobs))
    return measured


def _add(measured: Measured, more: Measured) -> None:
    """Add what was measured; what is counted in jobs, to what was counted before."""
    for key, value in more.items():
        is_count = key[1] == "jobs"
        measured[key] = value + measured.get(key, 0) if is_count else value


def _produced(ground: _Ground, name: str, producer: _Producer, seconds: float) -> Measured:
    with Meter(ground.server, METER_S) as meter:
        first, jobs = producer(ground, seconds)
        counted = ground.counted(jobs)
    took = max(ground.marks.began(jobs)) - first
    ground.server.drain()
    cpu_us = sum(meter.cpu_s().values()) * 1e6 / jobs
    return {(name, "jobs/s"): jobs / took, (f"{name}: CPU", "µs/job"): cpu_us, **counted}


def _one_at_a_time(ground: _Ground, seconds: float) -> tuple[float, int]:
    with ground.server.api() as api:
        first = time.time()
        for n in itertools.count():
            if time.time() - first > seconds:
                return first, n
            api.submit("bench.mark", {"file": ground.marks.path, "n": n, "pad": "x" * 30})
    raise AssertionError("it counts for ever")


def _stream(ground: _Ground, seconds: float) -> tuple[float, int]:
    return asyncio.run(streamed(ground.server, ground.marks, seconds))


async def streamed(server: Server, marks: Marks, seconds: float) -> tuple[float, int]:
    """Submit batches, two requests in flight; return when it began and how many jobs it were."""
    starts, first = itertools.count(0, LINES), time.time()

    async def submit(client: httpx.AsyncClient) -> int:
        count = 0
        while time.time() - first < seconds:
            await _post(client, marks.lines(next(starts), LINES))
            count += LINES
        return count

    async with _client(server) as client:
        jobs = sum(await asyncio.gather(*(submit(client) for _ in range(IN_FLIGHT))))
    return first, jobs


def _client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=server.url, headers=server.headers, timeout=120, trust_env=False
    )


async def _post(client: httpx.AsyncClient, body: bytes) -> None:
    answer = (await client.post("/v1/jobs/batch", content=body)).raise_for_status()
    assert b'"problem"' not in answer.content, answer.text[:300]


def _from_driver(outstanding: int, ground: _Ground, seconds: float) -> tuple[float, int]:
    asked = {"file": ground.marks.path, "seconds": seconds, "outstanding": outstanding}
    said = ground.driver.ask("single", **asked)
    return said["began"], int(said["jobs"])


PRODUCERS: dict[str, _Producer] = {
    "submit and run, one at a time": _one_at_a_time,
    "submit and run, batches streamed": _stream,
    "submit and run, Ray driver, one at a time": partial(_from_driver, 1),
    "submit and run, Ray driver, 1,000 outstanding": partial(_from_driver, 1_000),
}


def _naps(ground: _Ground, seconds: float, _: int) -> Measured:
    """Measure jobs that sleep: right after others that do nothing, and after their own kind."""
    slots = ground.server.slots()
    jobs = max(100, round(seconds * slots / NAP_S))
    after_no_ops = _nap_rate(ground, 0, jobs)
    rate = _nap_rate(ground, jobs, jobs)
    name = "submit and run, jobs of 10 ms"
    return {
        (name, "jobs/s"): rate,
        (f"{name}, share of the ideal", "%"): 100 * rate * NAP_S / slots,
        (f"{name}, right after no-ops", "jobs/s"): after_no_ops,
        **ground.counted(2 * jobs),
    }


def _nap_rate(ground: _Ground, start: int, jobs: int) -> float:
    first = time.time()
    body = ground.marks.lines(start, jobs).replace(b'"pad"', b'"seconds":%g,"pad"' % NAP_S)
    with ground.server.client() as client:
        client.post("/v1/jobs/batch", content=body).raise_for_status()
    ground.marks.wait(start + jobs)
    ground.server.drain()
    return jobs / (max(ground.marks.began(start + jobs)) + NAP_S - first)


def _drain(ground: _Ground, _: float, jobs: int) -> Measured:
    """Fill a paused queue, and let it run."""
    with ground.server.paused(), ground.server.client() as client:
        for start in range(0, jobs, FILL_LINES):
            body = ground.marks.lines(start, min(FILL_LINES, jobs - start))
            client.post("/v1/jobs/batch", content=body).raise_for_status()
        resumed = time.time()
    counted = ground.counted(jobs)
    moments = sorted(ground.marks.began(jobs))
    risen = int(jobs * RISE)
    ground.server.drain()
    return {
        ("backlog drain", "jobs/s"): (jobs - risen) / (moments[-1] - moments[risen]),
        ("backlog drain, from the resume on", "jobs/s"): jobs / (moments[-1] - resumed),
        **counted,
    }
