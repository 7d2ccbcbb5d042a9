"""What is counted of attempts, by queue and type."""

import pytest
import structlog

from cluster.signals import BOUNDS_S, DEATHS_LOGGED, KINDS_MAX, OTHER, Signal, Signals
from tests.support.builders import Rulebook
from tests.support.cluster import FakeClock


@pytest.fixture
def signals() -> Signals:
    return Signals(FakeClock())


def end(book: Rulebook, signals: Signals, token: int, kind: str, ran_s: float = 1.0) -> None:
    task = book.state.leases[token]
    book.finish(token, kind, started_at=book.now, ended_at=book.now + ran_s)  # type: ignore[arg-type]
    signals.ended([task])


def only(signals: Signals) -> Signal:
    (signal,) = signals.all()
    return signal


def test_attempts_are_counted_by_how_they_ended_and_how_long_it_took(signals: Signals) -> None:
    book = Rulebook()
    book.submit("a", "b", max_attempts=1)
    book.now += 7
    first, second = book.lease("w1", 2)
    end(book, signals, first, "ok", ran_s=0.02)
    end(book, signals, second, "failed", ran_s=200.0)

    signal = only(signals)
    assert signal.outcomes == {"succeeded": 1, "died": 1}
    assert signal.wait.sum == 14
    assert signal.wait.counts[BOUNDS_S.index(30.0)] == 2
    assert signal.run.counts[BOUNDS_S.index(0.05)] == 1
    assert signal.run.counts[BOUNDS_S.index(600.0)] == 1
    assert signal.run.sum == pytest.approx(200.02)


def test_an_attempt_that_is_tried_again_counts_and_one_that_never_started_does_not(
    signals: Signals,
) -> None:
    book = Rulebook()
    end(book, signals, book.running("a"), "failed")
    token = book.running("b")
    task = book.state.leases[token]
    book.finish(token, "returned")
    signals.ended([task])

    assert only(signals).outcomes == {"failed": 1}


def test_types_without_end_are_counted_together(signals: Signals) -> None:
    book = Rulebook()
    for n in range(KINDS_MAX + 5):
        end(book, signals, book.running(f"j{n}", type=f"flow.n{n}"), "ok")

    found = {signal.type: signal for signal in signals.all()}
    assert len(found) == KINDS_MAX + 1
    assert found[OTHER].outcomes == {"succeeded": 5}


def test_what_dies_is_a_line_in_the_log_but_not_for_each_of_a_flood(signals: Signals) -> None:
    book = Rulebook()
    with structlog.testing.capture_logs() as logs:
        for n in range(DEATHS_LOGGED + 5):
            end(book, signals, book.running(f"j{n}", tenant="acme"), "discarded")

    # A second may have ended meanwhile, and then there are more.
    died = [line for line in logs if line["event"] == "task_died"]
    assert DEATHS_LOGGED <= len(died) <= DEATHS_LOGGED + 5
    assert (died[0]["job"], died[0]["tenant"], died[0]["worker"]) == ("j0", "acme", "w1")
