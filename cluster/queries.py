"""What can be asked of the manager, and how the answer is read off its state.

Rule 1: reading changes nothing and is bounded: a page looks at no more than `SCAN_MAX` jobs, has
about `STEPS_MAX` steps, and one that is cut short says where to go on. Rule 2: another tenant's job
is NotFound, as if it were not there. Rule 3: what is read may not be durable yet; the manager
answers only after its barrier.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, takewhile
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from cluster.commit import CommitLog
from cluster.config import Config, PoolSettings
from cluster.feed import Watch
from cluster.pools import Pools
from cluster.protocol import Fold
from cluster.queue.engine import job_status
from cluster.queue.gates import place_of
from cluster.queue.model import Job, Line, PastAttempt, Task
from cluster.queue.plan import PlanState, Role, decode_finished, task_name
from cluster.queue.rules import Limit, QueueLimits
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import JobSpec
from cluster.queue.state import TERMINAL, TaskState
from cluster.rates import Rates
from cluster.sessions import Session
from cluster.tasks import (
    EMPTY,
    named_page,
    output_of,
    plan_output,
    plan_progress,
    step_views,
    task_page,
)
from cluster.views import (
    AttemptView,
    DeadCount,
    DeadLetterQuery,
    ErrorView,
    EtaView,
    JobPage,
    JobQuery,
    JobView,
    LiveIds,
    LivePage,
    ProgressView,
    QueueView,
    StepView,
    TaskPage,
    WorkerView,
)
from jobs.errors import InvalidInput, NotFound

__all__ = [
    "NO_SPEC",
    "Query",
    "Reader",
    "attempt_views",
    "chunk_attempts",
    "decode_query",
    "job_view",
]

SCAN_MAX = 10_000
#: A page of jobs ends when they have so many steps together.
STEPS_MAX = 20_000
#: Of an error that is told beside a count.
WHY_CHARS_MAX = 500
S = TaskState
_DONE = ProgressView(1.0, "")
_WAITING = frozenset({S.WAITING, S.BACKING_OFF})


NO_SPEC = msgspec.Raw(b"null")


class Query(msgspec.Struct, frozen=True, omit_defaults=True):
    """One question or command for the manager; which fields matter depends on `op`."""

    op: Literal[
        "ping",
        "fold",
        "job",
        "spec",
        "jobs",
        "live",
        "tasks",
        "attempts",
        "cancel",
        "retry",
        "wait",
        "queues",
        "pause",
        "resume",
        "dead_letters",
        "redrive",
        "workers",
        "dead_counts",
        "purge",
        "drain_queue",
        "fill_queue",
        "pause_worker",
        "resume_worker",
        "drain_worker",
        "config",
        "configure",
        "schedule",
        "schedules",
        "put_schedule",
        "delete_schedule",
        "fire_schedule",
        "pause_schedule",
        "resume_schedule",
        "events",
        "signals",
    ]
    job_id: str = ""
    tenant: str | None = None
    timeout_s: float = 0.0
    queue: str = ""
    jobs: JobQuery | None = None
    dead: DeadLetterQuery | None = None
    folds: list[Fold] = []
    #: Of `tasks`: these, or up to `limit` from place `first` on.
    ids: list[str] | None = None
    first: int = 0
    limit: int = 1_000
    worker: str = ""
    #: Of a schedule.
    name: str = ""
    schedule: ScheduleSpec | None = None
    config: Config | None = None
    #: The config that is to be replaced; None: whichever holds.
    revision: int | None = None
    #: Of `events`.
    watch: Watch | None = None
    #: Of `redrive`: so many a second, and the JobSpec that the one job has from now on.
    rate: float = 0.0
    spec: msgspec.Raw = NO_SPEC


decode_query = msgspec.json.Decoder(Query).decode


class Reader:
    """Reads views off the state."""

    def __init__(
        self,
        commit: CommitLog,
        sessions: Mapping[str, Session],
        rates: Rates,
        pools: Pools,
    ) -> None:
        self._commit = commit
        self._state, self._now = commit.state, commit.now
        self._sessions = sessions
        self._rates, self._pools = rates, pools
        self._answers: dict[str, Callable[[Query], Any]] = {
            "ping": lambda q: self._state.at,
            "job": lambda q: self.job(q.job_id, q.tenant),
            "spec": lambda q: self._find(q.job_id, q.tenant).spec,
            "jobs": lambda q: self.jobs(q.jobs or JobQuery()),
            "live": lambda q: self.live(q.ids or []),
            "tasks": self.tasks,
            "attempts": lambda q: self.attempts(q.job_id, q.tenant),
            "queues": lambda q: self.queues(),
            "dead_letters": lambda q: self.dead_letters(q.dead or DeadLetterQuery()),
            "dead_counts": lambda q: self.dead_counts(q.dead or DeadLetterQuery()),
            "workers": lambda q: [self.worker(session) for session in self._sessions.values()],
        }

    def answer(self, query: Query) -> Any:
        """Return the view that `query` asks for. Raises NotFound or InvalidInput."""
        return self._answers[query.op](query)

    def job(self, job_id: str, tenant: str | None) -> JobView:
        """Return one job."""
        view = self._view(self._find(job_id, tenant))
        return view if view.id == job_id else replace(view, id=job_id, alias_of=view.id)

    def progress(self, job: Job) -> tuple[ProgressView | None, list[StepView]]:
        """Return how far a job is, and its steps if it has any."""
        if job.plan is None:
            (task,) = job.tasks
            return self._progress(task), []
        return plan_progress(job, job.plan, self._progress), step_views(job, job.plan)

    def jobs(self, query: JobQuery) -> LivePage:
        """Return a page of the jobs in memory, newest first."""
        state = self._state
        found: list[Job] = []
        cut_at = None
        steps = 0
        below = state.order.below(_cursor(query.after, state.submitted))
        for looked, job in enumerate(below, 1):
            if _matches(job, query):
                found.append(job)
                steps += _steps(job)
            if len(found) == query.limit or looked == SCAN_MAX or steps >= STEPS_MAX:
                cut_at = job.number if next(below, None) is not None else None
                break
        return LivePage(
            self._views(found),
            [job.number for job in found],
            cut_at,
            state.submitted,
            state.compacted,
        )

    def live(self, job_ids: list[str]) -> LiveIds:
        """Return which of these jobs are in memory."""
        state = self._state
        return LiveIds({job_id for job_id in job_ids if job_id in state.jobs}, state.compacted)

    def tasks(self, query: Query) -> TaskPage:
        """Return a page of a job's tasks, or those named."""
        job = self._find(query.job_id, query.tenant)
        if query.ids is not None:
            return named_page(self._state, job, query.ids)
        return task_page(self._state, job, query.first, query.limit)

    def attempts(self, job_id: str, tenant: str | None) -> list[AttemptView]:
        """Return every attempt of a job, oldest first."""
        return attempt_views(self._find(job_id, tenant))

    def queues(self) -> list[QueueView]:
        """Return every queue, those that were taken away and still hold something included."""
        known = self._commit.rules.queues
        left = [
            name for name, line in self._state.lines.items() if name not in known and line.depth
        ]
        return [self._queue(name) for name in sorted([*known, *left])]

    def queue(self, name: str) -> QueueView:
        """Return one queue."""
        if name not in self._commit.rules.queues:
            raise NotFound("queue", name)
        return self._queue(name)

    def _queue(self, name: str) -> QueueView:
        limits = self._commit.rules.queues.get(name, QueueLimits())
        line = self._state.lines.get(name) or Line(name, self._state.shares)
        oldest = line.oldest()
        counts = line.counts
        waiting = counts[S.READY]
        return QueueView(
            name=name,
            pools=[pool.name for pool in self._pools_of(name)],
            paused=line.paused,
            ready=waiting,
            leased=counts[S.LEASED],
            scheduled=counts[S.WAITING],
            backing_off=counts[S.BACKING_OFF],
            dead=counts[S.DEAD],
            oldest_age_s=max(0.0, self._now() - oldest.ready_at) if oldest is not None else 0.0,
            drain_rate=self._rates.per_s(name),
            workers=sum(name in self._pools.queues_of(s) for s in self._sessions.values()),
            depth_max=limits.depth_max,
            parked=counts[S.PARKED],
            depth=line.depth,
            bytes=line.bytes,
            bytes_max=limits.bytes_max,
            draining=limits.draining,
            run_s=self._rates.run_s(name),
            eta=None if line.paused else self._eta(name, waiting),
            pending_reason=self._standstill(name) if waiting else None,
        )

    def dead_letters(self, query: DeadLetterQuery) -> JobPage:
        """Return a page of failed jobs, longest dead first; the cursor is the last job's id."""
        jobs = self._dead(query)
        if query.after is not None:
            ids = [job.id for job in jobs]
            if query.after not in ids:
                raise InvalidInput("after", "is no cursor of this list; begin again without it")
            jobs = jobs[ids.index(query.after) + 1 :]
        sums = accumulate(map(_steps, jobs[: query.limit]))
        page = jobs[: 1 + sum(1 for _ in takewhile(lambda steps: steps < STEPS_MAX, sums))]
        page = page[: query.limit]
        more = len(jobs) > len(page)
        return JobPage(self._views(page), page[-1].id if more else None)

    def dead_jobs(self, query: DeadLetterQuery) -> list[Job]:
        """Return the failed jobs that match, longest dead first."""
        return self._dead(query)

    def dead_counts(self, query: DeadLetterQuery) -> list[DeadCount]:
        """Count the dead letters that match, by queue, type and cause; the most first."""
        counts: Counter[tuple[str, str, str]] = Counter()
        newest: dict[tuple[str, str, str], Task] = {}
        for job, task in self._dead_tasks(query):  # longest dead first
            kind = (job.queue, job.type, _last(task).cause)
            counts[kind] += 1
            newest[kind] = task
        return [DeadCount(*kind, count, _why(newest[kind])) for kind, count in counts.most_common()]

    def worker(self, session: Session) -> WorkerView:
        """Return one living worker."""
        pool = self._pools.settings.get(session.pool)
        return WorkerView(
            session.worker,
            session.pool,
            self._pools.queues_of(session),
            session.node,
            session.pid,
            len(session.held),
            len(session.started),
            session.free,
            session.silent_s(self._rates.clock.monotonic()),
            session.draining or session.retiring,
            session.paused,
            pool.num_gpus if pool is not None else 0.0,
        )

    def _find(self, job_id: str, tenant: str | None) -> Job:
        job = self._state.jobs.get(self._state.aliases.get(job_id, job_id))
        if job is None or (tenant is not None and job.tenant != tenant):
            raise NotFound("job", job_id)
        return job

    def _dead(self, query: DeadLetterQuery) -> list[Job]:
        return list({job.id: job for job, _ in self._dead_tasks(query)}.values())

    def _dead_tasks(self, query: DeadLetterQuery) -> Iterator[tuple[Job, Task]]:
        ids = None if query.ids is None else set(query.ids)
        for task in self._state.dead.values():
            job = task.job
            if (
                job.finished_at  # else it goes on: it can do without, or is about to stop
                and (query.tenant is None or job.tenant == query.tenant)
                and (query.type is None or job.type == query.type)
                and (query.queue is None or job.queue == query.queue)
                and (query.cause is None or _last(task).cause == query.cause)
                and (ids is None or job.id in ids)
            ):
                yield job, task

    def _views(self, jobs: list[Job]) -> list[JobView]:
        return [self._view(job) for job in jobs]

    def _view(self, job: Job) -> JobView:
        if job.plan is not None:
            return job_view(
                job,
                progress=plan_progress(job, job.plan, self._progress),
                pending_reason=self._why_planned(job, job.plan),
            )
        (task,) = job.tasks
        position = self._position(task)
        return job_view(
            job,
            progress=self._progress(task),
            queue_position=position,
            eta=self._eta(job.queue, position),
            pending_reason=self._why(task),
        )

    def _position(self, task: Task) -> int | None:
        if task.state is S.READY:
            line = task.line
            return 0 if task.suspect else line.position(task)
        if task.state is S.PARKED:
            return place_of(self._state, task)[1].position(task)
        return None

    def _eta(self, queue: str, position: int | None) -> EtaView | None:
        line = self._state.lines.get(queue)
        if position is None or (line is not None and line.paused):
            return None
        slots = free = 0
        for session in self._sessions.values():
            pool = self._pools.settings.get(session.pool)
            if pool is None or queue not in pool.queues or session.leaving or session.paused:
                continue
            slots += pool.concurrency
            free += session.free
        found = self._rates.starts_in(queue, position, slots, free)
        return None if found is None else EtaView(*msgspec.structs.astuple(found))

    # --- why something waits ------------------------------------------------------------------

    def _why(self, task: Task) -> str | None:
        """Return what a task that has not begun waits for, in words."""
        if task.state is S.PARKED:
            gate, _ = place_of(self._state, task)
            return f"limit {gate.key}: {_limit_text(gate.limit)}"
        if task.state is not S.READY:
            return None
        return self._standstill(task.line.name)

    def _why_planned(self, job: Job, plan: PlanState) -> str | None:
        counts = plan.counts
        if job.finished_at or counts[S.LEASED] or not (counts[S.READY] or counts[S.PARKED]):
            return None
        waiting = (t for t in plan.tasks.values() if t.state in (S.READY, S.PARKED))
        return self._why(next(waiting))

    def _standstill(self, queue: str) -> str | None:
        """Return why nothing of a queue could start now, in words; None if something could."""
        line = self._state.lines.get(queue)
        if line is not None and line.paused:
            return f"queue {queue} is paused"
        pools = self._pools_of(queue)
        if not pools:
            return f"no pool serves queue {queue}"
        members = [s for s in self._sessions.values() if queue in self._pools.queues_of(s)]
        if any(not (s.leaving or s.paused) and s.report for s in members):
            return None
        if any(s.paused for s in members):
            return f"every worker of queue {queue} is paused"
        names = ", ".join(pool.name for pool in pools)
        reasons = [self._pools.unplaceable(pool) for pool in pools]
        if all(reasons):
            return f"no worker of pool {names} can be placed: {reasons[0]}"
        starting = [pool for pool in pools if self._pools.starting(pool.name)]
        contended = [told for pool in starting if (told := self._contended(pool))]
        if contended and len(contended) == len(starting):
            return contended[0]
        if starting or members:
            return f"a worker of pool {names} is on its way"
        if not any(pool.max for pool in pools):
            return f"pool {names} has no workers: its max is 0"
        return f"pool {names} has no worker"

    def _contended(self, pool: PoolSettings) -> str:
        """Return what others hold of what a worker of the pool needs; empty if they hold nothing.

        Whether anything is left beside it, Ray knows; what is said is true either way.
        """
        needs = pool.shape
        held: dict[str, dict[str, float]] = {}
        for session in self._sessions.values():
            holder = self._pools.settings.get(session.pool)
            for name, amount in holder.shape.items() if holder is not None else ():
                if name in needs:
                    own = held.setdefault(session.pool, {})
                    own[name] = own.get(name, 0.0) + amount
        if not held:
            return ""
        told = ", ".join(f"pool {holder} holds {_amounts(own)}" for holder, own in held.items())
        return f"a worker of pool {pool.name} starts once it has {_amounts(needs)}; {told}"

    def _pools_of(self, queue: str) -> list[PoolSettings]:
        return [pool for pool in self._pools.settings.values() if queue in pool.queues]

    def _progress(self, task: Task) -> ProgressView | None:
        session = self._sessions.get(task.worker)
        if session is None or task.state is not S.LEASED:
            return None
        progress = session.progress.get(task.token)
        return ProgressView(progress.fraction, progress.message) if progress else None


def job_view(
    job: Job,
    *,
    spec: JobSpec | None = None,
    progress: ProgressView | None = None,
    queue_position: int | None = None,
    eta: EtaView | None = None,
    pending_reason: str | None = None,
) -> JobView:
    """Return the job as others see it; what is not in the state is told by the caller."""
    spec = spec or job.spec
    if job.plan is not None:
        return _planned_view(job, job.plan, spec, progress, pending_reason)
    (task,) = job.tasks
    output = output_of(task.output)
    waiting = task.state in _WAITING
    # By position: history makes one for every job there ever was.
    return JobView(
        job.id,
        job.type,
        job_status(job),  # type: ignore[arg-type]
        job.queue,
        job.tenant,
        job.priority,
        job.submitted_at,
        task.attempt,
        spec.max_attempts,
        task.recoveries,
        spec.labels,
        _leased_at(task) or task.started_at or None,
        job.finished_at or None,
        spec.run_at,
        spec.expires_at,
        task.due_at if waiting else None,
        job.reason or None,
        task.stop or None,
        _DONE if task.state is S.SUCCEEDED else progress,
        queue_position,
        eta,
        _error(task),
        output.result,
        output.result_ref,
        output.files,
        spec.traceparent,
        parent=spec.parent,
        code=spec.code or None,
        pending_reason=pending_reason,
        schedule=spec.schedule,
        scheduled_for=spec.scheduled_for,
        notify=spec.notify,
        result_sha256=output.result_sha256,
    )


def _amounts(shape: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {amount:g}" for name, amount in shape.items())


def _limit_text(limit: Limit) -> str:
    """Return a limit in words."""
    told = [] if limit.concurrency is None else [f"{limit.concurrency:,} at once"]
    if limit.rate is not None:
        told.append(f"{limit.rate:g} a second")
    return ", ".join(told)


def _planned_view(
    job: Job,
    plan: PlanState,
    spec: JobSpec,
    progress: ProgressView | None,
    pending_reason: str | None,
) -> JobView:
    status = job_status(job)
    output = plan_output(plan) if status == "completed" else EMPTY
    due = [task.due_at for task in plan.tasks.values() if task.state in _WAITING and task.due_at]
    idle = not (plan.counts[S.READY] or plan.counts[S.LEASED])
    return JobView(
        job.id,
        job.type,
        status,  # type: ignore[arg-type]
        job.queue,
        job.tenant,
        job.priority,
        job.submitted_at,
        plan.attempts,
        spec.max_attempts,
        plan.recoveries,
        spec.labels,
        plan.started_at or None,
        job.finished_at or None,
        spec.run_at,
        spec.expires_at,
        min(due) if due and idle else None,
        job.reason or None,
        plan.stop or None if not job.finished_at else None,
        _DONE if status == "completed" else progress,
        None,
        None,
        None if status in ("completed", "cancelled") else _plan_error(plan),
        output.result,
        output.result_ref,
        output.files,
        spec.traceparent,
        steps=step_views(job, plan),
        parent=spec.parent,
        code=spec.code or None,
        pending_reason=pending_reason,
        schedule=spec.schedule,
        scheduled_for=spec.scheduled_for,
        notify=spec.notify,
        result_sha256=output.result_sha256,
    )


def _plan_error(plan: PlanState) -> ErrorView | None:
    for task in plan.tasks.values():
        if task.role is Role.CHUNK and task.step.dead <= task.step.tolerated:
            continue  # the job goes on without it
        if task.state is S.DEAD and (error := _error(task)) is not None:
            told = f"{task.id}: {error.message}" if task.id else error.message
            return ErrorView(told, error.cause, error.attempt, error.at)
    return None


def attempt_views(job: Job) -> list[AttemptView]:
    """Return every attempt of the job, oldest first."""
    found: list[AttemptView] = []
    for task in job.tasks:
        # Number 0 is no attempt: it says why there could be none.
        found += [_past_attempt(task.id, past) for past in task.past or () if past.number]
        if task.state is S.LEASED:
            found.append(AttemptView(task.id, task.attempt, "running", task.worker, task.leased_at))
        elif task.state is S.SUCCEEDED:
            found.append(
                AttemptView(
                    task.id,
                    task.attempt,
                    "succeeded",
                    task.worker,
                    task.leased_at,
                    task.started_at,
                    task.ended_at,
                    log=task.log,
                )
            )
    return found


def chunk_attempts(job: Job) -> Iterator[AttemptView]:
    """Yield every attempt of the job's chunks that are done and in no lineage file yet."""
    for step in job.plan.steps.values() if job.plan is not None else ():
        for index, row in step.finished.items():
            done = decode_finished(row)
            name = task_name(step.spec, Role.CHUNK, index)
            for past in done.past:
                if past.number:
                    yield _past_attempt(name, past)
            yield AttemptView(
                name,
                done.attempt,
                "succeeded",
                done.worker,
                done.leased_at,
                done.started_at,
                done.ended_at,
                log=done.log,
            )


def _leased_at(task: Task) -> float | None:
    return task.leased_at if task.state is S.LEASED else None


def _last(task: Task) -> PastAttempt:
    assert task.past
    return task.past[-1]


def _error(task: Task) -> ErrorView | None:
    if task.state in TERMINAL and task.state is not S.DEAD:
        return None
    for past in reversed(task.past or ()):
        if past.error:
            return ErrorView(past.error, past.cause or "error", past.number, past.ended_at)
    return None


def _why(task: Task) -> str:
    error = _error(task)
    return "" if error is None else error.message[:WHY_CHARS_MAX]


def _past_attempt(task_id: str, past: PastAttempt) -> AttemptView:
    return AttemptView(
        task_id,
        past.number,
        past.outcome,
        past.worker,
        past.leased_at,
        past.started_at or None,
        past.ended_at or None,
        past.error,
        past.cause,
        past.log,
    )


def _cursor(after: str | None, total: int) -> int:
    if after is None:
        return total + 1
    if re.fullmatch(r"[0-9]{1,18}", after) is None or int(after) > total + 1:
        raise InvalidInput("after", "is no cursor of this list; begin again without it")
    return int(after)


def _steps(job: Job) -> int:
    return len(job.plan.steps) if job.plan is not None else 0


def _matches(job: Job, query: JobQuery) -> bool:
    return (
        (query.tenant is None or job.tenant == query.tenant)
        and (query.type is None or job.type == query.type)
        and (query.queue is None or job.queue == query.queue)
        and (query.status is None or job_status(job) == query.status)
        and (query.label is None or job.spec.labels.get(query.label[0]) == query.label[1])
    )
