"""The manager: owns the truth, commits it, and tells workers what to do.

A single-threaded asyncio shell around the pure rules: a call comes in, is decided and evolved with
no await between, and answered once that is durable (`commit.py`). Rule 1: no reply, order or read
leaves before `barrier()`. Rule 2: nothing here is needed after a crash that the journal or the
workers' next reports do not bring back. Rule 3: it knows no Ray: workers are reached by a port.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec
import structlog

from cluster.acceptance import Acceptor
from cluster.alerts import AlertSender
from cluster.assignments import assignment_of
from cluster.attendance import Attendance
from cluster.commit import Clock, CommitLog, Offload
from cluster.compaction import CompactorPort
from cluster.feed import Feed, Watch
from cluster.history.reader import History
from cluster.housekeeping import Housekeeper
from cluster.ids import uuid7_maker
from cluster.intake import IntakeFolder
from cluster.operating import Operator
from cluster.pools import LOOK_S, Pools, WorkerPort
from cluster.pressure import Pressure
from cluster.protocol import (
    NODE_LOST,
    BatchReply,
    OrderlyStop,
    Orders,
    Outcome,
    Recorded,
    Report,
    decode_batch,
    decode_record,
    decode_report,
    encode,
    refusal_of,
)
from cluster.queries import Query, Reader, decode_query
from cluster.queue import commands as c
from cluster.queue.events import ManagerStarted, ManagerStopped, TaskLeased
from cluster.queue.gates import next_opening
from cluster.queue.model import State, Task
from cluster.queue.snapshot import SNAPSHOT_VERSION
from cluster.queue.state import TERMINAL
from cluster.rates import Rates
from cluster.recalls import Recalls
from cluster.schedules import Scheduler
from cluster.sessions import Session
from cluster.settings import ClusterSettings
from cluster.signals import Signals
from cluster.space import SpaceGuard
from cluster.store.identity import open_identity, require_identity
from cluster.store.journal import Journal
from cluster.store.objects import Objects, open_store, probe
from cluster.store.snapshot import Snapshots
from cluster.tracing import Span, Tracer
from cluster.views import Evicted
from cluster.waiters import Waiters
from jobs.errors import Conflict, DraymanError, NotFound

__all__ = ["Manager", "build"]

log = structlog.get_logger(__name__)

#: How long a report without news is held when there are no orders. Short enough that the next
#: report doubles as a heartbeat, long enough that idle workers cost next to nothing.
POLL_S = 5.0
#: How often timers, silence and idle capacity are looked at.
TICK_S = 0.1
#: A loop that stood still longer than this (a pause, a suspended machine) forgives silence.
GAP_S = 1.0
#: A manager that wrote nothing for so long looks whether another has claimed the journal; one
#: that has nothing to do, either, is in no hurry.
PROVE_S, PROVE_IDLE_S = 10.0, 600.0
#: One that is about to be replaced looks so often.
REPLACED_S = 1.0
#: How often intake is listed by itself.
FOLD_EVERY_S, FOLD_AGAIN_S = 60.0, 1.0
#: Part of the grace of a drain that the workers get: the rest is for their word to be committed.
DRAIN_PART = 0.9
#: A worker that was slower than this to begin what waited was paused, or its queue was.
TURN_S = 1.0
#: Outcomes after which the task is ready for any worker.
HANDED_BACK = frozenset({"stopped", "returned", "crashed"})


class Manager:
    """One life of the queue manager."""

    def __init__(
        self,
        commit: CommitLog,
        settings: ClusterSettings,
        workers: WorkerPort,
        *,
        clock: Clock,
        draw: Callable[[], float],
        compactor: CompactorPort,
        intake: IntakeFolder,
        space: SpaceGuard,
        new_id: Callable[[], str],
        put_span: Callable[[Span], None] | None = None,
    ) -> None:
        self._commit = commit
        self._tracer = None if put_span is None else Tracer(commit.state, put_span)
        self._intake = intake
        #: Whether all that lay in intake when this manager began has been taken over.
        self._is_folded = False
        self._space = space
        self._housekeeper = Housekeeper(commit, compactor, settings, clock)
        self._settings = settings
        self._clock = clock
        self._draw = draw
        self._sessions: dict[str, Session] = {}
        self._attendance = Attendance(
            commit,
            workers,
            self._sessions,
            clock,
            config=lambda: self._operator.config,
            go=self._go,
            lost=self._lost,
        )
        self._rates = Rates(clock)
        self._signals = Signals(clock)
        self._pools = Pools(
            workers,
            commit.state,
            self._sessions,
            self._rates,
            go=self._go,
            adopt=self._attendance.welcome,
        )
        self._recalls = Recalls(commit, self._sessions, self._rates, self._pools)
        self._waiters = Waiters(commit.state)
        self._pressure = Pressure(commit, self._rates)
        self._acceptor = Acceptor(commit, self._pressure)
        self._scheduler = Scheduler(
            commit, new_id=new_id, fired=self._dispatch, traced=put_span is not None
        )
        self._alerts = AlertSender(commit, new_id=new_id)
        self._reader = Reader(commit, self._sessions, self._rates, self._pools)
        self._operator = Operator(
            commit,
            self._reader,
            self._pools,
            self._scheduler,
            self._sessions,
            settings.config,
            settings.run,
            command=self._command,
            dispatch=self._dispatch,
        )
        self._feed = Feed(
            commit,
            view=lambda job_id: self._reader.job(job_id, None),
            progress=self._reader.progress,
        )
        #: When limits are looked at next, for what only waits for time.
        self._opens_at = math.inf
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticked_at = self._sized_at = clock.monotonic()
        self._draining = False
        self._drain_by = 0.0
        #: Since it was last looked whether this is still the manager.
        self._was_asked = False

    @property
    def _state(self) -> State:
        return self._commit.state

    # --- life ---------------------------------------------------------------------------------

    async def start(self, version: str) -> None:
        """Replay the journal, claim it, take over the living workers and start what is missing.

        On return the claim is durable and no older manager can commit any more. Raises Conflict
        where another cluster owns the journal: two would fence each other for ever.
        """
        await self._commit.replay()
        cluster_id = self._settings.cluster_id
        owner = self._state.owner
        if owner not in ("", cluster_id) and not self._settings.take_over:
            raise Conflict(
                f"the store {self._settings.store} is in use by cluster {owner}, which did not "
                "stop in good order; if it is really gone, start with --take-over"
            )
        if self._tracer is not None:
            self._tracer.begin()
            self._commit.trace = self._tracer.observe
        await self._commit.claim(lambda number: ManagerStarted(number, cluster_id, version))
        self._writer = self._go(self._commit.write_forever())
        # First of all: what waits in intake may be for a queue that only a live change brought.
        new_run = self._operator.begin()
        await self._fold_intake()
        for name in await self._attendance.begin():
            # Who knows what ended them: a node, the machine, a deploy. No task is charged for it.
            self._commit.run(c.Reclaim(name, list(self._state.held[name])))
        self._pools.begin(self._operator.config.pools, warm=new_run)
        self._scheduler.begin()
        self._go(self._tick_forever())
        self._go(self._prove_forever())
        self._go(self._housekeeper.compact_forever())
        self._go(self._fold_forever())
        self._go(self._space.watch())
        log.info("manager_started", epoch=self._state.epoch, jobs=len(self._state.jobs))

    async def stop(self) -> None:
        """Stop deciding, commit what was decided, and give up the journal."""
        self._pools.end()
        # Whoever decides ends first: nothing is to be written after the last word.
        await _end(self._tasks - {self._writer})
        self._commit.record(ManagerStopped())
        await self._commit.barrier()
        await _end(self._tasks)

    async def drain(self, grace_s: float) -> None:
        """Give out no more work, let the workers finish or hand back theirs, then stop."""
        self._draining = True
        self._pools.end()
        self._drain_by = deadline = self._clock.monotonic() + grace_s
        for session in self._sessions.values():
            session.release()
        while self._state.leases and self._clock.monotonic() < deadline:
            await self._clock.sleep(TICK_S)
        await self.stop()

    def _go(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("manager_task_failed", exc_info=error)

    # --- submitting ---------------------------------------------------------------------------

    async def submit(self, payload: bytes) -> bytes:
        """Accept a gateway's batch; answer once all of it is durable. Safe to repeat."""
        batch = decode_batch(payload)
        try:
            self._commit.check_writable()
            self._space.check()
        except DraymanError as error:
            return encode(
                BatchReply(dict.fromkeys(range(len(batch.submissions)), refusal_of(error)))
            )
        others = self._acceptor.accept(batch)
        self._dispatch()
        self._recalls.make_way(batch)
        await self._commit.barrier()
        return encode(BatchReply(others))

    # --- exchanging with workers --------------------------------------------------------------

    async def exchange(self, payload: bytes) -> bytes:
        """Take a worker's report and return its orders, both durable on return.

        A report without outcomes is held up to `POLL_S` until there are orders for it.
        """
        report = decode_report(payload)
        if report.worker in self._attendance.gone:
            return encode(Orders(self._state.epoch, 0, drop=report.held, drain=True))
        session = self._sessions.get(report.worker) or self._attendance.adopt(report.worker)
        if report.number <= session.report:
            return encode(Orders(self._state.epoch, 0))
        session.release()
        session.take(report, self._state.epoch, self._clock.monotonic())
        if report.progress:
            self._feed.moved(report.progress)
        if report.code:
            self._commit.run(c.Join(report.worker, report.pool, report.node, report.code))
        again = self._finish(session, report.outcomes)
        if again:
            self._tell_others(session)
        # A report made before its worker heard of this manager may be older than the last orders of
        # the one before, or have lain about for long: what it lacks may have arrived since.
        heard = report.epoch == self._state.epoch
        lost = session.lacks(self._state) if heard else []
        if lost:
            log.warning("leases_reclaimed", worker=report.worker, count=len(lost))
            self._commit.run(c.Reclaim(report.worker, lost))
            self._waiters.look()
        drop = session.has_too_many(self._state)
        if lost or again:
            if session.newcomer:
                newcomer, session.newcomer = session.newcomer, ""
                self._lease(session, min(1, session.free + session.prefetch), first=newcomer)
            # Idle workers first: what was taken back for them must not come straight back here,
            # and what follows in a plan is not to wait until they ask again.
            self._lease(session, session.free)
            self._dispatch()
            self._lease(session, session.prefetch, ahead=True)
        elif self._state.gates:
            self._lease(session, session.free)
            self._lease(session, session.prefetch, ahead=True)
        else:
            self._lease(session, session.free + session.prefetch)
        self._watch_openings()
        unsure = not heard and report.worker in self._state.held
        if not (report.outcomes or drop or session.next or unsure or self._news(session)):
            await self._park(session)
        return await self._orders(session, report, drop)

    def _news(self, session: Session) -> bool:
        """Whether there is something to say that the worker was not told yet."""
        stopping = self._state.stopping.get(session.worker, {})
        return bool(
            session.recall
            or session.unconfirmed
            or ((self._draining or session.retiring) and not session.draining)
            or any(stop not in session.told for stop in stopping.items())
        )

    async def _park(self, session: Session) -> None:
        session.parked = parked = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(parked.wait(), POLL_S)
        if session.parked is parked:
            session.parked = None

    async def _orders(self, session: Session, report: Report, drop: list[int]) -> bytes:
        if report.number != session.report:  # a later report superseded this one
            return encode(Orders(self._state.epoch, 0))
        number, assignments = session.take_next(self._state)
        stopping = self._state.stopping.get(session.worker, {})
        session.told = set(stopping.items())
        recall, session.recall = session.recall, []
        orders = Orders(
            self._state.epoch,
            number,
            assignments,
            [OrderlyStop(token, reason) for token, reason in stopping.items()],
            recall,
            drop,
            self._draining or session.retiring,
            self._drain_s(),
        )
        asked_at = self._clock.monotonic()
        session.owed += 1
        try:
            await self._commit.barrier()
        finally:
            now = self._clock.monotonic()
            session.owed -= 1
            session.seen_at = min(now, session.seen_at + now - asked_at)
        return encode(orders)

    def _drain_s(self) -> float:
        left_s = (self._drain_by - self._clock.monotonic()) * DRAIN_PART
        return max(0.1, left_s) if self._draining else 0.0

    def _finish(self, session: Session, outcomes: list[Outcome]) -> bool:
        """Settle attempts; return whether others may have something to do now."""
        if not outcomes:
            return False
        draws = [self._draw() if outcome.kind == "failed" else 0.0 for outcome in outcomes]
        leases, worker = self._state.leases, session.worker
        ending = [
            task
            for outcome in outcomes
            if (task := leases.get(outcome.token)) is not None and task.worker == worker
        ]
        self._commit.run(c.Finish(worker, outcomes, draws))
        self._ended(session, ending)
        # What follows a task of a planned job may be for other workers, who wait for it.
        return any(o.kind in HANDED_BACK or o.submits for o in outcomes) or any(
            task.job.plan is not None for task in ending
        )

    def _tell_others(self, session: Session) -> None:
        """Let go of the reports of workers that are to stop something."""
        for other in self._sessions.values():
            if other is not session and other.parked is not None and self._news(other):
                other.release()

    def _ended(self, session: Session, tasks: list[Task]) -> None:
        """Tell the rates, and whoever waits, of tasks that lost their lease."""
        live = self._state.leases
        for token in [t for t in session.progress if t not in live]:
            del session.progress[token]
        for token in [t for t in session.checkpoints if t not in live]:
            del session.checkpoints[token]
        self._signals.ended(tasks)
        ended: dict[str, tuple[list[float], list[float]]] = {}
        before = session.ended_at
        for task in tasks:
            started_at, ended_at = task.started_at, task.ended_at
            if task.state in TERMINAL:
                times = ended.get(task.line.name)
                if times is None:
                    times = ended[task.line.name] = ([], [])
                times[0].append(ended_at - started_at)
                gap_s = started_at - before
                if 0 <= gap_s < TURN_S and task.ready_at <= before and not task.limits:
                    times[1].append(gap_s)
            if ended_at > before:
                before = ended_at
        session.ended_at = before
        for queue, (runs, gaps) in ended.items():
            self._rates.finished(queue, len(runs), runs, gaps)
        finished = {job.id: job for task in tasks if (job := task.job).finished_at}
        self._pressure.ended(job.tenant for job in finished.values())
        self._waiters.ended(finished)

    def _lease(self, session: Session, limit: int, *, ahead: bool = False, first: str = "") -> None:
        if limit <= 0 or session.leaving or session.paused or self._draining:
            return
        queues = self._pools.queues_of(session)
        events = self._commit.run(c.Lease(session.worker, queues, limit, ahead, first))
        if events:
            leases, starts = self._state.leases, self._state.starts
            tasks = [leases[event.token] for event in events if isinstance(event, TaskLeased)]
            session.assign(
                [
                    assignment_of(task, self._after(task), starts.get(task.token, 0.0))
                    for task in tasks
                ]
            )

    def _after(self, task: Task) -> str:
        """Return the worker that ran a task before, if nothing of that one may live any more."""
        if not task.past:
            return ""
        worker = task.past[-1].worker
        return worker if self._attendance.is_cleared_of(worker) else ""

    def _dispatch(self) -> None:
        """Give ready tasks to parked workers: idle ones first, then those that welcome more."""
        parked = [s for s in self._sessions.values() if s.parked is not None]
        for session in parked:
            self._lease(session, session.free)
        for session in parked:
            self._lease(session, session.prefetch, ahead=True)
            if session.next:
                session.release()
        self._watch_openings()

    def _lost(self, session: Session, cause: str) -> None:
        """Give away what a worker held that is no more."""
        worker = session.worker
        tasks = [self._state.leases[t] for t in self._state.held.get(worker, ())]
        log.warning("worker_lost", worker=worker, cause=cause, tasks=len(tasks))
        if cause == NODE_LOST:
            # A machine that goes says nothing about what ran on it.
            self._commit.run(c.Reclaim(worker, [task.token for task in tasks], cause))
        else:
            arrived = frozenset(session.held) if session.report else None
            self._commit.run(c.LoseWorker(worker, cause, arrived))
        self._ended(session, tasks)
        self._dispatch()
        if not self._draining:
            self._pools.look()

    # --- time ---------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        """Move on what is due, forget the silent, and take back what others could do now."""
        now = self._clock.monotonic()
        gap, self._ticked_at = now - self._ticked_at, now
        if gap > GAP_S:
            self._attendance.forgive(gap)
        parts: list[Callable[[], object]] = [
            self._pass_time,
            self._promote,
            self._scheduler.look,
            self._feed.tick,
            self._housekeeper.evict,
            self._attendance.doubt_silent,
            self._recalls.free_hostages,
            self._recalls.take_back,
        ]
        if now - self._sized_at >= LOOK_S:
            self._sized_at = now
            parts += [self._pools.look, self._alert, self._let_go_of_dead]
        for part in parts:
            try:
                part()
            except Exception as error:
                # A defect of ours in one of them is no reason for time to stand still.
                log.error("tick_failed", part=part.__qualname__, exc_info=error)

    def _let_go_of_dead(self) -> None:
        self._housekeeper.let_go_of_dead(self._operator.config.dead_letters_max)

    def _alert(self) -> None:
        if self._alerts.look(self._operator.config):
            self._dispatch()

    def _pass_time(self) -> None:
        if self._commit.run(c.Tick()):
            self._waiters.look()
            self._dispatch()

    def _watch_openings(self) -> None:
        """Look again when time opens a limit next, which is sooner than the next tick may be."""
        if not self._state.openings:
            return
        opens_at = next_opening(self._state)
        if opens_at is not None and opens_at < self._opens_at:
            self._opens_at = opens_at
            self._go(self._open_at(opens_at))

    async def _open_at(self, opens_at: float) -> None:
        await self._clock.sleep(max(0.0, opens_at - self._commit.now()))
        if self._opens_at == opens_at:
            self._opens_at = math.inf
        self._pass_time()
        self._watch_openings()

    def _promote(self) -> None:
        """Move on what runs longer than its queue is for."""
        now = self._clock.monotonic()
        queues = self._commit.rules.queues
        longest = {name: q.max_run_s for name, q in queues.items() if q.max_run_s is not None}
        if not longest:
            return
        leases = self._state.leases
        for session in list(self._sessions.values()):
            for token, began in list(session.began.items()):
                task = leases.get(token)
                if task is None or task.stop or task.worker != session.worker:
                    continue
                max_run_s = longest.get(task.line.name)
                if max_run_s is None or now - began <= max_run_s:
                    continue
                if self._commit.run(c.Promote(token)):
                    log.info("promoted", job=task.job.id, task=task.id, after_s=max_run_s)
                    session.release()

    async def _prove_forever(self) -> None:
        """End a manager that was replaced while it had nothing to write, and would never know."""
        proved_at, number = self._clock.monotonic(), self._commit.number
        while True:
            await self._clock.sleep(PROVE_S)
            now, wrote = self._clock.monotonic(), self._commit.number != number
            # Where nothing runs and nobody asks, nobody is misled, and a request of a store costs.
            due = self._state.leases or self._was_asked or now - proved_at >= PROVE_IDLE_S
            if due and not wrote:
                with contextlib.suppress(DraymanError):  # a store that cannot say is asked again
                    await self._commit.prove()
                    wrote, self._was_asked = True, False
            if wrote:
                proved_at, number = now, self._commit.number

    async def be_replaced(self) -> None:
        """Look all the time whether another manager has claimed the journal; never return."""
        while True:
            with contextlib.suppress(DraymanError):  # fenced: then this process is told to end
                await self._commit.prove()
            await self._clock.sleep(REPLACED_S)

    # --- intake -------------------------------------------------------------------------------

    async def _fold_forever(self) -> None:
        # Gateways ask to be folded. This is for those that died before they could.
        while True:
            await self._clock.sleep(FOLD_EVERY_S if self._is_folded else FOLD_AGAIN_S)
            await self._fold_intake()

    async def _fold_intake(self) -> None:
        try:
            await self._intake.fold()
        except (DraymanError, OSError) as error:
            log.warning("intake_not_folded", error=str(error))
        else:
            self._is_folded = True
        self._dispatch()

    # --- everything else ----------------------------------------------------------------------

    async def record(self, payload: bytes) -> bytes:
        """Make what a running attempt says durable, or refuse it with LeaseLost."""
        record = decode_record(payload)
        task = self._state.leases.get(record.token)
        session = self._sessions.get(task.worker) if task is not None else None
        if session is not None and session.is_late(record):
            await self._commit.barrier()
            return encode(Recorded())
        known = task.once.get(record.key) if task is not None and task.once else None
        try:
            events = self._commit.run(c.SaveRecord(record))
        except DraymanError as error:
            await self._commit.barrier()
            return encode(refusal_of(error))
        reply = Recorded()
        if not events and known is not None:  # claimed before: did it happen?
            if known.value is not None:
                reply = Recorded("done", msgspec.Raw(known.value))
            elif known.token != record.token:  # by this very attempt, it is only said again
                reply = Recorded("in_doubt")
        await self._commit.barrier()
        return encode(reply)

    async def call(self, payload: bytes) -> bytes:
        """Answer one query or command.

        The reply is `+` and JSON, `-` and a Refused, or, for a job that is not in memory, `~` and
        an Evicted.
        """
        query = decode_query(payload)
        self._was_asked = True
        if query.op == "events":  # what it tells is durable
            return b"+" + encode(await self._feed.answer(query.watch or Watch()))
        try:
            answer = await self._answer(query)
        except NotFound as error:
            await self._commit.barrier()
            if error.what == "job":  # history may have it, as far as it was compacted
                first = self._state.aliases.get(query.job_id, query.job_id)
                compacted = max(self._state.compacted, self._commit.base)
                return b"~" + encode(Evicted(first, compacted))
            return b"-" + encode(refusal_of(error))
        except DraymanError as error:
            await self._commit.barrier()
            return b"-" + encode(refusal_of(error))
        await self._commit.barrier()
        return b"+" + encode(answer)

    async def _answer(self, query: Query) -> Any:
        if query.op == "wait":
            await self._waiters.wait(query.job_id, query.tenant, query.timeout_s)
            return self._reader.job(query.job_id, query.tenant)
        if query.op in ("cancel", "retry"):
            self._reader.job(query.job_id, query.tenant)  # NotFound for another tenant's
            command = c.Cancel if query.op == "cancel" else c.Revive
            self._command(command(self._state.aliases.get(query.job_id, query.job_id)))
            return self._reader.job(query.job_id, query.tenant)
        if query.op == "signals":
            return self._signals.all()
        if query.op == "fold":
            return await self._intake.fold(query.folds)
        if self._operator.knows(query.op):
            return self._operator.answer(query)
        return self._reader.answer(query)

    def _command(self, command: c.Command, *, dispatch: bool = True) -> None:
        self._commit.check_writable()
        if self._commit.run(command):
            self._waiters.look()
            for session in self._sessions.values():
                if self._news(session):
                    session.release()
            if dispatch:
                self._dispatch()


async def _end(tasks: Iterable["asyncio.Task[None]"]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


async def build(
    settings: ClusterSettings,
    workers: WorkerPort,
    *,
    clock: Clock,
    offload: Offload,
    draw: Callable[[], float],
    nonce: Callable[[], str],
    on_fatal: Callable[[DraymanError], None],
    compactor: CompactorPort,
    new_id: Callable[[], str] | None = None,
    store: Objects | None = None,
    aside: Offload | None = None,
    new_store: bool = True,
    put_span: Callable[[Span], None] | None = None,
) -> Manager:
    """Open the store the settings name, check it, and return a manager that is not started.

    `aside` runs what the journal must not wait for; without it `offload` does. With
    `new_store=False` an empty store is Unavailable: it was in use before.
    """
    objects = store if store is not None else await offload(open_store, settings.store)
    journal_objects = objects
    if settings.journal is not None and settings.journal != settings.store:
        journal_objects = await offload(open_store, settings.journal)
    if not new_store:
        await offload(require_identity, objects)
    for each in {id(one): one for one in (objects, journal_objects)}.values():
        await offload(probe, each)
    identity = await offload(open_identity, objects, journal_objects)
    snapshots = Snapshots(objects, identity.journal_id, SNAPSHOT_VERSION)
    commit = CommitLog(
        Journal(journal_objects, journal_id=identity.journal_id),
        snapshots,
        identity.journal_id,
        State(),
        settings.config.rules(),
        clock=clock,
        offload=offload,
        nonce=nonce,
        on_fatal=on_fatal,
        linger_s=settings.linger_s,
    )
    return Manager(
        commit,
        settings,
        workers,
        clock=clock,
        draw=draw,
        compactor=compactor,
        new_id=new_id or uuid7_maker(),
        intake=IntakeFolder(objects, commit, History(objects), aside or offload),
        space=SpaceGuard(
            [objects, journal_objects],
            snapshots,
            int(settings.free_space_min_mb * (1 << 20)),
            clock=clock,
            offload=offload,
        ),
        put_span=put_span,
    )
