"""What a worker took ahead and has not begun is asked back, where another would begin it sooner.

Rule 1: nothing is taken from a worker here. It is asked with its next orders, and what it has begun
by then it keeps. Rule 2: what was asked back is left longer with who has it next: where every
worker takes long to begin it, as with code of which none has a child yet, it would go round for
ever.
"""

from collections.abc import Mapping

from cluster.commit import CommitLog
from cluster.pools import Pools
from cluster.protocol import Batch
from cluster.queue.model import Task
from cluster.queue.state import TaskState
from cluster.rates import Rates
from cluster.sessions import Session

__all__ = ["Recalls"]

#: Unstarted work is taken back from a worker that sat on it this long while another is idle.
RECALL_AFTER_S = 0.1
#: And after so long whether another is idle or not: it was taken ahead of what proved to be long.
HOSTAGE_S = 1.0
#: Each time a task was asked back its next worker is given so many times as long, up to this often.
PATIENCE_GROWS, PATIENCE_GROWS_MAX = 4, 6
#: Tasks of which it is known how often they were.
REMEMBERED_MAX = 10_000
#: A newcomer is worth a recall where work runs as long as this; of one batch so many are looked at.
WORTH_A_RECALL_S = 0.005
NEWCOMERS_MAX = 8


class Recalls:
    """Decides what is asked back."""

    def __init__(
        self, commit: CommitLog, sessions: Mapping[str, Session], rates: Rates, pools: Pools
    ) -> None:
        self._commit, self._sessions, self._rates, self._pools = commit, sessions, rates, pools
        #: How often a task was asked back, by job and task; who was asked for last is last.
        self._times: dict[tuple[str, str], int] = {}

    def make_way(self, batch: Batch) -> None:
        """Ask a worker for what it took ahead, if a newcomer is to go before that.

        Whoever took work ahead takes a newcomer's with its next report; until then that waits for
        one attempt more than its turn is worth. Of the shortest work that is no time at all.
        """
        state = self._commit.state
        for submission in batch.submissions[:NEWCOMERS_MAX]:
            job = state.jobs.get(submission.job_id)
            task = next(iter(job.tasks), None) if job is not None else None
            if task is None or task.state is not TaskState.READY or task.suspect:
                continue
            line = task.line
            run_s = self._rates.run_s(line.name)
            if line.paused or run_s is None or run_s < WORTH_A_RECALL_S or line.head() is not task:
                continue
            for session in self._sessions.values():
                if session.recall or line.name not in self._pools.queues_of(session):
                    continue
                ahead = [t for t in session.held if t not in session.started and t in state.leases]
                if ahead and all(_goes_before(task, state.leases[token]) for token in ahead):
                    session.recall, session.newcomer = ahead, submission.job_id
                    session.release()
                    return

    def free_hostages(self) -> None:
        """Ask for what waits behind a long task: the next worker that is free is to have it."""
        for session in self._sessions.values():
            if session.recall or session.free > 0 or len(session.held) == len(session.started):
                continue
            waiting = self._unstarted(session, HOSTAGE_S)
            if waiting:
                self._ask(session, waiting)

    def take_back(self) -> None:
        """Ask for half of what a worker has not started for a while, if another is idle."""
        idle = [
            s
            for s in self._sessions.values()
            if s.parked is not None and s.free > 0 and not (s.leaving or s.paused)
        ]
        if not idle:
            return
        for session in idle:
            queues = set(self._pools.queues_of(session))
            for other in self._sessions.values():
                served = self._pools.queues_of(other)
                if other is session or other.recall or not queues.intersection(served):
                    continue
                # Where nothing runs it waits for a child, and would elsewhere, too.
                waiting = self._unstarted(other, RECALL_AFTER_S if other.started else HOSTAGE_S)
                if waiting:
                    self._ask(other, waiting[-max(session.free, len(waiting) // 2) :])
                    return

    def _unstarted(self, session: Session, after_s: float) -> list[int]:
        """Return what a worker has not begun for so long, or longer if it was asked back before."""
        leases, now, found = self._commit.state.leases, self._commit.now(), []
        for token in session.held:
            if token in session.started or (task := leases.get(token)) is None:
                continue
            times = self._times.get((task.job.id, task.id), 0)
            if now - task.leased_at > after_s * PATIENCE_GROWS**times:
                found.append(token)
        return found

    def _ask(self, session: Session, tokens: list[int]) -> None:
        for token in tokens:
            task = self._commit.state.leases[token]
            key = task.job.id, task.id
            times = self._times.pop(key, 0)
            self._times[key] = min(times + 1, PATIENCE_GROWS_MAX)
        while len(self._times) > REMEMBERED_MAX:
            del self._times[next(iter(self._times))]
        session.recall = tokens
        session.release()


def _goes_before(newcomer: Task, held: Task) -> bool:
    """Whether a task that is next in line is more urgent than one that was given out unstarted."""
    if newcomer.job.priority != held.job.priority:
        return newcomer.job.priority > held.job.priority
    return newcomer.job.tenant != held.job.tenant
