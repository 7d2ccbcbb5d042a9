"""What follows from where a plan is: the tasks to add, the ends of steps and of the job.

Rule: everything here is read off the state and changes nothing; `plan_changes` applies it.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from cluster.protocol import LostOutput
from cluster.queue import events as e
from cluster.queue.model import Job, Task
from cluster.queue.plan import (
    CHUNKS_MAX,
    IN_LINE,
    OVER,
    PlanState,
    Role,
    Step,
    StepState,
    StepTask,
    decode_finished,
    decode_output,
    identity_of,
    locate,
    task_name,
)
from cluster.queue.spec import StepSpec
from cluster.queue.state import TaskState

__all__ = [
    "REBUILDS_MAX",
    "decode_lost",
    "lost_events",
    "next_events",
    "of_step",
    "split_error",
    "to_redrive",
]

#: How often the output of one task may be lost and made again.
REBUILDS_MAX = 3

S = TaskState

decode_lost = msgspec.json.Decoder(list[LostOutput]).decode


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
        yield from of_step(job, plan, step)
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
    if any(plan.counts[state] for state in IN_LINE):
        yield e.TasksWithdrawn(job.id)


def of_step(job: Job, plan: PlanState, step: Step) -> Iterator[e.Event]:
    """Yield what follows for one step, whatever becomes of the others."""
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


# --- what was lost, and what failed -----------------------------------------------------------


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
    if step.count >= 0 and (identity_of(found), found.chunks) != (step.manifest, step.count):
        return (
            "the split was made again, its manifest having been lost, and gives other chunks "
            "than those that are out; submit the job anew"
        )
    return ""
