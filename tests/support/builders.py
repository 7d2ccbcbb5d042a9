"""Histories of the queue in a line or two, and a plain dump of its state to compare.

A `Rulebook` is the smallest thing that has state: it decides a command at its own moment, evolves
by the events and keeps them as journal rows. No manager, no store, no clock.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from cluster.protocol import Outcome, OutcomeKind
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import decide, evolve
from cluster.queue.gates import is_idle
from cluster.queue.line import Priorities, marks_of
from cluster.queue.model import Gate, Job, Line, State, Task, Timer
from cluster.queue.plan import PlanState, Step, StepTask
from cluster.queue.rules import Limit, QueueLimits, Rules, TenantLimits
from cluster.queue.spec import JobSpec, decode_head, encode_spec
from cluster.queue.state import TaskState

__all__ = ["NOON", "Rulebook", "a_job", "a_spec", "canonical", "some_rules"]

#: The moment every history begins.
NOON = 1_700_000_000.0


def a_spec(**changes: Any) -> JobSpec:
    """Return a job of no particular kind."""
    return JobSpec(**{"type": "test.job", **changes})


def a_job(job_id: str, **changes: Any) -> c.Submit:
    """Return the command that submits it."""
    raw = encode_spec(a_spec(**changes))
    return c.Submit(job_id, decode_head(raw), raw)


def some_rules(
    queues: Iterable[str] = ("default", "io"),
    *,
    depth_max: int = 1_000,
    recoveries_max: int = 3,
    interruptions_max: int = 100,
    idempotency_keys_max: int = 1_000,
    limits: dict[str, QueueLimits] | None = None,
    tenants: dict[str, TenantLimits] | None = None,
    **more: Any,
) -> Rules:
    """Return rules for these queues, and for those of `limits` other ones."""
    return Rules(
        {**{queue: QueueLimits(depth_max) for queue in queues}, **(limits or {})},
        tenants or {},
        recoveries_max=recoveries_max,
        interruptions_max=interruptions_max,
        idempotency_keys_max=idempotency_keys_max,
        **more,
    )


class Rulebook:
    """The rules, what they remember, and the journal of it."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules if rules is not None else some_rules()
        self.state = State()
        self.now = NOON
        self.journal: list[tuple[float, e.Row]] = []

    def do(self, command: c.Command) -> list[e.Event]:
        """Decide and evolve; return what happened, or raise what refused it."""
        events = decide(self.state, self.rules, command, self.now)
        self.happen(*events)
        while self.state.moving or self.state.opening:
            follow = decide(self.state, self.rules, c.Advance(), self.now)
            self.happen(*follow)
            events += follow
        return events

    def happen(self, *events: e.Event) -> None:
        """Evolve by events that nobody decided."""
        for event in events:
            evolve(self.state, event, self.now)
            self.journal.append((self.now, e.to_row(event)))

    def replayed(self) -> State:
        """Return the state that the journal alone gives."""
        state = State()
        for at, row in self.journal:
            evolve(state, e.from_row(row), at)
        return state

    def submit(self, *job_ids: str, **changes: Any) -> None:
        """Submit jobs that are alike."""
        for job_id in job_ids:
            self.do(a_job(job_id, **changes))

    def lease(self, worker: str, limit: int = 1, queues: Iterable[str] = ("default",)) -> list[int]:
        """Lease tasks; return their tokens."""
        events = self.do(c.Lease(worker, list(queues), limit))
        return [event.token for event in events if isinstance(event, e.TaskLeased)]

    def running(self, job_id: str, worker: str = "w1", **changes: Any) -> int:
        """Submit a job and lease it, alone, to `worker`; return the token."""
        self.submit(job_id, **changes)
        (token,) = self.lease(worker, queues=[self.job(job_id).spec.queue])
        assert self.task(job_id).token == token
        return token

    def finish(
        self, token: int, kind: OutcomeKind, *, worker: str = "w1", draw: float = 0.5, **more: Any
    ) -> list[e.Event]:
        """Report an outcome."""
        return self.do(c.Finish(worker, [Outcome(token, kind, **more)], [draw]))

    def lose(self, worker: str, cause: str = "signal 9") -> list[e.Event]:
        """Let a worker die."""
        return self.do(c.LoseWorker(worker, cause))

    def configure(
        self, limits: dict[str, Limit] | None = None, weights: dict[str, float] | None = None
    ) -> list[e.Event]:
        """Let these limits and weights hold from now on."""
        config = b'{"revision":%d}' % self.state.seq
        return self.do(c.Configure(config, "run", weights or {}, limits or {}))

    def cancel(self, job_id: str) -> list[e.Event]:
        """Cancel a job."""
        return self.do(c.Cancel(job_id))

    def pass_time(self, seconds: float) -> list[e.Event]:
        """Move the clock and let what is due move on."""
        self.now += seconds
        return self.do(c.Tick())

    def job(self, job_id: str) -> Job:
        """Return a job."""
        return self.state.jobs[job_id]

    def task(self, job_id: str) -> Task:
        """Return a job's only task."""
        (task,) = self.state.jobs[job_id].tasks
        return task


# --- dumping ----------------------------------------------------------------------------------


#: What history takes over.
FINAL = (TaskState.SUCCEEDED, TaskState.CANCELLED)


def canonical(state: State) -> dict[str, Any]:
    """Return everything that decides what happens next, as plain values in a fixed order.

    What is kept only to be dropped later (stale entries of lines and timers) is left out, and so is
    which limit has room, which only time may have changed: two states that answer every command
    alike are equal.
    """
    return {
        "seq": state.seq,
        "at": state.at,
        "epoch": state.epoch,
        "next_token": state.next_token,
        "submitted": state.submitted,
        "compaction": (state.planned, state.compacted, state.compacted_seq, state.claims),
        "jobs": {job.id: _job(job) for job in state.order if not _is_over(state, job)},
        "finished": [job.id for job in state.finished if not _is_over(state, job)],
        "intake": (state.folded, state.aliases),
        "keys": sorted(state.keys.items()),
        "gateways": {
            name: (marks.at, marks.high, dict(marks.window))
            for name, marks in state.gateways.items()
        },
        "lines": {name: _line(line) for name, line in state.lines.items()},
        "leases": {token: _name(task) for token, task in state.leases.items()},
        "held": {worker: list(tokens) for worker, tokens in state.held.items()},
        "stopping": {worker: sorted(stops.items()) for worker, stops in state.stopping.items()},
        "timers": _timer(state.timers),
        "expiries": _timer(state.expiries),
        "dead": [(*key, _name(task)) for key, task in state.dead.items()],
        "moving": sorted(state.moving),
        "workers": list(state.workers.items()),
        "config": (state.config, state.config_run, state.config_seq, state.shares.weights),
        "gates": {
            key: _gate(gate, state.at)
            for key, gate in sorted(state.gates.items())
            if not is_idle(gate, state.at)
        },
        "starts": sorted(state.starts.items()),
        "usage": (state.usage, state.total),
        "learned": state.learned,
        "tellers": sorted(state.tellers.items()),
        "telling": state.telling,
        "schedules": {
            name: msgspec.structs.asdict(schedule) for name, schedule in state.schedules.items()
        },
        "planned_ahead": (state.planned_ahead, state.all_ahead),
    }


def _is_over(state: State, job: Job) -> bool:
    """Whether history has the job: it may still be in memory, or not."""
    return job in state.finished and job.finished_seq <= state.compacted_seq


def _name(task: Task) -> str:
    return f"{task.job.id}/{task.id}"


def _job(job: Job) -> dict[str, Any]:
    plain = {f: getattr(job, f) for f in job.__struct_fields__ if f not in ("tasks", "plan")}
    plan = None if job.plan is None else _plan(job.plan)
    return {**plain, "tasks": sorted(map(_task, job.tasks), key=str), "plan": plan}


_PLAN_FIELDS = (
    "asked",
    "attempts",
    "rebuilt",
    "recoveries",
    "remade",
    "spec",
    "started_at",
    "stop",
)


def _plan(plan: PlanState) -> dict[str, Any]:
    steps = {name: _step(step) for name, step in plan.steps.items()}
    counts = {str(state): n for state, n in plan.counts.items()}
    plain = {f: getattr(plan, f) for f in _PLAN_FIELDS}
    return {**plain, "steps": steps, "open": sorted(plan.open), "counts": counts}


def _step(step: Step) -> dict[str, Any]:
    # Rows of chunks that a lineage file has may still be in memory, or not; the rest is a cache.
    left_out = ("finished", "raw", "inputs")
    return {f: getattr(step, f) for f in step.__struct_fields__ if f not in left_out}


def _task(task: Task) -> dict[str, Any]:
    left_out = ("job", "line", "step")
    plain = {f: getattr(task, f) for f in task.__struct_fields__ if f not in left_out}
    step = task.step.spec.name if isinstance(task, StepTask) else None
    return {
        **plain,
        "line": task.line.name,
        "step": step,
        "past": list(task.past or ()),
        "once": dict(task.once or {}),
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "paused": line.paused,
        "counts": {str(state): n for state, n in line.counts.items() if state not in FINAL},
        "suspects": [_name(task) for task in line.suspects],
        "chunks": line.chunks,
        "bytes": line.bytes,
        **_turns(line),
    }


def _turns(line: Priorities) -> dict[str, Any]:
    return {
        "in turn": [(_name(task), task.ticket) for _, task in line.in_turn()],
        "turns": line.turns,
        "marks": {priority: marks_of(bucket) for priority, bucket in line.buckets.items()},
    }


def _gate(gate: Gate, at: float) -> dict[str, Any]:
    return {
        "limit": gate.limit,
        "tat": [0.0 if moment <= at else moment for moment in (gate.tat, gate.before)],
        "last": gate.last,
        "in use": gate.in_use,
        "sides": {
            name: {"ready": sorted(map(_name, side.ready)), **_turns(side)}
            for name, side in sorted(gate.sides.items())
        },
    }


def _timer(timer: Timer) -> list[tuple[float, str]]:
    # As a set: a task that came back for the same moment has two entries until one is dropped.
    return sorted({(at, _name(task)) for at, task in timer.live()})
