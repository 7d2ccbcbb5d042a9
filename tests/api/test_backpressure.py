"""When there is no room: who is told what, how soon, and what is held meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pytest

from cluster.refusals import ASKED
from service import bodies as bodies_module
from service.api_settings import ApiSettings
from service.bodies import Bodies
from tests.support.api import RunningApi, running_api
from tests.support.eventually import eventually

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}
LARGE = GREET | {"params": {"name": "Ada", "note": "x" * 100_000}}
ACME_TWO = {"tenants": {"acme": {"depth_max": 2}}}


async def configure(api: RunningApi, **config: Any) -> None:
    """Put limits in force, beside the pools there are."""
    admin = api.client("ops", "admin")
    table = (await admin.get("/v1/config")).json() | config
    (await admin.put("/v1/config", json=table)).raise_for_status()


async def submitted(client: httpx.AsyncClient, *jobs: Any) -> list[httpx.Response]:
    return [await client.post("/v1/jobs", json=job) for job in jobs]


# --- what a refusal says ----------------------------------------------------------------------


async def test_a_tenant_at_its_limit_is_told_429_and_which(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    await configure(api, **ACME_TWO)

    *accepted, refused = await submitted(acme, *[GREET] * 3)

    assert [answer.status_code for answer in accepted] == [202, 202]
    problem = refused.json()
    assert (refused.status_code, problem["type"]) == (429, "/problems/tenant-overloaded")
    assert problem["violated-policies"] == ["tenant-jobs"]
    wait_s = int(refused.headers["retry-after"])
    assert wait_s >= problem["retry_after_s"] >= 1
    policy = '"tenant-jobs";q=2;qu="concurrent-requests"'
    assert refused.headers["ratelimit-policy"] == policy
    assert refused.headers["ratelimit"] == f'"tenant-jobs";r=0;t={wait_s}'
    [other] = await submitted(api.client("globex"), GREET)
    assert other.status_code == 202


@pytest.mark.parametrize(
    ("limit", "policy", "unit"),
    [
        ({"queues": {"default": {"depth_max": 1}}}, "queue-jobs", "concurrent-requests"),
        ({"queues": {"default": {"bytes_max": 200}}}, "queue-bytes", "content-bytes"),
        ({"depth_max": 1}, "system-jobs", "concurrent-requests"),
        ({"bytes_max": 200}, "system-bytes", "content-bytes"),
    ],
)
async def test_a_full_queue_and_a_full_system_are_503(
    api: RunningApi, acme: httpx.AsyncClient, limit: Any, policy: str, unit: str
) -> None:
    await configure(api, **limit)

    *_, refused = await submitted(acme, *[GREET] * 3)

    problem = refused.json()
    assert (refused.status_code, problem["type"]) == (503, "/problems/overloaded")
    assert problem["violated-policies"] == [policy]
    assert f'"{policy}";q=' in refused.headers["ratelimit-policy"]
    assert f'qu="{unit}"' in refused.headers["ratelimit-policy"]
    assert int(refused.headers["retry-after"]) >= 1


async def test_what_ends_makes_room(api: RunningApi, acme: httpx.AsyncClient) -> None:
    await configure(api, **ACME_TWO)
    *_, refused = await submitted(acme, *[GREET] * 3)
    await api.worker.succeed()

    [again] = await submitted(acme, GREET)

    assert (refused.status_code, again.status_code) == (429, 202)


async def test_lines_without_room_are_results_that_say_so(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    await configure(api, **ACME_TWO)
    body = b"\n".join([json.dumps(GREET).encode()] * 5)

    answer = await acme.post("/v1/jobs/batch", content=body)

    results = [json.loads(line) for line in answer.text.splitlines()]
    assert (answer.status_code, [result["line"] for result in results]) == (202, [1, 2, 3, 4, 5])
    assert ["id" in result for result in results] == [True, True, False, False, False]
    problem = results[-1]["problem"]
    assert (problem["status"], problem["violated-policies"]) == (429, ["tenant-jobs"])


async def test_openapi_is_true_of_refusals(api: RunningApi, acme: httpx.AsyncClient) -> None:
    document = api.app.openapi()
    await configure(api, **ACME_TWO)
    *_, refused = await submitted(acme, *[GREET] * 3)

    for path in ("/v1/jobs", "/v1/jobs/batch", "/v1/workflows"):
        told = document["paths"][path]["post"]["responses"]
        assert {"408", "429", "503"} <= told.keys()
        for name in told["429"]["headers"]:
            assert name in refused.headers
        assert told["503"]["headers"]["Retry-After"]
    problem = {"$ref": "#/components/schemas/Problem", "components": document["components"]}
    jsonschema.validate(refused.json(), problem)
    assert "violated-policies" in document["components"]["schemas"]["Problem"]["properties"]


# --- a flood ----------------------------------------------------------------------------------


class Bare:
    """A request as the server below hands it over, piece by piece."""

    def __init__(self, api: RunningApi, path: str, tenant: str) -> None:
        token, _ = api.tokens.create(tenant, ["submit"])
        self._app = api.app
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())],
        }
        self.sent: list[Any] = []
        self._pieces: asyncio.Queue[Any] = asyncio.Queue()

    def start(self) -> "asyncio.Task[None]":
        return asyncio.create_task(self._app(self._scope, self._pieces.get, self._send))

    def piece(self, data: bytes, *, last: bool = False) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": data, "more_body": not last})

    def leave(self) -> None:
        self._pieces.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture
def flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused stays so for longer than a slow machine needs to ask again."""
    monkeypatch.setattr("cluster.refusals.WITHIN_S", 60.0)
    monkeypatch.setattr("cluster.refusals.HOLD_MAX_S", 60.0)
    monkeypatch.setattr("cluster.refusals.PART", 60.0)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/batch", "/v1/workflows"])
async def test_a_flood_is_refused_before_bodies_are_read(
    api: RunningApi, acme: httpx.AsyncClient, flooded: None, path: str
) -> None:
    await configure(api, **ACME_TWO)
    await submitted(acme, *[GREET] * (2 + ASKED + 1))
    request = Bare(api, path, "acme")

    await asyncio.wait_for(request.start(), 10)  # no piece of a body ever comes

    assert request.status == 429
    assert int(request.headers[b"retry-after"]) >= 1


async def test_params_that_would_be_refused_are_not_stored_first(
    api: RunningApi, acme: httpx.AsyncClient, flooded: None
) -> None:
    await configure(api, queues={"default": {"depth_max": 2}})
    await submitted(acme, *[GREET] * (2 + ASKED + 1))

    [single] = await submitted(acme, LARGE)
    batch = await acme.post("/v1/jobs/batch", content=json.dumps(LARGE))

    assert (single.status_code, batch.json()["problem"]["status"]) == (503, 503)
    assert not list(api.store.list("params/"))


# --- bodies -----------------------------------------------------------------------------------


@pytest.fixture
async def small() -> AsyncIterator[RunningApi]:
    """An API that holds 1,000 bytes of bodies."""
    async with running_api(ApiSettings(bodies_bytes_max=1_000)) as api:
        yield api


def held_bytes(api: RunningApi) -> int:
    endpoint: Any = api.app
    found: Bodies = endpoint.busiest._app.bodies
    return found.held_bytes


async def test_stalled_bodies_fill_their_own_tenants_share_and_leave_it(small: RunningApi) -> None:
    stalled = [Bare(small, path, "acme") for path in ("/v1/jobs", "/v1/jobs/batch")]
    waiting = [request.start() for request in stalled]
    for request in stalled:
        request.piece(b" " * 400)
    await eventually(lambda: held_bytes(small) == 800)

    [own] = await submitted(small.client("acme"), GREET)
    [other] = await submitted(small.client("globex"), GREET)
    large = GREET | {"labels": {"a": "x" * 220}}
    [too_large] = await submitted(small.client("globex"), large)
    for request in stalled:
        request.leave()
    await asyncio.gather(*waiting)
    [again] = await submitted(small.client("acme"), GREET)

    assert (own.status_code, own.json()["type"]) == (429, "/problems/tenant-overloaded")
    assert int(own.headers["retry-after"]) == 1
    assert (other.status_code, again.status_code) == (202, 202)
    assert (too_large.status_code, too_large.json()["type"]) == (503, "/problems/overloaded")
    assert held_bytes(small) == 0


async def test_a_body_that_comes_too_slowly_is_let_go(
    small: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies_module, "WHOLE_S", 0.02)
    request = Bare(small, "/v1/jobs", "acme")
    request.piece(b"{")

    await asyncio.wait_for(request.start(), 10)

    assert (request.status, request.headers[b"connection"]) == (408, b"close")
    assert held_bytes(small) == 0


async def test_a_slow_body_may_take_the_longer_the_more_has_come(
    small: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies_module, "WHOLE_S", 0.0)
    monkeypatch.setattr(bodies_module, "BYTES_A_SECOND", 1.0)
    request = Bare(small, "/v1/jobs", "acme")
    data = json.dumps(GREET).encode()
    running = request.start()
    for at in range(0, len(data), 10):
        request.piece(data[at : at + 10])
        await asyncio.sleep(0)
    request.piece(b"", last=True)

    await asyncio.wait_for(running, 10)

    assert request.status == 202


async def test_who_waits_for_a_job_holds_no_body(small: RunningApi) -> None:
    client = small.client("acme")
    waiting = asyncio.ensure_future(
        client.post("/v1/jobs", json=GREET, headers={"Prefer": "wait=20"})
    )
    assignment = await small.worker.take()

    assert held_bytes(small) == 0
    await small.worker._end(assignment, "discarded", error="no", cause="error")
    assert (await waiting).json()["status"] == "failed"


async def test_a_wrong_body_is_let_go(small: RunningApi) -> None:
    client = small.client("acme")

    answers = [
        await client.post(path, content=b"{")
        for path in ("/v1/jobs", "/v1/jobs/batch", "/v1/workflows")
    ]

    assert [answer.status_code for answer in answers] == [400, 202, 400]
    assert held_bytes(small) == 0
