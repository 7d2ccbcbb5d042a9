"""A store that is not what was written: the next manager refuses it, and says which byte or file.

Nothing is ever passed over in silence, and nothing is changed by looking.
"""

from collections.abc import Callable

import msgspec
import pytest

from cluster.queue.spec import JobSpec
from cluster.store.journal import Journal
from cluster.store.memory import MemoryObjects
from cluster.store.segment import Rows, SegmentHeader, decode, encode
from jobs.errors import Corrupt, InvalidInput, Unavailable
from tests.support.cluster import FakeClock, life

SPEC = JobSpec(type="noop")
Damage = Callable[[MemoryObjects], None]


@pytest.fixture
async def objects() -> MemoryObjects:
    """A store that holds three accepted jobs: segments 1 (the claim) to 4."""
    objects = MemoryObjects()
    async with life(objects) as now:
        for _ in range(3):
            await now.gateway.submit(SPEC)
    return objects


def path(number: int) -> str:
    return Journal(MemoryObjects()).path(number)


def flip_a_bit(objects: MemoryObjects) -> None:
    data = bytearray(objects.get(path(3)))
    data[len(data) // 2] ^= 1
    objects.put(path(3), bytes(data))


def cut_it(objects: MemoryObjects) -> None:
    objects.put(path(3), objects.get(path(3))[:-40])


def empty_it(objects: MemoryObjects) -> None:
    objects.put(path(3), b"")


def delete_it(objects: MemoryObjects) -> None:
    objects.delete([path(3)])


def put_a_foreign_file(objects: MemoryObjects) -> None:
    objects.put("journal/notes.txt", b"do not delete")


def rewritten(
    objects: MemoryObjects, change: Callable[[SegmentHeader, Rows], tuple[SegmentHeader, Rows]]
) -> None:
    """Write segment 3 anew, sealed and whole, but changed."""
    header, rows = change(*decode(objects.get(path(3)), path(3)))
    objects.put(path(3), encode(header, rows))


def of_a_newer_version(objects: MemoryObjects) -> None:
    rewritten(objects, lambda h, r: (msgspec.structs.replace(h, schema_version=2), r))


def of_another_journal(objects: MemoryObjects) -> None:
    rewritten(objects, lambda h, r: (msgspec.structs.replace(h, journal_id="other"), r))


def with_a_kind_of_the_future(objects: MemoryObjects) -> None:
    def change(header: SegmentHeader, rows: Rows) -> tuple[SegmentHeader, Rows]:
        rows.kind[0] = "job_teleported"
        return header, rows

    rewritten(objects, change)


def with_data_that_is_no_event(objects: MemoryObjects) -> None:
    def change(header: SegmentHeader, rows: Rows) -> tuple[SegmentHeader, Rows]:
        rows.data[0] = b"[1"
        return header, rows

    rewritten(objects, change)


def that_finishes_what_never_began(objects: MemoryObjects) -> None:
    def change(header: SegmentHeader, rows: Rows) -> tuple[SegmentHeader, Rows]:
        rows.kind[0], rows.data[0] = "task_succeeded", b"{}"
        rows.job_id[0], rows.task_id[0] = "nobody", "t"
        rows.attempt[0] = rows.token[0] = 1
        return header, rows

    rewritten(objects, change)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "{3}: its bytes do not match its checksum"),
        (cut_it, "{3}: is cut short"),
        (empty_it, "{3}: is cut short, to 0 bytes"),
        (delete_it, "{3}: is missing, though {4} is there"),
        (put_a_foreign_file, "journal/notes.txt: is no segment; move it out"),
        (of_a_newer_version, "{3}: has schema version 2, this Drayman reads up to 1"),
        (of_another_journal, "{3}: belongs to journal other"),
        (
            with_a_kind_of_the_future,
            "{3}: event 4 is of a kind .* 'job_teleported'; start the newe",
        ),
        (
            with_data_that_is_no_event,
            "{3}: event 4 .job_submitted. can't be read: Expected .object.",
        ),
        (that_finishes_what_never_began, "{3}: event 4 .task_succeeded. does not follow from"),
    ],
)
async def test_damaged_journal_is_refused_by_name_and_left_as_it_is(
    objects: MemoryObjects, damage: Damage, reason: str
) -> None:
    damage(objects)
    before = {info.path: objects.get(info.path) for info in objects.list("")}
    places = {"{3}": path(3), "{4}": path(4)}
    for mark, name in places.items():
        reason = reason.replace(mark, name)

    with pytest.raises(Corrupt, match=reason):
        async with life(objects):
            pass

    assert {info.path: objects.get(info.path) for info in objects.list("")} == before


async def test_store_whose_journal_is_gone_is_refused_not_begun_anew(
    objects: MemoryObjects,
) -> None:
    objects.delete([info.path for info in objects.list("") if info.path.startswith("journal")])

    with pytest.raises(InvalidInput, match="forget its jobs"):
        async with life(objects):
            pass


async def test_store_that_lost_its_identity_is_refused(objects: MemoryObjects) -> None:
    objects.delete(["store/identity.json"])

    with pytest.raises(InvalidInput, match="set `store` to that one"):
        async with life(objects):
            pass


async def test_manager_goes_on_with_a_clock_an_hour_back(objects: MemoryObjects) -> None:
    async with life(objects) as now:
        seen = now.state.at
        now.clock.behind_s = 3600.0

        accepted = await now.gateway.submit(SPEC)
        for _ in range(4):
            orders = await now.take()
            await now.finish(orders.assignments[0].token)
        job = await now.gateway.job(accepted.job_id, None)

        assert job.status == "completed"
        assert seen <= job.submitted_at <= (job.finished_at or 0.0)
    async with life(objects) as later:
        assert later.state.at >= seen
        assert all(job.finished_at for job in later.state.jobs.values())


async def test_manager_started_with_a_clock_an_hour_back_orders_events_all_the_same(
    objects: MemoryObjects,
) -> None:
    async with life(objects, clock=FakeClock(behind_s=3600.0)) as now:
        before = now.state.at

        accepted = await now.gateway.submit(SPEC)
        orders = await now.take(free=9)

        assert accepted.job_id in {assignment.job_id for assignment in orders.assignments}
        assert now.state.at >= before


async def test_manager_of_a_store_that_is_empty_now_waits_for_it(objects: MemoryObjects) -> None:
    """A restarted one: the volume may not be mounted yet, and its jobs are not to be forgotten."""
    async with life(objects, new_store=False):
        pass

    with pytest.raises(Unavailable, match="is empty now, though it was in use"):
        async with life(MemoryObjects(), new_store=False):
            pass
