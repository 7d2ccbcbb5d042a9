"""A job for which a worker made way goes before what it gave back."""

from cluster.queue import commands as c
from cluster.queue import events as e
from tests.support.builders import Rulebook, some_rules


def leased(book: Rulebook, first: str, limit: int = 1) -> list[str]:
    events = book.do(c.Lease("w2", ["default"], limit, first=first))
    return [event.job_id for event in events if isinstance(event, e.TaskLeased)]


def test_the_newcomer_is_given_out_first_and_what_was_given_back_keeps_its_turn() -> None:
    book = Rulebook(some_rules(depth_max=100))
    book.submit(*(f"a{n}" for n in range(5)), tenant="a")
    tokens = book.lease("w1", 2)
    book.submit("b", tenant="b")
    book.finish(tokens[1], "returned")

    assert leased(book, "b", 3) == ["b", "a1", "a2"]
    assert book.replayed().lines["default"].size == book.state.lines["default"].size == 2


def test_a_newcomer_that_waits_no_more_or_elsewhere_changes_nothing() -> None:
    book = Rulebook(some_rules(depth_max=100))
    book.submit("a0", "a1", tenant="a")
    book.submit("io", tenant="b", queue="io")
    book.submit("gone", tenant="b")
    book.cancel("gone")

    assert leased(book, "io") == ["a0"]
    assert leased(book, "gone") == ["a1"]
    assert leased(book, "never") == []
