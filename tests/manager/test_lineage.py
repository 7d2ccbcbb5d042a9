"""The finished chunks of planned jobs: in memory, then in files, and whole wherever one looks."""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cluster.compaction import CompactionPlan, compact
from cluster.gateway import Gateway
from cluster.history.lineage import Lineage, record_page
from cluster.history.reader import History
from cluster.history.writer import maintain
from cluster.ids import uuid7_maker
from cluster.protocol import InputInfo, LostOutput, Outcome, Output, Record, encode
from cluster.queue import commands as c
from cluster.queue.spec import JobSpec
from cluster.store.memory import MemoryObjects
from jobs.errors import Corrupt, NotFound
from service.sql import select
from tests.manager.test_plans import Port
from tests.support.cluster import Life, life
from tests.support.planned import Answer, fan_out, fine, raw, roles, step, work, workflow

DAY_S = 86_400.0


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects("memory://")


async def submit(one: Life, spec: JobSpec) -> str:
    return (await one.gateway.submit(spec)).job_id


async def compacted(one: Life) -> None:
    await one.manager._housekeeper.compact()
    one.manager.tick()
    await one.manager._commit.barrier()


def ask(objects: MemoryObjects, query: str, **options: Any) -> list[tuple[Any, ...]]:
    with select(objects, query, **options) as answer:
        return [
            row
            for batch in answer.batches
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        ]


def files_under(objects: MemoryObjects, folder: str) -> dict[str, bytes]:
    return {info.path: objects.get(info.path) for info in objects.list(f"{folder}/")}


def chunks_in_memory(one: Life, job_id: str) -> list[int]:
    return sorted(one.state.jobs[job_id].plan.steps[""].finished)


async def tokens_of(one: Life, job_id: str) -> dict[str, Any]:
    """Return what the tasks of a job returned, as whoever turns its pages sees it."""
    found: dict[str, Any] = {}
    first: int | None = 0
    while first is not None:
        page = await one.gateway.tasks(job_id, None, first, 3)
        found |= {task.task_id: msgspec.json.decode(task.result) for task in page.tasks}
        first = page.next_after
    return found


def made(task_id: str, attempt: int = 1) -> dict[str, Any]:
    """Return what `fine` returns for a task."""
    return {"task": task_id, "attempt": attempt}


# --- compaction -------------------------------------------------------------------------------


async def test_finished_chunks_of_an_unfinished_job_go_to_files_and_leave_memory(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(6), most=4)
        assert chunks_in_memory(one, job_id) == [0, 1, 2]

        await compacted(one)

        assert chunks_in_memory(one, job_id) == []
        last = one.state.compacted
        assert list(files_under(objects, "lineage")) == [
            f"lineage/{job_id}/{1:020d}-{last:020d}.parquet"
        ]
        assert list(files_under(objects, "history/attempts")) != []
        assert list(files_under(objects, "history/jobs")) == []


async def test_pages_give_every_chunk_from_memory_and_files_alike(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(7), most=4)
        await compacted(one)
        await work(one, fine(7), most=2)

        view = await one.gateway.tasks(job_id, None)
        first, second = view.tasks[1], view.tasks[4]
        assert (first.task_id, first.worker, first.params, first.archived) == ("0", "w1", "", False)
        assert (first.role, first.index, first.type) == ("chunk", 0, second.type)
        found = await tokens_of(one, job_id)

    chunks = {str(n): made(str(n)) for n in range(5)}
    assert found == {"split": None, **chunks, "5": None, "6": None, "join": None}


async def test_pages_of_a_job_that_left_memory_give_every_chunk(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        flow = workflow(step("a"), step("b", "a", fans_out=True, join=True), step("c", "b"))
        job_id = await submit(one, flow)
        await work(one, fine(5), most=4)
        await compacted(one)
        await work(one, fine(5))
        await compacted(one)
        assert one.state.jobs == {}

        found = await tokens_of(one, job_id)

        names = ["b.0", "b.1", "b.2", "b.3", "b.4", "b.join", "c"]
        assert list(found) == ["a", "b.split", *names]
        assert found["b.split"] is None
        assert {name: found[name] for name in ("a", *names)} == {n: made(n) for n in ("a", *names)}
        [one_of] = (await one.gateway.tasks(job_id, None, ids=["b.3"])).tasks
        assert (one_of.task_id, one_of.state, one_of.attempts) == ("b.3", "succeeded", 1)
        for wrong in ("b.5", "b.x", "d", "b.03", "b.²"):
            with pytest.raises(NotFound):
                await one.gateway.tasks(job_id, None, ids=[wrong])


async def test_pages_of_a_cancelled_job_tell_what_never_began(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(at_once=3))
        await work(one, fine(6), most=3)
        await one.gateway.cancel(job_id, None)
        before = await one.gateway.tasks(job_id, None)
        await compacted(one)
        assert one.state.jobs == {}

        after = await one.gateway.tasks(job_id, None)

        states = {task.task_id: task.state for task in after.tasks}
        assert states["0"] == states["1"] == "succeeded"
        assert {states[str(n)] for n in range(2, 6)} == {"cancelled"}
        assert states == {task.task_id: task.state for task in before.tasks}


async def test_a_file_that_is_gone_is_told(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(3))
        await compacted(one)
    copy = MemoryObjects("memory://")
    for path, data in files_under(objects, "history").items():
        copy.put(path, data)
    record = History(copy).find(job_id)
    assert record is not None

    with pytest.raises(Corrupt, match="has no row of task 0"):
        record_page(Lineage(copy), job_id, record.view.steps, record.tasks)


async def test_the_next_manager_knows_what_is_done_and_runs_the_rest(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(5), most=3)
        await compacted(one)
        await work(one, fine(5), most=1)
        await one.manager._commit.barrier()

    async with life(objects, "w2") as two:
        assert two.manager._commit.base > 0
        assert chunks_in_memory(two, job_id) == [2]

        given = await work(two, fine(5), worker="w2")

        assert roles(given) == ["3", "4", "join"]
        assert (await tokens_of(two, job_id))["0"] == made("0")


async def test_a_compaction_that_died_half_way_is_repeated_to_the_same_end(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        done, goes_on = await submit(one, fan_out()), await submit(one, fan_out())
        await work(one, fine(4), most=8)
        await compacted(one)
        await work(one, fine(4), most=3)
        manager = one.manager
        manager._commit.run(c.PlanCompaction(manager._commit.number))
        await manager._commit.barrier()
        state = one.state
        plan = CompactionPlan(
            first=state.compacted + 1, last=state.planned, covered=0, claims=list(state.claims)
        )
    written: list[dict[str, bytes]] = []
    for writes in range(8):
        store = Dying(objects, writes)
        try:
            compact(store, store, plan, now=1.7e9)
        except ConnectionError:
            compact(store.survivor(), store.survivor(), plan, now=1.7e9)
        folders = (files_under(store.survivor(), f) for f in ("lineage", "history", "snapshots"))
        written.append({path: data for files in folders for path, data in files.items()})

    assert all(one == written[0] for one in written)
    assert {path.split("/")[1] for path in written[0] if path.startswith("lineage/")} == {
        done,
        goes_on,
    }


class Dying(MemoryObjects):
    """A copy of a store, to which so many objects can be written before the process dies."""

    def __init__(self, other: MemoryObjects, writes: int) -> None:
        super().__init__(other.url)
        for info in other.list(""):
            super().put(info.path, other.get(info.path))
        self._left = writes

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self._count()
        return super().put_if_absent(path, data)

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self._count()
        super().put(path, data, durable=durable)

    def _count(self) -> None:
        if self._left == 0:
            raise ConnectionError("the compactor died")
        self._left -= 1

    def survivor(self) -> "Dying":
        self._left = -1
        return self


async def test_retention_takes_the_chunks_with_their_job(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        old, lives = await submit(one, fan_out(priority=5)), await submit(one, fan_out())
        await work(one, fine(3), free=1, most=7)
        await compacted(one)
        assert list(one.state.jobs) == [lives]
        folders = {path.split("/")[1] for path in files_under(objects, "lineage")}
        assert folders == {old, lives}

        maintain(objects, one.clock.wall() + 3 * DAY_S, 1.0)

        folders = {path.split("/")[1] for path in files_under(objects, "lineage")}
        assert folders == {lives}
        assert History(objects).find(old) is None


# --- a chunk that was made again --------------------------------------------------------------


def losing(*lost: tuple[str, int]) -> Outcome:
    """Return the end of an attempt that found outputs lost."""
    told = raw([LostOutput(task_id, attempt) for task_id, attempt in lost])
    return Outcome(0, "lost", 1.0, 2.0, told, "gone", "input lost")


async def test_of_a_chunk_that_was_made_again_the_last_time_counts(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(3), most=4)
        await compacted(one)
        await work(one, fine(3, join=losing(("1", 1))), most=1)
        page = await one.gateway.tasks(job_id, None, ids=["1"])
        assert [(task.state, task.archived) for task in page.tasks] == [("ready", False)]
        assert [n for (n,) in ask(objects, "select chunk from tasks order by chunk")] == [0, 2]

        await work(one, fine(3), most=1)
        assert (await tokens_of(one, job_id))["1"] == made("1", 2)
        everything = "select chunk, attempts from tasks order by chunk"
        await one.manager._commit.barrier()
        assert ask(objects, everything) == [(0, 1), (1, 2), (2, 1)]

        await work(one, fine(3))
        await compacted(one)

        assert one.state.jobs == {}
        assert (await tokens_of(one, job_id))["1"] == made("1", 2)
        assert ask(objects, everything) == [(0, 1), (1, 2), (2, 1)]
        assert ask(objects, everything, with_live=False) == [(0, 1), (1, 2), (2, 1)]


async def test_a_chunk_that_was_lost_twice_is_found_by_a_reader_that_knew_it(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(2), most=3)
        await compacted(one)
        lineage = Lineage(objects)
        assert lineage.find(job_id, [("", 1)])["", 1].attempts == 1
        for attempt in (1, 2):
            await work(one, fine(2, join=losing(("1", attempt))), most=2)
            await compacted(one)

        assert lineage.find(job_id, [("", 1)])["", 1].attempts == 3


# --- SQL --------------------------------------------------------------------------------------

ATTEMPTS = "select task_id, number, outcome from attempts order by task_id, number"


async def each_moment(
    objects: MemoryObjects, query: str, spec: JobSpec, *answers: Answer
) -> list[list[tuple[Any, ...]]]:
    """Return what a query gives live, compacted, and once the job is over and evicted."""
    found = []
    async with life(objects, "w1") as one:
        job_id = await submit(one, spec)
        for number, answer in enumerate(answers):
            if number:
                await one.gateway.retry(job_id, None)
            await work(one, answer)
            await one.manager._commit.barrier()
            found.append(ask(objects, query))
            await compacted(one)
            found.append(ask(objects, query))
    found.append(ask(objects, query))
    return found


async def test_each_attempt_of_a_chunk_is_there_once_live_and_compacted(
    objects: MemoryObjects,
) -> None:
    live, history, later = await each_moment(objects, ATTEMPTS, fan_out(), fine(3))

    assert live == [(name, 1, "succeeded") for name in ("0", "1", "2", "join", "split")]
    assert history == later == live


async def test_each_attempt_of_a_chunk_is_there_once_after_a_redrive(
    objects: MemoryObjects,
) -> None:
    found = await each_moment(
        objects, ATTEMPTS, fan_out(max_attempts=1), fine(3, t1="failed"), fine(3)
    )

    failed = [("0", 1, "succeeded"), ("1", 1, "failed"), ("2", 1, "succeeded")]
    assert found[0] == found[1] == [*failed, ("split", 1, "succeeded")]
    both = [("0", 1, "succeeded"), ("1", 1, "failed"), ("1", 2, "succeeded")]
    both += [("2", 1, "succeeded"), ("join", 1, "succeeded"), ("split", 1, "succeeded")]
    assert found[2] == found[3] == found[4] == both


async def test_each_attempt_of_an_unfinished_job_is_there_once(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one, fan_out())
        await work(one, fine(4), most=3)
        await compacted(one)
        await work(one, fine(4), most=1)
        await one.manager._commit.barrier()

        expected = [(name, 1, "succeeded") for name in ("0", "1", "2", "split")]
        assert ask(objects, ATTEMPTS) == expected
        assert ask(objects, "select chunk from tasks order by 1") == [(0,), (1,), (2,)]
        # What only memory has is not among the files.
        assert ask(objects, ATTEMPTS, with_live=False) == expected[:2]


async def test_nothing_is_counted_twice_while_a_compaction_has_written_files_and_no_more(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        await submit(one, fan_out())
        await work(one, fine(4), most=3)
        manager = one.manager
        manager._commit.run(c.PlanCompaction(manager._commit.number))
        await manager._commit.barrier()
        plan = CompactionPlan(first=1, last=one.state.planned, covered=0, claims=[])
        compact(objects, objects, plan, now=one.clock.wall())
        for info in list(objects.list("snapshots/")):
            objects.delete([info.path])

        assert ask(objects, ATTEMPTS) == [(name, 1, "succeeded") for name in ("0", "1", "split")]
        assert ask(objects, "select chunk from tasks order by 1") == [(0,), (1,)]


async def test_tasks_say_what_each_chunk_was_made_from_and_by_whom(objects: MemoryObjects) -> None:
    read = Output(raw({"rows": 7}), inputs=[InputInfo("upload:a.csv", "0" * 64)], params="abc")
    answer = fine(1, t0=Outcome(0, "ok", 1.0, 3.5, raw(read)))
    query = """
        select step, chunk, type, attempts, worker, params, inputs, result->>'$.rows',
            epoch(ended_at - started_at)
        from tasks
    """
    live, history, later = await each_moment(objects, query, fan_out(), answer)

    expected = ("", 0, "test.pages", 1, "w1", "abc", ["upload:a.csv"], "7", 2.5)
    assert live == history == later == [expected]


async def test_a_chunk_that_had_an_effect_is_there_once_though_memory_keeps_it(
    objects: MemoryObjects,
) -> None:
    """Made again it must not repeat its effect, so it stays until its job leaves memory."""
    chunks = "select chunk, attempts, worker from tasks order by chunk"
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(3), most=1)
        held = (await one.report(free=3)).assignments
        await one.manager.record(encode(Record(held[1].token, "once_claim", "mail")))
        await one.report(outcomes=[fine()(assignment) for assignment in held])
        await one.manager._commit.barrier()
        expected = [(n, 1, "w1") for n in range(3)]
        assert ask(objects, chunks) == expected

        await compacted(one)
        assert ask(objects, chunks) == expected
        await compacted(one)
        assert ask(objects, chunks) == expected
        await work(one, fine(3))
        await compacted(one)

        assert one.state.jobs == {}
        assert ask(objects, chunks) == expected
        names = {name for name, _, _ in ask(objects, ATTEMPTS)}
        assert len(ask(objects, ATTEMPTS)) == len(names) == 5
        assert (await tokens_of(one, job_id))["1"] == made("1")


class Spied(MemoryObjects):
    """A store's objects, which tell what is listed and read."""

    def __init__(self, other: MemoryObjects, told: Callable[[str], None]) -> None:
        super().__init__(other.url)
        self.__dict__.update(other.__dict__)
        self._told = told

    def get_range(self, path: str, start: int, length: int) -> bytes:
        self._told(path)
        return super().get_range(path, start, length)

    def list(self, prefix: str, start_after: str = "") -> Any:
        self._told(prefix)
        return super().list(prefix, start_after)


async def test_a_query_opens_the_chunks_it_asks_for_and_no_others(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        jobs = [await submit(one, fan_out()) for _ in range(3)]
        await work(one, fine(2))
        await compacted(one)
    seen: list[str] = []
    spied = Spied(objects, seen.append)

    assert ask(spied, "select count(*) from jobs") == [(3,)]
    assert not any(path.startswith("lineage/") for path in seen)

    query = f"select count(*), max(attempts) from tasks where job_id = '{jobs[1]}'"
    assert ask(spied, query) == [(2, 1)]
    opened = {path.split("/")[1] for path in seen if path.startswith("lineage/") and path[8:]}
    assert opened == {jobs[1]}


async def test_whoever_waits_is_told_though_only_a_lost_lease_ended_the_job(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(3), most=1)
        tokens = [assignment.token for assignment in (await one.report(free=1)).assignments]
        waiting = asyncio.create_task(one.gateway.wait(job_id, None, 25.0))
        await asyncio.sleep(0)
        await one.gateway.cancel(job_id, None)
        await one.report(held=tokens, started=tokens)
        await one.report(outcomes=[Outcome(99, "ok")])  # it does not hold that one any more

        async with asyncio.timeout(10.0):
            view = await waiting

        assert view.status == "cancelled"
        await compacted(one)
        other = await submit(one, fan_out())
        assert (await one.gateway.cancel(other, None)).status == "cancelled"


async def test_tasks_are_found_by_an_alias_wherever_they_lie(objects: MemoryObjects) -> None:
    keyed = fan_out(key="k" * 64, key_expires_at=9e9, fingerprint="f")
    async with life(objects, "w1") as one:
        await submit(one, keyed)
        await work(one, fine(3), most=3)
        await one.manager._commit.barrier()
    away = Gateway(
        Port(), new_id=uuid7_maker(), incarnation=uuid.uuid4().hex, history=History(objects),
        objects=objects, wall=time.time, monotonic=time.monotonic,
    )  # fmt: skip
    alias = (await away.submit(keyed)).job_id
    await away.close()
    async with life(objects, "w1") as two:
        await compacted(two)
        assert (await tokens_of(two, alias))["1"] == made("1")
        await work(two, fine(3))
        await compacted(two)
        assert two.state.jobs == {}
        assert (await tokens_of(two, alias))["2"] == made("2")
