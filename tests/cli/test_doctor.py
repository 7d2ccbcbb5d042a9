"""`drayman doctor` says in words what is wrong with what runs, and what to do about it."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.diagnosis import (
    clocks,
    dead_letters,
    diagnose,
    disk,
    manager,
    queues,
    replicas,
    schedules,
    workers,
)
from service.edge import free_port
from service.finding import Finding
from service.schemas.queues import DeadCount, Queue, Worker
from service.schemas.schedules import Schedule
from tests.cli.conftest import Server

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
QUIET = {
    "name": "default",
    "pools": ["cpu"],
    "paused": False,
    "ready": 0,
    "leased": 0,
    "scheduled": 0,
    "backing_off": 0,
    "dead": 0,
    "oldest_age_s": 0.0,
    "drain_rate": 0.0,
    "workers": 1,
    "depth_max": 100,
    "parked": 0,
    "depth": 0,
    "bytes": 0,
    "bytes_max": 1000,
    "draining": False,
    "run_s": None,
    "eta": None,
    "pending_reason": None,
}


def a_queue(**changes: Any) -> Queue:
    return msgspec.convert(QUIET | changes, Queue)


def a_worker(**changes: Any) -> Worker:
    usual = {"name": "w1", "pool": "cpu", "queues": ["default"], "node": "n1", "pid": 1, "held": 0}
    more = {"started": 0, "free": 1, "silent_s": 0.5, "draining": False, "paused": False}
    return msgspec.convert(usual | more | changes, Worker)


def a_schedule(**changes: Any) -> Schedule:
    usual = {
        "name": "nightly",
        "tenant": "default",
        "cron": "0 3 * * *",
        "timezone": "UTC",
        "catch_up": "latest",
        "jitter_s": 0.0,
        "overlap": "allow",
        "starts_at": None,
        "ends_at": None,
        "paused": False,
        "job": msgspec.Raw(b"{}"),
        "next": [NOW + timedelta(hours=15)],
        "last_at": NOW,
        "last_job": "a",
        "fired": 3,
        "skipped": 0,
    }
    return Schedule(**(usual | changes))  # type: ignore[arg-type]


class AJob(msgspec.Struct, frozen=True):
    """What is looked at of a job."""

    submitted_at: datetime = NOW
    started_at: datetime | None = NOW
    finished_at: datetime | None = NOW


def told(found: Iterable[Finding], level: str) -> str:
    """Return the text of the only finding that is not fine."""
    (finding,) = [one for one in found if one.level != "ok"]
    assert finding.level == level, finding
    return finding.text


def test_a_quiet_cluster_is_fine() -> None:
    job: Any = AJob()
    found = [
        *manager(0.002),
        *queues([a_queue(), a_queue(name="io", ready=3, leased=1, oldest_age_s=2.0)]),
        *workers([a_worker()]),
        *dead_letters([], [], NOW.timestamp()),
        *schedules([a_schedule()], NOW.timestamp()),
        *clocks([job], NOW.timestamp()),
    ]

    assert {one.level for one in found} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"paused": True, "ready": 7}, "wrong", "drayman queues resume default"),
        ({"paused": True}, "note", "nothing waits"),
        ({"ready": 2, "pending_reason": "no node has a GPU"}, "wrong", "no node has a GPU"),
        ({"ready": 2, "workers": 0, "oldest_age_s": 60.0}, "wrong", "no worker serves it"),
        ({"ready": 900, "leased": 4, "oldest_age_s": 7200.0}, "note", "for 2 h"),
        ({"parked": 50, "leased": 2}, "note", "wait at a limit"),
        ({"draining": True}, "wrong", "drayman queues fill default"),
        ({"depth": 80}, "wrong", "80 of 100 jobs"),
        ({"bytes": 950}, "wrong", "950 of 1,000 bytes"),
    ],
)
def test_a_queue_that_is_held_up_says_why(changes: dict[str, Any], level: str, words: str) -> None:
    assert words in told(queues([a_queue(**changes)]), level)


def test_workers_that_are_silent_paused_or_missing_are_told_of() -> None:
    assert "node n7" in told(workers([a_worker(silent_s=40.0, node="n7")]), "wrong")
    assert "w1" in told(workers([a_worker(paused=True)]), "note")
    assert "none" in told(workers([]), "note")


def test_who_holds_gpus_is_told_even_where_a_worker_is_silent() -> None:
    found = list(
        workers(
            [
                a_worker(pool="train", gpus=1.0),
                a_worker(pool="infer", gpus=0.5, silent_s=40.0),
                a_worker(pool="infer", gpus=0.5),
                a_worker(),
            ]
        )
    )

    (gpus,) = [one for one in found if one.check == "gpus"]
    assert (gpus.level, gpus.text) == ("ok", "pool train holds 1, pool infer holds 1")
    assert gpus.facts == {"gpus": {"train": 1.0, "infer": 1.0}}
    assert "gpus" not in [one.check for one in workers([a_worker()])]


def test_dead_letters_that_grow_are_wrong_and_old_ones_a_note() -> None:
    counts = [DeadCount("default", "shop.mail", "TimeoutError", 30), DeadCount("io", "b", "oom", 2)]
    new: Any = [AJob()] * 12
    old: Any = [AJob(finished_at=NOW - timedelta(days=2))] * 12

    assert "30 shop.mail (TimeoutError)" in told(
        dead_letters(counts, new, NOW.timestamp()), "wrong"
    )
    assert "32, 0 of the last hour" in told(dead_letters(counts, old, NOW.timestamp()), "note")


def test_a_schedule_that_never_fires_again_is_told_of() -> None:
    now = NOW.timestamp()

    assert "no moment to come" in told(schedules([a_schedule(next=[])], now), "wrong")
    over = a_schedule(next=[], ends_at=NOW - timedelta(days=1))
    assert "it is over" in told(schedules([over], now), "note")
    assert "skipped 9" in told(schedules([a_schedule(skipped=9)], now), "note")


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (AJob(started_at=NOW - timedelta(seconds=30)), "30 s behind"),
        (AJob(finished_at=NOW + timedelta(seconds=90)), "90 s ahead"),
    ],
)
def test_clocks_that_differ_are_wrong(job: Any, words: str) -> None:
    assert words in told(clocks([job], NOW.timestamp()), "wrong")


def test_a_slow_manager_is_wrong() -> None:
    assert "store is slow" in told(manager(2.0), "wrong")


def test_a_store_that_is_gone_is_wrong_and_a_bucket_is_not_looked_at(tmp_path: Path) -> None:
    assert "not there" in told(disk(str(tmp_path / "gone")), "wrong")
    assert [one.level for one in disk(tmp_path.as_uri())] == ["ok"]
    assert list(disk("s3://bucket/drayman")) == []


# --- a Drayman that runs ----------------------------------------------------------------------


def judged(url: str, token: str, folder: Path) -> dict[str, Finding]:
    return {one.check: one for one in diagnose("port 1", url, token, str(folder))}


def test_the_doctor_asks_a_drayman_that_runs(server: Server, tmp_path: Path) -> None:
    async def trouble() -> None:
        acme, admin = server.api.client("acme"), server.api.client("ops", "admin")
        greet = {"type": "greet", "params": {"name": "Ada"}}
        await acme.post("/v1/jobs", json=greet)
        await server.worker.fail("it broke")
        await admin.post("/v1/queues/default/pause")
        await acme.post("/v1/jobs", json=greet)

    server.do(trouble())

    found = judged(server.url, server.token("ops", "admin"), tmp_path)

    assert found["manager"].level == "ok"
    assert found["queue default"].level == "wrong"
    assert found["queue default"].facts["ready"] == 1
    assert "1 greet (error)" in found["dead letters"].text
    assert "clocks" not in found


def test_a_drayman_that_does_not_answer_is_wrong(tmp_path: Path) -> None:
    found = judged(f"http://127.0.0.1:{free_port()}", "token", tmp_path)

    assert found["port 1 answers"].level == "wrong"
    assert "drayman down" in found["port 1 answers"].text


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """Run a server that answers everything so."""

    class Odd(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as odd:
        thread = threading.Thread(target=odd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{odd.server_port}"
        finally:
            odd.shutdown()
            thread.join()


def test_one_that_answers_like_another_version_is_not_judged(tmp_path: Path) -> None:
    with answering(b"{}") as url:
        found = judged(url, "token", tmp_path)

    assert found["port 1 answers"].level == "note"


@pytest.mark.parametrize(
    ("states", "level", "words"),
    [
        (["RUNNING", "RUNNING"], "ok", "2 of 2"),
        (["RUNNING", "STARTING"], "wrong", "1 of 2 answer the API: it dies; Serve starts"),
        (["RUNNING"], "wrong", "1 of 2"),
    ],
)
def test_an_api_with_fewer_replicas_than_wanted_is_wrong(
    states: list[str], level: str, words: str
) -> None:
    """As Ray's dashboard tells it."""
    running = [{"replica_id": "a", "state": state} for state in states]
    api = {"target_num_replicas": 2, "replicas": running, "message": "it dies", "status": "X"}
    others = {"other": {"deployments": {"Api": {**api, "replicas": []}}}}
    served = {"applications": {"drayman": {"deployments": {"Api": api}}, **others}}
    with answering(msgspec.json.encode(served)) as url:
        (found,) = replicas(url, "token")

    assert (found.level, found.facts["wanted"]) == (level, 2)
    assert words in found.text


def test_a_dashboard_of_rays_that_does_not_say_is_no_fault() -> None:
    (found,) = replicas(f"http://127.0.0.1:{free_port()}", "")

    assert found.level == "note"
