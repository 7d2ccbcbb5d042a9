"""What `drayman plan` says beside what real workers do."""

import json
import random
import statistics
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from service.client import Client
from tests.support.live import WAIT_S, LiveDrayman, until

pytestmark = [pytest.mark.live, pytest.mark.soak, pytest.mark.timeout(300)]

RATE, RUN_S, WORKERS, JOBS = 30.0, 0.1, 4, 750
#: Of chances that are neither lucky nor unlucky: run as numbers alone these jobs wait 59 ms, where
#: the plan, which is of endlessly many, says 63.
SEED = 6

NAPS = '''\
import time

from pydantic import BaseModel

from jobs import Context, job


class Nap(BaseModel):
    lasts_s: float


@job("nap")
def nap(ctx: Context, params: Nap) -> None:
    """Take a worker and none of its CPU, so that two cores can show four workers."""
    time.sleep(params.lasts_s)
'''


def workers(client: Client) -> int:
    return sum(worker["pool"] == "cpu" for worker in client.workers())


def submit_by_chance(client: Client, seed: int) -> None:
    """Submit naps for some 25 s, each when it is due: the next moment is nobody's to wait for."""
    chance, due = random.Random(seed), time.monotonic()
    for _ in range(JOBS):
        due += chance.expovariate(RATE)
        threading.Event().wait(max(0.0, due - time.monotonic()))
        client.submit("nap", {"lasts_s": chance.expovariate(1 / RUN_S)})


def test_real_jobs_wait_as_long_as_the_plan_says(tmp_path: Path) -> None:
    (tmp_path / "naps.py").write_text(NAPS)
    options = ["--no-dashboard", "--pool", f"cpu:size={WORKERS}"]
    drayman = LiveDrayman(tmp_path, jobs="naps", cwd=tmp_path, options=options)
    asked = ("--rate", f"{RATE:g}/s", "--seconds", f"{RUN_S:g}", "--workers", f"{WORKERS}")
    try:
        drayman.up()
        plan = json.loads(drayman.run("plan", *asked, "--json").stdout)
        with drayman.client() as client:
            until(lambda: workers(client) == WORKERS)
            submit_by_chance(client, seed=SEED)
            until(lambda: next(client.jobs(status="pending"), None) is None)
            jobs = list(client.jobs(type="nap"))
            for job in jobs[: 2 * WORKERS]:
                client.wait(job["id"], WAIT_S)
    finally:
        drayman.close()

    moments = ((job["submitted_at"], job["started_at"]) for job in jobs)
    waits = [
        (datetime.fromisoformat(started) - datetime.fromisoformat(submitted)).total_seconds()
        for submitted, started in moments
    ]
    assert len(waits) == JOBS
    told = (plan["wait_mean_s"], statistics.fmean(waits))
    assert 0.5 < told[1] / told[0] < 2, told
