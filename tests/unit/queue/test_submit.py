"""Submitting: what is accepted, what is answered as before, what is refused."""

import pytest

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import job_status
from cluster.queue.spec import decode_head, encode_spec
from cluster.queue.state import TaskState
from jobs.errors import InvalidInput, KeyReused, Overloaded
from tests.support.builders import NOON, Rulebook, a_job, a_spec, canonical, some_rules

HOUR_S = 3600.0


def keyed(job_id: str, key: str = "k", fingerprint: str = "f") -> c.Submit:
    return a_job(job_id, key=key, fingerprint=fingerprint, key_expires_at=NOON + HOUR_S)


def test_a_submitted_job_is_ready_at_once(book: Rulebook) -> None:
    command = a_job("a")

    events = book.do(command)

    assert events == [e.JobSubmitted("a", command.spec, command.raw)]
    assert book.task("a").state is TaskState.READY
    assert job_status(book.job("a")) == "pending"


def test_the_same_job_id_again_changes_nothing(book: Rulebook) -> None:
    book.submit("a")
    before = canonical(book.state)

    events = book.do(a_job("a"))

    assert events == []
    assert canonical(book.state) == before


def test_a_job_with_a_future_run_at_waits_for_it(book: Rulebook) -> None:
    book.submit("a", run_at=NOON + 10)

    assert job_status(book.job("a")) == "scheduled"
    assert book.pass_time(9.9) == []
    assert book.pass_time(0.1) == [e.TaskReady("a", "0")]
    assert job_status(book.job("a")) == "pending"


def test_a_job_with_a_past_run_at_is_ready_at_once(book: Rulebook) -> None:
    book.submit("a", run_at=NOON - 1)

    assert book.task("a").state is TaskState.READY


def test_the_same_key_gives_the_same_job(book: Rulebook) -> None:
    book.do(keyed("a"))

    events = book.do(keyed("b"))

    assert events == []
    assert book.state.keys.find("k", book.now) == ("a", "f")
    assert "b" not in book.state.jobs


def test_the_same_key_for_another_request_is_refused_and_names_the_job(book: Rulebook) -> None:
    book.do(keyed("a"))
    before = canonical(book.state)

    with pytest.raises(KeyReused) as caught:
        book.do(keyed("b", fingerprint="other"))

    assert caught.value.job_id == "a"
    assert canonical(book.state) == before


def test_a_key_holds_for_a_finished_job_too(book: Rulebook) -> None:
    book.do(keyed("a"))
    (token,) = book.lease("w1")
    book.finish(token, "ok")

    assert book.do(keyed("b")) == []


def test_a_key_is_free_again_at_the_end_of_its_window(book: Rulebook) -> None:
    book.do(keyed("a"))
    book.now = NOON + HOUR_S - 0.001
    assert book.do(keyed("b")) == []

    book.now = NOON + HOUR_S
    renewed = a_job("c", key="k", fingerprint="f", key_expires_at=book.now + HOUR_S)

    assert len(book.do(renewed)) == 1
    assert book.state.keys.find("k", book.now) == ("c", "f")


def test_expired_keys_are_forgotten_within_an_hour_of_new_ones_arriving(book: Rulebook) -> None:
    for i in range(50):
        book.do(keyed(f"old{i}", key=f"old{i}"))
    book.now = NOON + 3 * HOUR_S

    book.do(a_job("new", key="new", key_expires_at=book.now + HOUR_S))

    assert len(book.state.keys) == 1


def test_a_renewed_key_outlives_the_purge_of_its_first_window(book: Rulebook) -> None:
    book.do(keyed("a"))
    book.now = NOON + HOUR_S
    book.do(a_job("b", key="k", fingerprint="f", key_expires_at=NOON + 9 * HOUR_S))
    book.now = NOON + 4 * HOUR_S

    book.do(a_job("c", key="other", key_expires_at=book.now + HOUR_S))

    assert book.state.keys.find("k", book.now) == ("b", "f")


def test_too_many_keys_refuse_keyed_jobs_only() -> None:
    book = Rulebook(some_rules(idempotency_keys_max=1))
    book.do(keyed("a"))

    with pytest.raises(Overloaded) as caught:
        book.do(keyed("b", key="k2"))

    assert caught.value.retry_after_s > 0
    assert len(book.do(a_job("c"))) == 1


def test_an_unknown_queue_is_refused_with_the_known_ones(book: Rulebook) -> None:
    with pytest.raises(InvalidInput, match="default, io") as caught:
        book.do(a_job("a", queue="nope"))

    assert caught.value.field == "queue"


def test_a_full_queue_refuses_and_counts_every_unfinished_task() -> None:
    book = Rulebook(some_rules(depth_max=4))
    book.submit("ready", "leased", "backing")
    book.submit("waiting", run_at=NOON + 60)
    tokens = book.lease("w1", 2)
    book.finish(tokens[0], "failed")

    with pytest.raises(Overloaded, match="full"):
        book.do(a_job("one too many"))
    assert len(book.do(a_job("elsewhere", queue="io"))) == 1


def test_a_finished_task_makes_room_in_a_full_queue() -> None:
    book = Rulebook(some_rules(depth_max=1))
    token = book.running("a")
    book.finish(token, "ok")

    assert len(book.do(a_job("b"))) == 1


def test_a_key_is_answered_even_when_the_queue_is_full() -> None:
    book = Rulebook(some_rules(depth_max=1))
    book.do(keyed("a"))

    assert book.do(keyed("b")) == []


def test_the_spec_is_kept_byte_for_byte(book: Rulebook) -> None:
    raw = encode_spec(a_spec())[:-1] + b' , "unknown_to_this_version" : 1 }'
    book.do(c.Submit("a", decode_head(raw), raw))

    assert book.job("a").raw == raw
    assert book.replayed().jobs["a"].raw == raw
