"""How fast each queue drains and how long its work runs, as measured; and what follows from it.

Memory only: it starts anew with the manager.
"""

import math
from collections import deque
from collections.abc import Sequence

import msgspec

from cluster.commit import Clock

__all__ = ["CONFIDENCE", "Decaying", "Estimate", "Rates", "RunTimes"]

WINDOW_S = 60
#: Runs of which the mean is kept, about: older ones count less and less.
RUNS_KEPT = 200
#: Runs after which anything is said of the next ones.
RUNS_KNOWN = 5
#: How often what is said comes true, and how many standard deviations that is of a normal spread.
CONFIDENCE, DEVIATIONS = 0.8, 1.2816
#: What the model leaves out: orders on their way, a machine that is busy with other things.
SLACK_S, SLACK = 0.1, 0.15


class RunTimes:
    """Mean and spread of run times, in seconds."""

    __slots__ = ("count", "squares", "sum")

    def __init__(self) -> None:
        self.count = self.sum = self.squares = 0.0

    def add(self, count: int, total: float, squares: float) -> None:
        """Take in so many runs."""
        if self.count > RUNS_KEPT:
            keep = RUNS_KEPT / self.count
            self.count, self.sum, self.squares = RUNS_KEPT, self.sum * keep, self.squares * keep
        self.count += count
        self.sum += total
        self.squares += squares

    @property
    def mean_s(self) -> float | None:
        """The mean; None while too few are known."""
        return self.sum / self.count if self.count >= RUNS_KNOWN else None

    @property
    def variance(self) -> float:
        """The variance, in square seconds."""
        return max(0.0, self.squares / self.count - (self.sum / self.count) ** 2)


class Estimate(msgspec.Struct, frozen=True):
    """When something is expected to start, in seconds from now."""

    seconds: float
    #: It starts between these with probability `confidence`, if nothing goes before it meanwhile.
    low: float
    high: float
    confidence: float = CONFIDENCE


class _Second(msgspec.Struct):
    number: int
    finished: int


class Decaying:
    """How many a second of something, the latest weighing most. Two numbers, however many come."""

    __slots__ = ("_at", "_began", "_count")

    def __init__(self, now: float) -> None:
        self._count, self._at, self._began = 0.0, now, now

    def add(self, count: int, now: float) -> None:
        """Count so many."""
        self._count = self._count * math.exp((self._at - now) / WINDOW_S) + count
        self._at = now

    def per_s(self, now: float) -> float:
        """Return the rate as if what there was so far went on."""
        # What was counted from the beginning on stands for less than a whole window.
        seen_s = WINDOW_S * -math.expm1((self._began - now) / WINDOW_S)
        return self._count * math.exp((self._at - now) / WINDOW_S) / max(1.0, seen_s)


class Rates:
    """What was finished, by queue."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._born_at = clock.monotonic()
        self._seconds: dict[str, deque[_Second]] = {}
        self._runs: dict[str, RunTimes] = {}
        self._gaps: dict[str, RunTimes] = {}

    def finished(
        self, queue: str, count: int, runs: Sequence[float] = (), gaps: Sequence[float] = ()
    ) -> None:
        """Count jobs that finished; `runs` are seconds that attempts which succeeded ran.

        `gaps` are seconds from the end of one to the start of the next that waited already.
        """
        second = int(self.clock.monotonic())
        seconds = self._seconds.setdefault(queue, deque(maxlen=WINDOW_S + 1))
        if seconds and seconds[-1].number == second:
            seconds[-1].finished += count
        else:
            seconds.append(_Second(second, count))
        for kept, seen in ((self._runs, runs), (self._gaps, gaps)):
            if seen:
                times = kept.setdefault(queue, RunTimes())
                times.add(len(seen), sum(seen), sum(each_s * each_s for each_s in seen))

    def per_s(self, queue: str) -> float:
        """Return the rate over the last minute, or over the manager's life if that is shorter."""
        now = self.clock.monotonic()
        seconds = self._seconds.get(queue)
        if not seconds:
            return 0.0
        count = sum(one.finished for one in seconds if one.number > now - WINDOW_S)
        return count / max(1.0, min(float(WINDOW_S), now - self._born_at))

    def run_s(self, queue: str) -> float | None:
        """Return how long work of this queue usually runs; None while that is not known."""
        runs = self._runs.get(queue)
        return runs.mean_s if runs is not None else None

    def starts_in(self, queue: str, ahead: int, slots: int, free: int) -> Estimate | None:
        """Return when what has `ahead` before it starts, where `slots` serve and `free` are idle.

        Each of `ahead - free + 1` ends of others frees a slot for it; slots end independently, so
        that many of them take the mean run time each, and the gap after it, divided among the
        slots.
        """
        runs, gaps = self._runs.get(queue), self._gaps.get(queue)
        mean_s = runs.mean_s if runs is not None else None
        if runs is None or mean_s is None or slots <= 0:
            return None
        ends = max(0, ahead - free + 1)
        gap_s = (gaps.mean_s or 0.0) if gaps is not None else 0.0
        seconds = ends * (mean_s + gap_s) / slots
        # The first end comes when what runs now has run out: a mean residual life, which is
        # (mean^2 + variance) / (2 mean) for one slot, and it is as uncertain as it is long.
        residual_s = (mean_s**2 + runs.variance) / (2 * mean_s) if ends and mean_s else 0.0
        if ends:
            seconds += (residual_s - mean_s) / slots
        # What is ahead differs from the mean, and the mean of what is known from that of all.
        differs = ends * runs.variance * (1 + ends / runs.count)
        spread = math.sqrt(differs + residual_s**2) / slots
        wide = DEVIATIONS * spread + SLACK * seconds + SLACK_S
        return Estimate(
            round(max(0.0, seconds), 3),
            round(max(0.0, seconds - wide), 3),
            round(seconds + wide, 3),
        )
