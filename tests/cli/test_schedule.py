"""`drayman schedule` against a real server."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Drayman, Server

PUT = ["schedule", "put", "nightly", "--cron", "30 2 * * *", "--tz", "Europe/Berlin", "greet"]


def shown(connected: Drayman, *arguments: str) -> Any:
    ran = connected("schedule", *arguments, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_put_shows_what_was_put_and_its_next_ticks_by_the_clock_there(connected: Drayman) -> None:
    ran = connected(*PUT, "name=Ada", "times=2", "--overlap", "skip", "--jitter", "5m")

    assert ran.code == 0, ran.err
    assert "30 2 * * * (Europe/Berlin)" in ran.out
    lines = [line for line in ran.out.splitlines() if line.startswith("next")]
    assert len(lines) == 3
    assert all(" 02:30:00+0" in line for line in lines)
    found = shown(connected, "show", "nightly")
    assert found["job"] == {"type": "greet", "params": {"name": "Ada", "times": 2}}
    assert (found["overlap"], found["jitter_s"], found["paused"]) == ("skip", 300, False)


@pytest.mark.parametrize("how", ["inline", "file", "option", "pairs"])
def test_params_come_as_for_submit_and_as_words(
    connected: Drayman, tmp_path: Path, how: str
) -> None:
    params = {"name": "Ada", "times": 2}
    (tmp_path / "params.json").write_text(json.dumps(params))
    given = {
        "inline": ["--params", json.dumps(params)],
        "file": ["--params", f"@{tmp_path}/params.json"],
        "option": ["--param", "name=Ada", "--param", "times=2"],
        "pairs": ["name=Ada", "times=2"],
    }[how]

    ran = connected(*PUT, *given)

    assert ran.code == 0, ran.err
    assert shown(connected, "show", "nightly")["job"]["params"] == params


def test_what_a_job_takes_goes_to_the_job(connected: Drayman) -> None:
    more = ["--queue", "io", "--priority", "3", "--timeout", "2m", "--max-attempts", "5"]

    ran = connected(*PUT, "name=Ada", *more, "--label", "team=ads", "--paused", "--json")

    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["paused"] is True
    assert found["job"] == {
        "type": "greet",
        "params": {"name": "Ada"},
        "queue": "io",
        "priority": 3,
        "timeout_s": 120,
        "max_attempts": 5,
        "labels": {"team": "ads"},
    }


def test_list_shows_each_with_its_next_tick(connected: Drayman) -> None:
    assert connected("schedule", "list").err == "no schedules\n"
    connected(*PUT, "name=Ada")
    connected("schedule", "put", "hourly", "--cron", "@hourly", "greet", "name=Bob", "--paused")

    ran = connected("schedule", "list")

    title, hourly, nightly = ran.out.splitlines()
    assert title.split()[:2] == ["NAME", "CRON"]
    assert hourly.split() == ["hourly", "@hourly", "UTC", "greet", "paused", "0"]
    assert "Europe/Berlin" in nightly
    assert " 02:30:00+0" in nightly
    assert [one["name"] for one in shown(connected, "list")] == ["hourly", "nightly"]


def test_next_prints_as_many_ticks_as_are_asked_for(connected: Drayman) -> None:
    connected(*PUT, "name=Ada")

    assert len(connected("schedule", "next", "nightly").out.splitlines()) == 5
    assert len(connected("schedule", "next", "nightly", "-n", "100").out.splitlines()) == 100
    assert len(shown(connected, "next", "nightly", "-n", "2")) == 2
    connected("schedule", "pause", "nightly")
    ran = connected("schedule", "next", "nightly")
    assert (ran.code, ran.out, ran.err) == (0, "", "paused\n")


def test_pause_and_resume(connected: Drayman) -> None:
    connected(*PUT, "name=Ada")

    assert "next      paused" in connected("schedule", "pause", "nightly").out
    assert shown(connected, "show", "nightly")["paused"] is True
    assert "02:30:00" in connected("schedule", "resume", "nightly").out


def test_run_prints_the_id_of_a_job(server: Server, connected: Drayman) -> None:
    connected(*PUT, "name=Ada")

    ran = connected("schedule", "run", "nightly")

    assert ran.code == 0, ran.err
    server.do(server.worker.succeed("hello Ada"))
    assert "completed" in connected("status", ran.out.strip()).out


def test_delete_forgets_it(connected: Drayman) -> None:
    connected(*PUT, "name=Ada")

    assert connected("schedule", "delete", "nightly").code == 0

    ran = connected("schedule", "show", "nightly")
    assert (ran.code, ran.out) == (2, "")
    assert "no schedule 'nightly'" in ran.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["greet", "--cron", "61 * * * *", "name=Ada"], "cron: minute '61'"),
        (["greet", "--cron", "@daily", "--tz", "Mars/Olympus", "name=Ada"], "timezone: "),
        (["greeet", "--cron", "@daily"], "job.type: "),
        (["greet", "--cron", "@daily"], "job.params.name: "),
        (["greet", "--cron", "@daily", "Ada"], "write name=value"),
        (["greet", "--cron", "@daily", "name=Ada", "--jitter", "soon"], "is no duration"),
        (["greet", "--cron", "@daily", "name=Ada", "--notify", "sms:1"], "--notify 'sms:1'"),
        (["greet", "name=Ada"], "--cron"),
    ],
)
def test_what_is_wrong_ends_with_2_and_the_reason(
    connected: Drayman, arguments: list[str], told: str
) -> None:
    ran = connected("schedule", "put", "nightly", *arguments)

    assert (ran.code, ran.out) == (2, "")
    assert told in ran.err
