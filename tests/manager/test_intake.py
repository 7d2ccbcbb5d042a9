"""Submissions go on being accepted while the manager is away, and each of them runs once."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from cluster.gateway import Gateway, ManagerAway
from cluster.history.reader import History
from cluster.ids import uuid7_maker
from cluster.manager import Manager
from cluster.protocol import Accepted, Refused
from cluster.queue.spec import JobSpec, encode_spec
from cluster.queue.state import TaskState
from cluster.store.memory import MemoryObjects
from cluster.store.objects import ObjectInfo
from jobs.errors import KeyReused, Overloaded, Unavailable
from tests.support.cluster import FakeClock, Life, life
from tests.support.eventually import eventually

KEYED = {"key": "k", "fingerprint": "f", "key_expires_at": 4e9}


class Port:
    """Ray's handle to a manager that may be away, or lose its reply."""

    def __init__(self) -> None:
        self.manager: Manager | None = None
        self.loses_replies = False

    async def submit(self, payload: bytes) -> bytes:
        return await self._call("submit", payload)

    async def call(self, payload: bytes) -> bytes:
        return await self._call("call", payload)

    async def _call(self, method: str, payload: bytes) -> bytes:
        if self.manager is None:
            raise ManagerAway("it is not there")
        reply: bytes = await getattr(self.manager, method)(payload)
        if self.loses_replies:
            self.manager = None
            raise ManagerAway("it died after it had done it")
        return reply


@asynccontextmanager
async def a_gateway(objects: MemoryObjects, port: Port) -> AsyncIterator[Gateway]:
    clock = FakeClock()
    gateway = Gateway(
        port,
        new_id=uuid7_maker(),
        incarnation=f"g{id(port)}-{len(list(objects.list('')))}",
        history=History(objects),
        objects=objects,
        wall=clock.wall,
        monotonic=clock.monotonic,
        sleep=clock.sleep,
    )
    try:
        yield gateway
    finally:
        await gateway.close()


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects("memory://")


@pytest.fixture
def port() -> Port:
    return Port()


def in_intake(objects: MemoryObjects) -> list[str]:
    return [info.path for info in objects.list("intake/")]


async def ran(one: Life) -> list[str]:
    """Run everything that is ready; return the jobs in the order in which they ran."""
    found = []
    while any(line.counts[TaskState.READY] for line in one.state.lines.values()):
        assigned = (await one.take(free=1)).assignments
        await one.finish(assigned[0].token)
        found.append(assigned[0].job_id)
    return found


async def test_a_job_from_intake_is_pending_and_then_runs_once(
    objects: MemoryObjects, port: Port
) -> None:
    async with a_gateway(objects, port) as gateway:
        job_id = (await gateway.submit(JobSpec("greet"))).job_id
        assert (await gateway.job(job_id, None)).status == "pending"
        with pytest.raises(Unavailable):
            await gateway.job(job_id, "another")

    async with life(objects, "w1") as one:
        assert await ran(one) == [job_id]
        assert in_intake(objects) == []
        assert await ran(one) == []


async def test_another_gateway_answers_for_a_job_in_intake(
    objects: MemoryObjects, port: Port
) -> None:
    async with a_gateway(objects, port) as gateway, a_gateway(objects, Port()) as other:
        job_id = (await gateway.submit(JobSpec("greet", **KEYED))).job_id
        plain = (await gateway.submit(JobSpec("greet"))).job_id

        assert (await other.job(job_id, None)).status == "pending"
        assert (await other.job(plain, None)).status == "pending"
        with pytest.raises(Unavailable):
            await other.job(uuid7_maker()(), None)


async def test_a_batch_whose_reply_was_lost_does_not_run_again_from_intake(
    objects: MemoryObjects, port: Port
) -> None:
    async with life(objects, "w1") as one, a_gateway(objects, port) as gateway:
        port.manager, port.loses_replies = one.manager, True
        first = (await gateway.submit(JobSpec("greet", **KEYED))).job_id
        assert await ran(one) == [first]
        await one.manager._housekeeper.compact()
        one.manager.tick()

        await one.manager._intake.fold()

        assert await ran(one) == []
        assert (await one.gateway.job(first, None)).status == "completed"


async def test_the_first_writer_of_a_key_decides_while_the_manager_is_away(
    objects: MemoryObjects, port: Port
) -> None:
    async with a_gateway(objects, port) as gateway, a_gateway(objects, Port()) as other:
        first = await gateway.submit(JobSpec("greet", **KEYED))
        again = await other.submit(JobSpec("greet", **KEYED))

        assert (again.job_id, again.replayed) == (first.job_id, True)
        with pytest.raises(KeyReused):
            await other.submit(JobSpec("greet", **{**KEYED, "fingerprint": "g"}))

    async with life(objects, "w1") as one:
        assert await ran(one) == [first.job_id]
        assert (await one.gateway.submit(JobSpec("greet", **KEYED))).job_id == first.job_id


async def test_an_id_given_for_a_key_that_was_known_stands_for_the_first_job(
    objects: MemoryObjects, port: Port
) -> None:
    async with life(objects, "w1") as one:
        first = (await one.gateway.submit(JobSpec("greet", **KEYED))).job_id
        assert await ran(one) == [first]
    async with a_gateway(objects, port) as gateway:
        second = (await gateway.submit(JobSpec("greet", **KEYED))).job_id
        reused = (await a_conflict(objects)).job_id

    async with life(objects, "w1") as two:
        assert await ran(two) == []
        view = await two.gateway.job(second, None)
        assert (view.id, view.alias_of, view.status) == (second, first, "completed")
        await two.manager._housekeeper.compact()
        two.manager.tick()
        view = await two.gateway.job(second, None)
        assert (view.id, view.alias_of, view.status) == (second, first, "completed")
        failed = await two.gateway.job(reused, None)
        assert failed.error is not None
        assert (failed.status, failed.error.cause) == ("failed", "idempotency_key_reused")


async def a_conflict(objects: MemoryObjects) -> Accepted:
    """Accept, past the object of the key, a request that the manager must find in conflict."""
    other = {**KEYED, "fingerprint": "g"}
    hidden = objects.get("intake/keys/k.json")
    objects.delete(["intake/keys/k.json"])
    async with a_gateway(objects, Port()) as gateway:
        accepted = await gateway.submit(JobSpec("greet", **other))
    objects.put("intake/moved.json", objects.get("intake/keys/k.json"))
    objects.put("intake/keys/k.json", hidden)
    return accepted


async def test_the_gateway_hands_over_by_itself_when_the_manager_is_back(
    objects: MemoryObjects, port: Port
) -> None:
    async with a_gateway(objects, port) as gateway:
        jobs = [(await gateway.submit(JobSpec("greet"))).job_id for _ in range(3)]
        async with life(objects, "w1") as one:
            port.manager = one.manager
            assert gateway._returning is not None
            await gateway._returning

            assert sorted(await ran(one)) == sorted(jobs)
            assert (await gateway.submit(JobSpec("greet"))).job_id in one.state.jobs
            assert in_intake(objects) == []


async def test_an_object_that_is_gone_unfolded_is_written_again(
    objects: MemoryObjects, port: Port
) -> None:
    async with a_gateway(objects, port) as gateway, life(objects, "w1") as one:
        job_id = (await gateway.submit(JobSpec("greet", **KEYED))).job_id
        objects.delete(in_intake(objects))
        port.manager = one.manager
        assert gateway._returning is not None
        await gateway._returning

        assert await ran(one) == [job_id]


async def test_intake_is_bounded(
    objects: MemoryObjects, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.intake.JOBS_MAX", 3)
    async with a_gateway(objects, port) as gateway:
        for tenant in ("acme", "acme", "globex"):
            await gateway.submit(JobSpec("greet", tenant=tenant))

        with pytest.raises(Overloaded, match="are all there is") as refused:
            await gateway.submit(JobSpec("greet", tenant="globex"))

        assert (refused.value.scope, refused.value.retry_after_s) == ("system", 2.0)


async def test_no_tenant_takes_all_of_intake(
    objects: MemoryObjects, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [JobSpec("greet", key=f"{n:02}") for n in range(12)]
    monkeypatch.setattr("cluster.intake.BYTES_MAX", 10 * len(encode_spec(specs[0])))
    async with a_gateway(objects, port) as gateway:
        results = await gateway.submit_many(specs)
        refused = [one.exception() for one in results if isinstance(one, Refused)]

        assert [one.scope for one in refused if isinstance(one, Overloaded)] == ["tenant"] * 4
        assert (await gateway.submit(JobSpec("greet", tenant="x"))).job_id


async def test_what_was_taken_over_makes_room_in_intake(
    objects: MemoryObjects, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.intake.JOBS_MAX", 5)
    async with a_gateway(objects, port) as gateway, life(objects, "w1") as one:
        for _ in range(4):
            await gateway.submit(JobSpec("greet"))
        port.manager = one.manager
        await eventually(lambda: not gateway._intake.outstanding())

        port.manager = None
        results = await gateway.submit_many([JobSpec("greet")] * 4)

        assert all(isinstance(one, Accepted) for one in results)


async def test_a_copy_of_an_object_that_was_folded_runs_nothing(
    objects: MemoryObjects, port: Port
) -> None:
    async with a_gateway(objects, port) as gateway:
        job_id = (await gateway.submit(JobSpec("greet"))).job_id
    (name,) = in_intake(objects)
    data = objects.get(name)
    async with life(objects, "w1") as one:
        assert await ran(one) == [job_id]
        await one.manager._housekeeper.compact()
        one.manager.tick()
    objects.put(name, data)

    async with life(objects, "w1") as two:
        assert await ran(two) == []
        assert in_intake(objects) == []


async def test_a_manager_that_is_late_to_delete_what_it_took_over_deletes_no_other_job(
    objects: MemoryObjects, port: Port
) -> None:
    async with a_gateway(objects, port) as gateway:
        first = (await gateway.submit(JobSpec("greet", **KEYED))).job_id
        late = in_intake(objects)
    async with life(objects, "w1") as one:
        assert await ran(one) == [first]
    async with a_gateway(objects, port) as gateway:
        second = (await gateway.submit(JobSpec("greet", **KEYED))).job_id

    objects.delete(late)

    async with life(objects, "w1") as two:
        assert (await two.gateway.job(second, None)).alias_of == first


async def test_who_comes_second_with_a_key_leaves_nothing_behind(
    objects: MemoryObjects, port: Port
) -> None:
    async with a_gateway(objects, port) as gateway, a_gateway(objects, Port()) as other:
        first = await gateway.submit(JobSpec("greet", **KEYED))
        there = in_intake(objects)
        again = await other.submit(JobSpec("greet", **KEYED))

        assert (again.job_id, again.replayed) == (first.job_id, True)
        assert in_intake(objects) == there


class Hidden(MemoryObjects):
    """A store that once cannot list what is in intake."""

    fails = True

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        if prefix == "intake/" and self.fails:
            self.fails = False
            raise Unavailable("the store does not answer")
        return super().list(prefix, start_after)


async def test_an_old_job_in_intake_is_found_before_the_manager_took_it_over(port: Port) -> None:
    objects = Hidden("memory://")
    async with a_gateway(objects, port) as gateway:
        job_id = (await gateway.submit(JobSpec("greet"))).job_id
    late = FakeClock()
    late.offset_s = 7200.0
    objects.fails = True

    async with life(objects, "w1", clock=late) as one, a_gateway(objects, port) as gateway:
        port.manager = one.manager
        gateway._wall = late.wall

        assert (await gateway.job(job_id, None)).status == "pending"
        await one.manager._fold_intake()
        assert await ran(one) == [job_id]
