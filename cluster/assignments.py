"""What a worker gets with the right to run one attempt.

Rule: a chunk's assignment is small: its number, and where the manifest lies. What all chunks of a
step share is made once.
"""

from typing import Literal

import msgspec

from cluster.protocol import NOTHING, Assignment, Inputs, Output
from cluster.queue.model import Job, Task
from cluster.queue.plan import PlanState, Role, Step, StepTask, last_task, task_name
from cluster.queue.spec import NO_PARAMS, encode_spec, step_spec
from cluster.queue.state import TaskState
from cluster.tasks import output_of

__all__ = ["assignment_of"]

#: Of an error a join is told so much, and this much where more than so many chunks failed.
ERROR_CHARS, ERRORS_WHOLE, ERROR_CHARS_OF_MANY = 4_096, 100, 100

_encode = msgspec.json.Encoder().encode


def assignment_of(task: Task, after: str, starts_at: float) -> Assignment:
    """Return the assignment of a task that was just leased; see Assignment."""
    job = task.job
    raw, inputs = job.raw, NOTHING
    if isinstance(task, StepTask):
        assert job.plan is not None
        raw, inputs = _planned(job, job.plan, task)
    return Assignment(
        task.token,
        job.id,
        task.id,
        task.attempt,
        msgspec.Raw(raw),
        msgspec.Raw(task.checkpoint) if task.checkpoint else NOTHING,
        task.suspect,
        after,
        job.code,
        inputs,
        starts_at,
    )


def _planned(job: Job, plan: PlanState, task: StepTask) -> tuple[bytes, msgspec.Raw]:
    step = task.step
    if task.role is Role.CHUNK:
        if not step.raw:
            step.raw, step.inputs = _of_chunks(job, plan, step)
        return step.raw, msgspec.Raw(b'{"index":%d,%b' % (task.index, step.inputs))
    spec = step_spec(job.spec, step.spec)
    if task.role is Role.JOIN:
        spec = msgspec.structs.replace(spec, params=NO_PARAMS, params_ref=None)
        return encode_spec(spec), msgspec.Raw(_encode(_of_join(plan, step)))
    role: Literal["whole", "split"] = "split" if task.role is Role.SPLIT else "whole"
    outputs = {name: _output(plan, plan.steps[name]) for name in step.spec.needs}
    return encode_spec(spec), msgspec.Raw(_encode(Inputs(role, outputs=outputs)))


def _of_chunks(job: Job, plan: PlanState, step: Step) -> tuple[bytes, bytes]:
    """Return the spec of a step's chunks, and their inputs but for the number that goes before."""
    spec = msgspec.structs.replace(
        step_spec(job.spec, step.spec), params=NO_PARAMS, params_ref=None
    )
    split, output = _split(plan, step)
    inputs = _encode(Inputs("chunk", manifest=output.manifest, split=(split.id, split.attempt)))
    return encode_spec(spec), inputs[1:]


def _of_join(plan: PlanState, step: Step) -> Inputs:
    split, output = _split(plan, step)
    dead = [
        task
        for task in plan.tasks.values()
        if task.step is step and task.role is Role.CHUNK and task.state is TaskState.DEAD
    ]
    # Many may have failed, and all they say has to fit into one message.
    chars = ERROR_CHARS if len(dead) <= ERRORS_WHOLE else ERROR_CHARS_OF_MANY
    failed = [
        (task.index, next((p.error for p in reversed(task.past or ()) if p.error), "")[:chars])
        for task in dead
    ]
    return Inputs(
        "join",
        manifest=output.manifest,
        split=(split.id, split.attempt),
        count=step.count,
        failed=sorted(failed),
    )


def _split(plan: PlanState, step: Step) -> tuple[StepTask, Output]:
    split = plan.tasks[task_name(step.spec, Role.SPLIT)]
    return split, output_of(split.output)


def _output(plan: PlanState, step: Step) -> tuple[str, Output | None]:
    """Return the id and the output of the task whose output is the step's; None if it was lost."""
    task = plan.tasks.get(last_task(step.spec))
    if task is not None:
        is_there = task.state is TaskState.SUCCEEDED
        return task.id, output_of(task.output) if is_there else None
    counted = msgspec.Raw(_encode({"chunks": step.succeeded}))
    return last_task(step.spec), Output(counted)
