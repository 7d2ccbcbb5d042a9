"""Workers that die, hang and are told to go: how soon their work goes on, and what it costs."""

import os
import signal
import statistics
import time
from pathlib import Path

import pytest

from service.client import Client
from tests.live.test_kills import all_workers_are_free
from tests.support.eventually import gone
from tests.support.live import WAIT_S, LiveDrayman, kill, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

KILLS = 5
#: Kill of a worker to the same task running on a free one: as a bound; the benchmarks measure it.
AGAIN_S = 5.0
#: Silence after which a worker is given up, and what finding it out and the next start may add.
HEARTBEAT_TIMEOUT_S, SLACK_S = 15.0, 5.0


def begun(path: Path, attempt: int, within_s: float = WAIT_S) -> tuple[int, float]:
    """Wait for an attempt of `live.lasting`; return its process and when it began."""
    said = Path(f"{path}-{attempt}")
    until(said.exists, within_s)
    pid, at = said.read_text().split()
    return int(pid), float(at)


def start_lasting(client: Client, path: Path) -> tuple[str, int, int]:
    """Return a running job's id, its handler's process and its worker's."""
    until(lambda: all_workers_are_free(client))
    job_id = client.submit("live.lasting", {"path": str(path)})["id"]
    handler, _ = begun(path, 1)
    name = client.attempts(job_id)[-1]["worker"]
    worker = next(w["pid"] for w in client.workers() if w["name"] == name)
    return job_id, handler, worker


def end(client: Client, job_id: str, path: Path) -> dict[str, object]:
    Path(f"{path}-end").touch()
    return client.wait(job_id, WAIT_S)


def test_work_of_a_killed_worker_runs_again_at_once_and_not_when_its_silence_is_noticed(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    took_s = []
    for n in range(KILLS):
        path = tmp_path / f"job-{n}"
        job_id, _, worker = start_lasting(client, path)

        killed_at = time.time()
        kill(worker)
        took_s.append(begun(path, 2)[1] - killed_at)

        assert end(client, job_id, path)["result"] == 1

    assert statistics.median(took_s) <= AGAIN_S, took_s


@pytest.mark.long
def test_hung_worker_is_given_up_in_its_time_and_what_it_ran_never_runs_beside_the_next(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    job_id, handler, worker = start_lasting(client, path)

    os.kill(worker, signal.SIGSTOP)
    hung_at = time.time()
    until(lambda: gone(handler), HEARTBEAT_TIMEOUT_S)
    gone_at = time.time()
    _, again_at = begun(path, 2, HEARTBEAT_TIMEOUT_S + SLACK_S)
    os.kill(worker, signal.SIGCONT)
    until(lambda: gone(worker))
    job = end(client, job_id, path)

    assert gone_at <= again_at < hung_at + HEARTBEAT_TIMEOUT_S + SLACK_S
    assert (job["status"], job["result"]) == ("completed", 1)
    first, second = client.attempts(job_id)
    assert (first["outcome"], first["cause"]) == ("crashed", "lease lost")
    assert second["outcome"] == "succeeded"


def test_worker_told_to_end_hands_its_work_back_uncharged(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    job_id, handler, worker = start_lasting(client, path)

    os.kill(worker, signal.SIGTERM)
    begun(path, 2)
    until(lambda: gone(handler, worker))
    job = end(client, job_id, path)

    assert (job["status"], job["result"]) == ("completed", 1)
    assert (job["recoveries"], client.attempts(job_id)[0]["outcome"]) == (0, "interrupted")
    until(lambda: all_workers_are_free(client))
