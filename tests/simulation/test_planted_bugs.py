"""The auditor is no ornament: each of these bugs, planted into the product, is soon found."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest

from cluster.commit import CommitLog
from cluster.manager import Manager, WorkerPort
from cluster.queue import commands as c
from cluster.queue import engine
from cluster.queue.events import TaskLeased
from cluster.queue.state import TaskState
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
    jobs: dict[int, str] = {}
    lease, finish = engine._DECIDE[c.Lease], engine._DECIDE[c.Finish]

    def remember(state: Any, rules: Any, command: Any, now: float) -> Any:
        events = lease(state, rules, command, now)
        jobs.update((e.token, e.job_id) for e in events if isinstance(e, TaskLeased))
        return events

    def believe(state: Any, rules: Any, command: Any, now: float) -> Any:
        events = finish(state, rules, command, now)
        for outcome, draw in zip(command.outcomes, command.draws, strict=True):
            job = state.jobs.get(jobs.get(outcome.token, ""))
            if outcome.token not in state.leases and job is not None:
                (task,) = job.tasks
                if task.state is TaskState.LEASED:
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

    async def live(self) -> dict[str, str]:
        return {}


@contextlib.contextmanager
def readopt_nothing() -> Iterator[Plan]:
    start = Manager.start

    async def start_anew(self: Manager, version: str) -> None:
        self._workers = Forgetful(self._workers)
        await start(self, version)

    with mock.patch.object(Manager, "start", start_anew):
        yield Plan()


def hunt(plan: Plan) -> Result:
    """Return the first schedule that breaks a promise."""
    for seed in range(1, SEEDS_MAX + 1):
        result = simulate(seed, plan)
        if result.violations:
            return result
    raise AssertionError(f"nothing was found in {SEEDS_MAX} schedules")


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        (ack_before_append, "before it was durable"),
        (accept_a_stale_token, "lease"),
        (skip_fsync, "durable"),
        (readopt_nothing, "while it runs"),
    ],
)
def test_planted_bug_is_found(bug: Any, told: str) -> None:
    with bug() as plan:
        result = hunt(plan)
        again = simulate(result.seed, plan)

    assert told in " ".join(result.violations)
    assert again.trace == result.trace
