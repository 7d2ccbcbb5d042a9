"""Workers that die and orders that never arrive: who is blamed, and who is not."""

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import job_status
from cluster.queue.state import TaskState
from tests.support.builders import Rulebook


def held(book: Rulebook, *job_ids: str, worker: str = "w1") -> list[int]:
    book.submit(*job_ids)
    return book.lease(worker, len(job_ids))


def test_the_only_task_of_a_dead_worker_is_charged_a_recovery(book: Rulebook) -> None:
    (token,) = held(book, "a")

    (event,) = book.lose("w1", "signal 9")

    assert isinstance(event, e.AttemptCrashed)
    assert (event.token, event.cause) == (token, "signal 9")
    assert "the worker died" in event.error
    assert book.task("a").recoveries == 1
    assert book.state.held == {}


def test_several_tasks_of_a_dead_worker_become_suspects_uncharged(book: Rulebook) -> None:
    held(book, "a", "b", "c")

    events = book.lose("w1")

    assert all(isinstance(event, e.LeaseReleased) and event.suspect for event in events)
    assert [book.task(j).recoveries for j in "abc"] == [0, 0, 0]
    assert [task.job.id for task in book.state.lines["default"].suspects] == ["a", "b", "c"]


def test_suspects_are_leased_one_per_worker(book: Rulebook) -> None:
    held(book, "a", "b", "c")
    book.lose("w1")
    book.submit("innocent", "other")

    (first, *rest) = book.lease("w2", 2)
    again = book.lease("w2", 5)
    (second, *_) = book.lease("w3", 1)

    assert book.state.leases[first].job.id == "a"
    assert [book.state.leases[t].job.id for t in rest + again] == ["innocent", "other"]
    assert book.state.leases[second].job.id == "b"


def test_a_suspect_among_a_dead_workers_tasks_is_charged_and_nobody_else(book: Rulebook) -> None:
    held(book, "a", "b")
    book.lose("w1")
    book.submit("innocent")
    book.lease("w2", 2)

    book.lose("w2")

    assert (book.task("a").recoveries, book.task("a").suspect) == (1, True)
    assert book.task("innocent").recoveries == 0
    assert (book.task("innocent").suspect, book.task("innocent").interruptions) == (False, 1)


def test_a_poison_task_ends_as_a_dead_letter_without_taking_others_along(book: Rulebook) -> None:
    held(book, "poison", "a", "b")
    book.lose("w0")
    book.lose("w1")
    for n in range(20):
        worker = f"worker{n}"
        tokens = book.lease(worker, 3)
        if any(book.state.leases[t].job.id == "poison" for t in tokens):
            book.lose(worker, "oom")
        else:
            for token in tokens:
                book.finish(token, "ok", worker=worker)

    assert [job_status(book.job(j)) for j in ("poison", "a", "b")] == [
        "failed",
        "completed",
        "completed",
    ]
    assert (book.task("poison").past or [])[-1].cause == "oom"


def test_losing_a_worker_that_was_told_to_cancel_cancels(book: Rulebook) -> None:
    held(book, "a", "b")
    book.cancel("a")

    events = book.lose("w1")

    assert [type(event) for event in events] == [e.TaskCancelled, e.LeaseReleased]
    assert job_status(book.job("a")) == "cancelled"


def test_losing_a_worker_that_holds_nothing_is_nothing(book: Rulebook) -> None:
    assert book.lose("w1") == []


def test_a_late_outcome_of_a_lost_worker_changes_nothing(book: Rulebook) -> None:
    (token,) = held(book, "a")
    book.lose("w1")

    assert book.finish(token, "ok") == []
    assert book.task("a").state is TaskState.READY


def test_a_reclaimed_task_is_ready_and_uncharged(book: Rulebook) -> None:
    first, second = held(book, "a", "b")

    (event,) = book.do(c.Reclaim("w1", [first]))

    assert isinstance(event, e.LeaseReleased)
    assert (event.cause, event.suspect) == ("lease lost", False)
    assert (book.task("a").failures, book.task("a").recoveries) == (0, 0)
    assert list(book.state.held["w1"]) == [second]


def test_only_a_workers_own_leases_are_reclaimed(book: Rulebook) -> None:
    (token,) = held(book, "a")

    assert book.do(c.Reclaim("w2", [token, 999])) == []


def test_reclaiming_a_task_that_was_to_stop_cancels_it(book: Rulebook) -> None:
    (token,) = held(book, "a")
    book.cancel("a")

    (event,) = book.do(c.Reclaim("w1", [token]))

    assert isinstance(event, e.TaskCancelled)
