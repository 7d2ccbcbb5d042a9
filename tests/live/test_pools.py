"""Pools that follow what waits, and workers that come and go by an operator's word."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import Client, Json
from tests.support.flow import configured, workers_of
from tests.support.live import WAIT_S, LiveDrayman, until

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(300)]

MOST = 3
#: No node has so many.
GPUS = 16


@pytest.fixture(scope="module", autouse=True)
def config(drayman: LiveDrayman) -> Iterator[None]:
    pools = {
        "elastic": {"queues": ["elastic"], "min": 0, "max": MOST, "wait_s": 0.2, "idle_s": 1},
        "steady": {"queues": ["steady"], "min": 1, "max": 1},
        "gpu": {"queues": ["gpu"], "min": 0, "max": 1, "num_gpus": GPUS},
    }
    with drayman.client() as client, configured(client, pools=pools):
        until(lambda: worker_of(client, "steady"))
        yield


@pytest.fixture
def gate(client: Client, tmp_path: Path) -> Iterator["Gate"]:
    """A job that holds its worker until the test opens it."""
    gate = Gate(client, tmp_path)
    yield gate
    gate.open()


class Gate:
    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._opened = client, folder / "opened"
        self._params = {"begun": str(folder / "begun"), "opened": str(self._opened)}
        self.id = ""

    def hold(self, queue: str) -> None:
        self.id = self._client.submit("live.gate", self._params, queue=queue)["id"]
        until(Path(self._params["begun"]).exists)

    def open(self) -> Json:
        self._opened.touch()
        return self._client.wait(self.id, WAIT_S) if self.id else {}


def worker_of(client: Client, pool: str) -> str:
    """Return the one worker of a pool that is ready for work; empty if there is none."""
    found = [w["name"] for w in workers_of(client, pool) if w["free"] + w["held"] > 0]
    return found[0] if found else ""


def run_one(client: Client, queue: str) -> str:
    """Run a job there; return which worker did."""
    job_id = client.submit("flow.nap", queue=queue)["id"]
    assert client.wait(job_id, WAIT_S)["status"] == "completed"
    return str(client.attempts(job_id)[-1]["worker"])


def pools_with(client: Client, name: str, **changes: Any) -> Json:
    """Return the pools in force with one changed."""
    pools = client.config()[0]["pools"]
    return {name: pools[name] | changes}


def test_pool_grows_with_what_waits_and_goes_to_nothing_without(client: Client) -> None:
    assert workers_of(client, "elastic") == []

    params = {"lasts_s": 0.1}
    jobs = ({"type": "flow.nap", "params": params, "queue": "elastic"} for _ in range(80))
    ids = [line["id"] for line in client.submit_many(jobs)]
    until(lambda: len(workers_of(client, "elastic")) == MOST)
    ended = [client.wait(job_id, WAIT_S) for job_id in ids]
    until(lambda: not workers_of(client, "elastic"))
    back = run_one(client, "elastic")

    assert {(job["status"], job["attempts"]) for job in ended} == {("completed", 1)}
    assert len({client.attempts(job_id)[0]["worker"] for job_id in ids}) > 1
    assert back.startswith("worker-elastic")


def test_drained_worker_finishes_what_it_has_beside_the_one_that_takes_its_place(
    client: Client, gate: Gate
) -> None:
    gate.hold("steady")
    (before,) = (w["name"] for w in workers_of(client, "steady"))

    client.drain_worker(before)
    after = run_one(client, "steady")
    held = gate.open()
    until(lambda: before not in {w["name"] for w in client.workers()})

    assert after != before
    assert (held["status"], held["attempts"], held["recoveries"]) == ("completed", 1, 0)
    assert [attempt["worker"] for attempt in client.attempts(gate.id)] == [before]


def test_paused_worker_takes_nothing_until_it_is_resumed(client: Client) -> None:
    worker = until(lambda: worker_of(client, "steady"))

    client.pause_worker(worker)
    job_id = client.submit("flow.nap", queue="steady")["id"]
    waiting = client.status(job_id)
    client.resume_worker(worker)
    ended = client.wait(job_id, WAIT_S)

    assert waiting["status"] == "pending"
    assert waiting["pending_reason"] == "every worker of queue steady is paused"
    assert (ended["status"], client.attempts(job_id)[0]["worker"]) == ("completed", worker)


def test_pool_that_is_changed_gets_new_workers_and_loses_and_charges_no_work(
    drayman: LiveDrayman, client: Client, gate: Gate, tmp_path: Path
) -> None:
    gate.hold("steady")
    (before,) = (w["name"] for w in workers_of(client, "steady"))
    waiting = [client.submit("flow.nap", queue="steady")["id"] for _ in range(10)]

    with configured(client, pools=pools_with(client, "steady", max_tasks_per_worker=3)):
        ended = [client.wait(job_id, WAIT_S) for job_id in waiting]
        after = {client.attempts(job_id)[0]["worker"] for job_id in waiting}
        held = gate.open()
        until(lambda: before not in {w["name"] for w in client.workers()})
        with configured(client, pools=pools_with(client, "steady", min=2, max=2)):
            until(lambda: len(workers_of(client, "steady")) == 2)
            kept = {w["name"] for w in workers_of(client, "steady")}

    assert {(job["status"], job["attempts"], job["recoveries"]) for job in ended} == {
        ("completed", 1, 0)
    }
    assert before not in after
    # More of the same kind is no reason to replace those there are.
    assert after < kept
    assert (held["status"], held["attempts"], held["recoveries"]) == ("completed", 1, 0)
    assert len(client.attempts(gate.id)) == 1


def test_file_is_put_in_force_while_it_runs(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "drayman.toml"
    file.write_text(drayman.run("config", "show").stdout)
    with configured(client):
        changed = file.read_text().replace("[pools.steady]", "[pools.steady]\nwait_s = 1.5")
        file.write_text(changed)

        applied = drayman.run("config", "apply", str(file))

        assert applied.returncode == 0, applied.stderr
        assert "pools.steady.wait_s: 5.0 -> 1.5" in applied.stdout
        assert client.config()[0]["pools"]["steady"]["wait_s"] == 1.5


def test_job_for_a_gpu_that_no_node_has_says_so(client: Client) -> None:
    job_id = client.submit("flow.nap", queue="gpu")["id"]

    why = until(lambda: why_it_waits(client, job_id, "no node"))
    (queue,) = (queue for queue in client.queues() if queue["name"] == "gpu")
    cancelled = client.cancel(job_id)

    assert why.startswith("no worker of pool gpu can be placed: no node ")
    assert f"has GPU: {GPUS} (the largest has " in why
    assert queue["pending_reason"] == why
    assert cancelled["status"] == "cancelled"


def test_job_of_a_queue_that_was_taken_away_says_so_and_runs_once_it_is_back(
    client: Client, gate: Gate
) -> None:
    gate.hold("steady")
    job_id = client.submit("flow.nap", queue="steady")["id"]

    before, _ = client.config()
    pools = {name: pool for name, pool in before["pools"].items() if name != "steady"}
    client.configure(before | {"pools": pools})
    held = gate.open()
    why = client.status(job_id)["pending_reason"]
    client.configure(before)
    ended = client.wait(job_id, WAIT_S)

    assert why == "no pool serves queue steady"
    assert (held["status"], held["attempts"]) == ("completed", 1)
    assert (ended["status"], ended["attempts"]) == ("completed", 1)


def why_it_waits(client: Client, job_id: str, word: str) -> str:
    """Return why, once the reason has this word in it."""
    reason = client.status(job_id)["pending_reason"] or ""
    return reason if word in reason else ""
