"""What the manager knows of each living worker beyond the journal: what it was told, what it has.

A session is memory only. It is rebuilt from the worker's next report, so a manager that restarts
needs nothing else to go on. Rule: what a worker has not confirmed is sent again, and what it says
it does not have is nobody's; both are safe because a worker starts a token at most once.
"""

import asyncio

from cluster.protocol import Assignment, Progress, Record, Report
from cluster.queue.model import State

__all__ = ["Session"]


class Session:
    """One worker, from its first sign of life to its death."""

    def __init__(self, worker: str, now: float) -> None:
        self.worker = worker
        self.pool = ""
        self.queues: list[str] = []
        self.node = ""
        self.pid = 0
        self.free = 0
        self.prefetch = 0
        self.draining = False
        #: Monotonic moment of the last report, later by as long as its answer was owed.
        self.seen_at = now
        #: Answers owed to it while what they say is made durable. It cannot be blamed for silence.
        self.owed = 0
        #: Why it was given up, while its end is under way.
        self.lost = ""
        self.held: list[int] = []
        self.started: set[int] = set()
        self.progress: dict[int, Progress] = {}
        #: Number of the last checkpoint taken, by token.
        self.checkpoints: dict[int, int] = {}
        #: Number of the last report taken.
        self.report = 0
        #: Number of the last orders given.
        self.order = 0
        #: Assignments not confirmed yet, by the number of the orders they first went out with.
        self.unconfirmed: dict[int, list[Assignment]] = {}
        #: Assignments for the next orders.
        self.next: list[Assignment] = []
        self.recall: list[int] = []
        #: The job for which it was asked to give back what it had not begun.
        self.newcomer = ""
        #: Stops it was told of; they are repeated with every later reply, but wake nobody again.
        self.told: set[tuple[int, str]] = set()
        #: Set when a parked report should be answered.
        self.parked: asyncio.Event | None = None
        #: It gets nothing more, finishes what it has, and ends.
        self.retiring = False
        #: It gets nothing for now.
        self.paused = False
        #: Since when it has had nothing to do; 0 while it has, or has not reported yet.
        self.idle_since = 0.0
        #: When its last attempt ended, by its own clock.
        self.ended_at = 0.0
        #: When it was first heard of each attempt that runs, on the monotonic clock.
        self.began: dict[int, float] = {}

    def take(self, report: Report, epoch: int, now: float) -> None:
        """Take in what the worker says of itself."""
        self.report = report.number
        self.seen_at = now
        self.pool, self.queues = report.pool, report.queues
        self.node, self.pid = report.node, report.pid
        self.draining = report.draining
        self.held = report.held
        self.started = set(report.started)
        began = self.began
        self.began = {token: began.get(token, now) for token in report.started}
        if report.held:
            self.idle_since = 0.0
        elif not self.idle_since:
            self.idle_since = now
        if report.epoch == epoch:
            for number in [n for n in self.unconfirmed if n <= report.applied]:
                del self.unconfirmed[number]
        self.free = 0 if report.draining else report.free
        self.prefetch = 0 if report.draining else report.prefetch
        for progress in report.progress:
            self.progress[progress.token] = progress
        promised = sum(map(len, self.unconfirmed.values())) + len(self.next)
        if promised:  # capacity it reported before it knew of these
            self.prefetch = max(0, self.prefetch - max(0, promised - self.free))
            self.free = max(0, self.free - promised)

    def lacks(self, state: State) -> list[int]:
        """Return tokens leased to this worker that it does not have and was not just given."""
        leased = state.held.get(self.worker)
        if not leased:
            return []
        missing = leased.keys() - self.held
        for batch in (*self.unconfirmed.values(), self.next):
            if not missing:
                break
            missing.difference_update([assignment.token for assignment in batch])
        return [token for token in leased if token in missing] if missing else []

    def has_too_many(self, state: State) -> list[int]:
        """Return tokens the worker holds that are not its own any more."""
        leased = state.held.get(self.worker, {})
        foreign = set(self.held).difference(leased)
        return [token for token in self.held if token in foreign] if foreign else []

    def assign(self, assignments: list[Assignment]) -> None:
        """Put assignments into the next orders and count them against the capacity."""
        self.next += assignments
        self.idle_since = 0.0
        beyond = max(0, len(assignments) - self.free)
        self.free = max(0, self.free - len(assignments))
        self.prefetch = max(0, self.prefetch - beyond)

    def take_next(self, state: State) -> tuple[int, list[Assignment]]:
        """Return the number and assignments of the next orders: new ones, and unconfirmed again."""
        again = [
            assignment
            for batch in self.unconfirmed.values()
            for assignment in batch
            if assignment.token in state.leases
        ]
        self.order += 1
        fresh, self.next = self.next, []
        if fresh:
            self.unconfirmed[self.order] = fresh
        return self.order, again + fresh

    def is_late(self, record: Record) -> bool:
        """Whether a checkpoint was overtaken by a later one: taken now, it would undo that."""
        if record.op != "checkpoint":
            return False
        last = self.checkpoints.get(record.token, 0)
        self.checkpoints[record.token] = max(last, record.number)
        return record.number < last

    def silent_s(self, now: float) -> float:
        """Return how long ago its last report came."""
        return max(0.0, now - self.seen_at)

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out."""
        return self.retiring or self.draining or bool(self.lost)

    def retire(self) -> None:
        """Give it nothing more, and let it end once it has finished what it has."""
        if not self.retiring:
            self.retiring = True
            self.release()

    def release(self) -> None:
        """Answer the parked report, if there is one."""
        if self.parked is not None:
            self.parked.set()
