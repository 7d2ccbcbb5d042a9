"""Schedules over HTTP: what they take and refuse, what they show, and what they submit."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jsonschema
import pytest

from tests.support.api import RunningApi

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}
NIGHTLY: dict[str, Any] = {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "job": GREET}
HERE = "/v1/schedules/nightly"
NONE = {"schedules": [], "next_after": None}


def ahead(**passed: float) -> str:
    return (datetime.now(UTC) + timedelta(**passed)).isoformat()


async def put(client: httpx.AsyncClient, **change: Any) -> dict[str, Any]:
    answer = await client.put(HERE, json=NIGHTLY | change)
    assert answer.status_code in (200, 201), answer.text
    shown: dict[str, Any] = answer.json()
    return shown


# --- putting ------------------------------------------------------------------------------------


async def test_a_new_schedule_is_shown_with_its_next_ticks(acme: httpx.AsyncClient) -> None:
    answer = await acme.put(HERE, json=NIGHTLY | {"overlap": "skip", "jitter_s": 60})

    shown = answer.json()
    assert answer.status_code == 201
    assert (shown["name"], shown["tenant"], shown["job"]) == ("nightly", "acme", GREET)
    assert (shown["overlap"], shown["jitter_s"], shown["catch_up"]) == ("skip", 60, "latest")
    assert (shown["fired"], shown["skipped"], shown["last_at"], shown["last_job"]) == (
        0,
        0,
        None,
        None,
    )
    ticks = [datetime.fromisoformat(moment) for moment in shown["next"]]
    assert len(ticks) == 3
    assert datetime.now(UTC) < ticks[0] < ticks[1] < ticks[2]
    assert all(tick.minute == 30 for tick in ticks)
    assert (await acme.get(HERE)).json() == shown


async def test_the_same_again_changes_nothing(acme: httpx.AsyncClient) -> None:
    await put(acme)
    await acme.post(f"{HERE}/run")
    before = (await acme.get(HERE)).json()

    spelled = json.dumps(
        {"job": GREET, "timezone": "Europe/Berlin", "cron": "30 2 * * *"}, indent=2
    )
    answer = await acme.put(HERE, content=spelled)

    assert answer.status_code == 200
    assert answer.json() == before == (await acme.get(HERE)).json()


async def test_another_takes_its_place(acme: httpx.AsyncClient) -> None:
    await put(acme)

    answer = await acme.put(HERE, json={"cron": "@hourly", "job": GREET | {"priority": 7}})

    assert answer.status_code == 200
    shown = (await acme.get(HERE)).json()
    assert shown == answer.json()
    assert (shown["cron"], shown["timezone"]) == ("@hourly", "UTC")
    assert shown["job"] == GREET | {"priority": 7}
    assert len((await acme.get("/v1/schedules")).json()["schedules"]) == 1


async def test_ticks_lie_between_start_and_end(acme: httpx.AsyncClient) -> None:
    midnight = datetime(datetime.now(UTC).year + 1, 3, 1, tzinfo=UTC)
    second = midnight + timedelta(days=1)

    shown = await put(
        acme,
        cron="0 0 * * *",
        timezone="UTC",
        starts_at=midnight.isoformat(),
        ends_at=second.isoformat(),
    )

    assert [datetime.fromisoformat(moment) for moment in shown["next"]] == [midnight, second]
    assert datetime.fromisoformat(shown["starts_at"]) == midnight
    assert datetime.fromisoformat(shown["ends_at"]) == second


# --- looking, deleting --------------------------------------------------------------------------


async def test_as_many_ticks_are_shown_as_are_asked_for(acme: httpx.AsyncClient) -> None:
    shown = await put(acme)

    assert len((await acme.get(HERE, params={"next": 40})).json()["next"]) == 40
    assert (await acme.get(HERE, params={"next": 1})).json()["next"] == shown["next"][:1]
    for wrong in ("0", "-1", "101", "some"):
        assert (await acme.get(HERE, params={"next": wrong})).status_code == 422


async def test_the_list_is_by_name_with_the_next_tick_of_each(acme: httpx.AsyncClient) -> None:
    assert (await acme.get("/v1/schedules")).json() == NONE
    for name in ("b", "a", "c.1_x-y"):
        assert (await acme.put(f"/v1/schedules/{name}", json=NIGHTLY)).status_code == 201

    listed = (await acme.get("/v1/schedules")).json()["schedules"]

    assert [one["name"] for one in listed] == ["a", "b", "c.1_x-y"]
    assert all(len(one["next"]) == 1 for one in listed)


async def test_the_list_comes_in_pages_that_miss_nothing_while_schedules_go(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    umbrella = api.client("umbrella")
    for client, names in ((acme, "abc"), (umbrella, "ab")):
        for name in names:
            assert (await client.put(f"/v1/schedules/{name}", json=NIGHTLY)).status_code == 201

    pages: list[list[str]] = []
    query = {"limit": "2"}
    while True:
        page = (await admin.get("/v1/schedules", params=query)).json()
        pages.append([f"{one['tenant']}/{one['name']}" for one in page["schedules"]])
        if page["next_after"] is None:
            break
        query["after"] = page["next_after"]
        if len(pages) == 1:  # the one that the next page comes after
            await acme.delete("/v1/schedules/b")

    assert pages == [["acme/a", "acme/b"], ["acme/c", "umbrella/a"], ["umbrella/b"]]
    whole = (await acme.get("/v1/schedules", params={"limit": 2})).json()
    assert (len(whole["schedules"]), whole["next_after"]) == (2, None)


@pytest.mark.parametrize(
    ("query", "field"),
    [({"limit": "0"}, "limit"), ({"limit": "1001"}, "limit"), ({"after": "a"}, "after")],
)
async def test_a_page_of_schedules_that_cannot_be_is_refused(
    acme: httpx.AsyncClient, query: dict[str, str], field: str
) -> None:
    answer = await acme.get("/v1/schedules", params=query)

    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_what_is_deleted_is_gone(acme: httpx.AsyncClient) -> None:
    await put(acme)

    answer = await acme.delete(HERE)

    assert (answer.status_code, answer.content) == (204, b"")
    assert (await acme.get(HERE)).status_code == 404
    assert (await acme.delete(HERE)).status_code == 404
    assert (await acme.get("/v1/schedules")).json() == NONE


async def test_two_tenants_may_use_the_same_name(api: RunningApi, acme: httpx.AsyncClient) -> None:
    umbrella = api.client("umbrella")
    await put(acme)
    assert (await umbrella.put(HERE, json=NIGHTLY | {"cron": "@hourly"})).status_code == 201

    assert (await umbrella.delete(HERE)).status_code == 204

    assert (await acme.get(HERE)).json()["cron"] == "30 2 * * *"


async def test_a_schedule_of_another_tenant_is_not_there(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    await put(acme)
    umbrella = api.client("umbrella")

    for method, path in [
        ("GET", HERE),
        ("DELETE", HERE),
        ("POST", f"{HERE}/run"),
        ("POST", f"{HERE}/pause"),
        ("POST", f"{HERE}/resume"),
    ]:
        assert (await umbrella.request(method, path)).status_code == 404
        refused = await umbrella.request(method, path, params={"tenant": "acme"})
        assert refused.status_code == 403
    assert (await umbrella.get("/v1/schedules")).json() == NONE
    assert (await admin.get(HERE)).status_code == 404
    assert (await admin.get(HERE, params={"tenant": "acme"})).status_code == 200
    assert len((await admin.get("/v1/schedules")).json()["schedules"]) == 1
    assert (await admin.delete(HERE, params={"tenant": "acme"})).status_code == 204
    assert (await acme.get(HERE)).status_code == 404


# --- firing, pausing ----------------------------------------------------------------------------


async def test_a_tick_submits_the_job(api: RunningApi, acme: httpx.AsyncClient) -> None:
    await put(acme, cron="* * * * * *")

    spec = json.loads(bytes((await api.worker.take()).spec))

    assert (spec["type"], spec["params"], spec["tenant"]) == ("greet", {"name": "Ada"}, "acme")
    assert spec["schedule"] == "nightly"
    shown = (await acme.get(HERE)).json()
    assert shown["fired"] >= 1
    assert shown["last_at"] is not None
    assert (await acme.get(f"/v1/jobs/{shown['last_job']}")).status_code == 200


async def test_run_submits_the_job_now_and_leaves_the_ticks(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    shown = await put(acme, job=GREET | {"labels": {"team": "ads"}})

    answer = await acme.post(f"{HERE}/run")

    job = answer.json()
    assert (answer.status_code, job["type"], job["status"]) == (202, "greet", "pending")
    assert job["labels"] == {"team": "ads"}
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    await api.worker.succeed("hello Ada")
    assert (await acme.get(f"/v1/jobs/{job['id']}")).json()["status"] == "completed"
    assert (await acme.get(HERE)).json()["next"] == shown["next"]


async def test_each_run_is_a_job_whatever_the_type_says_of_equal_params(
    acme: httpx.AsyncClient,
) -> None:
    await put(acme, job={"type": "greet.once", "params": {"name": "Ada"}})

    ids = {(await acme.post(f"{HERE}/run")).json()["id"] for _ in range(3)}

    assert len(ids) == 3


async def test_a_paused_schedule_has_no_ticks_until_it_is_resumed(acme: httpx.AsyncClient) -> None:
    shown = await put(acme)

    paused = (await acme.post(f"{HERE}/pause")).json()
    again = (await acme.post(f"{HERE}/pause")).json()
    run = await acme.post(f"{HERE}/run")
    resumed = (await acme.post(f"{HERE}/resume")).json()

    assert (paused["paused"], paused["next"]) == (True, [])
    assert again == paused
    assert run.status_code == 202
    assert (resumed["paused"], resumed["next"]) == (False, shown["next"])
    assert resumed["job"] == shown["job"]


async def test_a_schedule_can_be_put_paused(acme: httpx.AsyncClient) -> None:
    assert (await put(acme, paused=True))["next"] == []
    assert len((await put(acme, paused=False))["next"]) == 3


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cron": "often"}, "cron"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": 5}, "cron"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"catch_up": "some"}, "catch_up"),
        ({"overlap": "queue"}, "overlap"),
        ({"jitter_s": -1}, "jitter_s"),
        ({"jitter_s": 1e9}, "jitter_s"),
        ({"cron": "* * * * *", "jitter_s": 61}, "jitter_s"),
        ({"starts_at": "2030-01-01T00:00:00"}, "starts_at"),
        ({"starts_at": "9000-01-01T00:00:00Z"}, "starts_at"),
        ({"ends_at": "2020-01-01T00:00:00Z"}, "ends_at"),
        ({"starts_at": ahead(days=9), "ends_at": ahead(days=5)}, "ends_at"),
        ({"cron": "0 0 29 2 *", "ends_at": ahead(seconds=5)}, "ends_at"),
        ({"paused": "no"}, "paused"),
        ({"every_s": 60}, "every_s"),
        ({"job": None}, "job"),
        ({"job": []}, "job"),
        ({"job": {}}, "job.type"),
        ({"job": {"type": "greeet"}}, "job.type"),
        ({"job": {"type": "greet"}}, "job.params.name"),
        ({"job": {"type": "greet", "params": {"name": "Ada", "times": 99}}}, "job.params.times"),
        ({"job": {"type": "greet", "params": []}}, "job.params"),
        ({"job": GREET | {"priority": 10**9}}, "job.priority"),
        ({"job": GREET | {"queue": "nowhere"}}, "job.queue"),
        ({"job": GREET | {"run_at": "2030-01-01T00:00:00Z"}}, "job.run_at"),
        ({"job": GREET | {"delay_s": 5}}, "job.delay_s"),
        ({"job": GREET | {"expires_at": ahead(days=1)}}, "job.expires_at"),
        ({"job": GREET | {"code": "0" * 64}}, "job.code"),
        ({"job": GREET | {"colour": "red"}}, "job.colour"),
    ],
)
async def test_what_is_wrong_is_refused_with_its_place(
    acme: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    answer = await acme.put(HERE, json=NIGHTLY | change)

    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "/problems/invalid-input"), problem
    assert [error["field"] for error in problem["errors"]] == [field], problem
    assert (await acme.get("/v1/schedules")).json() == NONE


@pytest.mark.parametrize("missing", ["cron", "job"])
async def test_what_is_missing_is_named(acme: httpx.AsyncClient, missing: str) -> None:
    body = {name: value for name, value in NIGHTLY.items() if name != missing}

    problem = (await acme.put(HERE, json=body)).json()

    assert problem["errors"] == [{"field": missing, "reason": "is required"}]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"\xff", 400), (b"[]", 422), (b"[" * 70_000, 400)],
)
async def test_a_body_that_is_no_object_is_refused(
    acme: httpx.AsyncClient, body: bytes, status: int
) -> None:
    assert (await acme.put(HERE, content=body)).status_code == status


async def test_a_refused_schedule_leaves_the_one_there_is(acme: httpx.AsyncClient) -> None:
    shown = await put(acme)
    nested = b'{"cron": "@daily", "job": {"type": "greet", "params": %s}}'

    assert (await acme.put(HERE, json=NIGHTLY | {"cron": "often"})).status_code == 422
    deep = nested % (b'{"name": ' + b"[" * 30_000 + b"]" * 30_000 + b"}")
    assert (await acme.put(HERE, content=deep)).status_code == 400

    assert (await acme.get(HERE)).json() == shown


@pytest.mark.parametrize(
    "name", ["Nightly", "-a", "_a", "a b", "a" * 101, "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
)
async def test_a_name_that_is_none_is_refused(acme: httpx.AsyncClient, name: str) -> None:
    problem = (await acme.put(f"/v1/schedules/{name}", json=NIGHTLY)).json()

    assert problem["errors"][0]["field"] == "name"
    assert (await acme.get(f"/v1/schedules/{name}")).status_code == 404


async def test_params_that_would_need_the_store_are_refused(acme: httpx.AsyncClient) -> None:
    job: dict[str, Any] = {"type": "greet", "params": {"name": "Ada", "note": "x" * 70_000}}

    answer = await acme.put(HERE, json=NIGHTLY | {"job": job})

    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
    assert "/v1/uploads" in answer.json()["detail"]
    job["params"]["note"] = "x" * 200_000
    assert (await acme.put(HERE, json=NIGHTLY | {"job": job})).status_code == 413


async def test_while_the_manager_is_away_the_answer_is_503(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    await put(acme)
    api.port.away = True

    for answer in (await acme.put(HERE, json=NIGHTLY), await acme.get(HERE)):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1


async def test_openapi_is_true_of_schedules(api: RunningApi, acme: httpx.AsyncClient) -> None:
    document = api.app.openapi()
    calls: list[tuple[str, str, Any]] = [
        ("PUT", "/v1/schedules/{name}", NIGHTLY),
        ("PUT", "/v1/schedules/{name}", NIGHTLY),
        ("PUT", "/v1/schedules/{name}", {"cron": "often", "job": {}}),
        ("GET", "/v1/schedules/{name}", None),
        ("GET", "/v1/schedules", None),
        ("POST", "/v1/schedules/{name}/run", None),
        ("POST", "/v1/schedules/{name}/pause", None),
        ("POST", "/v1/schedules/{name}/resume", None),
        ("DELETE", "/v1/schedules/{name}", None),
        ("GET", "/v1/schedules/{name}", None),
    ]
    for method, template, sent in calls:
        path = template.replace("{name}", "nightly")
        answer = await acme.request(method, path, json=sent)

        responses = document["paths"][template][method.lower()]["responses"]
        assert str(answer.status_code) in responses, (method, template, answer.text)
        if answer.status_code == 204:
            assert "content" not in responses["204"]
            continue
        [content] = responses[str(answer.status_code)]["content"].values()
        schema = {"components": document["components"], **content["schema"]}
        jsonschema.validate(answer.json(), schema)
    asked = {"components": document["components"], "$ref": "#/components/schemas/ScheduleRequest"}
    jsonschema.validate(NIGHTLY, asked)
