"""The rules under any history of planned jobs: fan-outs, workflows, outputs that are lost.

As in `test_rules`, a second state follows the journal's rows alone. It also starts anew now and
then, from a snapshot that is older than what it must come to, as a manager does.
"""

from collections import Counter
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cluster.protocol import FileInfo, Outcome, OutcomeKind, Output
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import decide, evolve, job_status
from cluster.queue.gates import next_opening
from cluster.queue.model import Job, State, Task
from cluster.queue.plan import OVER, PlanState, Role, Step, StepState, StepTask
from cluster.queue.plan_next import REBUILDS_MAX
from cluster.queue.rules import Limit, QueueLimits, Rules
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import Plan, StepSpec
from cluster.queue.state import TERMINAL, TaskState
from jobs.errors import Conflict, Overloaded
from tests.support.auditor import StartsAudit, check_counts, check_gates
from tests.support.builders import NOON, a_job, canonical

QUEUES = ("default", "io")
WORKERS = ("w1", "w2", "w3")
RULES = Rules(
    {
        "default": QueueLimits(200, max_run_s=5.0, then="io", oom_to="io"),
        "io": QueueLimits(200, max_run_s=50.0, then="default"),
    },
    recoveries_max=1,
    interruptions_max=2,
)
JOBS_MAX = 8
#: Follow-ups of one command: far more than any plan here has steps.
TURNS_MAX = 100
S = TaskState

some = st.integers(0, 40)
workers = st.sampled_from(WORKERS)
moments = st.sampled_from([None, None, None, 0.0, 30.0])
limits = st.dictionaries(
    st.sampled_from(["a", "b", "*"]),
    st.builds(
        Limit, st.sampled_from([None, 0.3, 40.0]), st.sampled_from([1, 3]), st.sampled_from([1, 2])
    ),
    min_size=1,
    max_size=2,
)
kinds = st.sampled_from(["ok", "ok", "ok", *get_args(OutcomeKind), "lost"])


class End(msgspec.Struct, frozen=True):
    """How an attempt is to end, before it is known which."""

    kind: OutcomeKind
    alone: bool
    delay_s: float | None
    #: Of a split: chunks, and whether it gives other ones when it is made again.
    chunks: int
    unlike: bool
    #: Of what is lost: which, and whether the report is of an attempt before the last.
    picks: list[int]
    stale: bool
    bogus: bool
    cause: str


ends = st.builds(
    End,
    kinds,
    st.booleans(),
    st.sampled_from([None, 0.0, 30.0]),
    st.sampled_from([0, 1, 3, 5, 9]),
    st.sampled_from([False, False, False, True]),
    st.lists(some, max_size=3),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([False, False, False, True]),
    st.sampled_from(["", "", "oom"]),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a workflow of up to four steps, or a fan-out that is none."""
    count = draw(st.integers(1, 4))
    steps = []
    for i in range(count):
        before = [f"s{n}" for n in range(i)]
        fans_out = draw(st.booleans())
        steps.append(
            StepSpec(
                name=f"s{i}",
                needs=draw(st.lists(st.sampled_from(before), unique=True)) if before else [],
                fans_out=fans_out,
                join=fans_out and draw(st.booleans()),
                at_once=draw(st.integers(1, 4)),
                tolerate=draw(st.sampled_from([0.0, 0.0, 0.4, 1.0])),
                queue=draw(st.sampled_from([None, None, "io"])),
                max_attempts=draw(st.sampled_from([None, 1, 2])),
                limits=draw(st.sampled_from([None, None, ["a"], ["b", "a"], []])),
                resumable=draw(st.booleans()),
            )
        )
    if count == 1 and steps[0].fans_out:
        steps = [msgspec.structs.replace(steps[0], name="")]
    return Plan(steps, goes_on=draw(st.booleans()))


def comparable(state: State) -> dict[str, Any]:
    """Return the canonical dump without what may differ: jobs that history has may be gone."""
    found = canonical(state)
    for line in found["lines"].values():
        del line["counts"]["dead"]  # chunks that failed, of jobs that completed, are among them
    found["stopping"] = {worker: sorted(stops) for worker, stops in found["stopping"].items()}
    found["remade"] = {
        job.id: job.plan.remade for job in state.order if job.plan and job.plan.remade
    }
    for job in state.finished:
        if job.finished_seq <= state.compacted_seq:
            found["remade"].pop(job.id, None)
    return found


class Planned(RuleBasedStateMachine):
    """The rules, workers that lose what others made, and jobs of many tasks among simple ones."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.shadow = State(), State()
        self.wall = NOON
        self.jobs = 0
        self.journal: list[tuple[float, e.Row]] = []
        #: Rows of the last compaction, the seq they reach, and where the journal goes on: while it
        #: is planned, and once it is over.
        self.planned: tuple[list[Any], int, int] | None = None
        self.base: tuple[list[Any], int] = ([], 0)
        #: By (job, task): numbers of the attempts that began, how often it succeeded and was lost,
        #: and which attempts succeeded.
        self.attempts: dict[tuple[str, str], list[int]] = {}
        self.succeeded: Counter[tuple[str, str]] = Counter()
        self.lost: Counter[tuple[str, str]] = Counter()
        self.made_by: dict[tuple[str, str], list[int]] = {}
        self.chunks: dict[tuple[str, str], int] = {}
        #: Chunks that came back beside the window, by (job, step).
        self.returned: Counter[tuple[str, str]] = Counter()
        self.over: dict[str, tuple[str, float]] = {}
        self.audit = StartsAudit(self.state)
        self.configs = 0

    # --- what is done -------------------------------------------------------------------------

    def now(self) -> float:
        return max(self.wall, self.state.at)

    def do(self, command: c.Command) -> list[e.Event]:
        now = self.now()
        events = decide(self.state, RULES, command, now)
        self.happen(events, now)
        for _ in range(TURNS_MAX):
            if not (self.state.moving or self.state.opening):
                return events
            follow = decide(self.state, RULES, c.Advance(), now)
            assert follow
            self.happen(follow, now)
            events += follow
        raise AssertionError(f"it never comes to rest: {follow}")

    def happen(self, events: list[e.Event], now: float) -> None:
        for event in events:
            self.before(event)
            evolve(self.state, event, now)
            row = e.to_row(event)
            self.journal.append((now, row))
            evolve(self.shadow, e.from_row(row), now)
            self.audit.saw(event)
            self.after(event)

    def before(self, event: e.Event) -> None:
        """Check what may not happen, and note what did."""
        match event:
            case e.TaskLeased(job_id, task_id, attempt):
                key = job_id, task_id
                used = self.attempts.setdefault(key, [])
                assert attempt > max(used, default=0)
                assert self.succeeded[key] == self.lost[key]  # never again unless it was lost
                used.append(attempt)
                job = self.state.jobs[job_id]
                if job.plan is not None:
                    self.may_begin(job, job.plan, job.plan.tasks[task_id])
            case e.LeaseReleased(job_id, task_id, attempt, started=False):
                assert self.attempts[job_id, task_id].pop() == attempt
            case e.TaskSucceeded(job_id, task_id, attempt):
                self.succeeded[job_id, task_id] += 1
                self.made_by.setdefault((job_id, task_id), []).append(attempt)
                assert self.succeeded[job_id, task_id] == 1 + self.lost[job_id, task_id]
            case e.OutputLost(job_id, task_id):
                self.lost[job_id, task_id] += 1
                assert self.lost[job_id, task_id] == self.succeeded[job_id, task_id]
                assert self.lost[job_id, task_id] <= REBUILDS_MAX
                self.came_back(job_id, task_id)
            case e.TaskRedriven(job_id, task_id):
                self.over.pop(job_id, None)
                self.came_back(job_id, task_id)
            case e.TasksAdded(job_id, step_name):
                plan = self.plan(job_id)
                assert all(
                    plan.steps[name].state is StepState.SUCCEEDED
                    for name in plan.steps[step_name].spec.needs
                )
            case e.JobEnded(job_id):
                assert not any(t.job.id == job_id for t in self.state.leases.values())
            case _:
                pass

    def after(self, event: e.Event) -> None:
        """Check what one event may have made of the state."""
        if isinstance(event, e.TasksAdded) and event.role == "chunk":
            step = self.plan(event.job_id).steps[event.step]
            busy = sum(step.counts[state] for state in (S.READY, S.PARKED, S.LEASED))
            assert busy <= step.spec.at_once
        if isinstance(event, e.TaskSucceeded) and (plan := self.state.jobs[event.job_id].plan):
            task = plan.tasks.get(event.task_id)
            if task is not None and task.role is Role.SPLIT:
                key = event.job_id, task.step.spec.name
                assert self.chunks.setdefault(key, task.step.count) == task.step.count

    def came_back(self, job_id: str, task_id: str) -> None:
        plan = self.state.jobs[job_id].plan
        name, _, last = task_id.rpartition(".")
        if plan is not None and last.isdigit():
            self.returned[job_id, name] += 1

    def may_begin(self, job: Job, plan: PlanState, task: StepTask) -> None:
        step = task.step
        assert not plan.stop
        assert not job.finished_at
        assert all(plan.steps[name].state is not StepState.WAITING for name in step.spec.needs)
        if task.role is Role.JOIN:
            for index in range(step.count):
                name = f"{task.id[: -len('join')]}{index}"
                dead = name in plan.tasks and plan.tasks[name].state is S.DEAD
                assert step.is_done(index) or dead or self.lost[job.id, name]
            assert step.dead <= step.tolerated
        if task.role is Role.CHUNK:
            assert step.count > task.index >= 0

    def plan(self, job_id: str) -> PlanState:
        plan = self.state.jobs[job_id].plan
        assert plan is not None
        return plan

    @initialize(first=st.lists(plans(), min_size=1, max_size=2), rounds=st.integers(0, 3))
    def begin(self, first: list[Plan], rounds: int) -> None:
        for plan in first:
            self.submit_a_plan(plan, None, None, 0)
        self.work_well("w1", 5, rounds)

    @precondition(lambda self: self.jobs < JOBS_MAX)
    @rule(
        plan=plans(),
        run_in=moments,
        expires_in=moments,
        priority=st.sampled_from([0, 0, 5]),
        limits=st.sampled_from([(), ("a",), ("a", "b")]),
    )
    def submit_a_plan(
        self,
        plan: Plan,
        run_in: float | None,
        expires_in: float | None,
        priority: int,
        limits: tuple[str, ...] = (),
    ) -> None:
        self.jobs += 1
        try:
            self.do(
                a_job(
                    f"job{self.jobs}",
                    plan=plan,
                    priority=priority,
                    limits=limits,
                    run_at=None if run_in is None else self.now() + run_in,
                    expires_at=None if expires_in is None else self.now() + expires_in,
                )
            )
        except Overloaded:
            assert self.state.lines["default"].counts[S.READY] > 100

    @precondition(lambda self: self.jobs < JOBS_MAX)
    @rule(plan=plans(), queue=st.sampled_from(QUEUES), max_attempts=st.integers(1, 2))
    def submit_both(self, plan: Plan, queue: str, max_attempts: int) -> None:
        self.jobs += 1
        limits = ("a",) if max_attempts == 1 else ()
        self.do(a_job(f"job{self.jobs}", queue=queue, max_attempts=max_attempts, limits=limits))
        self.submit_a_plan(plan, None, None, 0)

    def anything_ready(self) -> bool:
        return any(line.counts[S.READY] and not line.paused for line in self.state.lines.values())

    @precondition(anything_ready)
    @rule(worker=workers, limit=st.integers(1, 4))
    def lease(self, worker: str, limit: int) -> None:
        self.do(c.Lease(worker, list(QUEUES), limit))

    @precondition(anything_ready)
    @rule(worker=workers, found=st.lists(ends, min_size=1, max_size=5))
    def work(self, worker: str, found: list[End]) -> None:
        """Lease as many as there are ends, and end all in one report."""
        leased = self.do(c.Lease(worker, list(QUEUES), len(found)))
        tokens = [event.token for event in leased if isinstance(event, e.TaskLeased)]
        self.report(worker, dict(zip(tokens, found, strict=False)))

    @precondition(anything_ready)
    @rule(worker=workers, chunks=st.sampled_from([1, 3, 5]), rounds=st.integers(1, 2))
    def work_well(self, worker: str, chunks: int, rounds: int) -> None:
        """Let all go well for a while."""
        end = End("ok", True, None, chunks, False, [], False, False, "")
        for _ in range(rounds):
            leased = self.do(c.Lease(worker, list(QUEUES), 6))
            tokens = [event.token for event in leased if isinstance(event, e.TaskLeased)]
            self.report(worker, dict.fromkeys(tokens, end))

    @precondition(lambda self: self.state.leases)
    @rule(pick=some, end=ends)
    def finish(self, pick: int, end: End) -> None:
        token = list(self.state.leases)[pick % len(self.state.leases)]
        self.report(self.state.leases[token].worker, {token: end})

    @precondition(anything_ready)
    @rule(
        worker=workers,
        limit=st.integers(1, 4),
        picks=st.lists(some, min_size=1, max_size=3),
        end=ends,
        others=st.booleans(),
    )
    def lose_inputs(
        self, worker: str, limit: int, picks: list[int], end: End, others: bool
    ) -> None:
        """Lease, and let those that have inputs find some gone; whoever has none may do well."""
        self.do(c.Lease(worker, list(QUEUES), limit))
        lost = msgspec.structs.replace(end, kind="lost", picks=picks)
        well = msgspec.structs.replace(end, kind="ok", unlike=False)
        ends = {}
        for token in self.state.held.get(worker, ()):
            task = self.state.leases[token]
            if isinstance(task, StepTask) and self.inputs(task):
                ends[token] = lost
            elif others:
                ends[token] = well
        self.report(worker, ends)

    def report(self, worker: str, ends: dict[int, End]) -> None:
        outcomes = [self.outcome(token, end) for token, end in ends.items()]
        ended = set(ends)
        command = c.Finish(worker, outcomes * 2, [0.5] * 2 * len(outcomes))

        self.do(command)

        assert not ended & self.state.leases.keys()
        assert self.do(command) == []

    def outcome(self, token: int, end: End) -> Outcome:
        task = self.state.leases[token]
        output = Output()
        if isinstance(task, StepTask) and task.role is Role.SPLIT:
            key = task.job.id, task.step.spec.name
            count = self.chunks.get(key, end.chunks)
            other = "other" if end.unlike and key in self.chunks else ""
            manifest = FileInfo("manifest", "p", 1, f"{key}{count}{other}")
            output = Output(chunks=count, manifest=manifest)
        data = msgspec.json.encode(output)
        if end.kind == "lost":
            data = msgspec.json.encode(self.lost_by(task, end))
        return Outcome(
            token,
            end.kind,
            started_at=1.0,
            ended_at=2.0,
            output=msgspec.Raw(data),
            alone=end.alone,
            delay_s=end.delay_s,
            cause=end.cause,
        )

    def lost_by(self, task: Task, end: End) -> list[tuple[str, int]]:
        """Return what the attempt says is lost: its inputs, or what cannot be any."""
        names = self.inputs(task) if isinstance(task, StepTask) else []
        if end.bogus or not names:
            anything = [*self.state.jobs[task.job.id].tasks]
            names = [t.id for t in anything]
            names += ["", "s0", "s0.-1", "s0.007", "s0.99", "s0.join", "s9.0", "0", "s1.whole"]
        picked = [names[pick % len(names)] for pick in end.picks]
        made = [(name, self.made_by.get((task.job.id, name), [1])) for name in picked]
        return [(name, by[-2] if end.stale and len(by) > 1 else by[-1]) for name, by in made]

    def inputs(self, task: StepTask) -> list[str]:
        """Return the tasks whose outputs it may read: of its own step, and of all before it."""
        plan = self.plan(task.job.id)
        steps, names = [task.step.spec], []
        for spec in steps:
            steps += [plan.steps[n].spec for n in spec.needs if plan.steps[n].spec not in steps]
        for spec in steps:
            own = spec is task.step.spec
            prefix = f"{spec.name}." if spec.name else ""
            if not spec.fans_out:
                names += [] if own else [spec.name]
                continue
            if own and task.role is Role.SPLIT:
                continue
            names.append(f"{prefix}split")
            if own and task.role is not Role.JOIN:
                continue
            names += [f"{prefix}{i}" for i in range(plan.steps[spec.name].count)]
            if spec.join and not own:
                names.append(f"{prefix}join")
        return names

    @precondition(lambda self: self.state.held)
    @rule(worker=workers)
    def lose_worker(self, worker: str) -> None:
        self.do(c.LoseWorker(worker, "signal 9"))

        assert worker not in self.state.held

    @precondition(lambda self: self.state.leases)
    @rule(pick=some)
    def reclaim(self, pick: int) -> None:
        token, task = list(self.state.leases.items())[pick % len(self.state.leases)]
        assert self.do(c.Reclaim(task.worker, [token]))

    @precondition(lambda self: self.state.jobs)
    @rule(pick=some)
    def cancel(self, pick: int) -> None:
        job_id = list(self.state.jobs)[pick % len(self.state.jobs)]
        status = job_status(self.state.jobs[job_id])
        try:
            self.do(c.Cancel(job_id))
        except Conflict:
            assert status in ("completed", "failed")
        else:
            assert status not in ("completed", "failed")

    @precondition(lambda self: any(job_status(j) == "failed" for j in self.state.jobs.values()))
    @rule(pick=some)
    def revive(self, pick: int) -> None:
        failed = [job for job in self.state.jobs.values() if job_status(job) == "failed"]
        job = failed[pick % len(failed)]
        if job.purged:
            with pytest.raises(Conflict):
                self.do(c.Revive(job.id))
            return
        assert self.do(c.Revive(job.id, self.now() + 20.0 if pick % 3 == 0 else 0.0))
        assert not job.finished_at

    @precondition(lambda self: self.state.dead)
    @rule(pick=some)
    def purge(self, pick: int) -> None:
        job = list(self.state.dead.values())[pick % len(self.state.dead)].job
        if job.finished_at:
            assert self.do(c.Purge(job.id))
            assert self.do(c.Purge(job.id)) == []
        else:
            with pytest.raises(Conflict):
                self.do(c.Purge(job.id))

    @rule(limits=limits)
    def configure(self, limits: dict[str, Limit]) -> None:
        self.configs += 1
        self.do(c.Configure(b'{"revision":%d}' % self.configs, "run", {}, limits))

    @precondition(lambda self: self.state.leases)
    @rule(pick=some)
    def promote(self, pick: int) -> None:
        token, task = list(self.state.leases.items())[pick % len(self.state.leases)]
        queue, stop = task.line.name, task.stop
        resumable = isinstance(task, StepTask) and task.step.spec.resumable

        self.do(c.Promote(token))

        assert (task.line.name == queue) == bool(resumable or stop)
        assert task.stop == (stop or ("promote" if resumable else ""))

    @rule(what=st.sampled_from(["compact", "compact", "restart", "dump", "pause", "resume"]))
    def operate(self, what: str) -> None:
        match what:
            case "compact" if self.planned is None:
                self.begin_a_compaction()
            case "compact":
                self.end_a_compaction()
            case "restart":
                self.restart()
            case "dump":
                self.shadow = load(list(dump(self.shadow)))
            case "pause":
                self.do(c.PauseQueue("io"))
            case _:
                for queue in QUEUES:
                    self.do(c.ResumeQueue(queue))

    def begin_a_compaction(self) -> None:
        seq = self.shadow.seq
        self.planned = list(dump(self.shadow, through=seq)), seq, len(self.journal)
        assert self.do(c.PlanCompaction(self.state.compacted + 1))

    def end_a_compaction(self) -> None:
        assert self.planned is not None
        rows, seq, at = self.planned
        self.planned, self.base = None, (rows, at)
        assert self.do(c.EndCompaction(self.state.planned, seq))
        self.do(c.Evict(2))

    def restart(self) -> None:
        """Follow the last compaction's snapshot with what the journal holds after it."""
        rows, at = self.base
        self.shadow = load(rows)
        for when, row in self.journal[at:]:
            evolve(self.shadow, e.from_row(row), when)
        rows = list(dump(self.shadow))
        assert list(dump(load(rows))) == rows

    @rule(seconds=st.sampled_from([0.0, 0.5, 30.0, 1_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.wall = self.now() + seconds
        self.do(c.Tick())
        assert self.do(c.Tick()) == []
        if self.now() == self.state.at:
            check_gates(self.state, ticked=True)

    # --- what must hold -----------------------------------------------------------------------

    def tasks(self) -> list[Task]:
        return [task for job in self.state.order for task in job.tasks]

    def planned_jobs(self) -> list[tuple[Job, PlanState]]:
        return [(job, job.plan) for job in self.state.order if job.plan is not None]

    @invariant()
    def the_journal_gives_the_same_state(self) -> None:
        assert comparable(self.shadow) == comparable(self.state)
        assert not self.state.moving

    @invariant()
    def limits_and_counts_agree_with_the_tasks(self) -> None:
        check_gates(self.state)
        check_counts(self.state)

    @invariant()
    def all_indexes_agree(self) -> None:
        leased = {t.token: t for t in self.tasks() if t.state is S.LEASED}
        stops = {t.token: t.stop for t in leased.values() if t.stop}
        held = {t: w for w, tokens in self.state.held.items() for t in tokens}

        assert self.state.leases == leased
        assert held == {token: task.worker for token, task in leased.items()}
        assert {t: s for told in self.state.stopping.values() for t, s in told.items()} == stops
        assert len(leased) == sum(t.token > 0 for t in self.tasks())
        for name, line in self.state.lines.items():
            mine = [t for t in self.tasks() if t.line is line]
            ready = [*(task for _, task in line.in_turn()), *line.suspects]
            counted = [
                t
                for t in mine
                if not (t.job.finished_at and t.state is S.WAITING)
                and not (t.job.purged and t.state is S.DEAD)
            ]
            assert line.counts == {s: sum(t.state is s for t in counted) for s in S}
            assert line.chunks == sum(
                isinstance(t, StepTask) and t.role is Role.CHUNK and t.state not in TERMINAL
                for t in counted
            )
            assert len(ready) == len(set(ready)), name
            assert set(ready) == {t for t in mine if t.state is S.READY}
            for bucket in line.buckets.values():
                for tenant in bucket.tenants.values():
                    assert tenant.size == sum(flow.size for flow in tenant.flows.values())
                    for flow in tenant.flows.values():
                        tickets = [t.ticket for t in flow]
                        assert len(tickets) == flow.size
                        assert tickets == sorted(set(tickets))
        assert self.state.plans == {job.id: job for job, _ in self.planned_jobs()}
        assert self.state.dead == {
            (t.job.id, t.id): t
            for t in self.tasks()
            if t.state is S.DEAD
            and job_status(t.job) not in ("completed", "cancelled")
            and not t.job.purged
        }

    @invariant()
    def a_plan_counts_its_tasks(self) -> None:
        for job, plan in self.planned_jobs():
            assert job.tasks == plan.tasks.values() or list(job.tasks) == list(plan.tasks.values())
            assert plan.counts == {s: sum(t.state is s for t in plan.tasks.values()) for s in S}
            assert plan.asked == sum(bool(t.stop) for t in plan.tasks.values())
            for name, step in plan.steps.items():
                self.chunks_are_somewhere(job, plan, name, step)

    def chunks_are_somewhere(self, job: Job, plan: PlanState, name: str, step: Step) -> None:
        mine = [t for t in plan.tasks.values() if t.role is Role.CHUNK and t.step is step]
        by_index = {t.index: t for t in mine}
        assert len(by_index) == len(mine)
        assert step.counts == {s: sum(t.state is s for t in mine) for s in S}
        assert step.succeeded == sum(step.is_done(i) for i in range(max(0, step.count)))
        assert all(0 <= i < step.count for i in by_index)
        assert step.next <= max(0, step.count)
        for index in range(max(0, step.count)):
            done, known = step.is_done(index), index in by_index
            assert not (done and known)
            assert done or known or index >= step.next
            assert done or index not in step.finished
        unfinished = [t for t in mine if t.state not in TERMINAL]
        assert len(unfinished) <= 2 * step.spec.at_once + self.returned[job.id, name]
        if step.state is StepState.SUCCEEDED and step.spec.fans_out:
            gone = [t for t in mine if t.state is not S.DEAD]
            assert step.succeeded + step.dead + len(gone) == step.count
            assert all(self.lost[job.id, t.id] for t in gone)

    @invariant()
    def a_job_can_always_end(self) -> None:
        for job, plan in self.planned_jobs():
            if job.finished_at:
                continue
            busy = plan.counts[S.READY] + plan.counts[S.LEASED] + plan.counts[S.PARKED]
            timed = [t for t in plan.tasks.values() if t.due_at]
            assert {t.state for t in timed} <= {S.WAITING, S.BACKING_OFF}
            assert busy or timed, f"{job.id} stands still"

    @invariant()
    def whoever_waits_for_a_moment_has_a_timer(self) -> None:
        timed = {t for t in self.tasks() if t.state in (S.WAITING, S.BACKING_OFF) and t.due_at}
        assert {task for _, task in self.state.timers.live()} == timed
        assert not any(task.job.finished_at for task in timed)

    @invariant()
    def budgets_and_numbers(self) -> None:
        for task in self.tasks():
            assert task.recoveries <= RULES.recoveries_max
            assert task.interruptions <= RULES.interruptions_max
            numbers = [past.number for past in task.past or ()]
            assert numbers == sorted(set(numbers))
            assert all(number <= task.attempt for number in numbers)

    @invariant()
    def what_ended_stays_as_it_was(self) -> None:
        for job, plan in self.planned_jobs():
            status = job_status(job)
            if not job.finished_at:
                assert job.id not in self.over
                assert status in ("scheduled", "pending", "processing")
                continue
            assert self.over.setdefault(job.id, (status, job.finished_at)) == (
                status,
                job.finished_at,
            )
            states = {step.state for step in plan.steps.values()}
            if plan.stop in OVER:
                assert status == "cancelled"
                assert job.reason == plan.stop
            elif StepState.FAILED in states:
                assert status == "failed"
            else:
                assert (status, states) == ("completed", {StepState.SUCCEEDED})
            live = {S.READY, S.PARKED, S.LEASED, S.BACKING_OFF}
            assert not any(plan.counts[s] for s in live)
            assert status == "failed" or not plan.counts[S.WAITING]

    def teardown(self) -> None:
        """Whatever happened: once all goes well, every job ends."""
        for worker in WORKERS:
            self.do(c.LoseWorker(worker, "end of test"))
        for queue in QUEUES:
            self.do(c.ResumeQueue(queue))
        end = End("ok", True, None, 3, False, [], False, False, "")
        for n in range(400):
            self.wall = self.now() + 5_000.0
            self.do(c.Tick())
            leased = self.do(c.Lease(f"last{n}", list(QUEUES), 10))
            if not leased and not any(not job.finished_at for job in self.state.order):
                break
            self.report(
                f"last{n}", {ev.token: end for ev in leased if isinstance(ev, e.TaskLeased)}
            )
        for job in self.state.order:
            assert job.finished_at, f"{job.id} never ends"
        self.what_ended_stays_as_it_was()
        self.all_indexes_agree()
        assert (self.state.leases, self.state.starts, self.state.usage) == ({}, {}, {})
        assert not any(gate.in_use or gate.sides for gate in self.state.gates.values())
        assert next_opening(self.state) is None


# Twenty seconds where nothing else runs; the limit is for machines where much does.
TestPlanned = pytest.mark.timeout(240)(Planned.TestCase)
TestPlanned.settings = settings(
    max_examples=75,
    stateful_step_count=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
