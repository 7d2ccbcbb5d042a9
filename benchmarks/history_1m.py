"""Are a million finished jobs answered at once, in SQL and by id?

Questions: how long does `drayman sql` take over a million finished jobs, process start included,
and how long does the look-up of one of them take?

Data: jobs of six types over 30 days, 2 % failed, with params, result and one or two attempts,
written by the compactor's own writer, a file for each 5,000 jobs; then maintained like any store.
The seed is fixed. Page cache warm, the folder on the local disk. What it doesn't show: buckets,
where each file read is a request.

    python benchmarks/history_1m.py [--folder /tmp/drayman-history-1m] [--jobs 1000000]
"""

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.history.reader import History  # noqa: E402 - the root must be importable first
from cluster.history.writer import maintain, write  # noqa: E402
from cluster.protocol import Output, encode  # noqa: E402
from cluster.queue.model import Job, Line, PastAttempt, State, Task  # noqa: E402
from cluster.queue.spec import JobSpec, encode_spec  # noqa: E402
from cluster.queue.state import TaskState  # noqa: E402
from cluster.store.identity import open_identity  # noqa: E402
from cluster.store.objects import LocalObjects  # noqa: E402

#: Type, and the mean of its seconds.
TYPES = {
    "report.annual": 40.0, "video.transcode": 600.0, "image.resize": 2.0, "mail.send": 0.4,
    "import.orders": 90.0, "model.score": 8.0,
}  # fmt: skip
FIRST_DAY_S = 1_790_000_000.0
DAYS = 30
FILE_JOBS = 5_000
FAILED = 0.02
LOOKUPS = 1_000
TRIES = 5

QUERIES = {
    "failure rate and p95 duration by job type and day": """
        select date, type, avg((status = 'failed')::int) as failure_rate,
               quantile_cont(run_s, 0.95) as p95_s
        from jobs group by date, type order by date, type""",
    "jobs by status": "select status, count(*) from jobs group by status",
    "slowest attempts of one day": """
        select job_id, worker, run_s from attempts
        where date = (select max(date) from attempts) order by run_s desc limit 10""",
    "one customer's jobs": """
        select id, submitted_at, status from jobs
        where params->>'$.customer' = 'c17' order by submitted_at limit 20""",
}


def build(folder: Path, count: int) -> list[str]:
    """Write the store unless it is there; return some ids."""
    objects, chance = LocalObjects(folder), random.Random(7)
    ids = folder / "ids.json"
    if ids.exists():
        return msgspec.json.decode(ids.read_bytes(), type=list[str])
    open_identity(objects, objects)
    known: list[str] = []
    step_s = DAYS * 86_400 / count
    for first in range(0, count, FILE_JOBS):
        numbers = range(first, min(first + FILE_JOBS, count))
        jobs = [a_job(number, FIRST_DAY_S + number * step_s, chance) for number in numbers]
        known += [job.id for job in chance.sample(jobs, max(1, LOOKUPS * FILE_JOBS // count))]
        segment = first // FILE_JOBS + 1
        write(objects, segment, segment, jobs, State())
    maintain(objects, FIRST_DAY_S + DAYS * 86_400, None)
    ids.write_bytes(msgspec.json.encode(known))
    return known


def a_job(number: int, submitted_at: float, chance: random.Random) -> Job:
    """Return a job that is over."""
    name = chance.choice(list(TYPES))
    queued_s, run_s = chance.expovariate(2.0), chance.expovariate(1 / TYPES[name])
    start, end = submitted_at + queued_s, submitted_at + queued_s + run_s
    spec = JobSpec(
        type=name,
        params=msgspec.Raw(b'{"customer":"c%d","pages":%d}' % (number % 20_000, number % 97)),
        labels={"team": f"t{number % 9}"},
    )
    digits = f"{int(submitted_at * 1000):012x}7{number & 0xFFF:03x}"
    digits += f"{chance.getrandbits(62) | 1 << 63:016x}"
    cuts = (0, 8, 12, 16, 20, 32)
    job_id = "-".join(digits[a:b] for a, b in itertools.pairwise(cuts))
    job = Job(job_id, encode_spec(spec), name, spec.tenant, spec.queue, 0, submitted_at, number + 1)
    failed = chance.random() < FAILED
    task = Task(job, Line(spec.queue), "0", TaskState.DEAD if failed else TaskState.SUCCEEDED)
    task.attempt, task.worker = 1, f"w{number % 16}"
    task.leased_at, task.started_at, task.ended_at = start, start, end
    if failed:
        task.failures = 1
        task.past = [
            PastAttempt(1, "failed", task.worker, start, start, end, "ValueError: no page", "")
        ]
    else:
        task.output = encode(Output(result=msgspec.Raw(b'{"pages":%d}' % (number % 97))))
    job.tasks, job.finished_at, job.finished_seq, job.revision = (task,), end, number + 1, 1
    return job


def timed_sql(folder: Path, query: str) -> list[float]:
    """Return the seconds of each try of `drayman sql`, a process each time."""
    drayman = Path(sys.executable).with_name("drayman")
    took = []
    for _ in range(TRIES):
        began = time.perf_counter()
        command = [drayman, "sql", query, "--store", folder, "--format", "csv"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - began)
    return took


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/drayman-history-1m"))
    parser.add_argument("--jobs", type=int, default=1_000_000)
    options = parser.parse_args()
    began = time.perf_counter()
    ids = build(options.folder, options.jobs)
    files = list(options.folder.glob("history/**/*.parquet"))
    mib = sum(file.stat().st_size for file in files) / (1 << 20)
    print(f"{options.jobs:,} jobs in {len(files)} files, {mib:,.0f} MiB", end=" ")
    print(f"({time.perf_counter() - began:.0f} s)\n\n| question | median | spread |\n|---|---|---|")
    for name, query in QUERIES.items():
        took = timed_sql(options.folder, query)
        low, median, high = min(took), statistics.median(took), max(took)
        print(f"| {name} | {median:.2f} s | {low:.2f}-{high:.2f} s |", flush=True)
    history = History(LocalObjects(options.folder))
    took = []
    for job_id in ids:
        began = time.perf_counter()
        found = history.find(job_id)
        took.append((time.perf_counter() - began) * 1000)
        assert found is not None
        assert found.view.id == job_id
    cuts = statistics.quantiles(took, n=100)
    print(f"| one job by id: p50, p99 of {len(took):,} | {cuts[49]:.1f} ms | {cuts[98]:.1f} ms |")


if __name__ == "__main__":
    main()
