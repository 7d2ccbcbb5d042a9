"""`kill -9` of parts of a Drayman that goes on: the manager, workers, handlers."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.client import Client
from tests.support.eventually import gone
from tests.support.live import WAIT_S, LiveDrayman, kill, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

SUBMITTERS, JOBS_EACH = 4, 60
#: A hung worker is taken for dead after 15 s of silence. A killed one must be noticed without.
NOTICED_S = 10.0


def kill_manager(drayman: LiveDrayman) -> int:
    """Kill it, and return its successor once there is one."""
    killed = drayman.pid("ray::QueueManager")
    kill(killed)
    until(lambda: gone(killed))
    return drayman.pid("ray::QueueManager")


def has_at_least(found: list[str], count: int) -> bool:
    return len(found) >= count


def all_workers_are_free(client: Client) -> bool:
    workers = [worker for worker in client.workers() if worker["pool"] == "cpu"]
    return len(workers) >= 2 and all(w["held"] == 0 and w["free"] > 0 for w in workers)


def begin_family(client: Client, path: Path) -> tuple[str, list[int], int]:
    """Start `live.family`; return its id, its processes (handler first) and its worker's."""
    until(lambda: all_workers_are_free(client))
    job_id = client.submit("live.family", {"path": str(path)})["id"]
    until(path.exists)
    worker = client.attempts(job_id)[-1]["worker"]
    worker_pid = next(w["pid"] for w in client.workers() if w["name"] == worker)
    return job_id, [int(pid) for pid in path.read_text().split()], worker_pid


def test_no_acknowledged_job_is_lost_or_doubled_when_the_manager_is_killed(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    acknowledged: list[str] = []
    effects, lock = tmp_path / "effects", threading.Lock()

    def submit() -> None:
        with drayman.client() as own:
            for _ in range(JOBS_EACH):
                params = {"path": str(effects)}
                # A reply that the kill swallowed makes the client send the same again.
                job = own.submit("live.effect", params, labels={"kill": "manager"})
                with lock:
                    acknowledged.append(job["id"])

    with ThreadPoolExecutor(SUBMITTERS) as pool:
        submitting = [pool.submit(submit) for _ in range(SUBMITTERS)]
        for enough in (40, 120):
            until(partial(has_at_least, acknowledged, enough))
            kill_manager(drayman)
        for one in submitting:
            one.result(WAIT_S)
    ended = [client.wait(job_id, WAIT_S) for job_id in acknowledged]

    assert len(set(acknowledged)) == len(acknowledged) == SUBMITTERS * JOBS_EACH
    assert {job["status"] for job in ended} == {"completed"}
    assert [job["result"] for job in ended] == acknowledged
    assert Counter(effects.read_text().split()) == Counter(acknowledged)
    known = {job["id"] for job in client.jobs(label="kill=manager")}
    assert known == set(acknowledged)


def test_a_job_runs_on_while_the_manager_is_killed(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    begun, opened = tmp_path / "begun", tmp_path / "opened"
    job_id = client.submit("live.gate", {"begun": str(begun), "opened": str(opened)})["id"]
    until(begun.exists)
    handler = int(begun.read_text())

    kill_manager(drayman)
    # The new one answers, so it has replayed its journal and heard of the worker.
    assert client.status(job_id)["status"] == "processing"
    assert not gone(handler)
    opened.touch()
    job = client.wait(job_id, WAIT_S)

    assert (job["status"], job["attempts"], job["recoveries"]) == ("completed", 1, 0)
    assert job["result"] == 1


@pytest.mark.parametrize("victims", ["handler", "worker", "both"])
def test_a_job_whose_process_is_killed_runs_again_and_leaves_nothing(
    drayman: LiveDrayman, client: Client, tmp_path: Path, victims: str
) -> None:
    job_id, (handler, sleeper, keeper), worker = begin_family(client, tmp_path / "family")

    kill(*{"handler": [handler], "worker": [worker], "both": [worker, handler]}[victims])
    until(lambda: len(client.attempts(job_id)) == 2, NOTICED_S)
    job = client.wait(job_id, WAIT_S)

    until(lambda: gone(handler, sleeper), NOTICED_S)
    if victims != "handler":
        until(lambda: gone(worker, keeper), NOTICED_S)
    assert (job["status"], job["result"], job["recoveries"]) == ("completed", "again", 1)
    first, second = client.attempts(job_id)
    assert (first["outcome"], second["outcome"]) == ("crashed", "succeeded")
    if victims != "handler":
        assert first["worker"] != second["worker"]


def test_a_worker_that_was_killed_is_replaced(drayman: LiveDrayman, client: Client) -> None:
    until(lambda: all_workers_are_free(client))
    before = {w["name"]: w["pid"] for w in client.workers() if w["pool"] == "cpu"}
    name, pid = before.popitem()

    kill(pid)

    until(lambda: name not in {worker["name"] for worker in client.workers()}, NOTICED_S)
    until(lambda: all_workers_are_free(client))


def test_a_job_that_always_kills_its_process_is_a_dead_letter_and_harms_no_other(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    effects, cure = tmp_path / "effects", tmp_path / "cure"
    poison = client.submit("live.poison", {"path": str(cure)})["id"]
    others = [client.submit("live.effect", {"path": str(effects)})["id"] for _ in range(20)]

    dead = client.wait(poison, WAIT_S)
    others_ended = [client.wait(job_id, WAIT_S) for job_id in others]
    listed = drayman.run("dead-letters", "--type", "live.poison")
    cure.touch()
    redriven = drayman.run("redrive", poison)
    revived = client.wait(poison, WAIT_S)

    assert (dead["status"], dead["error"]["cause"]) == ("failed", "signal 9")
    assert dead["recoveries"] == 3
    assert "about to die" in client.logs(poison)
    assert {job["status"] for job in others_ended} == {"completed"}
    assert Counter(effects.read_text().split()) == Counter(others)
    assert [poison in line and "signal 9" in line for line in listed.stdout.splitlines()[1:]] == [
        True
    ]
    assert (redriven.returncode, redriven.stdout) == (0, "redriven: 1\n")
    assert (revived["status"], revived["result"]) == ("completed", "cured")


def test_nothing_of_a_cancelled_job_lives_on(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    job_id, pids, _ = begin_family(client, tmp_path / "family")

    cancelling: dict[str, Any] = client.cancel(job_id)
    job = client.wait(job_id, WAIT_S)

    assert cancelling["stopping"]
    assert job["status"] == "cancelled"
    until(lambda: gone(*pids[:2]), NOTICED_S)
