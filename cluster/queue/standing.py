"""What stands beside the jobs: the config, schedules, and which queues are paused.

Rule: a schedule's tick and the job it submits are events of one command, so both are durable or
neither is.
"""

import msgspec

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.admission import submitted
from cluster.queue.gates import put_limits
from cluster.queue.model import Line, State, Usage
from cluster.queue.rules import Rules
from cluster.queue.schedule import Schedule, ScheduleSpec
from cluster.queue.spec import decode_head, decode_spec, encode_spec
from jobs.errors import Conflict, InvalidInput, NotFound, Overloaded

__all__ = [
    "configure",
    "delete_schedule",
    "fire",
    "on_config",
    "on_paused",
    "on_resumed",
    "on_schedule_deleted",
    "on_schedule_fired",
    "on_schedule_set",
    "pause",
    "put_schedule",
    "resume",
]

#: Schedules of all tenants together, and what they take; of both a tenant may hold up to `GREED`
#: times what is left over, as of what `room.py` shares.
SCHEDULES_MAX, SCHEDULES_BYTES_MAX = 100_000, 256 << 20
GREED = 4


# --- decide -----------------------------------------------------------------------------------


def pause(state: State, rules: Rules, command: c.PauseQueue, now: float) -> list[e.Event]:
    """Let nothing of a queue be leased."""
    return [] if _known_line(state, rules, command.queue).paused else [e.QueuePaused(command.queue)]


def resume(state: State, rules: Rules, command: c.ResumeQueue, now: float) -> list[e.Event]:
    """Let a queue be leased from again."""
    line = _known_line(state, rules, command.queue)
    return [e.QueueResumed(command.queue)] if line.paused else []


def _known_line(state: State, rules: Rules, name: str) -> Line:
    if name not in rules.queues:
        raise NotFound("queue", name)
    return state.lines.get(name) or Line(name, state.shares)


def configure(state: State, rules: Rules, command: c.Configure, now: float) -> list[e.Event]:
    """Let a config hold. Raises Conflict where another came first."""
    if command.revision is not None and command.revision != state.config_seq:
        raise Conflict(
            f"the config is at revision {state.config_seq}, not {command.revision}; read it again"
        )
    if (command.config, command.run) == (state.config, state.config_run):
        return []
    config = msgspec.Raw(command.config)
    return [e.ConfigSet(config, command.run, command.weights, command.limits)]


def put_schedule(state: State, rules: Rules, command: c.PutSchedule, now: float) -> list[e.Event]:
    """Let a schedule hold. Raises InvalidInput, or Overloaded where there are too many."""
    spec = command.spec
    known = state.schedules.get((spec.tenant, spec.name))
    if known is not None and known.spec == spec:
        return []
    _check_share(state, spec, known)
    try:
        submitted(state, rules, "", decode_head(spec.job), bytes(spec.job))
    except InvalidInput as error:
        raise InvalidInput(f"job.{error.field}", error.reason) from None
    return [e.ScheduleSet(spec, command.next_at)]


def _check_share(state: State, spec: ScheduleSpec, known: Schedule | None) -> None:
    """Raise Overloaded where there is no room for a schedule, or its tenant has its share."""
    total, own = state.all_ahead, state.planned_ahead.get(spec.tenant) or Usage()
    more = spec.size - (known.spec.size if known is not None else 0)
    for what, most, taken, mine, amount in (
        ("schedules", SCHEDULES_MAX, total.jobs, own.jobs, int(known is None)),
        ("bytes of schedules", SCHEDULES_BYTES_MAX, total.bytes, own.bytes, more),
    ):
        left = most - taken
        if amount > max(0, left):
            raise Overloaded("system", f"{most:,} {what} are all there is room for", 60.0)
        if amount > 0 and mine + amount > GREED * left:
            told = f"tenant {spec.tenant!r} has its share of {most:,} {what}"
            raise Overloaded("tenant", told, 60.0, spec.tenant)


def delete_schedule(
    state: State, rules: Rules, command: c.DeleteSchedule, now: float
) -> list[e.Event]:
    """Forget a schedule. Raises NotFound."""
    if (command.tenant, command.name) not in state.schedules:
        raise NotFound("schedule", command.name)
    return [e.ScheduleDeleted(command.tenant, command.name)]


def fire(state: State, rules: Rules, command: c.FireSchedule, now: float) -> list[e.Event]:
    """Let ticks of a schedule submit their jobs."""
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
        job = None if busy else _job_of(state, rules, command, spec, tick, job_id)
        if job is None:
            found.append(e.ScheduleFired(*name, tick, command.next_at, skipped=1 + missed))
        else:
            found += [e.ScheduleFired(*name, tick, command.next_at, job_id, missed), job]
            busy = spec.overlap == "skip"
        missed = 0
    if not command.ticks:
        found.append(e.ScheduleFired(*name, 0.0, command.next_at, skipped=missed))
    return found


def _job_of(
    state: State,
    rules: Rules,
    command: c.FireSchedule,
    spec: ScheduleSpec,
    tick: float,
    job_id: str,
) -> e.JobSubmitted | None:
    """Return what a tick submits; None where its queue was taken away."""
    told = decode_spec(spec.job)
    trace = command.traces.get(job_id, told.traceparent)
    job = msgspec.structs.replace(told, schedule=spec.name, scheduled_for=tick, traceparent=trace)
    raw = encode_spec(job)
    try:
        return submitted(state, rules, job_id, decode_head(raw), raw)
    except InvalidInput:
        return None


# --- evolve -----------------------------------------------------------------------------------


def on_config(state: State, event: e.ConfigSet, at: float) -> None:
    """Take in a config, and line up anew what waits under limits that changed."""
    state.config, state.config_run = bytes(event.config), event.run
    state.config_seq = state.seq + 1
    state.shares.set(event.weights)
    put_limits(state, event.limits, at)


def on_schedule_set(state: State, event: e.ScheduleSet, at: float) -> None:
    """Keep a schedule; one of its name goes on counting."""
    spec = event.spec
    new = Schedule(spec, state.seq + 1, event.next_at)
    old = state.schedules.get((spec.tenant, spec.name))
    if old is not None:
        new.last_at, new.last_job = old.last_at, old.last_job
        new.fired, new.skipped = old.fired, old.skipped
    state.keep(new)


def on_schedule_deleted(state: State, event: e.ScheduleDeleted, at: float) -> None:
    """Forget a schedule."""
    state.drop(event.tenant, event.name)


def on_schedule_fired(state: State, event: e.ScheduleFired, at: float) -> None:
    """Note a tick, and when the next is due."""
    schedule = state.schedules[event.tenant, event.name]
    schedule.next_at = event.next_at
    schedule.skipped += event.skipped
    if event.job:
        schedule.fired += 1
        schedule.last_at, schedule.last_job = event.tick, event.job


def on_paused(state: State, event: e.QueuePaused, at: float) -> None:
    """Pause a queue."""
    state.line(event.queue).paused = True


def on_resumed(state: State, event: e.QueueResumed, at: float) -> None:
    """Resume a queue."""
    state.line(event.queue).paused = False
