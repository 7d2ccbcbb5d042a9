"""What is over leaves memory for history, what is not comes back from a snapshot."""

from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.gateway import Gateway
from cluster.history.reader import History
from cluster.protocol import Outcome, Output, encode
from cluster.queue import commands as c
from cluster.queue.snapshot import dump
from cluster.queue.spec import JobSpec
from cluster.store.memory import MemoryObjects
from cluster.survey import survey
from cluster.views import DeadLetterQuery, JobQuery
from jobs.errors import Conflict, Corrupt, NotFound
from tests.support.cluster import Life, life


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects("memory://")


async def submit(one: Life, **fields: Any) -> str:
    return (await one.gateway.submit(JobSpec("greet", **fields))).job_id


async def complete(one: Life, count: int = 1) -> None:
    given = (await one.take(free=count)).assignments
    output = msgspec.Raw(encode(Output()))
    await one.report(outcomes=[Outcome(a.token, "ok", 1.0, 2.0, output) for a in given])


async def fail(one: Life, count: int) -> None:
    given = (await one.take(free=count)).assignments
    await one.report(outcomes=[Outcome(a.token, "discarded", 1.0, 2.0, error="?") for a in given])


def segments(objects: MemoryObjects) -> list[int]:
    return [int(info.path[8:28]) for info in objects.list("journal/")]


async def test_finished_jobs_leave_memory_and_history_has_them(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        done = await submit(one, labels={"team": "red"})
        await complete(one)
        waiting = await submit(one)

        await one.manager._housekeeper.compact()
        one.manager.tick()

        assert list(one.state.jobs) == [waiting]
        record = History(objects).find(done)
        assert record is not None
        assert (record.view.id, record.view.status) == (done, "completed")
        assert [attempt.outcome for attempt in record.attempts] == ["succeeded"]


async def test_the_next_manager_starts_from_the_snapshot(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one)
        await complete(one)
        waiting = await submit(one)
        delayed = await submit(one, run_at=4e9)
        await one.manager._housekeeper.compact()
        one.manager.tick()
        later = await submit(one)
        before = list(dump(one.state))
        await one.manager._commit.barrier()

    async with life(objects) as two:
        assert two.manager._commit.base > 0
        assert list(two.state.jobs) == [waiting, delayed, later]
        assert list(dump(two.state))[1:] == before[1:]  # but for the head, which the claim changed


async def test_covered_segments_are_deleted_by_the_next_compaction_but_for_the_claims(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1"):
        pass
    async with life(objects, "w1") as one:
        for _ in range(3):
            await submit(one)
            await complete(one)
        await one.manager._housekeeper.compact()
        covered = one.state.compacted
        assert segments(objects)[:covered] == list(range(1, covered + 1))

        await submit(one)
        await one.manager._housekeeper.compact()

        assert [number for number in segments(objects) if number <= covered] == one.state.claims
        assert one.state.claims == [1, 2]


async def test_a_compaction_that_died_is_done_again_to_the_same_end(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        done = await submit(one)
        await complete(one)
        asked: list[bytes] = []

        async def die(plan: bytes) -> bytes:
            await type(one.compactor).compact(one.compactor, plan)
            asked.append(plan)
            raise ConnectionError("its process died after all was written")

        one.manager._housekeeper._compactor = type("Dying", (), {"compact": staticmethod(die)})()
        with pytest.raises(ConnectionError):
            await one.manager._housekeeper.compact()
        planned = one.state.planned

    async with life(objects, "w1") as two:
        assert two.state.planned == planned
        await two.manager._housekeeper.compact()
        two.manager.tick()

        assert (two.state.planned, two.state.compacted) == (0, planned)
        assert two.state.jobs == {}
        jobs = [info.path for info in objects.list("history/jobs/")]
        assert len(jobs) == 1
        record = History(objects).find(done)
        assert record is not None


async def test_a_failed_job_stays_in_memory_and_can_be_redriven(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one)
        (assignment,) = (await one.take()).assignments
        await one.finish(assignment.token, kind="discarded")
        await one.manager._housekeeper.compact()
        one.manager.tick()
        assert job_id in one.state.jobs

        await one.gateway.retry(job_id, None)
        await complete(one)
        await one.manager._housekeeper.compact()
        one.manager.tick()

        assert one.state.jobs == {}
        record = History(objects).find(job_id)
        assert record is not None
        assert (record.view.status, record.revision) == ("completed", 2)


async def test_leases_outlive_a_snapshot(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one)
        (assignment,) = (await one.take()).assignments
        await one.manager._housekeeper.compact()

    async with life(objects, "w1") as two:
        assert two.manager._commit.base > 0
        await two.report(held=[assignment.token], started=[assignment.token])
        await two.finish(assignment.token)

        job = await two.gateway.job(job_id, None)
        assert (job.status, job.attempts) == ("completed", 1)


async def test_a_damaged_snapshot_is_refused(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one)
        await one.manager._housekeeper.compact()
    (info,) = list(objects.list("snapshots/"))
    data = bytearray(objects.get(info.path))
    data[len(data) // 2] ^= 1
    objects.put(info.path, bytes(data))

    with pytest.raises(Corrupt, match="checksum"):
        async with life(objects):
            pass


async def test_a_page_of_history_is_newest_first_and_filtered(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        jobs = [await submit(one, labels={"n": str(number % 2)}) for number in range(7)]
        await complete(one, 7)
        await one.manager._housekeeper.compact()

    history = History(objects)
    page = history.page(JobQuery(limit=3), below=7)
    odd = history.page(JobQuery(limit=9, label=("n", "1")), below=100)

    assert [record.view.id for record in page] == jobs[5:2:-1]
    assert [record.view.id for record in odd] == [jobs[5], jobs[3], jobs[1]]


async def test_where_the_newest_snapshot_was_lost_the_one_before_is_kept_until_there_is_another(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        jobs = []
        for _ in range(3):
            jobs += [await submit(one), await submit(one)]
            await fail(one, 1)  # a dead letter stays in memory, too
            await one.manager._housekeeper.compact()
            one.manager.tick()
        over, jobs = jobs[:3], jobs[3:]  # the first in line were done first
        before, newest = list(objects.list("snapshots/"))
        await one.manager._commit.barrier()
    objects.delete([newest.path])
    assert not [seen for seen in survey(objects) if seen.level == "wrong"]

    for _ in range(3):
        async with life(objects, "w1") as two:
            assert [job.id for job in two.state.jobs.values() if not job.finished_at] == jobs
            jobs.append(await submit(two))
            await two.manager._housekeeper.compact()
            await two.manager._commit.barrier()
    assert before.path not in {info.path for info in objects.list("snapshots/")}
    files = [pa.BufferReader(objects.get(info.path)) for info in objects.list("history/jobs/")]
    rows = [row for file in files for row in pq.read_table(file, columns=["id"])["id"].to_pylist()]
    assert sorted(rows) == over  # each of them once


async def test_a_dead_letter_that_was_purged_stays_in_the_list(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        jobs = [await submit(one) for _ in range(5)]
        await fail(one, 5)
        await one.manager._housekeeper.compact()
        gateway = one.gateway
        await gateway.purge(DeadLetterQuery(ids=jobs[:2]))
        await gateway.retry(jobs[2], None)
        await gateway.retry(jobs[3], None)
        await complete(one, 1)
        await one.manager._housekeeper.compact()
        one.manager.tick()

        # Two were let go, one is what it was; of two that began again one is over for good.
        assert await listed(gateway, status="failed") == [jobs[4], jobs[1], jobs[0]]
        assert await listed(gateway, status="completed") == [jobs[2]]
        assert await listed(gateway, status="pending") == [jobs[3]]
        assert await listed(gateway) == jobs[::-1]
        assert await listed(gateway, limit=1) == jobs[::-1]
        assert await listed(gateway, limit=2, status="failed") == [jobs[4], jobs[1], jobs[0]]


async def listed(gateway: Gateway, limit: int = 9, **filters: Any) -> list[str]:
    """Return the ids on all pages of a list."""
    found: list[str] = []
    after = None
    while True:
        page = await gateway.jobs(JobQuery(limit=limit, after=after, **filters))
        found += [view.id for view in page.jobs]
        if (after := page.next_after) is None:
            return found


async def test_whoever_asks_does_not_see_where_a_job_lies(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        over = [await submit(one) for _ in range(3)]
        await complete(one, 3)
        live = await submit(one)
        await one.manager._housekeeper.compact()
        one.manager.tick()
        gateway = one.gateway

        assert (await gateway.job(over[0], "default")).status == "completed"
        assert [task.state for task in (await gateway.tasks(over[0], None)).tasks] == ["succeeded"]
        assert len(await gateway.attempts(over[0], None)) == 1
        assert (await gateway.wait(over[0], None, 9.0)).status == "completed"
        with pytest.raises(NotFound):
            await gateway.job(over[0], "another")
        with pytest.raises(Conflict, match="completed; only unfinished"):
            await gateway.cancel(over[0], None)
        with pytest.raises(Conflict, match="completed; only failed"):
            await gateway.retry(over[0], None)

        first = await gateway.jobs(JobQuery(limit=2))
        second = await gateway.jobs(JobQuery(limit=2, after=first.next_after))
        assert [job.id for job in first.jobs] == [live, over[2]]
        assert [job.id for job in second.jobs] == [over[1], over[0]]
        done = await gateway.jobs(JobQuery(status="completed", limit=9))
        assert ([job.id for job in done.jobs], done.next_after) == (over[::-1], None)


async def test_a_resent_key_finds_a_job_that_has_left_memory(objects: MemoryObjects) -> None:
    keyed = {"key": "k", "fingerprint": "f", "key_expires_at": 4e9}
    async with life(objects, "w1") as one:
        job_id = await submit(one, **keyed)
        await complete(one)
        await one.manager._housekeeper.compact()
        one.manager.tick()

        assert await submit(one, **keyed) == job_id

    async with life(objects) as two:
        assert await submit(two, **keyed) == job_id


async def test_a_second_compaction_with_nothing_new_changes_nothing(objects: MemoryObjects) -> None:
    async with life(objects) as one:
        await one.manager._housekeeper.compact()
        last = one.state.compacted

        assert one.manager._commit.run(c.PlanCompaction(last)) == []
