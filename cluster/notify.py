"""Which jobs an event makes that tell of it, and what they tell.

Rule 1: pure: all follows from the job and the event's number, ids too, so a replay gives the same;
and it never fails, whatever a worker reported: the event is decided already.
Rule 2: one job for each event and target, never refused, and none that notifies in turn. Rule 3:
what is told is thin: what happened to which job, and where to ask for more.
"""

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from cluster.protocol import Output
from cluster.queue.model import Job, PastAttempt
from cluster.queue.plan import PlanState, last_task
from cluster.queue.rules import Rules
from cluster.queue.spec import JobSpec, encode_spec
from cluster.queue.state import TaskState
from cluster.tasks import EMPTY, output_of, plan_output

__all__ = ["EVENTS", "NOTIFIES", "notifications"]

#: What can be told of a job, and the status that it has then.
EVENTS = {
    "started": "processing",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
#: Labels by which notifications are found: the job they tell of, and its event.
NOTIFIES, EVENT = "notifies", "event"
#: Beyond this what is told loses its labels, its files, its result, in this order.
TOLD_BYTES_MAX = 16_000
#: The last second of the year 9999.
MOMENT_MAX = 253_402_300_799.0
RESULT_BYTES_MAX, FILES_MAX, ERROR_CHARS_MAX = 2_000, 20, 1_000


def notifications(
    job: Job, events: Iterable[tuple[str, int, float]], rules: Rules
) -> Iterator[tuple[str, bytes]]:
    """Yield id and spec of each job that tells of these events: (name, number, moment)."""
    spec = job.spec
    for name, number, at in events:
        targets = [one for one in spec.notify if name in one.on]
        if not targets:
            continue
        told = _told(job, spec, name, at)
        for place, target in enumerate(targets):
            made = _notification(target.job, job, spec, name, told, rules)
            yield _id(job.id, number, place, at), encode_spec(made)


def _notification(
    carrier: JobSpec, job: Job, spec: JobSpec, name: str, told: dict[str, Any], rules: Rules
) -> JobSpec:
    given = msgspec.json.decode(carrier.params)
    params = given if isinstance(given, dict) else {}
    # A queue may be taken away while the job runs: it is told all the same.
    queue = carrier.queue if carrier.queue in rules.queues else rules.default_queue
    return msgspec.structs.replace(
        carrier,
        params=msgspec.Raw(msgspec.json.encode(params | {"event": told})),
        tenant=job.tenant,
        queue=queue if queue in rules.queues else next(iter(rules.queues)),
        labels={NOTIFIES: job.id, EVENT: f"job.{name}"},
        traceparent=spec.traceparent,
        notify=[],
        tells_of=job.id,
    )


def _id(job_id: str, number: int, place: int, at: float) -> str:
    """Return a UUID of version 7 whose chance is a checksum: it is the same in every replay."""
    chance = hashlib.sha256(f"{job_id}:{number}:{place}".encode()).hexdigest()
    ms = f"{int(at * 1000):012x}"
    variant = f"{int(chance[3], 16) & 3 | 8:x}"
    return f"{ms[:8]}-{ms[8:]}-7{chance[:3]}-{variant}{chance[4:7]}-{chance[7:19]}"


def _told(job: Job, spec: JobSpec, name: str, at: float) -> dict[str, Any]:
    data = _data(job, spec, name)
    for field, empty in (("labels", {}), ("files", []), ("result", None)):
        if len(msgspec.json.encode(data)) <= TOLD_BYTES_MAX:
            break
        data[field] = empty
    return {"type": f"job.{name}", "timestamp": _moment(at), "data": data}


def _data(job: Job, spec: JobSpec, name: str) -> dict[str, Any]:
    plan = job.plan
    if plan is not None:
        started_at, attempts, error = plan.started_at, plan.attempts, _plan_error(plan)
    else:
        (task,) = job.tasks
        started_at, attempts = task.started_at or task.leased_at, task.attempt
        error = _error(task.past or ())
    task_id, output = _output(job) if name == "completed" else ("", EMPTY)
    small = len(memoryview(output.result)) <= RESULT_BYTES_MAX
    return {
        "id": job.id,
        "type": job.type,
        "status": EVENTS[name],
        "queue": job.queue,
        "labels": spec.labels,
        "attempts": attempts,
        "submitted_at": _moment(job.submitted_at),
        "started_at": _moment(started_at),
        "finished_at": _moment(job.finished_at),
        "error": error if name == "failed" else None,
        "reason": job.reason or None if name == "cancelled" else None,
        "result": output.result if small else None,
        "files": _files(f"output:{job.id}/{task_id}", output),
    }


def _output(job: Job) -> tuple[str, Output]:
    """Return the task whose output is the job's, and that; whoever reported it may have erred."""
    plan = job.plan
    try:
        if plan is not None:
            return last_task(plan.steps[plan.spec.result].spec), plan_output(plan)
        (task,) = job.tasks
        return task.id, output_of(task.output)
    except (KeyError, msgspec.MsgspecError):
        return "", EMPTY


def _files(prefix: str, output: Output) -> list[dict[str, Any]]:
    kept = [file for file in output.files if not file.is_ephemeral]
    return [
        {"name": file.name, "bytes": file.bytes, "uri": f"{prefix}/{file.name}"}
        for file in kept[:FILES_MAX]
    ]


def _error(past: Iterable[PastAttempt]) -> dict[str, Any] | None:
    last = next((one for one in reversed(list(past)) if one.error or one.cause), None)
    return None if last is None else {"message": last.error[:ERROR_CHARS_MAX], "cause": last.cause}


def _plan_error(plan: PlanState) -> dict[str, Any] | None:
    dead = (task for task in plan.tasks.values() if task.state is TaskState.DEAD)
    # The first that failed: others may have followed from it.
    first = min(dead, key=lambda task: task.ended_at, default=None)
    return None if first is None else _error(first.past or ())


def _moment(at: float) -> str | None:
    if not at:
        return None
    # What a worker says of its own clock may be anything.
    text = datetime.fromtimestamp(min(max(at, 0.0), MOMENT_MAX), UTC).isoformat(
        timespec="milliseconds"
    )
    return text.replace("+00:00", "Z")
