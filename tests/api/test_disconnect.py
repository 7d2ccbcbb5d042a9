"""A client that leaves harms nobody: not its own job, not those that rode with it."""

import asyncio
from typing import Any

import httpx

from tests.support.api import RunningApi

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}


async def test_leaving_while_the_batch_is_under_way_harms_no_other(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    await acme.get("/v1/types")  # the token is known from here on
    api.port.hold = asyncio.Event()
    first, leaving, other = (
        asyncio.ensure_future(acme.post("/v1/jobs", json=GREET)) for _ in range(3)
    )
    await api.port.held.wait()

    leaving.cancel()
    await asyncio.wait([leaving])
    api.port.hold.set()

    answers = [await first, await other]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert (await acme.post("/v1/jobs", json=GREET)).status_code == 202


async def test_leaving_during_prefer_wait_does_not_cancel_the_job(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    await acme.get("/v1/types")
    headers = {"Prefer": "wait=30"}
    waiting = asyncio.ensure_future(acme.post("/v1/jobs", json=GREET, headers=headers))
    assignment = await api.worker.take()

    waiting.cancel()
    await asyncio.wait([waiting])

    [job] = (await acme.get("/v1/jobs")).json()["jobs"]
    assert (job["id"], job["status"], job["stopping"]) == (assignment.job_id, "processing", None)


async def test_first_of_many_leaving_does_not_spoil_the_reading_of_tokens(
    api: RunningApi,
) -> None:
    client = api.client("acme")
    first = asyncio.ensure_future(client.get("/v1/jobs"))
    second = asyncio.ensure_future(client.get("/v1/jobs"))
    await asyncio.sleep(0)

    first.cancel()

    assert (await second).status_code == 200
