"""What is told to those who are refused: when there will be room.

A full queue has room once something of it ends, so the wait follows from the measured drain rate:
as long as it takes to make room for a twentieth of what it holds, so that not all come back for
the next free place. A tenant's own limit has room once something of its own ends.
"""

from collections.abc import Iterable

from cluster.commit import CommitLog
from cluster.rates import Decaying, Rates
from jobs.errors import Overloaded

__all__ = ["Pressure"]

#: Seconds, at least and at most; and where nothing ends at all. The least is for gateways, which
#: ask again soon; a client is never told less than a second.
LEAST_S, MOST_S, STANDSTILL_S = 0.01, 60.0, 30.0
PART = 0.05
#: A wait holds for all that are refused within so long.
KEPT_S = 0.1
#: Waits kept at once; and tenants that were counted, beyond those that have work.
WAITS_MAX, TENANTS_MAX = 1_000, 10_000


class Pressure:
    """Times refusals."""

    def __init__(self, commit: CommitLog, rates: Rates) -> None:
        self._commit, self._rates = commit, rates
        #: By tenant: what ended.
        self._ended: dict[str, Decaying] = {}
        #: By scope and name: until when it holds, and the wait.
        self._waits: dict[tuple[str, str], tuple[float, float]] = {}

    def ended(self, tenants: Iterable[str]) -> None:
        """Count jobs that ended, by the tenant of each: of those that have a limit of their own."""
        if not self._commit.rules.tenants:
            return
        now, counted = self._rates.clock.monotonic(), self._ended
        for tenant in tenants:
            if (rate := counted.get(tenant)) is None:
                if len(counted) > TENANTS_MAX + len(self._commit.state.usage):
                    self._forget()
                    counted = self._ended
                rate = counted[tenant] = Decaying(now)
            rate.add(1, now)

    def timed(self, error: Overloaded) -> Overloaded:
        """Return the refusal with the wait that fits it."""
        if not error.quota:
            return error  # no depth that goes down as work ends
        now, key = self._rates.clock.monotonic(), (error.scope, error.name)
        until, wait_s = self._waits.get(key, (0.0, 0.0))
        if now >= until:
            if len(self._waits) >= WAITS_MAX:
                self._waits.clear()
            wait_s = self._wait_s(error)
            self._waits[key] = now + KEPT_S, wait_s
        args = (error.scope, error.reason, wait_s, error.name, error.quota, error.unit)
        return Overloaded(*args)

    def _wait_s(self, error: Overloaded) -> float:
        rate = self._rate(error)
        if rate <= 0:
            return STANDSTILL_S
        return round(min(MOST_S, max(LEAST_S, PART * self._held(error) / rate)), 2)

    def _rate(self, error: Overloaded) -> float:
        """Return how many jobs a second make room."""
        if error.scope == "queue":
            return self._rates.per_s(error.name)
        own = self._ended.get(error.name) if error.scope == "tenant" else None
        if own is not None:
            return own.per_s(self._rates.clock.monotonic())
        # Of a tenant of which nothing has ended yet: as if all that ends were its own.
        return sum(self._rates.per_s(queue) for queue in self._commit.state.lines)

    def _held(self, error: Overloaded) -> int:
        state = self._commit.state
        if error.scope == "queue":
            return state.line(error.name).depth
        usage = state.usage.get(error.name) if error.scope == "tenant" else state.total
        return usage.jobs if usage is not None else 0

    def _forget(self) -> None:
        """Forget tenants that have no work: there are no refusals to time for them."""
        usage = self._commit.state.usage
        self._ended = {t: rate for t, rate in self._ended.items() if t in usage}
