"""POST /v1/jobs/batch: one result a line, in order; a wrong line harms no other."""

import json
from typing import Any

import httpx

from service.api_settings import ApiSettings
from tests.support.api import RunningApi, running_api

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}


async def send(client: httpx.AsyncClient, *lines: Any, **more: Any) -> list[dict[str, Any]]:
    body = b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    answer = await client.post("/v1/jobs/batch", content=body, **more)
    assert answer.status_code == 202, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_each_line_becomes_a_job_in_order(acme: httpx.AsyncClient) -> None:
    results = await send(acme, *[GREET | {"labels": {"n": str(n)}} for n in range(50)])

    assert [result["line"] for result in results] == list(range(1, 51))
    last = (await acme.get(f"/v1/jobs/{results[-1]['id']}")).json()
    assert last["labels"] == {"n": "49"}


async def test_wrong_lines_are_results_beside_the_right_ones(acme: httpx.AsyncClient) -> None:
    results = await send(
        acme, GREET, b"{", b"", {"type": "nope"}, GREET | {"queue": "nowhere"}, GREET, b"\xff", b""
    )

    assert [result["line"] for result in results] == [1, 2, 4, 5, 6, 7]  # a blank one has none
    assert ["id" in result for result in results] == [True, False, False, False, True, False]
    kinds = [
        result["problem"]["type"].rpartition("/")[2] for result in results if "id" not in result
    ]
    assert kinds == ["malformed", "invalid-input", "invalid-input", "malformed"]
    assert len((await acme.get("/v1/jobs")).json()["jobs"]) == 2


async def test_repeated_batch_with_a_key_makes_no_second_job(acme: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "batch-1"}
    first = await send(acme, GREET, GREET, headers=headers)

    second = await send(acme, GREET, GREET, headers=headers)

    assert [r["id"] for r in second] == [r["id"] for r in first]
    assert [r.get("replayed") for r in second] == [True, True]
    assert first[0]["id"] != first[1]["id"]


async def test_some_lines_are_sent_again_at_their_places(acme: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "batch-1"}
    first = await send(acme, GREET, GREET, GREET, headers=headers)

    second = await send(acme, b"", GREET, b"  ", headers=headers)

    assert second == [first[1] | {"replayed": True}]


async def test_lines_have_keys_of_their_own(acme: httpx.AsyncClient) -> None:
    keyed = GREET | {"idempotency_key": "k1"}

    results = await send(acme, keyed, keyed, keyed | {"priority": 1})

    assert results[0]["id"] == results[1]["id"]
    assert results[2]["problem"]["type"] == "/problems/key-reused"


async def test_large_params_in_a_batch_travel_by_reference(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    large = {"type": "greet", "params": {"name": "Ada", "note": "x" * 70_000}}

    results = await send(acme, GREET, large)

    assert all("id" in result for result in results)
    assert len(list(api.store.list("params/"))) == 1


async def test_batch_beyond_its_limits_is_413() -> None:
    async with running_api(ApiSettings(batch_lines_max=3, batch_bytes_max=1000)) as api:
        client = api.client()

        lines = await client.post("/v1/jobs/batch", content=b"{}\n" * 4)
        size = await client.post("/v1/jobs/batch", content=b" " * 1001)

    assert (lines.status_code, size.status_code) == (413, 413)


async def test_empty_batch_is_400(acme: httpx.AsyncClient) -> None:
    answer = await acme.post("/v1/jobs/batch", content=b"\n\n")

    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed")


async def test_batch_is_accepted_while_the_manager_is_away(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    api.port.away = True

    answer = await acme.post("/v1/jobs/batch", content=json.dumps(GREET))

    assert answer.status_code == 202
