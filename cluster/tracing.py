"""Traces: what a job went through, as spans of the trace that its submitter began.

    request -> job -> step -> wait, attempt -> request to others, job that it submitted
                   -> job that tells of it

Spans are made after the fact, of what is durable. Rule 1: an id follows from what it names, so
whoever needs a parent's asks nobody, and a successor goes on where a manager died. Rule 2: a job
whose trace is not sampled (W3C flag 01) costs one look at its spec. Rule 3: nothing waits here;
where spans go, and what is dropped on the way, is the business of `cluster/spans.py`.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from cluster.queue import events as e
from cluster.queue.engine import job_status
from cluster.queue.model import Job, State, Task
from cluster.queue.plan import StepTask
from cluster.trace_context import parse, span_id

__all__ = ["Span", "Tracer", "trace_id_of"]

log = structlog.get_logger(__name__)

#: Characters of an error that a span tells.
ERROR_MAX = 500
#: In the bytes of every spec that has a trace.
_MARK = b'"traceparent":"'


class Span(msgspec.Struct, frozen=True):
    """One span. Moments are epoch seconds; ids are hex, as in `traceparent`."""

    trace_id: str
    span_id: str
    #: Empty: the trace begins with it.
    parent_id: str
    name: str
    start: float
    end: float
    attributes: dict[str, str | int]
    #: Why it did not succeed; None: it did.
    error: str | None = None


class _Traced(msgspec.Struct, frozen=True):
    """What of a spec says where its spans belong."""

    traceparent: str | None = None
    tells_of: str | None = None
    schedule: str | None = None
    scheduled_for: float | None = None


_UNTRACED = _Traced()
_decode_traced = msgspec.json.Decoder(_Traced).decode


def trace_id_of(job: Job) -> str | None:
    """Return the trace that a job belongs to, if it is sampled."""
    found = _parents(job)
    return None if found is None else found[0]


def _traced(job: Job) -> Any:
    if job.plan is not None:
        return job.spec  # kept decoded
    return _decode_traced(job.raw) if _MARK in job.raw else _UNTRACED


def _parents(job: Job) -> tuple[str, str] | None:
    """Return the trace of a job, and the span that its own is a child of; empty: of none."""
    spec = _traced(job)
    found = parse(spec.traceparent)
    if found is not None and found[1] == span_id(job.id, 0):
        return found[0], ""
    if found is not None and spec.tells_of is not None:
        return found[0], span_id(spec.tells_of, 0)
    return found


class _Lease(msgspec.Struct, frozen=True):
    """What the span of an attempt says, as far as it is known when it is leased."""

    trace_id: str
    parent_id: str
    type: str
    ready_at: float
    leased_at: float
    attributes: dict[str, str | int]


class _Begun(msgspec.Struct):
    """A step of which something ran."""

    span_id: str
    at: float
    #: Its span is made: what runs of it again, for an output that was lost, is beneath that.
    is_over: bool = False


class Tracer:
    """Makes spans of a manager's events."""

    def __init__(self, state: State, put: Callable[[Span], None]) -> None:
        self._state, self._put = state, put
        #: Attempts under way, by token. As many as there are leases, at most.
        self._leases: dict[int, _Lease] = {}
        #: By job and step.
        self._steps: dict[tuple[str, str], _Begun] = {}
        #: When an operator let a failed job go on.
        self._revived: dict[str, float] = {}
        self._acts: dict[type[e.Event], Callable[[Any, float], None]] = {
            e.TaskLeased: self._leased,
            e.TaskSucceeded: self._ended,
            e.TaskDied: self._ended,
            e.TaskCancelled: self._ended,
            e.AttemptFailed: self._ended,
            e.AttemptCrashed: self._ended,
            e.LeaseReleased: self._ended,
            e.TaskSnoozed: self._ended,
            e.InputsLost: self._ended,
            e.StepEnded: self._step_ended,
            e.JobEnded: self._job_ended,
            e.JobRefused: self._job_ended,
            e.TaskRedriven: self._went_on,
            e.JobRevived: self._went_on,
        }

    def begin(self) -> None:
        """Take over what the manager before had under way."""
        for task in self._state.leases.values():
            self._note(task, task.leased_at)

    def observe(self, events: Sequence[e.Event], ats: Sequence[float]) -> None:
        """Make the spans that end with these events, which are durable."""
        acts = self._acts
        try:
            for event, at in zip(events, ats, strict=True):
                if (act := acts.get(type(event))) is not None:
                    act(event, at)
        except Exception:
            # A defect of ours must not end the commit loop.
            log.exception("spans_not_made", count=len(events))

    # --- attempts -----------------------------------------------------------------------------

    def _leased(self, event: e.TaskLeased, at: float) -> None:
        # What is not leased any more never reached a worker: orders wait until this is durable.
        if (task := self._state.leases.get(event.token)) is not None:
            self._note(task, at)

    def _note(self, task: Task, at: float) -> None:
        job = task.job
        parents = _parents(job)
        if parents is None:
            return
        parent_id, kind = span_id(job.id, job.revision), job.type
        attributes = _attributes(job)
        if isinstance(task, StepTask):
            step, kind = task.step.spec.name, task.step.spec.type or kind
            parent_id = self._begun(job, step, task.ready_at).span_id
            attributes |= {"drayman.step": step, "drayman.type": kind}
        attributes |= {
            "drayman.queue": task.line.name,
            "drayman.task": task.id,
            "drayman.attempt": task.attempt,
            "drayman.worker": task.worker,
        }
        self._leases[task.token] = _Lease(
            parents[0], parent_id, kind, task.ready_at, at, attributes
        )

    def _ended(self, event: Any, at: float) -> None:
        lease = self._leases.pop(event.token, None)
        if lease is not None and getattr(event, "started", True):
            self._put_attempt(lease, event, at)
        if isinstance(event, e.TaskSucceeded | e.TaskDied | e.TaskCancelled):
            job = self._state.jobs.get(event.job_id)
            if job is not None and job.plan is None:
                self._put_job(job, at, _error(event))

    def _put_attempt(self, lease: _Lease, event: Any, at: float) -> None:
        # What a worker says of its own clock may be anything.
        start = max(event.started_at or lease.leased_at, lease.ready_at)
        own = span_id(event.job_id, event.task_id, lease.attributes["drayman.attempt"])
        self._put(
            Span(
                lease.trace_id,
                span_id(own, "wait"),
                lease.parent_id,
                "wait",
                lease.ready_at,
                start,
                lease.attributes,
            )
        )
        outcome, cause = _OUTCOMES[type(event)], getattr(event, "cause", "")
        attributes = lease.attributes | {"drayman.outcome": outcome}
        if cause:
            attributes["drayman.cause"] = cause
        end = max(start, event.ended_at or at)
        name = f"run {lease.type}"
        error = _error(event)
        self._put(Span(lease.trace_id, own, lease.parent_id, name, start, end, attributes, error))

    # --- steps and jobs -----------------------------------------------------------------------

    def _begun(self, job: Job, step: str, at: float) -> _Begun:
        found = self._steps.get((job.id, step))
        if found is None:
            found = _Begun(span_id(job.id, job.revision, "step", step), at)
            self._steps[job.id, step] = found
        return found

    def _step_ended(self, event: e.StepEnded, at: float) -> None:
        begun = self._steps.get((event.job_id, event.step))
        job = self._state.jobs.get(event.job_id)
        if begun is not None and job is not None:
            error = "" if event.state == "failed" else None
            self._put_step(job, event.step, begun, at, error)

    def _put_step(
        self, job: Job, step: str, begun: _Begun, at: float, error: str | None = None
    ) -> None:
        parents = _parents(job)
        if parents is None or begun.is_over:
            return
        begun.is_over = True
        # The job may have ended with the same commit; it had not when the step ran.
        lives = job.revision - 1 if job.finished_at else job.revision
        attributes = _attributes(job) | {"drayman.step": step}
        parent_id, name = span_id(job.id, lives), f"step {step}"
        self._put(Span(parents[0], begun.span_id, parent_id, name, begun.at, at, attributes, error))

    def _went_on(self, event: Any, at: float) -> None:
        job = self._state.jobs.get(event.job_id)
        if job is not None and _parents(job) is not None:
            self._revived[job.id] = at

    def _job_ended(self, event: e.JobEnded | e.JobRefused, at: float) -> None:
        job = self._state.jobs.get(event.job_id)
        if job is None:
            return
        if job.plan is not None:
            for step in job.plan.steps:
                if (begun := self._steps.pop((job.id, step), None)) is not None:
                    self._put_step(job, step, begun, at)
        self._put_job(job, at, _error(event))

    def _put_job(self, job: Job, at: float, error: str | None) -> None:
        parents = _parents(job)
        if parents is None:
            return
        status = job_status(job)
        # It ended before: then what came since is a span beneath that of its first life.
        lives = max(0, job.revision - 1)
        begun = self._revived.pop(job.id, None)
        if error is None and status == "failed":
            error = ""
        attributes = _attributes(job) | {"drayman.status": status}
        if job.reason:
            attributes["drayman.reason"] = job.reason
        spec = _traced(job)
        if spec.schedule is not None:
            attributes["drayman.schedule"] = spec.schedule
        if spec.scheduled_for is not None:
            attributes["drayman.due"] = datetime.fromtimestamp(spec.scheduled_for, UTC).isoformat()
        self._put(
            Span(
                parents[0],
                span_id(job.id, lives),
                span_id(job.id, 0) if lives else parents[1],
                f"job {job.type}",
                begun if lives and begun is not None else job.submitted_at,
                at,
                attributes,
                error,
            )
        )


#: How an attempt ended, by its event.
_OUTCOMES: dict[type[e.Event], str] = {
    e.TaskSucceeded: "ok",
    e.TaskDied: "died",
    e.TaskCancelled: "cancelled",
    e.AttemptFailed: "failed",
    e.AttemptCrashed: "crashed",
    e.LeaseReleased: "released",
    e.TaskSnoozed: "snoozed",
    e.InputsLost: "inputs lost",
}
_FAILED = (e.TaskDied, e.AttemptFailed, e.AttemptCrashed, e.JobRefused)


def _error(event: Any) -> str | None:
    return event.error[:ERROR_MAX] if isinstance(event, _FAILED) else None


def _attributes(job: Job) -> dict[str, str | int]:
    return {
        "drayman.job": job.id,
        "drayman.type": job.type,
        "drayman.queue": job.queue,
        "drayman.tenant": job.tenant,
    }
