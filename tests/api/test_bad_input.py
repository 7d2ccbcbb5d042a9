"""Whatever is wrong with a request: a problem+json answer that names it, and nothing changed."""

import json
import re
from typing import Any

import httpx
import pytest

from service.api_settings import ApiSettings
from tests.support.api import RunningApi, running_api

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}


async def refused(client: httpx.AsyncClient, status: int, kind: str, **request: Any) -> Any:
    """Send a submission that must be refused so, leaving no job behind; return the problem."""
    answer = await client.post("/v1/jobs", **request)

    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"/problems/{kind}"), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert (await client.get("/v1/jobs")).json()["jobs"] == []
    return problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"type": "greet",}',
        b'{"type": "greet", "params": {"name": NaN}}',
        b'{"type": "greet", "params": {"name": "\xff"}}',
        b"\xfe\xff",
        b'{"type": "greet", "params": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"type": "greet"} {"type": "greet"}',
    ],
)
async def test_malformed_json_is_400(acme: httpx.AsyncClient, body: bytes) -> None:
    await refused(acme, 400, "malformed", content=body)


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (rb"\ud800", rb"\ud800"),
        (rb"\uD83D and more", rb"\uD83D"),
        (rb"\udc00", rb"\udc00"),
        (rb"\ud83d\ude00\ud801\ud802", rb"\ud801"),
        (rb"\ud800\u0041", rb"\ud800"),
        (rb"\\\udfff", rb"\udfff"),
    ],
)
async def test_half_a_character_is_refused_as_what_it_is(
    acme: httpx.AsyncClient, text: bytes, half: bytes
) -> None:
    body = b'{"type": "greet", "params": {"name": "%s"}}' % text

    problem = await refused(acme, 400, "malformed", content=body)

    told = f"{half.decode()} at byte {body.index(half)} is a lone surrogate, half of a character"
    assert problem["detail"] == f"the body is not Unicode: {told}"


@pytest.mark.parametrize("path", ["/v1/workflows", "/v1/jobs/batch", "/v1/dead-letters/purge"])
async def test_half_a_character_is_named_wherever_a_body_is_read(
    acme: httpx.AsyncClient, path: str
) -> None:
    answer = await acme.post(path, content=rb'{"type": "\ud800"}')

    assert "lone surrogate" in answer.text


@pytest.mark.parametrize("text", [rb"\ud83d\ude00", rb"\\ud800", rb"\u00e4"])
async def test_whole_characters_may_be_escaped(acme: httpx.AsyncClient, text: bytes) -> None:
    body = b'{"type": "greet", "params": {"name": "%s"}}' % text

    assert (await acme.post("/v1/jobs", content=body)).status_code == 202


@pytest.mark.parametrize("body", [b"[]", b"null", b'"greet"', b"7"])
async def test_body_that_is_no_object_is_refused(acme: httpx.AsyncClient, body: bytes) -> None:
    problem = await refused(acme, 422, "invalid-input", content=body)

    assert problem["errors"][0]["field"] == "body"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": "greeet"}, "type"),
        ({"type": 7}, "type"),
        ({"params": {"name": 7}}, "params.name"),
        ({"params": {}}, "params.name"),
        ({"params": {"name": "Ada", "times": 99}}, "params.times"),
        ({"params": {"name": "Ada", "shout": True}}, "params.shout"),
        ({"params": []}, "params"),
        ({"params": None}, "params"),
        ({"params": "{}"}, "params"),
        ({"queue": "nowhere"}, "queue"),
        ({"queue": "../etc"}, "queue"),
        ({"priority": "high"}, "priority"),
        ({"priority": 10**9}, "priority"),
        ({"run_at": "tomorrow"}, "run_at"),
        ({"run_at": "2030-01-01T00:00:00"}, "run_at"),
        ({"run_at": "9000-01-01T00:00:00Z"}, "run_at"),
        ({"run_at": "2030-01-01T00:00:00Z", "delay_s": 1}, "delay_s"),
        ({"delay_s": -1}, "delay_s"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"labels": {"a": 1}}, "labels[...]"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {str(i): "x" for i in range(33)}}, "labels"),
    ],
)
async def test_wrong_field_is_named(
    acme: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    problem = await refused(acme, 422, "invalid-input", json=GREET | change)

    assert [error["field"] for error in problem["errors"]] == [field]
    assert problem["errors"][0]["reason"]


async def test_unknown_type_suggests_a_near_one(acme: httpx.AsyncClient) -> None:
    problem = await refused(acme, 422, "invalid-input", json={"type": "gret"})

    assert "greet" in problem["errors"][0]["reason"]


async def test_missing_type_is_named(acme: httpx.AsyncClient) -> None:
    problem = await refused(acme, 422, "invalid-input", json={"params": {}})

    assert problem["errors"] == [{"field": "type", "reason": "is required"}]


async def test_every_unknown_field_is_named(acme: httpx.AsyncClient) -> None:
    problem = await refused(acme, 422, "invalid-input", json=GREET | {"prio": 1, "hook": "x"})

    assert [error["field"] for error in problem["errors"]] == ["prio", "hook"]


async def test_every_wrong_param_is_named(acme: httpx.AsyncClient) -> None:
    params = {"name": None, "times": "x"}

    problem = await refused(acme, 422, "invalid-input", json={"type": "greet", "params": params})

    assert [error["field"] for error in problem["errors"]] == ["params.name", "params.times"]


async def test_params_above_the_limit_point_to_uploads(acme: httpx.AsyncClient) -> None:
    params = {"name": "x" * 1_048_576}

    problem = await refused(acme, 413, "too-large", json={"type": "greet", "params": params})

    assert "/v1/uploads/" in problem["detail"]


async def test_body_above_the_limit_is_refused_by_its_declared_length(
    acme: httpx.AsyncClient,
) -> None:
    problem = await refused(
        acme, 413, "too-large", content=b"{", headers={"Content-Length": "99999999999"}
    )

    assert "/v1/uploads/" in problem["detail"]


async def test_chunked_body_is_not_read_beyond_the_limit() -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1024
            yield b"x" * 1024

    async with running_api(ApiSettings(params_bytes_max=10_000)) as api:
        answer = await api.client().post("/v1/jobs", content=endless())

    assert answer.status_code == 413
    assert sent < 200_000


@pytest.mark.parametrize("key", ['""', '"', "a b", '"é"', "x" * 256, '"a"b"'])
async def test_unreadable_key_is_refused(acme: httpx.AsyncClient, key: str) -> None:
    problem = await refused(
        acme, 422, "invalid-input", json=GREET, headers={"Idempotency-Key": key.encode("latin-1")}
    )

    assert problem["errors"][0]["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    "job_id", ["nope", "0" * 65, "01890000-0000-7000-8000-000000000000", "%00"]
)
@pytest.mark.parametrize(
    "rest", ["", "/tasks", "/attempts", "/logs", "/params", "/result", "/files"]
)
async def test_unknown_id_is_404(acme: httpx.AsyncClient, job_id: str, rest: str) -> None:
    answer = await acme.get(f"/v1/jobs/{job_id}{rest}")

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/jobs/", "/v2/jobs", "/favicon.ico"])
async def test_unknown_path_is_a_problem(acme: httpx.AsyncClient, path: str) -> None:
    answer = await acme.get(path)

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_wrong_method_names_those_allowed(acme: httpx.AsyncClient) -> None:
    answer = await acme.delete("/v1/jobs")

    assert (answer.status_code, answer.json()["type"]) == (405, "/problems/method-not-allowed")
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "status=done", "colour=red", "label=x", "after=?"]
)
async def test_wrong_query_is_named(acme: httpx.AsyncClient, query: str) -> None:
    answer = await acme.get(f"/v1/jobs?{query}")

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-input")
    assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("action", ["cancel", "retry"])
async def test_action_that_the_status_does_not_allow_is_409(
    api: RunningApi, acme: httpx.AsyncClient, action: str
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    await api.worker.succeed()

    answer = await acme.post(f"/v1/jobs/{job['id']}/{action}")

    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
    assert (await acme.get(job["links"]["self"])).json()["status"] == "completed"


async def test_defect_is_answered_without_a_trace(api: RunningApi, acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    api.store.put("results/none/secret-place.json", b"{}")
    await api.worker.succeed(files=None, ref="results/none/secret-place.json")
    api.app.add_api_route("/v1/defect", _defect)

    answer = await acme.get("/v1/defect")

    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
    assert "boom" not in answer.text
    assert job["id"]


async def _defect() -> None:
    raise RuntimeError("boom")


async def test_what_only_the_manager_knows_is_503_with_retry_after_while_it_is_away(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    api.port.away = True

    answers = [await acme.get(path) for path in ("/v1/queues", f"/v1/jobs/{job['id']}")]

    for answer in answers:
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
        assert int(answer.headers["retry-after"]) >= 1


async def test_submissions_are_accepted_while_the_manager_is_away(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    api.port.away = True

    answer = await acme.post("/v1/jobs", json=GREET)

    assert answer.status_code == 202
    job = (await acme.get(f"/v1/jobs/{answer.json()['id']}")).json()
    assert (job["id"], job["status"]) == (answer.json()["id"], "pending")


@pytest.mark.parametrize("body", [{}, {"filter": {"colour": "red"}}, {"filter": {"ids": 3}}, []])
async def test_redrive_without_a_right_filter_is_refused(
    acme: httpx.AsyncClient, body: Any
) -> None:
    answer = await acme.post("/v1/dead-letters/redrive", content=json.dumps(body))

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-input")


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("expires_at", "9999-12-31T23:59:59-12:00", 422),
        ("run_at", "0001-01-01T00:00:00+14:00", 202),
        ("params", {"name": "x" * 10}, 202),
    ],
)
async def test_a_moment_at_the_end_of_time_harms_no_listing(
    acme: httpx.AsyncClient, field: str, value: Any, status: int
) -> None:
    answer = await acme.post("/v1/jobs", json={**GREET, field: value})

    assert answer.status_code == status
    assert (await acme.get("/v1/jobs")).status_code == 200


@pytest.mark.parametrize(
    "body",
    ['{"type":5,"params":', '{"type":5,"params":{"x":1e999}}', '{"type":5,"params":' + "[" * 9],
)
async def test_a_body_that_is_wrong_twice_is_400(acme: httpx.AsyncClient, body: str) -> None:
    answer = await acme.post("/v1/jobs", content=body)

    assert answer.status_code == 400


async def test_a_number_beyond_all_numbers_is_refused_by_name(acme: httpx.AsyncClient) -> None:
    body = '{"type":"greet","params":{"name":"a","times":1e400}}'

    answer = await acme.post("/v1/jobs", content=body, headers={"Idempotency-Key": "k"})

    assert answer.status_code in (400, 422)


async def test_query_parameters_that_no_call_knows_are_refused_by_name(
    api: RunningApi, admin: httpx.AsyncClient
) -> None:
    told = (await admin.get("/openapi.json")).json()["paths"]
    taking = [
        (method.upper(), path)
        for path, calls in told.items()
        for method, call in calls.items()
        if any(one["in"] == "query" for one in call.get("parameters", ()))
    ]
    assert ("GET", "/v1/jobs/{job_id}/tasks") in taking

    for method, path in taking:
        answer = await admin.request(method, re.sub(r"{\w+}", "x", path), params={"shout": "1"})

        assert answer.status_code == 422, (method, path)
        assert [error["field"] for error in answer.json()["errors"]] == ["shout"]
