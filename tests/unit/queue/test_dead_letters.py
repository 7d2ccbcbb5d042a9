"""Dead letters: revived now, later, or with another spec; or let go for good."""

from typing import Any

import msgspec
import pytest

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import job_status
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import Plan, StepSpec, encode_spec
from cluster.queue.state import TaskState
from jobs.errors import Conflict, NotFound
from tests.support.builders import NOON, Rulebook, a_spec, canonical


def a_dead(book: Rulebook, job_id: str, **changes: Any) -> None:
    book.finish(book.running(job_id, **changes), "discarded", error="no")


def same_after_all(book: Rulebook) -> None:
    rows = list(dump(book.state))
    assert canonical(book.replayed()) == canonical(book.state)
    assert list(dump(load(rows))) == rows


def test_a_redrive_for_later_waits_for_its_moment(book: Rulebook) -> None:
    a_dead(book, "a")

    book.do(c.Revive("a", due_at=NOON + 30))

    assert (book.task("a").state, book.task("a").due_at) == (TaskState.BACKING_OFF, NOON + 30)
    assert job_status(book.job("a")) == "pending"
    assert book.state.usage["default"].jobs == 1
    same_after_all(book)
    assert book.pass_time(29.0) == []
    assert book.pass_time(1.0) == [e.TaskReady("a", "0")]
    assert book.lease("w1")


@pytest.mark.parametrize("due_at", [0.0, NOON - 5, NOON])
def test_a_moment_that_is_over_is_now(book: Rulebook, due_at: float) -> None:
    a_dead(book, "a")

    assert book.do(c.Revive("a", due_at)) == [e.TaskRedriven("a", "0")]
    assert book.task("a").state is TaskState.READY


def test_one_that_waits_for_its_redrive_can_be_cancelled_and_not_revived_again(
    book: Rulebook,
) -> None:
    a_dead(book, "a")
    book.do(c.Revive("a", due_at=NOON + 30))

    with pytest.raises(Conflict):
        book.do(c.Revive("a"))
    with pytest.raises(Conflict):
        book.do(c.Purge("a"))
    book.cancel("a")

    assert book.task("a").state is TaskState.CANCELLED
    assert book.pass_time(60.0) == []


def test_a_redrive_with_another_spec_runs_that_one(book: Rulebook) -> None:
    a_dead(book, "a", max_attempts=1)
    raw = encode_spec(a_spec(params=msgspec.Raw(b'{"better":1}'), max_attempts=2, code="c2"))

    events = book.do(c.Revive("a", raw=raw))

    assert [type(event) for event in events] == [e.JobEdited, e.TaskRedriven]
    assert (book.job("a").raw, book.job("a").code) == (raw, "c2")
    assert book.state.usage["default"].bytes == len(raw) == book.state.lines["default"].bytes
    (token,) = book.lease("w1")
    book.finish(token, "failed")
    assert book.task("a").state is TaskState.BACKING_OFF  # one more attempt, as it says
    same_after_all(book)


@pytest.mark.parametrize(
    "change",
    [{"tenant": "other"}, {"type": "other"}, {"priority": 9}, {"plan": Plan([StepSpec("a")])}],
    ids=["tenant", "type", "priority", "plan"],
)
def test_what_a_job_is_known_by_cannot_be_edited(book: Rulebook, change: dict[str, object]) -> None:
    a_dead(book, "a")

    with pytest.raises(Conflict, match="change its params"):
        book.do(c.Revive("a", raw=encode_spec(a_spec(**change))))

    assert book.task("a").state is TaskState.DEAD


def test_a_planned_job_cannot_be_edited_but_redriven_for_later(book: Rulebook) -> None:
    book.submit("a", plan=Plan([StepSpec("one")]), max_attempts=1)
    (token,) = book.lease("w1")
    book.finish(token, "failed")

    with pytest.raises(Conflict, match="several tasks"):
        book.do(c.Revive("a", raw=encode_spec(a_spec())))
    book.do(c.Revive("a", due_at=NOON + 9))
    same_after_all(book)
    book.pass_time(9.0)
    (token,) = book.lease("w1")
    book.finish(token, "ok")

    assert job_status(book.job("a")) == "completed"


def test_a_purged_job_stays_failed_and_leaves_with_the_next_sweep(book: Rulebook) -> None:
    a_dead(book, "a")
    a_dead(book, "b")

    assert book.do(c.Purge("a")) == [e.JobPurged("a")]

    assert job_status(book.job("a")) == "failed"
    assert list(book.state.dead) == [("b", "0")]
    assert book.do(c.Purge("a")) == []
    with pytest.raises(Conflict, match="purged"):
        book.do(c.Revive("a"))
    same_after_all(book)
    book.do(c.PlanCompaction(1))
    book.do(c.EndCompaction(1, book.state.seq))
    book.do(c.Evict(10))
    assert list(book.state.jobs) == ["b"]
    with pytest.raises(NotFound):
        book.do(c.Purge("a"))


def test_history_has_a_purged_job_as_of_its_purge(book: Rulebook) -> None:
    """It left the dead letters with that event: a compaction before it does not have it yet."""
    a_dead(book, "a")
    before, revision = book.state.seq, book.job("a").revision
    book.do(c.PlanCompaction(1))
    book.do(c.EndCompaction(1, before))

    book.do(c.Purge("a"))
    book.do(c.Evict(10))

    assert "a" in book.state.jobs
    assert (book.job("a").finished_seq, book.job("a").revision) == (before + 3, revision + 1)


def test_a_planned_job_that_is_purged_leaves_nothing_waiting(book: Rulebook) -> None:
    steps = [StepSpec("one"), StepSpec("two", needs=["one"])]
    book.submit("a", plan=Plan(steps), max_attempts=1)
    (token,) = book.lease("w1")
    book.finish(token, "failed")

    book.do(c.Purge("a"))

    assert book.state.dead == {}
    assert book.state.lines["default"].depth == 0
    same_after_all(book)


@pytest.mark.parametrize("how", ["waits", "runs", "done", "cancelled"])
def test_only_what_failed_can_be_purged(book: Rulebook, how: str) -> None:
    book.submit("a")
    if how in ("runs", "done"):
        (token,) = book.lease("w1")
    if how == "done":
        book.finish(token, "ok")
    if how == "cancelled":
        book.cancel("a")

    with pytest.raises(Conflict, match="only failed"):
        book.do(c.Purge("a"))


def test_a_job_that_was_refused_can_be_purged_and_not_revived_with_a_plan(book: Rulebook) -> None:
    raw = encode_spec(a_spec(plan=Plan([StepSpec("one")])))
    book.do(c.Refuse("a", raw, "no such step", "refused"))

    with pytest.raises(Conflict, match="submit it anew"):
        book.do(c.Revive("a"))
    book.do(c.Purge("a"))

    assert book.state.dead == {}
    same_after_all(book)
