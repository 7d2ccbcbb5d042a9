"""What attempts print, while they run and after; and what their job was submitted with."""

from typing import Any

import httpx
import pytest

from cluster.protocol import Assignment
from service.routes.output import RUNNING_MAX
from tests.support.api import RunningApi

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}


def printed(api: RunningApi, of: Assignment, text: str) -> str:
    """Store what an attempt printed until now, as its worker does."""
    path = f"logs/{of.job_id}/{of.task_id}/{of.attempt}.log"
    api.store.put(path, text.encode())
    return path


async def test_the_log_of_a_running_attempt_grows_until_the_job_has_ended(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    url = job["links"]["logs"]
    waits = await acme.get(url)
    attempt = await api.worker.take()
    silent = await acme.get(url)
    printed(api, attempt, "one\n")
    first = await acme.get(url)
    same = await acme.get(url, headers={"If-None-Match": first.headers["etag"]})
    log = printed(api, attempt, "one\ntwo\n")
    second = await acme.get(url, headers={"If-None-Match": first.headers["etag"]})
    [running] = (await acme.get(job["links"]["attempts"])).json()["attempts"]

    await api.worker._end(attempt, "discarded", error="no", cause="error", log=log)
    whole = await acme.get(url)

    answers = (waits, silent, first, same, second, whole)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 304, 200, 200]
    texts = ["", "", "one\n", "", "one\ntwo\n", "one\ntwo\n"]
    assert [answer.text for answer in answers] == texts
    complete = [answer.headers["drayman-complete"] for answer in answers]
    assert complete == ["false"] * 5 + ["true"]
    assert (running["outcome"], running["has_log"]) == ("running", False)
    again = await acme.get(url, headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_a_running_attempt_comes_after_those_that_ended(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    url = job["links"]["logs"]
    first = await api.worker.take()
    log = printed(api, first, "first\n")
    await api.worker._end(first, "discarded", error="no", cause="error", log=log)
    await acme.post(job["links"]["retry"])
    printed(api, await api.worker.take(), "second\n")

    assert (await acme.get(url)).text == "first\nsecond\n"
    assert (await acme.get(f"{url}?attempt=2")).text == "second\n"
    assert (await acme.get(f"{url}?attempt=3")).text == ""
    assert (await acme.get(f"{url}?task=other")).text == ""
    assert (await acme.get(f"{url}?attempt=0")).status_code == 422


async def test_of_many_that_run_some_are_in_one_answer_and_each_can_be_asked_for(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    count = RUNNING_MAX + 1
    steps = [{"name": f"s{number}", **GREET} for number in range(count)]
    job = (await acme.post("/v1/workflows", json={"steps": steps})).json()
    for _ in range(count):
        attempt = await api.worker.take()
        printed(api, attempt, f"{attempt.task_id}\n")

    everything = await acme.get(job["links"]["logs"])
    last = await acme.get(f"{job['links']['logs']}?task=s{count - 1}")

    assert len(everything.text.splitlines()) == RUNNING_MAX
    assert last.text == f"s{count - 1}\n"


async def over(api: RunningApi, job_id: str) -> None:
    """Let a finished job leave the manager's memory."""
    await api.manager._housekeeper.compact()
    api.manager.tick()
    await api.manager._commit.barrier()
    assert job_id not in api.manager._state.jobs


@pytest.mark.parametrize("note", ["é", "x" * 70_000], ids=["small", "large"])
async def test_params_are_as_they_were_sent_while_a_job_waits_and_long_after(
    api: RunningApi, acme: httpx.AsyncClient, note: str
) -> None:
    sent = f'{{"note": "{note}",  "name": "Ada", "times": 1}}'.encode()
    body = b'{"type": "greet", "params": %b}' % sent
    job = (await acme.post("/v1/jobs", content=body)).json()
    url = f"{job['links']['self']}/params"
    waits = await acme.get(url)
    await api.worker.succeed("hello")
    await over(api, job["id"])

    later, listed = await acme.get(url), await acme.get("/v1/jobs")
    api.port.away = True
    away = await acme.get(url)

    assert (waits.content, later.content, away.content) == (sent, sent, sent)
    assert later.headers["content-type"] == "application/json"
    assert later.headers["x-content-type-options"] == "nosniff"
    assert "params" not in listed.json()["jobs"][0]


async def test_params_of_a_job_that_the_manager_does_not_have_yet_are_503(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    api.port.away = True
    job = (await acme.post("/v1/jobs", json=GREET)).json()

    answer = await acme.get(f"{job['links']['self']}/params")

    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
