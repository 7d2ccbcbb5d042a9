"""Which tasks a worker gets next.

Rule 1: by priority, then in turns between tenants (`line.py`), over all the worker's queues; what
waited for long gets one turn in ten. Rule 2: a suspect (a process died while it ran beside others)
goes to a worker that holds no other suspect, so that the next death names the culprit. Rule 3: a
paused queue gives nothing. Rule 4: what counts against a limit is never given ahead of its start.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from operator import itemgetter

from cluster.queue.gates import gates_of, has_room
from cluster.queue.model import Line, State, Task
from cluster.queue.state import TaskState

__all__ = ["pick"]

#: Who takes ahead looks at so many: what it misses is given when it is free.
AHEAD_SEEN = 256
#: The task of a turn.
_TASK: Callable[[tuple[int, Task]], Task] = itemgetter(1)


def pick(
    state: State,
    worker: str,
    queues: Iterable[str],
    limit: int,
    now: float,
    *,
    ahead: bool = False,
    first: str = "",
    aged_before: float = -1.0,
) -> list[Task]:
    """Return up to `limit` ready tasks for `worker`, next first. Changes nothing.

    `ahead`: it takes them before it can start them. `first` names a job that goes before all if it
    waits. `aged_before`: what was ready by then has waited for long.
    """
    names = dict.fromkeys(queues)  # a queue named twice is served once
    lines = [line for name in names if (line := state.lines.get(name)) and not line.paused]
    if limit <= 0 or not lines:
        return []
    turns = [line.in_turn(aged_before) for line in lines]
    ordered = turns[0] if len(turns) == 1 else heapq.merge(*turns, key=_order)
    candidates: Iterator[Task] = map(_TASK, ordered)
    newcomer = _ready_task(state, first, lines) if first else None
    if newcomer is not None:
        others = (task for task in candidates if task is not newcomer)
        candidates = chain((newcomer,), others)
    suspect = _suspect_for(state, worker, lines)
    if suspect is not None:
        candidates = chain((suspect,), candidates)
    if state.gates:
        candidates = _within_limits(state, candidates, ahead, now)
    return list(islice(candidates, limit))


def _ready_task(state: State, job_id: str, lines: list[Line]) -> Task | None:
    """Return the task of a job that has one, if it waits in one of these lines."""
    job = state.jobs.get(job_id)
    if job is None or job.plan is not None:
        return None
    [task] = job.tasks
    is_next = task.state is TaskState.READY and not task.suspect and task.line in lines
    return task if is_next else None


def _within_limits(
    state: State, candidates: Iterator[Task], ahead: bool, now: float
) -> Iterator[Task]:
    """Pass on what may start. Of one queue all may, but several may share a limit."""
    taken: Counter[str] = Counter()
    if ahead:  # of a hundred thousand that share no key, each may be such a one
        candidates = islice(candidates, AHEAD_SEEN)
    for task in candidates:
        gates = gates_of(state, task)
        if not gates:
            yield task
        elif not ahead and all(has_room(g, taken[g.key] + 1, now) for g in gates):
            taken.update(gate.key for gate in gates)
            yield task


def _order(turn: tuple[int, Task]) -> tuple[int, float]:
    priority, task = turn
    return -priority, task.ready_at


def _suspect_for(state: State, worker: str, lines: list[Line]) -> Task | None:
    waiting = next((task for line in lines for task in line.suspects), None)
    if waiting is None:
        return None
    if any(state.leases[token].suspect for token in state.held.get(worker, ())):
        return None
    return waiting
