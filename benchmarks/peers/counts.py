"""The bytes in shared memory in which each job counts itself; `adapters/body.py` writes them.

Rule 1: no number is given to two jobs, so a straggler of an earlier run never counts for a later
one. Rule 2: the first TIMED numbers are for jobs whose start matters, the others only count.
"""

import mmap
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.processes import Failed

__all__ = ["Counts", "Passed"]

# As in body.py, which runs where this package cannot be imported.
JOBS, TIMED = 1 << 25, 1 << 14
SLOT = struct.Struct("dd")

LOOK_S = 0.004
#: So long without a job run means that no more will be.
STALLED_S = 30.0


@dataclass(frozen=True)
class Passed:
    """When a tenth of some jobs had run, and when all had; of `time.monotonic`."""

    tenth: float
    all: float


class Counts:
    """The counts of one system's jobs."""

    def __init__(self) -> None:
        with tempfile.NamedTemporaryFile(
            prefix="drayman-peers-", dir="/dev/shm", delete=False
        ) as file:
            # Sparse: pages come into being as jobs count themselves.
            file.truncate(JOBS + TIMED * SLOT.size)
            self.path = Path(file.name)
            self._map = mmap.mmap(file.fileno(), 0)
        self._next, self._next_timed = TIMED, 0

    def take(self, count: int) -> range:
        """Return numbers that no job had."""
        numbers = range(self._next, self._next + count)
        self._next = numbers.stop
        if self._next > JOBS:
            raise Failed("out of numbers for jobs")
        return numbers

    def take_timed(self, count: int) -> range:
        """Return numbers of which `started` will know more."""
        numbers = range(self._next_timed, self._next_timed + count)
        self._next_timed = numbers.stop
        if self._next_timed > TIMED:
            raise Failed("out of numbers for timed jobs")
        return numbers

    def ran(self, numbers: range) -> int:
        """Return how many of these ran at least once."""
        return len(numbers) - self._map[numbers.start : numbers.stop].count(0)

    def twice(self, numbers: range) -> int:
        """Return how many of these ran more than once."""
        counts = self._map[numbers.start : numbers.stop]
        return len(numbers) - counts.count(0) - counts.count(1)

    def started(self, n: int) -> tuple[float, int]:
        """Return when a timed job started last (epoch), and in which process; 0 if never."""
        at, pid = SLOT.unpack_from(self._map, JOBS + n * SLOT.size)
        return at, int(pid)

    def watch(self, numbers: range, alive: Callable[[], bool] = lambda: True) -> Passed:
        """Wait until all of these ran. Raises Failed where they stop coming."""
        tenth, seen, seen_at = 0.0, 0, time.monotonic()
        while True:
            ran, now = self.ran(numbers), time.monotonic()
            if not tenth and ran >= len(numbers) / 10:
                tenth = now
            if ran == len(numbers):
                return Passed(tenth, now)
            if ran > seen:
                seen, seen_at = ran, now
            elif now - seen_at > STALLED_S or not alive():
                raise Failed(f"{len(numbers) - ran} of {len(numbers)} jobs were never run")
            time.sleep(LOOK_S)

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        self.path.unlink(missing_ok=True)
