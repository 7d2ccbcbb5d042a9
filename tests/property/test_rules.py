"""The rules under any history: whatever is asked, in whatever order, these hold after each step.

A second state is evolved from the journal's rows alone, so that `replay(journal) == live state` is
checked after every step rather than once at the end.
"""

from collections import Counter
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.protocol import Outcome, OutcomeKind, Record
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import decide, evolve, job_status
from cluster.queue.gates import next_opening
from cluster.queue.model import State, Task
from cluster.queue.rules import Limit, QueueLimits, Rules, TenantLimits
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import encode_spec
from cluster.queue.state import TERMINAL, TaskState
from jobs.errors import Conflict, KeyReused, LeaseLost, NotFound, Overloaded
from tests.support.auditor import StartsAudit, check_counts, check_gates
from tests.support.builders import NOON, a_job, a_spec, canonical

QUEUES = ("default", "io")
WORKERS = ("w1", "w2", "w3")
KEY_WINDOW_S = 5_000.0
RULES = Rules(
    {
        # Work goes to and fro between the two, which no sane config says.
        "default": QueueLimits(12, max_run_s=5.0, then="io", oom_to="io"),
        "io": QueueLimits(12, max_run_s=50.0, then="default"),
    },
    {"small": TenantLimits(depth_max=3, bytes_max=100_000)},
    recoveries_max=1,
    interruptions_max=2,
    idempotency_keys_max=4,
)
JOBS_MAX = 40
TENANTS = ("default", "default", "small", "large")
#: Follow-ups of one command: far more than there are jobs.
TURNS_MAX = 200

#: Picks one of what there is: the index is taken modulo its length.
some = st.integers(0, 40)
workers = st.sampled_from(WORKERS)
#: How an attempt ends; the token is filled in.
outcomes = st.builds(
    Outcome,
    st.just(0),
    st.sampled_from(get_args(OutcomeKind)),
    started_at=st.just(1.0),
    ended_at=st.just(2.0),
    alone=st.booleans(),
    delay_s=st.sampled_from([None, 0.0, 0.0, 0.5, 60.0]),
)
moments = st.sampled_from([None, 0.0, 0.5, 30.0, 4_000.0])
#: Keys of limits: those of any job, in any order.
keys = st.lists(st.sampled_from(["a", "b", "c:1", "c:2", "none"]), max_size=3, unique=True)
a_limit = st.builds(
    Limit,
    st.sampled_from([None, 0.001, 0.3, 40.0, 900.0, 100_000.0]),
    st.sampled_from([1, 1, 2, 5, 1_000]),
    st.sampled_from([1, 1, 2, 3]),
) | st.builds(Limit, st.sampled_from([0.3, 40.0, 900.0]), st.sampled_from([1, 3]))
limits = st.dictionaries(st.sampled_from(["a", "b", "c:*", "c:1", "*"]), a_limit, max_size=4)
weights = st.sampled_from([{}, {"large": 3.0}, {"*": 0.5, "small": 0.001}])


class Queue(RuleBasedStateMachine):
    """The rules, several workers that do as they please, and a clock that may stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.shadow = State(), State()
        self.wall = NOON
        self.jobs = 0
        self.tokens = [0]
        self.outputs: Counter[str] = Counter()
        self.key_holders: dict[str, tuple[str, str, float]] = {}
        self.ended: dict[str, Any] = {}
        self.audit = StartsAudit(self.state)
        self.configs = self.fired = 0
        self.ticks: dict[float, str] = {}

    # --- what is done -------------------------------------------------------------------------

    def now(self) -> float:
        return max(self.wall, self.state.at)

    def do(self, command: c.Command) -> list[e.Event]:
        now = self.now()
        events = decide(self.state, RULES, command, now)
        for event in events:
            self.happen(event, now)
        for _ in range(TURNS_MAX):
            if not self.state.opening:
                return events
            for event in decide(self.state, RULES, c.Advance(), now):
                assert isinstance(event, e.TaskUnparked)
                self.happen(event, now)
        raise AssertionError(f"it never comes to rest: {self.state.opening}")

    def happen(self, event: e.Event, now: float) -> None:
        evolve(self.state, event, now)
        evolve(self.shadow, e.from_row(e.to_row(event)), now)
        self.audit.saw(event)
        if isinstance(event, e.TaskLeased):
            assert event.token > self.tokens[-1]
            self.tokens.append(event.token)
        elif isinstance(event, e.TaskSucceeded):
            self.outputs[event.job_id] += 1
        elif isinstance(event, e.TaskRedriven):
            del self.ended[event.job_id]
        elif isinstance(event, e.ScheduleFired) and event.job:
            assert self.ticks.setdefault(event.tick, event.job) == event.job

    def a_job_id(self, pick: int) -> str:
        known = list(self.state.jobs)
        return known[pick % len(known)]

    @precondition(lambda self: self.jobs < JOBS_MAX)
    @rule(
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from([0, 0, 5]),
        run_in=moments,
        expires_in=st.sampled_from([None, None, None, 0.0, 4_000.0]),
        max_attempts=st.integers(1, 3),
        tenant=st.sampled_from(TENANTS),
        limits=keys,
        expected_s=st.sampled_from([None, None, 1.0, 10.0, 100.0]),
    )
    def submit(
        self,
        queue: str,
        priority: int,
        run_in: float | None,
        expires_in: float | None,
        max_attempts: int,
        tenant: str = "default",
        limits: list[str] = [],  # noqa: B006 - never written
        expected_s: float | None = None,
    ) -> None:
        self.jobs += 1
        job_id = f"job{self.jobs}"
        usage = self.state.usage.get(tenant)
        routed = expected_s is not None
        long = queue == "default" and expected_s is not None and expected_s > 5.0
        goes_to = "io" if long else queue
        try:
            self.do(
                a_job(
                    job_id,
                    queue=queue,
                    priority=priority,
                    run_at=None if run_in is None else self.now() + run_in,
                    expires_at=None if expires_in is None else self.now() + expires_in,
                    max_attempts=max_attempts,
                    tenant=tenant,
                    limits=tuple(limits),
                    expected_s=expected_s,
                    routed=routed,
                    resumable=tenant == "large",
                )
            )
        except Overloaded as error:
            if error.scope == "tenant":
                assert usage is not None
                assert tenant == "small"
                assert usage.jobs >= 3
            else:
                assert routed or self.unfinished(goes_to) >= RULES.queues[goes_to].depth_max
        else:
            if expected_s != 100.0:  # that one may go from the one to the other and back
                assert self.state.jobs[job_id].queue == goes_to

    @precondition(lambda self: self.jobs < JOBS_MAX)
    @rule(
        count=st.integers(1, 6),
        max_attempts=st.integers(1, 3),
        tenant=st.sampled_from(TENANTS),
        limits=keys,
        queue=st.sampled_from(QUEUES),
    )
    def submit_several(
        self, count: int, max_attempts: int, tenant: str, limits: list[str], queue: str
    ) -> None:
        for _ in range(count):
            self.submit(queue, 0, None, None, max_attempts, tenant, limits)

    @rule(limits=limits, weights=weights)
    def configure(self, limits: dict[str, Limit], weights: dict[str, float]) -> None:
        self.configs += 1
        config = b'{"revision":%d}' % self.configs
        self.do(c.Configure(config, "run", weights, limits))

        assert self.do(c.Configure(config, "run", weights, limits)) == []
        with pytest.raises(Conflict):
            self.do(c.Configure(b"{}", "run", {}, {}, revision=self.state.config_seq - 1))

    @precondition(lambda self: self.state.leases)
    @rule(pick=some)
    def promote(self, pick: int) -> None:
        token = list(self.state.leases)[pick % len(self.state.leases)]
        task = self.state.leases[token]
        queue, stop = task.line.name, task.stop

        self.do(c.Promote(token))

        goes_on = task.job.spec.resumable
        assert (task.line.name == queue) == bool(goes_on or stop)
        assert task.stop == (stop or ("promote" if goes_on else ""))

    @rule(tenant=st.sampled_from(TENANTS), overlap=st.sampled_from(["allow", "skip"]), limits=keys)
    def put_a_schedule(self, tenant: str, overlap: Any, limits: list[str]) -> None:
        raw = msgspec.Raw(encode_spec(a_spec(tenant=tenant, limits=tuple(limits))))
        spec = ScheduleSpec(
            name="s", tenant=tenant, cron="* * * * *", overlap=overlap, request=raw, job=raw
        )
        changed = self.do(c.PutSchedule(spec, self.now()))
        assert self.do(c.PutSchedule(spec, self.now() + 1.0)) == []
        assert self.state.schedules[tenant, "s"].spec == spec
        assert len(changed) <= 1

    @precondition(lambda self: self.state.schedules and self.jobs < JOBS_MAX)
    @rule(pick=some, count=st.integers(0, 3), missed=st.integers(0, 2), stale=st.booleans())
    def fire(self, pick: int, count: int, missed: int, stale: bool) -> None:
        names = list(self.state.schedules)
        schedule = self.state.schedules[names[pick % len(names)]]
        before, jobs = schedule.fired + schedule.skipped, len(self.state.jobs)
        ticks = []
        for _ in range(count):
            self.jobs += 1
            self.fired += 1
            ticks.append((NOON + self.fired, f"job{self.jobs}"))
        generation = schedule.generation - stale
        tenant = schedule.spec.tenant
        self.do(c.FireSchedule(tenant, "s", generation, ticks, NOON + self.fired + 1, missed))

        more = 0 if stale else count + missed
        assert schedule.fired + schedule.skipped == before + more
        assert len(self.state.jobs) <= jobs + (0 if stale else count)
        if schedule.spec.overlap == "skip":
            assert len(self.state.jobs) <= jobs + 1

    @precondition(lambda self: self.state.schedules)
    @rule(pick=some)
    def delete_a_schedule(self, pick: int) -> None:
        names = list(self.state.schedules)
        tenant, name = names[pick % len(names)]
        self.do(c.DeleteSchedule(tenant, name))
        with pytest.raises(NotFound):
            self.do(c.DeleteSchedule(tenant, name))

    @precondition(lambda self: self.jobs < JOBS_MAX)
    @rule(key=st.sampled_from("kl"), fingerprint=st.sampled_from("fg"))
    def submit_with_a_key(self, key: str, fingerprint: str) -> None:
        self.jobs += 1
        now, job_id = self.now(), f"job{self.jobs}"
        holder = self.key_holders.get(key)
        held = holder is not None and holder[2] > now
        expires_at = now + KEY_WINDOW_S
        command = a_job(job_id, key=key, fingerprint=fingerprint, key_expires_at=expires_at)
        try:
            events = self.do(command)
        except KeyReused as error:
            assert held
            assert holder is not None
            assert holder[1] != fingerprint
            assert error.args == (holder[0],)  # noqa: PT017 - whether it raises is not known before
        except Overloaded:
            assert not held
        else:
            assert bool(events) != held
            if events:
                self.key_holders[key] = (job_id, fingerprint, expires_at)
            else:
                assert holder is not None
                assert self.state.keys.find(key, now) == holder[:2]

    @precondition(lambda self: self.state.jobs)
    @rule(pick=some)
    def submit_again(self, pick: int) -> None:
        assert self.do(a_job(self.a_job_id(pick))) == []

    def anything_ready(self) -> bool:
        return any(
            line.counts[TaskState.READY] and not line.paused for line in self.state.lines.values()
        )

    @precondition(anything_ready)
    @rule(
        worker=workers,
        limit=st.integers(1, 4),
        queues=st.sampled_from([QUEUES, QUEUES[:1]]),
        ahead=st.sampled_from([False, False, True]),
    )
    def lease(self, worker: str, limit: int, queues: tuple[str, ...], ahead: bool) -> None:
        lines = [line for q in queues if (line := self.state.lines.get(q)) and not line.paused]
        ready = [task for line in lines for _, task in line.in_turn()]

        events = self.do(c.Lease(worker, list(queues), limit, ahead))

        left = [task for task in ready if task.state is TaskState.READY]
        if len(events) < limit:
            assert all(task.limits for task in left)
            assert ahead or not left
        if ahead:
            leased = [self.state.leases[event.token] for event in events]  # type: ignore[attr-defined]
            assert not any(key in self.state.gates for task in leased for key in task.limits)

    @precondition(anything_ready)
    @rule(worker=workers, outcomes=st.lists(outcomes, min_size=1, max_size=4))
    def work(self, worker: str, outcomes: list[Outcome]) -> None:
        """Lease as many as there are outcomes and end each with its own."""
        leased = self.do(c.Lease(worker, list(QUEUES), len(outcomes)))
        for event, outcome in zip(leased, outcomes, strict=False):
            assert isinstance(event, e.TaskLeased)
            self.end(event.token, outcome)

    @precondition(lambda self: self.state.leases)
    @rule(pick=some, outcome=outcomes)
    def finish(self, pick: int, outcome: Outcome) -> None:
        tokens = list(self.state.leases)
        self.end(tokens[pick % len(tokens)], outcome)

    def end(self, token: int, outcome: Outcome) -> None:
        outcome = msgspec.structs.replace(outcome, token=token)
        command = c.Finish(self.state.leases[token].worker, [outcome, outcome], [0.5, 0.5])

        task = self.state.leases[token]
        events = self.do(command)
        moved = [event for event in events if isinstance(event, e.TaskMoved)]
        assert len(events) - len(moved) == 1
        assert len(moved) <= (task.state not in TERMINAL)
        assert self.do(command) == []

    @rule(pick=some, worker=workers)
    def finish_late_or_as_someone_else(self, pick: int, worker: str) -> None:
        token = self.tokens[pick % len(self.tokens)]
        task = self.state.leases.get(token)
        if task is None or task.worker != worker:
            assert self.do(c.Finish(worker, [Outcome(token, "ok")], [0.0])) == []

    @precondition(lambda self: self.state.held)
    @rule(worker=workers)
    def lose_worker(self, worker: str) -> None:
        held = [self.state.leases[token] for token in self.state.held.get(worker, ())]
        suspected = any(task.suspect for task in held)
        charged = {task.job.id: task.recoveries for task in held}

        self.do(c.LoseWorker(worker, "signal 9"))

        more = [task for task in held if task.recoveries > charged[task.job.id]]
        assert worker not in self.state.held
        assert len(more) <= 1 or suspected
        assert len(held) == 1 or suspected or not more

    @precondition(lambda self: self.state.leases)
    @rule(pick=some, worker=workers)
    def reclaim(self, pick: int, worker: str) -> None:
        token = list(self.state.leases)[pick % len(self.state.leases)]
        held = token in self.state.held.get(worker, ())

        assert bool(self.do(c.Reclaim(worker, [token]))) == held

    @precondition(lambda self: self.state.jobs)
    @rule(pick=some, running=st.booleans())
    def cancel(self, pick: int, running: bool) -> None:
        leases = list(self.state.leases.values())
        job_id = leases[pick % len(leases)].job.id if running and leases else self.a_job_id(pick)
        try:
            self.do(c.Cancel(job_id))
        except Conflict:
            assert job_status(self.state.jobs[job_id]) in ("completed", "failed")

    @precondition(lambda self: self.state.dead)
    @rule(pick=some)
    def revive(self, pick: int) -> None:
        dead = [job_id for job_id, _ in self.state.dead]
        assert self.do(c.Revive(dead[pick % len(dead)]))

    @precondition(lambda self: self.state.dead)
    @rule(pick=some, later=st.booleans(), edit=st.none() | keys)
    def revive_later_or_otherwise(self, pick: int, later: bool, edit: list[str] | None) -> None:
        job = list(self.state.dead.values())[pick % len(self.state.dead)].job
        raw = b""
        if edit is not None:
            raw = encode_spec(msgspec.structs.replace(job.spec, limits=tuple(edit), max_attempts=3))
        self.do(c.Revive(job.id, self.now() + 20.0 if later else 0.0, raw))

        (task,) = job.tasks
        assert (task.state is TaskState.BACKING_OFF) == later
        assert edit is None or job.limits == tuple(edit)

    @precondition(lambda self: self.state.dead)
    @rule(pick=some)
    def purge(self, pick: int) -> None:
        job_id = [job_id for job_id, _ in self.state.dead][pick % len(self.state.dead)]
        assert self.do(c.Purge(job_id))
        assert self.do(c.Purge(job_id)) == []
        with pytest.raises(Conflict):
            self.do(c.Revive(job_id))

    @precondition(lambda self: self.state.leases)
    @rule(
        pick=some,
        op=st.sampled_from(["checkpoint", "once_claim", "once_done"]),
        key=st.sampled_from("ab"),
        late=st.booleans(),
    )
    def save_record(self, pick: int, op: Any, key: str, late: bool) -> None:
        tokens = self.tokens if late else list(self.state.leases)
        token = tokens[pick % len(tokens)]
        task = self.state.leases.get(token)
        try:
            self.do(c.SaveRecord(Record(token, op, key, msgspec.Raw(b"1"))))
        except LeaseLost:
            assert task is None or task.stop

    @rule(queue=st.sampled_from(QUEUES), paused=st.sampled_from([False, False, True]))
    def pause_or_resume(self, queue: str, paused: bool) -> None:
        self.do(c.PauseQueue(queue) if paused else c.ResumeQueue(queue))

        line = self.state.lines.get(queue)
        assert (line is not None and line.paused) == paused

    @rule(number=st.integers(1, 3), gateway=st.sampled_from("gh"))
    def accept_batch(self, number: int, gateway: str) -> None:
        self.happen(e.BatchAccepted(gateway, number, msgspec.Raw(b"{}")), self.now())

    @rule(evict=st.integers(0, 3))
    def compact(self, evict: int) -> None:
        self.do(c.PlanCompaction(self.state.compacted + 1))
        self.do(c.EndCompaction(self.state.planned, self.state.seq))
        self.do(c.Evict(evict))

    @rule()
    def restart_from_a_snapshot(self) -> None:
        rows = list(dump(self.shadow))
        self.shadow = load(rows)

        assert list(dump(self.shadow)) == rows

    @rule()
    def tick(self) -> None:
        self.do(c.Tick())

        assert self.do(c.Tick()) == []
        if self.now() == self.state.at:
            check_gates(self.state, ticked=True)

    @rule(seconds=st.sampled_from([0.01, 0.03, 0.5, 30.0, 1_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.wall = self.now() + seconds
        self.tick()

    @rule()
    def set_the_clock_back(self) -> None:
        self.wall -= 10_000.0

    # --- what must hold -----------------------------------------------------------------------

    def tasks(self) -> list[Task]:
        return [task for job in self.state.order for task in job.tasks]

    def unfinished(self, queue: str) -> int:
        return sum(t.state not in TERMINAL for t in self.tasks() if t.line.name == queue)

    @invariant()
    def limits_and_counts_agree_with_the_tasks(self) -> None:
        check_gates(self.state)
        check_counts(self.state)

    @invariant()
    def the_journal_gives_the_same_state(self) -> None:
        assert canonical(self.shadow) == canonical(self.state)

    @invariant()
    def a_task_is_leased_once_and_all_indexes_agree(self) -> None:
        leased = {t.token: t for t in self.tasks() if t.state is TaskState.LEASED}
        stops = {t.token: t.stop for t in leased.values() if t.stop}

        assert self.state.leases == leased
        assert {t: w for w, held in self.state.held.items() for t in held} == {
            token: task.worker for token, task in leased.items()
        }
        assert {t: s for told in self.state.stopping.values() for t, s in told.items()} == stops
        assert all(self.state.held.values())
        assert all(self.state.stopping.values())
        assert len(leased) == sum(t.token > 0 for t in self.tasks())
        for held in self.state.held.values():
            assert sum(self.state.leases[token].suspect for token in held) <= 1

    @invariant()
    def no_budget_is_exceeded(self) -> None:
        for task in self.tasks():
            limit = task.job.spec.max_attempts
            dead = task.state is TaskState.DEAD
            assert task.failures <= (limit if dead else limit - 1)
            assert task.recoveries <= RULES.recoveries_max
            assert task.interruptions <= RULES.interruptions_max
            numbers = [past.number for past in task.past or ()]
            assert numbers == sorted(set(numbers))
            assert all(number <= task.attempt for number in numbers)

    @invariant()
    def what_ended_stays_as_it_was(self) -> None:
        for job in self.state.order:
            (task,) = job.tasks
            if task.state in TERMINAL:
                plain = (task.state, task.attempt, task.output, task.failures, job.finished_at)
                assert self.ended.setdefault(job.id, plain) == plain
                assert job.finished_at > 0
            else:
                assert job.id not in self.ended
                assert job.finished_at == 0
        assert all(count == 1 for count in self.outputs.values())
        assert self.outputs.keys() & self.state.jobs.keys() == {
            t.job.id for t in self.tasks() if t.state is TaskState.SUCCEEDED
        }

    @invariant()
    def every_task_is_where_its_state_says(self) -> None:
        for name, line in self.state.lines.items():
            mine = [t for t in self.tasks() if t.line.name == name]
            assert all(t.job.queue == name for t in mine)
            ready = [*(task for _, task in line.in_turn()), *line.suspects]

            counted = [t for t in mine if not (t.job.purged and t.state is TaskState.DEAD)]
            assert line.counts == {s: sum(t.state is s for t in counted) for s in TaskState}
            assert len(ready) == len(set(ready))
            assert set(ready) == {t for t in mine if t.state is TaskState.READY}
            assert all(task.suspect for task in line.suspects)
        dead = [t for t in self.tasks() if t.state is TaskState.DEAD and not t.job.purged]
        assert self.state.dead == {(t.job.id, t.id): t for t in dead}

    @invariant()
    def whoever_waits_for_a_moment_has_a_timer(self) -> None:
        timed = {t for t in self.tasks() if t.state in (TaskState.WAITING, TaskState.BACKING_OFF)}
        expiring = {t for t in self.tasks() if t.expires_at and t.state not in TERMINAL}

        assert {task for _, task in self.state.timers.live()} == timed
        assert expiring <= {task for _, task in self.state.expiries.live()}

    @invariant()
    def a_key_stands_for_one_job(self) -> None:
        for key, (job_id, fingerprint, expires_at) in self.key_holders.items():
            expected = (job_id, fingerprint) if expires_at > self.now() else None
            assert self.state.keys.find(key, self.now()) == expected

    def teardown(self) -> None:
        """Whatever happened: once all goes well, every job ends, and no limit holds anything."""
        for command in (c.LoseWorker(worker, "end of test") for worker in WORKERS):
            self.do(command)
        assert not self.state.leases
        for queue in QUEUES:
            self.do(c.ResumeQueue(queue))
        for n in range(300):
            self.tick()
            self.work(f"last{n}", [Outcome(0, "ok", started_at=1.0, ended_at=2.0)] * 5)
            moments = [self.state.timers.next_at(), next_opening(self.state)]
            if all(job.finished_at for job in self.state.order):
                break
            self.wall = max(self.now(), min((at for at in moments if at), default=0.0))
        assert all(job.finished_at for job in self.state.order)
        assert not any(gate.in_use or gate.sides for gate in self.state.gates.values())
        assert (self.state.starts, self.state.usage) == ({}, {})
        assert next_opening(self.state) is None
        assert not any(line.size or line.bytes for line in self.state.lines.values())


# Fifteen seconds where nothing else runs; the limit is for machines where much does.
TestQueue = pytest.mark.timeout(180)(Queue.TestCase)
TestQueue.settings = settings(
    max_examples=60,
    stateful_step_count=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
