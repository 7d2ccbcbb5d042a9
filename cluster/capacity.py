"""How many workers a load needs, and how long its jobs wait: arithmetic, no cluster.

Jobs come one by one and by chance (Poisson), stand in one line, and take the next free **slot**
(room for one handler; a worker has `at_once` of them). That is the queue M/G/c:

- The chance of finding every slot busy is Erlang's C (A. K. Erlang, 1917), here from his B, which
  a stable recursion gives for any number of slots.
- The mean wait is that of exponential run times, times (1 + spread^2) / 2 (A. O. Allen and
  J. Cunneen): exact for spread 1 or a single slot, close below 1, and above it rather too long.
- Those who wait are taken to wait an exponential time: exact for spread 1, an approximation else.

Rule 1: what Drayman itself takes is counted in, `OWN_S` and `START_S`. Rule 2: wrong input raises
InvalidInput that names the field. Rule 3: a backlog is counted as a fluid, which is right once it
is large beside the slots.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from jobs.errors import InvalidInput

__all__ = [
    "MANAGER_RATE",
    "OWN_S",
    "START_S",
    "Burst",
    "Capacity",
    "Goal",
    "Load",
    "Peak",
    "Waits",
    "Workers",
    "capacity",
]

#: What a slot loses between two handlers, and a job that finds a free one waits: measured, rounded
#: up (docs/performance.md: 20 ms handlers by worker; idle, submit to start, over HTTP).
OWN_S, START_S = 0.002, 0.005
#: Jobs a second that one manager feeds to workers of one slot, if they run 0.1 s or longer
#: (docs/sharding.md).
MANAGER_RATE = 5_000
#: What may be asked. A million slots are counted within a second.
RATE_MAX, RUN_S_MAX, SPREAD_MAX, SLOTS_MAX = 1e6, 366 * 86_400.0, 100.0, 1_000_000
#: Of binary fractions: 0.3 CPUs fit three times into 0.9.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Load:
    """What comes: jobs a second, how long one runs on average, and how much that varies."""

    rate: float
    run_s: float
    #: Standard deviation of run times by their mean: 0 all alike, 1 exponential, 2 a few long ones.
    spread: float = 1.0

    def __post_init__(self) -> None:
        _check("rate", 0 < self.rate <= RATE_MAX, f"use more than 0, to {RATE_MAX:,.0f}/s")
        _check("seconds", 0 < self.run_s <= RUN_S_MAX, "use more than 0, to 366 days")
        _check("spread", 0 <= self.spread <= SPREAD_MAX, f"use 0 to {SPREAD_MAX:g}")
        if self.busy > SLOTS_MAX / 2:
            reason = f"{self.busy:,.0f} jobs would run at once; plan for {SLOTS_MAX // 2:,} at most"
            raise InvalidInput("rate", reason)

    @property
    def slot_s(self) -> float:
        """How long a job takes a slot."""
        return self.run_s + OWN_S

    @property
    def busy(self) -> float:
        """Slots that are busy on average, and so the fewest that could ever do."""
        return self.rate * self.slot_s


@dataclass(frozen=True, slots=True)
class Workers:
    """What one worker is and takes, and what a node has for them."""

    at_once: int = 1
    cpus: float = 1.0
    node_cpus: float = 8.0
    #: Memory counts if both are given.
    memory_gb: float | None = None
    node_memory_gb: float | None = None

    def __post_init__(self) -> None:
        _check("at_once", 1 <= self.at_once <= 10_000, "use 1 to 10,000")
        for name in ("cpus", "node_cpus", "memory_gb", "node_memory_gb"):
            value = getattr(self, name)
            _check(name, value is None or 0 < value <= 1e6, "use more than 0, to a million")
        given = "memory_gb" if self.memory_gb is not None else "node_memory_gb"
        both = (self.memory_gb is None) == (self.node_memory_gb is None)
        _check(given, both, "goes with the other one: a worker's memory and a node's")
        if not self.per_node:
            raise InvalidInput("node_cpus", "not one worker fits on such a node")

    @property
    def per_node(self) -> int:
        """How many fit on one node."""
        fits = self.node_cpus / self.cpus
        if self.memory_gb is not None and self.node_memory_gb is not None:
            fits = min(fits, self.node_memory_gb / self.memory_gb)
        return math.floor(fits + ROUNDING)

    def nodes(self, workers: int) -> int:
        """Return how many nodes hold so many workers."""
        return -(-workers // self.per_node)


@dataclass(frozen=True, slots=True)
class Goal:
    """What is promised: this share of all jobs starts within `wait_s`.

    With many slots next to none would have to be free for that, and the smallest error in the rate
    would break it. So no more than `busy_max` of them are busy on average.
    """

    wait_s: float
    within: float = 0.95
    busy_max: float = 0.9

    def __post_init__(self) -> None:
        told = f"use more than {START_S * 1000:g} ms (no job starts sooner), to 366 days"
        _check("wait", START_S < self.wait_s <= RUN_S_MAX, told)
        _check("within", 0 < self.within <= 0.999_999, "use a share of the jobs, such as 0.95")
        _check("busy", 0.5 <= self.busy_max <= 1, "use a share of the slots, 0.5 to 1")


@dataclass(frozen=True, slots=True)
class Waits:
    """How long jobs wait from submission to start, once the load has lasted for a while."""

    #: The chance that all slots are busy, and how long it takes on average from there.
    chance: float
    once_s: float

    @property
    def mean_s(self) -> float:
        """Of all jobs, those that find a free slot too."""
        return START_S + self.chance * self.once_s

    def share_within(self, wait_s: float) -> float:
        """Return the share of jobs that start within so long."""
        if wait_s < START_S:
            return 0.0
        return 1 - self.chance * math.exp(-(wait_s - START_S) / self.once_s)

    def percentile_s(self, share: float) -> float:
        """Return the wait within which this share of the jobs starts."""
        if self.chance <= 1 - share:
            return START_S
        return START_S + self.once_s * math.log(self.chance / (1 - share))


@dataclass(frozen=True, slots=True)
class Burst:
    """Jobs that come at once, on top of the load, and are first in line."""

    jobs: int
    #: When the last of them is done, and when whoever comes later finds a free slot again.
    done_s: float
    gone_s: float


@dataclass(frozen=True, slots=True)
class Peak:
    """So many times the load, for a while: how the line grows, and when that is gone again."""

    times: float
    lasts_s: float
    utilisation: float
    #: Jobs in line at its end, how long the last of them waits, how long after it they are gone.
    backlog: float
    wait_s: float
    gone_s: float
    #: Workers with which it would be within the goal too.
    workers: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """So many workers under such a load."""

    load: Load
    shape: Workers
    goal: Goal
    workers: int
    waits: Waits

    @property
    def slots(self) -> int:
        """Handlers that can run at once."""
        return self.workers * self.shape.at_once

    @property
    def nodes(self) -> int:
        """Nodes for the workers; the head comes on top."""
        return self.shape.nodes(self.workers)

    @property
    def utilisation(self) -> float:
        """The share of slots that is busy on average."""
        return self.load.busy / self.slots

    @property
    def backlog(self) -> float:
        """Jobs that wait at any moment, on average (Little's law)."""
        return self.load.rate * self.waits.mean_s

    @property
    def spare_rate(self) -> float:
        """Jobs a second that could come on top."""
        return (self.slots - self.load.busy) / self.load.slot_s

    def burst(self, jobs: int) -> Burst:
        """Return what becomes of so many jobs at once."""
        _check("burst", 1 <= jobs <= 10**12, "use 1 to 1,000,000,000,000 jobs")
        slot_s = self.load.slot_s
        done_s = START_S + slot_s * max(1.0, jobs / self.slots + self.utilisation)
        return Burst(jobs, done_s, max(0.0, jobs / self.spare_rate - slot_s))

    def peak(self, times: float, lasts_s: float) -> Peak:
        """Return what becomes of so many times the load for so long."""
        _check("peak", 1 <= times <= 10_000, "use 1 to 10,000 times the rate")
        _check("peak_s", 0 < lasts_s <= RUN_S_MAX, "use more than 0, to 366 days")
        bearable = self.load.rate * times <= RATE_MAX and self.load.busy * times <= SLOTS_MAX / 2
        _check("peak", bearable, f"is more than {RATE_MAX:,.0f}/s or {SLOTS_MAX // 2:,} at once")
        high = Load(self.load.rate * times, self.load.run_s, self.load.spread)
        held = capacity(high, self.shape, self.goal).workers
        if high.busy < self.slots:
            # It can be borne: what waits is what waits under such a load, if that lasts.
            wait_s = min(_waits(high, self.slots).mean_s, lasts_s)
            backlog = high.rate * wait_s
        else:
            backlog = (high.busy - self.slots) / high.slot_s * lasts_s
            wait_s = START_S + backlog * high.slot_s / self.slots
        gone_s = backlog / self.spare_rate
        return Peak(times, lasts_s, high.busy / self.slots, backlog, wait_s, gone_s, held)


def capacity(load: Load, shape: Workers, goal: Goal, workers: int | None = None) -> Capacity:
    """Return the fewest workers that meet the goal, or what these make of the load.

    Raises InvalidInput where the load is more than these workers can ever do.
    """
    if workers is None:
        workers = _fewest(load, shape.at_once, goal)
    most = SLOTS_MAX // shape.at_once
    _check("workers", 1 <= workers <= most, f"use 1 to {most:,} ({SLOTS_MAX:,} slots in all)")
    slots = workers * shape.at_once
    if load.busy >= slots:
        most_rate, enough = slots / load.slot_s, _fewest(load, shape.at_once, goal)
        raise InvalidInput(
            "workers",
            f"{workers:,} can do {most_rate:.3g} jobs/s at most and {load.rate:.3g}/s come: the "
            f"line grows without end, by {(load.rate - most_rate) * 3600:,.0f} jobs an hour; "
            f"use {enough:,}",
        )
    return Capacity(load, shape, goal, workers, _waits(load, slots))


# --- the queue --------------------------------------------------------------------------------


def _check(field: str, holds: bool, reason: str) -> None:
    if not holds:  # also of NaN, with which every comparison is false
        raise InvalidInput(field, reason)


def _blocking(busy: float) -> Iterator[float]:
    """Yield Erlang's B for 1, 2, ... slots: the chance of all busy where nobody waits."""
    chance, slots = 1.0, 0
    while True:
        slots += 1
        chance = busy * chance / (slots + busy * chance)
        yield chance


def _waits_from(load: Load, slots: int, blocking: float) -> Waits:
    """Return the waits with more slots than are busy on average."""
    free = slots - load.busy
    chance = slots * blocking / (free + load.busy * blocking)  # Erlang's C from his B
    return Waits(chance, load.slot_s / free * (1 + load.spread**2) / 2)


def _waits(load: Load, slots: int) -> Waits:
    return _waits_from(load, slots, next(islice(_blocking(load.busy), slots - 1, None)))


def _fewest(load: Load, at_once: int, goal: Goal) -> int:
    """Return the fewest workers that meet the goal. More slots never make anybody wait longer."""
    least = load.busy / goal.busy_max
    for slots, blocking in enumerate(_blocking(load.busy), 1):
        if slots % at_once or slots < least or slots <= load.busy:
            continue
        if _waits_from(load, slots, blocking).share_within(goal.wait_s) >= goal.within:
            return slots // at_once
    raise AssertionError("the recursion never ends")
