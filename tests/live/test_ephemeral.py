"""Outputs in Ray's object store: read from any node, gone with theirs, and then made again."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.live.test_kills import all_workers_are_free
from tests.support.ephemeral_jobs import piece_of
from tests.support.eventually import gone
from tests.support.live import WAIT_S, LiveDrayman, kill, until
from tests.support.nodes import TwoNodes

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

Json = dict[str, Any]

JOBS = "tests.support.ephemeral_jobs"
CHUNKS, BYTES = 8, 200_000
HOLDER = "ray::Holder"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDrayman]:
    live = LiveDrayman(tmp_path_factory.mktemp("own"), jobs=JOBS, options=["--no-dashboard"])
    try:
        live.up()
        yield live
    finally:
        live.close()


def get(drayman: LiveDrayman, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {drayman.said['token']}"}
    return httpx.get(drayman.url + path, headers=headers, timeout=WAIT_S, trust_env=False)


def tasks_of(drayman: LiveDrayman, job_id: str) -> dict[str, Json]:
    tasks = get(drayman, f"/v1/jobs/{job_id}/tasks?limit=1000").json()["tasks"]
    return {task["task_id"]: task for task in tasks}


def pieces(client: Client, folder: Path, **params: Any) -> str:
    given = {"folder": str(folder), "count": CHUNKS, "bytes": BYTES} | params
    job_id: str = client.submit("ephemeral.pieces", given)["id"]
    return job_id


def whole(count: int = CHUNKS, length: int = BYTES) -> str:
    """Return what a join of all pieces gives."""
    return hashlib.sha256(b"".join(piece_of(n, length) for n in range(count))).hexdigest()


def runs(folder: Path) -> Counter[str]:
    return Counter((folder / "runs").read_text().split())


def holders(drayman: LiveDrayman) -> list[int]:
    return [pid for pid, line in drayman.processes().items() if line.startswith(HOLDER)]


def test_join_reads_what_the_chunks_held_and_clients_see_no_way_to_it(
    own: LiveDrayman, tmp_path: Path
) -> None:
    with own.client() as client:
        job_id = pieces(client, tmp_path, every=1)
        job = client.wait(job_id, WAIT_S)
        shown = get(own, f"/v1/jobs/{job_id}/tasks").text
        file = tasks_of(own, job_id)["0"]["files"][0]
        answer = get(own, file["href"])

    assert (job["status"], job["result"]) == ("completed", whole())
    assert runs(tmp_path) == Counter(str(n) for n in range(CHUNKS))
    assert (file["ephemeral"], file["bytes"]) == (True, BYTES)
    assert file["sha256"] == hashlib.sha256(piece_of(0, BYTES)).hexdigest()
    assert (answer.status_code, answer.json()["status"]) == (409, 409)
    assert "'piece.bin' is ephemeral" in answer.json()["detail"]
    assert "ray:" not in shown + answer.text
    assert not list(own.store.rglob("piece.bin"))


@pytest.mark.long
def test_killed_holder_costs_the_chunks_it_held_and_no_others(
    own: LiveDrayman, tmp_path: Path
) -> None:
    with own.client() as client:
        job_id = pieces(client, tmp_path, every=2, join_held=True)
        until((tmp_path / "begun-join-1").exists)
        [holder] = holders(own)

        kill(holder)
        until(lambda: gone(holder))
        (tmp_path / "open-join").touch()
        job = client.wait(job_id, WAIT_S)

    assert (job["status"], job["result"]) == ("completed", whole())
    again = [str(n) for n in range(0, CHUNKS, 2)]
    assert runs(tmp_path) == Counter([str(n) for n in range(CHUNKS)] + again)
    assert tasks_of(own, job_id)["join"]["recoveries"] == 0


def test_more_than_the_object_store_has_room_for_is_joined_all_the_same(
    own: LiveDrayman, tmp_path: Path
) -> None:
    # `drayman up` gives Ray 200 MB: the rest lies on the node's disk.
    count, length = 30, 8_000_000
    with own.client() as client:
        job = client.wait(pieces(client, tmp_path, count=count, bytes=length), WAIT_S)

    assert (job["status"], job["result"]) == ("completed", whole(count, length))
    assert set(runs(tmp_path).values()) == {1}


@pytest.mark.long
def test_any_node_reads_them_and_those_of_a_lost_node_are_made_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    with TwoNodes({"DRAYMAN_HOME": str(home)}) as nodes:
        joining = ["--no-dashboard", "--address", nodes.address, "--shared-mount"]
        drayman = LiveDrayman(tmp_path, jobs=JOBS, options=joining)

        def end_ray() -> None:
            assert not holders(drayman)
            nodes.close()

        with contextlib.ExitStack() as stack:
            stack.callback(drayman.close, end_ray)
            drayman.up()
            client = stack.enter_context(drayman.client())
            until(lambda: all_workers_are_free(client))
            across = tmp_path / "across"
            across.mkdir()
            first = client.wait(pieces(client, across, count=40, lasts_s=0.1), WAIT_S)
            nodes_used = {task["node"] for task in tasks_of(drayman, first["id"]).values()}
            job_id = pieces(client, folder, count=40, lasts_s=0.1, join_held=True)
            until((folder / "begun-join-1").exists)
            tasks = tasks_of(drayman, job_id)
            lost = [n for n in map(str, range(40)) if tasks[n]["node"] == nodes.lost_node]

            kill(nodes.raylet)
            (folder / "open-join").touch()
            job = client.wait(job_id, 2 * WAIT_S)

            assert (first["status"], first["result"]) == ("completed", whole(40))
            assert (len(nodes_used), set(runs(across).values())) == (2, {1})
            assert (job["status"], job["result"]) == ("completed", whole(40))
            assert 0 < len(lost) < 40, Counter(task["node"] for task in tasks.values())
            assert runs(folder) == Counter([*map(str, range(40)), *lost])
