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

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from cluster.protocol import Output
from cluster.queue import events as e
from cluster.queue.model import Job, PastAttempt, State, Task
from cluster.queue.moves import end_lease, keep_attempt, make_ready, move
from cluster.queue.spec import Plan, StepSpec, decode_head
from cluster.queue.state import Move, TaskState

__all__ = [
    "OVER",
    "FinishedTask",
    "LostOutput",
    "PlanState",
    "Role",
    "Step",
    "StepState",
    "StepTask",
    "adopt_plan",
    "decode_finished",
    "decode_lost",
    "decode_output",
    "is_unlike",
    "last_task",
    "locate",
    "look",
    "lost_events",
    "next_events",
    "on_compacted",
    "on_inputs_lost",
    "on_job_ended",
    "on_job_revived",
    "on_output_lost",
    "on_plan_stopped",
    "on_step_ended",
    "on_task_succeeded",
    "on_tasks_added",
    "on_tasks_withdrawn",
    "plan_status",
    "task_name",
]

#: How often the output of one task may be lost and made again.
REBUILDS_MAX = 3

S = TaskState
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
    #: Spec as its tasks get it; made when first asked for, and no part of the state.
    raw: bytes = b""

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
        return int(self.spec.tolerate * self.count)


class PlanState:
    """How far a planned job is."""

    __slots__ = ("asked", "counts", "open", "rebuilt", "spec", "started", "steps", "stop", "tasks")

    def __init__(self, spec: Plan) -> None:
        self.spec = spec
        self.steps = {step.name: Step(step) for step in spec.steps}
        #: Steps that have not ended.
        self.open = dict(self.steps)
        #: Those in memory, by id.
        self.tasks: dict[str, StepTask] = {}
        self.counts: dict[TaskState, int] = dict.fromkeys(TaskState, 0)
        #: Why it does not go on: `cancelled`, `expired`, `failed`.
        self.stop = ""
        #: Leased tasks that were asked to stop.
        self.asked = 0
        #: Whether a task of it was ever leased.
        self.started = False
        #: How often a task's output was lost, by its id.
        self.rebuilt: dict[str, int] = {}

    def recount(self, task: Task, old: TaskState, new: TaskState) -> None:
        """Keep the counts of a task that moved."""
        assert isinstance(task, StepTask)
        self.counts[old] -= 1
        self.counts[new] += 1
        if task.role is Role.CHUNK:
            task.step.counts[old] -= 1
            task.step.counts[new] += 1

    def add(self, task: StepTask) -> None:
        """Take a task into memory."""
        self.tasks[task.id] = task
        task.line.counts[task.state] += 1
        self.counts[task.state] += 1
        if task.role is Role.CHUNK:
            task.step.counts[task.state] += 1

    def forget(self, task: StepTask) -> None:
        """Let a task go from memory."""
        del self.tasks[task.id]
        task.line.counts[task.state] -= 1
        self.counts[task.state] -= 1
        if task.role is Role.CHUNK:
            task.step.counts[task.state] -= 1

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
    if last.isdigit():
        return step, Role.CHUNK, int(last)
    return step, Role(last), -1


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
    if next(next_events(job), None) is not None:
        state.moving[job.id] = job
    else:
        state.moving.pop(job.id, None)


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
    for step in plan.open.values():
        if step.state is StepState.WAITING:
            yield from _begin(job, plan, step)
        else:
            yield from _go_on(job, plan, step)
    if counts[S.WAITING]:
        yield from _wake(job, plan)
    if not plan.open:
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
    if plan.counts[S.READY] or plan.counts[S.BACKING_OFF]:
        yield e.TasksWithdrawn(job.id)


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
        room = spec.at_once - counts[S.READY] - counts[S.LEASED]
        left = step.count - step.next
        # Few large events rather than one a chunk; those that back off have room of their own.
        if (
            room >= min(left, max(1, spec.at_once // 2))
            and counts[S.BACKING_OFF] + counts[S.WAITING] < spec.at_once
        ):
            yield e.TasksAdded(job.id, spec.name, Role.CHUNK, step.next, min(room, left))
    elif step.succeeded + step.dead == step.count:
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
    for task in plan.tasks.values():
        if task.state is not S.WAITING or task.due_at:
            continue
        if task.step.state is StepState.FAILED:
            continue  # until an operator lets it go on
        if all(map(plan.is_done, task.needs)):
            yield e.TaskReady(job.id, task.id)
        elif any(
            (need := plan.tasks.get(name)) is not None
            and (need.state is S.DEAD or need.step.state is StepState.FAILED)
            for name in task.needs
        ):
            failed[task.step.spec.name] = None
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
        for index in range(event.first, event.first + event.count):
            name = task_name(step.spec, role, index)
            if not (step.is_done(index) or name in plan.tasks):
                _enter(
                    plan, StepTask(job, line, name, S.READY, step=step, role=role, index=index), at
                )
        step.next = event.first + event.count
    else:
        task = StepTask(job, line, task_name(step.spec, role), S.READY, step=step, role=role)
        head = None if plan.started else decode_head(job.raw)
        if head is not None and head.expires_at is not None:
            task.expires_at = head.expires_at
            state.expiries.add(task.expires_at, task)
        if head is not None and head.run_at is not None and head.run_at > at:
            task.state, task.due_at = S.WAITING, head.run_at
            state.timers.add(head.run_at, task)
            plan.add(task)
        else:
            _enter(plan, task, at)
    look(state, job)


def _enter(plan: PlanState, task: StepTask, at: float) -> None:
    task.ready_at = at
    plan.add(task)
    task.line.push(task)


def on_step_ended(state: State, event: e.StepEnded, at: float) -> None:
    """Close a step; a failed one may stop the others."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    step = plan.steps[event.step]
    step.state = StepState(event.state)
    plan.open.pop(event.step, None)
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
    lines = {}
    for task in list(plan.tasks.values()):
        if task.state not in (S.READY, S.BACKING_OFF):
            continue
        if task.state is S.READY:
            lines[task.line.name] = task.line
            task.line.suspects.pop(task, None)
        move(task, Move.WITHDRAWN)
        task.due_at = 0.0
        if task.role is Role.CHUNK and not task.attempt:
            task.step.next = min(task.step.next, task.index)
            plan.forget(task)
    for line in lines.values():
        line.bucket(job.priority).tidy(job.number)
    look(state, job)


def on_job_ended(state: State, event: e.JobEnded, at: float) -> None:
    """End the job. A failed one stays among the dead letters; others leave with the next sweep."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    job.finished_at = at
    job.finished_seq = state.seq + 1
    job.revision += 1
    if event.reason:
        job.reason = event.reason
    for task in plan.tasks.values() if event.reason else ():
        if task.state is S.WAITING:
            move(task, Move.CANCELLED)
    if plan_status(job) != "failed":
        for task in plan.tasks.values():
            if task.state is S.DEAD:
                del state.dead[job.id, task.id]
        state.finished.append(job)
    look(state, job)


def on_job_revived(state: State, event: e.JobRevived, at: float) -> None:
    """Let a failed job go on where it failed."""
    job = state.jobs[event.job_id]
    plan = job.plan
    assert plan is not None
    job.finished_at = 0.0
    plan.stop = ""
    for name, step in plan.steps.items():
        if step.state is StepState.FAILED:
            step.state = StepState.RUNNING
            plan.open[name] = step
        elif step.state is StepState.SKIPPED:
            step.state = StepState.WAITING
            plan.open[name] = step
    look(state, job)


def on_inputs_lost(state: State, event: e.InputsLost, at: float) -> None:
    """Let a task wait for those that make again what it found missing."""
    task = end_lease(state, event)
    assert isinstance(task, StepTask)
    keep_attempt(task, "interrupted", cause="input lost")
    move(task, Move.INPUTS_LOST)
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
        task = _recalled(state, job, plan, task_id, event.attempt)
    task.output = b""
    make_ready(task, Move.OUTPUT_LOST, at)
    look(state, job)


def _recalled(state: State, job: Job, plan: PlanState, task_id: str, attempt: int) -> StepTask:
    """Take a finished chunk back into memory, with as much as is known of it."""
    step, role, index = locate(plan, task_id)
    line = state.line(step.spec.queue or job.queue)
    task = StepTask(job, line, task_id, S.SUCCEEDED, attempt, step=step, role=role, index=index)
    row = step.finished.pop(index, None)
    if row is not None:
        known = decode_finished(row)
        task.attempt, task.failures = max(attempt, known.attempt), known.failures
        task.recoveries, task.interruptions = known.recoveries, known.interruptions
        task.past = list(known.past) or None
    plan.add(task)
    step.done[index >> 3] &= ~(1 << (index & 7))
    step.succeeded -= 1
    return task


def on_task_succeeded(state: State, task: StepTask) -> None:
    """Take in what a task of a plan made; a chunk leaves memory."""
    plan, step = task.job.plan, task.step
    assert plan is not None
    if task.role is Role.CHUNK:
        index = task.index
        step.done[index >> 3] |= 1 << (index & 7)
        step.succeeded += 1
        step.finished[index] = _encode(
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
        plan.forget(task)
    elif task.role is Role.SPLIT and step.count < 0:
        output = decode_output(task.output)
        step.count = output.chunks or 0
        step.manifest = output.manifest.sha256 if output.manifest is not None else ""
        step.done = bytearray((step.count + 7) // 8)
    look(state, task.job)


def on_compacted(jobs: Iterable[Job], seq: int) -> None:
    """Forget the rows of finished chunks that lineage files hold now."""
    for job in jobs:
        assert job.plan is not None
        for step in job.plan.steps.values():
            covered = 0
            for row in step.finished.values():
                if decode_finished(row).seq > seq:
                    break
                covered += 1
            if covered == len(step.finished):
                step.finished = {}
            else:
                for index in [i for i, _ in zip(step.finished, range(covered), strict=False)]:
                    del step.finished[index]


# --- decide -----------------------------------------------------------------------------------


class LostOutput(msgspec.Struct, frozen=True, array_like=True):
    """A task whose output an attempt found gone, or other than it was."""

    task_id: str
    #: The attempt that made it.
    attempt: int


decode_lost = msgspec.json.Decoder(list[LostOutput]).decode


def lost_events(
    plan: PlanState,
    task: Task,
    lost: list[LostOutput],
    lease: dict[str, Any],
    again: set[tuple[str, str]],
) -> list[e.Event]:
    """Return what follows when `task` found outputs lost; `again` are those being made again.

    Raises KeyError for an id of no task of the plan.
    """
    found: list[e.Event] = []
    for one in lost:
        step, role, index = locate(plan, one.task_id)
        if (task.job.id, one.task_id) in again or not plan.is_done(one.task_id):
            continue
        made_by = plan.tasks.get(one.task_id)
        attempt = made_by.attempt if made_by is not None else one.attempt
        if role is Role.CHUNK and (row := step.finished.get(index)) is not None:
            attempt = decode_finished(row).attempt
        if attempt > one.attempt:
            continue  # it was made again since
        if plan.rebuilt.get(one.task_id, 0) >= REBUILDS_MAX:
            told = f"the output of task {one.task_id} was lost {REBUILDS_MAX + 1} times"
            return [e.TaskDied(error=told, cause="output lost", **lease)]
        again.add((task.job.id, one.task_id))
        found.append(e.OutputLost(task.job.id, one.task_id, one.attempt))
    return [*found, e.InputsLost(needs=[one.task_id for one in lost], **lease)]


def is_unlike(task: Task, output: bytes) -> bool:
    """Whether a split that was made again would give other chunks than those that are out.

    Raises a msgspec error for what is no Output.
    """
    if not isinstance(task, StepTask) or task.role is not Role.SPLIT:
        return False
    manifest = decode_output(output).manifest
    sha256 = manifest.sha256 if manifest is not None else ""
    return task.step.count >= 0 and sha256 != task.step.manifest
