"""SQL sees every job once, as it is now, wherever it lies."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.history.lineage import LINEAGE
from cluster.history.rows import ATTEMPTS, JOBS
from cluster.history.writer import current_files
from cluster.protocol import FileInfo, InputInfo, Outcome, Output, encode
from cluster.queue.spec import JobSpec
from cluster.store.memory import MemoryObjects
from jobs.errors import InvalidInput
from service.sql import select
from tests.support.cluster import Life, life
from tests.support.planned import fan_out, fine, raw, work

PAGE = Path(__file__).resolve().parents[2] / "docs" / "history.md"


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects("memory://")


def ask(objects: MemoryObjects, query: str, **options: Any) -> list[tuple[Any, ...]]:
    with select(objects, query, **options) as answer:
        return [
            row
            for batch in answer.batches
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        ]


async def submit(one: Life, **fields: Any) -> str:
    return (await one.gateway.submit(JobSpec("greet", **fields))).job_id


async def complete(one: Life, *files: FileInfo) -> None:
    given = (await one.take()).assignments
    output = msgspec.Raw(encode(Output(result=msgspec.Raw(b'{"n":1}'), files=list(files))))
    await one.report(outcomes=[Outcome(a.token, "ok", 1.0, 3.5, output) for a in given])


async def fail(one: Life, kind: Any = "discarded") -> None:
    given = (await one.take()).assignments
    await one.report(
        outcomes=[Outcome(a.token, kind, 1.0, 2.0, error="?", delay_s=0.0) for a in given]
    )


async def compacted(one: Life) -> None:
    await one.manager._housekeeper.compact()
    one.manager.tick()
    # Its word is written by a thread, which a life that is dropped would not wait for.
    await one.manager._commit.barrier()


async def test_each_job_is_there_once_wherever_it_lies(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        old = await submit(one, labels={"team": "red"})
        await complete(one)
        await compacted(one)
        done = await submit(one)
        await complete(one)
        waiting = await submit(one)
        await one.manager._commit.barrier()

        rows = ask(objects, "select id, status, run_s >= 0, result from jobs order by number")

        assert rows == [
            (old, "completed", True, '{"n":1}'),
            (done, "completed", True, '{"n":1}'),
            (waiting, "pending", None, None),
        ]
        assert ask(objects, "select id from jobs where labels['team'] = 'red'") == [(old,)]
        assert ask(objects, "select id from jobs", with_live=False) == [(old,)]


async def test_a_redriven_job_counts_as_it_is_now(objects: MemoryObjects) -> None:
    everything = "select id, status, revision from jobs"
    attempts = "select outcome, cause from attempts order by leased_at, number"
    async with life(objects, "w1") as one:
        job_id = await submit(one)
        await fail(one)
        await compacted(one)
        assert ask(objects, everything) == [(job_id, "failed", 1)]

        await one.gateway.retry(job_id, None)
        await one.manager._commit.barrier()
        [(_, status, revision)] = ask(objects, everything)
        assert (status, revision) == ("pending", 1)

        await complete(one)
        await compacted(one)
        assert ask(objects, everything) == [(job_id, "completed", 2)]
        assert [outcome for outcome, _ in ask(objects, attempts)] == ["failed", "succeeded"]


async def test_a_day_is_read_only_when_it_is_asked_for(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one)
        await complete(one)
        await compacted(one)
    [(day,)] = ask(objects, "select date from jobs")
    read: list[str] = []
    spied = Spied(objects, read.append)

    assert ask(spied, f"select type from jobs where date > '{day}'", with_live=False) == []
    files = {file.path for file in current_files(objects, "jobs")[0]}
    before = len([path for path in read if path in files])
    assert ask(spied, f"select type from jobs where date = '{day}'", with_live=False)
    assert len([path for path in read if path in files]) > 2 * before


class Spied(MemoryObjects):
    """A store's objects, which tell what is read of them."""

    def __init__(self, other: MemoryObjects, told: Callable[[str], None]) -> None:
        super().__init__(other.url)
        self.__dict__.update(other.__dict__)
        self._told = told

    def get_range(self, path: str, start: int, length: int) -> bytes:
        self._told(path)
        return super().get_range(path, start, length)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("select nothing from jobs", "nothing"),
        ("select * from customers", "customers"),
        ("selct 1", "syntax error"),
        ("", "is empty"),
        ("insert into jobs select * from jobs", "jobs"),
        ("delete from attempts", "only delete from base"),
        ("select error('no') from range(3)", "no"),
    ],
)
async def test_a_wrong_query_is_told_and_changes_nothing(
    objects: MemoryObjects, query: str, told: str
) -> None:
    async with life(objects, "w1") as one:
        await submit(one)
        await complete(one)
        await compacted(one)
    before = {info.path: objects.get(info.path) for info in objects.list("")}

    with pytest.raises(InvalidInput, match=told):
        ask(objects, query)

    assert {info.path: objects.get(info.path) for info in objects.list("")} == before


def test_what_is_no_store_is_told(objects: MemoryObjects) -> None:
    with pytest.raises(InvalidInput, match="no store of Drayman's"):
        ask(objects, "select 1")


@pytest.mark.parametrize("query", re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(), re.M | re.S))
async def test_the_queries_of_the_docs_give_rows(objects: MemoryObjects, query: str) -> None:
    async with life(objects, "w1") as one:
        params = msgspec.Raw(b'{"customer":"Ada"}')
        await one.gateway.submit(JobSpec("shop.invoice", params=params))
        await complete(one, FileInfo("a.pdf", "results/a.pdf", 7, "0" * 64))
        read = Output(raw(1), inputs=[InputInfo("upload:flights.parquet", "0" * 64)])
        await one.gateway.submit(fan_out())
        await work(one, fine(2, t1=Outcome(0, "ok", 1.0, 2.0, raw(read))))
        await submit(one, max_attempts=2)
        await fail(one, "failed")
        await fail(one)
        await compacted(one)
        await submit(one)
        await one.manager._commit.barrier()

        assert ask(objects, query)


def test_the_page_names_every_column(objects: MemoryObjects) -> None:
    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    columns = {field.name for schema in (JOBS, ATTEMPTS, LINEAGE) for field in schema} - {"record"}

    assert columns - named == set()
