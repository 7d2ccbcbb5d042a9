"""What happens by itself: one part of it that fails stops no other, nor does one of very much."""

from typing import Any

import msgspec
import pytest

from cluster.config import Config, PoolSettings
from cluster.manager import Manager
from cluster.queries import Query
from cluster.queue import engine
from cluster.queue.events import TaskReady
from cluster.queue.rules import QueueLimits
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import JobSpec, encode_spec
from cluster.schedules import AT_ONCE
from cluster.store.memory import MemoryObjects
from cluster.views import DeadLetterQuery
from tests.support.cluster import FakeClock, Life, life

POOL = PoolSettings(name="cpu", queues=["default", "other"], min=0, max=0)


def a_schedule(name: str, queue: str = "default", **more: Any) -> ScheduleSpec:
    raw = msgspec.Raw(encode_spec(JobSpec("greet", tenant="t", queue=queue)))
    return ScheduleSpec(
        **{"name": name, "tenant": "t", "cron": "* * * * *", "request": raw, "job": raw, **more}
    )


async def put(one: Life, *specs: ScheduleSpec) -> None:
    for spec in specs:
        await one.manager.call(msgspec.json.encode(Query("put_schedule", schedule=spec)))


async def test_a_schedule_whose_queue_was_taken_away_skips_ticks_and_stops_no_other() -> None:
    async with life(MemoryObjects("memory://"), pools=[POOL]) as one:
        await put(one, a_schedule("gone", "other"), a_schedule("good"))
        config = Config(pools={"cpu": msgspec.structs.replace(POOL, queues=["default"])})
        await one.manager.call(msgspec.json.encode(Query("configure", config=config)))

        one.clock.offset_s += 60.0
        one.manager.tick()

        gone, good = (one.state.schedules["t", name] for name in ("gone", "good"))
        assert (gone.fired, gone.skipped, good.fired, good.skipped) == (0, 1, 1, 0)
        config = Config(pools={"cpu": POOL})
        await one.manager.call(msgspec.json.encode(Query("configure", config=config)))
        one.clock.offset_s += 60.0
        one.manager.tick()
        assert (gone.fired, gone.skipped) == (1, 1)


async def test_a_schedule_whose_time_zone_is_gone_stops_no_other() -> None:
    async with life(MemoryObjects("memory://"), pools=[POOL]) as one:
        await put(one, a_schedule("gone"), a_schedule("good"))
        schedule = one.state.schedules["t", "gone"]
        schedule.spec = msgspec.structs.replace(schedule.spec, timezone="Atlantis/Capital")

        one.clock.offset_s += 60.0
        one.manager.tick()

        assert one.state.schedules["t", "good"].fired == 1


async def test_a_schedule_that_waits_for_room_does_not_wait_for_a_clock_that_was_set_back() -> None:
    async with life(MemoryObjects("memory://"), pools=[POOL]) as one:
        limits = {"default": QueueLimits(depth_max=1), "other": QueueLimits()}
        config = Config(pools={"cpu": POOL}, queues=limits)
        await one.manager.call(msgspec.json.encode(Query("configure", config=config)))
        in_the_way = await one.gateway.submit(JobSpec("greet"))
        await put(one, a_schedule("patient"))
        one.clock.behind_s = -600.0
        one.manager.tick()
        one.clock.behind_s = 0.0
        await one.gateway.cancel(in_the_way.job_id, None)

        one.clock.offset_s += 61.0
        one.manager.tick()

        assert one.state.schedules["t", "patient"].fired == 1


async def test_a_long_absence_is_made_up_for_piece_by_piece() -> None:
    class Slow(FakeClock):
        def monotonic(self) -> float:
            self.offset_s += 0.03  # as if each look at it took so long
            return super().monotonic()

    async with life(MemoryObjects("memory://"), pools=[POOL], clock=Slow()) as one:
        await put(one, a_schedule("all", cron="* * * * * *", catch_up="all"))
        one.clock.offset_s += 3_000.0

        one.manager.tick()
        after_one = one.state.schedules["t", "all"].fired

        assert 0 < after_one <= 2 * AT_ONCE
        for _ in range(10):
            one.manager.tick()
        assert one.state.schedules["t", "all"].fired >= 3_000


async def test_a_part_that_fails_does_not_stop_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(manager: Manager) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Manager, "_promote", broken)
    async with life(MemoryObjects("memory://"), pools=[POOL]) as one:
        await one.gateway.submit(JobSpec("greet", run_at=one.clock.wall() + 30.0))
        one.clock.offset_s += 31.0

        one.manager.tick()

        (job,) = one.state.jobs.values()
        assert [task.state.value for task in job.tasks] == ["ready"]


async def test_an_event_that_cannot_be_applied_ends_the_manager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(state: Any, event: Any, at: float) -> None:
        raise KeyError("somewhere")

    monkeypatch.setitem(engine._EVOLVE, TaskReady, broken)
    async with life(MemoryObjects("memory://"), pools=[POOL]) as one:
        await one.gateway.submit(JobSpec("greet", run_at=one.clock.wall() + 30.0))
        one.clock.offset_s += 31.0

        one.manager.tick()

        assert "an event could not be applied: KeyError('somewhere')" in str(one.fatal[0])


async def test_a_pool_that_allows_next_to_no_wait_grows_to_its_most() -> None:
    pool = msgspec.structs.replace(POOL, max=3, wait_s=1e-308)
    async with life(MemoryObjects("memory://"), pools=[pool]) as one:
        one.manager._rates.finished("default", 10, [30.0] * 10)
        await one.gateway.submit_many([JobSpec("greet")] * 20)

        assert one.manager._pools.wanted(pool) == 3


async def test_the_last_of_a_very_slow_redrive_comes_within_a_year_and_a_day() -> None:
    async with life(MemoryObjects("memory://"), "w1", pools=[POOL]) as one:
        for _ in range(2):
            await one.gateway.submit(JobSpec("greet", max_attempts=1))
            (assignment,) = (await one.take()).assignments
            await one.finish(assignment.token, kind="failed")

        assert await one.gateway.redrive(DeadLetterQuery(), rate=1e-300) == 2

        due = [task.due_at for job in one.state.jobs.values() for task in job.tasks]
        assert max(due) < one.clock.wall() + 367 * 86_400
