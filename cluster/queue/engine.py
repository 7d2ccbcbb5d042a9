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
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.admission import check_room, submitted
from cluster.queue.dispatch import pick
from cluster.queue.endings import finish, lose_worker, reclaim, spec_of
from cluster.queue.gates import (
    forget_idle,
    give_back,
    line_up,
    on_unparked,
    openings,
    pass_gates,
    recall,
)
from cluster.queue.model import (
    ALIASES_MAX,
    GATEWAY_FORGOTTEN_S,
    WORKERS_KNOWN_MAX,
    Effect,
    GatewayMarks,
    Job,
    PastAttempt,
    State,
    Task,
    WorkerFacts,
)
from cluster.queue.moves import end_lease, keep_attempt, leave_line, make_ready
from cluster.queue.plan import OVER, PlanState, Role, StepTask, adopt_plan, plan_status
from cluster.queue.plan_changes import (
    look,
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
)
from cluster.queue.plan_next import next_events, to_redrive
from cluster.queue.rules import Rules
from cluster.queue.spec import SpecHead, decode_head
from cluster.queue.standing import (
    configure,
    delete_schedule,
    fire,
    on_config,
    on_paused,
    on_resumed,
    on_schedule_deleted,
    on_schedule_fired,
    on_schedule_set,
    pause,
    put_schedule,
    resume,
)
from cluster.queue.state import TERMINAL, Move, TaskState
from cluster.queue.telling import STARTED, forget, listen, reached, told
from jobs.errors import (
    Conflict,
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
    taken = submitted(state, rules, command.job_id, spec, command.raw)
    if not command.admitted:
        spec, size = taken.spec, len(taken.raw)
        check_room(state, rules, spec.tenant, spec.queue, size)
    return [taken]


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
                first=command.first,
                aged_before=now - rules.ageing_s,
            )
        )
    ]


def _promote(state: State, rules: Rules, command: c.Promote, now: float) -> list[e.Event]:
    """Stop what can go on from its checkpoint; another runs on, and counts elsewhere."""
    task = state.leases.get(command.token)
    limits = rules.queues.get(task.line.name) if task is not None else None
    if task is None or task.stop or limits is None or not limits.then:
        return []
    if spec_of(task).resumable:
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
        submitted(state, rules, job_id, decode_head(raw), raw)
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
    c.Finish: finish,
    c.LoseWorker: lose_worker,
    c.Reclaim: reclaim,
    c.Cancel: _cancel,
    c.Revive: _revive,
    c.SaveRecord: _save_record,
    c.Tick: _tick,
    c.PlanCompaction: _plan_compaction,
    c.EndCompaction: _end_compaction,
    c.Evict: _evict,
    c.PauseQueue: pause,
    c.ResumeQueue: resume,
    c.Promote: _promote,
    c.Purge: _purge,
    c.Configure: configure,
    c.PutSchedule: put_schedule,
    c.DeleteSchedule: delete_schedule,
    c.FireSchedule: fire,
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
    state.count(job, -1, task.line)
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
    state.count(job, 1, line)
    task = Task(job, line, FIRST_TASK, S.DEAD, past=[past], ended_at=at)
    job.tasks = (task,)
    line.counts[S.DEAD] += 1
    state.dead[job.id, task.id] = task
    listen(state, job, decode_head(raw).notify)
    _ended(state, task, at)


def _on_submitted(state: State, event: e.JobSubmitted, at: float) -> None:
    spec = event.spec
    job = _new_job(state, event.job_id, spec, event.raw, at)
    line = state.line(job.queue)
    state.count(job, 1, line)
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
    last = task.past[-1] if task.past else None
    if event.error and last is not None and (last.outcome, last.error) == ("snoozed", event.error):
        assert task.past is not None
        task.past.pop()  # who waits for days for one thing is told of once
    keep_attempt(task, "snoozed", event.error, "snoozed" if event.error else "")
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
        state.count(job, 1, task.line)
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
    task.ticket = 0  # it was one of the other line
    if job.plan is None:
        job.queue = intern(event.queue)
    if task.state is _READY:
        line_up(state, task, at)
    if event.ran_s and job.plan is None:
        state.learn(job.type, event.ran_s)


def _on_unparked(state: State, event: e.TaskUnparked, at: float) -> None:
    on_unparked(state, _find(state, event), at)


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
    e.QueuePaused: on_paused,
    e.QueueResumed: on_resumed,
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
    e.ConfigSet: on_config,
    e.ScheduleSet: on_schedule_set,
    e.ScheduleDeleted: on_schedule_deleted,
    e.ScheduleFired: on_schedule_fired,
    e.WorkerJoined: _on_worker_joined,
}
