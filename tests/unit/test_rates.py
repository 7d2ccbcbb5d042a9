"""What is said of when something starts, from what was measured."""

import pytest

from cluster.rates import RUNS_KNOWN, Rates
from tests.support.cluster import FakeClock

RUN_S = 0.1


def known(runs: list[float], gaps: list[float] | None = None) -> Rates:
    rates = Rates(FakeClock())
    rates.finished("q", len(runs), runs, gaps or [])
    return rates


def test_nothing_is_said_while_too_few_runs_are_known() -> None:
    rates = known([RUN_S] * (RUNS_KNOWN - 1))

    assert rates.starts_in("q", 10, 2, 0) is None
    assert rates.starts_in("other", 10, 2, 0) is None


def test_what_goes_before_is_divided_among_the_slots() -> None:
    rates = known([RUN_S] * 10)

    one, two = rates.starts_in("q", 99, 1, 0), rates.starts_in("q", 99, 2, 0)

    assert one is not None
    assert two is not None
    assert two.low < two.seconds < two.high
    assert one.seconds == pytest.approx(100 * RUN_S, rel=0.01)
    assert two.seconds == pytest.approx(one.seconds / 2, rel=0.01)


def test_a_free_slot_is_had_at_once() -> None:
    found = known([RUN_S] * 10).starts_in("q", 0, 2, 1)

    assert found is not None
    assert (found.seconds, found.low) == (0.0, 0.0)


def test_gaps_between_runs_count_as_the_runs_do() -> None:
    found = known([RUN_S] * 10, [RUN_S / 2] * 10).starts_in("q", 99, 1, 0)

    assert found is not None
    assert found.seconds == pytest.approx(150 * RUN_S, rel=0.01)


def test_the_fewer_runs_are_known_the_less_is_promised() -> None:
    runs = [RUN_S / 2, RUN_S, 2 * RUN_S]

    few, many = (known(runs * n).starts_in("q", 99, 1, 0) for n in (3, 50))

    assert few is not None
    assert many is not None
    assert few.seconds == pytest.approx(many.seconds, rel=0.01)
    assert few.high - few.low > many.high - many.low


def test_runs_that_took_no_time_are_nothing_to_stumble_over() -> None:
    found = known([0.0] * 10).starts_in("q", 99, 1, 0)

    assert found is not None
    assert found.seconds == 0.0
