"""How long does one job take, from before its submission to its start and to its known end?

Jobs come 5 to 30 ms apart, one after the other, over HTTP (the Python client) and from inside the
cluster (a gateway in a Ray driver); first on an idle Drayman, then beside a stream of no-op jobs
at half the rate that this machine gets through. The body tells its start by shared memory; the end
is known when the waiting call answers. What it doesn't show: networks, and clocks of two machines.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator

from benchmarks.asking import Asked, Measured, gathered
from benchmarks.background import loaded
from benchmarks.driver import Driver, driving
from benchmarks.figures import Figure, percentile
from benchmarks.marks import Marks, marks_file
from benchmarks.questions.end_to_end import streamed
from benchmarks.server import Server, running

__all__ = ["ask"]

PAUSE_S = (0.005, 0.030)
SEED = 7
WARM_JOBS = 20
#: Of what this machine gets through.
LOAD = 0.5
STREAM_SLOTS = 1_000_000

#: Submits a job after each pause; returns when each was sent, and when it was known to be done.
_Way = Callable[[Marks, list[float]], tuple[list[float], list[float]]]


def ask(asked: Asked) -> Iterator[Figure]:
    """Measure both ways in, idle and loaded."""
    jobs, repeats = asked.size(200, 40), asked.repeats
    with running(*asked.options) as server, driving(server) as driver:
        ways = {"HTTP": _over_http(server), "Ray driver": _from_driver(driver)}
        for way in ways.values():
            _measured("warm-up", way, WARM_JOBS)
        yield from gathered("latency", [_round("idle", ways, jobs) for _ in range(repeats)])
        rate = LOAD * _rate(server, asked.size(4.0, 1.0))
        with loaded(server, rate):
            rounds = [_round("at 50 % load", ways, jobs) for _ in range(repeats)]
    notes = dict.fromkeys((what for what, _ in rounds[0]), f"beside {rate:,.0f} jobs a second")
    yield from gathered("latency", rounds, notes)


def _round(state: str, ways: dict[str, _Way], jobs: int) -> Measured:
    measured: Measured = {}
    for name, way in ways.items():
        measured |= _measured(f"{state}, {name}", way, jobs)
    return measured


def _measured(name: str, way: _Way, jobs: int) -> Measured:
    chance = random.Random(SEED)
    with marks_file(jobs) as marks:
        sent, done = way(marks, [chance.uniform(*PAUSE_S) for _ in range(jobs)])
        ends = {"start": marks.began(jobs), "done": done}
    return {
        (f"{name}, submit to {end}, p{share * 100:g}", "ms"): 1000
        * percentile((b - a for a, b in zip(sent, moments, strict=True)), share)
        for end, moments in ends.items()
        for share in (0.5, 0.99)
    }


def _over_http(server: Server) -> _Way:
    def way(marks: Marks, pauses_s: list[float]) -> tuple[list[float], list[float]]:
        sent, done = [], []
        with server.api() as api:
            for n, pause_s in enumerate(pauses_s):
                time.sleep(pause_s)
                sent.append(time.time())
                api.submit("bench.mark", {"file": marks.path, "n": n}, wait_s=30)
                done.append(time.time())
        return sent, done

    return way


def _from_driver(driver: Driver) -> _Way:
    def way(marks: Marks, pauses_s: list[float]) -> tuple[list[float], list[float]]:
        said = driver.ask("waited", file=marks.path, pauses_s=pauses_s)
        return said["sent"], said["done"]

    return way


def _rate(server: Server, seconds: float) -> float:
    """Return how many no-op jobs a second get through, submitted and run together."""
    with marks_file(STREAM_SLOTS) as marks:
        first, jobs = asyncio.run(streamed(server, marks, seconds))
        marks.wait(jobs)
        return jobs / (max(marks.began(jobs)) - first)
