"""Streams of events over HTTP, from a real server, and what a client may get wrong."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from service.routes import events
from tests.support.api import RunningApi
from tests.support.eventually import eventually

JOB = {"type": "greet", "params": {"name": "Ada <script>", "note": "\u2028 and a\nbreak"}}


@pytest.fixture
async def server(api: RunningApi) -> AsyncIterator[str]:
    """The API on a port of loopback."""
    config = uvicorn.Config(
        api.app,
        host="127.0.0.1",
        port=0,
        lifespan="off",
        log_level="critical",
        ws="websockets-sansio",
    )
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running.serve())
    await eventually(lambda: running.started)
    yield f"127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    await serving


def headers(client: httpx.AsyncClient) -> dict[str, str]:
    return {"Authorization": client.headers["authorization"]}


async def submit(client: httpx.AsyncClient, **more: Any) -> str:
    return (await client.post("/v1/jobs", json=JOB | more)).json()["id"]


@asynccontextmanager
async def stream(
    server: str, client: httpx.AsyncClient, path: str, **more: str
) -> AsyncIterator[httpx.Response]:
    async with (
        httpx.AsyncClient(base_url=f"http://{server}", timeout=20) as wire,
        wire.stream("GET", path, headers=headers(client) | more) as answer,
    ):
        yield answer


async def events_of(answer: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Yield each event of a stream, by the names of its fields."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields
            fields = {}


async def the(found: AsyncIterator[dict[str, str]], kind: str) -> dict[str, str]:
    """Return the next event of a kind."""
    async with asyncio.timeout(10):
        async for one in found:
            if one.get("event") == kind:
                return one
    raise AssertionError(f"it ended before {kind}")


async def test_a_job_is_followed_to_its_end(
    api: RunningApi, acme: httpx.AsyncClient, server: str
) -> None:
    job_id = await submit(acme)
    async with stream(server, acme, f"/v1/jobs/{job_id}/events") as answer:
        found = events_of(answer)
        hello, begin = await anext(found), await anext(found)
        await api.worker.succeed({"text": "two\nlines"})
        rest = [one async for one in found if one["event"] != "progress"]

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert hello == {"retry": str(events.RETRY_MS)}
    told = json.loads(begin["data"])
    assert (begin["event"], told["type"], told["job"]["id"]) == ("job", "job", job_id)
    assert told["job"] == (await acme.get(f"/v1/jobs/{job_id}")).json() | told["job"]
    assert [one["event"] for one in rest] == ["job.started", "job.completed"]
    assert [json.loads(one["data"])["seq"] for one in rest] == [int(one["id"]) for one in rest]
    assert int(begin["id"]) < int(rest[0]["id"]) < int(rest[1]["id"])


async def test_a_client_that_has_every_event_is_told_not_to_come_again(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job_id = await submit(acme)
    await api.worker.succeed()
    whole = await acme.get(f"/v1/jobs/{job_id}/events?last_event_id=1")
    ids = [line.removeprefix("id: ") for line in whole.text.splitlines() if line.startswith("id")]

    by_header = await acme.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": ids[-1]})
    by_query = await acme.get(f"/v1/jobs/{job_id}/events", params={"last_event_id": ids[-2]})
    anew = await acme.get(f"/v1/jobs/{job_id}/events")

    assert (by_header.status_code, by_header.content) == (204, b"")
    assert re.findall("event: (.+)", by_query.text) == ["job.completed"]
    assert ["event: job" in anew.text, "completed" in anew.text] == [True, True]


async def test_streams_are_for_those_who_may_read_and_of_their_own_jobs(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient, server: str
) -> None:
    job_id = await submit(acme)
    path = f"/v1/jobs/{job_id}/events"

    refused = [
        await api.anonymous().get(path),
        await api.client("acme", "submit").get(path),
        await api.client("other").get(path),
        await api.client("other").get("/v1/events?tenant=acme"),
        await acme.get(f"/v1/jobs/{'x' * 100}/events"),
    ]
    async with (
        stream(server, api.client("other"), "/v1/events") as others,
        stream(server, admin, "/v1/events?tenant=acme&type=greet&status=pending") as ours,
    ):
        seen, unseen = events_of(ours), events_of(others)
        await the(seen, "reset")
        await the(unseen, "reset")
        second = await submit(acme)
        third = (await api.client("other").post("/v1/jobs", json=JOB)).json()["id"]
        first_ours, first_others = [await the(s, "job.submitted") for s in (seen, unseen)]

    assert [answer.status_code for answer in refused] == [401, 403, 404, 403, 404]
    assert json.loads(first_ours["data"])["job_id"] == second
    assert json.loads(first_others["data"])["job_id"] == third


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("last_event_id=abc", "Last-Event-ID"),
        ("last_event_id=-1", "Last-Event-ID"),
        ("last_event_id=" + "9" * 40, "Last-Event-ID"),
        ("status=running", "status"),
        ("label=team", "label"),
        ("colour=red", "colour"),
    ],
)
async def test_what_cannot_be_a_filter_is_refused_with_its_name(
    acme: httpx.AsyncClient, query: str, field: str
) -> None:
    answer = await acme.get(f"/v1/events?{query}")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_a_stream_goes_on_while_the_manager_is_away_and_misses_nothing(
    api: RunningApi, acme: httpx.AsyncClient, server: str
) -> None:
    job_id = await submit(acme)
    async with stream(server, acme, f"/v1/jobs/{job_id}/events") as answer:
        found = events_of(answer)
        await the(found, "job")
        api.port.away = True
        await api.worker.succeed()
        late = asyncio.ensure_future(acme.get("/v1/events?last_event_id=x"))
        api.port.away = False
        rest = [one["event"] async for one in found if one["event"] != "progress"]

    assert rest == ["job.started", "job.completed"]
    assert (await late).status_code == 422


async def test_a_stream_that_begins_while_the_manager_is_away_waits_and_then_shows_nobody_more(
    api: RunningApi, acme: httpx.AsyncClient, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BEGIN_S", 0.02)
    path = f"/v1/jobs/{await submit(acme)}/events"
    api.port.away = True
    async with (
        stream(server, acme, path) as answer,
        stream(server, api.client("other"), path) as foreign,
    ):
        api.port.away = False
        begin = await the(events_of(answer), "job")
        rest = [one async for one in events_of(foreign)]

    assert (answer.status_code, foreign.status_code) == (200, 200)
    assert json.loads(begin["data"])["status"] == "pending"
    assert rest == [{"retry": str(events.RETRY_MS)}]


async def test_a_quiet_stream_is_kept_alive(
    api: RunningApi, acme: httpx.AsyncClient, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.02)
    job_id = await submit(acme)
    async with stream(server, acme, f"/v1/jobs/{job_id}/events") as answer:
        lines = answer.aiter_lines()
        while await anext(lines) != ":":
            pass


async def test_who_hangs_up_frees_everything(
    api: RunningApi, acme: httpx.AsyncClient, server: str
) -> None:
    job_id = await submit(acme)
    async with stream(server, acme, f"/v1/jobs/{job_id}/events") as answer:
        await the(events_of(answer), "job")
        assert api.manager._feed._subscriptions

    await eventually(lambda: not api.manager._feed._subscriptions)


async def test_who_never_reads_is_let_go_and_harms_no_other(
    api: RunningApi, acme: httpx.AsyncClient, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "WRITE_S", 0.2)
    host, port = server.split(":")
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_024)
        deaf.connect((host, int(port)))
        asked = f"GET /v1/events HTTP/1.1\r\nHost: {host}\r\n"
        asked += f"Authorization: {acme.headers['authorization']}\r\n\r\n"
        deaf.sendall(asked.encode())
        async with stream(server, acme, "/v1/events?type=greet.once") as answer:
            found = events_of(answer)
            await the(found, "reset")
            await eventually(lambda: len(api.manager._feed._with_filters[0].filters) == 2)
            lines = "\n".join([json.dumps(JOB)] * 900)
            for _ in range(12):
                await acme.post("/v1/jobs/batch", content=lines)
                if len(api.manager._feed._with_filters[0].filters) == 1:
                    break
            await eventually(lambda: len(api.manager._feed._with_filters[0].filters) == 1)
            other = await submit(acme, type="greet.once")

            assert json.loads((await the(found, "job.submitted"))["data"])["job_id"] == other


async def test_who_watches_with_a_token_that_is_revoked_is_told_nothing_more(
    api: RunningApi, acme: httpx.AsyncClient, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.1)
    token, record = api.tokens.create("acme", ["read"])
    lent = api.anonymous({"Authorization": f"Bearer {token}"})
    job_id = await submit(acme)
    url = f"ws://{server}/v1/jobs/{job_id}/watch"
    async with (
        stream(server, lent, "/v1/events") as answer,
        stream(server, acme, "/v1/events") as others,
        connect(url, additional_headers=headers(lent)) as wire,
    ):
        found = events_of(answer)
        await wire.recv()

        api.tokens.revoke(record.id)

        async with asyncio.timeout(20):
            async for _ in found:
                pass
            with pytest.raises(ConnectionClosedError):
                await wire.recv()
        assert wire.close_code == events.REVOKED
        await submit(acme)
        await the(events_of(others), "job.submitted")


# --- over a WebSocket -------------------------------------------------------------------------


async def test_a_websocket_gets_the_same_messages(
    api: RunningApi, acme: httpx.AsyncClient, server: str
) -> None:
    job_id = await submit(acme)
    url = f"ws://{server}/v1/jobs/{job_id}/watch"
    async with connect(url, additional_headers=headers(acme)) as wire:
        begin = json.loads(await wire.recv())
        await api.worker.succeed()
        rest = [json.loads(text) async for text in wire]

    assert (begin["type"], begin["job"]["id"]) == ("job", job_id)
    assert [one["type"] for one in rest if one["type"] != "progress"] == [
        "job.started",
        "job.completed",
    ]
    assert wire.close_code == events.OVER
    async with connect(
        f"{url}?last_event_id={begin['seq']}", additional_headers=headers(acme)
    ) as w:
        again = [json.loads(text) async for text in w]
    assert again == [one for one in rest if one["type"] != "progress"]


async def test_a_websocket_that_may_not_be_is_refused_with_a_problem(
    api: RunningApi, acme: httpx.AsyncClient, server: str
) -> None:
    job_id = await submit(acme)
    url = f"ws://{server}/v1/jobs/{job_id}/watch"
    cookie = "drayman_" + server.split(":")[1] + "=" + acme.headers["authorization"].split()[1]
    tries: list[tuple[str, dict[str, str]]] = [
        (url, {}),
        (url, headers(api.client("other"))),
        (f"{url}?last_event_id=x", headers(acme)),
        (f"{url}?tasks=banana", headers(acme)),
        (url, {"Cookie": cookie, "Origin": "http://elsewhere.test"}),
        (url, {"Cookie": cookie}),
    ]

    codes = []
    for address, more in tries:
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, additional_headers=more)
        codes.append(refused.value.response.status_code)

    assert codes == [401, 404, 422, 422, 403, 403]
    # A page of ours may.
    async with connect(url, additional_headers={"Cookie": cookie, "Origin": f"http://{server}"}):
        pass
