"""`drayman doctor --store`: each damage by its place, all of it, and nothing changed by looking."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.history.reader import History
from cluster.intake import IntakeWriter
from cluster.protocol import Batch, Submission
from cluster.queue.spec import JobSpec, encode_spec
from cluster.store.journal import Journal
from cluster.store.local import LocalObjects
from cluster.store.memory import MemoryObjects
from cluster.store.objects import Objects
from cluster.store.segment import Rows, SegmentHeader, decode, encode
from cluster.survey import Seen, survey
from cluster.views import JobQuery
from jobs.errors import Corrupt
from service.store_doctor import examine_store
from tests.support.cluster import life

SPEC = JobSpec(type="noop")


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


def wrong(objects: Objects) -> list[tuple[str, str]]:
    return [(seen.path, seen.text) for seen in survey(objects) if seen.level == "wrong"]


def by_path(objects: Objects) -> dict[str, Seen]:
    return {seen.path: seen for seen in survey(objects)}


def rewrite(
    objects: Objects, number: int, change: Callable[[SegmentHeader, Rows], SegmentHeader | None]
) -> None:
    header, rows = decode(objects.get(path(number)), path(number))
    changed = change(header, rows) or header
    objects.put(path(number), encode(changed, rows))


async def test_whole_store_is_ok_segment_by_segment(objects: MemoryObjects) -> None:
    seen = by_path(objects)

    assert not wrong(objects)
    assert seen[path(1)].facts["rows"] == 1
    assert [seen[path(n)].facts["first_seq"] for n in (1, 2, 3, 4)] == [1, 2, 4, 6]
    assert "checksum ok; 2 rows, events 4 to 5, epoch 1" in seen[path(3)].text
    assert seen["journal/"].facts["jobs"] == {"pending": 3}
    assert seen["owner"].facts["cluster_id"] == "here"
    assert "did not stop in good order" in seen["owner"].text


async def test_a_store_left_in_good_order_says_so(objects: MemoryObjects) -> None:
    async with life(objects) as now:
        await now.manager.stop()

    assert by_path(objects)["owner"].level == "ok"
    assert by_path(objects)["owner"].facts["stopped"]


async def test_compacted_store_is_whole(objects: MemoryObjects) -> None:
    async with life(objects) as now:
        for _ in range(3):
            orders = await now.take()
            await now.finish(orders.assignments[0].token)
        await now.manager._housekeeper.compact()
        await now.gateway.submit(SPEC)
        await now.manager._housekeeper.compact()

    seen = by_path(objects)

    assert not wrong(objects)
    assert path(2) not in seen
    assert sum(s.facts["rows"] for p, s in seen.items() if p.startswith("history/jobs/")) == 3
    assert [s.level for p, s in seen.items() if p.startswith("snapshots/")] == ["ok"] * 2
    assert seen["journal/"].facts["jobs"] == {"pending": 1}


async def test_flipped_bit_is_found_in_its_column(objects: MemoryObjects) -> None:
    data = bytearray(objects.get(path(3)))
    at = data.index(b"noop")
    data[at] ^= 1
    objects.put(path(3), bytes(data))

    [(where, text)] = wrong(objects)

    assert where == path(3)
    assert "do not match its checksum" in text
    first, last = text.split("column data, bytes ")[1].rstrip(")").split(" to ")
    assert int(first) <= at <= int(last)


async def test_flipped_bit_in_the_footer_is_found_there(objects: MemoryObjects) -> None:
    data = bytearray(objects.get(path(3)))
    data[data.rindex(b"drayman.segment") + 20] ^= 1
    objects.put(path(3), bytes(data))

    [(_, text)] = wrong(objects)

    assert "in its footer" in text


async def test_every_damage_is_told_not_only_the_first(objects: MemoryObjects) -> None:
    objects.put(path(2), objects.get(path(2))[:-40])
    rewrite(objects, 3, lambda h, r: msgspec.structs.replace(h, schema_version=2))
    rewrite(objects, 4, lambda h, r: r.kind.__setitem__(0, "job_teleported"))
    objects.put(path(7), objects.get(path(4)))
    objects.put("journal/notes.txt", b"do not delete")
    objects.put("snapshots/notes.txt", b"nor this")
    objects.put("intake/notes.txt", b"nor that")
    objects.put("history/jobs/date=2026-01-01/" + "0" * 20 + "-" + "0" * 20 + ".parquet", b"?")

    found = dict(wrong(objects))

    assert found.pop(path(2)).startswith("is cut short")
    assert "has schema version 2, this Drayman reads up to 1" in found.pop(path(3))
    assert "kind that this version does not know, 'job_teleported'" in found.pop(path(4))
    assert found.pop(path(5)).startswith("segments 5 to 6 are missing, though 7 is there")
    assert "holds segment 4" in found.pop(path(7))
    assert "foreign file" in found.pop("journal/notes.txt")
    assert "foreign file" in found.pop("snapshots/notes.txt")
    assert "move it out of intake/" in found.pop("intake/notes.txt")
    [(where, text)] = found.items()
    assert where.startswith("history/jobs/")
    assert "no Parquet" in text


async def test_jobs_in_intake_are_noted(objects: MemoryObjects) -> None:
    spec = msgspec.Raw(encode_spec(SPEC))
    batch = Batch("g", 1, [Submission("a", spec), Submission("b", spec)])
    await IntakeWriter(objects, asyncio.to_thread).accept(batch)

    [seen] = [seen for path, seen in by_path(objects).items() if path.startswith("intake/")]

    assert (seen.level, seen.facts) == ("note", {"jobs": 2})


async def test_segment_of_another_journal_is_named(objects: MemoryObjects) -> None:
    rewrite(objects, 3, lambda h, r: msgspec.structs.replace(h, journal_id="other"))

    assert "belongs to another journal, other" in dict(wrong(objects))[path(3)]


async def test_history_out_of_order_is_found(objects: MemoryObjects) -> None:
    """Whole segments whose events make no sense together: only a replay can tell."""

    def finish_what_never_began(header: SegmentHeader, rows: Rows) -> None:
        rows.kind[0], rows.data[0] = "task_succeeded", b"{}"
        rows.job_id[0], rows.task_id[0] = "nobody", "t"
        rows.attempt[0] = rows.token[0] = 1

    rewrite(objects, 3, finish_what_never_began)

    [(where, text)] = wrong(objects)

    assert where == "journal/"
    assert "event 4 (task_succeeded) does not follow" in text


async def test_damaged_snapshot_is_wrong_and_no_gap_is_blamed_for_it(
    objects: MemoryObjects,
) -> None:
    async with life(objects) as now:
        await now.manager._housekeeper.compact()
        await now.gateway.submit(SPEC)
        await now.manager._housekeeper.compact()
    *_, snapshot = [info.path for info in objects.list("snapshots/")]
    objects.put(snapshot, objects.get(snapshot)[:-10])

    assert [where for where, _ in wrong(objects)] == [snapshot]


@pytest.mark.parametrize("lost", ["store/identity.json", "journal-identity.json"])
async def test_lost_identity_is_wrong(objects: MemoryObjects, lost: str) -> None:
    objects.delete([lost])

    assert [where for where, _ in wrong(objects)] == [lost]


async def test_unknown_files_and_leftovers_are_noted(objects: MemoryObjects) -> None:
    objects.put("holiday.jpg", b"")
    objects.put("store/probe-dead", b"first")

    seen = by_path(objects)

    assert not wrong(objects)
    assert "unknown file" in seen["holiday.jpg"].text
    assert "may be deleted" in seen["store/probe-dead"].text


async def test_looking_changes_nothing_on_disk(tmp_path: Path) -> None:
    root = tmp_path / "store"
    async with life(LocalObjects(root)) as now:
        await now.gateway.submit(SPEC)

    before = snapshot_of(root)
    found = list(examine_store(str(root)))

    assert "wrong" not in {finding.level for finding in found}
    assert snapshot_of(root) == before


def snapshot_of(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.stat() for path in (folder, *folder.rglob("*"))}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


@pytest.mark.parametrize(
    ("environment", "level", "text"),
    [
        ({}, "note", "the machine's metadata address is asked"),
        ({"AWS_ACCESS_KEY_ID": "k"}, "wrong", "AWS_SECRET_ACCESS_KEY is not; set both"),
    ],
)
def test_missing_credentials_are_told_before_the_bucket_is_asked(
    environment: dict[str, str], level: str, text: str
) -> None:
    first = next(examine_store("s3://bucket", environment=environment))

    assert (first.check, first.level) == ("credentials", level)
    assert text in first.text


async def test_a_flipped_byte_in_history_is_found_and_never_answered(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        given = (await one.take(free=3)).assignments
        for assignment in given:
            await one.finish(assignment.token)
        await one.manager._housekeeper.compact()
        one.manager.tick()
        await one.manager._commit.barrier()
    (info,) = list(objects.list("history/jobs/"))
    data = bytearray(objects.get(info.path))
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    (records,) = [column for column in columns if column.path_in_schema == "record"]
    assert records.dictionary_page_offset  # it holds the values, and ends where the data begins
    data[records.data_page_offset - 5] ^= 1
    objects.put(info.path, bytes(data))

    assert [where for where, _ in wrong(objects)] == [info.path]
    with pytest.raises(Corrupt, match="doctor --store"):
        History(objects).page(JobQuery(), below=100)
