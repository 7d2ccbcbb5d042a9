"""While the manager is away submissions are accepted all the same, and nothing of them is lost.

The manager, gateway, journal and store are real; how the manager is reached is Ray's part, and ours
to break: it is `away` (calls fail at once) or `hung` (they arrive, but later than anyone waited).
"""

import asyncio
import builtins
import time
import uuid
from collections.abc import Callable, Iterable, Iterator

import msgspec
import pytest

from cluster import gateway as gateway_module
from cluster.gateway import Gateway, ManagerAway
from cluster.history.reader import History
from cluster.ids import uuid7_maker
from cluster.manager import Manager
from cluster.protocol import Accepted, Refused
from cluster.queue.rules import QueueLimits
from cluster.queue.spec import JobSpec
from cluster.store.contract import ObjectInfo
from cluster.store.memory import MemoryObjects
from jobs.errors import DraymanError, KeyReused, NotFound, Unavailable
from tests.support.cluster import Life, life

SPEC = JobSpec(type="noop")
KEYED = JobSpec(type="noop", key="a" * 64, key_expires_at=9e9, fingerprint="f")
OTHER = msgspec.structs.replace(KEYED, fingerprint="g")


class CountedObjects(MemoryObjects):
    """A store that keeps what was asked of it, and of what."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.asked: list[tuple[str, str]] = []
        #: Called before each deletion; may raise.
        self.before_delete: Callable[[], None] = lambda: None

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self.asked.append(("put", path))
        return super().put_if_absent(path, data)

    def get(self, path: str) -> bytes:
        self.asked.append(("get", path))
        return super().get(path)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        self.asked.append(("list", prefix))
        return super().list(prefix, start_after)

    def delete(self, paths: Iterable[str]) -> None:
        names = builtins.list(paths)
        if any(name.startswith("intake/") for name in names):
            self.before_delete()
        super().delete(names)

    def of_intake(self) -> builtins.list[tuple[str, str]]:
        return [(what, path) for what, path in self.asked if path.startswith("intake/")]

    def names(self) -> builtins.list[str]:
        return [info.path for info in MemoryObjects.list(self, "intake/")]


class Port:
    """The manager's handle, as Ray would give it."""

    def __init__(self, manager: Manager | None = None) -> None:
        self.manager = manager
        self.hung = asyncio.Event()
        self.hung.set()
        #: Batches that were delivered, also those nobody waited for any more.
        self.delivered = 0
        self._late: set[asyncio.Task[bytes]] = set()

    async def submit(self, payload: bytes) -> bytes:
        self.delivered += self.manager is not None and self.hung.is_set()
        return await self._reach("submit", payload)

    async def call(self, payload: bytes) -> bytes:
        return await self._reach("call", payload)

    async def late(self) -> None:
        """Let everything that was sent while it hung arrive."""
        self.hung.set()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def _reach(self, method: str, payload: bytes) -> bytes:
        if self.manager is None:
            raise ManagerAway("the actor is restarting")
        if self.hung.is_set():
            reply: bytes = await getattr(self.manager, method)(payload)
            return reply
        # Ray delivers a call also after its caller has given up.
        late = asyncio.ensure_future(self._deliver(method, payload))
        self._late.add(late)
        return await asyncio.shield(late)

    async def _deliver(self, method: str, payload: bytes) -> bytes:
        await self.hung.wait()
        assert self.manager is not None
        reply: bytes = await getattr(self.manager, method)(payload)
        return reply


class Wall:
    """Epoch seconds that a test may move."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset_s


def gateway(port: Port, objects: MemoryObjects, wall: Callable[[], float] = time.time) -> Gateway:
    return Gateway(
        port,
        new_id=uuid7_maker(),
        incarnation=uuid.uuid4().hex,
        history=History(objects),
        objects=objects,
        wall=wall,
        monotonic=time.monotonic,
    )


@pytest.fixture
def objects() -> CountedObjects:
    return CountedObjects()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "AWAY_AFTER_S", 0.1)
    monkeypatch.setattr(gateway_module, "ANSWER_S", 0.5)
    monkeypatch.setattr(gateway_module, "ASK_EVERY_S", 0.01)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - whatever it looks at tells nobody
            await asyncio.sleep(0.005)


async def run_all(now: Life) -> list[str]:
    """Run everything that is ready; return the ids in order."""
    ran: list[str] = []
    while any(line.head() for line in now.state.lines.values()):
        for order in (await now.take()).assignments:
            ran.append(order.job_id)
            await now.finish(order.token)
    return ran


# --- accepted while away, run once ----------------------------------------------------------------


async def test_jobs_accepted_while_the_manager_was_away_run_once_each(
    objects: CountedObjects,
) -> None:
    way_in = gateway(Port(), objects)
    plain = await way_in.submit_many([SPEC] * 3)
    keyed = await way_in.submit(KEYED)

    async with life(objects) as now:
        ran = await run_all(now)

    assert sorted(ran) == sorted([*(one.job_id for one in plain), keyed.job_id])
    assert objects.names() == []


async def test_a_job_in_intake_is_pending_for_every_gateway(objects: CountedObjects) -> None:
    accepted = await gateway(Port(), objects).submit(SPEC)

    view = await gateway(Port(), objects).job(accepted.job_id, None)

    assert (view.id, view.status, view.attempts) == (accepted.job_id, "pending", 0)


async def test_a_job_in_intake_is_pending_however_long_the_manager_is_away(
    objects: CountedObjects,
) -> None:
    wall = Wall()
    way_in, other = gateway(Port(), objects, wall), gateway(Port(), objects, wall)
    accepted = await way_in.submit(SPEC)
    wall.offset_s = 3600.0

    assert (await way_in.job(accepted.job_id, None)).status == "pending"
    assert (await other.job(accepted.job_id, None)).status == "pending"


async def test_the_cancel_of_a_job_in_intake_waits_until_it_is_taken_in(
    objects: CountedObjects,
) -> None:
    async with life(objects) as now:
        accepted = await gateway(Port(), objects).submit(SPEC)

        view = await gateway(Port(now.manager), objects).cancel(accepted.job_id, None)

        assert view.status == "cancelled"
        assert await run_all(now) == []


async def test_the_cancel_of_a_job_that_stays_in_intake_is_unavailable(
    objects: CountedObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "TAKEN_IN_S", 0.1)
    accepted = await gateway(Port(), objects).submit(SPEC)
    async with life(CountedObjects()) as elsewhere:
        port = Port(elsewhere.manager)
        with pytest.raises(Unavailable, match="waits for the queue manager"):
            await gateway(port, objects).cancel(accepted.job_id, None)


async def test_a_job_in_intake_is_not_shown_to_another_tenant(objects: CountedObjects) -> None:
    way_in = gateway(Port(), objects)
    accepted = await way_in.submit(SPEC)

    with pytest.raises((NotFound, Unavailable)):
        await way_in.job(accepted.job_id, "somebody")


async def test_a_job_just_acknowledged_elsewhere_is_known_everywhere(
    objects: CountedObjects,
) -> None:
    async with life(objects) as now:
        cut_off, other = gateway(Port(), objects), gateway(Port(now.manager), objects)
        first = await cut_off.submit(SPEC)
        assert (await other.job(first.job_id, None)).status == "pending"

        second = await cut_off.submit(SPEC)

        assert (await other.job(second.job_id, None)).status == "pending"


async def test_a_job_folded_while_it_is_looked_for_is_found(objects: CountedObjects) -> None:
    async with life(objects) as now:
        accepted = await gateway(Port(), objects).submit(SPEC)
        port = Port(now.manager)
        other = gateway(port, objects)
        asked = port.call

        async def call_then_fold(payload: bytes) -> bytes:
            reply = await asked(payload)
            await now.manager._fold_intake()
            return reply

        port.call = call_then_fold  # type: ignore[method-assign]

        assert (await other.job(accepted.job_id, None)).status == "pending"


async def test_what_only_the_manager_knows_is_unavailable_at_once(objects: CountedObjects) -> None:
    async with life(objects) as now:
        port = Port(now.manager)
        way_in = gateway(port, objects)
        known = await way_in.submit(SPEC)
        port.manager = None
        await way_in.submit(SPEC)  # now it is known that the manager is away
        began = time.monotonic()

        with pytest.raises(Unavailable):
            await way_in.job(known.job_id, None)

        assert time.monotonic() - began < 0.5


async def test_a_question_to_a_hung_manager_is_given_up(objects: CountedObjects) -> None:
    async with life(objects) as now:
        port = Port(now.manager)
        way_in = gateway(port, objects)
        known = await way_in.submit(SPEC)
        port.hung.clear()

        with pytest.raises(Unavailable):
            async with asyncio.timeout(5):
                await way_in.job(known.job_id, None)

        await port.late()


# --- keys -----------------------------------------------------------------------------------------


async def test_the_first_writer_of_a_key_decides_while_away(objects: CountedObjects) -> None:
    first = await gateway(Port(), objects).submit(KEYED)

    again = await gateway(Port(), objects).submit(KEYED)

    assert again == Accepted(first.job_id, replayed=True)
    with pytest.raises(KeyReused):
        await gateway(Port(), objects).submit(OTHER)


async def test_a_key_known_before_makes_the_new_id_another_name_of_its_job(
    objects: CountedObjects,
) -> None:
    async with life(objects) as now:
        first = await now.gateway.submit(KEYED)
        await run_all(now)
    again = await gateway(Port(), objects).submit(KEYED)

    async with life(objects) as now:
        view = await now.gateway.job(again.job_id, None)

        assert await run_all(now) == []
        assert (view.id, view.alias_of, view.status) == (again.job_id, first.job_id, "completed")


async def test_a_key_known_for_another_request_ends_the_new_id_as_failed(
    objects: CountedObjects,
) -> None:
    async with life(objects) as now:
        await now.gateway.submit(KEYED)
    reused = await gateway(Port(), objects).submit(OTHER)

    async with life(objects) as now:
        view = await now.gateway.job(reused.job_id, None)

        assert view.status == "failed"
        assert view.error is not None
        assert view.error.cause == "idempotency_key_reused"
        assert len(await run_all(now)) == 1


async def test_a_job_for_a_queue_that_is_gone_ends_as_failed(objects: CountedObjects) -> None:
    accepted = await gateway(Port(), objects).submit(JobSpec(type="noop", queue="gone"))

    async with life(objects) as now:
        view = await now.gateway.job(accepted.job_id, None)

        assert view.status == "failed"
        assert await now.gateway.attempts(accepted.job_id, None) == []


# --- a batch that came both ways ------------------------------------------------------------------


async def both_ways(
    objects: CountedObjects, now: Life, specs: list[JobSpec], *, folded_first: bool
) -> list[Accepted | Refused]:
    """Let a batch go into intake because the manager hung, and arrive by itself as well."""
    port = Port(now.manager)
    way_in = gateway(port, objects)
    port.hung.clear()
    results = await way_in.submit_many(specs)
    if folded_first:
        await now.manager._fold_intake()
    await port.late()
    await now.manager._fold_intake()
    return results


@pytest.mark.parametrize("folded_first", [True, False])
async def test_a_batch_that_came_both_ways_runs_once(
    objects: CountedObjects, folded_first: bool
) -> None:
    async with life(objects) as now:
        results = await both_ways(objects, now, [SPEC, KEYED, SPEC], folded_first=folded_first)

        ran = await run_all(now)

    assert sorted(ran) == sorted(
        result.job_id for result in results if isinstance(result, Accepted)
    )
    assert len(ran) == 3


async def test_what_the_late_batch_was_refused_runs_if_intake_acknowledged_it(
    objects: CountedObjects,
) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        now.manager._commit.rules.queues["default"] = QueueLimits(depth_max=1)
        results = await both_ways(objects, now, [SPEC, SPEC], folded_first=False)

        ran = await run_all(now)

    assert all(isinstance(result, Accepted) for result in results)
    assert {result.job_id for result in results} <= set(ran)  # type: ignore[union-attr]


async def test_a_known_key_in_a_late_batch_leaves_no_id_without_an_answer(
    objects: CountedObjects,
) -> None:
    async with life(objects) as now:
        first = await now.gateway.submit(KEYED)
        (again,) = await both_ways(objects, now, [KEYED], folded_first=False)
        assert isinstance(again, Accepted)

        view = await now.gateway.job(again.job_id, None)

        assert view.id == again.job_id
        assert again.job_id == first.job_id or view.alias_of == first.job_id


async def test_a_reused_key_in_a_late_batch_leaves_no_id_without_an_answer(
    objects: CountedObjects,
) -> None:
    async with life(objects) as now:
        await now.gateway.submit(KEYED)
        (reused,) = await both_ways(objects, now, [OTHER], folded_first=False)
        assert isinstance(reused, Accepted)

        assert (await now.gateway.job(reused.job_id, None)).status == "failed"


# --- crashes and damage ---------------------------------------------------------------------------


async def test_a_crash_between_folding_and_deleting_runs_nothing_twice(
    objects: CountedObjects,
) -> None:
    await gateway(Port(), objects).submit_many([SPEC, KEYED])

    def no() -> None:
        raise Unavailable("the store does not answer")

    objects.before_delete = no
    async with life(objects) as now:
        assert len(await run_all(now)) == 2
    objects.before_delete = lambda: None

    async with life(objects) as now:
        assert await run_all(now) == []
        assert objects.names() == []


async def test_an_object_that_turns_up_again_runs_nothing_twice(objects: CountedObjects) -> None:
    await gateway(Port(), objects).submit_many([SPEC, KEYED])
    kept = {name: objects.get(name) for name in objects.names()}
    async with life(objects) as now:
        assert len(await run_all(now)) == 2

        for name, data in kept.items():
            objects.put_if_absent(name, data)
        await now.manager._fold_intake()

        assert await run_all(now) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"type":"noop"', b'"type":["no"]'),
        lambda data: data.replace(b'"noop"', b'"nooq"'),
    ],
    ids=["cut", "of another shape", "one bit"],
)
async def test_a_damaged_object_is_kept_and_harms_no_other(
    objects: CountedObjects, damage: Callable[[bytes], bytes]
) -> None:
    await gateway(Port(), objects).submit(SPEC)
    (name,) = objects.names()
    objects.put(name, damage(objects.get(name)))
    good = await gateway(Port(), objects).submit(SPEC)

    async with life(objects) as now:
        ran = await run_all(now)

    assert ran == [good.job_id]
    assert objects.names() == [name]


async def test_an_object_that_cannot_be_taken_in_does_not_keep_its_gateway_away(
    objects: CountedObjects,
) -> None:
    port = Port()
    way_in = gateway(port, objects)
    await way_in.submit(SPEC)
    (name,) = objects.names()
    objects.put(name, objects.get(name).replace(b'"type":"noop"', b'"type":["no"]'))
    async with life(objects) as now:
        port.manager = now.manager
        await asyncio.sleep(0.2)

        await way_in.submit(SPEC)

        assert port.delivered == 1


# --- there and back -------------------------------------------------------------------------------


async def test_under_steady_load_submissions_go_back_to_the_manager(
    objects: CountedObjects,
) -> None:
    port = Port()
    way_in = gateway(port, objects)
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await way_in.submit(SPEC)
            await asyncio.sleep(0.001)

    clients = [asyncio.create_task(load()) for _ in range(4)]
    async with life(objects) as now:
        port.manager = now.manager
        try:
            await until(lambda: port.delivered > 5)
        finally:
            stop.set()
            await asyncio.gather(*clients)
        await until(lambda: not objects.names())


async def test_intake_is_bounded(objects: CountedObjects) -> None:
    way_in = gateway(Port(), objects)

    results = await way_in.submit_many([SPEC] * 10_600)

    accepted = [one for one in results if isinstance(one, Accepted)]
    refused = [one for one in results if isinstance(one, Refused)]
    assert len(accepted) == 10_000  # the rest is for other tenants
    assert {one.error for one in refused} == {"Overloaded"}
    async with life(objects) as now:
        assert len(now.state.jobs) == len(accepted)


async def test_thousands_of_objects_are_folded_soon(objects: CountedObjects) -> None:
    way_in = gateway(Port(), objects)
    for _ in range(3_000):
        await way_in.submit(SPEC)
    began = time.monotonic()

    async with life(objects) as now:
        assert len(now.state.jobs) == 3_000
        assert time.monotonic() - began < 3.0


async def test_a_store_that_takes_nothing_is_unavailable(objects: CountedObjects) -> None:
    def no(path: str, data: bytes) -> bool:
        raise Unavailable("the store does not answer")

    objects.put_if_absent = no  # type: ignore[method-assign]

    with pytest.raises(DraymanError) as refusal:
        await gateway(Port(), objects).submit(SPEC)

    assert isinstance(refusal.value, Unavailable)


async def test_a_store_that_hangs_is_unavailable_in_time(objects: CountedObjects) -> None:
    import threading

    gate = threading.Event()
    put = objects.put_if_absent

    def hang(path: str, data: bytes) -> bool:
        gate.wait(20)
        return put(path, data)

    objects.put_if_absent = hang  # type: ignore[method-assign]
    try:
        with pytest.raises(Unavailable):
            async with asyncio.timeout(8):
                await gateway(Port(), objects).submit(SPEC)
    finally:
        gate.set()


async def test_a_manager_that_answers_costs_intake_nothing(objects: CountedObjects) -> None:
    async with life(objects) as now:
        way_in = gateway(Port(now.manager), objects)
        before = [one for one in objects.of_intake() if one[0] != "list"]

        await way_in.submit_many([SPEC, KEYED])
        await run_all(now)

        assert [one for one in objects.of_intake() if one[0] != "list"] == before
