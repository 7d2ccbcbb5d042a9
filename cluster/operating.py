"""What an operator, or the owner of a schedule, changes while Drayman runs.

Rule 1: a change is durable before it is answered; only the pause of a worker is forgotten with the
manager's life. Rule 2: the config that holds is the journal's, or what this `drayman up` began with
while nothing was changed.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from cluster.commit import CommitLog
from cluster.config import Config, decode_config, encode_config
from cluster.pools import Pools
from cluster.queries import NO_SPEC, Query, Reader
from cluster.queue import commands as c
from cluster.queue.endings import WAIT_MAX_S
from cluster.schedules import Scheduler
from cluster.sessions import Session
from cluster.views import QueueView, WorkerView
from jobs.errors import Conflict, InvalidInput, NotFound

__all__ = ["Operator"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Command(Protocol):
    """Has the rules decide, and tells whom it concerns."""

    def __call__(self, command: c.Command, *, dispatch: bool = True) -> None:
        """Run `command`; with `dispatch`, give out what became ready by it."""


class Operator:
    """Carries out changes, and keeps the config that holds."""

    def __init__(
        self,
        commit: CommitLog,
        reader: Reader,
        pools: Pools,
        scheduler: Scheduler,
        sessions: Mapping[str, Session],
        config: Config,
        run: str,
        *,
        command: Command,
        dispatch: Callable[[], None],
    ) -> None:
        """`run` names the `drayman up` that began with `config`."""
        self.config = config.checked()
        self._commit, self._reader, self._pools = commit, reader, pools
        self._scheduler, self._sessions, self._run = scheduler, sessions, run
        self._command, self._dispatch = command, dispatch
        self._changes: dict[str, Callable[[Query], Any]] = {
            "configure": lambda q: self._configure(_given(q.config, "config"), q.revision),
            "drain_queue": self._drain_queue,
            "fill_queue": self._drain_queue,
            "pause": self._pause,
            "resume": self._pause,
            "pause_worker": self._tell_worker,
            "resume_worker": self._tell_worker,
            "drain_worker": self._tell_worker,
            "redrive": self._redrive,
            "purge": self._purge,
            "put_schedule": lambda q: scheduler.put(_given(q.schedule, "schedule")),
            "delete_schedule": lambda q: scheduler.delete(q.tenant or "", q.name),
            "fire_schedule": lambda q: scheduler.fire(q.tenant or "", q.name),
            "pause_schedule": lambda q: scheduler.pause(q.tenant or "", q.name, True),
            "resume_schedule": lambda q: scheduler.pause(q.tenant or "", q.name, False),
        }
        self._reads: dict[str, Callable[[Query], Any]] = {
            "config": lambda q: (self.config, commit.state.config_seq),
            "schedules": lambda q: scheduler.views(q.tenant),
            "schedule": lambda q: scheduler.view(q.tenant or "", q.name),
        }

    def begin(self) -> bool:
        """Let the journal's config hold, or that of a new `up`; return whether it is new."""
        state = self._commit.state
        is_new = not state.config_seq or state.config_run != self._run
        if not is_new:
            try:
                self.config = decode_config(state.config).checked()
            except (msgspec.MsgspecError, InvalidInput) as error:
                log.error("config_not_read", error=str(error), next="what `up` began with holds")
                is_new = True
        self._commit.rules = self.config.rules()
        # Of what only rules read the settings say enough; what moves tasks is to be journalled.
        if is_new and (state.config or self.config.tenants or self.config.limits):
            self._commit.run(self._put(self.config, None))
        return is_new

    def knows(self, op: str) -> bool:
        """Whether a query is for here."""
        return op in self._changes or op in self._reads

    def answer(self, query: Query) -> Any:
        """Return what it asks for, or what became of what it changes. Not durable yet."""
        read = self._reads.get(query.op)
        if read is not None:
            return read(query)
        self._commit.check_writable()
        return self._changes[query.op](query)

    # --- config -------------------------------------------------------------------------------

    def _put(self, config: Config, revision: int | None) -> c.Configure:
        weights = {name: tenant.weight for name, tenant in config.tenants.items()}
        return c.Configure(encode_config(config), self._run, weights, config.limits, revision)

    def _configure(self, config: Config, revision: int | None) -> int:
        """Let another config hold; return its revision."""
        config = config.checked()
        self._command(self._put(config, revision), dispatch=False)
        self.config = config
        self._commit.rules = config.rules()
        self._pools.change(config.pools)
        self._dispatch()
        return self._commit.state.config_seq

    # --- queues and workers -------------------------------------------------------------------

    def _drain_queue(self, query: Query) -> QueueView:
        """Take nothing new into a queue, or take it again."""
        self._reader.queue(query.queue)  # NotFound
        limits = self.config.all_queues[query.queue]
        drained = msgspec.structs.replace(limits, draining=query.op == "drain_queue")
        queues = self.config.queues | {query.queue: drained}
        self._configure(msgspec.structs.replace(self.config, queues=queues), None)
        return self._reader.queue(query.queue)

    def _pause(self, query: Query) -> QueueView:
        """Lease nothing of a queue, or lease it again."""
        command = c.PauseQueue if query.op == "pause" else c.ResumeQueue
        self._command(command(query.queue))
        return self._reader.queue(query.queue)

    def _tell_worker(self, query: Query) -> WorkerView:
        """Pause a worker, let it go on, or let it finish what it has and end."""
        session = self._sessions.get(query.worker)
        if session is None:
            raise NotFound("worker", query.worker)
        if query.op == "drain_worker":
            session.retire()
            self._pools.look()
        else:
            session.paused = query.op == "pause_worker"
            session.release()
            self._dispatch()
        return self._reader.worker(session)

    # --- dead letters -------------------------------------------------------------------------

    def _redrive(self, query: Query) -> int:
        """Revive dead letters, `rate` a second if that is said; return how many."""
        jobs = self._reader.dead_jobs(_given(query.dead, "filter"))
        now, raw = self._commit.now(), b"" if query.spec == NO_SPEC else bytes(query.spec)
        revived = 0
        for job in jobs:
            due_at = now + min(revived / query.rate, WAIT_MAX_S) if query.rate else 0.0
            try:
                self._command(c.Revive(job.id, due_at, raw), dispatch=False)
            except Conflict as error:  # one that cannot be is no reason to leave the others
                if raw:
                    raise
                log.warning("not_redriven", job=job.id, error=str(error))
            else:
                revived += 1
        self._dispatch()
        return revived

    def _purge(self, query: Query) -> int:
        """Let dead letters go for good; return how many."""
        jobs = self._reader.dead_jobs(_given(query.dead, "filter"))
        for job in jobs:
            self._commit.run(c.Purge(job.id))
        return len(jobs)


def _given(value: T | None, name: str) -> T:
    if value is None:
        raise InvalidInput(name, "is missing")
    return value
