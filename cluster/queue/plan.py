"""Jobs of many tasks: which tasks there are, which come next, and when the job is over.

    step of a workflow      one task, named as the step
    fan-out                 split -> chunks 0, 1, 2, ... -> join, named `<step>.split`, `<step>.0`
    fan-out that is no step the same, without the step's name

Rule 1: what comes next is read off the state by `next_events`, and happens by the command
`Advance`, which follows every other in the same commit: a plan never stands still. Rule 2: chunks
enter the line in a window, and leave memory when they are done: what stays of each is a bit, and a
row until a compaction has it. Rule 3: a chunk's number names the same slice for ever: a split that
was made again must give the same manifest.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from cluster.protocol import LostOutput, Output
from cluster.queue import events as e
from cluster.queue.gates import line_up
from cluster.queue.model import Job, PastAttempt, State, Task
from cluster.queue.moves import end_lease, keep_attempt, leave_line, make_ready
from cluster.queue.spec import JobSpec, Plan, StepSpec, decode_spec
from cluster.queue.state import TERMINAL, Move, TaskState
from cluster.queue.telling import reached

__all__ = [
    "OVER",
    "FinishedTask",
    "PlanState",
    "Role",
    "Step",
    "StepState",
    "StepTask",
    "adopt_plan",
    "decode_finished",
    "decode_lost",
    "decode_output",
    "last_task",
    "locate",
    "look",
    "lost_events",
    "next_events",
    "on_compacted",
    "on_inputs_lost",
    "on_job_ended",
    "on_job_purged",
    "on_job_revived",
    "on_output_lost",
    "on_plan_stopped",
    "on_step_ended",
    "on_task_succeeded",
    "on_tasks_added",
    "on_tasks_withdrawn",
    "plan_status",
    "split_error",
    "steps_of",
    "task_name",
    "to_redrive",
    "uncount",
]

#: How often the output of one task may be lost and made again.
REBUILDS_MAX = 3
#: Chunks of one step: a bit each stays in memory, and a row until a compaction has it.
CHUNKS_MAX = 10_000_000

S = TaskState
#: Before a lease, not waiting for another task.
_IN_LINE = (S.READY, S.PARKED, S.BACKING_OFF)
#: Why a job that was stopped ends as cancelled.
OVER = frozenset({"cancelled", "expired"})


class StepState(StrEnum):
    """Where a step is."""

    __hash__ = str.__hash__

    #: Steps it needs have not succeeded.
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    #: A step that it needs failed.
    SKIPPED = "skipped"


class Role(StrEnum):
    """What a task does for its step."""

    __hash__ = str.__hash__

    WHOLE = "whole"
    SPLIT = "split"
    CHUNK = "chunk"
    JOIN = "join"


class StepTask(Task, eq=False, gc=False):
    """A task of a planned job."""

    step: "Step" = None  # type: ignore[assignment]  # always given; a Struct wants a default here
    role: Role = Role.WHOLE
    #: Number of its chunk.
    index: int = -1
    #: Tasks whose output it lacks, while it is WAITING for them.
    needs: list[str] = []

    @property
    def limits(self) -> tuple[str, ...]:
        """Keys of limits that its attempts count against: not those that split or join."""
        if self.role is Role.SPLIT or self.role is Role.JOIN:
            return ()
        return self.job.limits if self.step.limits is None else self.step.limits


class FinishedTask(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is known of a chunk that is done, for its join and for whoever asks."""

    #: Number of the event that finished it.
    seq: int
    attempt: int
    failures: int
    recoveries: int
    interruptions: int
    worker: str
    leased_at: float
    started_at: float
    ended_at: float
    output: bytes
    log: str
    past: list[PastAttempt] = []


_encode = msgspec.msgpack.Encoder().encode
decode_finished = msgspec.msgpack.Decoder(FinishedTask).decode


class _Seq(msgspec.Struct, array_like=True, gc=False):
    """The first field of a FinishedTask: the rest is passed over unread."""

    seq: int


_decode_seq = msgspec.msgpack.Decoder(_Seq).decode
decode_output = msgspec.json.Decoder(Output).decode


class Step(msgspec.Struct, eq=False):
    """One step of one job."""

    spec: StepSpec
    state: StepState = StepState.WAITING
    #: Chunks there are; -1 until it is split.
    count: int = -1
    #: Checksum of the manifest that lists them.
    manifest: str = ""
    #: Chunks below this are done or in memory.
    next: int = 0
    #: A bit a chunk that is done.
    done: bytearray = msgspec.field(default_factory=bytearray)
    succeeded: int = 0
    #: Chunks in memory in each state.
    counts: dict[TaskState, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys(TaskState, 0)
    )
    #: Encoded FinishedTask of each chunk that is done and in no lineage file yet, as they finished.
    finished: dict[int, bytes] = msgspec.field(default_factory=dict)
    #: Keys of limits that its tasks count against; None: the job's.
    limits: tuple[str, ...] | None = None
    #: What its chunks get, made when first asked for: no part of the state.
    raw: bytes = b""
    inputs: bytes = b""

    def is_done(self, index: int) -> bool:
        """Whether chunk `index` is done."""
        return bool(self.done[index >> 3] & (1 << (index & 7)))

    @property
    def dead(self) -> int:
        """Chunks that failed for good."""
        return self.counts[S.DEAD]

    @property
    def tolerated(self) -> int:
        """Chunks that may fail."""
        # 0.29 * 100 is a little less than 29.
        return int(self.spec.tolerate * self.count + 1e-6)

    @property
    def is_settled(self) -> bool:
        """Whether every chunk is done or failed for good."""
        return self.succeeded + self.dead == self.count


class PlanState:
    """How far a planned job is."""

    __slots__ = (
        "asked",
        "attempts",
        "counts",
        "decoded",
        "followers",
        "open",
        "rebuilt",
        "recoveries",
        "remade",
        "spec",
        "started_at",
        "steps",
        "stop",
        "tasks",
        "unsure",
        "waiting",
    )

    def __init__(self, spec: Plan) -> None:
        self.spec = spec
        self.steps = {
            step.name: Step(step, limits=None if step.limits is None else tuple(step.limits))
            for step in spec.steps
        }
        #: Steps that have not ended.
        self.open = dict(self.steps)
        #: Steps of which something may follow: of all others nothing does. No part of the state.
        self.unsure = dict(self.steps)
        #: Those that need a step, by its name.
        self.followers: dict[str, list[str]] = {}
        for step in spec.steps:
            for name in step.needs:
                self.followers.setdefault(name, []).append(step.name)
        #: The job's spec, once it was asked for. No part of the state.
        self.decoded: JobSpec | None = None
        #: Those in memory, by id.
        self.tasks: dict[str, StepTask] = {}
        #: Those of them that are WAITING.
        self.waiting: dict[str, StepTask] = {}
        self.counts: dict[TaskState, int] = dict.fromkeys(TaskState, 0)
        #: Why it does not go on: `cancelled`, `expired`, `failed`.
        self.stop = ""
        #: Leased tasks that were asked to stop.
        self.asked = 0
        #: When a task of it was first leased, or 0; how many attempts and recoveries there were.
        self.started_at = 0.0
        self.attempts = 0
        self.recoveries = 0
        #: How often a task's output was lost, by its id.
        self.rebuilt: dict[str, int] = {}
        #: Of chunks that were made again: the attempt that did, when no row says so any more.
        self.remade: dict[str, int] = {}

    @property
    def started(self) -> bool:
        """Whether a task of it was ever leased."""
        return self.started_at > 0

    def spec_of(self, raw: bytes) -> JobSpec:
        """Return the whole spec of this plan's job, which has these bytes."""
        if self.decoded is None:
            self.decoded = msgspec.structs.replace(decode_spec(raw), plan=self.spec)
        return self.decoded

    def recount(self, task: Task, old: TaskState, new: TaskState) -> None:
        """Keep the counts of a task that moved."""
        assert isinstance(task, StepTask)
        self.unsure[task.step.spec.name] = task.step
        self.counts[old] -= 1
        self.counts[new] += 1
        if new is S.WAITING:
            self.waiting[task.id] = task
        elif old is S.WAITING:
            del self.waiting[task.id]
        if task.role is Role.CHUNK:
            task.step.counts[old] -= 1
            task.step.counts[new] += 1
            task.line.chunks += (old in TERMINAL) - (new in TERMINAL)

    def add(self, task: StepTask) -> None:
        """Take a task into memory."""
        self.tasks[task.id] = task
        self.unsure[task.step.spec.name] = task.step
        if task.state is S.WAITING:
            self.waiting[task.id] = task
        task.line.counts[task.state] += 1
        self.counts[task.state] += 1
        if task.role is Role.CHUNK:
            task.step.counts[task.state] += 1
            task.line.chunks += task.state not in TERMINAL

    def forget(self, task: StepTask) -> None:
        """Let a task go from memory."""
        del self.tasks[task.id]
        self.unsure[task.step.spec.name] = task.step
        self.waiting.pop(task.id, None)
        task.line.counts[task.state] -= 1
        self.counts[task.state] -= 1
        if task.role is Role.CHUNK:
            task.step.counts[task.state] -= 1
            task.line.chunks -= task.state not in TERMINAL

    def is_done(self, task_id: str) -> bool:
        """Whether the task's output is there."""
        task = self.tasks.get(task_id)
        if task is not None:
            return task.state is S.SUCCEEDED
        step, _, index = locate(self, task_id)
        return 0 <= index < step.count and step.is_done(index)


def adopt_plan(state: State, job: Job, plan: PlanState) -> None:
    """Give a new job its plan."""
    job.plan = plan
    job.tasks = plan.tasks.values()
    state.plans[job.id] = job


def steps_of(job: Job) -> Iterable[Step]:
    """Return the steps of a job; of one that is not planned, none."""
    return job.plan.steps.values() if job.plan is not None else ()


def task_name(step: StepSpec, role: Role, index: int = -1) -> str:
    """Return the id of a step's task."""
    if role is Role.WHOLE:
        return step.name
    last = str(index) if role is Role.CHUNK else role.value
    return f"{step.name}.{last}" if step.name else last


def locate(plan: PlanState, task_id: str) -> tuple[Step, Role, int]:
    """Return what a task's id says. Raises KeyError for an id of no task of this plan."""
    step = plan.steps.get(task_id)
    if step is not None and not step.spec.fans_out:
        return step, Role.WHOLE, -1
    name, _, last = task_id.rpartition(".")
    step = plan.steps[name]
    if step.spec.fans_out:
        if last == "split" or (last == "join" and step.spec.join):
            return step, Role(last), -1
        # The one name of each number: "007" is none, nor is what int() takes beside digits.
        if last.isascii() and last.isdecimal() and len(last) < 10 and str(int(last)) == last:
            return step, Role.CHUNK, int(last)
    raise KeyError(task_id)


def last_task(step: StepSpec) -> str:
    """Return the id of the task whose output is the step's; a fan-out without join has none."""
    return task_name(step, Role.JOIN if step.fans_out else Role.WHOLE)


def plan_status(job: Job) -> str:
    """Derive the status users see."""
    plan = job.plan
    assert plan is not None
    if job.finished_at:
        if plan.stop in OVER:
            return "cancelled"
        failed = any(step.state is StepState.FAILED for step in plan.steps.values())
        return "failed" if failed else "completed"
    if plan.started:
        return "processing"
    waiting = any(task.due_at for task in plan.tasks.values() if task.state is S.WAITING)
    return "scheduled" if waiting else "pending"


# --- what comes next --------------------------------------------------------------------------


def look(state: State, job: Job) -> None:
    """Note whether the plan moves on by itself: whether `next_events` has something to say."""
    plan = job.plan
    assert plan is not None
    # Each step is looked at once, until something befalls it or one that it needs: a job may have
    # a thousand.
    while plan.unsure and not (plan.stop or job.finished_at):
        step = next(iter(plan.unsure.values()))
        if next(_of_step(job, plan, step), None) is not None:
            break
        del plan.unsure[step.spec.name]
    if job.id in state.telling or next(next_events(job), None) is not None:
        state.moving[job.id] = job
    else:
        state.moving.pop(job.id, None)


def _is_quiet(plan: PlanState, step: Step) -> bool:
    """Whether nothing follows from one more chunk of the step that is done, if nothing did before.

    It makes room in the window, and lets go on who waits for it, or for the last of all.
    """
    spec, counts = step.spec, step.counts
    left = step.count - step.next
    room = spec.at_once - counts[S.READY] - counts[S.PARKED] - counts[S.LEASED]
    return (
        left > 0
        and room < min(left, spec.at_once // 2)
        and step.state is StepState.RUNNING
        and not plan.stop
        and not plan.counts[S.WAITING]
    )


def next_events(job: Job) -> Iterator[e.Event]:
    """Yield what follows from where the plan is."""
    plan = job.plan
    assert plan is not None
    if job.finished_at:
        return
    counts = plan.counts
    if plan.stop:
        yield from _stop(job, plan)
        return
    for step in plan.unsure.values():
        yield from _of_step(job, plan, step)
    if plan.open:
        if counts[S.WAITING]:
            yield from _wake(job, plan)
    else:
        # Nothing begins any more, or what is withdrawn here would be woken, for ever.
        yield from _withdraw(job, plan)
        if not counts[S.LEASED]:
            yield e.JobEnded(job.id)


def _stop(job: Job, plan: PlanState) -> Iterator[e.Event]:
    yield from _withdraw(job, plan)
    counts = plan.counts
    if counts[S.LEASED] > plan.asked:
        reason = "cancel" if plan.stop in OVER else "job failed"
        for task in plan.tasks.values():
            if task.state is S.LEASED and not task.stop:
                yield e.StopRequested(job.id, task.id, task.attempt, task.token, reason)
    if not counts[S.LEASED]:
        yield e.JobEnded(job.id, plan.stop if plan.stop in OVER else "")


def _withdraw(job: Job, plan: PlanState) -> Iterator[e.Event]:
    if any(plan.counts[state] for state in _IN_LINE):
        yield e.TasksWithdrawn(job.id)


def _of_step(job: Job, plan: PlanState, step: Step) -> Iterator[e.Event]:
    if step.state is StepState.WAITING:
        return _begin(job, plan, step)
    if step.state is StepState.RUNNING:
        return _go_on(job, plan, step)
    return iter(())


def _begin(job: Job, plan: PlanState, step: Step) -> Iterator[e.Event]:
    needs = [plan.steps[name].state for name in step.spec.needs]
    if any(state in (StepState.FAILED, StepState.SKIPPED) for state in needs):
        yield e.StepEnded(job.id, step.spec.name, StepState.SKIPPED)
    elif all(state is StepState.SUCCEEDED for state in needs):
        role = Role.SPLIT if step.spec.fans_out else Role.WHOLE
        yield e.TasksAdded(job.id, step.spec.name, role)


def _go_on(job: Job, plan: PlanState, step: Step) -> Iterator[e.Event]:
    """Yield what follows for a step that runs."""
    spec = step.spec
    if not spec.fans_out:
        yield from _end_by(job, spec, plan.tasks[spec.name])
        return
    if plan.tasks[task_name(spec, Role.SPLIT)].state is S.DEAD or step.dead > step.tolerated >= 0:
        yield e.StepEnded(job.id, spec.name, StepState.FAILED)
    elif step.count < 0:
        return
    elif step.next < step.count:
        counts = step.counts
        room = spec.at_once - counts[S.READY] - counts[S.PARKED] - counts[S.LEASED]
        left = step.count - step.next
        # Few large events rather than one a chunk; those that back off have room of their own.
        if (
            room >= min(left, max(1, spec.at_once // 2))
            and counts[S.BACKING_OFF] + counts[S.WAITING] < spec.at_once
        ):
            yield e.TasksAdded(job.id, spec.name, Role.CHUNK, step.next, min(room, left))
    elif step.is_settled:
        if not spec.join:
            yield e.StepEnded(job.id, spec.name, StepState.SUCCEEDED)
        elif (join := plan.tasks.get(task_name(spec, Role.JOIN))) is None:
            yield e.TasksAdded(job.id, spec.name, Role.JOIN)
        else:
            yield from _end_by(job, spec, join)


def _end_by(job: Job, spec: StepSpec, task: StepTask) -> Iterator[e.Event]:
    """Yield the end of a step whose last task ended."""
    if task.state is S.SUCCEEDED:
        yield e.StepEnded(job.id, spec.name, StepState.SUCCEEDED)
    elif task.state is S.DEAD:
        yield e.StepEnded(job.id, spec.name, StepState.FAILED)


def _wake(job: Job, plan: PlanState) -> Iterator[e.Event]:
    """Yield what follows for tasks that wait for others."""
    failed: dict[str, None] = {}
    for task in plan.waiting.values():
        step = task.step
        if task.due_at or step.state is StepState.FAILED:
            continue  # until its moment; or until an operator lets it go on
        if task.role is Role.JOIN and not (step.is_settled and step.dead <= step.tolerated):
            # A chunk is made again, or was in vain: then it may be one more that failed.
            if step.dead > step.tolerated:
                failed[step.spec.name] = None
            continue
        for name in task.needs:
            if plan.is_done(name):
                continue
            need = plan.tasks.get(name)
            if need is None:
                break
            if need.state is S.DEAD and need.step is step and need.role is Role.CHUNK:
                continue  # its join can do without
            if need.state is S.DEAD or need.step.state is StepState.FAILED:
                failed[step.spec.name] = None
            break
        else:
            yield e.TaskReady(job.id, task.id)
    for name in failed:
        yield e.StepEnded(job.id, name, StepState.FAILED)


# --- evolve -----------------------------------------------------------------------------------


def on_tasks_added(state: State, event: e.TasksAdded, at: float) -> None:
    """Take tasks of a step into memory, in line or waiting for their time."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    step = plan.steps[event.step]
    step.state = StepState.RUNNING
    role = Role(event.role)
    line = state.line(step.spec.queue or job.queue)
    if role is Role.CHUNK:
        prefix = f"{event.step}." if event.step else ""
        for index in range(event.first, event.first + event.count):
            name = f"{prefix}{index}"
            if not (step.is_done(index) or name in plan.tasks):
                task = StepTask(job, line, name, S.READY, step=step, role=role, index=index)
                _enter(state, plan, task, at)
        step.next = event.first + event.count
    else:
        task = StepTask(job, line, task_name(step.spec, role), S.READY, step=step, role=role)
        spec = None if plan.started else job.spec
        if spec is not None and spec.expires_at is not None:
            task.expires_at = spec.expires_at
            state.expiries.add(task.expires_at, task)
        if spec is not None and spec.run_at is not None and spec.run_at > at:
            task.state, task.due_at = S.WAITING, spec.run_at
            state.timers.add(spec.run_at, task)
            plan.add(task)
        else:
            _enter(state, plan, task, at)
    look(state, job)


def _enter(state: State, plan: PlanState, task: StepTask, at: float) -> None:
    task.ready_at = at
    plan.add(task)
    line_up(state, task, at)


def on_step_ended(state: State, event: e.StepEnded, at: float) -> None:
    """Close a step; a failed one may stop the others."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    step = plan.steps[event.step]
    step.state = StepState(event.state)
    plan.open.pop(event.step, None)
    plan.unsure.update((name, plan.steps[name]) for name in plan.followers.get(event.step, ()))
    if step.state is StepState.FAILED and not plan.spec.goes_on and not plan.stop:
        plan.stop = "failed"
    look(state, job)


def on_plan_stopped(state: State, event: e.PlanStopped, at: float) -> None:
    """Let nothing of the job begin any more."""
    job = state.jobs[event.job_id]
    assert job.plan is not None
    job.plan.stop = event.reason
    look(state, job)


def on_tasks_withdrawn(state: State, event: e.TasksWithdrawn, at: float) -> None:
    """Take out of line what has not begun, and forget what never did."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    for task in list(plan.tasks.values()):
        if task.state not in _IN_LINE:
            continue
        leave_line(state, task, at)
        task.move(Move.WITHDRAWN)
        task.due_at = 0.0
        if task.role is Role.CHUNK and not task.attempt:
            task.step.next = min(task.step.next, task.index)
            plan.forget(task)
    look(state, job)


def on_job_ended(state: State, event: e.JobEnded, at: float) -> None:
    """End the job. A failed one stays among the dead letters; others leave with the next sweep."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    job.finished_at = at
    job.finished_seq = state.seq + 1
    job.revision += 1
    state.count(job, -1, state.line(job.queue))
    if event.reason:
        job.reason = event.reason
    failed = plan_status(job) == "failed"
    for task in list(plan.waiting.values()):
        task.due_at = 0.0  # nothing of it is to begin by itself
        if failed:
            uncount(task)  # it is in nobody's way until it is revived
        else:
            task.move(Move.CANCELLED)
    if not failed:
        for task in plan.tasks.values():
            if task.state is S.DEAD:
                del state.dead[job.id, task.id]
        state.finished.append(job)
    reached(state, job, plan_status(job), at)
    look(state, job)


def uncount(task: StepTask) -> None:
    """Count a task that waits for its failed job's revival no more among those of its queue."""
    task.line.counts[S.WAITING] -= 1
    task.line.chunks -= task.role is Role.CHUNK


def on_job_revived(state: State, event: e.JobRevived, at: float) -> None:
    """Let a failed job go on where it failed."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    job.finished_at = 0.0
    state.count(job, 1, state.line(job.queue))
    plan.stop = ""
    for task in plan.waiting.values():
        task.line.counts[S.WAITING] += 1
        task.line.chunks += task.role is Role.CHUNK
    for name, step in plan.steps.items():
        if step.state is StepState.FAILED:
            step.state = StepState.RUNNING
            plan.open[name] = step
        elif step.state is StepState.SKIPPED:
            step.state = StepState.WAITING
            plan.open[name] = step
    plan.unsure = dict(plan.open)
    look(state, job)


def on_job_purged(job: Job) -> None:
    """End what waits for the job's revival: there will be none."""
    for task in list(job.plan.waiting.values()) if job.plan is not None else ():
        task.line.counts[S.WAITING] += 1
        task.line.chunks += task.role is Role.CHUNK
        task.move(Move.CANCELLED)


def on_inputs_lost(state: State, event: e.InputsLost, at: float) -> None:
    """Let a task wait for those that make again what it found missing."""
    task = end_lease(state, event, at)
    assert isinstance(task, StepTask)
    keep_attempt(task, "interrupted", cause="input lost")
    task.move(Move.INPUTS_LOST)
    task.due_at, task.needs = 0.0, list(event.needs)
    look(state, task.job)


def on_output_lost(state: State, event: e.OutputLost, at: float) -> None:
    """Put a task whose output is gone in line again."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    task_id = event.task_id
    plan.rebuilt[task_id] = plan.rebuilt.get(task_id, 0) + 1
    task = plan.tasks.get(task_id)
    if task is None:
        task = _recalled(state, job, plan, event)
    else:
        keep_attempt(task, "succeeded", cause="output lost")
    if task.role is Role.CHUNK:
        task.step.done[task.index >> 3] &= ~(1 << (task.index & 7))
        task.step.succeeded -= 1
    task.output = b""
    # Losing it was not its fault; and of a chunk it may not be known any more.
    task.failures = task.recoveries = task.interruptions = 0
    make_ready(state, task, Move.OUTPUT_LOST, at)
    look(state, job)


def _recalled(state: State, job: Job, plan: PlanState, event: e.OutputLost) -> StepTask:
    """Take a finished chunk back into memory, with as much as is known of it."""
    step, role, index = locate(plan, event.task_id)
    line = state.line(step.spec.queue or job.queue)
    more: dict[str, Any] = {"step": step, "role": role, "index": index}
    task = StepTask(job, line, event.task_id, S.SUCCEEDED, event.attempt, **more)
    if event.row:
        row = decode_finished(event.row)
        made = PastAttempt(
            row.attempt, "succeeded", row.worker, row.leased_at, row.started_at, row.ended_at,
            cause="output lost", log=row.log,
        )  # fmt: skip
        task.past = [*row.past, made]
    step.finished.pop(index, None)
    plan.add(task)
    return task


def on_task_succeeded(state: State, task: StepTask) -> None:
    """Take in what a task of a plan made; a chunk leaves memory."""
    plan, step = task.job.plan, task.step
    assert plan is not None
    if task.role is Role.CHUNK:
        index = task.index
        step.done[index >> 3] |= 1 << (index & 7)
        step.succeeded += 1
        if task.id in plan.rebuilt:
            plan.remade[task.id] = task.attempt
        if not task.once:  # made again, it must not repeat its effects: that one stays
            step.finished[index] = _finished_row(state, task)
            plan.forget(task)
        if task.job.id not in state.moving and _is_quiet(plan, step):
            return  # as `look` would find, for a tenth: this is once a chunk
    elif task.role is Role.SPLIT:
        step.raw = b""  # the manifest may lie elsewhere now
        if step.count >= 0:
            look(state, task.job)
            return
        output = decode_output(task.output)
        step.count = output.chunks or 0
        step.manifest = _identity(output)
        step.done = bytearray((step.count + 7) // 8)
    look(state, task.job)


def _finished_row(state: State, task: StepTask) -> bytes:
    return _encode(
        FinishedTask(
            state.seq + 1,
            task.attempt,
            task.failures,
            task.recoveries,
            task.interruptions,
            task.worker,
            task.leased_at,
            task.started_at,
            task.ended_at,
            task.output,
            task.log,
            task.past or [],
        )
    )


def on_compacted(jobs: Iterable[Job], seq: int) -> None:
    """Forget the rows of finished chunks that lineage files hold now."""
    for job in jobs:
        assert job.plan is not None
        for step in job.plan.steps.values():
            if not step.finished:
                continue
            rows = list(step.finished.items())  # as they finished
            covered = bisect_right(rows, seq, key=lambda item: _decode_seq(item[1]).seq)
            step.finished = dict(rows[covered:])


# --- decide -----------------------------------------------------------------------------------


decode_lost = msgspec.json.Decoder(list[LostOutput]).decode


def lost_events(
    plan: PlanState,
    task: Task,
    lost: list[LostOutput],
    lease: dict[str, Any],
    again: set[tuple[str, str]],
) -> list[e.Event]:
    """Return what follows when `task` found outputs lost; `again` are those being made again.

    Nothing, if all of them were made again since. Raises KeyError if one is no input of the task.
    """
    found: dict[str, e.OutputLost] = {}
    needs: dict[str, None] = {}
    for one in lost:
        name = one.task_id
        step, role, index = locate(plan, name)
        if not (isinstance(task, StepTask) and _is_input(plan, task, step, role)):
            raise KeyError(name)
        made_by = plan.tasks.get(name)
        if (task.job.id, name) in again or name in found:
            needs[name] = None
        elif plan.is_done(name):
            row = step.finished.get(index, b"")
            attempt = made_by.attempt if made_by is not None else plan.remade.get(name, 0)
            if row:
                attempt = decode_finished(row).attempt
            if attempt > one.attempt:
                continue  # it was made again since
            if plan.rebuilt.get(name, 0) >= REBUILDS_MAX:
                told = f"the output of task {name} was lost {REBUILDS_MAX + 1} times"
                return [e.TaskDied(error=told, cause="output lost", **lease)]
            attempt = attempt or max(1, one.attempt)
            found[name] = e.OutputLost(task.job.id, name, attempt, row)
            needs[name] = None
        elif made_by is None:
            raise KeyError(name)
        elif made_by.state is not S.DEAD or role is not Role.CHUNK:
            needs[name] = None
        elif step is not task.step:
            if name not in plan.rebuilt:
                raise KeyError(name)  # it never had an output
            needs[name] = None
    again.update((task.job.id, name) for name in found)
    return [*found.values(), e.InputsLost(needs=list(needs), **lease)] if needs else []


def _is_input(plan: PlanState, task: StepTask, step: Step, role: Role) -> bool:
    """Whether `task` may have read what that role of that step made.

    Nothing else may be waited for: two tasks could wait for each other, or for what never comes.
    """
    if step is task.step:
        if role is Role.SPLIT:
            return task.role in (Role.CHUNK, Role.JOIN)
        return role is Role.CHUNK and task.role is Role.JOIN
    before = dict.fromkeys(task.step.spec.needs)
    names = list(before)
    for name in names:  # grows: what those needed may be read too, by the URIs they pass on
        more = [n for n in plan.steps[name].spec.needs if n not in before]
        before |= dict.fromkeys(more)
        names += more
    return step.spec.name in before


def to_redrive(plan: PlanState) -> list[Task]:
    """Return the dead tasks that stand in a failed job's way.

    A chunk whose failure was tolerated stays out: its join may have run without it, or is to run
    again while it would.
    """
    needed = {name for task in plan.waiting.values() for name in task.needs}
    found: list[Task] = []
    for task in plan.tasks.values():
        step = task.step
        if task.state is not S.DEAD:
            continue
        tolerated = step.dead <= step.tolerated or step.state is not StepState.FAILED
        if task.role is not Role.CHUNK or not tolerated or task.id in needed:
            found.append(task)
    return found


def split_error(task: Task, output: msgspec.Raw) -> str:
    """Return why what a split made cannot count; empty if it can, or if the task is no split.

    Raises a msgspec error for what is no Output.
    """
    if not isinstance(task, StepTask) or task.role is not Role.SPLIT:
        return ""
    found = decode_output(output)
    if found.chunks is None or not 0 <= found.chunks <= CHUNKS_MAX:
        return f"the split says that there are {found.chunks} chunks; use 0 to {CHUNKS_MAX:,}"
    step = task.step
    if step.count >= 0 and (_identity(found), found.chunks) != (step.manifest, step.count):
        return (
            "the split was made again, its manifest having been lost, and gives other chunks "
            "than those that are out; submit the job anew"
        )
    return ""


def _identity(output: Output) -> str:
    """Return what tells one split from another."""
    file = output.manifest.sha256 if output.manifest is not None else ""
    return output.chunks_sha256 or file
