"""Knows what was promised of flow control: limits, lanes, schedules, dead letters, operators.

Rule 1: it keeps books of its own, from the durable events alone: who holds a lease, how many share
a limit, which ticks are due. Rule 2: a limit counts leases. One whose worker is dead or silent
counts until it is over; what a lost worker's child still does beside its successor is a zombie's,
and ends soon. Rule 3: a rate is kept by the moments at which starts are planned: no handler begins
before its own, and how late orders arrive is the network's.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.config import Config, decode_config
from cluster.protocol import Assignment
from cluster.queue import events as e
from cluster.queue.model import State
from cluster.queue.plan import Role, StepTask
from cluster.queue.rules import Limit, QueueLimits
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import JobSpec, StepSpec, decode_spec
from cluster.queue.state import UNFINISHED, TaskState

__all__ = ["FlowAuditor", "every_s"]

#: What is left of an attempt after its lease is over has ended after so long: its worker is killed
#: first, and of a worker that is only away the manager hears, or not, within this.
ZOMBIE_S = 30.0
#: In a world without trouble what runs too long is moved on after so long.
MOVED_AFTER_S = 3.0
NEARLY_S = 1e-5

S = TaskState


def every_s(cron: str) -> int:
    """Return how many seconds are between two ticks: `*/n * * * * *` alone is known here."""
    return int(cron.split()[0].partition("/")[2] or 1)


@dataclass
class _Lease:
    """A lease as the journal tells of it."""

    job_id: str
    task_id: str
    raw: bytes
    keys: tuple[str, ...]
    #: What its limits allowed when it was given, by key.
    allowed: dict[str, int]
    queue: str
    #: Why it was asked to stop.
    stop: str = ""


@dataclass
class _Starts:
    """Planned starts under one rate, by token."""

    limit: Limit
    at: dict[int, float] = field(default_factory=dict)


@dataclass
class _Schedule:
    """A schedule under one generation."""

    spec: ScheduleSpec
    #: First tick that is not accounted for.
    first: float | None
    next_at: float | None
    fired: int = 0
    skipped: int = 0
    #: The tick that comes next if none is left out.
    due: float | None = None


class FlowAuditor:
    """Follows whatever waits its turn."""

    def __init__(self, wrong: Callable[[str], None], monotonic: Callable[[], float]) -> None:
        self._wrong, self._monotonic = wrong, monotonic
        self.config: Config
        #: From when on nothing is in trouble.
        self.mended_at = float("inf")
        #: Whether the clock was ever set.
        self.clock_was_set = False
        #: Whether a message may arrive after one that was sent later.
        self.reorders = False
        self._limits: dict[str, Limit] = {}
        self._specs: dict[str, JobSpec] = {}
        self._raws: dict[str, bytes] = {}
        self._queues: dict[tuple[str, str], str] = {}
        self.leases: dict[int, _Lease] = {}
        self._in_use: Counter[str] = Counter()
        self._starts: dict[str, _Starts] = {}
        self._not_before: dict[tuple[str, str], float] = {}
        self._purged: dict[str, None] = {}
        self._paused: dict[str, None] = {}
        self._before: e.Event | None = None
        #: When a lease was over, while a handler still ran under it.
        self._over_at: dict[int, float] = {}
        self._schedules: dict[tuple[str, str], _Schedule] = {}
        #: Those that fired, by schedule.
        self._ticks: dict[tuple[str, str], set[float]] = {}
        #: Tenant of each unfinished job, and how many each has.
        self._unfinished: dict[str, str] = {}
        self._usage: Counter[str] = Counter()
        self._put: list[ScheduleSpec] = []
        #: Epoch of the manager that said it was paused, by worker.
        self._idle_workers: dict[str, int] = {}
        #: token -> lease, when it began, its queue then.
        self._running: dict[int, tuple[_Lease, float]] = {}
        self.counts: Counter[str] = Counter()

    # --- the journal --------------------------------------------------------------------------

    def take(self, event: e.Event, at: float, state: State, epoch: int, *, outside: bool) -> None:
        """Take an event that changed the state; `outside`: admission was asked about it."""
        take = _TAKES.get(type(event))
        job_id = getattr(event, "job_id", None)
        if job_id in self._purged and not isinstance(event, e.JobAliased):
            self._wrong(f"{job_id} was purged, then {event.kind}")
        if take is not None:
            take(self, event, at)
        if isinstance(event, e.JobSubmitted):
            self._submitted(event, state, outside=outside)
        elif isinstance(event, e.TaskLeased):
            self._leased(event, at, state, epoch)
        elif isinstance(event, e.AttemptEnd | e.TaskCancelled) and event.token is not None:
            self._ended(event)
        if job_id in self._specs:
            self._count(job_id, state)
        self._before = event

    def _submitted(self, event: e.JobSubmitted, state: State, *, outside: bool) -> None:
        spec = self._specs[event.job_id] = decode_spec(event.raw)
        self._raws[event.job_id] = bytes(event.raw)
        outside = outside and spec.parent is None and spec.schedule is None
        if outside and self._limits_of(spec.queue).draining and not spec.routed:
            self._wrong(f"{event.job_id} was taken into {spec.queue!r}, which is drained")
        own = self.config.tenants.get(spec.tenant)
        depth_max = own.depth_max if own is not None else None
        if outside and depth_max is not None and self._usage[spec.tenant] >= depth_max:
            self._wrong(f"{event.job_id} is one more than {spec.tenant!r} may have")
        if spec.schedule is not None and spec.scheduled_for is not None:
            ticks = self._ticks.setdefault((spec.tenant, spec.schedule), set())
            if spec.scheduled_for in ticks:
                self._wrong(f"{spec.schedule!r} fired tick {spec.scheduled_for} twice")
            ticks.add(spec.scheduled_for)
            fired = self._before
            if not (isinstance(fired, e.ScheduleFired) and fired.job == event.job_id):
                self._wrong(f"{event.job_id} was submitted by no tick")

    def _count(self, job_id: str, state: State) -> None:
        """Count the unfinished jobs of each tenant."""
        job = state.jobs.get(job_id)
        is_open = job is not None and not job.finished_at
        if is_open and job_id not in self._unfinished:
            tenant = self._unfinished[job_id] = self._specs[job_id].tenant
            self._usage[tenant] += 1
        elif not is_open and job_id in self._unfinished:
            self._usage[self._unfinished.pop(job_id)] -= 1

    def _step(self, job_id: str, task_id: str) -> StepSpec | None:
        plan = self._specs[job_id].plan
        if plan is None:
            return None
        name = task_id.rpartition(".")[0] or (task_id if plan.steps[0].name else "")
        return next(step for step in plan.steps if step.name == name)

    def _keys(self, job_id: str, task_id: str) -> tuple[str, ...]:
        step = self._step(job_id, task_id)
        spec = self._specs[job_id]
        if step is None:
            return tuple(dict.fromkeys(spec.limits))
        if step.fans_out and task_id.rpartition(".")[2] in (Role.SPLIT, Role.JOIN):
            return ()
        return tuple(dict.fromkeys(spec.limits if step.limits is None else step.limits))

    def _queue(self, job_id: str, task_id: str) -> str:
        moved = self._queues.get((job_id, task_id))
        if moved is not None:
            return moved
        step = self._step(job_id, task_id)
        return (step.queue if step is not None else None) or self._specs[job_id].queue

    def _is_resumable(self, job_id: str, task_id: str) -> bool:
        step = self._step(job_id, task_id)
        return self._specs[job_id].resumable if step is None else step.resumable

    def _limits_of(self, queue: str) -> QueueLimits:
        return self.config.all_queues.get(queue) or QueueLimits()

    def limit_of(self, key: str) -> Limit | None:
        """Return the limit of a key: its own, or that of the longest pattern."""
        if key in self._limits:
            return self._limits[key]
        patterns = [one for one in self._limits if one[-1] == "*" and key.startswith(one[:-1])]
        return self._limits[max(patterns, key=len)] if patterns else None

    def _leased(self, event: e.TaskLeased, at: float, state: State, epoch: int) -> None:
        job_id, task_id, token = event.job_id, event.task_id, event.token
        queue = self._queue(job_id, task_id)
        if queue in self._paused:
            self._wrong(f"{job_id} was leased from {queue!r}, which is paused")
        if at < self._not_before.get((job_id, task_id), 0.0):
            self._wrong(f"{job_id}/{task_id} was leased before the moment of its redrive")
        if self._idle_workers.get(event.worker) == epoch and not self.reorders:
            self._wrong(f"lease {token} was given to {event.worker}, which is paused")
        allowed: dict[str, int] = {}
        keys = self._keys(job_id, task_id)
        for key in keys:
            self._in_use[key] += 1
            limit = self.limit_of(key)
            if limit is None:
                continue
            self.counts["limited"] += 1
            if limit.concurrency is not None:
                allowed[key] = limit.concurrency
                if self._in_use[key] > limit.concurrency:
                    self._wrong(f"lease {token} is number {self._in_use[key]} of {key!r}")
            if limit.rate is not None:
                start = state.starts.get(token, 0.0)
                if start < at:
                    self._wrong(f"lease {token} under the rate of {key!r} has no moment")
                starts = self._starts.get(key)
                if starts is None or starts.limit != limit:
                    self._check_rate(key)
                    starts = self._starts[key] = _Starts(limit)
                starts.at[token] = start
        raw = self._raws[job_id]
        self.leases[token] = _Lease(job_id, task_id, raw, keys, allowed, queue)

    def _ended(self, event: Any) -> None:
        lease = self.leases.pop(event.token)
        for key in lease.keys:
            self._in_use[key] -= 1
            starts = self._starts.get(key)
            if isinstance(event, e.LeaseReleased) and not event.started and starts is not None:
                starts.at.pop(event.token, None)
        if event.token in self._running:
            self._over_at[event.token] = self._monotonic()
        charged = isinstance(event, e.AttemptCrashed | e.TaskDied) and event.cause == "oom"
        queue = self._queue(lease.job_id, lease.task_id)
        if charged and self._limits_of(queue).oom_to:
            self._wrong(f"{lease.job_id} was charged for what memory {lease.queue!r} lacks")

    def _check_rate(self, key: str) -> None:
        """Check that in no time t more than burst + rate x t starts were planned."""
        starts = self._starts.get(key)
        if starts is None or starts.limit.rate is None:
            return
        every = 1.0 / starts.limit.rate
        due = 0.0
        for token, at in sorted(starts.at.items(), key=lambda item: item[1]):
            if at < due - (starts.limit.burst - 1) * every - NEARLY_S:
                self._wrong(
                    f"lease {token} starts at {at:.3f}, too soon for {starts.limit.rate}/s of "
                    f"{key!r} and a burst of {starts.limit.burst}"
                )
            due = max(due, at) + every

    def _config_set(self, event: e.ConfigSet, at: float) -> None:
        self.counts["configs"] += 1
        for key in list(self._starts):
            self._check_rate(key)
        self._starts.clear()
        self.config = decode_config(event.config)
        self._limits = event.limits

    def _edited(self, event: e.JobEdited, at: float) -> None:
        self.counts["edits"] += 1
        self._specs[event.job_id] = decode_spec(event.spec)
        self._raws[event.job_id] = bytes(event.spec)

    def _refused(self, event: e.JobRefused, at: float) -> None:
        self._specs[event.job_id] = decode_spec(event.spec)
        self._raws[event.job_id] = bytes(event.spec)

    def _redriven(self, event: e.TaskRedriven, at: float) -> None:
        self._not_before[event.job_id, event.task_id] = event.due_at

    def _was_purged(self, event: e.JobPurged, at: float) -> None:
        self.counts["purged"] += 1
        self._purged[event.job_id] = None

    def _queue_paused(self, event: e.QueuePaused, at: float) -> None:
        self._paused[event.queue] = None

    def _queue_resumed(self, event: e.QueueResumed, at: float) -> None:
        del self._paused[event.queue]

    # --- lanes --------------------------------------------------------------------------------

    def _asked_to_stop(self, event: e.StopRequested, at: float) -> None:
        lease = self.leases[event.token]
        lease.stop = event.reason
        if event.reason == "promote":
            self.counts["promotions"] += 1
            if not self._is_resumable(event.job_id, event.task_id):
                self._wrong(f"{event.job_id} is stopped to be moved, and cannot be resumed")

    def _moved(self, event: e.TaskMoved, at: float) -> None:
        task = event.job_id, event.task_id
        self.counts[f"moved {event.reason}"] += 1
        queue = self._queue(*task)
        limits = self._limits_of(queue)
        if event.reason == "known long":
            if not self._specs[event.job_id].routed:
                self._wrong(f"{event.job_id} was sent elsewhere than to its queue")
        elif event.queue != (limits.then if event.reason == "long" else limits.oom_to):
            self._wrong(f"{event.job_id} was moved from {queue!r} to {event.queue!r}")
        for lease in self.leases.values():
            if (lease.job_id, lease.task_id) == task and self._is_resumable(*task):
                self._wrong(f"{event.job_id} was moved under its lease, and could be resumed")
        self._queues[task] = event.queue

    def _output_lost(self, event: e.OutputLost, at: float) -> None:
        if event.task_id.rpartition(".")[2].isdigit():
            # Of most chunks that were done only their end is remembered: they start anew.
            self._queues.pop((event.job_id, event.task_id), None)

    # --- schedules ----------------------------------------------------------------------------

    def _schedule_set(self, event: e.ScheduleSet, at: float) -> None:
        spec = event.spec
        self._account(spec.tenant, spec.name)
        first = event.next_at
        self._put.append(spec)
        self._schedules[spec.tenant, spec.name] = _Schedule(spec, first, first, due=first)

    def _schedule_deleted(self, event: e.ScheduleDeleted, at: float) -> None:
        self._account(event.tenant, event.name)
        del self._schedules[event.tenant, event.name]
        self._ticks.pop((event.tenant, event.name), None)  # the next of that name is another

    def _fired(self, event: e.ScheduleFired, at: float) -> None:
        self.counts["ticks"] += 1
        schedule = self._schedules[event.tenant, event.name]
        spec, named = schedule.spec, f"schedule {event.tenant}/{event.name}"
        step = every_s(spec.cron)
        schedule.skipped += event.skipped
        schedule.fired += bool(event.job)
        schedule.next_at = event.next_at
        if event.tick and (event.tick % step or event.tick > at):
            self._wrong(f"{named} fired at {event.tick}, which is no tick, or not yet")
        if spec.catch_up != "all":
            return
        if event.tick != schedule.due or not event.tick:
            self._wrong(f"{named} fired tick {event.tick}, and {schedule.due} was due")
        schedule.due = event.tick + step
        if spec.overlap == "allow" and not event.job:
            self._wrong(f"{named} fired nothing at {event.tick}")

    def _account(self, tenant: str, name: str) -> None:
        """Check that each tick up to the next one fired, or was counted as skipped."""
        schedule = self._schedules.get((tenant, name))
        if schedule is None or schedule.first is None:
            return
        spec, step = schedule.spec, every_s(schedule.spec.cron)
        end = schedule.next_at
        if end is None:
            assert spec.ends_at is not None
            end = spec.ends_at // step * step + step
        due = round((end - schedule.first) / step)
        if due != schedule.fired + schedule.skipped:
            self._wrong(
                f"schedule {tenant}/{name}: {due} ticks came, {schedule.fired} fired, "
                f"{schedule.skipped} were skipped"
            )

    def behind(self, wall: float) -> list[str]:
        """Return schedules that have ticks due which did not fire."""
        return [
            f"{tenant}/{name}"
            for (tenant, name), schedule in self._schedules.items()
            if schedule.next_at is not None
            and schedule.next_at + schedule.spec.jitter_s < wall - MOVED_AFTER_S
        ]

    # --- what operators are told ----------------------------------------------------------------

    def schedule_put(self, spec: ScheduleSpec) -> None:
        """Take it that somebody was told: this schedule holds."""
        if spec not in self._put:
            self._wrong(f"schedule {spec.name!r} was acknowledged before it was durable")

    def configured(self, revision: int, state: State) -> None:
        """Take it that somebody was told: this config holds."""
        if state.config_seq < revision:
            self._wrong(f"revision {revision} of the config was told before it was durable")

    def worker_paused(self, worker: str, epoch: int) -> None:
        """Take it that somebody was told: this worker gets nothing."""
        self._idle_workers[worker] = epoch

    def worker_resuming(self, worker: str) -> None:
        """Take it that somebody asked for this worker to go on."""
        self._idle_workers.pop(worker, None)

    # --- handlers -----------------------------------------------------------------------------

    def began(self, assignment: Assignment, wall: float) -> None:
        """Take it that a handler runs."""
        token = assignment.token
        lease = self.leases.get(token)
        if lease is None:
            return  # a zombie's, of which the auditor knows whether it may be
        if assignment.starts_at > wall + NEARLY_S and not self.clock_was_set:
            self._wrong(f"lease {token} began before its moment, {assignment.starts_at:.3f}")
        if self._specs[lease.job_id].plan is None and bytes(assignment.spec) != lease.raw:
            self._wrong(f"lease {token} runs another spec than {lease.job_id} has")
        self._running[token] = lease, self._monotonic()
        for key in lease.keys:
            beside = [
                other
                for other in self._running
                if other in self.leases and key in self.leases[other].keys
            ]
            # The limit that the last of them was leased under: the others held theirs by then.
            allowed = self.leases[max(beside)].allowed.get(key)
            if allowed is not None and len(beside) > allowed:
                self._wrong(f"{len(beside)} run at once of {key!r}: leases {beside}")

    def ended(self, token: int) -> None:
        """Take it that a handler runs no more."""
        lease, began = self._running.pop(token, (None, 0.0))
        now = self._monotonic()
        if now - self._over_at.pop(token, now) > ZOMBIE_S:
            self._wrong(f"lease {token} was over, and its handler ran on")
        if lease is None or token not in self.leases:
            return
        max_run_s = self._limits_of(lease.queue).max_run_s
        left = self._queue(lease.job_id, lease.task_id) != lease.queue or lease.stop
        ran_s = now - max(began, self.mended_at)
        if max_run_s is not None and not left and ran_s > max_run_s + MOVED_AFTER_S:
            self._wrong(f"{lease.job_id} ran {ran_s:.1f} s in {lease.queue!r} and was not moved")

    # --- the end ------------------------------------------------------------------------------

    def mended(self) -> None:
        """Take it that from now on nothing is in trouble."""
        self.mended_at = self._monotonic()

    def check_books(self, state: State) -> None:
        """Check the sums that a state keeps against what it holds."""
        usage: Counter[str] = Counter()
        size: Counter[str] = Counter()
        counts: dict[str, Counter[TaskState]] = {name: Counter() for name in state.lines}
        chunks: Counter[str] = Counter()
        in_use: Counter[str] = Counter()
        for job in state.order:
            if not job.finished_at:
                usage[job.tenant] += 1
                size[job.queue] += len(job.raw)
            for task in job.tasks if not job.finished_at else ():
                counts[task.line.name][task.state] += 1
                if task.state in UNFINISHED:
                    chunks[task.line.name] += isinstance(task, StepTask) and task.role == Role.CHUNK
                if task.state is S.LEASED:
                    in_use.update(task.limits)
        held = {tenant: usage.jobs for tenant, usage in state.usage.items()}
        if held != +usage:
            self._wrong(f"tenants have {dict(+usage)} unfinished jobs, counted are {held}")
        for name, line in state.lines.items():
            wanted = {s: counts[name][s] for s in UNFINISHED}
            told = {s: line.counts[s] for s in UNFINISHED}
            if told != wanted or line.chunks != chunks[name] or line.bytes != size[name]:
                self._wrong(
                    f"queue {name!r} has {wanted}, {chunks[name]} chunks, {size[name]} bytes; "
                    f"counted are {told}, {line.chunks}, {line.bytes}"
                )
        for key, gate in state.gates.items():
            if gate.in_use != in_use[key]:
                self._wrong(f"{in_use[key]} run of {key!r}, counted are {gate.in_use}")

    def check_end(self, state: State) -> None:
        """Check what must hold when all is over."""
        for key in self._starts:
            self._check_rate(key)
        for name in list(self._schedules):
            self._account(*name)
        self.check_books(state)


_TAKES: dict[type, Callable[[FlowAuditor, Any, float], None]] = {
    e.ConfigSet: FlowAuditor._config_set,
    e.JobEdited: FlowAuditor._edited,
    e.JobPurged: FlowAuditor._was_purged,
    e.JobRefused: FlowAuditor._refused,
    e.OutputLost: FlowAuditor._output_lost,
    e.QueuePaused: FlowAuditor._queue_paused,
    e.QueueResumed: FlowAuditor._queue_resumed,
    e.ScheduleDeleted: FlowAuditor._schedule_deleted,
    e.ScheduleFired: FlowAuditor._fired,
    e.ScheduleSet: FlowAuditor._schedule_set,
    e.StopRequested: FlowAuditor._asked_to_stop,
    e.TaskMoved: FlowAuditor._moved,
    e.TaskRedriven: FlowAuditor._redriven,
}
