"""`drayman plan`: what it prints and refuses. It asks nobody, so nothing runs here."""

import json

import pytest

from tests.cli.conftest import Drayman

ASKED = ("plan", "--rate", "12/s", "--seconds", "10")


def test_the_answer_has_workers_nodes_and_the_expected_wait(drayman: Drayman) -> None:
    ran = drayman(*ASKED)

    rows = dict(line.split("  ", 1) for line in ran.out.splitlines() if not line.startswith(" "))
    assert ran.code == 0
    assert {name: told.strip() for name, told in rows.items()} == {
        "workers": "134",
        "nodes": "17, each for 8 workers",
        "busy": "89.6% of the slots on average",
        "wait": "109 ms on average, 95% within 767 ms",
        "in line": "1.3 jobs on average, beside 120 jobs that run",
    }
    assert "more than 99.99% within 10 s" in ran.out
    assert "counted in: 2 ms of Drayman's own" in ran.err


def test_json_has_the_same_as_numbers(drayman: Drayman) -> None:
    more = ("--at-once", "4", "--node-cpus", "16", "--burst", "1000", "--peak", "10")

    told = json.loads(drayman(*ASKED, *more, "--json").out)

    assert (told["rate"], told["run_s"], told["wait_goal_s"]) == (12, 10, 10)
    assert (told["workers"], told["slots"], told["nodes"]) == (34, 136, 3)
    assert told["utilisation"] == pytest.approx(120.024 / 136)
    assert told["backlog"] == pytest.approx(12 * told["wait_mean_s"])
    assert set(told["burst"]) == {"jobs", "done_s", "gone_s"}
    assert (told["peak"]["times"], told["peak"]["lasts_s"]) == (10, 3600)


def test_a_rate_has_any_of_some_units(drayman: Drayman) -> None:
    rates = ("12/s", "12", "720/min", "43200/h", "1036800/d", " 12 / s ")

    plans = [drayman("plan", "--rate", rate, "--seconds", "10", "--json").out for rate in rates]

    assert len(set(plans)) == 1


def test_a_burst_and_a_peak_are_told_when_they_are_over(drayman: Drayman) -> None:
    ran = drayman(*ASKED, "--burst", "10000", "--peak", "10", "--peak-s", "2h")

    assert "10,000 jobs at once are done after 13 min; the line is gone after 119 min" in ran.out
    assert "10 times the rate for 2 h: 896% of what these workers can do" in ran.out
    assert "1,334 workers would be enough for it" in ran.out


def test_a_load_for_more_than_one_manager_or_queue_is_noted(drayman: Drayman) -> None:
    ran = drayman("plan", "--rate", "600/s", "--seconds", "1", "--peak", "10")

    assert "one manager feeds some 5,000 jobs/s" in ran.err
    assert "a queue takes 1,000,000 jobs by default" in ran.err
    assert "one manager" not in drayman(*ASKED).err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--rate", "0"], "--rate: use more than 0"),
        (["--rate", "-5/s"], "--rate: use more than 0"),
        (["--rate", "often"], "'often' is no rate; write for example 12/s"),
        (["--rate", "12/week"], "'12/week' is no rate"),
        (["--rate", "nan"], "'nan' is no rate"),
        (["--rate", "9" * 400], "--rate: use more than 0, to 1,000,000/s"),
        (["--seconds", "0"], "--seconds: use more than 0"),
        (["--seconds", "-1"], "'-1' is no duration"),
        (["--workers", "100"], "the line grows without end, by 7,207 jobs an hour; use 134"),
        (["--workers", "0"], "--workers: use 1 to 1,000,000"),
        (["--spread", "nan"], "--spread: use 0 to 100"),
        (["--within", "95"], "--within: use a share of the jobs, such as 0.95"),
        (["--wait", "0"], "--wait: use more than 5 ms"),
        (["--at-once", "0"], "--at-once: use 1 to 10,000"),
        (["--cpus", "16"], "--node-cpus: not one worker fits on such a node"),
        (["--memory-gb", "2"], "--memory-gb: goes with the other one"),
        (["--burst", "-1"], "--burst: use 1 to"),
        (["--peak", "inf"], "--peak: use 1 to 10,000 times the rate"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(
    drayman: Drayman, more: list[str], told: str
) -> None:
    ran = drayman(*ASKED, *more)

    assert (ran.code, ran.out) == (2, "")
    # What typer refuses itself is in a box, whose lines are cut.
    assert told in " ".join(ran.err.replace("│", " ").split())
