"""What moving a task changes, whatever moved it: the line, the limits, the lease.

Rule: only `evolve` calls these.
"""

from typing import Any

from cluster.queue.gates import leave_gates, line_up, make_room
from cluster.queue.model import PastAttempt, State, Task
from cluster.queue.state import Move, TaskState

__all__ = ["end_lease", "keep_attempt", "leave_line", "make_ready"]

_AT_GATES = (TaskState.READY, TaskState.PARKED)


def make_ready(state: State, task: Task, kind: Move, at: float) -> None:
    """Move the task to READY and put it in line, or at a limit that lets no more run."""
    task.move(kind)
    task.ready_at = at
    line_up(state, task, at)


def leave_line(state: State, task: Task, at: float) -> None:
    """Take a task out of wherever it waits its turn; its state is as it was."""
    if task.state is TaskState.READY:
        task.line.remove(task)
    if state.limits and task.limits and task.state in _AT_GATES:
        leave_gates(state, task, at)


def end_lease(state: State, event: Any, at: float) -> Task:
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
    if state.starts:
        state.starts.pop(event.token, None)
    if state.limits and task.limits:
        make_room(state, task, at)
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
