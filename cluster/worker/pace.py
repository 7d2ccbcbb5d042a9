"""How much work to have at hand, from how long tasks take here.

Rule 1: long tasks are never hoarded: beyond `LONG_TASK_S` a worker holds only what it runs.
Rule 2: before the first task has ended nothing is known, and one ahead is enough.
"""

import math

__all__ = ["Pace"]

#: A worker asks for so much work ahead: a round trip to the manager and its commit, and some.
WORK_AHEAD_S = 0.020
TASKS_AHEAD_MAX = 1000
LONG_TASK_S = 0.050
#: A child is fed so much work ahead: a turn of the worker's loop, and some.
CHILD_AHEAD_S = 0.006
CHILD_TASKS_MAX = 400
#: Weight of the latest task in the moving average.
WEIGHT = 0.1
#: What a child spends around the shortest handler.
OVERHEAD_S = 10e-6


class Pace:
    """A moving average of task time."""

    def __init__(self) -> None:
        self._task_s: float | None = None
        #: How long the longest running attempt has run; the watchdog's.
        self.longest_s = 0.0

    def add(self, tasks: int, total_s: float) -> None:
        """Take so many tasks that took so long together."""
        if tasks == 0:
            return
        mean_s = max(0.0, total_s) / tasks + OVERHEAD_S
        if self._task_s is None:
            self._task_s = mean_s
        else:
            self._task_s += (mean_s - self._task_s) * (1 - (1 - WEIGHT) ** tasks)

    def ahead(self, running: int) -> int:
        """Return how many tasks to have beyond those that run, `running` at a time."""
        if self._task_s is None and self.longest_s == 0.0:
            return 1
        task_s = max(self._task_s or 0.0, self.longest_s)
        if task_s > LONG_TASK_S:
            return 0
        return min(TASKS_AHEAD_MAX, math.ceil(WORK_AHEAD_S * running / task_s))

    def child_ahead(self) -> int:
        """Return how many tasks one child should have, the running one included."""
        if self._task_s is None:
            return 1
        return max(1, min(CHILD_TASKS_MAX, int(CHILD_AHEAD_S / self._task_s)))
