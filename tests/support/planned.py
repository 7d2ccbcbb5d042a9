"""Fan-outs and workflows by hand: the specs, and what a scripted worker makes of their tasks."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.protocol import NOTHING, Assignment, FileInfo, Inputs, Outcome, Output
from cluster.queue.spec import JobSpec, Plan, StepSpec
from cluster.queue.state import TaskState
from tests.support.cluster import Life

__all__ = ["Answer", "fan_out", "fine", "inputs_of", "raw", "roles", "step", "work", "workflow"]

#: What a worker reports of an assignment.
Answer = Callable[[Assignment], Outcome]
MANIFEST = FileInfo("chunks.parquet", "results/chunks.parquet", 7, hashlib.sha256().hexdigest())


def raw(value: Any) -> msgspec.Raw:
    """Return a value as the JSON that travels."""
    return msgspec.Raw(msgspec.json.encode(value))


def step(name: str, *needs: str, **more: Any) -> StepSpec:
    """Return a step of a workflow."""
    return StepSpec(name, **{"type": f"test.{name}", "params": raw({}), "needs": [*needs], **more})


def workflow(*steps: StepSpec, goes_on: bool = False, result: str = "", **fields: Any) -> JobSpec:
    """Return a workflow."""
    plan = Plan([*steps], goes_on, result or steps[-1].name)
    return JobSpec("test.flow", plan=plan, **fields)


def fan_out(**fields: Any) -> JobSpec:
    """Return a job that is split, with a join unless it says otherwise."""
    names = ("join", "at_once", "tolerate")
    more = {name: fields.pop(name) for name in names if name in fields}
    return JobSpec(
        "test.pages", plan=Plan([StepSpec(fans_out=True, **{"join": True, **more})]), **fields
    )


def inputs_of(assignment: Assignment) -> Inputs:
    """Return what a task of a planned job gets beside the spec."""
    return msgspec.json.decode(assignment.inputs, type=Inputs)


def fine(chunks: int = 3, **outcomes: Outcome | str) -> Answer:
    """Return a worker to which everything succeeds, but for the tasks that are named."""

    def answer(assignment: Assignment) -> Outcome:
        token, name = assignment.token, assignment.task_id.replace(".", "_")
        told = outcomes.get(f"t{name}" if name.isdigit() else name)
        if isinstance(told, Outcome):
            return msgspec.structs.replace(told, token=token)
        if told is not None:
            return Outcome(token, told, 1.0, 2.0, error="it broke", delay_s=0.0)  # type: ignore[arg-type]
        output = Output(raw({"task": assignment.task_id, "attempt": assignment.attempt}))
        if assignment.inputs != NOTHING and inputs_of(assignment).role == "split":
            output = Output(raw(None), chunks=chunks, manifest=MANIFEST, chunks_sha256="c")
        return Outcome(token, "ok", 1.0, 2.0, raw(output))

    return answer


async def work(
    one: Life, answer: Answer, *, worker: str = "w1", free: int = 10, most: int = 1_000
) -> list[Assignment]:
    """Run what is in line, at most so many tasks, until nothing is; return what was given."""
    done: list[Assignment] = []
    while len(done) < most and any(
        line.counts[TaskState.READY] for line in one.state.lines.values()
    ):
        room = min(free, most - len(done))
        given = (await one.report(worker, free=room)).assignments
        await one.report(worker, outcomes=[answer(assignment) for assignment in given])
        done += given
    return done


def roles(given: list[Assignment]) -> list[str]:
    """Return the ids of tasks."""
    return [assignment.task_id for assignment in given]
