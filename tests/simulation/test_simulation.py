"""Schedules of trouble, thousands of them: every promise of the design is kept in each.

A seed that fails prints its trace, and `python -m tests.simulation --short --seed N` plays it
again, exactly.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.simulation.simulation import SHORT, Result, simulate

ROOT = Path(__file__).resolve().parents[2]
#: Seeds in one test, and how many tests: spread over the processes that pytest runs.
TOGETHER = 75
TESTS = 8


def told(result: Result) -> str:
    lines = [*result.trace[-150:], *(f"seed {result.seed}: {v}" for v in result.violations)]
    return "\n".join([*lines, f"again: python -m tests.simulation --short --seed {result.seed}"])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(1, 1 + TESTS * TOGETHER, TOGETHER))
def test_every_promise_is_kept_in_every_schedule(first: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first, first + TOGETHER):
        result = simulate(seed, SHORT)
        counts.update(result.counts)
        assert not result.violations, told(result)

    # A simulation in which nothing happens keeps every promise.
    assert min(counts[what] for what in ("acks", "attempts", "lives", "effects", "cancels")) > 3


def test_a_seed_gives_the_same_schedule_to_the_letter_in_any_process() -> None:
    mine = simulate(5, keep_trace=True)
    again = simulate(5, keep_trace=True)
    theirs = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(mine.trace) > 100
    assert again.trace == mine.trace
    assert theirs.stdout.splitlines() == mine.trace
