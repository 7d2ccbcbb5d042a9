"""The auditor is no ornament: each of these bugs, planted into the product, is soon found."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest

import cluster.history.writer
from cluster.commit import CommitLog
from cluster.manager import Manager, WorkerPort
from cluster.operating import Operator
from cluster.queue import commands as c
from cluster.queue import engine
from cluster.queue.events import TaskLeased, TasksAdded
from cluster.queue.plan import Role, Step
from cluster.queue.state import TaskState
from cluster.schedules import Scheduler
from cluster.sessions import Session
from tests.support.simulation.simulation import Plan, Result, simulate

SEEDS_MAX = 500

pytestmark = pytest.mark.timeout(120)


@contextlib.contextmanager
def ack_before_append() -> Iterator[Plan]:
    async def barrier(self: CommitLog) -> None:
        await asyncio.sleep(0)

    with mock.patch.object(CommitLog, "barrier", barrier):
        yield Plan()


@contextlib.contextmanager
def accept_a_stale_token() -> Iterator[Plan]:
    names: dict[int, tuple[str, str]] = {}
    lease, finish = engine._DECIDE[c.Lease], engine._DECIDE[c.Finish]

    def remember(state: Any, rules: Any, command: Any, now: float) -> Any:
        events = lease(state, rules, command, now)
        names.update((e.token, (e.job_id, e.task_id)) for e in events if isinstance(e, TaskLeased))
        return events

    def believe(state: Any, rules: Any, command: Any, now: float) -> Any:
        events = finish(state, rules, command, now)
        for outcome, draw in zip(command.outcomes, command.draws, strict=True):
            job_id, task_id = names.get(outcome.token, ("", ""))
            job = state.jobs.get(job_id)
            if outcome.token not in state.leases and job is not None:
                task = next((task for task in job.tasks if task.id == task_id), None)
                if task is not None and task.state is TaskState.LEASED:
                    outcome = msgspec.structs.replace(outcome, token=task.token)
                    events += finish(state, rules, c.Finish(task.worker, [outcome], [draw]), now)
        return events

    with mock.patch.dict(engine._DECIDE, {c.Lease: remember, c.Finish: believe}):
        yield Plan()


@contextlib.contextmanager
def skip_fsync() -> Iterator[Plan]:
    yield Plan(sync=False)


class Forgetful:
    """The machine's workers, of which none is ever found again."""

    def __init__(self, workers: WorkerPort) -> None:
        self.spawn, self.watch, self.kill = workers.spawn, workers.watch, workers.kill
        self.unplaceable, self.ask_for = workers.unplaceable, workers.ask_for

    async def live(self) -> dict[str, str]:
        return {}


@contextlib.contextmanager
def readopt_nothing() -> Iterator[Plan]:
    start = Manager.start

    async def start_anew(self: Manager, version: str) -> None:
        self._attendance._workers = Forgetful(self._attendance._workers)
        await start(self, version)

    with mock.patch.object(Manager, "start", start_anew):
        yield Plan()


@contextlib.contextmanager
def forget_a_chunk() -> Iterator[Plan]:
    """A manager that starts again has one bit less of what is done."""
    replay = CommitLog.replay

    async def replay_badly(self: CommitLog) -> None:
        await replay(self)
        for job in self.state.plans.values():
            for step in job.plan.steps.values() if job.plan is not None else ():
                if step.finished and not job.finished_at:
                    index = next(iter(step.finished))
                    step.done[index >> 3] &= ~(1 << (index & 7))

    with mock.patch.object(CommitLog, "replay", replay_badly):
        yield Plan()


@contextlib.contextmanager
def add_chunks_twice() -> Iterator[Plan]:
    follow = engine.next_events

    def follow_twice(job: Any) -> Iterator[Any]:
        for event in follow(job):
            yield event
            if isinstance(event, TasksAdded) and event.role == Role.CHUNK:
                yield event

    with mock.patch.object(engine, "next_events", follow_twice):
        yield Plan()


@contextlib.contextmanager
def join_without_the_last_chunk() -> Iterator[Plan]:
    def is_settled(self: Step) -> bool:
        return self.succeeded + self.dead >= self.count - 1 and self.next == self.count

    with mock.patch.object(Step, "is_settled", property(is_settled)):
        yield Plan()


@contextlib.contextmanager
def go_on_after_a_cancel() -> Iterator[Plan]:
    """Chunks that are in line stay there when their job is cancelled."""
    with mock.patch("cluster.queue.plan_next._withdraw", return_value=()):
        yield Plan()


@contextlib.contextmanager
def write_half_the_lineage() -> Iterator[Plan]:
    write = cluster.history.writer.write_lineage

    def write_half(objects: Any, first: int, last: int, job_id: str, tasks: Any) -> None:
        kept = [task for task in tasks if task.index % 2 == 0]
        if kept:
            write(objects, first, last, job_id, kept)

    with mock.patch.object(cluster.history.writer, "write_lineage", write_half):
        yield Plan()


@contextlib.contextmanager
def find_room_at_every_limit() -> Iterator[Plan]:
    with (
        mock.patch("cluster.queue.gates.has_room", return_value=True),
        mock.patch("cluster.queue.dispatch.has_room", return_value=True),
    ):
        yield Plan()


@contextlib.contextmanager
def start_without_spacing() -> Iterator[Plan]:
    with mock.patch("cluster.queue.gates._interval_s", return_value=0.0):
        yield Plan()


@contextlib.contextmanager
def forget_limits_in_a_snapshot() -> Iterator[Plan]:
    with mock.patch("cluster.queue.snapshot.restore_gates"):
        yield Plan()


@contextlib.contextmanager
def forget_schedules_with_their_manager() -> Iterator[Plan]:
    with mock.patch.object(Scheduler, "begin"):
        yield Plan()


@contextlib.contextmanager
def leave_out_a_tick() -> Iterator[Plan]:
    """Of ticks that are due together the first is left out."""
    fire = engine._DECIDE[c.FireSchedule]

    def fire_later(state: Any, rules: Any, command: Any, now: float) -> Any:
        if len(command.ticks) > 1:
            command = msgspec.structs.replace(command, ticks=command.ticks[1:])
        return fire(state, rules, command, now)

    with mock.patch.dict(engine._DECIDE, {c.FireSchedule: fire_later}):
        yield Plan()


@contextlib.contextmanager
def leave_long_work_where_it_is() -> Iterator[Plan]:
    with mock.patch.object(Manager, "_promote"):
        yield Plan()


@contextlib.contextmanager
def send_nobody_away() -> Iterator[Plan]:
    with mock.patch.object(Session, "retire"):
        yield Plan()


@contextlib.contextmanager
def fold_before_the_config_is_read() -> Iterator[Plan]:
    """What was acknowledged for a queue that a live change brought is refused then."""
    begin, fold = Operator.begin, Manager._fold_intake
    is_new: dict[Operator, bool] = {}

    def begin_later(self: Operator) -> bool:
        is_new[self] = True
        return False

    async def fold_first(self: Manager) -> None:
        await fold(self)
        if is_new.pop(self._operator, False):
            begin(self._operator)

    with (
        mock.patch.object(Operator, "begin", begin_later),
        mock.patch.object(Manager, "_fold_intake", fold_first),
    ):
        yield Plan()


def hunt(plan: Plan, first: int = 1) -> Result:
    """Return the first schedule from `first` on that breaks a promise."""
    for seed in range(first, first + SEEDS_MAX):
        result = simulate(seed, plan)
        if result.violations:
            return result
    raise AssertionError(f"nothing was found in {SEEDS_MAX} schedules")


#: Those that take many schedules to show are looked for where they once did.
FIRST = {
    accept_a_stale_token: 46,
    write_half_the_lineage: 40,
    leave_out_a_tick: 17,
    leave_long_work_where_it_is: 14,
    fold_before_the_config_is_read: 69,
}


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        (ack_before_append, "before it was durable"),
        (accept_a_stale_token, "lease"),
        (skip_fsync, "durable"),
        (readopt_nothing, "while it runs"),
        (forget_a_chunk, "its journal gives other jobs"),
        (add_chunks_twice, "follow those below"),
        (join_without_the_last_chunk, "without its chunks"),
        (go_on_after_a_cancel, "after its job was stopped"),
        (write_half_the_lineage, "has no row of task"),
        (find_room_at_every_limit, "is number"),
        (start_without_spacing, "too soon for"),
        (forget_limits_in_a_snapshot, "gives other gates"),
        (forget_schedules_with_their_manager, "did not fire"),
        (leave_out_a_tick, "ticks came"),
        (leave_long_work_where_it_is, "was not moved"),
        (send_nobody_away, "at rest pools have other sizes"),
        (fold_before_the_config_is_read, "was acknowledged, then refused"),
    ],
)
def test_planted_bug_is_found(bug: Any, told: str) -> None:
    with bug() as plan:
        result = hunt(plan, FIRST.get(bug, 1))
        again = simulate(result.seed, plan)

    assert told in " ".join(result.violations)
    assert again.trace == result.trace
