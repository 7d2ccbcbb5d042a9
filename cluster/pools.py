"""How many workers each pool has: as many as its backlog takes, between its least and its most.

    wanted = what runs + what waits x measured run time / the wait that is allowed

Rule 1: nobody who works is sent away: a worker that is too many, or that a change made outdated,
finishes what it has and ends. Rule 2: one that cannot be placed yet stays asked for, which is what
Ray's autoscaler goes by. Rule 3: nothing here is needed after a crash: the next look sees what
lives and what waits.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import structlog

from cluster.config import PoolSettings
from cluster.queue.model import State
from cluster.queue.state import TaskState
from cluster.rates import Rates
from cluster.sessions import Session
from jobs.errors import DraymanError

__all__ = ["LOOK_S", "Pools", "WorkerPort"]

log = structlog.get_logger(__name__)

#: How often it is looked whether a pool has the size it should have.
LOOK_S = 1.0
#: Between tries to start a worker that did not start.
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 30.0
#: What of a pool may change without its workers being replaced.
ABOUT_MANY = frozenset({"queues", "min", "max", "wait_s", "idle_s"})

S = TaskState


class WorkerPort(Protocol):
    """How workers are started, watched and ended."""

    async def spawn(self, pool: PoolSettings) -> str:
        """Start a worker of `pool` and return its name, never used before, once it runs.

        Waits as long as there is no place for it; cancelled, it is asked for no more.
        """

    async def live(self) -> dict[str, str]:
        """Return the pool of every living worker by name."""

    async def watch(self, worker: str) -> str:
        """Return why it died, once it did: `worker died`, `oom`, or NODE_LOST."""

    async def kill(self, worker: str) -> None:
        """End it by force."""

    def unplaceable(self, pool: PoolSettings) -> str:
        """Return why no node could ever hold a worker of `pool`; empty if one could."""

    async def ask_for(self, wanted: list[tuple[PoolSettings, int]]) -> None:
        """Say how many workers of each pool there should be soon."""


class Pools:
    """Keeps every pool at its size."""

    def __init__(
        self,
        workers: WorkerPort,
        state: State,
        sessions: Mapping[str, Session],
        rates: Rates,
        *,
        go: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        adopt: Callable[[str, str], None],
    ) -> None:
        """`go` runs something in the background; `adopt(worker, pool)` takes in a new worker."""
        self._workers, self._state, self._sessions, self._rates = workers, state, sessions, rates
        self._go, self._adopt = go, adopt
        self.settings: dict[str, PoolSettings] = {}
        #: Workers on their way, by pool.
        self._starting: dict[str, list[asyncio.Task[None]]] = {}
        #: Workers of pools as they were: by name, those that are to be replaced.
        self._outdated: set[str] = set()
        #: What was said last that there should be.
        self._asked: list[tuple[PoolSettings, int]] = []
        self._running = False

    def begin(self, settings: dict[str, PoolSettings], *, warm: bool) -> None:
        """Start what is missing. `warm`: one worker of each pool too whose least is 0."""
        self.settings, self._running = settings, True
        for pool in settings.values():
            if warm and pool.max and not self._members(pool.name):
                self._start(pool, max(1, pool.min))
        self.look()

    def end(self) -> None:
        """Start nothing more."""
        if not self._running:
            return
        self._running = False
        for starting in self._starting.values():
            for task in starting:
                task.cancel()
        self._go(self._ask_for([]))

    def change(self, settings: dict[str, PoolSettings]) -> None:
        """Let these settings hold from now on."""
        for name, before in self.settings.items():
            after = settings.get(name)
            if after is None or _of_each(after) != _of_each(before):
                self._outdated.update(s.worker for s in self._members(name))
                for task in self._starting.get(name, ()):
                    task.cancel()
                self._starting.pop(name, None)
        self.settings = settings
        self.look()

    def queues_of(self, session: Session) -> list[str]:
        """Return the queues that a worker serves now."""
        pool = self.settings.get(session.pool)
        return pool.queues if pool is not None else session.queues

    def starting(self, pool: str) -> int:
        """Return how many workers of the pool are on their way."""
        return len(self._starting.get(pool, ()))

    def unplaceable(self, pool: PoolSettings) -> str:
        """Return why no node could ever hold a worker of `pool`; empty if one could."""
        return self._workers.unplaceable(pool)

    def look(self) -> None:
        """Start or send away workers until each pool has the size that it should have."""
        if not self._running:
            return
        now = self._rates.clock.monotonic()
        wanted = []
        for session in self._sessions.values():
            if session.worker in self._outdated or session.pool not in self.settings:
                session.retire()
        self._outdated.intersection_update(self._sessions)
        for pool in self.settings.values():
            want = self.wanted(pool)
            wanted.append((pool, want))
            members = [s for s in self._members(pool.name) if not s.leaving]
            starting = self._starting.get(pool.name, [])
            surplus = len(members) + len(starting) - want
            if surplus < 0:
                self._start(pool, -surplus)
                continue
            while surplus > 0 and starting:
                starting.pop().cancel()
                surplus -= 1
            idle = [s for s in members if s.idle_since and now - s.idle_since >= pool.idle_s]
            for session in sorted(idle, key=lambda s: s.idle_since)[:surplus]:
                log.info("worker_retired", worker=session.worker, pool=pool.name)
                session.retire()
        if wanted != self._asked:
            self._asked = wanted
            self._go(self._ask_for(wanted))

    def wanted(self, pool: PoolSettings) -> int:
        """Return how many workers the pool should have."""
        lines = self._state.lines
        held = self._state.held
        members = self._members(pool.name)
        leased = sum(len(held.get(s.worker, ())) for s in members if not s.leaving)
        work = float(leased)
        for name in pool.queues:
            line = lines.get(name)
            waiting = line.counts[S.READY] if line is not None and not line.paused else 0
            if not waiting:
                continue
            run_s = self._rates.run_s(name)
            if run_s is None:  # one more at a time, until it is known what they take
                work += min(waiting, pool.concurrency)
            else:
                work += max(1.0, waiting * run_s / pool.wait_s)
        # What runs on in another queue keeps its slot; this pool is to have another for it.
        foreign = sum(
            task.line.name not in pool.queues
            for s in members
            for token in held.get(s.worker, ())
            if (task := self._state.leases.get(token)) is not None
        )
        spare = math.ceil(foreign / pool.concurrency)
        most = pool.max + spare if pool.max else 0
        return max(pool.min + spare, math.ceil(min(most, work / pool.concurrency)))

    def _members(self, pool: str) -> list[Session]:
        return [s for s in self._sessions.values() if s.pool == pool]

    def _start(self, pool: PoolSettings, count: int) -> None:
        starting = self._starting.setdefault(pool.name, [])
        for _ in range(count):
            task = self._go(self._spawn(pool))
            starting.append(task)
            task.add_done_callback(lambda done: starting.remove(done) if done in starting else None)

    async def _spawn(self, pool: PoolSettings) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            try:
                name = await self._workers.spawn(pool)
            except DraymanError as error:
                log.warning("worker_not_started", pool=pool.name, error=str(error))
                await self._rates.clock.sleep(wait_s)
                wait_s = min(RETRY_MAX_S, wait_s * 2)
                continue
            self._adopt(name, pool.name)
            return

    async def _ask_for(self, wanted: list[tuple[PoolSettings, int]]) -> None:
        try:
            await self._workers.ask_for(wanted)
        except DraymanError as error:
            log.warning("workers_not_asked_for", error=str(error))
            self._asked = []  # said again at the next look


def _of_each(pool: PoolSettings) -> dict[str, Any]:
    fields = pool.__struct_fields__
    return {field: getattr(pool, field) for field in fields if field not in ABOUT_MANY}
