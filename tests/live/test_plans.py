"""Fan-outs and workflows on a real cluster: what dies, what is lost, what is stopped, who waits."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.live.test_kills import all_workers_are_free, kill_manager
from tests.support.live import WAIT_S, LiveDrayman, kill, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

Json = dict[str, Any]

CHUNKS = 8
#: No promise, only an end to waiting: a short job behind ten thousand chunks is hung after it.
SHORT_S = 5.0
LARGE = {"count": 10_000, "lasts_s": 0.05}


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


def ask(drayman: LiveDrayman, method: str, path: str, **request: Any) -> Json:
    headers = {"Authorization": f"Bearer {drayman.said['token']}"}
    answer = httpx.request(
        method, drayman.url + path, headers=headers, timeout=WAIT_S, trust_env=False, **request
    )
    assert answer.is_success, answer.text
    found: Json = answer.json()
    return found


def post(drayman: LiveDrayman, *steps: Json, **fields: Any) -> str:
    """Post a workflow; return the job's id."""
    job_id: str = ask(drayman, "POST", "/v1/workflows", json={"steps": steps} | fields)["id"]
    return job_id


def step(name: str, kind: str, folder: Path, **rest: Any) -> Json:
    """Return a step; what is no field of one are params."""
    fields = {key: rest.pop(key) for key in ("after", "max_attempts") if key in rest}
    return {"name": name, "type": kind, "params": {"folder": str(folder)} | rest} | fields


def tasks_of(drayman: LiveDrayman, job_id: str, page: int = 1_000) -> dict[str, Json]:
    """Return all tasks of a job by id, in the order in which they are told."""
    found: list[Json] = []
    after: int | None = 0
    while after is not None:
        query = {"limit": page} | ({"after": after} if after else {})
        answer = ask(drayman, "GET", f"/v1/jobs/{job_id}/tasks", params=query)
        found += answer["tasks"]
        after = answer["next_after"]
    return {task["task_id"]: task for task in found}


def states(drayman: LiveDrayman, job_id: str) -> Counter[str]:
    return Counter(task["state"] for task in tasks_of(drayman, job_id).values())


def runs(folder: Path) -> Counter[str]:
    """Return how often each task began to run."""
    path = folder / "runs"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def begun(folder: Path, task_id: str, attempt: int = 1) -> list[int]:
    """Wait until the attempt waits for the test; return its process and the keeper of that."""
    path = folder / f"begun-{task_id}-{attempt}"
    until(path.exists)
    return [int(pid) for pid in path.read_text().split()]


def worker_pid(drayman: LiveDrayman, client: Client, job_id: str, task_id: str) -> int:
    name = tasks_of(drayman, job_id)[task_id]["worker"]
    pid: int = next(w["pid"] for w in client.workers() if w["name"] == name)
    return pid


def slices(client: Client, folder: Path, **params: Any) -> str:
    given = {"folder": str(folder), "count": CHUNKS} | params
    job_id: str = client.submit("live.slices", given)["id"]
    return job_id


def line(client: Client) -> Json:
    """Return the counts of the workers' queue."""
    queue = next(queue for queue in client.queues() if queue["name"] == "default")
    return {name: queue[name] for name in ("ready", "leased", "backing_off", "scheduled")}


def line_is_empty(client: Client) -> bool:
    """Whether no task is in line, runs or is soon to run again."""
    return not any(count for name, count in line(client).items() if name != "scheduled")


def chunks_are_in_files(drayman: LiveDrayman, job_id: str) -> bool:
    return any((drayman.store / "lineage" / job_id).glob("*.parquet"))


def once_each(*names: str, chunks: int = CHUNKS, step: str = "") -> Counter[str]:
    """Return the runs of a fan-out in which nothing was run twice."""
    own = [f"{step}.{last}" if step else last for last in map(str, range(chunks))]
    return Counter([*own, *names])


# --- workflows ----------------------------------------------------------------------------------


def diamond(folder: Path, cure: str = "") -> list[Json]:
    return [
        step("a", "live.sum", folder, parts=[1]),
        step("b", "live.sum", folder, parts=[{"$result": "a"}, 10]),
        step("c", "live.sum", folder, parts=[{"$result": "a"}, 100], cure=cure),
        step("d", "live.sum", folder, parts=[{"$result": "b"}, {"$result": "c"}]),
    ]


def test_a_diamond_of_four_steps_gives_each_what_the_ones_before_it_made(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    job_id = post(drayman, *diamond(tmp_path))

    job = client.wait(job_id, WAIT_S)

    assert (job["status"], job["result"]) == ("completed", 112)
    assert runs(tmp_path) == Counter("abcd")
    assert [(s["name"], s["needs"], s["state"]) for s in job["steps"]] == [
        ("a", [], "succeeded"),
        ("b", ["a"], "succeeded"),
        ("c", ["a"], "succeeded"),
        ("d", ["b", "c"], "succeeded"),
    ]


def test_a_step_that_failed_is_retried_without_the_others(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    # It goes on where it can, so that `b` is done whichever of the two is first.
    job_id = post(drayman, *diamond(tmp_path, cure="cure"), on_failure="continue")
    failed = client.wait(job_id, WAIT_S)

    (tmp_path / "cure").touch()
    client.retry(job_id)
    job = client.wait(job_id, WAIT_S)

    assert (failed["status"], failed["error"]["message"]) == ("failed", "c: there is no cure yet")
    assert {s["name"]: s["state"] for s in failed["steps"]}["d"] == "skipped"
    assert (job["status"], job["result"]) == ("completed", 112)
    assert runs(tmp_path) == Counter("abccd")
    attempts = {name: task["attempts"] for name, task in tasks_of(drayman, job_id).items()}
    assert attempts == {"a": 1, "b": 1, "c": 2, "d": 1}


def test_steps_that_do_not_need_the_failed_one_run_if_they_are_to(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    job_id = post(
        drayman,
        step("bad", "live.sum", tmp_path, parts=[], cure="never"),
        step("needs_bad", "live.sum", tmp_path, parts=[{"$result": "bad"}]),
        step("good", "live.slices", tmp_path, count=3, after=[]),
        step("needs_good", "live.read", tmp_path, files={"$result": "good.files"}),
        on_failure="continue",
    )
    (tmp_path / "open-read").touch()

    job = client.wait(job_id, WAIT_S)

    assert job["status"] == "failed"
    assert {s["name"]: s["state"] for s in job["steps"]} == {
        "bad": "failed",
        "needs_bad": "skipped",
        "good": "succeeded",
        "needs_good": "succeeded",
    }
    assert runs(tmp_path)["needs_bad"] == 0


# --- what dies ----------------------------------------------------------------------------------


def test_only_the_chunk_of_a_killed_worker_runs_again(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    until(lambda: all_workers_are_free(client))
    busy = [str(index) for index in range(5, 5 + cpu_workers(client))]
    job_id = slices(client, tmp_path, count=40, held=[int(task) for task in busy])
    handlers = [begun(tmp_path, task)[0] for task in busy]
    # Every worker has one now, so whatever else has begun is about to be reported.
    done = runs(tmp_path) - Counter([*busy, "split"])
    until(lambda: states(drayman, job_id)["succeeded"] == len(done) + 1)
    # What a worker took ahead is an attempt of it if it dies with it: until it has given it back.
    until(lambda: line(client)["leased"] == len(busy))

    kill(worker_pid(drayman, client, job_id, busy[0]), handlers[0])
    begun(tmp_path, busy[0], 2)
    (tmp_path / "open-chunks").touch()
    job = client.wait(job_id, WAIT_S)

    assert job["status"] == "completed"
    assert job["result"]["text"] == " ".join(map(str, range(40)))
    assert runs(tmp_path) == once_each("split", "join", busy[0], chunks=40)
    attempts = {name: task["attempts"] for name, task in tasks_of(drayman, job_id).items()}
    assert attempts == dict.fromkeys(attempts, 1) | {busy[0]: 2}
    until(lambda: all_workers_are_free(client))


def test_a_fan_out_goes_on_while_the_manager_is_killed(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    count = 60
    # One is held, so that the kill is in the middle however slow this test is.
    job_id = slices(client, tmp_path, count=count, lasts_s=0.05, held=[count - 1])
    until(lambda: client.status(job_id)["steps"][0]["done"] > 5)

    kill_manager(drayman)
    (tmp_path / "open-chunks").touch()
    job = client.wait(job_id, WAIT_S)

    assert job["status"] == "completed"
    assert job["result"]["text"] == " ".join(map(str, range(count)))
    assert runs(tmp_path) == once_each("split", "join", chunks=count)


def cpu_workers(client: Client) -> int:
    return sum(worker["pool"] == "cpu" for worker in client.workers())


@pytest.mark.long
def test_no_finished_chunk_runs_again_after_a_kill_of_everything(
    own: LiveDrayman, tmp_path: Path
) -> None:
    count = 60
    with own.client() as client:
        # One is held, so that the kill is in the middle however slow this test is.
        job_id = slices(client, tmp_path, count=count, lasts_s=0.05, held=[count - 1])
        until(lambda: states(own, job_id)["succeeded"] > 0.6 * count)
        before = tasks_of(own, job_id)
    done = {name: task for name, task in before.items() if task["state"] == "succeeded"}

    own.kill_everything()
    (tmp_path / "open-chunks").touch()
    own.up()

    with own.client() as client:
        job = client.wait(job_id, WAIT_S)
        workers = cpu_workers(client)
    after = tasks_of(own, job_id)
    assert job["status"] == "completed"
    assert job["result"]["text"] == " ".join(map(str, range(count)))
    assert job["recoveries"] == 0
    assert {name: after[name] for name in done} == done
    assert {name for name, times in runs(tmp_path).items() if times > 1}.isdisjoint(done)
    # What was running is run again, and what had ended but could not be told any more.
    assert (runs(tmp_path) - once_each("split", "join", chunks=count)).total() <= 2 * workers


@pytest.mark.parametrize("fails", [True, False], ids=["failed", "killed"])
def test_an_attempt_that_came_to_nothing_submits_nothing(
    drayman: LiveDrayman, client: Client, tmp_path: Path, fails: bool
) -> None:
    until(lambda: all_workers_are_free(client))
    params = {"folder": str(tmp_path), "children": 3, "fails": fails}
    job_id = client.submit("live.brood", params)["id"]
    if not fails:
        handler, _ = begun(tmp_path, "0")
        kill(worker_pid(drayman, client, job_id, "0"), handler)

    job = client.wait(job_id, WAIT_S)
    ended = [client.wait(child, WAIT_S) for child in job["result"]]

    assert job["status"] == "completed"
    assert len(client.attempts(job_id)) == 2
    assert [(child["status"], child["parent"]) for child in ended] == [("completed", job_id)] * 3
    known = [child["id"] for child in client.jobs(type="live.effect") if child["parent"] == job_id]
    assert Counter(known) == Counter(job["result"])
    assert Counter((tmp_path / "effects").read_text().split()) == Counter(known)
    until(lambda: all_workers_are_free(client))


# --- what is lost -------------------------------------------------------------------------------


def output(drayman: LiveDrayman, job_id: str, task_id: str) -> Path:
    """Return where the file of a chunk lies."""
    (path,) = (drayman.store / "results" / job_id / task_id).rglob("slice")
    return path


def test_only_the_chunk_whose_output_is_gone_is_run_again_for_the_join(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    job_id = slices(client, tmp_path, join_held=True)
    begun(tmp_path, "join")

    output(drayman, job_id, "3").unlink()
    (tmp_path / "open-join").touch()
    job = client.wait(job_id, WAIT_S)

    assert job["status"] == "completed"
    assert job["result"]["text"] == " ".join(map(str, range(CHUNKS)))
    assert job["result"]["sizes"] == [1] * CHUNKS
    assert runs(tmp_path) == once_each("split", "3", "join", "join")
    first, second = [a for a in client.attempts(job_id) if a["task_id"] == "join"]
    assert (first["outcome"], first["cause"]) == ("interrupted", "input lost")
    assert second["outcome"] == "succeeded"


@pytest.mark.long
@pytest.mark.parametrize("are_in_files", [False, True], ids=["at once", "once in files"])
def test_lost_outputs_are_made_again_back_to_where_they_are_whole(
    own: LiveDrayman, tmp_path: Path, are_in_files: bool
) -> None:
    job_id = post(
        own,
        step("a", "live.slices", tmp_path, count=CHUNKS),
        step("b", "live.slices", tmp_path, count=CHUNKS, of={"$result": "a.files"}),
        # With one attempt, it fails if any of what happens to it is charged.
        step("c", "live.read", tmp_path, files={"$result": "b.files"}, max_attempts=1),
    )
    begun(tmp_path, "c")
    # What is known of the chunks moves out of the manager's memory into files.
    until(lambda: not are_in_files or chunks_are_in_files(own, job_id))
    before = runs(tmp_path)

    own.kill_everything()
    spoiled = output(own, job_id, "a.3")
    data = bytearray(spoiled.read_bytes())
    data[0] ^= 1
    spoiled.write_bytes(data)
    output(own, job_id, "b.3").unlink()
    (tmp_path / "open-read").touch()
    own.up()

    with own.client() as client:
        job = client.wait(job_id, WAIT_S)
        attempts = [a for a in client.attempts(job_id) if a["task_id"] == "c"]
    assert job["status"] == "completed"
    assert job["result"] == " ".join(f"a.{n}>b.{n}" for n in range(CHUNKS))
    of_a = once_each("a.split", "a.join", step="a")
    assert before == of_a + once_each("b.split", "b.join", "c", step="b")
    # `b.3` runs once in vain, to find `a.3` spoiled, and `c` to find `b.3` gone.
    assert [(a["outcome"], a["cause"]) for a in attempts[1:]] == [
        ("interrupted", "input lost"),
        ("succeeded", ""),
    ]
    assert attempts[0]["outcome"] == "interrupted"
    assert runs(tmp_path) - before == Counter(["a.3", "b.3", "b.3", "c", "c"])
    assert job["recoveries"] == 0


@pytest.mark.long
def test_a_lost_list_of_chunks_is_made_again_and_no_chunk_that_was_done(
    own: LiveDrayman, tmp_path: Path
) -> None:
    with own.client() as client:
        job_id = slices(client, tmp_path, held=[5])
        begun(tmp_path, "5")
        until(lambda: states(own, job_id)["succeeded"] == CHUNKS)  # the split, all others

    own.kill_everything()
    (listed,) = (own.store / "results" / job_id / "split").rglob("*.parquet")
    listed.unlink()
    (tmp_path / "open-chunks").touch()
    own.up()

    with own.client() as client:
        job = client.wait(job_id, WAIT_S)
    assert job["status"] == "completed"
    assert job["result"]["text"] == " ".join(map(str, range(CHUNKS)))
    assert job["recoveries"] == 0
    assert runs(tmp_path) == once_each("split", "split", "5", "join")


# --- what is stopped, and what fails ------------------------------------------------------------


def test_nothing_of_a_cancelled_fan_out_goes_on(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    until(lambda: all_workers_are_free(client) and line_is_empty(client))
    count = 3_000
    job_id = slices(client, tmp_path, count=count, held=list(range(2, count)))
    # Which ones they are depends on who took what ahead.
    until(lambda: len({*tmp_path.glob("begun-*")} - {*tmp_path.glob("begun-[01]-*")}) == 2)

    client.cancel(job_id)
    job = client.wait(job_id, WAIT_S)

    until(lambda: line_is_empty(client) and all_workers_are_free(client))
    assert (job["status"], job["reason"]) == ("cancelled", "cancelled")
    ran = runs(tmp_path)
    assert ran["join"] == 0
    assert max(ran.values()) == 1
    told = tasks_of(drayman, job_id)
    assert [name for name, task in told.items() if task["state"] == "succeeded"] == [
        "split",
        "0",
        "1",
    ]
    assert Counter(task["state"] for task in told.values())["leased"] == 0


def test_nothing_of_a_cancelled_workflow_goes_on(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    until(lambda: all_workers_are_free(client) and line_is_empty(client))
    job_id = post(
        drayman,
        step("a", "live.slices", tmp_path, count=50, held=list(range(50))),
        step("b", "live.sum", tmp_path, parts=[1]),
        step("c", "live.read", tmp_path, files={"$result": "a.files"}, after=["b"]),
    )
    begun(tmp_path, "a.0")

    client.cancel(job_id)
    job = client.wait(job_id, WAIT_S)

    until(lambda: line_is_empty(client) and all_workers_are_free(client))
    assert job["status"] == "cancelled"
    assert runs(tmp_path)["c"] == 0
    assert {s["name"] for s in job["steps"] if s["state"] == "succeeded"} <= {"b"}


def test_the_first_chunk_that_fails_for_good_fails_the_job_and_stops_the_others(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    until(lambda: all_workers_are_free(client) and line_is_empty(client))

    job = client.wait(client.submit("live.brittle", brittle(tmp_path))["id"], WAIT_S)

    until(lambda: line_is_empty(client) and all_workers_are_free(client))
    assert (job["status"], job["error"]["cause"]) == ("failed", "discarded")
    assert job["error"]["message"] == "1: chunk 1 cannot work"
    assert max(runs(tmp_path).values()) == 1
    assert runs(tmp_path).total() < 5_000


def test_a_fan_out_that_failed_goes_on_with_what_it_lacks(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    params = brittle(tmp_path) | {"count": 30}
    job_id = client.submit("live.brittle", params)["id"]
    failed = client.wait(job_id, WAIT_S)
    done = {n for n, task in tasks_of(drayman, job_id).items() if task["state"] == "succeeded"}

    (tmp_path / "cure").touch()
    client.retry(job_id)
    job = client.wait(job_id, WAIT_S)

    assert (failed["status"], job["status"]) == ("failed", "completed")
    assert job["result"] == {"good": list(range(30)), "bad": []}
    again = {name for name, times in runs(tmp_path).items() if times > 1}
    assert {"1"} <= again <= {str(n) for n in range(30)} - done
    assert all(t["state"] == "succeeded" for t in tasks_of(drayman, job_id).values())


def test_a_failed_job_leaves_nothing_in_the_counts_of_its_queue(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    until(lambda: all_workers_are_free(client) and line_is_empty(client))
    before = line(client)

    job = client.wait(client.submit("live.brittle", brittle(tmp_path))["id"], WAIT_S)

    assert job["status"] == "failed"
    until(lambda: line_is_empty(client))
    assert line(client) == before


def brittle(folder: Path) -> Json:
    """Return params with which one chunk fails, while another lasts until it is stopped."""
    return {"folder": str(folder), "count": 5_000, "lasts_s": 0.01, "bad": [1], "held": [0]}


def test_a_join_finds_the_chunks_that_failed_where_the_type_tolerates_them(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    params = {"folder": str(tmp_path), "count": 6, "bad": [1, 4]}

    job = client.wait(client.submit("live.tolerant", params)["id"], WAIT_S)

    assert (job["status"], job["result"]) == ("completed", {"good": [0, 2, 3, 5], "bad": [1, 4]})
    (only,) = job["steps"]
    assert (only["chunks"], only["done"], only["failed"]) == (6, 4, 2)


def test_only_the_join_runs_again_if_it_is_what_failed(client: Client, tmp_path: Path) -> None:
    job_id = slices(client, tmp_path, cure="cure")
    failed = client.wait(job_id, WAIT_S)

    (tmp_path / "cure").touch()
    client.retry(job_id)
    job = client.wait(job_id, WAIT_S)

    assert (failed["status"], job["status"]) == ("failed", "completed")
    assert job["result"]["text"] == " ".join(map(str, range(CHUNKS)))
    assert runs(tmp_path) == once_each("split", "join", "join")


def test_a_fan_out_without_chunks_completes(client: Client, tmp_path: Path) -> None:
    job = client.wait(slices(client, tmp_path, count=0), WAIT_S)
    without_join = client.wait(client.submit("live.many", {"count": 0})["id"], WAIT_S)

    assert (job["status"], job["result"]) == ("completed", {"files": [], "sizes": [], "text": ""})
    assert (without_join["status"], without_join["result"]) == ("completed", {"chunks": 0})


# --- who waits ----------------------------------------------------------------------------------


def test_short_jobs_start_while_ten_thousand_chunks_are_in_line(
    drayman: LiveDrayman, client: Client
) -> None:
    until(lambda: all_workers_are_free(client) and line_is_empty(client))
    large = client.submit("live.many", LARGE)["id"]
    until(lambda: client.status(large)["steps"][0]["done"] > 0)

    ended = [
        client.wait(client.submit("live.now", {}, priority=0)["id"], SHORT_S) for _ in range(5)
    ]
    still = client.status(large)
    client.cancel(large)
    job = client.wait(large, WAIT_S)

    assert {short["status"] for short in ended} == {"completed"}
    assert still["status"] == "processing"
    assert job["status"] == "cancelled"
    until(lambda: line_is_empty(client) and all_workers_are_free(client))
