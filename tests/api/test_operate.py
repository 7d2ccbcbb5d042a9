"""Queues, workers, health, pages, and an OpenAPI document that is true."""

import asyncio
import re
from typing import Any

import httpx
import jsonschema
import pytest

from jobs.library import call_http, fetch_tables
from service.problems import KINDS
from tests.support.api import RunningApi, running_api

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}


async def test_ready_answers_with_the_name_of_the_run(api: RunningApi) -> None:
    answer = await api.anonymous().get("/readyz")

    assert (answer.status_code, answer.headers["drayman-run"]) == (200, "run-1")


async def test_not_ready_while_the_manager_is_away(api: RunningApi) -> None:
    api.port.away = True
    client = api.anonymous()

    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/healthz")).status_code == 200


async def test_types_come_with_schemas(acme: httpx.AsyncClient) -> None:
    types = {t["name"]: t for t in (await acme.get("/v1/types")).json()["types"]}

    assert types["greet"]["summary"] == "Greet somebody."
    assert types["greet"]["params_schema"]["properties"]["times"]["maximum"] == 10
    assert types["greet.once"]["unique_by"] == ["name"]


async def test_own_types_come_before_those_that_are_built_in() -> None:
    async with running_api(types=[call_http, fetch_tables]) as api:
        types = (await api.client("acme").get("/v1/types")).json()["types"]

    assert [(one["name"], one["builtin"]) for one in types] == [
        ("greet", False),
        ("greet.once", False),
        ("http.call", True),
        ("report.fetch", True),
    ]


async def test_paused_queue_starts_nothing_until_resumed(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    paused = await admin.post("/v1/queues/default/pause")
    await acme.post("/v1/jobs", json=GREET)
    queues = {q["name"]: q for q in (await acme.get("/v1/queues")).json()["queues"]}

    resumed = await admin.post("/v1/queues/default/resume")

    assert (paused.json()["paused"], resumed.json()["paused"]) == (True, False)
    assert (queues["default"]["ready"], queues["default"]["paused"]) == (1, True)
    assert (await admin.post("/v1/queues/nowhere/pause")).status_code in (404, 422)
    assert await api.worker.take()


async def test_drained_queue_refuses_new_work_and_does_what_it_has(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    await acme.post("/v1/jobs", json=GREET)

    drained = await admin.post("/v1/queues/default/drain")
    refused = await acme.post("/v1/jobs", json=GREET)
    await api.worker.succeed("hello")
    filled = await admin.post("/v1/queues/default/fill")

    assert (drained.json()["draining"], filled.json()["draining"]) == (True, False)
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/overloaded")
    assert "drained" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    assert (await acme.post("/v1/jobs", json=GREET)).status_code == 202
    assert (await admin.post("/v1/queues/nowhere/drain")).status_code == 404


async def test_paused_worker_gets_nothing_until_it_is_resumed(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    await acme.post("/v1/jobs", json=GREET)
    await api.worker.succeed(1)  # the manager knows it from now on

    paused = await admin.post("/v1/workers/scripted/pause")
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    waits = (await acme.get(job["links"]["self"])).json()
    resumed = await admin.post("/v1/workers/scripted/resume")

    assert (paused.json()["paused"], resumed.json()["paused"]) == (True, False)
    assert waits["status"] == "pending"
    assert waits["pending_reason"] == "every worker of queue default is paused"
    assert await api.worker.take()


async def test_drained_worker_is_shown_so(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    await acme.post("/v1/jobs", json=GREET)
    await api.worker.take()

    drained = await admin.post("/v1/workers/scripted/drain")

    assert (drained.json()["draining"], drained.json()["started"]) == (True, 1)


@pytest.mark.parametrize("what", ["pause", "resume", "drain"])
async def test_unknown_worker_is_404(admin: httpx.AsyncClient, what: str) -> None:
    assert (await admin.post(f"/v1/workers/nobody/{what}")).status_code == 404


async def test_cancel_of_a_waiting_job_is_done_at_once(acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()

    answer = await acme.post(job["links"]["cancel"])

    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert answer.json()["reason"] == "cancelled"


async def test_cancel_of_a_running_job_asks_it_to_stop(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    assignment = await api.worker.take()

    answer = await acme.post(job["links"]["cancel"])

    assert (answer.json()["status"], answer.json()["stopping"]) == ("processing", "cancel")
    await api.worker.obey_stop(assignment)
    assert (await acme.get(job["links"]["self"])).json()["status"] == "cancelled"


async def test_long_poll_answers_when_the_job_ends(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()

    answer, _ = await asyncio.gather(
        acme.get(job["links"]["self"], headers={"Prefer": "wait=20"}), api.worker.succeed(1)
    )

    assert (answer.json()["status"], answer.headers["preference-applied"]) == (
        "completed",
        "wait=20",
    )


async def test_running_job_shows_its_progress(api: RunningApi, acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    await api.worker.take()

    shown = (await acme.get(job["links"]["self"])).json()

    assert shown["progress"] == {"fraction": 0.5, "message": "half way"}
    [task] = (await acme.get(job["links"]["tasks"])).json()["tasks"]
    assert (task["state"], task["worker"]) == ("leased", "scripted")


async def test_list_is_paged_and_filtered(acme: httpx.AsyncClient) -> None:
    for number in range(5):
        labels = {"parity": "even" if number % 2 == 0 else "odd", "n": str(number)}
        await acme.post("/v1/jobs", json=GREET | {"labels": labels})

    seen: list[str] = []
    after = ""
    while after is not None:
        page = (await acme.get(f"/v1/jobs?limit=2&label=parity%3Deven{after}")).json()
        seen += [job["labels"]["n"] for job in page["jobs"]]
        after = page["next_after"] and f"&after={page['next_after']}"

    assert seen == ["4", "2", "0"]


async def test_every_problem_has_a_page(api: RunningApi) -> None:
    client = api.anonymous()

    answers = [await client.get(f"/problems/{name}") for name in KINDS]

    assert {answer.status_code for answer in answers} == {200}
    assert (await client.get("/problems/nope")).status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/problems", "/problems/conflict"])
async def test_pages_load_nothing_from_other_hosts(api: RunningApi, path: str) -> None:
    answer = await api.anonymous().get(path)

    assert re.findall(r"""(?:src|href|url\()\s*=?\s*["']?https?:""", answer.text) == []
    assert "<script" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


# --- the OpenAPI document ---------------------------------------------------------------------


def test_openapi_names_every_reference(api: RunningApi) -> None:
    document = api.app.openapi()

    names = set(re.findall(r"#/components/schemas/(\w+)", str(document)))

    assert names <= set(document["components"]["schemas"])
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_openapi_describes_every_operation(api: RunningApi) -> None:
    for path, operations in api.app.openapi()["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["description"], where
            assert all(a["description"] for a in operation["responses"].values()), where
            if path not in ("/healthz", "/readyz"):
                assert operation["security"] == [{"token": []}], where
                assert "401" in operation["responses"], where
            if method in ("post", "put") and not path.endswith(
                ("/cancel", "/pause", "/resume", "/drain", "/fill", "/run", "/rotate", "/test")
            ):
                assert "requestBody" in operation, where


async def test_openapi_is_true_of_real_answers(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    """Every answer below is held against the schema that the document promises for it."""
    document = api.app.openapi()
    made = (await acme.post("/v1/jobs", json=GREET)).json()["id"]
    await api.worker.fail("no")
    calls: list[tuple[str, str, str, Any]] = [
        ("POST", "/v1/jobs", "/v1/jobs", GREET),
        ("POST", "/v1/jobs", "/v1/jobs", {"type": "nope"}),
        ("GET", "/v1/jobs", "/v1/jobs", None),
        ("GET", "/v1/jobs", "/v1/jobs?limit=0", None),
        ("GET", "/v1/jobs/{job_id}", f"/v1/jobs/{made}", None),
        ("GET", "/v1/jobs/{job_id}", "/v1/jobs/nope", None),
        ("GET", "/v1/jobs/{job_id}/tasks", f"/v1/jobs/{made}/tasks", None),
        ("GET", "/v1/jobs/{job_id}/attempts", f"/v1/jobs/{made}/attempts", None),
        ("GET", "/v1/jobs/{job_id}/files", f"/v1/jobs/{made}/files", None),
        ("GET", "/v1/jobs/{job_id}/result", f"/v1/jobs/{made}/result", None),
        ("GET", "/v1/dead-letters", "/v1/dead-letters", None),
        ("GET", "/v1/dead-letters/counts", "/v1/dead-letters/counts", None),
        ("GET", "/v1/dead-letters/counts", "/v1/dead-letters/counts?colour=red", None),
        ("POST", "/v1/jobs/{job_id}/retry", f"/v1/jobs/{made}/retry", {"params": {"name": 7}}),
        ("POST", "/v1/dead-letters/redrive", "/v1/dead-letters/redrive", {"filter": {}}),
        ("POST", "/v1/dead-letters/redrive", "/v1/dead-letters/redrive", {}),
        ("POST", "/v1/dead-letters/purge", "/v1/dead-letters/purge", {"filter": {}}),
        ("POST", "/v1/dead-letters/purge", "/v1/dead-letters/purge", {}),
        ("POST", "/v1/jobs/{job_id}/cancel", f"/v1/jobs/{made}/cancel", None),
        ("POST", "/v1/jobs/{job_id}/retry", f"/v1/jobs/{made}/retry", None),
        ("GET", "/v1/queues", "/v1/queues", None),
        ("POST", "/v1/queues/{name}/pause", "/v1/queues/io/pause", None),
        ("POST", "/v1/queues/{name}/resume", "/v1/queues/io/resume", None),
        ("POST", "/v1/queues/{name}/drain", "/v1/queues/io/drain", None),
        ("POST", "/v1/queues/{name}/fill", "/v1/queues/io/fill", None),
        ("GET", "/v1/workers", "/v1/workers", None),
        ("POST", "/v1/workers/{name}/pause", "/v1/workers/scripted/pause", None),
        ("POST", "/v1/workers/{name}/resume", "/v1/workers/nobody/resume", None),
        ("POST", "/v1/workers/{name}/drain", "/v1/workers/scripted/drain", None),
        ("GET", "/v1/types", "/v1/types", None),
        ("GET", "/v1/session", "/v1/session", None),
        ("GET", "/v1/overview", "/v1/overview", None),
        ("GET", "/v1/tokens", "/v1/tokens", None),
        ("POST", "/v1/tokens", "/v1/tokens", {"tenant": "a", "scopes": ["read"]}),
        ("PUT", "/v1/uploads/{name}", "/v1/uploads/a.txt", {}),
        ("GET", "/healthz", "/healthz", None),
        ("GET", "/readyz", "/readyz", None),
    ]

    for method, template, path, body in calls:
        answer = await admin.request(method, path, json=body)
        promised = document["paths"][template][method.lower()]["responses"]
        assert str(answer.status_code) in promised, (method, path, answer.text)
        content = promised[str(answer.status_code)]["content"]
        kind = answer.headers["content-type"]
        assert kind in content, (method, path)
        schema = content[kind]["schema"] | {"components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())
