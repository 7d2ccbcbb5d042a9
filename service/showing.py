"""How the API shows what it learns from below: it becomes the structs of `schemas/`, then JSON."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from cluster.endpoints import EndpointRecord
from cluster.notify import NOTIFIES
from cluster.protocol import NOTHING, Accepted, FileInfo
from cluster.queue.spec import JobSpec, Notify
from cluster.views import (
    AttemptView,
    ErrorView,
    EtaView,
    JobPage,
    JobView,
    QueueView,
    ScheduleView,
    TaskView,
    WorkerView,
)
from service.auth import TokenRecord
from service.notifying import target_of
from service.schemas.endpoints import Endpoint
from service.schemas.files import File
from service.schemas.jobs import (
    Attempt,
    Eta,
    Input,
    Job,
    JobError,
    JobList,
    Links,
    Notification,
    Progress,
    Step,
    Task,
)
from service.schemas.queues import Queue, Worker
from service.schemas.schedules import Schedule
from service.schemas.tokens import Token

__all__ = [
    "accepted_job",
    "attempt_of",
    "encode",
    "encode_lines",
    "endpoint_of",
    "file_of",
    "job_list",
    "job_of",
    "moment",
    "queue_of",
    "reply",
    "schedule_of",
    "task_of",
    "token_of",
    "worker_of",
]

_encoder = msgspec.json.Encoder()
encode = _encoder.encode
encode_lines = _encoder.encode_lines


def reply(
    value: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return `value` as a JSON answer."""
    return Response(encode(value), status, headers=headers, media_type="application/json")


#: The last second of the year 9999, which is as far as a datetime goes.
MOMENT_MAX = 253_402_300_799.0


def moment(at: float) -> datetime:
    """Return epoch seconds as an aware moment, to the millisecond; within the years of ISO 8601."""
    return datetime.fromtimestamp(round(min(max(at, 0.0), MOMENT_MAX), 3), UTC)


def maybe(at: float | None) -> datetime | None:
    """Return the moment, or None for none."""
    return None if at is None else moment(at)


def links_of(job_id: str) -> Links:
    """Return where to go from the job."""
    here = f"/v1/jobs/{job_id}"
    return Links(
        here,
        f"{here}/result",
        f"{here}/files",
        f"{here}/logs",
        f"{here}/tasks",
        f"{here}/attempts",
        f"{here}/cancel",
        f"{here}/retry",
        f"/v1/jobs?label={NOTIFIES}%3D{job_id}",
    )


def file_of(job_id: str, info: FileInfo, task_id: str | None = None) -> File:
    """Return a file, of the job or of one of its tasks, without its place in the store."""
    task = "" if task_id is None else f"/tasks/{quote(task_id, safe='')}"
    href = f"/v1/jobs/{job_id}{task}/files/{quote(info.name, safe='')}"
    return File(info.name, info.bytes, info.sha256, info.media_type, href, info.is_ephemeral)


def error_of(view: ErrorView) -> JobError:
    """Return why it failed as the API shows it."""
    return JobError(view.message, view.cause, view.attempt, maybe(view.at or None))


def _eta_of(view: EtaView | None) -> Eta | None:
    return None if view is None else Eta(view.seconds, view.low, view.high, view.confidence)


def job_of(view: JobView) -> Job:
    """Return the job as the API shows it."""
    progress, error = view.progress, view.error
    return Job(
        id=view.id,
        type=view.type,
        status=view.status,
        queue=view.queue,
        priority=view.priority,
        tenant=view.tenant,
        labels=view.labels,
        attempts=view.attempts,
        max_attempts=view.max_attempts,
        recoveries=view.recoveries,
        submitted_at=moment(view.submitted_at),
        run_at=maybe(view.run_at),
        started_at=maybe(view.started_at),
        finished_at=maybe(view.finished_at),
        expires_at=maybe(view.expires_at),
        next_attempt_at=maybe(view.next_attempt_at),
        reason=view.reason,
        stopping=view.stopping,
        progress=Progress(progress.fraction, progress.message) if progress else None,
        queue_position=view.queue_position,
        eta=_eta_of(view.eta),
        pending_reason=view.pending_reason,
        error=error_of(error) if error else None,
        result=view.result,
        files=[file_of(view.id, info) for info in view.files],
        traceparent=view.traceparent,
        steps=[
            Step(x.name, x.type, x.state, x.needs, x.chunks, x.done, x.running, x.failed)
            for x in view.steps
        ],
        parent=view.parent,
        code=view.code,
        schedule=view.schedule,
        scheduled_for=maybe(view.scheduled_for),
        notify=_told(view.notify),
        links=links_of(view.id),
    )


def accepted_job(accepted: Accepted, spec: JobSpec, now: float) -> Job:
    """Return a job that was accepted this moment, without asking for it."""
    waits = spec.run_at is not None and spec.run_at > now
    return Job(
        id=accepted.job_id,
        type=spec.type,
        status="scheduled" if waits else "pending",
        queue=accepted.queue or spec.queue,
        priority=spec.priority,
        tenant=spec.tenant,
        labels=spec.labels,
        attempts=0,
        max_attempts=spec.max_attempts,
        recoveries=0,
        submitted_at=moment(now),
        run_at=maybe(spec.run_at),
        started_at=None,
        finished_at=None,
        expires_at=maybe(spec.expires_at),
        next_attempt_at=None,
        reason=None,
        stopping=None,
        progress=None,
        queue_position=None,
        eta=None,
        pending_reason=None,
        error=None,
        result=NOTHING,
        files=[],
        traceparent=spec.traceparent,
        steps=[],
        parent=None,
        code=spec.code or None,
        schedule=None,
        scheduled_for=None,
        notify=_told(spec.notify),
        links=links_of(accepted.job_id),
    )


def _told(asked: list[Notify]) -> list[Notification]:
    return [Notification(one.on, *target_of(one)) for one in asked]


def job_list(page: JobPage) -> JobList:
    """Return a page as the API shows it."""
    return JobList([job_of(view) for view in page.jobs], page.next_after)


def attempt_of(view: AttemptView) -> Attempt:
    """Return an attempt as the API shows it."""
    return Attempt(
        task_id=view.task_id,
        number=view.number,
        outcome=view.outcome,
        worker=view.worker,
        leased_at=moment(view.leased_at),
        started_at=maybe(view.started_at),
        ended_at=maybe(view.ended_at),
        error=view.error,
        cause=view.cause,
        has_log=bool(view.log),
    )


def task_of(view: TaskView, job_id: str) -> Task:
    """Return a task as it is answered."""
    return Task(
        view.task_id,
        view.state,
        view.attempts,
        view.recoveries,
        view.worker,
        view.step,
        view.type,
        view.role,
        view.index if view.index >= 0 else None,
        view.node,
        view.code,
        view.params,
        [Input(one.uri, one.bytes, one.sha256, one.attempt) for one in view.inputs],
        [file_of(job_id, info, view.task_id) for info in view.files],
        view.result,
        maybe(view.started_at),
        maybe(view.ended_at),
        view.error or None,
        view.needs,
    )


def schedule_of(view: ScheduleView, coming: list[float]) -> Schedule:
    """Return a schedule and its next ticks as the API shows it."""
    return Schedule(
        name=view.name,
        tenant=view.tenant,
        cron=view.cron,
        timezone=view.timezone,
        catch_up=view.catch_up,
        jitter_s=view.jitter_s,
        overlap=view.overlap,
        starts_at=maybe(view.starts_at),
        ends_at=maybe(view.ends_at),
        paused=view.paused,
        job=view.request,
        next=[moment(tick) for tick in coming],
        last_at=maybe(view.last_at),
        last_job=view.last_job,
        fired=view.fired,
        skipped=view.skipped,
    )


def queue_of(view: QueueView) -> Queue:
    """Return a queue as the API shows it."""
    return Queue(**{**_fields(view, Queue), "eta": _eta_of(view.eta)})


def worker_of(view: WorkerView) -> Worker:
    """Return a worker as the API shows it."""
    return Worker(**_fields(view, Worker))


def endpoint_of(record: EndpointRecord) -> Endpoint:
    """Return an endpoint as the API shows it, without its secrets."""
    return Endpoint(
        record.name,
        record.url,
        moment(record.created_at),
        [moment(at) for at in record.secrets_at],
        record.disabled or None,
        maybe(record.disabled_at or None),
    )


def token_of(record: TokenRecord) -> Token:
    """Return a token as a list shows it."""
    return Token(record.id, record.tenant, record.scopes, record.name, record.created_at)


def _fields(view: msgspec.Struct, shown: type[msgspec.Struct]) -> dict[str, Any]:
    return {name: getattr(view, name) for name in shown.__struct_fields__}
