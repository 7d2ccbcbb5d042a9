"""Refusals: how long they tell to wait, and what a gateway makes of those that it has seen."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from cluster import gateway as gateway_module
from cluster.gateway import Gateway
from cluster.history.reader import History
from cluster.ids import uuid7_maker
from cluster.protocol import Accepted, Outcome, Output, Refused, encode
from cluster.queue.rules import QueueLimits, TenantLimits
from cluster.queue.spec import JobSpec
from cluster.refusals import ASKED
from cluster.store.memory import MemoryObjects
from jobs.errors import DraymanError, Overloaded
from tests.support.cluster import FakeClock, Life, life
from tests.support.eventually import eventually

SPEC = JobSpec("greet", tenant="acme")


class Counted:
    """The way to a manager, and how many submissions went it."""

    def __init__(self, one: Life) -> None:
        self._manager = one.manager
        self.asked = 0
        #: While it is clear, submissions do not arrive.
        self.open = asyncio.Event()
        self.open.set()

    async def submit(self, payload: bytes) -> bytes:
        self.asked += payload.count(b'"greet"')
        await self.open.wait()
        return await self._manager.submit(payload)

    async def call(self, payload: bytes) -> bytes:
        return await self._manager.call(payload)


class World:
    """A manager with limits, and a gateway whose clock stands unless it is moved."""

    def __init__(self, one: Life, objects: MemoryObjects) -> None:
        self.life, self.port, self.now = one, Counted(one), 0.0
        self.gateway = Gateway(
            self.port,
            new_id=uuid7_maker(),
            incarnation="g",
            history=History(objects),
            objects=objects,
            wall=time.time,
            monotonic=lambda: self.now,
        )

    async def refused(self, spec: JobSpec = SPEC) -> Overloaded | None:
        """Submit one; return why it was refused, if it was."""
        try:
            await self.gateway.submit(spec)
        except Overloaded as error:
            return error
        return None

    async def flood(self, spec: JobSpec = SPEC, *, count: int = ASKED + 1) -> None:
        for _ in range(count):
            assert await self.refused(spec)

    async def end(self, count: int) -> None:
        """Let so many jobs be done."""
        orders = await self.life.take(free=count)
        output = msgspec.Raw(encode(Output()))
        ended = [Outcome(one.token, "ok", 1.0, 2.0, output) for one in orders.assignments]
        assert len(ended) == count
        await self.life.report(outcomes=ended)


@asynccontextmanager
async def limited(clock: FakeClock | None = None, **config: Any) -> AsyncIterator[World]:
    objects = MemoryObjects()
    async with life(objects, "w1", config=config, clock=clock) as one:
        world = World(one, objects)
        yield world
        await world.gateway.close()


@pytest.fixture
async def full() -> AsyncIterator[World]:
    """A tenant `acme` at its limit of two."""
    async with limited(tenants={"acme": TenantLimits(depth_max=2)}) as world:
        await world.gateway.submit_many([SPEC] * 2)
        yield world


# --- how long to wait -------------------------------------------------------------------------


async def test_the_wait_is_what_a_twentieth_of_the_queue_takes_at_its_pace() -> None:
    clock = FakeClock()
    async with limited(clock, queues={"default": QueueLimits(depth_max=200)}) as world:
        await world.gateway.submit_many([SPEC] * 200)
        clock.offset_s += 60.0
        await world.end(100)
        await world.gateway.submit_many([SPEC] * 100)

        refusal = await world.refused()

        assert refusal is not None
        assert (refusal.scope, refusal.name, refusal.quota) == ("queue", "default", 200)
        # A hundred in a minute, and ten of two hundred have to go.
        assert refusal.retry_after_s == pytest.approx(6.0, rel=0.1)


async def test_where_nothing_ends_the_wait_is_long(full: World) -> None:
    refusal = await full.refused()

    assert refusal is not None
    assert refusal.retry_after_s == 30.0


async def test_a_tenant_waits_for_its_own_work_whatever_others_get_done() -> None:
    clock = FakeClock()
    limits = {"slow": TenantLimits(depth_max=40), "quick": TenantLimits(depth_max=400)}
    async with limited(clock, tenants=limits) as world:
        slow, quick = JobSpec("greet", tenant="slow"), JobSpec("greet", tenant="quick")
        await world.gateway.submit_many([slow] * 40 + [quick] * 400)
        clock.offset_s += 600.0
        # In turns: as many of the one as of the other.
        await world.end(20)
        await world.gateway.submit_many([slow] * 10 + [quick] * 10)

        waits = [await world.refused(spec) for spec in (slow, quick)]

        slow_s, quick_s = (error.retry_after_s for error in waits if error is not None)
        assert slow_s < quick_s / 5  # its twentieth is two jobs, that of the other twenty


async def test_a_drained_queue_says_so_and_is_not_timed() -> None:
    async with limited(queues={"default": QueueLimits(draining=True)}) as world:
        refusal = await world.refused()

        assert refusal is not None
        assert "drained" in refusal.reason
        assert refusal.retry_after_s == 5.0


# --- what a gateway has seen ------------------------------------------------------------------


async def test_a_flood_of_refusals_is_turned_away_without_the_manager(full: World) -> None:
    await full.flood()
    asked = full.port.asked

    refusal = await full.refused()

    assert refusal is not None
    assert (refusal.scope, refusal.name, refusal.quota) == ("tenant", "acme", 2)
    assert full.port.asked == asked
    with pytest.raises(Overloaded):
        full.gateway.check_room(1, tenant="acme")


async def test_a_few_refusals_are_no_flood_so_a_known_key_is_answered(full: World) -> None:
    keyed = JobSpec("greet", tenant="x", key="k", fingerprint="f", key_expires_at=9e9)
    first = await full.gateway.submit(keyed)
    await full.flood(count=ASKED)

    again = await full.gateway.submit(keyed)

    assert (again.job_id, again.replayed) == (first.job_id, True)


async def test_others_are_not_refused_with_a_tenant(full: World) -> None:
    await full.flood()

    assert await full.refused(JobSpec("greet", tenant="other")) is None
    full.gateway.check_room(1, tenant="other")


async def test_room_that_was_made_is_found_soon(full: World) -> None:
    await full.flood()
    await full.end(1)

    assert await full.refused()
    full.now += 0.25
    assert await full.refused() is None


async def test_only_who_asks_for_the_full_queue_alike_is_refused_with_it() -> None:
    async with limited(queues={"default": QueueLimits(depth_max=1)}) as world:
        sent_on = JobSpec("greet", routed=True)
        await world.gateway.submit(SPEC)
        await world.flood(sent_on)
        asked = world.port.asked

        assert await world.refused(sent_on)
        assert world.port.asked == asked
        # Another type may be known to run long, and be sent elsewhere.
        for spec in (JobSpec("greet", routed=True, expected_s=9.0), JobSpec("greet")):
            assert await world.refused(spec)
        assert world.port.asked == asked + 2
        world.gateway.check_room(1, tenant="default")


async def test_what_is_too_large_now_says_nothing_of_what_is_smaller() -> None:
    limits = {"acme": TenantLimits(bytes_max=400)}
    async with limited(tenants=limits) as world:
        await world.gateway.submit(SPEC)
        await world.flood(JobSpec("greet", tenant="acme", labels={"a": "x" * 500}))

        assert await world.refused() is None
        world.gateway.check_room(1, tenant="acme")


async def test_lines_of_a_batch_are_refused_one_by_one_in_a_flood(full: World) -> None:
    await full.flood()
    asked = full.port.asked
    mixed = [SPEC, JobSpec("greet", tenant="other")] * 3

    results = await full.gateway.submit_many(mixed)

    assert [type(result) for result in results] == [Refused, Accepted] * 3
    assert full.port.asked == asked + 3


async def test_a_batch_teaches_the_gateway_as_single_ones_do(full: World) -> None:
    results = await full.gateway.submit_many([SPEC] * 30)
    asked = full.port.asked

    assert {type(result) for result in results} == {Refused}
    assert await full.refused()
    assert full.port.asked == asked


async def test_refusals_for_countless_reasons_are_not_kept_for_ever(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.refusals.KNOWN_MAX", 10)
    error = Overloaded("tenant", "full", 1.0, "x", 1)
    for n in range(100):
        full.gateway._refusals.note(JobSpec("greet", tenant=f"t{n}"), 1, error)

    assert len(full.gateway._refusals._full) <= 10


# --- what waits in a gateway ------------------------------------------------------------------


async def test_bytes_that_wait_are_bounded_beside_their_count(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "PENDING_BYTES_MAX", 10_000)
    monkeypatch.setattr(gateway_module, "BATCH_BYTES_MAX", 1)
    full.port.open.clear()
    large = JobSpec("greet", tenant="other", labels={"a": "x" * 3_000})
    before = full.port.asked
    sending = [asyncio.ensure_future(full.gateway.submit(large)) for _ in range(2)]
    await eventually(lambda: full.port.asked == before + gateway_module.IN_FLIGHT)
    waiting = [asyncio.ensure_future(full.gateway.submit(large)) for _ in range(3)]
    await eventually(lambda: full.gateway._waiting == len(waiting))

    with pytest.raises(Overloaded, match="waiting") as refused:
        await full.gateway.submit(large)
    with pytest.raises(Overloaded):
        await full.gateway.submit_many([large])
    assert refused.value.scope == "system"

    full.port.open.set()
    assert all(accepted.job_id for accepted in await asyncio.gather(*sending, *waiting))
    assert (await full.gateway.submit(large)).job_id


async def test_a_refusal_survives_the_way_as_it_is(full: World) -> None:
    [result] = await full.gateway.submit_many([SPEC])

    assert isinstance(result, Refused)
    error: DraymanError = result.exception()
    assert isinstance(error, Overloaded)
    assert (error.name, error.quota, error.unit) == ("acme", 2, "jobs")
