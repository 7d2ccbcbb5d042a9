"""The config over HTTP: shown whole, replaced whole, and never over what was not seen."""

import asyncio
from typing import Any

import httpx
import jsonschema
import pytest

from service.config_file import BYTES_MAX
from tests.support.api import RunningApi

Table = dict[str, Any]


async def in_force(admin: httpx.AsyncClient) -> tuple[Table, str]:
    answer = await admin.get("/v1/config")
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers["etag"]


async def put(admin: httpx.AsyncClient, table: Any, if_match: str | None = None) -> httpx.Response:
    headers = {} if if_match is None else {"If-Match": if_match}
    return await admin.put("/v1/config", json=table, headers=headers)


async def test_every_setting_is_shown(admin: httpx.AsyncClient) -> None:
    table, etag = await in_force(admin)

    assert (table["default_queue"], table["ageing_s"]) == ("default", 60.0)
    [pool] = table["pools"].values()
    assert pool["memory_limit_mb"] is None
    assert "name" not in pool
    assert etag.strip('"').isdigit()


async def test_what_is_put_is_in_force_as_a_new_revision(admin: httpx.AsyncClient) -> None:
    table, etag = await in_force(admin)
    wanted = table | {"limits": {"http:api": {"rate": 10.0, "burst": 1, "concurrency": None}}}

    answer = await put(admin, wanted, etag)

    assert (answer.status_code, answer.json()) == (200, wanted)
    assert answer.headers["etag"] != etag
    assert await in_force(admin) == (wanted, answer.headers["etag"])


async def test_what_is_left_out_has_its_default(admin: httpx.AsyncClient) -> None:
    table, _ = await in_force(admin)
    await put(admin, table | {"depth_max": 9, "tenants": {"acme": {"weight": 3}}})

    answer = await put(admin, {"pools": table["pools"]})

    assert answer.json()["depth_max"] == 5_000_000
    assert answer.json()["tenants"] == {}


async def test_a_queue_exists_once_a_pool_serves_it(
    acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    job = {"type": "greet", "params": {"name": "Ada"}, "queue": "night"}
    table, _ = await in_force(admin)
    [(name, pool)] = table["pools"].items()
    before = await acme.post("/v1/jobs", json=job)

    pools = {name: pool | {"queues": [*pool["queues"], "night"]}}
    answer = await put(admin, table | {"pools": pools})

    assert (before.status_code, answer.status_code) == (422, 200)
    assert (await acme.post("/v1/jobs", json=job)).status_code == 202
    queues = (await acme.get("/v1/queues")).json()["queues"]
    assert "night" in {queue["name"] for queue in queues}


# --- If-Match ---------------------------------------------------------------------------------


@pytest.mark.parametrize("if_match", ['"0", {etag}', " {etag} ", "*", None])
async def test_it_is_replaced_if_it_is_the_one_that_was_seen(
    admin: httpx.AsyncClient, if_match: str | None
) -> None:
    table, etag = await in_force(admin)

    answer = await put(admin, table | {"depth_max": 9}, if_match and if_match.format(etag=etag))

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("if_match", ["{etag}", "W/{etag}", '"x"', "1", ""])
async def test_what_was_not_seen_is_not_overwritten(
    admin: httpx.AsyncClient, if_match: str
) -> None:
    table, seen = await in_force(admin)
    await put(admin, table | {"depth_max": 9})
    stale = if_match.format(etag=seen)

    answer = await put(admin, table | {"depth_max": 10}, stale)

    assert (answer.status_code, answer.json()["type"]) == (412, "/problems/precondition-failed")
    assert "read it again" in answer.json()["detail"]
    assert (await in_force(admin))[0]["depth_max"] == 9


async def test_of_two_at_once_who_saw_the_same_one_wins(admin: httpx.AsyncClient) -> None:
    table, etag = await in_force(admin)

    answers = await asyncio.gather(
        *[put(admin, table | {"depth_max": depth}, etag) for depth in (9, 10)]
    )

    assert sorted(answer.status_code for answer in answers) == [200, 412]
    [won] = [answer for answer in answers if answer.is_success]
    assert await in_force(admin) == (won.json(), won.headers["etag"])


async def test_a_request_whose_answer_was_lost_can_be_repeated(admin: httpx.AsyncClient) -> None:
    table, etag = await in_force(admin)
    wanted = table | {"depth_max": 9}

    first, again = await put(admin, wanted, etag), await put(admin, wanted, etag)

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.headers["etag"] == again.headers["etag"]


# --- bad input --------------------------------------------------------------------------------


async def test_all_that_is_wrong_is_told_and_nothing_changed(admin: httpx.AsyncClient) -> None:
    table, etag = await in_force(admin)
    pools = {"cpu": {"queues": ["default"], "max": "4"}}

    answer = await put(admin, {"depth": 1, "pools": pools})

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-input")
    assert answer.json()["errors"] == [
        {"field": "depth", "reason": "there is no such setting; did you mean depth_max?"},
        {"field": "pools.cpu.max", "reason": "expected `int`, got `str`"},
    ]
    assert await in_force(admin) == (table, etag)


@pytest.mark.parametrize(
    "data", ["null", "[]", '"x"', "{}", '{"pools": {}}', '{"pools": {"cpu": null}}', '{"\\n": 1}']
)
async def test_what_is_no_config_is_refused(admin: httpx.AsyncClient, data: str) -> None:
    assert (await admin.put("/v1/config", content=data)).status_code == 422


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (rb'{"\ud800": 1}', 400),
        (b" " * (BYTES_MAX + 1), 413),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(
    admin: httpx.AsyncClient, data: bytes, status: int
) -> None:
    answer = await admin.put("/v1/config", content=data)

    assert answer.status_code == status
    assert "upload" not in answer.json()["detail"]


async def test_only_admins_see_and_change_it(api: RunningApi, acme: httpx.AsyncClient) -> None:
    answers = [await acme.get("/v1/config"), await put(acme, {})]
    unknown = [await api.anonymous().get("/v1/config"), await put(api.anonymous(), {})]

    assert [answer.status_code for answer in answers] == [403, 403]
    assert [answer.status_code for answer in unknown] == [401, 401]


async def test_it_is_unavailable_while_the_manager_is_away(
    api: RunningApi, admin: httpx.AsyncClient
) -> None:
    table, _ = await in_force(admin)
    api.port.away = True

    answers = [await admin.get("/v1/config"), await put(admin, table)]

    assert [answer.status_code for answer in answers] == [503, 503]
    assert all("retry-after" in answer.headers for answer in answers)


# --- the OpenAPI document ---------------------------------------------------------------------


async def test_openapi_is_true_of_it(api: RunningApi, admin: httpx.AsyncClient) -> None:
    document = api.app.openapi()
    promised = document["paths"]["/v1/config"]
    components = {"components": document["components"]}
    table, _ = await in_force(admin)

    taken = promised["put"]["requestBody"]["content"]["application/json"]["schema"] | components
    jsonschema.Draft202012Validator(taken).validate(table)
    for method, body, if_match in [("get", None, None), ("put", {}, None), ("put", table, '"x"')]:
        answer = await admin.request(
            method, "/v1/config", json=body, headers={"If-Match": if_match} if if_match else {}
        )
        [(kind, said)] = promised[method]["responses"][str(answer.status_code)]["content"].items()
        assert answer.headers["content-type"] == kind
        jsonschema.Draft202012Validator(said["schema"] | components).validate(answer.json())
