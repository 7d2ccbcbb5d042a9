"""Who is to be told of a job: which of its events notify, and which have yet to.

Rule 1: what tells is submitted by the command `Advance`, which follows every other in the same
commit: an event and the jobs that tell of it are durable together or not at all. Rule 2: a job
that asked for nothing costs nothing here. Rule 3: that a job started is told once, however often it
is tried; how it ended is told each time it does.
"""

from collections.abc import Iterable

from cluster.queue.model import Job, State
from cluster.queue.spec import Listening

__all__ = ["STARTED", "forget", "listen", "reached", "told"]

STARTED = "started"
#: After these a job does nothing more.
_LAST = frozenset({"completed", "cancelled"})


def listen(state: State, job: Job, asked: Iterable[Listening]) -> None:
    """Note which events of a job somebody wants to hear of."""
    wanted = {event for one in asked for event in one.on}
    if wanted:
        state.tellers[job.id] = tuple(sorted(wanted))
    else:
        state.tellers.pop(job.id, None)


def reached(state: State, job: Job, event: str, at: float) -> None:
    """Note that a job has come so far, for whoever wants to hear of it."""
    wanted = state.tellers.get(job.id)
    if wanted is None:
        return
    if event in wanted:
        state.telling.setdefault(job.id, []).append((event, state.seq + 1, at))
        state.moving[job.id] = job
    if event == STARTED:
        state.tellers[job.id] = tuple(one for one in wanted if one != event)
    elif event in _LAST:
        forget(state, job)


def told(state: State, job_id: str) -> bool:
    """Note that what tells of a job is submitted; return whether that was still to be done."""
    return state.telling.pop(job_id, None) is not None


def forget(state: State, job: Job) -> None:
    """Tell nothing more of a job."""
    state.tellers.pop(job.id, None)
