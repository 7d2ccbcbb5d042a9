"""PUT /v1/uploads/{name}: streamed, counted, hashed, and never outside the tenant's folder."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.api_settings import ApiSettings
from tests.support.api import RunningApi, running_api

DATA = b"carrier,flights\n" * 200_000


async def test_upload_is_stored_whole(api: RunningApi, acme: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(DATA), 65_536):
            yield DATA[start : start + 65_536]

    answer = await acme.put("/v1/uploads/flights.csv", content=chunks())

    assert (answer.status_code, answer.json()) == (
        201,
        {
            "uri": "upload:flights.csv",
            "bytes": len(DATA),
            "sha256": hashlib.sha256(DATA).hexdigest(),
        },
    )
    assert api.store.get("uploads/acme/flights.csv") == DATA


async def test_tenants_do_not_share_names(api: RunningApi, acme: httpx.AsyncClient) -> None:
    await acme.put("/v1/uploads/a.txt", content=b"mine")

    await api.client("globex").put("/v1/uploads/a.txt", content=b"theirs")

    assert api.store.get("uploads/acme/a.txt") == b"mine"


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2ftokens%2fx", "%2e%2e", ".hidden", "a%2fb", "a%5cb", "%00", "x" * 300, "a%0ab"],
)
async def test_name_that_is_a_path_is_refused(
    api: RunningApi, acme: httpx.AsyncClient, name: str
) -> None:
    before = {info.path for info in api.store.list("")}

    answer = await acme.put(f"/v1/uploads/{name}", content=b"x")

    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    after = {info.path for info in api.store.list("")}
    assert {path for path in after - before if not path.startswith("tokens/")} == set()


@pytest.mark.parametrize("declared", [True, False])
async def test_upload_above_the_limit_is_413_and_leaves_nothing(declared: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    async with running_api(ApiSettings(upload_bytes_max=1000)) as api:
        content: Any = b"x" * 2000 if declared else chunks()

        answer = await api.client().put("/v1/uploads/a.txt", content=content)

        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
        assert list(api.store.list("uploads/")) == []


async def test_upload_cut_short_leaves_nothing(api: RunningApi) -> None:
    token, _ = api.tokens.create("acme", ["submit"])
    messages = [
        {"type": "http.request", "body": b"half of it", "more_body": True},
        {"type": "http.disconnect"},
    ]

    sent = await call(api, token, "PUT", "/v1/uploads/a.txt", messages)

    assert sent == []
    assert list(api.store.list("uploads/")) == []


async def call(
    api: RunningApi, token: str, method: str, path: str, messages: list[Any]
) -> list[Any]:
    """Speak ASGI to the API by hand; return what it sent."""
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await api.app(scope, receive, send)
    return sent
