"""What moving a task changes, whatever moved it: its state, the counts, the line, the lease.

Rule: only `evolve` calls these.
"""

from typing import Any

from cluster.queue.model import PastAttempt, State, Task
from cluster.queue.state import Move, moved

__all__ = ["end_lease", "keep_attempt", "make_ready", "move"]


def move(task: Task, kind: Move) -> None:
    """Move the task and keep the counts. Raises IllegalTransition and changes nothing."""
    old = task.state
    task.state = new = moved(old, kind)
    counts = task.line.counts
    counts[old] -= 1
    counts[new] += 1
    plan = task.job.plan
    if plan is not None:
        plan.recount(task, old, new)


def make_ready(task: Task, kind: Move, at: float) -> None:
    """Move the task to READY and put it at the end of its line."""
    move(task, kind)
    task.ready_at = at
    task.line.push(task)


def end_lease(state: State, event: Any) -> Task:
    """Take the token away and keep what the attempt left behind."""
    task = state.leases.pop(event.token)
    held = state.held[task.worker]
    del held[event.token]
    if not held:
        del state.held[task.worker]
    if task.stop:
        stopping = state.stopping[task.worker]
        del stopping[event.token]
        if not stopping:
            del state.stopping[task.worker]
        task.stop = ""
        if task.job.plan is not None:
            task.job.plan.asked -= 1
    task.token = 0
    task.started_at = event.started_at
    task.ended_at = event.ended_at
    task.log = event.log
    return task


def keep_attempt(task: Task, outcome: str, error: str = "", cause: str = "") -> None:
    """Remember an attempt that ended without success."""
    if task.past is None:
        task.past = []
    task.past.append(
        PastAttempt(
            task.attempt,
            outcome,
            task.worker,
            task.leased_at,
            task.started_at,
            task.ended_at,
            error,
            cause,
            task.log,
        )
    )
