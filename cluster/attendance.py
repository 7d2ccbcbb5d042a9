"""Which workers live: taken in at their first sign of life, watched, given up when they are silent.

Rule 1: a worker that is gone never comes back: if it still says something, it is told to drop what
it holds. Rule 2: a silent one is killed before that is given away, and only by a manager that is
still the manager.
"""

import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from cluster.commit import Clock, CommitLog
from cluster.config import Config
from cluster.pools import WorkerPort
from cluster.protocol import LEASE_LOST, WORKER_DIED
from cluster.sessions import Session
from jobs.errors import DraymanError

__all__ = ["Attendance"]

log = structlog.get_logger(__name__)

#: How long after its first sign a worker may take to its first report: imports on a busy machine.
STARTING_S = 120.0
#: Workers that are gone, of which it is remembered.
GONE_MAX = 1000


class Attendance:
    """Opens the session of each worker, and ends it."""

    def __init__(
        self,
        commit: CommitLog,
        workers: WorkerPort,
        sessions: dict[str, Session],
        clock: Clock,
        *,
        config: Callable[[], Config],
        go: Callable[[Coroutine[Any, Any, None]], object],
        lost: Callable[[Session, str], None],
    ) -> None:
        """`go` runs something in the background; `lost(session, cause)` hears of each end."""
        self._commit, self._workers, self._clock = commit, workers, clock
        self._sessions, self._config, self._go, self._lost = sessions, config, go, lost
        #: Workers that are gone, and why.
        self.gone: dict[str, str] = {}

    async def begin(self) -> list[str]:
        """Take in the living workers; return those that hold something and live no more."""
        live = await self._workers.live()
        for name, pool in live.items():
            self.welcome(name, pool)
        dead = [name for name in self._commit.state.held if name not in live]
        for name in dead:
            self.gone[name] = WORKER_DIED
        return dead

    def welcome(self, worker: str, pool: str) -> None:
        """Take in a worker of this pool, unless it is known or gone."""
        if worker not in self._sessions and worker not in self.gone:
            self.adopt(worker).pool = pool

    def adopt(self, worker: str) -> Session:
        """Take in a worker that is not known."""
        session = self._sessions[worker] = Session(worker, self._clock.monotonic())
        self._go(self._watch(worker))
        return session

    async def _watch(self, worker: str) -> None:
        self.lose(worker, await self._workers.watch(worker))

    def lose(self, worker: str, cause: str) -> None:
        """End the session of a worker that is no more, if there is one."""
        session = self._sessions.pop(worker, None)
        if session is None:
            return
        cause = session.lost or cause
        self.gone[worker] = cause
        while len(self.gone) > GONE_MAX:
            del self.gone[next(iter(self.gone))]
        session.release()
        self._lost(session, cause)

    def is_cleared_of(self, worker: str) -> bool:
        """Whether nothing of a worker may live any more.

        Of a hung one, its keepers end what it ran before its lease is over.
        """
        return self.gone.get(worker, LEASE_LOST) != LEASE_LOST

    def forgive(self, gap_s: float) -> None:
        """Hold no silence against anybody that fell into a time when nothing was heard."""
        for session in self._sessions.values():
            session.seen_at += gap_s

    def doubt_silent(self) -> None:
        """Begin to give up those that said nothing for too long."""
        now = self._clock.monotonic()
        for session in self._sessions.values():
            silent_s = 0.0 if session.owed or session.lost else now - session.seen_at
            if silent_s > self._heartbeat_timeout_s(session):
                session.lost = LEASE_LOST
                self._go(self._give_up(session))

    def _heartbeat_timeout_s(self, session: Session) -> float:
        if not (session.report or session.worker in self._commit.state.held):
            return STARTING_S
        pool = self._config().pool(session.pool)
        return pool.heartbeat_timeout_s if pool is not None else 15.0

    async def _give_up(self, session: Session) -> None:
        """End a silent worker, then give away what it held: it must not go on beside the next.

        A manager that was replaced hears of no worker any more, and has none to kill.
        """
        try:
            await self._commit.prove()
        except DraymanError as error:
            log.warning("worker_not_given_up", worker=session.worker, error=str(error))
            session.lost = ""
            return
        with contextlib.suppress(DraymanError):  # its node may be out of reach too
            await self._workers.kill(session.worker)
        self.lose(session.worker, session.lost)
