"""What each event changes in a plan.

Rule: whoever changes a plan looks at it last, so that the state says of each job whether its plan
moves on by itself.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import msgspec

from cluster.queue import events as e
from cluster.queue.gates import line_up
from cluster.queue.model import Job, PastAttempt, State
from cluster.queue.moves import end_lease, keep_attempt, leave_line, make_ready
from cluster.queue.plan import (
    IN_LINE,
    FinishedTask,
    PlanState,
    Role,
    Step,
    StepState,
    StepTask,
    decode_finished,
    decode_output,
    identity_of,
    locate,
    plan_status,
    task_name,
)
from cluster.queue.plan_next import next_events, of_step
from cluster.queue.state import Move, TaskState
from cluster.queue.telling import reached

__all__ = [
    "look",
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
    "uncount",
]

S = TaskState

_encode = msgspec.msgpack.Encoder().encode


class _Seq(msgspec.Struct, array_like=True, gc=False):
    """The first field of a FinishedTask: the rest is passed over unread."""

    seq: int


_decode_seq = msgspec.msgpack.Decoder(_Seq).decode


def look(state: State, job: Job) -> None:
    """Note whether the plan moves on by itself: whether `next_events` has something to say."""
    plan = job.plan
    assert plan is not None
    # Each step is looked at once, until something befalls it or one that it needs: a job may have
    # a thousand.
    while plan.unsure and not (plan.stop or job.finished_at):
        step = next(iter(plan.unsure.values()))
        if next(of_step(job, plan, step), None) is not None:
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
        if task.state not in IN_LINE:
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
        step.manifest = identity_of(output)
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
