"""How attempts end, and what each end costs."""

from typing import Any, get_args

import msgspec
import pytest

from cluster.protocol import OutcomeKind
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import job_status
from cluster.queue.state import TaskState
from jobs.errors import Conflict, NotFound
from jobs.retry import RetryPolicy
from tests.support.builders import NOON, Rulebook, canonical, some_rules

KINDS: tuple[OutcomeKind, ...] = get_args(OutcomeKind)
OUTPUT = msgspec.Raw(b'{"result":42}')


def charges(book: Rulebook, job_id: str) -> tuple[int, int, int]:
    task = book.task(job_id)
    return task.failures, task.recoveries, task.interruptions


def test_ok_commits_the_output(book: Rulebook) -> None:
    token = book.running("a")

    events = book.finish(token, "ok", started_at=1.0, ended_at=2.0, output=OUTPUT, log="logs/a")

    assert events == [e.TaskSucceeded("a", "0", 1, token, 1.0, 2.0, "logs/a", OUTPUT)]
    assert book.task("a").output == bytes(OUTPUT)
    assert (job_status(book.job("a")), book.job("a").finished_at) == ("completed", NOON)
    assert (book.state.leases, book.state.held) == ({}, {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_or_doubled_outcome_changes_nothing(book: Rulebook, kind: OutcomeKind) -> None:
    token = book.running("a")
    book.finish(token, kind)
    before = canonical(book.state)

    events = book.finish(token, "ok", output=OUTPUT)

    assert events == []
    assert canonical(book.state) == before


def test_an_outcome_from_another_worker_changes_nothing(book: Rulebook) -> None:
    token = book.running("a", worker="w1")

    assert book.finish(token, "ok", worker="w2") == []
    assert book.task("a").state is TaskState.LEASED


def test_a_failure_is_charged_and_tried_again_after_the_backoff(book: Rulebook) -> None:
    token = book.running("a", retry=RetryPolicy(base_s=4.0))

    events = book.finish(token, "failed", draw=0.5, error="boom", cause="ValueError")

    assert events == [
        e.AttemptFailed("a", "0", 1, token, error="boom", cause="ValueError", retry_at=NOON + 2.0)
    ]
    assert charges(book, "a") == (1, 0, 0)
    assert job_status(book.job("a")) == "pending"
    assert book.pass_time(1.9) == []
    assert book.pass_time(0.1) == [e.TaskReady("a", "0")]


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
@pytest.mark.parametrize("failures", [1, 2, 5, 12, 2_000])
def test_backoff_is_full_jitter_beneath_a_growing_and_capped_ceiling(
    failures: int, draw: float
) -> None:
    policy = RetryPolicy(base_s=2.0, factor=3.0, max_s=100.0)

    wait_s = policy.wait_s(failures, draw)

    assert wait_s == pytest.approx(draw * min(100.0, 2.0 * 3.0 ** min(failures - 1, 10)))


def test_a_wait_that_the_handler_asked_for_is_taken_as_it_is(book: Rulebook) -> None:
    token = book.running("a", retry=RetryPolicy(max_s=1.0))

    (event,) = book.finish(token, "failed", delay_s=77.0)

    assert isinstance(event, e.AttemptFailed)
    assert event.retry_at == NOON + 77.0


def test_the_last_allowed_failure_is_a_dead_letter_with_every_error(book: Rulebook) -> None:
    book.submit("a", max_attempts=3)
    for attempt in (1, 2, 3):
        (token,) = book.lease("w1")
        (event,) = book.finish(token, "failed", error=f"error {attempt}", delay_s=1.0)
        book.pass_time(1.0)

    assert isinstance(event, e.TaskDied)
    assert job_status(book.job("a")) == "failed"
    assert [past.error for past in book.task("a").past or ()] == ["error 1", "error 2", "error 3"]
    assert list(book.state.dead) == [("a", "0")]
    assert book.lease("w1") == []


def test_a_discarded_attempt_is_a_dead_letter_at_once(book: Rulebook) -> None:
    token = book.running("a", max_attempts=9)

    (event,) = book.finish(token, "discarded", error="not a PDF")

    assert isinstance(event, e.TaskDied)
    assert (event.cause, event.error) == ("discarded", "not a PDF")
    assert book.job("a").finished_at == NOON


def test_a_snooze_costs_nothing_and_runs_later_as_the_next_attempt(book: Rulebook) -> None:
    token = book.running("a", max_attempts=1)

    assert book.finish(token, "snoozed", delay_s=30.0) == [
        e.TaskSnoozed("a", "0", 1, token, retry_at=NOON + 30.0)
    ]

    assert charges(book, "a") == (0, 0, 0)
    book.pass_time(30.0)
    book.lease("w1")
    assert book.task("a").attempt == 2


def test_a_job_put_off_again_and_again_for_one_reason_does_not_grow(book: Rulebook) -> None:
    token = book.running("a")
    for _ in range(5):
        book.finish(token, "snoozed", error="no such type", delay_s=30.0)
        book.pass_time(30.0)
        (token,) = book.lease("w1")

    past = book.task("a").past or []
    assert [(p.number, p.outcome, p.error) for p in past] == [(5, "snoozed", "no such type")]


def test_a_returned_task_gives_its_attempt_number_back(book: Rulebook) -> None:
    token = book.running("a")

    assert book.finish(token, "returned") == [
        e.LeaseReleased("a", "0", 1, token, cause="returned", started=False)
    ]

    assert charges(book, "a") == (0, 0, 0)
    assert not book.task("a").past
    book.lease("w2")
    assert book.task("a").attempt == 1


def test_an_attempt_stopped_for_a_drain_is_uncharged_and_ready(book: Rulebook) -> None:
    token = book.running("a", max_attempts=1)

    (event,) = book.finish(token, "stopped", cause="drain")

    assert isinstance(event, e.LeaseReleased)
    assert charges(book, "a") == (0, 0, 1)
    book.lease("w2")
    assert book.task("a").attempt == 2


def test_a_crash_alone_is_a_recovery_not_an_attempt(book: Rulebook) -> None:
    token = book.running("a", max_attempts=1)

    (event,) = book.finish(token, "crashed", cause="signal 11", error="segfault")

    assert isinstance(event, e.AttemptCrashed)
    assert charges(book, "a") == (0, 1, 0)
    assert book.task("a").state is TaskState.READY


def test_attempts_and_recoveries_have_budgets_of_their_own() -> None:
    book = Rulebook(some_rules(recoveries_max=2))
    book.submit("a", max_attempts=2)

    for kind in ("crashed", "failed", "crashed"):
        (token,) = book.lease("w1")
        book.finish(token, kind, delay_s=0.0)
        book.pass_time(0.0)

    assert charges(book, "a") == (1, 2, 0)
    assert book.task("a").state is TaskState.READY
    (token,) = book.lease("w1")
    (event,) = book.finish(token, "crashed", cause="oom", error="killed")
    assert isinstance(event, e.TaskDied)
    assert (event.charged, event.cause) == ("recovery", "oom")
    # The budget is spent, not exceeded: there was no third time that it ran again.
    assert charges(book, "a") == (1, 2, 0)


def test_a_crash_beside_others_is_uncharged_and_makes_a_suspect(book: Rulebook) -> None:
    token = book.running("a")

    (event,) = book.finish(token, "crashed", alone=False)

    assert isinstance(event, e.LeaseReleased)
    assert (event.suspect, charges(book, "a")) == (True, (0, 0, 1))


def test_a_suspect_that_crashes_is_charged_whatever_ran_beside_it(book: Rulebook) -> None:
    book.finish(book.running("a"), "crashed", alone=False)
    (token,) = book.lease("w1")

    (event,) = book.finish(token, "crashed", alone=False)

    assert isinstance(event, e.AttemptCrashed)


@pytest.mark.parametrize("kind", ["ok", "failed", "snoozed", "discarded"])
def test_an_end_of_its_own_clears_a_suspect(book: Rulebook, kind: OutcomeKind) -> None:
    book.finish(book.running("a"), "crashed", alone=False)
    (token,) = book.lease("w1")

    book.finish(token, kind)

    assert not book.task("a").suspect


def test_being_interrupted_absurdly_often_is_a_dead_letter() -> None:
    book = Rulebook(some_rules(interruptions_max=2))
    book.submit("a")

    for _ in range(3):
        (token,) = book.lease("w1")
        (event,) = book.finish(token, "stopped", cause="drain")

    assert isinstance(event, e.TaskDied)
    assert (event.charged, event.cause) == ("interruption", "drain")


def test_a_checkpoint_forgives_interruptions(book: Rulebook) -> None:
    book.finish(book.running("a"), "stopped")
    (token,) = book.lease("w1")

    book.happen(e.CheckpointSaved("a", "0", 2, token, msgspec.Raw(b"7")))

    assert charges(book, "a") == (0, 0, 0)


# --- cancelling -------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"run_at": NOON + 60}])
def test_an_unstarted_job_is_cancelled_at_once(book: Rulebook, changes: dict[str, Any]) -> None:
    book.submit("a", **changes)

    assert book.cancel("a") == [e.TaskCancelled("a", "0", "cancelled")]

    assert job_status(book.job("a")) == "cancelled"
    assert book.lease("w1") == []
    assert book.pass_time(60) == []


def test_a_job_that_backs_off_is_cancelled_at_once(book: Rulebook) -> None:
    book.finish(book.running("a"), "failed", delay_s=60.0)

    assert book.cancel("a") == [e.TaskCancelled("a", "0", "cancelled")]


def test_a_running_job_is_asked_to_stop_and_keeps_its_lease(book: Rulebook) -> None:
    token = book.running("a")

    assert book.cancel("a") == [e.StopRequested("a", "0", 1, token, "cancel")]

    assert book.cancel("a") == []
    assert job_status(book.job("a")) == "processing"
    assert book.state.stopping == {"w1": {token: "cancel"}}


@pytest.mark.parametrize("kind", KINDS)
def test_however_a_cancelled_attempt_ends_the_job_is_cancelled(
    book: Rulebook, kind: OutcomeKind
) -> None:
    token = book.running("a")
    book.cancel("a")

    (event,) = book.finish(token, kind, output=OUTPUT, ended_at=5.0)

    assert isinstance(event, e.TaskCancelled)
    assert (job_status(book.job("a")), book.job("a").reason) == ("cancelled", "cancelled")
    assert book.task("a").output == b""
    assert (book.state.leases, book.state.stopping) == ({}, {})


def test_cancelling_twice_is_no_error_and_a_finished_job_cannot_be(book: Rulebook) -> None:
    book.submit("a")
    book.cancel("a")
    assert book.cancel("a") == []
    book.finish(book.running("b"), "ok")
    book.finish(book.running("c"), "discarded")

    for job_id, status in (("b", "completed"), ("c", "failed")):
        with pytest.raises(Conflict, match=status):
            book.cancel(job_id)


@pytest.mark.parametrize("command", [c.Cancel("x"), c.Revive("x")])
def test_an_unknown_job_is_not_found(book: Rulebook, command: c.Command) -> None:
    with pytest.raises(NotFound, match="'x'"):
        book.do(command)


@pytest.mark.parametrize("command", [c.PauseQueue("x"), c.ResumeQueue("x")])
def test_an_unknown_queue_is_not_found(book: Rulebook, command: c.Command) -> None:
    with pytest.raises(NotFound, match="'x'"):
        book.do(command)


# --- reviving ---------------------------------------------------------------------------------


def test_a_revived_job_has_a_whole_new_budget_and_keeps_its_past(book: Rulebook) -> None:
    book.submit("a", max_attempts=2)
    for _ in range(2):
        (token,) = book.lease("w1")
        book.finish(token, "failed", delay_s=0.0)
        book.pass_time(0.0)

    assert book.do(c.Revive("a")) == [e.TaskRedriven("a", "0")]

    assert charges(book, "a") == (0, 0, 0)
    assert (book.job("a").finished_at, book.state.dead) == (0.0, {})
    (token,) = book.lease("w1")
    assert book.task("a").attempt == 3
    (event,) = book.finish(token, "failed", delay_s=0.0)
    assert isinstance(event, e.AttemptFailed)
    assert len(book.task("a").past or ()) == 3


def test_only_a_failed_job_can_be_revived(book: Rulebook) -> None:
    book.submit("a")

    with pytest.raises(Conflict, match="pending"):
        book.do(c.Revive("a"))
