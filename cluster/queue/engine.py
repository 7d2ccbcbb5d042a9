"""What happens (`decide`) and what it changes (`evolve`).

    events = decide(state, rules, command, now)   # or raises, and nothing changed
    for event in events: evolve(state, event, now)

Rule 1: `decide` writes nothing; `evolve` decides nothing and reads nothing but state and event.
Rule 2: replaying the journal's events through `evolve` gives the live state, always.
Rule 3: what a worker says counts only with the current token; anything else changes nothing.
"""

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice, takewhile
from sys import intern
from typing import Any

import msgspec

from cluster.notify import notifications
from cluster.protocol import Submission
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.admission import check_room, lane_of
from cluster.queue.dispatch import pick
from cluster.queue.limits import (
    forget_idle,
    give_back,
    line_up,
    on_unparked,
    openings,
    pass_gates,
    put_limits,
    recall,
)
from cluster.queue.model import (
    ALIASES_MAX,
    GATEWAY_FORGOTTEN_S,
    WORKERS_KNOWN_MAX,
    Effect,
    GatewayMarks,
    Job,
    Line,
    PastAttempt,
    Rules,
    State,
    Task,
    WorkerFacts,
)
from cluster.queue.moves import end_lease, keep_attempt, leave_line, make_ready
from cluster.queue.plan import (
    OVER,
    PlanState,
    Role,
    StepTask,
    adopt_plan,
    decode_lost,
    look,
    lost_events,
    next_events,
    on_compacted,
    on_inputs_lost,
    on_job_ended,
    on_job_purged,
    on_job_revived,
    on_output_lost,
    on_plan_stopped,
    on_step_ended,
    on_task_succeeded,
    on_tasks_added,
    on_tasks_withdrawn,
    plan_status,
    split_error,
    to_redrive,
)
from cluster.queue.schedule import Schedule
from cluster.queue.spec import JobSpec, SpecHead, decode_head, decode_spec, encode_spec, step_spec
from cluster.queue.state import TERMINAL, Move, TaskState
from cluster.queue.telling import STARTED, forget, listen, reached, told
from jobs.errors import (
    Conflict,
    DraymanError,
    InvalidInput,
    KeyReused,
    LeaseLost,
    NotFound,
    Overloaded,
)

__all__ = ["FIRST_TASK", "decide", "evolve", "evolve_all", "job_status"]

#: The task of a job that has only one.
FIRST_TASK = "0"
#: Tasks one Tick moves on at most, so that a million due at once do not stall the commit loop.
TICK_MAX = 2_000
#: Longest wait before a retry, or a snooze.
WAIT_MAX_S = 366 * 86_400.0
#: Schedules of all tenants together.
SCHEDULES_MAX = 100_000

S = TaskState
# Looked up several times a job, where an attribute of the enum costs as much as the rest.
_READY, _LEASED, _WAITING, _BACKING_OFF = S.READY, S.LEASED, S.WAITING, S.BACKING_OFF
_SUCCEEDED, _DEAD, _SPLIT = S.SUCCEEDED, S.DEAD, Role.SPLIT


def decide(state: State, rules: Rules, command: c.Command, now: float) -> list[e.Event]:
    """Return what `command` makes happen. Raises a DraymanError if it is refused."""
    return _DECIDE[type(command)](state, rules, command, now)


def evolve(state: State, event: e.Event, at: float) -> None:
    """Apply one event that happened at `at`. Raises IllegalTransition on a broken journal."""
    evolve_all(state, (event,), at)


def evolve_all(state: State, events: Iterable[e.Event], at: float) -> None:
    """Apply events that happened at one moment, in order. Raises as `evolve` does."""
    for event in events:
        _EVOLVE[type(event)](state, event, at)
        state.seq += 1
        state.at = at


def job_status(job: Job) -> str:
    """Derive the status users see from the job's tasks."""
    if job.plan is not None:
        return plan_status(job)
    (task,) = job.tasks
    return _STATUS[task.state]


#: Of a job with one task.
_STATUS = {
    S.WAITING: "scheduled",
    S.READY: "pending",
    S.LEASED: "processing",
    S.BACKING_OFF: "pending",
    S.SUCCEEDED: "completed",
    S.DEAD: "failed",
    S.CANCELLED: "cancelled",
    S.PARKED: "pending",
}


# --- decide -----------------------------------------------------------------------------------


def _submit(state: State, rules: Rules, command: c.Submit, now: float) -> list[e.Event]:
    spec = command.spec
    if command.job_id in state.jobs:
        return []  # a resent batch: the id was minted once, so this is the same request
    if spec.key is not None:
        holder = state.keys.find(spec.key, now)
        if holder is not None:
            job_id, fingerprint = holder
            if fingerprint != spec.fingerprint:
                raise KeyReused(job_id)
            return []
        full = state.keys.count(now) >= rules.idempotency_keys_max
        if full and not command.admitted:
            raise Overloaded("tenant", "too many idempotency keys are in their window", 60.0)
    submitted = _submitted(state, rules, command.job_id, spec, command.raw)
    if not command.admitted:
        spec, size = submitted.spec, len(submitted.raw)
        check_room(state, rules, spec.tenant, spec.queue, size)
    return [submitted]


def _submitted(
    state: State, rules: Rules, job_id: str, spec: SpecHead, raw: bytes
) -> e.JobSubmitted:
    """Return the job as it is taken, in the queue that it waits in. Raises InvalidInput."""
    queue = lane_of(state, rules, spec)
    if queue not in rules.queues:
        raise _no_queue(rules, "queue", queue)
    if queue != spec.queue:
        raw = encode_spec(msgspec.structs.replace(decode_spec(raw), queue=queue))
        spec = decode_head(raw)
    _check_steps(rules, spec)
    return e.JobSubmitted(job_id, spec, raw)


def _check_steps(rules: Rules, spec: SpecHead) -> None:
    """Raise InvalidInput for a step in a queue that there is not."""
    for at, step in enumerate(spec.plan.steps if spec.plan is not None else ()):
        if step.queue is not None and step.queue not in rules.queues:
            raise _no_queue(rules, f"steps.{at}.queue", step.queue)


def _no_queue(rules: Rules, field: str, name: str) -> InvalidInput:
    known = ", ".join(sorted(rules.queues))
    return InvalidInput(field, f"no queue {name!r}; use one of: {known}")


def _alias(state: State, rules: Rules, command: c.Alias, now: float) -> list[e.Event]:
    if command.job_id in state.jobs or command.job_id in state.aliases:
        return []
    return [e.JobAliased(command.job_id, command.first)]


def _refuse(state: State, rules: Rules, command: c.Refuse, now: float) -> list[e.Event]:
    if command.job_id in state.jobs:
        return []
    raw = msgspec.Raw(command.raw)
    return [e.JobRefused(command.job_id, raw, command.error, command.cause)]


def _lease(state: State, rules: Rules, command: c.Lease, now: float) -> list[e.Event]:
    token = state.next_token
    worker = command.worker
    return [
        e.TaskLeased(task.job.id, task.id, task.attempt + 1, token + i, worker)
        for i, task in enumerate(
            pick(
                state,
                worker,
                command.queues,
                command.limit,
                now,
                ahead=command.ahead,
                aged_before=now - rules.ageing_s,
            )
        )
    ]


def _finish(state: State, rules: Rules, command: c.Finish, now: float) -> list[e.Event]:
    worker, leases = command.worker, state.leases
    found: dict[int, e.Event] = {}
    #: What comes beside the ends: outputs to be made again before, jobs submitted after.
    before: list[e.Event] = []
    after: list[e.JobSubmitted | e.JobAliased] = []
    onward: list[e.Event] = []
    again: set[tuple[str, str]] = set()
    for outcome, draw in zip(command.outcomes, command.draws, strict=True):
        token = outcome.token
        task = leases.get(token)
        if task is None or task.worker != worker or token in found:
            continue  # late or doubled: the lease is someone else's, or nobody's
        kind = outcome.kind
        if kind == "ok" and task.stop != "cancel":
            if outcome.submits or (isinstance(task, StepTask) and task.role is _SPLIT):
                refused = _refused_end(state, rules, task, outcome, after, now)
                if refused:
                    broken = _Lost("error", refused, outcome.started_at, outcome.ended_at)
                    found[token] = _discarded(rules, task, broken, draw, now)
                    continue
            found[token] = e.TaskSucceeded(
                task.job.id,
                task.id,
                task.attempt,
                token,
                outcome.started_at,
                outcome.ended_at,
                outcome.log,
                outcome.output,
            )
        elif kind == "lost":
            *made_again, end = _inputs_lost(rules, task, outcome, draw, now, again)
            before += made_again
            found[token] = end
        else:
            found[token] = end = _FINISH[kind](rules, task, outcome, draw, now)
            blamed = kind == "crashed" and (outcome.alone or task.suspect)
            onward += _onward(rules, task, end, blamed=blamed)
    return [*before, *found.values(), *onward, *after]


#: Ends of a lease after which the task is run again.
_AGAIN = (e.LeaseReleased, e.AttemptFailed, e.AttemptCrashed, e.TaskSnoozed)


def _onward(rules: Rules, task: Task, end: e.Event, *, blamed: bool) -> list[e.Event]:
    """Return the move to the queue in which a task goes on that this one is not for.

    `blamed`: its process died, or its worker, and nothing else can be the reason.
    """
    limits = rules.queues.get(task.line.name)
    if limits is None or not isinstance(end, _AGAIN):
        return []
    if task.stop == "promote" and limits.then:
        ran_s = max(0.0, end.ended_at - end.started_at)
        return [e.TaskMoved(task.job.id, task.id, limits.then, "long", ran_s)]
    if blamed and isinstance(end, e.LeaseReleased) and end.cause == "oom":
        return [e.TaskMoved(task.job.id, task.id, limits.oom_to, "oom")]
    return []


def _refused_end(
    state: State,
    rules: Rules,
    task: Task,
    outcome: Any,
    submitted: list[e.JobSubmitted | e.JobAliased],
    now: float,
) -> str:
    """Return why an end cannot count, or add the jobs that are submitted with it."""
    try:
        refused = split_error(task, outcome.output)
        if refused:
            return refused
        # One that is made again has submitted its jobs before.
        made_again = isinstance(task, StepTask) and task.id in _plan_of(task).rebuilt
        if outcome.submits and not made_again:
            submitted += _submissions(state, rules, outcome.submits, submitted, now)
    except msgspec.MsgspecError as error:
        return f"what it left cannot be read: {error}"
    except DraymanError as error:
        return f"ctx.submit: {error}"
    return ""


def _plan_of(task: Task) -> PlanState:
    assert task.job.plan is not None
    return task.job.plan


def _submissions(
    state: State,
    rules: Rules,
    submissions: list[Submission],
    before: list[e.JobSubmitted | e.JobAliased],
    now: float,
) -> list[e.JobSubmitted | e.JobAliased]:
    """Return the jobs that an attempt submits, `before` those of others in the same report.

    Limits of depth and keys do not apply: work is accepted from outside, this comes of it.
    Raises InvalidInput, KeyReused, or a msgspec error.
    """
    found: list[e.JobSubmitted | e.JobAliased] = []
    known = {event.job_id for event in before}
    keys = {
        event.spec.key: (event.job_id, event.spec.fingerprint)
        for event in before
        if isinstance(event, e.JobSubmitted)
    }
    for job_id, raw in ((one.job_id, bytes(one.spec)) for one in submissions):
        decode_spec(raw)  # what cannot be read as a whole would only be found when it runs
        submitted = _submitted(state, rules, job_id, decode_head(raw), raw)
        head = submitted.spec
        if job_id in state.jobs or job_id in known:
            continue
        known.add(job_id)
        if head.key is not None:
            holder = keys.get(head.key) or state.keys.find(head.key, now)
            if holder is not None:
                first, fingerprint = holder
                if fingerprint != head.fingerprint:
                    raise KeyReused(first)
                found.append(e.JobAliased(job_id, first))
                continue
            keys[head.key] = job_id, head.fingerprint
        found.append(submitted)
    return found


def _inputs_lost(
    rules: Rules, task: Task, outcome: Any, draw: float, now: float, again: set[tuple[str, str]]
) -> list[e.Event]:
    """Return the outputs to be made again, and the end of the attempt that found them lost."""
    if task.stop == "cancel":
        return [_cancelled(task, outcome, "cancelled")]
    plan = task.job.plan
    try:
        if plan is not None:
            lost = decode_lost(outcome.output)
            follows = lost_events(plan, task, lost, _lease_of(task, outcome), again)
            # If all are there again it may try at once, but not for ever.
            return follows or [_release(rules, task, "input lost", outcome=outcome)]
    except (msgspec.MsgspecError, KeyError):
        pass  # It names what cannot be its input: no other task could mend that.
    return [_failed(rules, task, outcome, draw, now)]


def _lease_of(task: Task, outcome: Any) -> dict[str, Any]:
    return {
        "job_id": task.job.id,
        "task_id": task.id,
        "attempt": task.attempt,
        "token": task.token,
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
        "log": outcome.log,
    }


def _cancelled(task: Task, outcome: Any, reason: str) -> e.Event:
    return e.TaskCancelled(reason=reason, **_lease_of(task, outcome))


def _failed(rules: Rules, task: Task, outcome: Any, draw: float, now: float) -> e.Event:
    if task.stop == "cancel":
        return _cancelled(task, outcome, "cancelled")
    cause = outcome.cause or "error"
    failures = task.failures + 1
    spec = _spec_of(task)
    if failures >= spec.max_attempts:
        return e.TaskDied(error=outcome.error, cause=cause, **_lease_of(task, outcome))
    wait_s = _bounded_s(spec.retry.wait_s(failures, draw, outcome.delay_s))
    return e.AttemptFailed(
        error=outcome.error, cause=cause, retry_at=now + wait_s, **_lease_of(task, outcome)
    )


def _spec_of(task: Task) -> JobSpec:
    """Return the job's spec, with what its step says otherwise."""
    spec = task.job.spec
    return step_spec(spec, task.step.spec) if isinstance(task, StepTask) else spec


def _bounded_s(wait_s: float) -> float:
    """Return the wait, at most a year; what is no number is no wait."""
    return min(max(0.0, wait_s), WAIT_MAX_S) if wait_s == wait_s else 0.0


def _discarded(rules: Rules, task: Task, outcome: Any, draw: float, now: float) -> e.Event:
    if task.stop == "cancel":
        return _cancelled(task, outcome, "cancelled")
    cause = outcome.cause or "discarded"
    return e.TaskDied(error=outcome.error, cause=cause, **_lease_of(task, outcome))


def _snoozed(rules: Rules, task: Task, outcome: Any, draw: float, now: float) -> e.Event:
    if task.stop == "cancel":
        return _cancelled(task, outcome, "cancelled")
    retry_at = now + _bounded_s(outcome.delay_s or 0.0)
    return e.TaskSnoozed(retry_at=retry_at, **_lease_of(task, outcome))


def _stopped(rules: Rules, task: Task, outcome: Any, draw: float, now: float) -> e.Event:
    if task.stop == "cancel":
        return _cancelled(task, outcome, "cancelled")
    return _release(rules, task, outcome.cause or "stopped", outcome=outcome)


def _returned(rules: Rules, task: Task, outcome: Any, draw: float, now: float) -> e.Event:
    if task.stop == "cancel":
        return _cancelled(task, outcome, "cancelled")
    return e.LeaseReleased(
        task.job.id, task.id, task.attempt, task.token, cause="returned", started=False
    )


def _crashed(rules: Rules, task: Task, outcome: Any, draw: float, now: float) -> e.Event:
    if task.stop == "cancel":
        return _cancelled(task, outcome, "cancelled")
    if not (outcome.alone or task.suspect):
        return _release(rules, task, outcome.cause, outcome=outcome, suspect=True)
    return _recover(rules, task, outcome)


def _ok_after_cancel(rules: Rules, task: Task, outcome: Any, draw: float, now: float) -> e.Event:
    return _cancelled(task, outcome, "cancelled")  # its output is dropped


_FINISH: dict[str, Callable[[Rules, Task, Any, float, float], e.Event]] = {
    "ok": _ok_after_cancel,
    "failed": _failed,
    "discarded": _discarded,
    "snoozed": _snoozed,
    "stopped": _stopped,
    "returned": _returned,
    "crashed": _crashed,
}


def _recover(rules: Rules, task: Task, outcome: Any) -> e.Event:
    """Charge a recovery: its process died under it alone.

    What took more memory than there is goes on where there is more, uncharged.
    """
    limits = rules.queues.get(task.line.name)
    if outcome.cause == "oom" and limits is not None and limits.oom_to:
        return e.LeaseReleased(cause="oom", **_lease_of(task, outcome))
    if task.recoveries >= rules.recoveries_max:
        return e.TaskDied(
            error=outcome.error, cause=outcome.cause, charged="recovery", **_lease_of(task, outcome)
        )
    return e.AttemptCrashed(error=outcome.error, cause=outcome.cause, **_lease_of(task, outcome))


def _release(
    rules: Rules, task: Task, cause: str, *, outcome: Any, suspect: bool = False
) -> e.Event:
    """Make the task ready again, uncharged, unless that happened absurdly often."""
    if task.interruptions >= rules.interruptions_max:
        return e.TaskDied(
            error=f"interrupted {task.interruptions} times, last by: {cause}",
            cause=cause,
            charged="interruption",
            **_lease_of(task, outcome),
        )
    return e.LeaseReleased(
        cause=cause, started=True, suspect=suspect or task.suspect, **_lease_of(task, outcome)
    )


class _Lost(msgspec.Struct, frozen=True):
    """The outcome of an attempt whose worker cannot tell any more."""

    cause: str
    error: str
    started_at: float
    ended_at: float
    log: str = ""


def _lose_worker(state: State, rules: Rules, command: c.LoseWorker, now: float) -> list[e.Event]:
    """Requeue all a dead worker held; charge only whom its death can be blamed on.

    The one task it held, or the one suspect among them. If it held several and none was suspect,
    nobody is charged and all become suspects: run apart, the next death names the culprit. A task
    that the worker never said to hold did not arrive there, and is never charged.
    """
    tasks = [state.leases[token] for token in state.held.get(command.worker, ())]
    known_culprit = any(task.suspect for task in tasks)
    found: list[e.Event] = []
    onward: list[e.Event] = []
    for task in tasks:
        blamed = False
        error = f"the worker died: {command.cause}"
        lost = _Lost(command.cause, error, task.leased_at, now)
        if task.stop == "cancel":
            found.append(_cancelled(task, lost, "cancelled"))
        elif command.arrived is not None and task.token not in command.arrived:
            found.append(_release(rules, task, command.cause, outcome=lost))
        elif blamed := len(tasks) == 1 or task.suspect:
            found.append(_recover(rules, task, lost))
        else:
            suspect = not known_culprit
            found.append(_release(rules, task, command.cause, outcome=lost, suspect=suspect))
        onward += _onward(rules, task, found[-1], blamed=blamed)
    return found + onward


def _reclaim(state: State, rules: Rules, command: c.Reclaim, now: float) -> list[e.Event]:
    found: list[e.Event] = []
    onward: list[e.Event] = []
    for token in command.tokens:
        task = state.leases.get(token)
        if task is None or task.worker != command.worker:
            continue
        lost = _Lost(command.cause, "", 0.0, 0.0)
        if task.stop == "cancel":
            found.append(_cancelled(task, lost, "cancelled"))
        else:
            found.append(_release(rules, task, command.cause, outcome=lost))
        onward += _onward(rules, task, found[-1], blamed=False)
    return found + onward


def _promote(state: State, rules: Rules, command: c.Promote, now: float) -> list[e.Event]:
    """Stop what can go on from its checkpoint; another runs on, and counts elsewhere."""
    task = state.leases.get(command.token)
    limits = rules.queues.get(task.line.name) if task is not None else None
    if task is None or task.stop or limits is None or not limits.then:
        return []
    if _spec_of(task).resumable:
        return [e.StopRequested(task.job.id, task.id, task.attempt, task.token, "promote")]
    return [e.TaskMoved(task.job.id, task.id, limits.then, "long", now - task.leased_at)]


def _cancel(state: State, rules: Rules, command: c.Cancel, now: float) -> list[e.Event]:
    job = _job(state, command.job_id)
    status = job_status(job)
    if status == "cancelled":
        return []
    if status in ("completed", "failed"):
        raise Conflict(f"job {job.id} is {status}; only unfinished jobs can be cancelled")
    if job.plan is not None:
        return [] if job.plan.stop in OVER else [e.PlanStopped(job.id, "cancelled")]
    found: list[e.Event] = []
    for task in job.tasks:
        if task.state is S.LEASED:
            if task.stop != "cancel":
                found.append(e.StopRequested(job.id, task.id, task.attempt, task.token, "cancel"))
        elif task.state not in TERMINAL:
            found.append(e.TaskCancelled(job.id, task.id, "cancelled"))
    return found


def _revive(state: State, rules: Rules, command: c.Revive, now: float) -> list[e.Event]:
    job = _job(state, command.job_id)
    dead = to_redrive(job.plan) if job.plan is not None else _dead(job)
    status = job_status(job)
    if not dead or status != "failed":
        raise Conflict(f"job {job.id} is {status}; only failed jobs can be retried")
    if job.purged:
        raise Conflict(f"job {job.id} was purged; submit it anew")
    if job.plan is None and decode_head(job.raw).plan is not None:
        raise Conflict(f"job {job.id} was refused and never had tasks; submit it anew")
    due_at = command.due_at if command.due_at > now else 0.0
    redriven = [e.TaskRedriven(job.id, task.id, due_at) for task in dead]
    if job.plan is not None:
        if command.raw:
            raise Conflict(f"job {job.id} has several tasks; its params can't be changed")
        return [e.JobRevived(job.id), *redriven]
    edited = [e.JobEdited(job.id, msgspec.Raw(command.raw))] if command.raw else []
    if edited:
        head = decode_head(command.raw)
        if (head.type, head.tenant, head.priority, head.plan) != (
            job.type,
            job.tenant,
            job.priority,
            None,
        ):
            raise Conflict(f"job {job.id} keeps its type, tenant and priority; change its params")
    return [*edited, *redriven]


def _purge(state: State, rules: Rules, command: c.Purge, now: float) -> list[e.Event]:
    job = _job(state, command.job_id)
    status = job_status(job)
    if status != "failed" or not job.finished_at:
        raise Conflict(f"job {job.id} is {status}; only failed jobs can be purged")
    return [] if job.purged else [e.JobPurged(job.id)]


def _dead(job: Job) -> list[Task]:
    return [task for task in job.tasks if task.state is S.DEAD]


def _advance(state: State, rules: Rules, command: c.Advance, now: float) -> list[e.Event]:
    # Notifications first: what is told of must not be mixed with what comes next.
    found: list[e.Event] = [
        _submitted(state, rules, job_id, decode_head(raw), raw)
        for teller, events in state.telling.items()
        for job_id, raw in notifications(state.jobs[teller], events, rules)
    ]
    planned = (job for job in state.moving.values() if job.plan is not None)
    found += [event for job in planned for event in next_events(job)]
    # Plans first: what they withdraw cannot come into line beside.
    return found or list(openings(state, now, TICK_MAX, now - rules.ageing_s))


def _join(state: State, rules: Rules, command: c.Join, now: float) -> list[e.Event]:
    facts = WorkerFacts(command.pool, command.node, command.code)
    if state.workers.get(command.worker) == facts:
        return []
    return [e.WorkerJoined(command.worker, command.pool, command.node, command.code)]


def _save_record(state: State, rules: Rules, command: c.SaveRecord, now: float) -> list[e.Event]:
    record = command.record
    task = state.leases.get(record.token)
    if task is None or task.stop == "cancel":
        raise LeaseLost(record.token)
    lease = (task.job.id, task.id, task.attempt, task.token)
    if record.op == "checkpoint":
        return [e.CheckpointSaved(*lease, record.value)]
    if record.op == "once_done":
        return [e.OnceDone(*lease, record.key, record.value)]
    if task.once is not None and record.key in task.once:
        return []  # an earlier attempt claimed it; the reply says what became of that
    return [e.OnceClaimed(*lease, record.key)]


def _tick(state: State, rules: Rules, command: c.Tick, now: float) -> list[e.Event]:
    expired = dict.fromkeys(state.expiries.due(now, TICK_MAX, _IDLE))
    due = state.timers.due(now, TICK_MAX, _TIMED)
    return [
        *(e.TaskCancelled(t.job.id, t.id, "expired") for t in expired),
        *(e.TaskReady(t.job.id, t.id) for t in due if t not in expired),
        *(
            opening
            for opening in openings(state, now, TICK_MAX, now - rules.ageing_s)
            if _find(state, opening) not in expired
        ),
    ]


_TIMED = frozenset({S.WAITING, S.BACKING_OFF})
_IDLE = _TIMED | {S.READY, S.PARKED}


def _plan_compaction(
    state: State, rules: Rules, command: c.PlanCompaction, now: float
) -> list[e.Event]:
    if state.planned or command.last <= state.compacted:
        return []
    return [e.CompactionPlanned(state.compacted + 1, command.last)]


def _end_compaction(
    state: State, rules: Rules, command: c.EndCompaction, now: float
) -> list[e.Event]:
    if command.last != state.planned:
        return []  # done and journalled before: by this manager, or the one that died
    return [e.Compacted(command.last, command.seq)]


def _evict(state: State, rules: Rules, command: c.Evict, now: float) -> list[e.Event]:
    covered = takewhile(lambda job: job.finished_seq <= state.compacted_seq, state.finished)
    last = deque(islice(covered, command.limit), maxlen=1)
    return [e.Evicted(last[0].finished_seq)] if last else []


def _pause(state: State, rules: Rules, command: c.PauseQueue, now: float) -> list[e.Event]:
    return [] if _known_line(state, rules, command.queue).paused else [e.QueuePaused(command.queue)]


def _resume(state: State, rules: Rules, command: c.ResumeQueue, now: float) -> list[e.Event]:
    line = _known_line(state, rules, command.queue)
    return [e.QueueResumed(command.queue)] if line.paused else []


def _known_line(state: State, rules: Rules, name: str) -> Line:
    if name not in rules.queues:
        raise NotFound("queue", name)
    return state.lines.get(name) or Line(name, state.shares)


def _configure(state: State, rules: Rules, command: c.Configure, now: float) -> list[e.Event]:
    if command.revision is not None and command.revision != state.config_seq:
        raise Conflict(
            f"the config is at revision {state.config_seq}, not {command.revision}; read it again"
        )
    if (command.config, command.run) == (state.config, state.config_run):
        return []
    config = msgspec.Raw(command.config)
    return [e.ConfigSet(config, command.run, command.weights, command.limits)]


def _put_schedule(state: State, rules: Rules, command: c.PutSchedule, now: float) -> list[e.Event]:
    spec = command.spec
    known = state.schedules.get((spec.tenant, spec.name))
    if known is not None and known.spec == spec:
        return []
    if known is None and len(state.schedules) >= SCHEDULES_MAX:
        raise Overloaded("system", f"there are {SCHEDULES_MAX:,} schedules", 60.0)
    try:
        _submitted(state, rules, "", decode_head(spec.job), bytes(spec.job))
    except InvalidInput as error:
        raise InvalidInput(f"job.{error.field}", error.reason) from None
    return [e.ScheduleSet(spec, command.next_at)]


def _delete_schedule(
    state: State, rules: Rules, command: c.DeleteSchedule, now: float
) -> list[e.Event]:
    if (command.tenant, command.name) not in state.schedules:
        raise NotFound("schedule", command.name)
    return [e.ScheduleDeleted(command.tenant, command.name)]


def _fire(state: State, rules: Rules, command: c.FireSchedule, now: float) -> list[e.Event]:
    name = command.tenant, command.name
    schedule = state.schedules.get(name)
    if schedule is None or schedule.generation != command.generation:
        return []
    found: list[e.Event] = []
    spec = schedule.spec
    last = state.jobs.get(schedule.last_job)
    busy = spec.overlap == "skip" and last is not None and not last.finished_at
    missed = command.missed
    for tick, job_id in command.ticks:
        if busy:
            found.append(e.ScheduleFired(*name, tick, command.next_at, skipped=1 + missed))
        else:
            job = msgspec.structs.replace(
                decode_spec(spec.job), schedule=spec.name, scheduled_for=tick
            )
            raw = encode_spec(job)
            found.append(e.ScheduleFired(*name, tick, command.next_at, job_id, missed))
            found.append(_submitted(state, rules, job_id, decode_head(raw), raw))
            busy = spec.overlap == "skip"
        missed = 0
    if not command.ticks:
        found.append(e.ScheduleFired(*name, 0.0, command.next_at, skipped=missed))
    return found


def _job(state: State, job_id: str) -> Job:
    job = state.jobs.get(job_id)
    if job is None:
        raise NotFound("job", job_id)
    return job


_DECIDE: dict[type, Callable[[State, Rules, Any, float], list[e.Event]]] = {
    c.Submit: _submit,
    c.Advance: _advance,
    c.Join: _join,
    c.Alias: _alias,
    c.Refuse: _refuse,
    c.Lease: _lease,
    c.Finish: _finish,
    c.LoseWorker: _lose_worker,
    c.Reclaim: _reclaim,
    c.Cancel: _cancel,
    c.Revive: _revive,
    c.SaveRecord: _save_record,
    c.Tick: _tick,
    c.PlanCompaction: _plan_compaction,
    c.EndCompaction: _end_compaction,
    c.Evict: _evict,
    c.PauseQueue: _pause,
    c.ResumeQueue: _resume,
    c.Promote: _promote,
    c.Purge: _purge,
    c.Configure: _configure,
    c.PutSchedule: _put_schedule,
    c.DeleteSchedule: _delete_schedule,
    c.FireSchedule: _fire,
}


# --- evolve -----------------------------------------------------------------------------------


def _find(state: State, event: Any) -> Task:
    job = state.jobs[event.job_id]
    if job.plan is not None:
        return job.plan.tasks[event.task_id]
    (task,) = job.tasks
    return task


def _ended(state: State, task: Task, at: float) -> None:
    """Let the job follow a task that ended: with it if it is the only one, else by its plan."""
    job = task.job
    if job.plan is not None:
        look(state, job)
        return
    job.finished_at = at
    job.finished_seq = state.seq + 1  # the event that is being applied
    job.revision += 1
    state.count(job, -1)
    if task.state is not _DEAD:
        state.finished.append(job)  # a dead letter stays: it may be redriven
    if state.tellers:
        reached(state, job, job_status(job), at)


def _moved_on(state: State, task: Task) -> None:
    """Let a plan follow a task that moved but did not end."""
    if task.job.plan is not None:
        look(state, task.job)


def _on_manager_started(state: State, event: e.ManagerStarted, at: float) -> None:
    state.epoch = event.epoch
    state.claims.append(event.epoch)
    state.owner = event.cluster_id


def _on_manager_stopped(state: State, event: e.ManagerStopped, at: float) -> None:
    state.owner = ""


def _on_batch_accepted(state: State, event: e.BatchAccepted, at: float) -> None:
    marks = state.gateways.get(event.gateway)
    if marks is None:
        marks = state.gateways[event.gateway] = GatewayMarks()
    marks.at = at
    if event.intake:
        state.folded[event.intake] = at
        marks.add_folded(event.number)
    else:
        marks.add(event.number, bytes(event.refused))


def _new_job(state: State, job_id: str, spec: SpecHead, raw: bytes, at: float) -> Job:
    state.submitted = number = state.submitted + 1
    # Interned: a million jobs have a handful of types, tenants and queues.
    kind, tenant, queue = intern(spec.type), intern(spec.tenant), intern(spec.queue)
    job = Job(job_id, raw, kind, tenant, queue, spec.priority, at, number, code=intern(spec.code))
    if spec.limits:
        job.limits = tuple(map(intern, spec.limits))
    state.jobs[job_id] = job
    state.order.add(job)
    state.count(job, 1)
    return job


def _on_aliased(state: State, event: e.JobAliased, at: float) -> None:
    state.aliases[event.job_id] = event.first
    while len(state.aliases) > ALIASES_MAX:
        del state.aliases[next(iter(state.aliases))]


def _on_refused(state: State, event: e.JobRefused, at: float) -> None:
    raw = bytes(event.spec)
    job = _new_job(state, event.job_id, decode_head(raw), raw, at)
    past = PastAttempt(0, "refused", "", 0.0, 0.0, at, event.error, event.cause)
    line = state.line(job.queue)
    task = Task(job, line, FIRST_TASK, S.DEAD, past=[past], ended_at=at)
    job.tasks = (task,)
    line.counts[S.DEAD] += 1
    state.dead[job.id, task.id] = task
    listen(state, job, decode_head(raw).notify)
    _ended(state, task, at)


def _on_submitted(state: State, event: e.JobSubmitted, at: float) -> None:
    spec = event.spec
    job = _new_job(state, event.job_id, spec, event.raw, at)
    if spec.key is not None:
        state.keys.add(spec.key, job.id, spec.fingerprint, spec.key_expires_at, at)
    if spec.notify:
        listen(state, job, spec.notify)
    if spec.tells_of is not None and told(state, spec.tells_of):
        teller = state.jobs[spec.tells_of]
        if teller.plan is None:
            del state.moving[teller.id]
        else:
            look(state, teller)
    if spec.plan is not None:
        adopt_plan(state, job, PlanState(spec.plan))
        look(state, job)
        return
    line = state.line(spec.queue)
    if spec.run_at is not None and spec.run_at > at:
        task = Task(job, line, FIRST_TASK, S.WAITING, due_at=spec.run_at)
        state.timers.add(spec.run_at, task)
        line.counts[_WAITING] += 1
    else:
        task = Task(job, line, FIRST_TASK, _READY, ready_at=at)
        line.counts[_READY] += 1
        line_up(state, task, at)
    job.tasks = (task,)
    if spec.expires_at is not None:
        task.expires_at = spec.expires_at
        state.expiries.add(spec.expires_at, task)


def _on_ready(state: State, event: e.TaskReady, at: float) -> None:
    task = _find(state, event)
    make_ready(state, task, Move.NEEDS_MET if task.state is S.WAITING else Move.BACKOFF_ELAPSED, at)
    task.due_at = 0.0
    if isinstance(task, StepTask):
        task.needs = []
    _moved_on(state, task)


def _on_leased(state: State, event: e.TaskLeased, at: float) -> None:
    task = _find(state, event)
    if task.state is S.PARKED:
        recall(state, task, at)
    task.move(Move.LEASED)
    task.line.remove(task, served=True)
    if state.limits and task.limits:
        pass_gates(state, task, event.token, at)
    plan = task.job.plan
    if plan is not None:
        plan.attempts += 1
        plan.started_at = plan.started_at or at
    token = event.token
    task.token = token
    task.attempt = event.attempt
    task.worker = event.worker
    task.leased_at = at
    state.leases[token] = task
    held = state.held.get(event.worker)
    if held is None:
        held = state.held[event.worker] = {}
    held[token] = None
    state.next_token = token + 1
    if state.tellers:
        reached(state, task.job, STARTED, at)


def _on_succeeded(state: State, event: e.TaskSucceeded, at: float) -> None:
    task = end_lease(state, event, at)
    task.move(Move.SUCCEEDED)
    task.output = bytes(event.output)
    task.suspect = False
    if isinstance(task, StepTask):
        on_task_succeeded(state, task)
    else:
        state.learn(task.job.type, event.ended_at - event.started_at)
        _ended(state, task, at)


def _on_failed(state: State, event: e.AttemptFailed, at: float) -> None:
    task = end_lease(state, event, at)
    keep_attempt(task, "failed", event.error, event.cause)
    task.move(Move.FAILED)
    task.failures += 1
    task.suspect = False
    task.due_at = event.retry_at
    state.timers.add(event.retry_at, task)
    _moved_on(state, task)


def _on_crashed(state: State, event: e.AttemptCrashed, at: float) -> None:
    task = end_lease(state, event, at)
    keep_attempt(task, "crashed", event.error, event.cause)
    task.recoveries += 1
    if task.job.plan is not None:
        task.job.plan.recoveries += 1
    make_ready(state, task, Move.CRASHED, at)
    _moved_on(state, task)


def _on_released(state: State, event: e.LeaseReleased, at: float) -> None:
    task = end_lease(state, event, at)
    if event.started:
        keep_attempt(task, "interrupted", cause=event.cause)
        task.interruptions += 1
        task.suspect = event.suspect
        make_ready(state, task, Move.RELEASED, at)
    else:
        task.attempt -= 1  # it never ran: the number, and the place at the head, are free again
        if task.job.plan is not None:
            task.job.plan.attempts -= 1
        task.move(Move.RELEASED)
        give_back(state, task, event.token, at)
    _moved_on(state, task)


def _on_snoozed(state: State, event: e.TaskSnoozed, at: float) -> None:
    task = end_lease(state, event, at)
    keep_attempt(task, "snoozed")
    task.move(Move.SNOOZED)
    task.suspect = False
    task.due_at = event.retry_at
    state.timers.add(event.retry_at, task)
    _moved_on(state, task)


def _on_died(state: State, event: e.TaskDied, at: float) -> None:
    task = end_lease(state, event, at)
    outcome = {"recovery": "crashed", "interruption": "interrupted"}.get(event.charged, "failed")
    keep_attempt(task, outcome, event.error, event.cause)
    task.move(Move.EXHAUSTED)
    if event.charged == "attempt":
        task.failures += 1
    task.suspect = False
    state.dead[task.job.id, task.id] = task
    _ended(state, task, at)


def _on_cancelled(state: State, event: e.TaskCancelled, at: float) -> None:
    if event.token is not None:
        task = end_lease(state, event, at)
        keep_attempt(task, "stopped", cause=event.reason)
    else:
        task = _find(state, event)
        leave_line(state, task, at)
    task.move(Move.CANCELLED)
    task.suspect = False
    job = task.job
    job.reason = event.reason
    if job.plan is not None and not job.plan.stop:
        job.plan.stop = event.reason  # it was never begun, so nothing of it will be
    _ended(state, task, at)


def _on_stop_requested(state: State, event: e.StopRequested, at: float) -> None:
    task = state.leases[event.token]
    task.stop = event.reason
    state.stopping.setdefault(task.worker, {})[event.token] = event.reason
    if task.job.plan is not None:
        task.job.plan.asked += 1
        look(state, task.job)


def _on_redriven(state: State, event: e.TaskRedriven, at: float) -> None:
    task = state.dead.pop((event.job_id, event.task_id))
    task.failures = task.recoveries = task.interruptions = 0
    if task.expires_at <= at:
        task.expires_at = 0.0  # whoever revives it wants it to run
    else:
        state.expiries.add(task.expires_at, task)
    job = task.job
    if job.finished_at and job.plan is None:
        job.finished_at = 0.0
        state.count(job, 1)
    if event.due_at:
        task.move(Move.REDRIVEN_LATER)
        task.due_at = event.due_at
        state.timers.add(event.due_at, task)
    else:
        make_ready(state, task, Move.REDRIVEN, at)
    _moved_on(state, task)


def _on_edited(state: State, event: e.JobEdited, at: float) -> None:
    job = state.jobs[event.job_id]
    job.raw = raw = bytes(event.spec)
    spec = decode_head(raw)
    job.code, job.limits = intern(spec.code), tuple(map(intern, spec.limits))
    listen(state, job, spec.notify)


def _on_purged(state: State, event: e.JobPurged, at: float) -> None:
    job = state.jobs[event.job_id]
    for task in job.tasks:
        if task.state is _DEAD:
            del state.dead[job.id, task.id]
            task.line.counts[_DEAD] -= 1
    # As if it had failed just now: history is to have it before it leaves.
    job.finished_seq = state.seq + 1
    job.revision += 1
    job.purged = True
    forget(state, job)
    on_job_purged(job)
    state.finished.append(job)


def _on_moved(state: State, event: e.TaskMoved, at: float) -> None:
    task = _find(state, event)
    job, old, new = task.job, task.line, state.line(event.queue)
    was = task.state
    leave_line(state, task, at)
    if was is S.PARKED:
        task.move(Move.UNPARKED)
    is_chunk = isinstance(task, StepTask) and task.role is Role.CHUNK
    for line, sign in ((old, -1), (new, 1)):
        line.counts[task.state] += sign
        line.chunks += sign * is_chunk
        line.bytes += sign * (len(job.raw) if job.plan is None else 0)
    task.line = new
    if job.plan is None:
        job.queue = intern(event.queue)
    if task.state is _READY:
        line_up(state, task, at)
    if event.ran_s and job.plan is None:
        state.learn(job.type, event.ran_s)


def _on_unparked(state: State, event: e.TaskUnparked, at: float) -> None:
    on_unparked(state, _find(state, event), at)


def _on_config(state: State, event: e.ConfigSet, at: float) -> None:
    state.config, state.config_run = bytes(event.config), event.run
    state.config_seq = state.seq + 1
    state.shares.set(event.weights)
    put_limits(state, event.limits, at)


def _on_schedule_set(state: State, event: e.ScheduleSet, at: float) -> None:
    spec = event.spec
    new = Schedule(spec, state.seq + 1, event.next_at)
    old = state.schedules.get((spec.tenant, spec.name))
    if old is not None:
        new.last_at, new.last_job = old.last_at, old.last_job
        new.fired, new.skipped = old.fired, old.skipped
    state.schedules[spec.tenant, spec.name] = new


def _on_schedule_deleted(state: State, event: e.ScheduleDeleted, at: float) -> None:
    del state.schedules[event.tenant, event.name]


def _on_schedule_fired(state: State, event: e.ScheduleFired, at: float) -> None:
    schedule = state.schedules[event.tenant, event.name]
    schedule.next_at = event.next_at
    schedule.skipped += event.skipped
    if event.job:
        schedule.fired += 1
        schedule.last_at, schedule.last_job = event.tick, event.job


def _on_checkpoint(state: State, event: e.CheckpointSaved, at: float) -> None:
    task = state.leases[event.token]
    task.checkpoint = bytes(event.value)
    task.interruptions = 0  # it moves forward: being interrupted often is not the same as stuck


def _on_once_claimed(state: State, event: e.OnceClaimed, at: float) -> None:
    _keep_effect(state, event, None)


def _on_once_done(state: State, event: e.OnceDone, at: float) -> None:
    _keep_effect(state, event, bytes(event.value))


def _keep_effect(state: State, event: Any, value: bytes | None) -> None:
    task = state.leases[event.token]
    if task.once is None:
        task.once = {}
    task.once[event.key] = Effect(event.token, value)


def _on_compaction_planned(state: State, event: e.CompactionPlanned, at: float) -> None:
    state.planned = event.last


def _on_compacted(state: State, event: e.Compacted, at: float) -> None:
    state.planned = 0
    state.compacted = event.last
    state.compacted_seq = event.seq
    forgotten = at - GATEWAY_FORGOTTEN_S
    for name in [name for name, marks in state.gateways.items() if marks.at < forgotten]:
        del state.gateways[name]
    for name in [name for name, folded_at in state.folded.items() if folded_at < forgotten]:
        del state.folded[name]
    for gate in list(state.gates.values()):
        forget_idle(state, gate, at)
    on_compacted(state.plans.values(), event.seq)


def _on_evicted(state: State, event: e.Evicted, at: float) -> None:
    finished = state.finished
    while finished and finished[0].finished_seq <= event.through:
        job = finished.popleft()
        del state.jobs[job.id]
        state.order.remove(job)
        for task in job.tasks:
            if not (job.purged and task.state is _DEAD):  # it was counted out when it was purged
                task.line.counts[task.state] -= 1
        # They name their job: without this only the garbage collector frees it.
        job.tasks = ()
        if job.plan is not None:
            del state.plans[job.id]
            job.plan.tasks.clear()


def _on_worker_joined(state: State, event: e.WorkerJoined, at: float) -> None:
    state.workers.pop(event.worker, None)
    state.workers[event.worker] = WorkerFacts(event.pool, event.node, event.code)
    while len(state.workers) > WORKERS_KNOWN_MAX:
        del state.workers[next(iter(state.workers))]


def _on_paused(state: State, event: e.QueuePaused, at: float) -> None:
    state.line(event.queue).paused = True


def _on_resumed(state: State, event: e.QueueResumed, at: float) -> None:
    state.line(event.queue).paused = False


_EVOLVE: dict[type, Callable[[State, Any, float], None]] = {
    e.ManagerStarted: _on_manager_started,
    e.ManagerStopped: _on_manager_stopped,
    e.BatchAccepted: _on_batch_accepted,
    e.JobSubmitted: _on_submitted,
    e.JobAliased: _on_aliased,
    e.JobRefused: _on_refused,
    e.TaskReady: _on_ready,
    e.TaskLeased: _on_leased,
    e.TaskSucceeded: _on_succeeded,
    e.AttemptFailed: _on_failed,
    e.AttemptCrashed: _on_crashed,
    e.LeaseReleased: _on_released,
    e.TaskSnoozed: _on_snoozed,
    e.TaskDied: _on_died,
    e.TaskCancelled: _on_cancelled,
    e.StopRequested: _on_stop_requested,
    e.TaskRedriven: _on_redriven,
    e.CheckpointSaved: _on_checkpoint,
    e.OnceClaimed: _on_once_claimed,
    e.OnceDone: _on_once_done,
    e.CompactionPlanned: _on_compaction_planned,
    e.Compacted: _on_compacted,
    e.Evicted: _on_evicted,
    e.QueuePaused: _on_paused,
    e.QueueResumed: _on_resumed,
    e.TasksAdded: on_tasks_added,
    e.TasksWithdrawn: on_tasks_withdrawn,
    e.StepEnded: on_step_ended,
    e.PlanStopped: on_plan_stopped,
    e.JobEnded: on_job_ended,
    e.JobRevived: on_job_revived,
    e.InputsLost: on_inputs_lost,
    e.OutputLost: on_output_lost,
    e.TaskMoved: _on_moved,
    e.TaskUnparked: _on_unparked,
    e.JobEdited: _on_edited,
    e.JobPurged: _on_purged,
    e.ConfigSet: _on_config,
    e.ScheduleSet: _on_schedule_set,
    e.ScheduleDeleted: _on_schedule_deleted,
    e.ScheduleFired: _on_schedule_fired,
    e.WorkerJoined: _on_worker_joined,
}
