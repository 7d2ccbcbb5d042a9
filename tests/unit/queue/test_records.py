"""Checkpoints and effects done once: durable, and only under the current token."""

from typing import Literal

import msgspec
import pytest

from cluster.protocol import Record
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.model import Effect
from jobs.errors import LeaseLost
from tests.support.builders import Rulebook

Op = Literal["checkpoint", "once_claim", "once_done"]
ONE, TWO = msgspec.Raw(b"1"), msgspec.Raw(b"2")


def save(
    book: Rulebook, token: int, op: Op, key: str = "", value: msgspec.Raw = ONE
) -> list[e.Event]:
    return book.do(c.SaveRecord(Record(token, op, key, value)))


def test_a_checkpoint_replaces_the_last_and_outlives_the_attempt(book: Rulebook) -> None:
    token = book.running("a")
    save(book, token, "checkpoint")

    events = save(book, token, "checkpoint", value=TWO)

    assert events == [e.CheckpointSaved("a", "0", 1, token, TWO)]
    book.finish(token, "crashed")
    assert book.task("a").checkpoint == b"2"


def test_an_effect_is_claimed_once_and_then_recorded(book: Rulebook) -> None:
    token = book.running("a")

    assert save(book, token, "once_claim", "mail") == [e.OnceClaimed("a", "0", 1, token, "mail")]
    assert save(book, token, "once_claim", "mail") == []
    assert save(book, token, "once_done", "mail", TWO) == [
        e.OnceDone("a", "0", 1, token, "mail", TWO)
    ]

    assert book.task("a").once == {"mail": Effect(token, b"2")}
    assert save(book, token, "once_claim", "mail") == []


def test_the_next_attempt_finds_what_an_earlier_one_claimed(book: Rulebook) -> None:
    token = book.running("a")
    save(book, token, "once_claim", "mail")
    book.finish(token, "crashed")

    (again,) = book.lease("w2")

    assert save(book, again, "once_claim", "mail") == []
    assert book.task("a").once == {"mail": Effect(token, None)}


@pytest.mark.parametrize("op", ["checkpoint", "once_claim", "once_done"])
def test_a_superseded_attempt_can_record_nothing(book: Rulebook, op: Op) -> None:
    old = book.running("a")
    book.lose("w1")
    book.lease("w2")

    with pytest.raises(LeaseLost) as caught:
        save(book, old, op)

    assert caught.value.args == (old,)


def test_a_cancelled_attempt_can_record_nothing(book: Rulebook) -> None:
    token = book.running("a")
    book.cancel("a")

    with pytest.raises(LeaseLost):
        save(book, token, "checkpoint")
