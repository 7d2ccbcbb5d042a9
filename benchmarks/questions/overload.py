"""What happens when far more comes than can be done?

Ten times the jobs: two workers run handlers that sleep for 20 ms (so about 100 a second), the queue
takes 500, and 1,000 requests a second arrive whether or not earlier ones were answered. How soon
are they refused, how much goes on being done, what does it cost in memory, and is everything that
was accepted done, once? Then what tenants cost (a manager alone, in this process: 100,000 of them
with one job each beside one with all), and how long a quiet tenant's job waits beside one who has a
million pending. What it doesn't show: clients that heed `Retry-After`, as ours do.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import psutil

from benchmarks.arrivals import Answer, Arrivals
from benchmarks.asking import DRAYMAN, Asked
from benchmarks.figures import Figure, percentile
from benchmarks.load import post
from benchmarks.marks import Marks, marks_file
from benchmarks.processes import MANAGER, pids_of
from benchmarks.server import Server, running
from cluster.protocol import Batch, Outcome, Output, Submission, decode_batch_reply, encode
from cluster.queue.spec import JobSpec, encode_spec
from cluster.store.memory import MemoryObjects
from tests.support.cluster import life

__all__ = ["ask"]

REPLICA = "ServeReplica"
WORKERS, RUN_S, DEPTH = 2, 0.02, 500
#: Requests a second: ten times what is done.
RATE = 1_000
#: Memory is looked at for the last time so long before the end.
BEFORE_S = 0.5
#: The rate counts from here on: the queue is full by then.
WARM_S = 2.0
CONFIG = """
[pools.cpu]
queues = ["default"]
min = {workers}
max = {workers}

[queues.default]
depth_max = {depth}
"""
#: Jobs that a manager is handed at once, and that a scripted worker takes at once.
HANDED, LEASE = 1_000, 256
BATCH = 10_000
#: Between two jobs of the quiet tenant.
PAUSE_S, SEED = (0.02, 0.06), 7
#: Until the workers know how long the noisy one's jobs take: at first they take many ahead.
SETTLE_S = 3.0

figure = partial(Figure, "overload", DRAYMAN)


def ask(asked: Asked) -> Iterator[Figure]:
    """Ask all three."""
    with _limited(asked, DEPTH) as server:
        yield from _overload(server, asked)
    yield from _tenants(asked)
    with _limited(asked, 2_000_000) as server:
        yield from _quiet(server, asked)


@contextmanager
def _limited(asked: Asked, depth: int) -> Iterator[Server]:
    """Run two workers behind a queue of this depth."""
    with tempfile.TemporaryDirectory(prefix="drayman-bench-") as folder:
        config = Path(folder) / "drayman.toml"
        config.write_text(CONFIG.format(workers=WORKERS, depth=depth))
        with running(*asked.options, "--config", str(config)) as server:
            yield server


# --- ten times too much -----------------------------------------------------------------------


def _overload(server: Server, asked: Asked) -> Iterator[Figure]:
    seconds = asked.size(60.0, 8.0)
    normal = _normal_rate(server, asked.size(450, 200))
    yield figure("handlers of 20 ms, as many as are done", "jobs/s", [normal])
    with marks_file(int(RATE * seconds)) as marks:
        stream = Arrivals(server.address, lambda n: post(server, _sleeper(marks, n)))
        memory: list[dict[str, float]] = []
        began_at = time.time()
        asyncio.run(_watched(server, stream, seconds, memory))
        over_at = began_at + seconds
        server.drain()
        yield from _times(stream.answers)
        yield from _work(stream.answers, marks, normal, (began_at + WARM_S, over_at))
    for kind in (MANAGER, REPLICA):
        for when, held in zip(("start", "middle", "end"), memory, strict=True):
            yield figure(f"10x: memory of {kind}, {when}", "MB", [held[kind]])


async def _watched(
    server: Server, stream: Arrivals, seconds: float, memory: list[dict[str, float]]
) -> None:
    held = {kind: psutil.Process(pids_of(server, kind)[0]) for kind in (MANAGER, REPLICA)}
    running = asyncio.create_task(stream.run(RATE, seconds))
    for pause_s in (WARM_S, seconds / 2 - WARM_S, seconds / 2 - BEFORE_S):
        await asyncio.sleep(pause_s)
        memory.append({kind: of.memory_info().rss / 1e6 for kind, of in held.items()})
    await running


def _times(answers: list[Answer]) -> Iterator[Figure]:
    refused = [answer for answer in answers if answer.status in (429, 503)]
    accepted = [answer for answer in answers if answer.status == 202]
    for name, some in (("refused", refused), ("accepted", accepted)):
        for share in (0.5, 0.99):
            for since, times in (
                ("sent", [answer.from_sent_ms for answer in some]),
                ("due", [answer.from_due_ms for answer in some]),
            ):
                what = f"10x: {name}, from when it was {since}, p{share * 100:g}"
                yield figure(what, "ms", [percentile(times, share)])
    others = len(answers) - len(refused) - len(accepted)
    waits = [answer.retry_after_s or 0 for answer in refused]
    yield figure("10x: refused", "jobs", [len(refused)], f"{len(accepted):,} accepted")
    yield figure("10x: answers of another kind, or none", "jobs", [others])
    yield figure("10x: refusals without Retry-After", "jobs", [waits.count(0)])
    yield figure("10x: Retry-After, least and most", "s", [min(waits), max(waits)])


def _work(
    answers: list[Answer], marks: Marks, normal: float, between: tuple[float, float]
) -> Iterator[Figure]:
    began = marks.began(marks.slots)
    first, last = between
    rate = sum(first <= at < last for at in began) / (last - first)
    yield figure("10x: done meanwhile", "jobs/s", [rate])
    yield figure("10x: done meanwhile, of what is done without", "%", [100 * rate / normal])
    accepted = {answer.n for answer in answers if answer.status == 202}
    ran = {n for n, at in enumerate(began) if at}
    yield figure("10x: accepted that never ran", "jobs", [len(accepted - ran)])
    yield figure("10x: refused that ran", "jobs", [len(ran - accepted)])
    yield figure("10x: run more than once", "jobs", [marks.run_twice(marks.slots)])


def _sleeper(marks: Marks, n: int) -> bytes:
    return b'{"type":"bench.mark","params":{"file":"%s","n":%d,"seconds":%g}}' % (
        marks.path.encode(),
        n,
        RUN_S,
    )


def _normal_rate(server: Server, jobs: int) -> float:
    """Return how many jobs a second begin while enough wait and nothing else comes."""
    with marks_file(jobs) as marks, server.client() as client:
        body = b"\n".join([_sleeper(marks, n) for n in range(jobs)])
        client.post("/v1/jobs/batch", content=body).raise_for_status()
        marks.wait(jobs)
        began = sorted(marks.began(jobs))
        return (jobs - 1) / (began[-1] - began[0])


# --- many tenants -----------------------------------------------------------------------------


def _tenants(asked: Asked) -> Iterator[Figure]:
    jobs, rounds = asked.size(100_000, 5_000), asked.size(3, 1)
    costs: dict[int, list[float]] = {1: [], jobs: []}
    for tenants in [1, jobs] * rounds:
        costs[tenants].append(asyncio.run(_cost_us(jobs, tenants)))
    for tenants, found in costs.items():
        whose = "of one tenant" if tenants == 1 else f"of {tenants:,} tenants"
        yield figure(f"manager alone: {jobs:,} jobs {whose}, CPU", "µs/job", found)
    yield figure("many tenants beside one", "x", [min(costs[jobs]) / min(costs[1])])


async def _cost_us(jobs: int, tenants: int) -> float:
    """Return what giving out a job and taking its end costs a manager, of so many that wait."""
    async with life(MemoryObjects()) as one:
        for number, first in enumerate(range(0, jobs, HANDED), 1):
            submissions = [
                Submission(str(n), msgspec.Raw(encode_spec(JobSpec("t", tenant=str(n % tenants)))))
                for n in range(first, min(jobs, first + HANDED))
            ]
            reply = await one.manager.submit(encode(Batch("bench", number, submissions)))
            assert not decode_batch_reply(reply).others, "some were refused"
        output = msgspec.Raw(encode(Output()))
        began, left = time.process_time(), jobs
        orders = await one.take(free=LEASE)
        while left:
            ends = [Outcome(given.token, "ok", 1.0, 2.0, output) for given in orders.assignments]
            left -= len(ends)
            orders = await one.report(outcomes=ends, free=LEASE if left else 0)
        return (time.process_time() - began) / jobs * 1e6


# --- a quiet tenant ---------------------------------------------------------------------------


def _quiet(server: Server, asked: Asked) -> Iterator[Figure]:
    pending, jobs = asked.size(1_000_000, 50_000), asked.size(200, 30)
    with server.api() as api:
        token = api.create_token("quiet", ["submit", "read"])["token"]
    _starts_ms(server, token, jobs // 10)  # warm
    idle = _starts_ms(server, token, jobs)
    line = b'{"type":"bench.nap","params":{"seconds":%g}}' % RUN_S
    with server.client() as client:
        for _ in range(pending // BATCH):
            told = client.post("/v1/jobs/batch", content=b"\n".join([line] * BATCH))
            assert b'"problem"' not in told.raise_for_status().content, told.text[:300]
    time.sleep(SETTLE_S)
    beside = _starts_ms(server, token, jobs)
    whose = f"beside {pending:,} of another tenant"
    for share in (0.5, 0.99):
        at_rest, then = percentile(idle, share), percentile(beside, share)
        yield figure(f"quiet tenant: submit to start, idle, p{share * 100:g}", "ms", [at_rest])
        note = f"twice the idle one and one run: {2 * at_rest + RUN_S * 1000:.1f} ms"
        yield figure(f"quiet tenant: {whose}, p{share * 100:g}", "ms", [then], note)


def _starts_ms(server: Server, token: str, jobs: int) -> list[float]:
    """Return how long after its submission each of a tenant's jobs began, one after the other."""
    sent, chance = list[float](), random.Random(SEED)
    with marks_file(jobs) as marks, server.client() as client:
        client.headers["Authorization"] = f"Bearer {token}"
        for n in range(jobs):
            sent.append(time.time())
            client.post("/v1/jobs", content=marks.line(n)).raise_for_status()
            while not marks.began(jobs)[n]:
                time.sleep(0.001)
            # At any point of the runs of others, or all would come as one of them begins.
            time.sleep(chance.uniform(*PAUSE_S))
        began = marks.began(jobs)
    return [(b - a) * 1000 for a, b in zip(sent, began, strict=True)]
