"""A steady load of short and long jobs, and what became of each of them."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service.client import ApiError, Client, Unreachable
from tests.support.live import LiveDrayman

__all__ = ["LONG_STEPS", "Acknowledged", "Ended", "Load", "Start"]

SHORT_EVERY_S, LONG_EVERY_S = 0.05, 2.0
LONG_STEPS, LONG_STEP_S = 10, 0.2
#: All that was acknowledged must have ended by then, on a slow machine.
END_S = 180.0


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A job that was answered with its id."""

    id: str
    #: Epoch seconds.
    asked_at: float
    answered_at: float


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt that began."""

    job_id: str
    attempt: int
    pid: int
    at: float


@dataclass(slots=True)
class Ended:
    """What the load came to."""

    acknowledged: int
    refused: int
    lost: list[str]
    #: Effects under `ctx.once` that happened again though they were on record.
    doubled: int
    #: Those that happened again because who had them died before they were on record.
    in_doubt: int
    #: Attempts that began while another one of the same job was alive.
    overlapping: int
    #: Jobs that began more than once.
    again: list[str]
    starts: list[Start] = field(repr=False)


class Load:
    """Submits until it is stopped."""

    def __init__(self, drayman: LiveDrayman, folder: Path) -> None:
        self._drayman, self._folder = drayman, folder
        self._over = threading.Event()
        self.acknowledged: list[Acknowledged] = []
        self.refused: list[float] = []

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Submit within the block, short and long jobs side by side."""
        kinds = [(SHORT_EVERY_S, 1, 0.0), (LONG_EVERY_S, LONG_STEPS, LONG_STEP_S)]
        threads = [threading.Thread(target=self._submit, args=kind) for kind in kinds]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _submit(self, every_s: float, steps: int, step_s: float) -> None:
        params = {"folder": str(self._folder), "steps": steps, "step_s": step_s}
        with Client(self._drayman.url, self._drayman.said["token"], patience_s=0.0) as client:
            while not self._over.wait(every_s):
                asked_at = time.time()
                try:
                    job = client.submit("chaos.work", params)
                except (ApiError, Unreachable):
                    self.refused.append(asked_at)
                else:
                    self.acknowledged.append(Acknowledged(job["id"], asked_at, time.time()))

    def end(self) -> Ended:
        """Wait for everything that was acknowledged, and count."""
        lost = []
        with self._drayman.client() as client:
            for one in self.acknowledged:
                try:
                    job = client.wait(one.id, END_S)
                except (ApiError, Unreachable):
                    lost.append(one.id)
                else:
                    if job["status"] != "completed":
                        lost.append(one.id)
        starts = self.starts()
        doubled, in_doubt = self._repeated()
        began = Counter(start.job_id for start in starts)
        return Ended(
            len(self.acknowledged),
            len(self.refused),
            lost,
            doubled,
            in_doubt,
            len(self._lines("doubled")),
            [job_id for job_id, count in began.items() if count > 1],
            starts,
        )

    def starts(self) -> list[Start]:
        """Return every attempt that has begun."""
        return [
            Start(job_id, int(attempt), int(pid), float(at))
            for job_id, attempt, pid, at in (line.split() for line in self._lines("starts"))
        ]

    def steps(self) -> Counter[str]:
        """Return how many effects each job has had."""
        happened = (line.split() for line in self._lines("effects"))
        return Counter(job_id for word, job_id, _ in happened if word == "happened")

    def _repeated(self) -> tuple[int, int]:
        """Return how many effects happened again that were on record, and that were not."""
        happened, recorded = set(), set()
        doubled = in_doubt = 0
        for word, *effect in (line.split() for line in self._lines("effects")):
            one = tuple(effect)
            if word == "recorded":
                recorded.add(one)
            elif one in recorded:
                doubled += 1
            elif one in happened:
                in_doubt += 1
            else:
                happened.add(one)
        return doubled, in_doubt

    def _lines(self, book: str) -> list[str]:
        path = self._folder / book
        return path.read_text().splitlines() if path.exists() else []
