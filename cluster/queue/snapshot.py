"""The state as rows, and the state again from rows: what a replay would give, without the replay.

    load(dump(state)) behaves as state does, and dump(load(rows)) == rows

Rule 1: jobs that history has (finished for good by then) are left out. Rule 2:
rows hold facts, never an index: lines, leases, timers and counts are built again from the tasks.
Rule 3: `SNAPSHOT_VERSION` goes up when a row changes its meaning; fields are only ever added at the
end, with a default.
"""

from collections.abc import Iterable, Iterator
from sys import intern
from typing import Any

import msgspec

from cluster.queue.model import (
    Effect,
    GatewayMarks,
    Job,
    Line,
    PastAttempt,
    State,
    Task,
    WorkerFacts,
)
from cluster.queue.plan import (
    PlanState,
    StepState,
    StepTask,
    adopt_plan,
    decode_finished,
    leave_line,
    locate,
    look,
    plan_status,
)
from cluster.queue.spec import Plan, decode_head
from cluster.queue.state import TaskState

__all__ = ["SNAPSHOT_VERSION", "Row", "dump", "is_final", "load"]

SNAPSHOT_VERSION = 1

#: kind, id, msgpack
Row = tuple[str, str, bytes]

S = TaskState
#: A state is one byte in a snapshot; the numbers never change.
_STATES = (S.WAITING, S.READY, S.LEASED, S.BACKING_OFF, S.SUCCEEDED, S.CANCELLED, S.DEAD)
_NUMBERS = {state: number for number, state in enumerate(_STATES)}


class _Head(msgspec.Struct, array_like=True):
    seq: int
    at: float
    epoch: int
    owner: str
    next_token: int
    submitted: int
    planned: int
    compacted: int
    compacted_seq: int
    claims: list[int]
    folded: dict[str, float] = {}
    aliases: dict[str, str] = {}


class _Gateway(msgspec.Struct, array_like=True):
    at: float
    high: int
    window: dict[int, bytes]


class _Line(msgspec.Struct, array_like=True):
    paused: bool
    #: Not in use any more.
    tickets: int
    suspects: list[tuple[str, str]]
    #: By priority: the highest ticket served.
    buckets: dict[int, int] = {}


class _Worker(msgspec.Struct, array_like=True):
    pool: str
    node: str
    code: dict[str, str]


class _Step(msgspec.Struct, array_like=True):
    name: str
    state: str
    count: int
    manifest: str
    next: int
    done: bytes
    succeeded: int
    finished: dict[int, bytes]


class _Plan(msgspec.Struct, array_like=True):
    stop: str
    started_at: float
    attempts: int
    recoveries: int
    rebuilt: dict[str, int]
    steps: list[_Step]
    remade: dict[str, int] = {}


class _Task(msgspec.Struct, array_like=True):
    id: str
    state: int
    attempt: int
    failures: int
    recoveries: int
    interruptions: int
    token: int
    worker: str
    leased_at: float
    due_at: float
    expires_at: float
    ticket: int
    ready_at: float
    stop: str
    suspect: bool
    started_at: float
    ended_at: float
    output: bytes
    log: str
    past: list[tuple[Any, ...]]
    checkpoint: bytes
    once: dict[str, tuple[int, bytes | None]]
    needs: list[str] = []


class _Job(msgspec.Struct, array_like=True):
    raw: bytes
    submitted_at: float
    number: int
    finished_at: float
    finished_seq: int
    revision: int
    reason: str
    tasks: list[_Task]
    plan: _Plan | None = None


_encode = msgspec.msgpack.Encoder().encode
_PAST = PastAttempt.__struct_fields__
#: Fields of a task that stand in a snapshot as they are.
_PLAIN = [
    name for name in _Task.__struct_fields__ if name not in ("state", "past", "once", "needs")
]


# --- dumping ----------------------------------------------------------------------------------


def dump(state: State, through: int | None = None) -> Iterator[Row]:
    """Yield the rows of `state`, which must not change meanwhile.

    Jobs that finished for good by event `through` are left out: those that history has, or is
    about to have.
    """
    if through is None:
        through = state.compacted_seq
    head = _Head(**{name: getattr(state, name) for name in _Head.__struct_fields__})
    yield "head", "", _encode(head)
    for name, marks in state.gateways.items():
        yield "gateway", name, _encode(_Gateway(marks.at, marks.high, marks.window))
    for key, entry in state.keys.items():
        yield "key", key, _encode(entry)
    for name, line in state.lines.items():
        suspects = [(task.job.id, task.id) for task in line.suspects]
        buckets = {priority: bucket.served for priority, bucket in line.buckets.items()}
        yield "line", name, _encode(_Line(line.paused, 0, suspects, buckets))
    for name, facts in state.workers.items():
        yield "worker", name, _encode(_Worker(facts.pool, facts.node, facts.code))
    for job in state.order:
        if not (job.finished_at and job.finished_seq <= through and is_final(job)):
            yield "job", job.id, _encode(_job_row(job, through))
    for kind, timer in (("timer", state.timers), ("expiry", state.expiries)):
        # Without repeats: a task that came back for one moment has two entries.
        for at, task in dict.fromkeys(timer.live()):
            yield kind, task.job.id, _encode((at, task.id))
    for job_id, task_id in state.dead:
        yield "dead", job_id, _encode(task_id)


def is_final(job: Job) -> bool:
    """Whether a job that finished did so for good: it is no dead letter."""
    if job.plan is not None:
        return plan_status(job) != "failed"
    return all(task.state is not S.DEAD for task in job.tasks)


def _job_row(job: Job, through: int) -> _Job:
    return _Job(
        job.raw,
        job.submitted_at,
        job.number,
        job.finished_at,
        job.finished_seq,
        job.revision,
        job.reason,
        [_task_row(task) for task in job.tasks],
        None if job.plan is None else _plan_row(job.plan, through),
    )


def _plan_row(plan: PlanState, through: int) -> _Plan:
    steps = [
        _Step(
            name,
            step.state.value,
            step.count,
            step.manifest,
            step.next,
            bytes(step.done),
            step.succeeded,
            # Rows of earlier ones are in lineage files, as those jobs are in history.
            {i: row for i, row in step.finished.items() if decode_finished(row).seq > through},
        )
        for name, step in plan.steps.items()
    ]
    counts = plan.started_at, plan.attempts, plan.recoveries
    return _Plan(plan.stop, *counts, plan.rebuilt, steps, plan.remade)


def _task_row(task: Task) -> _Task:
    return _Task(
        state=_NUMBERS[task.state],
        past=[msgspec.structs.astuple(past) for past in task.past or ()],
        once={key: (e.token, e.value) for key, e in (task.once or {}).items()},
        needs=task.needs if isinstance(task, StepTask) else [],
        **{name: getattr(task, name) for name in _PLAIN},
    )


# --- loading ----------------------------------------------------------------------------------


def load(rows: Iterable[Row], state: State | None = None) -> State:
    """Return the state that the rows were dumped from, in `state` if one is given, a new one.

    Raises ValueError or a msgspec error on foreign rows.
    """
    state = State() if state is None else state
    suspects: list[tuple[str, str]] = []
    ready: list[Task] = []
    leased: list[Task] = []
    timed = {"timer": state.timers, "expiry": state.expiries}
    for kind, name, data in rows:
        if kind == "job":
            job = _job(state, name, data)
            _put(state, job, ready, leased)
        elif kind in timed:
            at, task_id = msgspec.msgpack.decode(data, type=tuple[float, str])
            timed[kind].add(at, _find(state, name, task_id))
        elif kind == "key":
            entry = msgspec.msgpack.decode(data, type=tuple[str, str, float])
            state.keys.restore(name, entry)
        elif kind == "gateway":
            row = msgspec.msgpack.decode(data, type=_Gateway)
            marks = state.gateways[name] = GatewayMarks()
            marks.at, marks.high, marks.window = row.at, row.high, row.window
        elif kind == "line":
            told = msgspec.msgpack.decode(data, type=_Line)
            line = state.line(name)
            line.paused = told.paused
            for priority, served in told.buckets.items():
                line.bucket(priority).served = served
            suspects += told.suspects
        elif kind == "worker":
            facts = msgspec.msgpack.decode(data, type=_Worker)
            state.workers[name] = WorkerFacts(facts.pool, facts.node, facts.code)
        elif kind == "dead":
            task_id = msgspec.msgpack.decode(data, type=str)
            state.dead[name, task_id] = _find(state, name, task_id)
        elif kind != "head":
            raise ValueError(f"unknown kind {kind!r}; start the newer version")
        else:
            head = msgspec.msgpack.decode(data, type=_Head)
            for field in _Head.__struct_fields__:
                setattr(state, field, getattr(head, field))
    _line_up(state, ready, suspects)
    _lend(state, leased)
    # Jobs lie in the order of submission, but those that finished go in the order they did.
    final = (job for job in state.order if job.finished_at and is_final(job))
    state.finished.extend(sorted(final, key=lambda job: job.finished_seq))
    for job in state.plans.values():
        look(state, job)
    return state


_decode_job = msgspec.msgpack.Decoder(_Job).decode


def _job(state: State, job_id: str, data: bytes) -> Job:
    row = _decode_job(data)
    spec = decode_head(row.raw)
    job = Job(
        job_id,
        row.raw,
        intern(spec.type),
        intern(spec.tenant),
        intern(spec.queue),
        spec.priority,
        row.submitted_at,
        row.number,
        (),
        row.finished_at,
        row.finished_seq,
        row.revision,
        row.reason,
        intern(spec.code),
    )
    if row.plan is None or spec.plan is None:
        job.tasks = tuple(_task(job, state.line(job.queue), task) for task in row.tasks)
        return job
    plan = _plan(spec.plan, row.plan)
    adopt_plan(state, job, plan)
    for task_row in row.tasks:
        step, role, index = locate(plan, task_row.id)
        line = state.line(step.spec.queue or job.queue)
        more = {"step": step, "role": role, "index": index, "needs": task_row.needs}
        task = _task(job, line, task_row, StepTask, more)
        assert isinstance(task, StepTask)
        plan.add(task)
        line.counts[task.state] -= 1  # `_put` counts every task there
        plan.asked += bool(task.stop)
    return job


def _plan(spec: Plan, row: _Plan) -> PlanState:
    plan = PlanState(spec)
    plan.stop, plan.rebuilt, plan.remade = row.stop, row.rebuilt, row.remade
    plan.started_at, plan.attempts, plan.recoveries = row.started_at, row.attempts, row.recoveries
    for told in row.steps:
        step = plan.steps[told.name]
        step.state = StepState(told.state)
        step.count, step.manifest, step.next = told.count, told.manifest, told.next
        step.done, step.succeeded = bytearray(told.done), told.succeeded
        step.finished = told.finished
        if step.state not in (StepState.WAITING, StepState.RUNNING):
            del plan.open[told.name]
    return plan


def _task(
    job: Job, line: Line, row: _Task, cls: type[Task] = Task, more: dict[str, Any] | None = None
) -> Task:
    return cls(
        job,
        line,
        state=_STATES[row.state],
        past=[PastAttempt(*past) for past in row.past] or None,
        once={key: Effect(*effect) for key, effect in row.once.items()} or None,
        **{name: getattr(row, name) for name in _PLAIN},
        **(more or {}),
    )


def _put(state: State, job: Job, ready: list[Task], leased: list[Task]) -> None:
    state.jobs[job.id] = job
    state.order.add(job)
    for task in job.tasks:
        task.line.counts[task.state] += 1
        if job.finished_at and task.state is S.WAITING and isinstance(task, StepTask):
            leave_line(task)
        if task.state is S.READY and not task.suspect:
            ready.append(task)
        elif task.state is S.LEASED:
            leased.append(task)


def _line_up(state: State, ready: list[Task], suspects: list[tuple[str, str]]) -> None:
    ready.sort(key=lambda task: task.ticket)
    for task in ready:
        task.line.restore(task)
    for job_id, task_id in suspects:
        task = _find(state, job_id, task_id)
        task.line.restore(task)


def _lend(state: State, leased: list[Task]) -> None:
    leased.sort(key=lambda task: task.token)
    for task in leased:
        state.leases[task.token] = task
        state.held.setdefault(task.worker, {})[task.token] = None
        if task.stop:
            state.stopping.setdefault(task.worker, {})[task.token] = task.stop


def _find(state: State, job_id: str, task_id: str) -> Task:
    job = state.jobs[job_id]
    if job.plan is not None:
        return job.plan.tasks[task_id]
    return next(task for task in job.tasks if task.id == task_id)
