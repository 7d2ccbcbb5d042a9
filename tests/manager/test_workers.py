"""When the manager gives a worker up, and whom it charges for it."""

import asyncio
from typing import Any

import pytest

from cluster.protocol import NODE_LOST, Outcome
from cluster.queue.spec import JobSpec
from tests.support.cluster import GatedObjects, life
from tests.support.eventually import eventually

SPEC = JobSpec(type="noop")


@pytest.fixture
def objects() -> GatedObjects:
    return GatedObjects()


def pass_time(now: Any, seconds: float) -> None:
    """Move the clock in steps that no suspended machine would make."""
    for _ in range(int(seconds * 2)):
        now.clock.offset_s += 0.5
        now.manager.tick()


async def leased(now: Any) -> Any:
    """Submit one job to `w1`, and return its task."""
    job_id = (await now.gateway.submit(SPEC)).job_id
    await now.take("w1")
    return now.state.jobs[job_id].tasks[0]


async def test_a_stalled_store_is_not_blamed_on_the_workers_that_wait_for_it(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        task = await leased(now)
        await now.gateway.submit(SPEC)
        objects.gate.clear()
        waiting = asyncio.create_task(now.take("w1"))
        await eventually(lambda: now.manager._sessions["w1"].owed)

        pass_time(now, 60)
        objects.gate.set()
        await waiting
        pass_time(now, 10)

        assert now.workers.killed == []
        assert task.worker == "w1"

        pass_time(now, 10)
        await eventually(lambda: now.workers.killed == ["w1"])


async def test_a_worker_that_went_with_its_node_costs_its_tasks_nothing(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        task = await leased(now)
        now.workers.cause = NODE_LOST

        now.workers.dies("w1")
        await eventually(lambda: not now.state.leases)

        assert (task.recoveries, task.interruptions, task.failures) == (0, 1, 0)
        assert task.past[-1].cause == "node lost"


async def test_a_worker_that_ray_killed_for_memory_is_told_so(objects: GatedObjects) -> None:
    async with life(objects) as now:
        task = await leased(now)
        await now.report(held=[task.token])
        now.workers.cause = "oom"

        now.workers.dies("w1")
        await eventually(lambda: not now.state.leases)

        assert (task.recoveries, task.past[-1].cause) == (1, "oom")


async def test_a_hung_worker_found_by_a_new_manager_is_given_up_in_the_usual_time(
    objects: GatedObjects,
) -> None:
    async with life(objects) as before:
        await leased(before)
    async with life(objects, "w1") as now:
        pass_time(now, 16)

        await eventually(lambda: now.workers.killed == ["w1"])
        await eventually(lambda: not now.state.leases)


async def test_work_of_a_silent_worker_is_given_away_only_after_its_kill(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        await leased(now)
        killing, killed = asyncio.Event(), asyncio.Event()

        async def kill(worker: str) -> None:
            killing.set()
            await killed.wait()

        now.workers.kill = kill
        pass_time(now, 20)
        await asyncio.wait_for(killing.wait(), 5)
        leases = len(now.state.leases)
        killed.set()
        await eventually(lambda: not now.state.leases)

        assert leases == 1


async def test_a_manager_that_was_replaced_kills_no_worker(objects: GatedObjects) -> None:
    async with life(objects) as old:
        await leased(old)
        async with life(objects, "w1"):
            pass_time(old, 20)
            await eventually(lambda: old.fatal)

        assert old.workers.killed == []


async def test_work_that_is_handed_back_goes_to_a_parked_worker_in_the_same_commit(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        task = await leased(now)
        parked = asyncio.create_task(now.take("w2"))
        await eventually(lambda: now.manager._sessions.get("w2") is not None)
        segments = len(objects.written)

        await now.report("w1", outcomes=[Outcome(task.token, "returned")], draining=True)
        orders = await asyncio.wait_for(parked, 2)

        assert [a.task_id for a in orders.assignments] == [task.id]
        assert len(objects.written) == segments + 1


async def test_work_that_was_taken_back_goes_to_who_is_idle_and_not_straight_back(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        for _ in range(2):
            await now.gateway.submit(SPEC)
        running, waiting = (await now.report("w1", free=1, prefetch=1)).assignments
        parked = asyncio.create_task(now.take("w2"))
        await eventually(lambda: now.manager._sessions.get("w2") is not None)

        back = Outcome(waiting.token, "returned")
        mine = await now.report("w1", held=[running.token], outcomes=[back], prefetch=1)
        orders = await asyncio.wait_for(parked, 2)

        assert [a.job_id for a in orders.assignments] == [waiting.job_id]
        assert not mine.assignments
