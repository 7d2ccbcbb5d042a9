"""What stands beside the jobs: the config, schedules, and which queues are paused.

Rule: a schedule's tick and the job it submits are events of one command, so both are durable or
neither is.
"""

import msgspec

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.admission import submitted
from cluster.queue.limits import put_limits
from cluster.queue.model import Line, Rules, State
from cluster.queue.schedule import Schedule
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

#: Schedules of all tenants together.
SCHEDULES_MAX = 100_000


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
    if known is None and len(state.schedules) >= SCHEDULES_MAX:
        raise Overloaded("system", f"there are {SCHEDULES_MAX:,} schedules", 60.0)
    try:
        submitted(state, rules, "", decode_head(spec.job), bytes(spec.job))
    except InvalidInput as error:
        raise InvalidInput(f"job.{error.field}", error.reason) from None
    return [e.ScheduleSet(spec, command.next_at)]


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
        if busy:
            found.append(e.ScheduleFired(*name, tick, command.next_at, skipped=1 + missed))
        else:
            job = msgspec.structs.replace(
                decode_spec(spec.job), schedule=spec.name, scheduled_for=tick
            )
            raw = encode_spec(job)
            found.append(e.ScheduleFired(*name, tick, command.next_at, job_id, missed))
            found.append(submitted(state, rules, job_id, decode_head(raw), raw))
            busy = spec.overlap == "skip"
        missed = 0
    if not command.ticks:
        found.append(e.ScheduleFired(*name, 0.0, command.next_at, skipped=missed))
    return found


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
    state.schedules[spec.tenant, spec.name] = new


def on_schedule_deleted(state: State, event: e.ScheduleDeleted, at: float) -> None:
    """Forget a schedule."""
    del state.schedules[event.tenant, event.name]


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
