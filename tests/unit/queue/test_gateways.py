"""Which batches are remembered: those near the highest, in whatever order they came."""

import msgspec

from cluster.queue import events as e
from cluster.queue.model import GATEWAY_WINDOW, GatewayMarks
from tests.support.builders import Rulebook


def test_a_committed_batch_is_remembered_with_what_was_refused(book: Rulebook) -> None:
    book.happen(e.BatchAccepted("g", 1, msgspec.Raw(b'{"0":1}')))

    assert book.state.gateways["g"].window == {1: b'{"0":1}'}


def test_a_batch_that_was_overtaken_is_not_too_old() -> None:
    marks = GatewayMarks()
    marks.add(2, b"{}")

    assert not marks.too_old(1)


def test_the_window_holds_the_numbers_just_below_the_highest() -> None:
    marks = GatewayMarks()
    for number in (2, 1, *range(3, GATEWAY_WINDOW + 3)):
        marks.add(number, b"{}")

    assert sorted(marks.window) == list(range(3, GATEWAY_WINDOW + 3))
    assert marks.too_old(2)
    assert not marks.too_old(3)


def test_a_leap_in_numbers_forgets_all_that_is_too_old() -> None:
    marks = GatewayMarks()
    for number in (1, 2, 3, 10**15):
        marks.add(number, b"{}")

    assert list(marks.window) == [10**15]
