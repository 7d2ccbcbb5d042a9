"""Schedules on the clock of the wall, through deaths of the manager."""

import threading
import time
from collections import Counter

import pytest

from service.client import Client, Json
from tests.live.test_kills import kill_manager
from tests.support.flow import moment
from tests.support.live import WAIT_S, LiveDrayman, until

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(300)]

EVERY_SECOND = "* * * * * *"
KILLS, BETWEEN_S = 3, 3.0
#: A tick that is due to its job, on a machine that does other things too.
LATE_S = 2.0


def jobs_of(client: Client, schedule: str) -> list[Json]:
    """Return the jobs of its ticks, in order, once it fires no more and all of them have ended."""
    client.pause_schedule(schedule)
    found = list(client.jobs(label=f"of={schedule}"))
    ended = [client.wait(job["id"], WAIT_S) for job in found]
    return sorted(ended, key=lambda job: str(job["scheduled_for"]))


def put(client: Client, name: str, **options: object) -> Json:
    job = {"type": "flow.nap", "labels": {"of": name}}
    return client.put_schedule(name, EVERY_SECOND, job, **options)


def assert_each_tick_has_one_job(client: Client, name: str, jobs: list[Json]) -> list[float]:
    """Return the ticks."""
    told = client.schedule(name)
    ticks = [moment(job["scheduled_for"]) for job in jobs]
    assert {job["status"] for job in jobs} == {"completed"}
    assert ticks == [ticks[0] + n for n in range(len(ticks))]
    assert Counter(ticks).most_common(1)[0][1] == 1
    assert (told["fired"], told["skipped"]) == (len(jobs), 0)
    assert moment(told["last_at"]) == ticks[-1]
    return ticks


def test_every_second_has_its_job_and_none_while_it_is_paused(client: Client) -> None:
    put_at = time.time()
    shown = put(client, "seconds")
    until(lambda: client.schedule("seconds")["fired"] >= 3)

    jobs = jobs_of(client, "seconds")
    paused = client.schedule("seconds")
    again = client.run_schedule("seconds")
    extra = client.wait(again["id"], WAIT_S)
    client.resume_schedule("seconds")
    until(lambda: client.schedule("seconds")["fired"] > len(jobs))
    client.delete_schedule("seconds")

    ticks = [moment(job["scheduled_for"]) for job in jobs]
    assert moment(shown["next"][0]) == ticks[0] == int(put_at) + 1
    assert ticks == [ticks[0] + n for n in range(len(ticks))]
    assert all(
        0 <= moment(job["submitted_at"]) - at < LATE_S for job, at in zip(jobs, ticks, strict=True)
    )
    assert (paused["paused"], paused["next"], paused["fired"]) == (True, [], len(jobs))
    assert (extra["status"], extra["schedule"], extra["scheduled_for"]) == (
        "completed",
        "seconds",
        None,
    )


def test_each_tick_has_exactly_one_job_across_kills_of_the_manager(
    drayman: LiveDrayman, client: Client
) -> None:
    put(client, "steady", catch_up="all")
    began = time.time()

    for _ in range(KILLS):
        threading.Event().wait(BETWEEN_S)
        kill_manager(drayman)
    after = client.schedule("steady")["fired"]
    until(lambda: client.schedule("steady")["fired"] >= after + BETWEEN_S)
    jobs = jobs_of(client, "steady")

    ticks = assert_each_tick_has_one_job(client, "steady", jobs)
    client.delete_schedule("steady")
    assert ticks[0] - began <= 1.0
    assert len(ticks) >= KILLS * BETWEEN_S + BETWEEN_S
    print(f"{len(ticks)} ticks, {len(jobs)} jobs, {KILLS} kills")
