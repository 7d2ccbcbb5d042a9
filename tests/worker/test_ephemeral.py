"""Outputs that are held instead of stored: kept, read again, found gone. A folder is the holder."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.actors.holder import SWEEP_JOBS, Shelf, sweep
from cluster.protocol import EPHEMERAL, FileInfo, LostOutput, Outcome, Output, refusal_of
from cluster.views import TaskPage, TaskView
from jobs.errors import InvalidInput, NotFound, Unavailable
from tests.worker.conftest import Bench

JOBS = ["tests.support.ephemeral_jobs"]
TEXT = "what only the next task needs"


class FolderHolder:
    """Holds files in a folder, as long as it has room."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.has_room = True
        self.bytes_max = 1_000
        #: Called before a file is looked for.
        self.before: Callable[[str], object] = lambda path: None

    def place(self, path: str) -> Path:
        return self.folder / path.removeprefix(EPHEMERAL)

    async def hold(self, key: str, path: Path) -> str | None:
        if path.stat().st_size > self.bytes_max:  # noqa: ASYNC240
            raise InvalidInput("ephemeral", f"{self.bytes_max} bytes at most")
        if not self.has_room:
            return None
        place = self.folder / "node-1" / key
        place.parent.mkdir(parents=True)
        shutil.copyfile(path, place)
        return f"{EPHEMERAL}node-1/{key}"

    async def bring(self, path: str, into: Path) -> None:
        self.before(path)
        if not self.place(path).exists():
            raise NotFound("file", path)
        shutil.copyfile(self.place(path), into)

    async def missing(self, paths: list[str]) -> list[str]:
        return [path for path in paths if not self.place(path).exists()]


@pytest.fixture
def holder(tmp_path: Path) -> FolderHolder:
    return FolderHolder(tmp_path / "held")


async def run(bench: Bench, type: str, **params: Any) -> Outcome:
    return await bench.manager.outcome(bench.manager.submit(type, params))


def file_of(outcome: Outcome) -> FileInfo:
    assert outcome.kind == "ok", outcome
    [file] = msgspec.json.decode(outcome.output, type=Output).files
    return file


def tell(bench: Bench, task_id: str, file: FileInfo) -> None:
    """Let the manager know of a task that kept the file."""
    page = TaskPage([TaskView(task_id, "succeeded", 1, files=[file])])
    bench.manager.answers.append(b"+" + msgspec.json.encode(page))


async def kept(bench: Bench, *texts: str) -> list[FileInfo]:
    """Keep these texts and let the manager tell of them as tasks `0`, `1` ..."""
    files = [file_of(await run(bench, "ephemeral.keep", text=text)) for text in texts]
    for index, file in enumerate(files):
        tell(bench, str(index), file)
    return files


def lost_by(outcome: Outcome) -> list[LostOutput]:
    assert outcome.kind == "lost", outcome
    return msgspec.json.decode(outcome.output, type=list[LostOutput])


@pytest.mark.parametrize("mode", ["process", "async"])
async def test_ephemeral_output_is_held_under_its_attempt_and_not_in_the_store(
    start: Any, holder: FolderHolder, mode: str
) -> None:
    bench = await start(job_modules=JOBS, holder=holder, mode=mode)
    kind = "ephemeral.keep" if mode == "process" else "ephemeral.keep_async"

    outcome = await run(bench, kind, text=TEXT)

    file = file_of(outcome)
    task = f"job-{outcome.token}/task-{outcome.token}"
    assert file.path == f"ray:node-1/{task}/1/piece.bin"
    assert file.is_ephemeral
    assert (file.bytes, file.sha256) == (len(TEXT), hashlib.sha256(TEXT.encode()).hexdigest())
    assert holder.place(file.path).read_text() == TEXT
    assert not list(bench.store.rglob("piece.bin"))
    assert not list(bench.worker._scratch.rglob("ephemeral-*"))


@pytest.mark.parametrize("opened", [False, True])
async def test_later_task_reads_what_is_held_as_it_was(
    start: Any, holder: FolderHolder, result: Any, output: Any, opened: bool
) -> None:
    bench = await start(job_modules=JOBS, holder=holder)
    _, file = await kept(bench, "", TEXT)

    outcome = await run(bench, "ephemeral.read", tasks=["0", "1"], opened=opened)

    assert result(outcome) == ["", TEXT]
    last = output(outcome).inputs[-1]
    assert (last.sha256, last.bytes, last.attempt) == (file.sha256, len(TEXT), 1)


async def test_lost_file_ends_its_reader_uncharged_and_names_all_that_is_gone(
    start: Any, holder: FolderHolder
) -> None:
    bench = await start(job_modules=JOBS, holder=holder)
    first, second, third = await kept(bench, "first", "second", "third")

    def lose(path: str) -> None:
        if path == third.path:
            for file in (first, third):
                holder.place(file.path).unlink()

    holder.before = lose
    outcome = await run(bench, "ephemeral.read", tasks=["0", "1", "2"])

    assert {lost.task_id for lost in lost_by(outcome)} == {"0", "2"}
    assert holder.place(second.path).exists()


async def test_spoiled_file_counts_as_lost(start: Any, holder: FolderHolder) -> None:
    bench = await start(job_modules=JOBS, holder=holder)
    [file] = await kept(bench, TEXT)
    holder.place(file.path).write_text("something else")

    outcome = await run(bench, "ephemeral.read", tasks=["0"])

    assert lost_by(outcome) == [LostOutput("0", 1)]


async def test_lost_file_of_another_job_is_the_readers_failure(
    start: Any, holder: FolderHolder
) -> None:
    bench = await start(job_modules=JOBS, holder=holder)
    [file] = await kept(bench, TEXT)
    holder.place(file.path).unlink()

    outcome = await run(bench, "ephemeral.read", job_id="another", tasks=["0"])

    assert outcome.kind == "failed"
    assert "the output of task 0 of job another is gone" in outcome.error
    assert "node-1" not in outcome.error


async def test_what_there_is_no_room_for_goes_to_the_store(
    start: Any, holder: FolderHolder, result: Any
) -> None:
    bench = await start(job_modules=JOBS, holder=holder)
    holder.has_room = False

    [file] = await kept(bench, TEXT)

    assert not file.is_ephemeral
    assert file.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (bench.store / file.path).read_text() == TEXT
    assert result(await run(bench, "ephemeral.read", tasks=["0"])) == [TEXT]


async def test_worker_without_a_holder_stores_everything_and_finds_nothing_held(
    start: Any,
) -> None:
    bench = await start(job_modules=JOBS)
    file = file_of(await run(bench, "ephemeral.keep", text=TEXT))
    tell(bench, "0", msgspec.structs.replace(file, path="ray:node-1/job/0/1/piece.bin"))

    outcome = await run(bench, "ephemeral.read", tasks=["0"])

    assert (bench.store / file.path).read_text() == TEXT
    assert lost_by(outcome) == [LostOutput("0", 1)]


async def test_file_that_is_too_large_fails_the_attempt_with_the_limit(
    start: Any, holder: FolderHolder
) -> None:
    bench = await start(job_modules=JOBS, holder=holder)

    outcome = await run(bench, "ephemeral.keep", text="x" * (holder.bytes_max + 1))

    assert (outcome.kind, outcome.error) == (
        "failed",
        "InvalidInput: ephemeral: 1000 bytes at most",
    )
    assert not list(bench.worker._scratch.rglob("ephemeral-*"))


async def test_file_whose_block_raised_is_not_held(start: Any, holder: FolderHolder) -> None:
    bench = await start(job_modules=JOBS, holder=holder)

    outcome = await run(bench, "ephemeral.keep", text=TEXT, fails=True)

    assert outcome.error == "ValueError: before the rest"
    assert not holder.folder.exists()
    assert not list(bench.worker._scratch.rglob("ephemeral-*"))


@pytest.mark.parametrize("name", ["a/b", "..", ""])
async def test_name_that_is_no_file_name_is_refused(
    start: Any, holder: FolderHolder, name: str
) -> None:
    bench = await start(job_modules=JOBS, holder=holder)

    outcome = await run(bench, "ephemeral.keep", name=name)

    assert outcome.error.startswith("InvalidInput: name")


# --- what a node has room for -------------------------------------------------------------------


def held(shelf: Shelf, key: str, size: int) -> bool:
    found = shelf.reserve(key, size)
    if found:
        shelf.put(key, f"object of {key}")
    return found


def test_full_shelf_takes_no_more_and_drops_nothing() -> None:
    shelf = Shelf(100)
    keys = [f"job/{n}/1/piece" for n in range(4)]

    taken = [held(shelf, key, 25) for key in keys]

    assert (taken, held(shelf, "other/0/1/piece", 1)) == ([True] * 4, False)
    assert all(shelf.has(key) for key in keys)


def test_room_comes_from_jobs_that_are_over() -> None:
    shelf = Shelf(100)
    for n in range(4):
        held(shelf, f"over/{n}/1/piece", 25)

    shelf.drop_job("over")

    assert (shelf.used, shelf.jobs) == (0, [])
    assert held(shelf, "next/0/1/piece", 25)
    with pytest.raises(NotFound):
        shelf.ref("over/0/1/piece")


def test_file_made_again_takes_the_place_of_the_attempt_before() -> None:
    shelf = Shelf(100)
    held(shelf, "job/0/1/piece", 20)
    held(shelf, "job/0/1/other", 20)

    assert held(shelf, "job/0/2/piece", 25)

    assert (shelf.used, shelf.has("job/0/1/piece"), shelf.has("job/0/1/other")) == (45, False, True)
    assert shelf.ref("job/0/2/piece") == "object of job/0/2/piece"
    assert not held(shelf, "job/0/1/piece", 1)  # a late one spoils nothing
    assert shelf.has("job/0/2/piece")


def test_file_larger_than_a_quarter_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidInput, match="'piece' has 26 bytes, an ephemeral file 25 at most"):
        Shelf(100).reserve("job/0/1/piece", 26)


def test_room_of_a_file_that_could_not_be_put_is_free_again() -> None:
    shelf = Shelf(100)
    shelf.reserve("job/0/1/piece", 25)

    assert not shelf.has("job/0/1/piece")
    shelf.drop("job/0/1/piece")

    assert shelf.used == 0


class Manager:
    """Answers what the status of a job is: one it does not know is in history alone."""

    def __init__(self, **statuses: str) -> None:
        self.statuses = statuses
        self.asked: list[str] = []

    async def call(self, query: bytes) -> bytes:
        job = msgspec.json.decode(query)["job_id"]
        self.asked.append(job)
        status = self.statuses.get(job)
        return b"~{}" if status is None else b"+" + msgspec.json.encode({"status": status})


async def test_sweep_lets_go_of_jobs_that_are_over_and_of_no_others() -> None:
    shelf = Shelf(100)
    manager = Manager(runs="processing", waits="pending", done="completed", dead="failed")
    for job in (*manager.statuses, "forgotten"):
        held(shelf, f"{job}/0/1/piece", 10)

    await sweep(shelf, manager.call)

    assert (shelf.jobs, shelf.used) == (["runs", "waits"], 20)


async def test_sweep_gets_round_to_every_job() -> None:
    jobs = {f"job-{n}": "processing" for n in range(SWEEP_JOBS * 2)}
    shelf, manager = Shelf(1_000), Manager(**jobs)
    for job in jobs:
        held(shelf, f"{job}/0/1/piece", 1)

    await sweep(shelf, manager.call)
    await sweep(shelf, manager.call)

    assert manager.asked == list(jobs)


async def test_manager_that_cannot_tell_costs_no_file() -> None:
    async def refuse(query: bytes) -> bytes:
        return b"-" + msgspec.json.encode(refusal_of(Unavailable("it is replaying")))

    shelf = Shelf(100)
    held(shelf, "job/0/1/piece", 10)

    with pytest.raises(Unavailable):
        await sweep(shelf, refuse)

    assert shelf.has("job/0/1/piece")
