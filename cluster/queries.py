"""What can be asked of the manager, and how the answer is read off its state.

Rule 1: reading changes nothing and is bounded: a page looks at no more than `SCAN_MAX` jobs, has
about `STEPS_MAX` steps, and one that is cut short says where to go on. Rule 2: another tenant's job
is NotFound, as if it were not there. Rule 3: what is read may not be durable yet; the manager
answers only after its barrier.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, takewhile
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from cluster.commit import CommitLog
from cluster.protocol import Fold
from cluster.queue.engine import job_status
from cluster.queue.model import Job, Line, PastAttempt, Task
from cluster.queue.plan import PlanState, Role, decode_finished, task_name
from cluster.queue.spec import JobSpec
from cluster.queue.state import TERMINAL, TaskState
from cluster.rates import Rates
from cluster.sessions import Session
from cluster.settings import ClusterSettings
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
    DeadLetterQuery,
    ErrorView,
    JobPage,
    JobQuery,
    JobView,
    LivePage,
    ProgressView,
    QueueView,
    TaskPage,
    WorkerView,
)
from jobs.errors import InvalidInput, NotFound

__all__ = ["Query", "Reader", "attempt_views", "chunk_attempts", "decode_query", "job_view"]

SCAN_MAX = 10_000
#: A page of jobs ends when they have so many steps together.
STEPS_MAX = 20_000
S = TaskState
_DONE = ProgressView(1.0, "")
_WAITING = frozenset({S.WAITING, S.BACKING_OFF})
#: What tells the positions of tasks, by queue: made once for a page of jobs.
_Places = dict[str, Callable[[Task], int]]


class Query(msgspec.Struct, frozen=True, omit_defaults=True):
    """One question or command for the manager; which fields matter depends on `op`."""

    op: Literal[
        "ping",
        "fold",
        "job",
        "jobs",
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


decode_query = msgspec.json.Decoder(Query).decode


class Reader:
    """Reads views off the state."""

    def __init__(
        self,
        commit: CommitLog,
        sessions: Mapping[str, Session],
        rates: Rates,
        settings: ClusterSettings,
    ) -> None:
        self._state, self._rules, self._now = commit.state, commit.rules, commit.now
        self._sessions = sessions
        self._rates, self._settings = rates, settings
        self._answers: dict[str, Callable[[Query], Any]] = {
            "ping": lambda q: self._state.at,
            "job": lambda q: self.job(q.job_id, q.tenant),
            "jobs": lambda q: self.jobs(q.jobs or JobQuery()),
            "tasks": self.tasks,
            "attempts": lambda q: self.attempts(q.job_id, q.tenant),
            "queues": lambda q: self.queues(),
            "dead_letters": lambda q: self.dead_letters(q.dead or DeadLetterQuery()),
            "workers": lambda q: self.workers(),
        }

    def answer(self, query: Query) -> Any:
        """Return the view that `query` asks for. Raises NotFound or InvalidInput."""
        return self._answers[query.op](query)

    def job(self, job_id: str, tenant: str | None) -> JobView:
        """Return one job."""
        view = self._view(self._find(job_id, tenant))
        return view if view.id == job_id else replace(view, id=job_id, alias_of=view.id)

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
        """Return every queue."""
        return [self.queue(name) for name in sorted(self._rules.queues)]

    def queue(self, name: str) -> QueueView:
        """Return one queue."""
        limits = self._rules.queues.get(name)
        if limits is None:
            raise NotFound("queue", name)
        line = self._state.lines.get(name) or Line(name)
        head = line.head()
        counts = line.counts
        return QueueView(
            name=name,
            pools=[pool.name for pool in self._settings.pools if name in pool.queues],
            paused=line.paused,
            ready=counts[S.READY],
            leased=counts[S.LEASED],
            scheduled=counts[S.WAITING],
            backing_off=counts[S.BACKING_OFF],
            dead=counts[S.DEAD],
            oldest_age_s=max(0.0, self._now() - head.ready_at) if head is not None else 0.0,
            drain_rate=self._rates.per_s(name),
            workers=sum(1 for s in self._sessions.values() if name in s.queues),
            depth_max=limits.depth_max,
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

    def workers(self) -> list[WorkerView]:
        """Return every living worker."""
        return [
            WorkerView(
                s.worker,
                s.pool,
                s.queues,
                s.node,
                s.pid,
                len(s.held),
                len(s.started),
                s.free,
                s.silent_s(self._rates.clock.monotonic()),
                s.draining,
            )
            for s in self._sessions.values()
        ]

    def _find(self, job_id: str, tenant: str | None) -> Job:
        job = self._state.jobs.get(self._state.aliases.get(job_id, job_id))
        if job is None or (tenant is not None and job.tenant != tenant):
            raise NotFound("job", job_id)
        return job

    def _dead(self, query: DeadLetterQuery) -> list[Job]:
        ids = None if query.ids is None else set(query.ids)
        found: dict[str, Job] = {}
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
                found[job.id] = job
        return list(found.values())

    def _views(self, jobs: list[Job]) -> list[JobView]:
        places: _Places = {}
        return [self._view(job, places) for job in jobs]

    def _view(self, job: Job, places: _Places | None = None) -> JobView:
        if job.plan is not None:
            return job_view(job, progress=plan_progress(job, job.plan, self._progress))
        (task,) = job.tasks
        position = self._position(task, places)
        return job_view(
            job,
            progress=self._progress(task),
            queue_position=position,
            eta_s=self._eta_s(job.queue, position),
        )

    def _position(self, task: Task, places: _Places | None) -> int | None:
        if task.state is not S.READY:
            return None
        line = task.line
        # A suspect is in no flow: its ticket says where it was.
        if places is None or task.job.priority not in line.buckets:
            return line.position(task)
        if line.name not in places:
            places[line.name] = line.places()
        return places[line.name](task)

    def _eta_s(self, queue: str, position: int | None) -> float | None:
        if position is None:
            return None
        rate = self._rates.per_s(queue)
        return position / rate if rate > 0 else None

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
    eta_s: float | None = None,
) -> JobView:
    """Return the job as others see it; what is not in the state is told by the caller."""
    spec = spec or job.spec
    if job.plan is not None:
        return _planned_view(job, job.plan, spec, progress)
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
        task.started_at or _leased_at(task),
        job.finished_at or None,
        spec.run_at,
        spec.expires_at,
        task.due_at if waiting else None,
        job.reason or None,
        task.stop or None,
        _DONE if task.state is S.SUCCEEDED else progress,
        queue_position,
        eta_s,
        _error(task),
        output.result,
        output.result_ref,
        output.files,
        spec.traceparent,
        parent=spec.parent,
        code=spec.code or None,
    )


def _planned_view(
    job: Job, plan: PlanState, spec: JobSpec, progress: ProgressView | None
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
    )


def _plan_error(plan: PlanState) -> ErrorView | None:
    for task in plan.tasks.values():
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
