"""Leasing: who gets what, in which order."""

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.state import TaskState
from tests.support.builders import NOON, Rulebook


def leased(book: Rulebook, worker: str, limit: int, *queues: str) -> list[str]:
    tokens = book.lease(worker, limit, queues or ("default",))
    return [book.state.leases[token].job.id for token in tokens]


def test_a_lease_names_task_attempt_token_and_worker(book: Rulebook) -> None:
    book.submit("a", "b")

    events = book.do(c.Lease("w1", ["default"], 2))

    assert events == [e.TaskLeased("a", "0", 1, 1, "w1"), e.TaskLeased("b", "0", 1, 2, "w1")]
    assert list(book.state.held["w1"]) == [1, 2]


def test_first_come_first_served(book: Rulebook) -> None:
    book.submit("a", "b", "c")

    assert leased(book, "w1", 2) == ["a", "b"]
    assert leased(book, "w2", 2) == ["c"]


def test_higher_priority_goes_first(book: Rulebook) -> None:
    book.submit("low", priority=-1)
    book.submit("normal")
    book.submit("high", priority=5)

    assert leased(book, "w1", 3) == ["high", "normal", "low"]


def test_priority_and_arrival_hold_over_all_queues_of_a_worker(book: Rulebook) -> None:
    book.submit("d1")
    book.now += 1
    book.submit("i2", queue="io")
    book.now += 1
    book.submit("d3")
    book.submit("urgent", queue="io", priority=9)

    assert leased(book, "w1", 4, "default", "io") == ["urgent", "d1", "i2", "d3"]


def test_a_worker_gets_nothing_of_queues_it_does_not_serve(book: Rulebook) -> None:
    book.submit("a", queue="io")

    assert leased(book, "w1", 5, "default") == []


def test_a_queue_named_twice_is_served_once(book: Rulebook) -> None:
    book.submit("a", "b")

    assert leased(book, "w1", 5, "default", "default") == ["a", "b"]


def test_a_limit_of_nothing_leases_nothing(book: Rulebook) -> None:
    book.submit("a")

    assert leased(book, "w1", 0) == []
    assert leased(book, "w1", -1) == []


def test_tokens_are_never_reused(book: Rulebook) -> None:
    first = book.running("a")
    book.finish(first, "returned")

    (second,) = book.lease("w1")

    assert second > first


def test_a_paused_queue_gives_nothing_until_it_is_resumed(book: Rulebook) -> None:
    book.submit("a")
    assert book.do(c.PauseQueue("default")) == [e.QueuePaused("default")]
    assert book.do(c.PauseQueue("default")) == []
    assert leased(book, "w1", 1) == []

    assert book.do(c.ResumeQueue("default")) == [e.QueueResumed("default")]
    assert book.do(c.ResumeQueue("default")) == []

    assert leased(book, "w1", 1) == ["a"]


def test_a_queue_can_be_paused_before_anything_was_in_it(book: Rulebook) -> None:
    book.do(c.PauseQueue("io"))

    book.submit("a", queue="io")

    assert leased(book, "w1", 1, "io") == []


def test_a_cancelled_task_in_the_middle_of_the_line_is_passed_over(book: Rulebook) -> None:
    book.submit("a", "b", "c")
    book.cancel("b")

    assert leased(book, "w1", 3) == ["a", "c"]


def test_returned_tasks_keep_their_places(book: Rulebook) -> None:
    book.submit("a", "b", "c", "d")
    tokens = book.lease("w1", 3)

    for token in tokens:
        book.finish(token, "returned")

    assert leased(book, "w2", 4) == ["a", "b", "c", "d"]


def test_a_task_that_backed_off_queues_at_the_end(book: Rulebook) -> None:
    token = book.running("a")
    book.submit("b")
    book.finish(token, "failed", delay_s=1.0)
    book.pass_time(1.0)

    assert leased(book, "w1", 2) == ["b", "a"]


def test_position_counts_the_ready_tasks_before_it(book: Rulebook) -> None:
    book.submit("a", "b", "c")
    book.submit("urgent", priority=1)
    line = book.state.lines["default"]
    assert [line.position(book.task(j)) for j in ("urgent", "a", "b", "c")] == [0, 1, 2, 3]

    leased(book, "w1", 2)

    assert [line.position(book.task(j)) for j in ("b", "c")] == [0, 1]


def test_an_expired_job_is_cancelled_unless_it_runs(book: Rulebook) -> None:
    token = book.running("running", expires_at=NOON + 5)
    book.submit("ready", expires_at=NOON + 5)
    book.submit("waiting", expires_at=NOON + 5, run_at=NOON + 5)

    events = book.pass_time(5.0)

    assert events == [
        e.TaskCancelled("ready", "0", "expired"),
        e.TaskCancelled("waiting", "0", "expired"),
    ]
    assert book.job("ready").reason == "expired"
    book.finish(token, "ok")
    assert book.task("running").state is TaskState.SUCCEEDED


def test_a_job_that_failed_past_its_deadline_is_not_tried_again(book: Rulebook) -> None:
    token = book.running("a", expires_at=NOON + 5)
    book.pass_time(6.0)
    book.finish(token, "failed", delay_s=60.0)

    events = book.pass_time(0.0)

    assert events == [e.TaskCancelled("a", "0", "expired")]
