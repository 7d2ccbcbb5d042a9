"""How long jobs wait by the formulas, beside queues that are run job by job."""

import heapq
import math
import random
from collections.abc import Callable, Iterator
from itertools import islice, takewhile, tee

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity import (
    OWN_S,
    START_S,
    Capacity,
    Goal,
    Load,
    Workers,
    capacity,
)
from jobs.errors import InvalidInput

Draw = Callable[[random.Random, float], float]

SOON = Goal(1.0)
ONE = Workers()


def planned(rate: float, run_s: float, workers: int, spread: float = 1.0) -> Capacity:
    return capacity(Load(rate, run_s, spread), ONE, SOON, workers)


def run_times(spread: float) -> Draw:
    """Return how run times of such a spread are drawn, given their mean."""
    if spread == 0:
        return lambda _, mean: mean
    if spread == 1:
        return lambda chance, mean: chance.expovariate(1 / mean)
    variance = math.log(1 + spread**2)
    return lambda chance, mean: mean * chance.lognormvariate(-variance / 2, math.sqrt(variance))


def run(free: list[float], jobs: Iterator[tuple[float, float]]) -> Iterator[float]:
    """Yield how long each job waits, of those that come at a moment and take a slot so long."""
    for comes_at, takes_s in jobs:
        starts_at = max(comes_at, free[0])
        heapq.heapreplace(free, starts_at + takes_s)
        yield starts_at - comes_at + START_S


def by_chance(load: Load, seed: int) -> Iterator[tuple[float, float]]:
    chance, draw, now = random.Random(seed), run_times(load.spread), 0.0
    while True:
        now += chance.expovariate(load.rate)
        yield now, draw(chance, load.run_s) + OWN_S


# --- beside a queue that runs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "run_s", "workers", "spread", "within"),
    [
        (0.7, 1.0, 1, 1.0, 0.10),  # M/M/1
        (12.0, 10.0, 125, 1.0, 0.10),  # M/M/c, many slots, 96 % busy
        (30.0, 0.1, 4, 1.0, 0.10),  # where Drayman's own milliseconds show
        (0.8, 1.0, 1, 0.0, 0.10),  # M/D/1
        (7.0, 1.0, 8, 0.0, 0.15),  # M/D/c
        (0.7, 1.0, 1, 2.0, 0.15),  # lognormal: a few long ones among many short
        (7.2, 1.0, 8, 2.0, 0.25),
        (45.0, 1.0, 50, 1.5, 0.25),
    ],
)
def test_the_mean_wait_is_that_of_a_queue_that_runs(
    rate: float, run_s: float, workers: int, spread: float, within: float
) -> None:
    found = planned(rate, run_s, workers, spread)

    waits = list(islice(run([0.0] * workers, by_chance(found.load, seed=6)), 20_000, 320_000))

    seen = math.fsum(waits) / len(waits)
    assert found.waits.mean_s == pytest.approx(seen, rel=within)
    late = sorted(waits)[int(0.95 * len(waits))]
    assert found.waits.percentile_s(0.95) == pytest.approx(late, rel=2 * within)


@pytest.mark.parametrize(("rate", "run_s", "spread"), [(6.0, 1.0, 1.0), (3.0, 0.5, 0.0)])
def test_the_workers_that_are_planned_keep_the_promise_and_fewer_do_not(
    rate: float, run_s: float, spread: float
) -> None:
    goal = Goal(wait_s=0.5 * run_s, within=0.95, busy_max=1.0)
    found = capacity(Load(rate, run_s, spread), ONE, goal)

    def kept(workers: int) -> float:
        waits = list(islice(run([0.0] * workers, by_chance(found.load, seed=1)), 300_000))
        return sum(wait <= goal.wait_s for wait in waits) / len(waits)

    assert kept(found.workers) > 0.94
    assert kept(found.workers - 1) < 0.95


@pytest.mark.parametrize("jobs", [2, 20_000])
def test_a_burst_is_over_when_it_is_in_a_queue_that_runs(jobs: int) -> None:
    found = planned(2.0, 1.0, 5)
    burst = [(0.0, takes_s) for _, takes_s in islice(by_chance(found.load, seed=2), jobs)]
    # The line as the burst finds it.
    free = [0.4, 0.8, 0.0, 0.0, 0.0]

    ends = [
        wait + takes_s for wait, (_, takes_s) in zip(run(free, iter(burst)), burst, strict=True)
    ]
    gone_at = first_that_finds_a_free_slot(free, by_chance(found.load, seed=3))

    told = found.burst(jobs)
    assert told.done_s == pytest.approx(max(ends), rel=0.05, abs=2.5)
    assert told.gone_s == pytest.approx(gone_at, rel=0.05, abs=2.5)


def test_the_line_after_a_peak_is_that_of_a_queue_that_runs() -> None:
    found, lasts_s = planned(3.0, 1.0, 4), 5_000.0
    high = by_chance(Load(12.0, 1.0), seed=7)
    jobs = list(takewhile(lambda job: job[0] < lasts_s, high))
    after = ((lasts_s + comes_at, takes_s) for comes_at, takes_s in by_chance(found.load, seed=8))
    free = [0.0] * 4

    waits = list(run(free, iter(jobs)))
    gone_at = first_that_finds_a_free_slot(free, after)

    peak = found.peak(4, lasts_s)
    in_line = sum(at + wait > lasts_s for (at, _), wait in zip(jobs, waits, strict=True))
    assert peak.backlog == pytest.approx(in_line, rel=0.05)
    assert peak.wait_s == pytest.approx(waits[-1], rel=0.05)
    assert peak.gone_s == pytest.approx(gone_at - lasts_s, rel=0.1)


def first_that_finds_a_free_slot(free: list[float], jobs: Iterator[tuple[float, float]]) -> float:
    come, run_too = tee(jobs)
    both = zip(come, run(free, run_too), strict=True)
    return next(comes_at for (comes_at, _), wait in both if wait <= START_S)


# --- what must hold whatever is asked -------------------------------------------------------------

LOADS = st.builds(
    Load, rate=st.floats(0.001, 50), run_s=st.floats(0.001, 20), spread=st.floats(0, 5)
)


@given(LOADS, st.integers(1, 20))
def test_one_worker_more_never_makes_anybody_wait_longer(load: Load, at_once: int) -> None:
    shape = Workers(at_once)
    least = int(load.busy / at_once) + 1

    means = [capacity(load, shape, SOON, least + more).waits.mean_s for more in range(6)]

    assert means == sorted(means, reverse=True)
    assert means[-1] >= START_S


@given(LOADS, st.floats(0.01, 100), st.floats(0.5, 0.999), st.integers(1, 20))
def test_the_plan_keeps_its_promise_with_as_few_workers_as_can_be(
    load: Load, wait_s: float, within: float, at_once: int
) -> None:
    goal, shape = Goal(wait_s, within), Workers(at_once)

    def keeps(workers: int) -> bool:
        if load.busy >= workers * at_once:
            return False
        found = capacity(load, shape, goal, workers)
        waits = found.waits.share_within(wait_s) >= within
        return waits and found.utilisation <= goal.busy_max * (1 + 1e-9)

    found = capacity(load, shape, goal)

    assert keeps(found.workers)
    assert found.workers == 1 or not keeps(found.workers - 1)


@given(LOADS, st.floats(0.01, 0.999))
def test_a_percentile_is_the_wait_that_this_share_has(load: Load, share: float) -> None:
    waits = capacity(load, ONE, SOON).waits

    seen = waits.share_within(waits.percentile_s(share))

    assert seen >= share - 1e-9
    assert seen == pytest.approx(max(share, 1 - waits.chance))


def test_erlangs_c_is_the_one_of_the_tables() -> None:
    # Ten busy of twelve; of one slot the chance to wait is how busy it is.
    assert planned(10 / (1 + OWN_S), 1.0, 12).waits.chance == pytest.approx(0.4494, abs=1e-4)
    assert planned(0.5 / (1 + OWN_S), 1.0, 1).waits.chance == pytest.approx(0.5)


def test_a_hundred_thousand_workers_are_planned_too() -> None:
    found = capacity(Load(rate=900.0, run_s=100.0), ONE, Goal(1.0, busy_max=1.0))

    assert 90_000 < found.workers < 91_000
    assert 0 < found.waits.chance < 1
    assert found.nodes == math.ceil(found.workers / 8)


# --- workers and nodes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "per_node"),
    [
        (Workers(cpus=1, node_cpus=8), 8),
        (Workers(cpus=3, node_cpus=8), 2),
        (Workers(cpus=0.3, node_cpus=0.9), 3),
        (Workers(cpus=0.1, node_cpus=8), 80),
        (Workers(memory_gb=6, node_memory_gb=16), 2),
        (Workers(memory_gb=1, node_memory_gb=16), 8),
    ],
)
def test_a_node_holds_what_fits_by_cpus_and_memory(shape: Workers, per_node: int) -> None:
    assert shape.per_node == per_node
    assert [shape.nodes(n) for n in (1, per_node, per_node + 1)] == [1, 1, 2]


def test_wide_workers_are_fewer_and_have_the_slots() -> None:
    narrow, wide = (capacity(Load(12.0, 10.0), Workers(at_once), SOON) for at_once in (1, 16))

    assert wide.workers == math.ceil(narrow.workers / 16)
    assert wide.slots == 16 * wide.workers


def test_no_more_slots_are_busy_than_is_allowed() -> None:
    """With run times of an hour nearly all might be, and the promise would be kept."""
    load, promise_s = Load(0.5, 3600.0), 3600.0

    assert capacity(load, ONE, Goal(promise_s, busy_max=1.0)).utilisation > 0.99
    assert capacity(load, ONE, Goal(promise_s, busy_max=0.8)).utilisation <= 0.8


def test_a_peak_that_can_be_borne_leaves_the_line_of_such_a_load() -> None:
    found = planned(3.0, 1.0, 8)

    peak = found.peak(2, 3600.0)

    assert peak.wait_s == planned(6.0, 1.0, 8).waits.mean_s
    assert peak.backlog == pytest.approx(6.0 * peak.wait_s)
    assert peak.workers == capacity(Load(6.0, 1.0), ONE, SOON).workers


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        ("rate", lambda: Load(0.0, 1.0)),
        ("rate", lambda: Load(-1.0, 1.0)),
        ("rate", lambda: Load(math.nan, 1.0)),
        ("rate", lambda: Load(math.inf, 1.0)),
        ("rate", lambda: Load(1e6, 86_400.0)),
        ("seconds", lambda: Load(1.0, 0.0)),
        ("seconds", lambda: Load(1.0, math.inf)),
        ("spread", lambda: Load(1.0, 1.0, -0.1)),
        ("spread", lambda: Load(1.0, 1.0, math.nan)),
        ("at_once", lambda: Workers(at_once=0)),
        ("cpus", lambda: Workers(cpus=0)),
        ("node_cpus", lambda: Workers(cpus=16)),
        ("node_cpus", lambda: Workers(memory_gb=64, node_memory_gb=16)),
        ("memory_gb", lambda: Workers(memory_gb=4)),
        ("node_memory_gb", lambda: Workers(node_memory_gb=4)),
        ("memory_gb", lambda: Workers(memory_gb=-4, node_memory_gb=4)),
        ("wait", lambda: Goal(0.0)),
        ("wait", lambda: Goal(START_S)),
        ("within", lambda: Goal(1.0, within=1.0)),
        ("within", lambda: Goal(1.0, within=95)),
        ("busy", lambda: Goal(1.0, busy_max=0.0)),
        ("busy", lambda: Goal(1.0, busy_max=1.1)),
        ("workers", lambda: planned(1.0, 1.0, 0)),
        ("workers", lambda: planned(1.0, 1.0, 10_000_000)),
        ("burst", lambda: planned(1.0, 1.0, 2).burst(0)),
        ("peak", lambda: planned(1.0, 1.0, 2).peak(0.5, 1.0)),
        ("peak", lambda: planned(200.0, 1.0, 300).peak(9_000, 1.0)),
        ("peak_s", lambda: planned(1.0, 1.0, 2).peak(2, 0.0)),
    ],
)
def test_what_makes_no_sense_is_named(field: str, ask: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput) as refused:
        ask()

    assert refused.value.field == field


def test_too_few_workers_are_told_how_the_line_grows() -> None:
    with pytest.raises(InvalidInput) as refused:
        planned(12.0, 10.0, 100)

    # A hundred do 9.998 a second, 2.002 less than come.
    assert "grows without end, by 7,207 jobs an hour" in refused.value.reason
    assert refused.value.reason.endswith(f"use {capacity(Load(12.0, 10.0), ONE, SOON).workers}")
