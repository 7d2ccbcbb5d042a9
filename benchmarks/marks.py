"""What ran, counted outside of Drayman: each job body leaves its mark in shared memory.

A file in memory holds for job number n a byte, to which the body adds 1, and the moment at which
the body began. So a job that never ran, or ran twice, shows whatever any queue says of it. What
it doesn't show: two bodies of one job that add in the very same instant.
"""

import mmap
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Marks", "marks_file"]

SHARED_MEMORY = Path("/dev/shm")
#: For each job a double (epoch seconds), and behind all of those a byte.
MOMENT_BYTES = 8
LOOK_S = 0.005
#: A job's params are padded to about this.
PARAMS_BYTES = 100


class Marks:
    """One file, mapped."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.slots = len(self._map) // (MOMENT_BYTES + 1)
        self._began = memoryview(self._map)[: self.slots * MOMENT_BYTES].cast("d")
        self._base = self.slots * MOMENT_BYTES

    def hit(self, n: int) -> None:
        """Leave the mark of job `n`."""
        self._began[n] = time.time()
        self._map[self._base + n] += 1

    def params(self, n: int) -> bytes:
        """Return the params of job `n`, as JSON."""
        pad = "x" * max(0, PARAMS_BYTES - len(self.path) - 36)
        return b'{"file":"%s","n":%d,"pad":"%s"}' % (self.path.encode(), n, pad.encode())

    def line(self, n: int) -> bytes:
        """Return job `n` as the API takes it."""
        return b'{"type":"bench.mark","params":%s}' % self.params(n)

    def lines(self, first: int, count: int) -> bytes:
        """Return that many jobs as a batch, numbered from `first`."""
        return b"\n".join([self.line(n) for n in range(first, first + count)])

    def began(self, jobs: int) -> list[float]:
        """Return when each of the first jobs began, by number."""
        return list(self._began[:jobs])

    def wait(self, jobs: int, within_s: float = 120.0) -> None:
        """Return once the first jobs have all run, or nothing more came for a while."""
        missing, since = jobs, time.monotonic()
        while (left := self.not_run(jobs)) and time.monotonic() - since < within_s:
            if left != missing:
                missing, since = left, time.monotonic()
            time.sleep(LOOK_S)

    def not_run(self, jobs: int) -> int:
        """Return how many of the first jobs never ran."""
        return self._counts(jobs).count(0)

    def run_twice(self, jobs: int) -> int:
        """Return how many of the first jobs ran more than once."""
        counts = self._counts(jobs)
        return jobs - counts.count(0) - counts.count(1)

    def _counts(self, jobs: int) -> bytes:
        return self._map[self._base : self._base + jobs]


@contextmanager
def marks_file(slots: int) -> Iterator[Marks]:
    """Make a file for so many jobs; remove it at the end."""
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.NamedTemporaryFile(prefix="drayman-bench-", dir=folder) as file:
        file.truncate(slots * (MOMENT_BYTES + 1))
        yield Marks(file.name)
