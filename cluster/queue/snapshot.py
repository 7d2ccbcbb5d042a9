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

from cluster.queue.gates import is_idle, limit_of, place_of, restore_gates, settle_gates
from cluster.queue.line import BucketMark, Priorities, marks_of, put_marks
from cluster.queue.model import (
    Effect,
    Gate,
    GatewayMarks,
    Job,
    Line,
    PastAttempt,
    Side,
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
    locate,
    plan_status,
)
from cluster.queue.plan_changes import look, uncount
from cluster.queue.rules import Limit
from cluster.queue.schedule import Schedule
from cluster.queue.spec import Plan, decode_head
from cluster.queue.state import TaskState

__all__ = ["SNAPSHOT_VERSION", "Row", "dump", "is_final", "load"]

SNAPSHOT_VERSION = 1

#: kind, id, msgpack
Row = tuple[str, str, bytes]

S = TaskState
#: A state is one byte in a snapshot; the numbers never change.
_STATES = (S.WAITING, S.READY, S.LEASED, S.BACKING_OFF, S.SUCCEEDED, S.CANCELLED, S.DEAD, S.PARKED)
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
    #: Not in use any more.
    buckets: dict[int, int] = {}
    turns: int = 0
    #: By priority: whose turn it is.
    marks: dict[int, BucketMark] = {}


class _Side(msgspec.Struct, array_like=True):
    turns: int
    marks: dict[int, BucketMark]


class _Gate(msgspec.Struct, array_like=True):
    tat: float
    sides: dict[str, _Side]
    last: int = 0
    before: float = 0.0


class _Config(msgspec.Struct, array_like=True):
    config: bytes
    run: str
    seq: int
    weights: dict[str, float]
    limits: dict[str, Limit]


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
    #: The queue it is in, if that is not its job's or step's.
    queue: str = ""
    #: Of one that is parked: the key that it waits for.
    gate: str = ""
    #: Of one that is leased: when it may begin, if a rate holds it back.
    begins: float = 0.0


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
    #: Where it was moved.
    queue: str = ""
    purged: bool = False
    #: Events that somebody wants to hear of.
    tells: tuple[str, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_MADE = frozenset({"state", "past", "once", "needs", "queue", "gate", "begins"})
_PAST = PastAttempt.__struct_fields__
#: Fields of a task that stand in a snapshot as they are.
_PLAIN = [name for name in _Task.__struct_fields__ if name not in _MADE]


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
    if state.config_seq:
        config = state.config, state.config_run, state.config_seq
        yield "config", "", _encode(_Config(*config, state.shares.weights, state.limits))
    for name, marks in state.gateways.items():
        yield "gateway", name, _encode(_Gateway(marks.at, marks.high, marks.window))
    for key, entry in state.keys.items():
        yield "key", key, _encode(entry)
    for name, line in state.lines.items():
        suspects = [(task.job.id, task.id) for task in line.suspects]
        yield "line", name, _encode(_Line(line.paused, 0, suspects, {}, line.turns, _marks(line)))
    for key, gate in sorted(state.gates.items()):
        if is_idle(gate, state.at):
            continue
        sides = {n: _Side(s.turns, _marks(s)) for n, s in sorted(gate.sides.items())}
        yield "gate", key, _encode(_Gate(gate.tat, sides, gate.last, gate.before))
    for name, learned in state.learned.items():
        yield "learned", name, _encode(list(learned.runs))
    for (_, name), schedule in state.schedules.items():
        yield "schedule", name, msgspec.json.encode(schedule)
    for name, facts in state.workers.items():
        yield "worker", name, _encode(_Worker(facts.pool, facts.node, facts.code))
    for job in state.order:
        if not (job.finished_at and job.finished_seq <= through and is_final(job)):
            yield "job", job.id, _encode(_job_row(state, job, through))
    for kind, timer in (("timer", state.timers), ("expiry", state.expiries)):
        # Without repeats: a task that came back for one moment has two entries.
        for at, task in dict.fromkeys(timer.live()):
            yield kind, task.job.id, _encode((at, task.id))
    for job_id, task_id in state.dead:
        yield "dead", job_id, _encode(task_id)


def _marks(line: Priorities) -> dict[int, BucketMark]:
    return {priority: marks_of(bucket) for priority, bucket in sorted(line.buckets.items())}


def is_final(job: Job) -> bool:
    """Whether a job that finished did so for good: it is no dead letter."""
    if job.purged:
        return True
    if job.plan is not None:
        return plan_status(job) != "failed"
    return all(task.state is not S.DEAD for task in job.tasks)


def _job_row(state: State, job: Job, through: int) -> _Job:
    return _Job(
        job.raw,
        job.submitted_at,
        job.number,
        job.finished_at,
        job.finished_seq,
        job.revision,
        job.reason,
        [_task_row(state, task) for task in job.tasks],
        None if job.plan is None else _plan_row(job.plan, through),
        job.queue,
        job.purged,
        state.tellers.get(job.id, ()),
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


def _task_row(state: State, task: Task) -> _Task:
    return _Task(
        state=_NUMBERS[task.state],
        past=[msgspec.structs.astuple(past) for past in task.past or ()],
        once={key: (e.token, e.value) for key, e in (task.once or {}).items()},
        needs=task.needs if isinstance(task, StepTask) else [],
        queue=task.line.name,
        gate=place_of(state, task)[0].key if task.state is S.PARKED else "",
        begins=state.starts.get(task.token, 0.0),
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
    parked: list[tuple[str, Task]] = []
    lines: list[tuple[Line, _Line]] = []
    gates: dict[str, _Gate] = {}
    timed = {"timer": state.timers, "expiry": state.expiries}
    for kind, name, data in rows:
        if kind == "job":
            job, waiting = _job(state, name, data)
            _put(state, job, ready, leased)
            parked += waiting
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
            lines.append((line, told))
            suspects += told.suspects
        elif kind == "config":
            config = msgspec.msgpack.decode(data, type=_Config)
            state.config, state.config_run = config.config, config.run
            state.config_seq = config.seq
            state.limit_by(config.limits)
            state.shares.set(config.weights)
        elif kind == "gate":
            gates[name] = msgspec.msgpack.decode(data, type=_Gate)
        elif kind == "learned":
            for run_s in msgspec.msgpack.decode(data, type=list[float]):
                state.learn(name, run_s)
        elif kind == "schedule":
            schedule = msgspec.json.decode(data, type=Schedule)
            state.keep(schedule)
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
    alone = [_find(state, *name) for name in suspects]
    _line_up(ready, alone)
    _lend(state, leased)
    _put_gates(state, gates, parked, [*ready, *alone, *leased])
    for line, told in lines:
        line.turns = told.turns
        _put_marks(line, told.marks)
    # Jobs lie in the order of submission, but those that finished go in the order they did.
    final = (job for job in state.order if job.finished_at and is_final(job))
    state.finished.extend(sorted(final, key=lambda job: job.finished_seq))
    for job in state.plans.values():
        look(state, job)
    return state


_decode_job = msgspec.msgpack.Decoder(_Job).decode


def _job(state: State, job_id: str, data: bytes) -> tuple[Job, list[tuple[str, Task]]]:
    """Return a job, and its parked tasks with the key each waits for."""
    row = _decode_job(data)
    spec = decode_head(row.raw)
    job = Job(
        job_id,
        row.raw,
        intern(spec.type),
        intern(spec.tenant),
        intern(row.queue or spec.queue),
        spec.priority,
        row.submitted_at,
        row.number,
        (),
        row.finished_at,
        row.finished_seq,
        row.revision,
        row.reason,
        intern(spec.code),
        tuple(map(intern, spec.limits)),
        purged=row.purged,
    )
    if row.tells:
        state.tellers[job_id] = row.tells
    state.starts.update((task.token, task.begins) for task in row.tasks if task.begins)
    if row.plan is None or spec.plan is None:
        job.tasks = tuple(_task(job, state.line(job.queue), task) for task in row.tasks)
        return job, _parked(row, job)
    plan = _plan(spec.plan, row.plan)
    adopt_plan(state, job, plan)
    for task_row in row.tasks:
        step, role, index = locate(plan, task_row.id)
        line = state.line(task_row.queue or step.spec.queue or job.queue)
        more = {"step": step, "role": role, "index": index, "needs": task_row.needs}
        task = _task(job, line, task_row, StepTask, more)
        assert isinstance(task, StepTask)
        plan.add(task)
        line.counts[task.state] -= 1  # `_put` counts every task there
        plan.asked += bool(task.stop)
    return job, _parked(row, job)


def _parked(row: _Job, job: Job) -> list[tuple[str, Task]]:
    return [(told.gate, task) for told, task in zip(row.tasks, job.tasks, strict=True) if told.gate]


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
    if not job.finished_at:
        state.count(job, 1, state.line(job.queue))
    for task in job.tasks:
        if not (job.purged and task.state is S.DEAD):
            task.line.counts[task.state] += 1
        if job.finished_at and task.state is S.WAITING and isinstance(task, StepTask):
            uncount(task)
        if task.state is S.READY and not task.suspect:
            ready.append(task)
        elif task.state is S.LEASED:
            leased.append(task)


def _line_up(ready: list[Task], suspects: list[Task]) -> None:
    ready.sort(key=lambda task: task.ticket)
    for task in (*ready, *suspects):
        task.line.restore(task)


def _put_gates(
    state: State, told: dict[str, _Gate], parked: list[tuple[str, Task]], others: list[Task]
) -> None:
    for key, row in told.items():
        limit = limit_of(state, key)
        assert limit is not None  # a gate is made for a limit, and goes with it
        gate = state.gates[key] = Gate(key, limit)
        gate.tat, gate.last, gate.before = row.tat, row.last, row.before
        for name in row.sides:
            gate.sides[name] = Side(name, state.shares)
    restore_gates(state, others)
    for key, task in sorted(parked, key=lambda one: one[1].ticket):
        state.gates[key].sides[task.line.name].restore(task)
    for key, row in told.items():
        for name, side in row.sides.items():
            state.gates[key].sides[name].turns = side.turns
            _put_marks(state.gates[key].sides[name], side.marks)
    settle_gates(state, state.at)


def _put_marks(line: Priorities, marks: dict[int, BucketMark]) -> None:
    for priority, mark in marks.items():
        put_marks(line.bucket(priority), mark)


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
