"""Commands for operators: queues, workers, dead letters, metrics; and that tables fit."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from service.cli_show import print_table
from tests.cli.conftest import Drayman, Server

Dies = Callable[..., str]


@pytest.fixture
def admin(server: Server, connected: Drayman, monkeypatch: pytest.MonkeyPatch) -> Drayman:
    monkeypatch.setenv("DRAYMAN_TOKEN", server.token("acme", "admin"))
    return connected


@pytest.fixture
def dies(server: Server, connected: Drayman) -> Dies:
    """Submit a job that fails for good; return its id."""

    def submit(*more: str, type: str = "greet") -> str:
        ran = connected("submit", type, "--param", "name=Ada", *more)
        assert ran.code == 0, ran.err
        server.do(server.worker.fail("the printer is on fire"))
        return ran.out.strip()

    return submit


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a person type this next."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


# --- queues and workers -----------------------------------------------------------------------


@pytest.mark.parametrize(("what", "back"), [("pause", "resume"), ("drain", "fill")])
def test_queue_is_told_and_shown(admin: Drayman, what: str, back: str) -> None:
    told = json.loads(admin("queues", what, "default", "io", "--json").out)
    shown = admin("queues")
    undone = json.loads(admin("queues", back, "default", "io", "--json").out)

    state = {"pause": "paused", "drain": "draining"}[what]
    assert [queue[state] for queue in told] == [True, True]
    assert shown.out.count(state) >= 2
    assert [queue[state] for queue in undone] == [False, False]


def test_queues_say_why_they_wait(admin: Drayman) -> None:
    admin("submit", "greet", "--param", "name=Ada")

    ran = admin("queues")

    assert "default waits: pool cpu has no workers: its max is 0" in ran.out


def test_worker_is_told_and_shown(server: Server, admin: Drayman) -> None:
    admin("submit", "greet", "--param", "name=Ada")
    server.do(server.worker.take())

    paused = admin("workers", "pause", "scripted")
    resumed = admin("workers", "resume", "scripted")
    drained = json.loads(admin("workers", "drain", "scripted", "--json").out)

    assert ("paused" in paused.out, "paused" in resumed.out) == (True, False)
    assert [worker["draining"] for worker in drained] == [True]


def test_wrong_words_end_2(admin: Drayman) -> None:
    for line in (
        "queues pause",
        "queues stop default",
        "queues pause nowhere",
        "workers drain",
        "workers fill scripted",
        "workers drain nobody",
    ):
        assert admin(*line.split()).code == 2, line


# --- dead letters -----------------------------------------------------------------------------


def test_dead_letters_are_counted(connected: Drayman, dies: Dies) -> None:
    dies()
    dies()

    shown = connected("dead-letters", "--counts").out.splitlines()
    told = json.loads(connected("dead-letters", "--counts", "--json").out)
    none = connected("dead-letters", "--counts", "--queue", "io")

    assert shown[1].split() == ["default", "greet", "error", "2"]
    [one] = told
    assert (one["count"], one["error"]) == (2, "the printer is on fire")
    assert (none.out, none.err) == ("", "no dead letters\n")


def test_redrive_takes_a_rate(connected: Drayman, dies: Dies) -> None:
    first, second = dies(), dies()

    ran = connected("redrive", "--all", "--rate", "0.01")

    waits = [json.loads(connected("status", one, "--json").out) for one in (first, second)]
    assert ran.out == "redriven: 2\n"
    assert [job["next_attempt_at"] is None for job in waits] == [True, False]
    assert connected("redrive", "--all", "--rate", "0").code == 2


def test_one_job_is_redriven_with_other_params(
    server: Server, connected: Drayman, dies: Dies
) -> None:
    for edit in (["--set", "name=Bob"], ["--params", '{"name": "Bob", "times": 2}']):
        job_id = dies("--param", "times=2")

        ran = connected("redrive", job_id, *edit)

        assert ran.out == "redriven: 1\n", ran.err
        assignment = server.do(server.worker.take())
        assert json.loads(bytes(assignment.spec))["params"] == {"name": "Bob", "times": 2}
        connected("cancel", job_id)
        server.do(server.worker.obey_stop(assignment))


def test_other_params_are_checked_and_for_one_job_only(connected: Drayman, dies: Dies) -> None:
    job_id = dies()

    wrong = connected("redrive", job_id, "--set", "name=7")

    assert (wrong.code, "params.name" in wrong.err) == (2, True)
    assert connected("redrive", "--all", "--set", "name=Bob").code == 2
    assert connected("redrive", job_id, job_id, "--set", "name=Bob").code == 2
    assert connected("redrive", job_id, "--rate", "1", "--set", "name=Bob").code == 2
    assert connected("redrive", job_id, "--params", "{").code == 2
    assert job_id in connected("dead-letters").out


def test_purge_asks_first(connected: Drayman, dies: Dies, answers: Callable[[str], None]) -> None:
    job_id = dies()

    answers("n\n")
    declined = connected("purge", "--type", "greet")
    answers("")
    nobody = connected("purge", "--all")
    kept = connected("dead-letters").out
    answers("y\n")
    agreed = connected("purge", job_id)

    assert "Let 1 of the dead letters go for good?" in declined.err
    assert (declined.code, nobody.code, job_id in kept) == (2, 2, True)
    assert (agreed.code, agreed.out) == (0, "purged: 1\n")
    assert connected("dead-letters").out == ""


def test_purge_asks_nothing_where_there_is_nothing(connected: Drayman) -> None:
    ran = connected("purge", "--type", "no.such")

    assert (ran.code, ran.out, ran.err) == (0, "purged: 0\n", "")


def test_purge_with_yes_does_not_ask(connected: Drayman, dies: Dies) -> None:
    dies()

    assert json.loads(connected("purge", "--all", "--yes", "--json").out) == {"purged": 1}
    assert connected("purge", "--yes").code == 2


# --- metrics and tables -----------------------------------------------------------------------


def test_dashboard_is_json_to_import(drayman: Drayman) -> None:
    assert json.loads(drayman("metrics", "dashboard").out)["title"] == "Drayman"


def test_tables_fit_100_columns(server: Server, admin: Drayman, dies: Dies) -> None:
    dies()
    admin("submit", "greet", "--param", "name=Ada")
    admin("queues", "pause", "default")
    admin("queues", "drain", "default")

    for command in ("queues", "workers", "types", "dead-letters", "list"):
        ran = admin(command)
        assert ran.code == 0
        assert 0 < widest(ran.out) <= 100, ran.out


def test_texts_that_are_too_wide_go_on_below_and_words_are_never_parted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job_id = "01a2190f-68d1-7000-95ca-17b3f5f4e054"
    rows: list[list[Any]] = [[job_id, None, "word " * 40], ["b", "", 7]]

    print_table(["ID", "", "WORDS"], rows, "nothing")

    told = capsys.readouterr().out
    assert widest(told) <= 100
    assert (told.count(job_id), told.count("word")) == (1, 40)
    assert told.splitlines()[-1].split() == ["b", "7"]
