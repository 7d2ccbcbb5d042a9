"""What a job was made from, chunk by chunk: told alike by memory, by files, and after a restart."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client
from tests.live.test_history import finished_in
from tests.live.test_plans import (
    CHUNKS,
    Json,
    ask,
    begun,
    chunks_are_in_files,
    post,
    slices,
    step,
    tasks_of,
)
from tests.support.live import WAIT_S, LiveDrayman, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

#: A page that ends within a step.
ODD = 7


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDrayman]:
    """A Drayman to kill; it compacts whenever it can."""
    folder = tmp_path_factory.mktemp("own")
    live = LiveDrayman(folder, options=["--no-dashboard", "--compact-after", "1"])
    try:
        live.up()
        yield live
    finally:
        live.close()


def leave_memory(own: LiveDrayman, client: Client, folder: Path, job_id: str) -> None:
    """Wait until the job is nowhere but in history."""
    tables = own.store / "history" / "jobs"
    until(lambda: job_id in finished_in(tables))
    # It was written; once a later compaction wrote another, it was evicted, too.
    another = client.submit("live.effect", {"path": str(folder / "another")})["id"]
    client.wait(another, WAIT_S)
    until(lambda: another in finished_in(tables))


def workflow(own: LiveDrayman, folder: Path) -> str:
    return post(
        own,
        step("a", "live.slices", folder, count=CHUNKS),
        step("b", "live.slices", folder, count=CHUNKS, of={"$result": "a.files"}),
        step("c", "live.read", folder, files={"$result": "b.files"}),
    )


@pytest.mark.long
def test_lineage_is_told_alike_from_memory_from_files_and_after_a_restart(
    own: LiveDrayman, tmp_path: Path
) -> None:
    with own.client() as client:
        job_id = workflow(own, tmp_path)
        begun(tmp_path, "c")
        unfinished = tasks_of(own, job_id)
        until(lambda: chunks_are_in_files(own, job_id))
        in_files = tasks_of(own, job_id)
        (tmp_path / "open-read").touch()
        job = client.wait(job_id, WAIT_S)
        finished = tasks_of(own, job_id)
        leave_memory(own, client, tmp_path, job_id)
        in_history = tasks_of(own, job_id, page=ODD)
        one = ask(own, "GET", f"/v1/jobs/{job_id}")

    own.kill_everything()
    own.up()

    assert job["status"] == "completed"
    assert in_files == unfinished
    assert {name: task for name, task in finished.items() if name != "c"} == {
        name: task for name, task in unfinished.items() if name != "c"
    }
    assert list(finished) == names()
    assert in_history == finished
    assert tasks_of(own, job_id, page=ODD) == finished
    assert ask(own, "GET", f"/v1/jobs/{job_id}") == one == job
    check(own, job_id, finished)


def names() -> list[str]:
    return [f"{name}.{last}" for name in "ab" for last in ("split", *range(CHUNKS), "join")] + ["c"]


def check(own: LiveDrayman, job_id: str, tasks: dict[str, Json]) -> None:
    """Check what is told of the workflow against its files."""
    for name, task in tasks.items():
        assert (task["state"], task["attempts"], task["recoveries"]) == ("succeeded", 1, 0)
        assert task["worker"], name
        assert task["node"], name
        assert len(task["code"]) >= 16
        assert len(task["params"]) >= 16
        assert task["started_at"] <= task["ended_at"]
    assert len({task["code"] for task in tasks.values() if task["type"] == "live.slices"}) == 1
    # Each chunk has params of its own.
    assert len({tasks[f"{name}.{n}"]["params"] for name in "ab" for n in range(CHUNKS)}) == (
        2 * CHUNKS
    )
    for number in range(CHUNKS):
        (made,) = tasks[f"a.{number}"]["files"]
        (read,) = tasks[f"b.{number}"]["inputs"]
        data = f"a.{number}".encode()
        assert read == {
            "uri": f"output:{job_id}/a.{number}/slice",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "attempt": 1,
        }
        assert (made["sha256"], made["bytes"]) == (read["sha256"], read["bytes"])
        assert tasks[f"a.{number}"]["inputs"] == []
    assert [one["uri"] for one in tasks["c"]["inputs"]] == [
        f"output:{job_id}/b.{number}/slice" for number in range(CHUNKS)
    ]


@pytest.mark.long
def test_lineage_names_the_attempt_that_made_a_lost_output_again(
    own: LiveDrayman, tmp_path: Path
) -> None:
    with own.client() as client:
        job_id = slices(client, tmp_path, join_held=True)
        begun(tmp_path, "join")
        until(lambda: chunks_are_in_files(own, job_id))
        (lost,) = (own.store / "results" / job_id / "3").rglob("slice")
        lost.unlink()
        (tmp_path / "open-join").touch()
        client.wait(job_id, WAIT_S)
        finished = tasks_of(own, job_id)
        leave_memory(own, client, tmp_path, job_id)
        in_history = tasks_of(own, job_id)
        kept = client.download(finished["3"]["files"][0], tmp_path / "kept")

    assert finished["3"]["attempts"] == 2
    assert {task["attempts"] for name, task in finished.items() if name not in ("3", "join")} == {1}
    read = {one["uri"].split("/")[1]: one["attempt"] for one in finished["join"]["inputs"]}
    assert read == {str(n): 1 + (n == 3) for n in range(CHUNKS)}
    assert in_history == finished
    assert kept.read_text() == "3"


@pytest.mark.long
def test_what_never_began_is_told_alike_before_and_after_the_job_left_for_history(
    own: LiveDrayman, tmp_path: Path
) -> None:
    params = {"folder": str(tmp_path), "count": 3_000, "lasts_s": 0.05, "bad": [], "held": [0]}
    with own.client() as client:
        fan_out = client.submit("live.brittle", params)["id"]
        steps = post(
            own,
            step("a", "live.slices", tmp_path, count=CHUNKS, held=[3]),
            step("b", "live.slices", tmp_path, count=CHUNKS, of={"$result": "a.files"}),
            step("c", "live.read", tmp_path, files={"$result": "b.files"}),
        )
        for job_id, task_id in ((fan_out, "0"), (steps, "a.3")):
            begun(tmp_path, task_id)
            client.cancel(job_id)
        ended = {job_id: client.wait(job_id, WAIT_S)["status"] for job_id in (fan_out, steps)}
        before = {job_id: tasks_of(own, job_id) for job_id in ended}
        for job_id in ended:
            leave_memory(own, client, tmp_path, job_id)

    assert set(ended.values()) == {"cancelled"}
    of_a = ["a.split", *(f"a.{n}" for n in range(CHUNKS)), "a.join"]
    assert list(before[steps]) == [*of_a, "b.split", "c"]
    assert len(before[fan_out]) == 3_002
    for job_id, tasks in before.items():
        assert tasks_of(own, job_id, page=1_000) == tasks
        assert {task["state"] for task in tasks.values()} == {"succeeded", "cancelled"}
