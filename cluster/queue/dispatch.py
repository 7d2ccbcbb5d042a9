"""Which tasks a worker gets next.

Rule 1: higher priority first, then first come first served, over all the worker's queues.
Rule 2: a suspect (a process died while it ran beside others) goes to a worker that holds no other
suspect, so that the next death names the culprit. Rule 3: a paused queue gives nothing.
"""

import heapq
from collections.abc import Iterable
from itertools import islice

from cluster.queue.model import Line, State, Task

__all__ = ["pick"]


def pick(state: State, worker: str, queues: Iterable[str], limit: int) -> list[Task]:
    """Return up to `limit` ready tasks for `worker`, next first. Changes nothing."""
    names = dict.fromkeys(queues)  # a queue named twice is served once
    lines = [line for name in names if (line := state.lines.get(name)) and not line.paused]
    if limit <= 0 or not lines:
        return []
    chosen: list[Task] = []
    suspect = _suspect_for(state, worker, lines)
    if suspect is not None:
        chosen.append(suspect)
    if len(lines) == 1:
        candidates = lines[0].ready()
    else:
        candidates = heapq.merge(*(line.ready() for line in lines), key=_order)
    chosen += islice(candidates, limit - len(chosen))
    return chosen


def _order(task: Task) -> tuple[int, float]:
    return -task.job.priority, task.ready_at


def _suspect_for(state: State, worker: str, lines: list[Line]) -> Task | None:
    waiting = next((task for line in lines for task in line.suspects), None)
    if waiting is None:
        return None
    if any(state.leases[token].suspect for token in state.held.get(worker, ())):
        return None
    return waiting
