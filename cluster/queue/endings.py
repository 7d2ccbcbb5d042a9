"""How leases end: what a worker says of attempts, or what is to be believed when it cannot.

Rule 1: an end counts only with the current token. Rule 2: whoever is charged is charged for what it
did: an attempt for its error, a recovery for a death that is its own, nothing for what befell it.
Rule 3: what took too long, or more memory than there is, goes on in the queue that is for it.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from cluster.protocol import Submission
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.admission import submitted
from cluster.queue.model import State, Task
from cluster.queue.plan import PlanState, Role, StepTask
from cluster.queue.plan_next import decode_lost, lost_events, split_error
from cluster.queue.rules import Rules
from cluster.queue.spec import JobSpec, decode_head, decode_spec, step_spec
from jobs.errors import DraymanError, KeyReused

__all__ = ["WAIT_MAX_S", "finish", "lose_worker", "reclaim", "spec_of"]

#: Longest wait before a retry, or a snooze.
WAIT_MAX_S = 366 * 86_400.0

_SPLIT = Role.SPLIT


def finish(state: State, rules: Rules, command: c.Finish, now: float) -> list[e.Event]:
    """Settle attempts as their worker says."""
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
        taken = submitted(state, rules, job_id, decode_head(raw), raw)
        head = taken.spec
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
        found.append(taken)
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
    spec = spec_of(task)
    if failures >= spec.max_attempts:
        return e.TaskDied(error=outcome.error, cause=cause, **_lease_of(task, outcome))
    wait_s = _bounded_s(spec.retry.wait_s(failures, draw, outcome.delay_s))
    return e.AttemptFailed(
        error=outcome.error, cause=cause, retry_at=now + wait_s, **_lease_of(task, outcome)
    )


def spec_of(task: Task) -> JobSpec:
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
    return e.TaskSnoozed(retry_at=retry_at, error=outcome.error, **_lease_of(task, outcome))


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

    What took more memory than there is goes on where there is more, uncharged; but not for ever,
    where lanes lead back from there.
    """
    limits = rules.queues.get(task.line.name)
    free = task.interruptions < rules.interruptions_max
    if outcome.cause == "oom" and limits is not None and limits.oom_to and free:
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


def lose_worker(state: State, rules: Rules, command: c.LoseWorker, now: float) -> list[e.Event]:
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


def reclaim(state: State, rules: Rules, command: c.Reclaim, now: float) -> list[e.Event]:
    """Take back leases that nobody is to be charged for."""
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
