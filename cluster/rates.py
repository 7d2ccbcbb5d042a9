"""How fast each queue drains, measured over the last minute."""

from collections import deque

from cluster.commit import Clock

__all__ = ["Rates"]

WINDOW_S = 60


class Rates:
    """Finished jobs a second, by queue. Memory only: it starts anew with the manager."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._born_at = clock.monotonic()
        #: queue -> [second, finished in it], oldest first.
        self._seconds: dict[str, deque[list[int]]] = {}

    def finished(self, queue: str, count: int) -> None:
        """Count jobs that finished."""
        second = int(self.clock.monotonic())
        seconds = self._seconds.setdefault(queue, deque(maxlen=WINDOW_S + 1))
        if seconds and seconds[-1][0] == second:
            seconds[-1][1] += count
        else:
            seconds.append([second, count])

    def per_s(self, queue: str) -> float:
        """Return the rate over the last minute, or over the manager's life if that is shorter."""
        now = self.clock.monotonic()
        seconds = self._seconds.get(queue)
        if not seconds:
            return 0.0
        count = sum(n for second, n in seconds if second > now - WINDOW_S)
        return count / max(1.0, min(float(WINDOW_S), now - self._born_at))
