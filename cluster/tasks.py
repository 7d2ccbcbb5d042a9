"""A job's tasks and steps as others see them, with their lineage.

Rule 1: tasks have places: the split of a step, its chunks in order, its join, then the next step; a
page is a run of places. Rule 2: what a lineage file has is not answered here but named `archived`:
whoever asked can read the store as well as the manager, which must not wait for it.
"""

import hashlib
from collections.abc import Callable, Iterator

import msgspec

from cluster.protocol import Output
from cluster.queue.model import Job, State, Task
from cluster.queue.plan import (
    PlanState,
    Role,
    Step,
    StepState,
    StepTask,
    decode_finished,
    last_task,
    locate,
    plan_status,
    task_name,
)
from cluster.queue.state import TaskState
from cluster.views import ProgressView, StepView, TaskPage, TaskView
from jobs.errors import NotFound

__all__ = [
    "EMPTY",
    "PAGE_MAX",
    "finished_views",
    "kept_views",
    "named_page",
    "output_of",
    "params_hash",
    "plan_output",
    "plan_progress",
    "step_views",
    "task_page",
    "task_view",
    "task_views",
]

#: Tasks in a page, at most, and after how many bytes of results it ends: what the manager makes
#: without others waiting for it.
PAGE_MAX, PAGE_BYTES_MAX = 1_000, 4 << 20
#: How far a fan-out is at most until its join is done: who reads 100 % takes it for over.
BEFORE_JOIN = 0.99
#: Output of a task that produced none (yet).
EMPTY = Output()

S = TaskState
_NOTHING = frozenset({b"", b"{}", b"null"})
_decode_output = msgspec.json.Decoder(Output).decode


def params_hash(params: bytes) -> str:
    """Return the fingerprint by which lineage tells params (JSON) apart: 16 hex digits."""
    return hashlib.sha256(params).hexdigest()[:16]


def output_of(encoded: bytes) -> Output:
    """Return what a task left."""
    # Most leave nothing.
    return EMPTY if encoded in _NOTHING else _decode_output(encoded)


def task_views(state: State, job: Job) -> list[TaskView]:
    """Return all tasks of a job but for chunks that are done or never were in line."""
    found = [_view(state, task) for task in job.tasks]
    plan = job.plan
    if plan is not None:
        names = [name for step in plan.steps.values() for name in _without_chunks(step)]
        found += [task_view(state, job, name) for name in names if name not in plan.tasks]
    return found


def task_page(state: State, job: Job, first: int, limit: int) -> TaskPage:
    """Return up to `limit` tasks from place `first` on, at most PAGE_MAX."""
    plan = job.plan
    if plan is None:
        return TaskPage(task_views(state, job)[first:])
    last = first + min(limit, PAGE_MAX)
    found = _within_bytes(task_view(state, job, name) for name in _names(plan, first, last))
    last = min(last, first + len(found))
    return TaskPage(found, last if last < sum(map(_size, plan.steps.values())) else None)


def named_page(state: State, job: Job, task_ids: list[str]) -> TaskPage:
    """Return these tasks, in order: the first of them, if they are too large for one page.

    Raises NotFound.
    """
    return TaskPage(_within_bytes(task_view(state, job, task_id) for task_id in task_ids))


def _names(plan: PlanState, first: int, last: int) -> Iterator[str]:
    at = 0
    for step in plan.steps.values():
        size = _size(step)
        for place in range(max(first - at, 0), min(last - at, size)):
            yield _name_at(step, place)
        at += size


def _within_bytes(views: Iterator[TaskView]) -> list[TaskView]:
    found: list[TaskView] = []
    size = 0
    for view in views:
        found.append(view)
        size += len(memoryview(view.result))
        if size >= PAGE_BYTES_MAX or len(found) == PAGE_MAX:
            break
    return found


def _size(step: Step) -> int:
    if not step.spec.fans_out:
        return 1
    return 1 + max(0, step.count) + (step.spec.join and step.count >= 0)


def _without_chunks(step: Step) -> list[str]:
    """Return the ids of a step's tasks that are no chunks."""
    # Before it is split, or where nothing is split, both are the same place.
    places = sorted({0, step.count + 1})
    return [_name_at(step, place) for place in places if place < _size(step)]


def _name_at(step: Step, place: int) -> str:
    spec = step.spec
    if not spec.fans_out:
        return task_name(spec, Role.WHOLE)
    if place == 0:
        return task_name(spec, Role.SPLIT)
    if place <= step.count:
        return task_name(spec, Role.CHUNK, place - 1)
    return task_name(spec, Role.JOIN)


def task_view(state: State, job: Job, task_id: str) -> TaskView:
    """Return one task. Raises NotFound."""
    plan = job.plan
    if plan is None:
        for task in job.tasks:
            if task.id == task_id:
                return _view(state, task)
        raise NotFound("task", f"{job.id}/{task_id}")
    live = plan.tasks.get(task_id)
    if live is not None:
        return _view(state, live)
    try:
        step, role, index = locate(plan, task_id)
    except (KeyError, ValueError):
        raise NotFound("task", f"{job.id}/{task_id}") from None
    if role is Role.CHUNK and not 0 <= index < step.count:
        raise NotFound("task", f"{job.id}/{task_id}")
    if role is Role.CHUNK and step.is_done(index):
        row = step.finished.get(index)
        if row is not None:
            return _finished_view(state, job, step, index, row)
        return TaskView(
            task_id,
            S.SUCCEEDED.value,
            1,
            step=step.spec.name,
            type=step.spec.type or job.type,
            role=role.value,
            index=index,
            archived=True,
        )
    is_cancelled = job.finished_at and plan_status(job) == "cancelled"
    return TaskView(
        task_id,
        (S.CANCELLED if is_cancelled else S.WAITING).value,
        0,
        step=step.spec.name,
        type=step.spec.type or job.type,
        role=role.value,
        index=index,
    )


def finished_views(state: State, job: Job, step: Step) -> Iterator[TaskView]:
    """Yield the chunks of a step that are done and in no lineage file yet."""
    for index, row in step.finished.items():
        yield _finished_view(state, job, step, index, row)


def kept_views(state: State, job: Job) -> Iterator[TaskView]:
    """Yield the chunks that are done and stay in memory until their job leaves it."""
    plan = job.plan
    for task in plan.tasks.values() if plan is not None else ():
        if task.role is Role.CHUNK and task.state is S.SUCCEEDED:
            yield _view(state, task)


def _view(state: State, task: Task) -> TaskView:
    job = task.job
    output = output_of(task.output)
    step = task.step.spec if isinstance(task, StepTask) else None
    kind = (step.type if step is not None else "") or job.type
    facts = state.workers.get(task.worker)
    runs = task.state is S.LEASED
    error = next((past.error for past in reversed(task.past or ()) if past.error), "")
    params = output.params
    if not params and step is None:
        spec = job.spec
        params = params_hash(bytes(spec.params)) if spec.params_ref is None else spec.params_ref
    return TaskView(
        task.id,
        task.state.value,
        task.attempt,
        task.recoveries,
        task.worker or None,
        output.files,
        step.name if step is not None else "",
        kind,
        task.role.value if isinstance(task, StepTask) else "whole",
        task.index if isinstance(task, StepTask) else -1,
        facts.node if facts is not None else "",
        job.code or (facts.code.get(kind, "") if facts is not None else ""),
        params,
        output.inputs,
        # A lease says when it began; what lies there is of the attempt before it.
        (task.leased_at if runs else task.started_at) or None,
        None if runs else task.ended_at or None,
        "" if task.state in (S.SUCCEEDED, S.CANCELLED) else error,
        output.result,
        output.result_ref,
        output.result_sha256,
        task.needs if isinstance(task, StepTask) else [],
    )


def _finished_view(state: State, job: Job, step: Step, index: int, row: bytes) -> TaskView:
    done = decode_finished(row)
    output = output_of(done.output)
    kind = step.spec.type or job.type
    facts = state.workers.get(done.worker)
    return TaskView(
        task_name(step.spec, Role.CHUNK, index),
        S.SUCCEEDED.value,
        done.attempt,
        done.recoveries,
        done.worker,
        output.files,
        step.spec.name,
        kind,
        Role.CHUNK.value,
        index,
        facts.node if facts is not None else "",
        job.code or (facts.code.get(kind, "") if facts is not None else ""),
        output.params,
        output.inputs,
        done.started_at,
        done.ended_at,
        "",
        output.result,
        output.result_ref,
        output.result_sha256,
    )


# --- the whole --------------------------------------------------------------------------------


def plan_output(plan: PlanState) -> Output:
    """Return what a completed planned job left: the output of the step that stands for it."""
    step = plan.steps[plan.spec.result]
    task = plan.tasks.get(last_task(step.spec))
    if task is not None:
        return output_of(task.output)
    return Output(msgspec.Raw(msgspec.json.encode({"chunks": step.succeeded})))


def step_views(job: Job, plan: PlanState) -> list[StepView]:
    """Return the steps; one that ran when its job ended is `cancelled`."""
    return [
        StepView(
            name,
            step.spec.type or job.type,
            "cancelled"
            if job.finished_at and step.state is StepState.RUNNING
            else step.state.value,
            step.spec.needs,
            step.count if step.count >= 0 else None,
            step.succeeded,
            step.counts[S.LEASED],
            step.dead,
        )
        for name, step in plan.steps.items()
    ]


def plan_progress(
    job: Job, plan: PlanState, running: Callable[[Task], ProgressView | None]
) -> ProgressView | None:
    """Return how far a planned job is: each step counts as much, and so does each chunk of one."""
    if not plan.started:
        return None
    shown = {task.id: running(task) for task in plan.tasks.values() if task.state is S.LEASED}
    total, message = 0.0, ""
    for step in plan.steps.values():
        part = _progress(plan, step, shown)
        total += part.fraction or 0.0
        if part.message:
            name = step.spec.name
            message = f"{name}: {part.message}" if name else part.message
    return ProgressView(total / len(plan.steps), message)


def _progress(plan: PlanState, step: Step, shown: dict[str, ProgressView | None]) -> ProgressView:
    spec = step.spec
    last = plan.tasks.get(last_task(spec))
    if step.state is StepState.SUCCEEDED or (last is not None and last.state is S.SUCCEEDED):
        return ProgressView(1.0)
    if not spec.fans_out:
        return shown.get(spec.name) or ProgressView(0.0)
    if step.count < 0:
        split = shown.get(task_name(spec, Role.SPLIT))
        return ProgressView(0.0, split.message if split is not None else "")
    if last is not None:
        join = shown.get(last.id) or ProgressView(0.0)
        before = BEFORE_JOIN if step.count else 0.0  # without chunks the join is all there is to do
        return ProgressView(before + (1 - before) * (join.fraction or 0.0), join.message)
    if not step.count:
        return ProgressView(0.0)
    begun = sum(
        one.fraction or 0.0
        for task_id, one in shown.items()
        if one is not None and plan.tasks[task_id].step is step
    )
    done = step.succeeded + step.dead
    fraction = (done + begun) / step.count
    return ProgressView(min(BEFORE_JOIN, fraction), f"{done:,} of {step.count:,} chunks")
