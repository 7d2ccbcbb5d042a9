"""Ticks and timers: nothing early, nothing twice, nothing starved."""

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import TICK_MAX
from cluster.queue.state import TaskState
from tests.support.builders import NOON, Rulebook, canonical, some_rules


def test_a_tick_moves_a_bounded_number_of_tasks_earliest_first() -> None:
    book = Rulebook(some_rules(depth_max=10_000))
    late = [f"late{i}" for i in range(TICK_MAX)]
    book.submit(*late, run_at=NOON + 2)
    book.submit("early", run_at=NOON + 1)

    first = book.pass_time(10.0)
    second = book.do(c.Tick())

    assert len(first) == TICK_MAX
    assert first[0] == e.TaskReady("early", "0")
    assert second == [e.TaskReady(late[-1], "0")]
    assert book.do(c.Tick()) == []


def test_tasks_that_run_past_their_deadline_do_not_hide_those_that_wait() -> None:
    book = Rulebook(some_rules(depth_max=10_000))
    book.submit(*(f"running{i}" for i in range(TICK_MAX)), expires_at=NOON + 1)
    book.lease("w1", TICK_MAX)
    book.submit("waiting", expires_at=NOON + 2)

    assert book.pass_time(3.0) == [e.TaskCancelled("waiting", "0", "expired")]


def test_a_task_due_twice_at_one_moment_becomes_ready_once(book: Rulebook) -> None:
    """A clock that was set back stands still until the old time is reached again."""
    for _ in range(2):
        (token,) = book.lease("w1") or [book.running("a")]
        book.finish(token, "snoozed", delay_s=0.0)
        events = book.do(c.Tick())

        assert events == [e.TaskReady("a", "0")]


def test_next_at_is_the_earliest_moment_that_still_means_something(book: Rulebook) -> None:
    book.submit("a", run_at=NOON + 1)
    book.submit("b", run_at=NOON + 2)
    assert book.state.timers.next_at() == NOON + 1

    book.cancel("a")

    assert book.state.timers.next_at() == NOON + 2
    book.cancel("b")
    assert book.state.timers.next_at() is None


def test_a_redriven_job_keeps_a_deadline_that_is_still_to_come(book: Rulebook) -> None:
    token = book.running("a", expires_at=NOON + 60)
    book.finish(token, "discarded")
    book.do(c.Tick())  # looks at the timers while it is dead
    book.do(c.Revive("a"))

    assert canonical(book.replayed()) == canonical(book.state)
    assert book.pass_time(60.0) == [e.TaskCancelled("a", "0", "expired")]


def test_a_job_redriven_after_its_deadline_runs_anyway(book: Rulebook) -> None:
    token = book.running("a", expires_at=NOON + 60)
    book.finish(token, "discarded")
    book.pass_time(61.0)

    book.do(c.Revive("a"))

    assert book.pass_time(1.0) == []
    assert book.task("a").state is TaskState.READY
