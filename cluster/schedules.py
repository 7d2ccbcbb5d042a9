"""Fires schedules: finds which ticks are due, and has each submit its job.

Rule 1: where a schedule is stands in the state; what is here is only in which order to look.
Rule 2: a tick and its job are one commit, so a tick fires once whoever is alive. Rule 3: ticks are
moments of the wall clock. One that jumps ahead by over an hour is believed once it says so still
after a minute; one that is set back fires nothing again.
"""

import heapq
from collections.abc import Callable

import msgspec
import structlog

from cluster.commit import CommitLog
from cluster.cron import jitter_of, next_tick, ticks
from cluster.queue import commands as c
from cluster.queue.admission import check_room, lane_of
from cluster.queue.schedule import Schedule, ScheduleSpec
from cluster.queue.spec import decode_head, decode_spec, encode_spec
from cluster.trace_context import own_context
from cluster.views import ScheduleView
from jobs.errors import InvalidInput, NotFound, Overloaded

__all__ = ["Scheduler"]

log = structlog.get_logger(__name__)

#: A tick that is later than this was missed; what becomes of it is for the schedule to say.
MISSED_S = 60.0
#: Ticks fired in one commit; more follow in the next.
AT_ONCE = 500
#: One look takes about so long at most: what is due beyond that fires at the next.
LOOK_MAX_S = 0.05
#: A schedule that has to wait for room is looked at again after so long.
HELD_S = 1.0
#: A jump of the clock beyond this is doubted for so long.
JUMP_S, DOUBT_S = 3600.0, 60.0

_Due = tuple[float, str, str, int]


class Scheduler:
    """Watches every schedule of the state."""

    def __init__(
        self,
        commit: CommitLog,
        *,
        new_id: Callable[[], str],
        fired: Callable[[], None],
        traced: bool = False,
    ) -> None:
        """`fired` is called when jobs were submitted. `traced`: each of them begins a trace."""
        self._commit, self._new_id, self._fired = commit, new_id, fired
        self._traced = traced
        self._clock = commit.clock
        #: (when, tenant, name, generation) of each that fires again, and some that are void.
        self._heap: list[_Due] = []
        #: Due ones that wait for room, and when they are looked at again: not by the wall clock,
        #: which may be set back.
        self._held: list[_Due] = []
        self._held_until = 0.0
        self._offset_s = self._clock.wall() - self._clock.monotonic()
        self._doubt_until = 0.0

    def begin(self) -> None:
        """Watch what the state holds."""
        for schedule in self._commit.state.schedules.values():
            self._watch(schedule)

    def look(self) -> None:
        """Fire what is due now. Called all the time."""
        heap, began = self._heap, self._clock.monotonic()
        if began >= self._held_until:
            while self._held:
                heapq.heappush(heap, self._held.pop())
        if self._doubts() or not heap:
            return
        fired = False
        now, until = self._clock.wall(), self._clock.monotonic() + LOOK_MAX_S
        while heap and heap[0][0] <= now and self._clock.monotonic() < until:
            due = heapq.heappop(heap)
            _, tenant, name, generation = due
            schedule = self._commit.state.schedules.get((tenant, name))
            if schedule is None or schedule.generation != generation:
                continue
            if self._is_full(schedule):
                # Rather late than one more where nobody else may add any; its catch-up says
                # what becomes of ticks that are too late then.
                if not self._held:
                    self._held_until = began + HELD_S
                self._held.append(due)
                continue
            try:
                fired = self._fire(schedule, now) or fired
            except InvalidInput as error:  # its time zone is gone, say: that stops no other
                log.error("schedule_stopped", tenant=tenant, name=name, error=str(error))
                continue
            self._watch(schedule)
        if fired:
            self._fired()

    def _doubts(self) -> bool:
        """Whether the clock jumped ahead a moment ago."""
        offset_s = self._clock.wall() - self._clock.monotonic()
        ahead_s, self._offset_s = offset_s - self._offset_s, offset_s
        if ahead_s > JUMP_S:
            log.warning("clock_jumped", ahead_s=round(ahead_s), doubted_for_s=DOUBT_S)
            self._doubt_until = self._clock.monotonic() + DOUBT_S
        return self._clock.monotonic() < self._doubt_until

    def _is_full(self, schedule: Schedule) -> bool:
        """Whether a job like the schedule's would be refused from outside."""
        state, rules = self._commit.state, self._commit.rules
        head = decode_head(schedule.spec.job)
        queue = lane_of(state, rules, head)
        if queue not in rules.queues:
            return False  # it is skipped
        try:
            check_room(state, rules, head.tenant, queue, len(schedule.spec.job))
        except Overloaded:
            return True
        return False

    def _watch(self, schedule: Schedule) -> None:
        spec, tick = schedule.spec, schedule.next_at
        if tick is not None:
            entry = _when(spec, tick), spec.tenant, spec.name, schedule.generation
            heapq.heappush(self._heap, entry)

    def _fire(self, schedule: Schedule, now: float) -> bool:
        spec, first = schedule.spec, schedule.next_at
        assert first is not None  # only such are watched
        due = [first, *ticks(spec.cron, spec.timezone, first, now, AT_ONCE - 1)]
        if spec.ends_at is not None:
            due = [tick for tick in due if tick <= spec.ends_at] or due[:1]
        next_at = _next(spec, due[-1])
        kept = due
        if spec.catch_up != "all":
            late = [tick for tick in due if _when(spec, tick) < now - MISSED_S]
            fresh = due[len(late) :]
            # Of those that were missed the last one stands for all.
            more = next_at is not None and next_at <= now
            kept = fresh if spec.catch_up == "none" or fresh or more else late[-1:]
        commands = [(tick, self._new_id()) for tick in kept]
        before = schedule.fired
        self._commit.run(
            c.FireSchedule(
                spec.tenant,
                spec.name,
                schedule.generation,
                commands,
                next_at,
                len(due) - len(kept),
                {job_id: own_context(job_id) for _, job_id in commands} if self._traced else {},
            )
        )
        if kept and schedule.fired == before and spec.overlap == "allow":
            log.warning("schedule_without_queue", tenant=spec.tenant, name=spec.name)
        return schedule.fired > before

    # --- what its owner says ------------------------------------------------------------------

    def put(self, spec: ScheduleSpec) -> ScheduleView:
        """Let a schedule hold from now on. Raises what the rules refuse, and InvalidInput."""
        old = self._commit.state.schedules.get((spec.tenant, spec.name))
        # By a clock that was set back the last tick may be still to come: it has fired.
        last_at = (old.last_at if old is not None else None) or 0.0
        next_at = None if spec.paused else _next(spec, max(self._clock.wall(), last_at))
        if self._commit.run(c.PutSchedule(spec, next_at)):
            self._watch(self._commit.state.schedules[spec.tenant, spec.name])
        return self.view(spec.tenant, spec.name)

    def pause(self, tenant: str, name: str, paused: bool) -> ScheduleView:
        """Fire nothing, or again from the next tick on. Raises NotFound."""
        spec = self._find(tenant, name).spec
        return self.put(msgspec.structs.replace(spec, paused=paused))

    def delete(self, tenant: str, name: str) -> None:
        """Let a schedule fire no more. Raises NotFound."""
        self._commit.run(c.DeleteSchedule(tenant, name))

    def fire(self, tenant: str, name: str) -> str:
        """Submit the job of a schedule now, beside its ticks; return its id. Raises NotFound."""
        spec = self._find(tenant, name).spec
        job_id = self._new_id()
        told = decode_spec(spec.job)
        trace = own_context(job_id) if self._traced else told.traceparent
        job = msgspec.structs.replace(told, schedule=name, traceparent=trace)
        raw = encode_spec(job)
        self._commit.run(c.Submit(job_id, decode_head(raw), raw))
        self._fired()
        return job_id

    def view(self, tenant: str, name: str) -> ScheduleView:
        """Return one schedule. Raises NotFound."""
        return _view(self._find(tenant, name))

    def views(self, tenant: str | None) -> list[ScheduleView]:
        """Return a tenant's schedules, or all, by name."""
        found = self._commit.state.schedules
        return [_view(found[key]) for key in sorted(found) if tenant is None or key[0] == tenant]

    def _find(self, tenant: str, name: str) -> Schedule:
        schedule = self._commit.state.schedules.get((tenant, name))
        if schedule is None:
            raise NotFound("schedule", name)
        return schedule


def _when(spec: ScheduleSpec, tick: float) -> float:
    return tick + jitter_of(spec.name, tick, spec.jitter_s)


def _next(spec: ScheduleSpec, after: float) -> float | None:
    if spec.starts_at is not None:
        after = max(after, spec.starts_at - 0.001)
    tick = next_tick(spec.cron, spec.timezone, after)
    if tick is not None and spec.ends_at is not None and tick > spec.ends_at:
        return None
    return tick


def _view(schedule: Schedule) -> ScheduleView:
    spec = schedule.spec
    return ScheduleView(
        spec.name,
        spec.tenant,
        spec.cron,
        spec.timezone,
        spec.catch_up,
        spec.jitter_s,
        spec.overlap,
        spec.starts_at,
        spec.ends_at,
        spec.paused,
        spec.request,
        schedule.next_at,
        schedule.last_at,
        schedule.last_job or None,
        schedule.fired,
        schedule.skipped,
    )
