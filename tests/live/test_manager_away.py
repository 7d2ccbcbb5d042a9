"""Submitting while the manager is killed or stopped, with a client that repeats nothing."""

import os
import signal
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.client import Client
from tests.support.live import WAIT_S, LiveDrayman, kill, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

SUBMITTERS = 4
STOPPED_S = 4.0


class Submitter:
    """Submits one job after the other, every second one with a key, and looks at each at once."""

    def __init__(self, drayman: LiveDrayman, effects: Path, name: str) -> None:
        self._http = httpx.Client(
            base_url=drayman.url,
            headers={"Authorization": f"Bearer {drayman.said['token']}"},
            timeout=30.0,
            trust_env=False,
        )
        self._job = {"type": "live.effect", "params": {"path": str(effects)}}
        self._name = name
        self.accepted: list[str] = []
        self.refused: list[tuple[int, str]] = []
        self.seen: Counter[int] = Counter()
        #: (moment, seconds until the answer)
        self.took: list[tuple[float, float]] = []

    def run(self, stop: threading.Event) -> None:
        with self._http:
            while not stop.is_set():
                self._submit(len(self.took))
                stop.wait(0.02)

    def _submit(self, number: int) -> None:
        key = {"Idempotency-Key": f"{self._name}-{number}"} if number % 2 else {}
        began = time.monotonic()
        answer = self._http.post("/v1/jobs", json=self._job, headers=key)
        self.took.append((began, time.monotonic() - began))
        if answer.status_code != 202:
            self.refused.append((answer.status_code, answer.text))
            return
        job_id = answer.json()["id"]
        self.accepted.append(job_id)
        self.seen[self._http.get(f"/v1/jobs/{job_id}").status_code] += 1


@pytest.mark.parametrize("trouble", ["killed", "stopped"])
def test_submissions_are_accepted_while_the_manager_is(
    drayman: LiveDrayman, client: Client, tmp_path: Path, trouble: str
) -> None:
    effects, stop = tmp_path / "effects", threading.Event()
    submitters = [Submitter(drayman, effects, f"{trouble}-{n}") for n in range(SUBMITTERS)]

    with ThreadPoolExecutor(SUBMITTERS) as pool:
        running = [pool.submit(one.run, stop) for one in submitters]
        until(lambda: all(len(one.accepted) > 5 for one in submitters))
        manager = drayman.pid("ray::QueueManager")
        began = time.monotonic()
        if trouble == "killed":
            kill(manager)
            until(lambda: drayman.pid("ray::QueueManager") != manager)
        else:
            os.kill(manager, signal.SIGSTOP)
            stop.wait(STOPPED_S)
            os.kill(manager, signal.SIGCONT)
        ended = time.monotonic()
        enough = {one: len(one.accepted) + 10 for one in submitters}
        until(lambda: all(len(one.accepted) > enough[one] for one in submitters))
        stop.set()
        for one in running:
            one.result(WAIT_S)
    accepted = [job_id for one in submitters for job_id in one.accepted]
    jobs = [client.wait(job_id, WAIT_S) for job_id in accepted]

    assert [one.refused for one in submitters] == [[]] * SUBMITTERS
    assert len(set(accepted)) == len(accepted)
    assert {job["status"] for job in jobs} == {"completed"}
    assert Counter(effects.read_text().split()) == Counter(accepted)
    # What only the manager knows is 503 while it is away; nothing accepted is ever unknown.
    assert {status for one in submitters for status in one.seen} <= {200, 503}
    meanwhile = [s for one in submitters for at, s in one.took if began + 1.5 < at < ended]
    print(f"{trouble}: {len(accepted)} accepted, {len(meanwhile)} of them while it was away;")
    if meanwhile:
        print(f"answered in {statistics.median(meanwhile) * 1e3:.1f} ms p50 then")
    print("slowest answer:", max(s for one in submitters for _, s in one.took))
    print("looks:", sum((one.seen for one in submitters), Counter()))
