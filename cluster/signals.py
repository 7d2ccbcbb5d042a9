"""What Prometheus asks of the work: how much, how well, how long it waited and ran, by its type.

Memory only: it starts anew with the manager, as a counter may. Rule: kinds are bounded. Whoever
posts workflows may make up types without end; from `KINDS_MAX` on they count as `other`.
"""

from bisect import bisect_right
from collections.abc import Iterable

import msgspec
import structlog

from cluster.commit import Clock
from cluster.queue.model import Task
from cluster.queue.plan import StepTask
from cluster.queue.state import TaskState
from cluster.tracing import trace_id_of

__all__ = ["BOUNDS_S", "OTHER", "Signal", "Signals", "Spread"]

log = structlog.get_logger(__name__)

#: Upper bounds of what is counted together: from milliseconds to hours.
BOUNDS_S = (0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 14_400.0)
#: Pairs of queue and type that are told apart.
KINDS_MAX = 200
OTHER = "other"
#: Lines of the log a second about tasks that died; the next that is written says how many were not.
DEATHS_LOGGED = 20

# Looked up for each attempt, where an attribute of the enum costs as much as the rest.
_READY, _DEAD = TaskState.READY, TaskState.DEAD
#: Of states that an attempt may end in; the others say nothing of how it ended.
_OUTCOMES = {
    TaskState.SUCCEEDED: "succeeded",
    TaskState.DEAD: "died",
    TaskState.CANCELLED: "cancelled",
}


class Spread(msgspec.Struct):
    """Seconds: how many up to each bound, how many above all, and their sum."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum: float = 0.0

    def add(self, many_s: list[float]) -> None:
        """Count so many; clocks of two machines may say that one took less than nothing."""
        many_s.sort()
        counts, below = self.counts, 0
        for i, bound_s in enumerate(BOUNDS_S):
            upto = bisect_right(many_s, bound_s, below)
            counts[i] += upto - below
            below = upto
        counts[-1] += len(many_s) - below
        self.sum += sum(many_s[bisect_right(many_s, 0.0) :])


class Signal(msgspec.Struct):
    """What became of the attempts of one type in one queue."""

    queue: str
    type: str
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    #: From ready to started, and from started to ended.
    wait: Spread = msgspec.field(default_factory=Spread)
    run: Spread = msgspec.field(default_factory=Spread)


class Signals:
    """The counts of one manager."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, str], Signal] = {}
        self._second, self._logged, self._unlogged = 0, 0, 0

    def all(self) -> list[Signal]:
        """Return what was counted so far."""
        return list(self._kinds.values())

    def ended(self, tasks: Iterable[Task]) -> None:
        """Count attempts that ended just now; those that never started are none."""
        ended: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
        for task in tasks:
            started_at = task.started_at
            if not started_at:
                continue
            state, job = task.state, task.job
            kind = job.type
            if job.plan is not None and isinstance(task, StepTask):
                kind = task.step.spec.type or kind
            outcome = _OUTCOMES.get(state)
            if outcome is None:
                outcome = task.past[-1].outcome if task.past else "released"
            elif state is _DEAD:
                self._log_death(task, kind)
            which = (task.line.name, kind, outcome)
            times = ended.get(which)
            if times is None:
                times = ended[which] = ([], [])
            times[0].append(task.ended_at - started_at)
            if state is not _READY:  # else it waits anew by now
                times[1].append(started_at - task.ready_at)
        for (queue, kind, outcome), (runs, waits) in ended.items():
            signal = self._kinds.get((queue, kind)) or self._open(queue, kind)
            signal.outcomes[outcome] = signal.outcomes.get(outcome, 0) + len(runs)
            signal.run.add(runs)
            signal.wait.add(waits)

    def _open(self, queue: str, kind: str) -> Signal:
        if len(self._kinds) >= KINDS_MAX:
            kind = OTHER
        return self._kinds.setdefault((queue, kind), Signal(queue, kind))

    def _log_death(self, task: Task, kind: str) -> None:
        second = int(self._clock.monotonic())
        if second != self._second:
            self._second, self._logged = second, 0
        if self._logged >= DEATHS_LOGGED:
            self._unlogged += 1
            return
        self._logged += 1
        past = task.past[-1] if task.past else None
        log.warning(
            "task_died",
            job=task.job.id,
            task=task.id,
            attempt=task.attempt,
            worker=past.worker if past is not None else "",
            type=kind,
            queue=task.line.name,
            tenant=task.job.tenant,
            cause=past.cause if past is not None else "",
            trace_id=trace_id_of(task.job),
            unlogged=self._unlogged,
        )
        self._unlogged = 0
