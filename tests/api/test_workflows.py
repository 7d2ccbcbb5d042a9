"""Workflows and fan-outs over HTTP: what is refused and where, and how their tasks are seen."""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from pydantic import BaseModel, ConfigDict

from cluster.planning import STEPS_MAX
from cluster.protocol import InputInfo, Output
from cluster.store.files import log_path
from jobs.context import Context
from jobs.definition import JobDefinition, job
from jobs.fan_out import fan_out
from jobs.registry import Registry
from jobs.results import Results
from jobs.workflow import param, workflow
from tests.support import api as support
from tests.support.api import RunningApi, file_in, running_api


class Pages(BaseModel):
    """Params of the types below."""

    model_config = ConfigDict(extra="forbid")

    count: int = 3


class Bound(BaseModel):
    """A result whose fields are known before there is one."""

    pages: int


def split(ctx: Context, params: Pages) -> list[int]:
    return list(range(params.count))


def bind(ctx: Context, params: Pages, results: Results[int]) -> Bound:
    return Bound(pages=len(results))


@fan_out("test.print", split=split, join=bind)
def print_page(ctx: Context, params: Pages, chunk: int) -> int:
    """Print a page."""
    return chunk


@job("test.fetch")
def fetch(ctx: Context, params: Pages) -> Bound:
    """Fetch the pages."""
    return Bound(pages=params.count)


PAIR = workflow("test.pair", Pages)
_fetched = PAIR.step("fetch", fetch, {"count": param("count")})
PAIR.step("print", print_page, {"count": _fetched.result("pages")})

TYPES: list[JobDefinition] = [print_page, fetch, PAIR]
GREET: dict[str, Any] = {"name": "greet", "type": "greet", "params": {"name": "Ada"}}


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningApi]:
    """An API that knows the types of this file too."""
    monkeypatch.setattr(support, "Registry", lambda found: Registry([*found, *TYPES]))
    async with running_api() as running:
        yield running


def step(name: str = "greet", **more: Any) -> dict[str, Any]:
    return GREET | {"name": name} | more


async def split_into(api: RunningApi, chunks: int) -> None:
    """Take the split of a fan-out and end it with so many chunks."""
    manifest = file_in(api.store, "chunks.parquet", b"the chunks", "application/octet-stream")
    await end(api, Output(chunks=chunks, manifest=manifest, chunks_sha256="c"))


async def end(api: RunningApi, output: Output) -> None:
    """Take the next attempt and complete it with all that a worker tells of it."""
    worker = api.worker
    raw = msgspec.Raw(msgspec.json.encode(output))
    await worker._end(await worker.take(), "ok", output=raw)


async def refusal(acme: httpx.AsyncClient, body: Any) -> dict[str, str]:
    """Return what a workflow is refused for: reasons by field."""
    answer = await acme.post("/v1/workflows", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "/problems/invalid-input"
    told: dict[str, str] = {}
    for error in answer.json()["errors"]:
        told[error["field"]] = f"{told.get(error['field'], '')} {error['reason']}".strip()
    return told


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "field", "reason"),
    [
        ([], "steps", "at least one"),
        ([step("Greet")], "steps.0.name", "use a-z"),
        ([step(), step()], "steps.1.name", "earlier step"),
        ([step(type="nope")], "steps.0.type", "there is "),
        ([step(type="gret")], "steps.0.type", "no job type 'gret' here; did you mean 'greet'?"),
        ([step(type="nope")], "steps.0.type", "drayman submit --jobs MODULE"),
        ([step(type="test.pair")], "steps.0.type", "is a workflow itself"),
        ([step(after=["gret"])], "steps.0.after.0", "there is greet"),
        ([step(params={"name": "Ada", "times": 11})], "steps.0.params.times", "10"),
        ([step(params={"name": "Ada", "shout": 1})], "steps.0.params.shout", "not permitted"),
        ([step(params={})], "steps.0.params.name", "required"),
        ([step(params=[])], "steps.0.params", "object"),
        ([step(params={"name": {"$result": "gret"}})], "steps.0.params.name", "there is greet"),
        ([step(params={"name": {"$file": "greet"}})], "steps.0.params.name", "step/name"),
        ([step(params={"name": {"$param": "to"}})], "steps.0.params.name", "no param 'to'"),
        ([step(max_attempts=0)], "steps.0.max_attempts", "1"),
        ([step(retries=3)], "steps.0", "retries"),
        ([{"name": "greet"}], "steps.0.type", "is required"),
        ([step("a", after=["b"]), step("b", after=["a"])], "steps", "a -> "),
        ([step("a", after=["a"])], "steps", "a -> a"),
    ],
)
async def test_what_is_wrong_is_refused_by_its_place(
    acme: httpx.AsyncClient, steps: list[Any], field: str, reason: str
) -> None:
    told = await refusal(acme, {"steps": steps})

    assert field in told, told
    assert reason in told[field]


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ('{"name": 1e999}', 422),
        ('{"name": ' + '{"a":' * 900 + "1" + "}" * 901, 400),
        ('{"name": ' + "[" * 5000 + "]" * 5000 + "}", 400),
    ],
    ids=["too large a number", "deep", "too deep to read"],
)
async def test_params_that_cannot_be_read_are_refused(
    acme: httpx.AsyncClient, params: str, status: int
) -> None:
    body = '{"steps": [{"name": "a", "type": "greet", "params": ' + params + "}]}"

    answer = await acme.post("/v1/workflows", content=body)

    assert (answer.status_code, answer.json()["status"]) == (status, status)


async def test_everything_that_is_wrong_is_told_at_once(acme: httpx.AsyncClient) -> None:
    told = await refusal(
        acme, {"steps": [step("a", type="nope"), step("b", params={"name": 7, "times": 0})]}
    )

    assert set(told) == {"steps.0.type", "steps.1.params.name", "steps.1.params.times"}


async def test_a_result_without_such_a_field_is_refused_where_that_is_known(
    acme: httpx.AsyncClient,
) -> None:
    fetched = {"name": "fetch", "type": "test.fetch"}
    printed = {"name": "print", "type": "test.print"}
    wrong = {"count": {"$result": "fetch.leaves"}}

    told = await refusal(acme, {"steps": [fetched, printed | {"params": wrong}]})

    assert told == {"steps.1.params.count": "test.fetch returns no 'leaves'; it returns pages"}


async def test_more_steps_than_a_job_may_have_are_refused(acme: httpx.AsyncClient) -> None:
    told = await refusal(acme, {"steps": [step(f"s{n}") for n in range(STEPS_MAX + 1)]})

    assert "1,000 at most" in told["steps"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"result": "gret"}, "result"),
        ({"on_failure": "panic"}, "on_failure"),
        ({"name": "My Workflow"}, "name"),
        ({"params": {}}, "params"),
        ({"delay_s": 5, "run_at": "2099-01-01T00:00:00Z"}, "delay_s"),
    ],
)
async def test_what_is_wrong_beside_the_steps_is_refused(
    acme: httpx.AsyncClient, more: dict[str, Any], field: str
) -> None:
    assert field in await refusal(acme, {"steps": [step()]} | more)


async def test_a_queue_that_is_not_there_is_refused(acme: httpx.AsyncClient) -> None:
    steps = [step("a"), step("b", queue="gpu")]

    assert "gpu" in str(await refusal(acme, {"steps": steps}))
    assert "steps.0.queue" in await refusal(acme, {"steps": [step(queue="G P U")]})


async def test_a_refused_workflow_leaves_no_job(acme: httpx.AsyncClient) -> None:
    await refusal(acme, {"steps": [step(type="nope")]})

    assert (await acme.get("/v1/jobs")).json()["jobs"] == []


# --- what is accepted -------------------------------------------------------------------------


async def test_a_workflow_is_a_job_of_its_steps(api: RunningApi, acme: httpx.AsyncClient) -> None:
    second = step("again", params={"name": {"$result": "first"}}, after=[])
    asked = {"steps": [step("first"), second], "name": "test.greetings", "labels": {"a": "b"}}

    answer = await acme.post("/v1/workflows", json=asked)
    await api.worker.succeed("hello Ada")
    halfway = (await acme.get(answer.headers["location"])).json()
    assignment = await api.worker.take()
    await api.worker.obey_stop(assignment)

    assert answer.status_code == 202, answer.text
    assert (halfway["type"], halfway["labels"]) == ("test.greetings", {"a": "b"})
    assert [(s["name"], s["state"], s["needs"]) for s in halfway["steps"]] == [
        ("first", "succeeded", []),
        ("again", "running", ["first"]),
    ]
    assert (halfway["status"], halfway["progress"]["fraction"]) == ("processing", 0.5)


async def test_the_result_of_the_step_that_was_named_is_the_jobs(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    asked = {"steps": [step("a"), step("b", after=["a"])], "result": "a"}
    made = (await acme.post("/v1/workflows", json=asked)).json()
    await api.worker.succeed("from a")
    await api.worker.succeed("from b")

    assert (await acme.get(made["links"]["result"])).json() == "from a"


async def test_the_same_key_gives_the_same_workflow(acme: httpx.AsyncClient) -> None:
    asked, headers = {"steps": [step()]}, {"Idempotency-Key": "w1"}
    first = await acme.post("/v1/workflows", json=asked, headers=headers)

    again = await acme.post("/v1/workflows", json=asked, headers=headers)
    other = await acme.post("/v1/workflows", json=asked | {"priority": 1}, headers=headers)
    a_job = await acme.post(
        "/v1/jobs", json={"type": "greet", "params": {"name": "Ada"}}, headers=headers
    )

    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotency-replayed"] == "true"
    for refused in (other, a_job):
        assert (refused.status_code, refused.json()["type"]) == (422, "/problems/key-reused")
        assert refused.json()["job_id"] == first.json()["id"]


async def test_prefer_wait_answers_with_the_finished_job(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    headers, asked = {"Prefer": "wait=20", "Idempotency-Key": "w1"}, {"steps": [step()]}
    await acme.post("/v1/workflows", json=asked, headers={"Idempotency-Key": "w1"})
    await api.worker.succeed("hello Ada")

    answer = await acme.post("/v1/workflows", json=asked, headers=headers)

    assert (answer.status_code, answer.json()["result"]) == (200, "hello Ada")
    assert answer.headers["preference-applied"] == "wait=20"


async def test_what_fails_stops_the_rest_and_a_retry_goes_on_there(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    asked = {"steps": [step("a"), step("b", after=["a"]), step("c", after=["b"])]}
    made = (await acme.post("/v1/workflows", json=asked)).json()
    await api.worker.succeed("a")
    await api.worker.fail("the printer is on fire")
    failed = (await acme.get(made["links"]["self"])).json()

    retried = (await acme.post(made["links"]["retry"])).json()
    await api.worker.succeed("b")
    await api.worker.succeed("c")
    done = (await acme.get(made["links"]["self"])).json()

    assert [s["state"] for s in failed["steps"]] == ["succeeded", "failed", "waiting"]
    assert (failed["status"], failed["error"]["message"]) == ("failed", "b: the printer is on fire")
    assert [s["state"] for s in retried["steps"]] == ["succeeded", "running", "waiting"]
    assert (done["status"], done["result"]) == ("completed", "c")


# --- tasks ------------------------------------------------------------------------------------


@pytest.fixture
async def printed(api: RunningApi, acme: httpx.AsyncClient) -> dict[str, Any]:
    """A completed `test.pair`: its step `print` had three chunks; the second kept a file."""
    made = (await acme.post("/v1/jobs", json={"type": "test.pair"})).json()
    await api.worker.succeed({"pages": 3})
    await split_into(api, 3)
    for index in range(3):
        page = file_in(api.store, "page.txt", PAGE, "text/plain")
        read = InputInfo("upload:pages.txt", "5" * 64, 99)
        await end(
            api,
            Output(
                msgspec.Raw(b"%d" % index),
                files=[page] if index == 1 else [],
                inputs=[read],
                params=f"{index:016d}",
            ),
        )
    await api.worker.succeed({"pages": 3})
    return dict(made)


PAGE = bytes(range(256)) * 20


async def test_tasks_come_in_pages_with_their_lineage(
    acme: httpx.AsyncClient, printed: dict[str, Any]
) -> None:
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        answer = await acme.get(f"{printed['links']['tasks']}?after={after}&limit=2")
        page = answer.json()
        found += page["tasks"]
        assert len(page["tasks"]) == 2
        after = page["next_after"]

    names = ["fetch", "print.split", "print.0", "print.1", "print.2", "print.join"]
    assert [task["task_id"] for task in found] == names
    assert [task["role"] for task in found] == ["whole", "split", *["chunk"] * 3, "join"]
    assert [task["index"] for task in found] == [None, None, 0, 1, 2, None]
    chunk = found[3]
    assert (chunk["state"], chunk["attempts"], chunk["worker"]) == ("succeeded", 1, "scripted")
    assert (chunk["type"], chunk["step"], chunk["params"]) == ("test.print", "print", f"{1:016d}")
    assert chunk["inputs"] == [
        {"uri": "upload:pages.txt", "bytes": 99, "sha256": "5" * 64, "attempt": 0}
    ]
    assert (chunk["result"], chunk["files"][0]["bytes"]) == (1, len(PAGE))


async def test_a_page_beyond_the_last_task_is_empty(
    acme: httpx.AsyncClient, printed: dict[str, Any]
) -> None:
    page = (await acme.get(f"{printed['links']['tasks']}?after=6")).json()

    assert page == {"tasks": [], "next_after": None}


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=1001"])
async def test_a_page_that_cannot_be_is_refused(
    acme: httpx.AsyncClient, printed: dict[str, Any], query: str
) -> None:
    assert (await acme.get(f"{printed['links']['tasks']}?{query}")).status_code == 422


async def test_what_a_chunk_that_is_done_printed_is_there_for_who_asks_for_its_task(
    api: RunningApi, acme: httpx.AsyncClient, printed: dict[str, Any]
) -> None:
    api.store.put(log_path(printed["id"], "print.1", 1), b"page one\n")
    url = printed["links"]["logs"]

    told = [
        (await acme.get(f"{url}?task={asked}")).text
        for asked in ("print.1", "print.1&attempt=1", "print.1&attempt=2", "print.2", "print.9")
    ]

    assert told == ["page one\n", "page one\n", "", "", ""]


async def test_steps_of_the_job_count_their_chunks(
    acme: httpx.AsyncClient, printed: dict[str, Any]
) -> None:
    steps = (await acme.get(printed["links"]["self"])).json()["steps"]

    assert [(s["name"], s["chunks"], s["done"], s["failed"]) for s in steps] == [
        ("fetch", None, 0, 0),
        ("print", 3, 3, 0),
    ]


async def test_progress_counts_chunks(api: RunningApi, acme: httpx.AsyncClient) -> None:
    made = (await acme.post("/v1/jobs", json={"type": "test.print"})).json()
    await split_into(api, 4)
    await api.worker.succeed(0)

    shown = (await acme.get(made["links"]["self"])).json()

    assert shown["progress"] == {"fraction": 0.25, "message": "1 of 4 chunks"}
    [of_chunks] = shown["steps"]
    assert (of_chunks["name"], of_chunks["chunks"], of_chunks["done"]) == ("", 4, 1)


async def test_a_file_of_a_task_comes_whole_and_in_ranges(
    acme: httpx.AsyncClient, printed: dict[str, Any]
) -> None:
    page = (await acme.get(f"{printed['links']['tasks']}?after=3&limit=1")).json()
    [file] = page["tasks"][0]["files"]
    etag = f'"{hashlib.sha256(PAGE).hexdigest()}"'

    whole = await acme.get(file["href"])
    part = await acme.get(file["href"], headers={"Range": "bytes=10-19", "If-Range": etag})
    stale = await acme.get(file["href"], headers={"Range": "bytes=10-19", "If-Range": '"x"'})
    beyond = await acme.get(file["href"], headers={"Range": "bytes=9999999-"})
    known = await acme.get(file["href"], headers={"If-None-Match": etag})
    head = await acme.head(file["href"])

    assert file["href"] == f"/v1/jobs/{printed['id']}/tasks/print.1/files/page.txt"
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, PAGE, etag)
    assert (part.status_code, part.content) == (206, PAGE[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(PAGE)}"
    assert (stale.status_code, stale.content) == (200, PAGE)
    assert (beyond.status_code, known.status_code) == (416, 304)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(PAGE)))


@pytest.mark.parametrize(
    "where",
    [
        "print.1/files/other.txt",
        "print.0/files/page.txt",
        "print.3/files/page.txt",
        "print.01/files/page.txt",
        "print/files/page.txt",
        "..%2F..%2Fjournal/files/page.txt",
        "print.1/files/..%2Fpage.txt",
    ],
)
async def test_what_no_task_kept_is_404(
    acme: httpx.AsyncClient, printed: dict[str, Any], where: str
) -> None:
    answer = await acme.get(f"{printed['links']['tasks']}/{where}")

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


async def test_another_tenant_sees_none_of_it(api: RunningApi, printed: dict[str, Any]) -> None:
    globex = api.client("globex")

    for rest in ("", "?after=3", "/print.1/files/page.txt"):
        answer = await globex.get(f"{printed['links']['tasks']}{rest}")
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


async def test_openapi_is_true_of_workflows_and_tasks(
    api: RunningApi, acme: httpx.AsyncClient, printed: dict[str, Any]
) -> None:
    document = api.app.openapi()
    good: dict[str, Any] = {"steps": [step(), step("b", after=["greet"], timeout_s=5)]}
    tasks = "/v1/jobs/{job_id}/tasks"
    calls: list[tuple[str, str, str, Any]] = [
        ("POST", "/v1/workflows", "/v1/workflows", good),
        ("POST", "/v1/workflows", "/v1/workflows", {"steps": []}),
        ("POST", "/v1/workflows", "/v1/workflows", {}),
        ("GET", tasks, printed["links"]["tasks"], None),
        ("GET", tasks, "/v1/jobs/nope/tasks", None),
        ("GET", tasks, f"{printed['links']['tasks']}?limit=0", None),
        ("GET", "/v1/jobs/{job_id}", printed["links"]["self"], None),
    ]

    for method, template, path, body in calls:
        answer = await acme.request(method, path, json=body)
        promised = document["paths"][template][method.lower()]["responses"]
        assert str(answer.status_code) in promised, (method, path, answer.text)
        content = promised[str(answer.status_code)]["content"][answer.headers["content-type"]]
        schema = content["schema"] | {"components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())
    asked = document["paths"]["/v1/workflows"]["post"]["requestBody"]["content"]
    schema = asked["application/json"]["schema"] | {"components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(good)
    files = document["paths"][f"{tasks}/{{task_id}}/files/{{name}}"]["get"]["responses"]
    assert {"200", "206", "304", "404", "416"} <= set(files)


def test_the_examples_of_the_built_in_types_fit_their_params() -> None:
    page = (Path(__file__).parents[2] / "docs/job-types.md").read_text()
    examples = [
        json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)
    ]
    types = Registry.load()

    for example in examples:
        types[example["type"]].params_model.model_validate(example["params"])

    assert {"report.annual", "mail.send"} <= {example["type"] for example in examples}
