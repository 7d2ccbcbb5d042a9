"""Both clients over one core: the same calls, retries and streams, in a thread and in a loop."""

import asyncio
import contextlib
import inspect
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import ApiError, AsyncClient, Client, Unreachable
from service.client.events import Parser
from tests.cli.conftest import Server

Answer = Callable[[httpx.Request], httpx.Response]
#: Calls a method of a client that meets these answers; returns what it returned or handed over.
Called = Callable[..., tuple[Any, list[httpx.Request]]]


class Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Bytes in blocks of some size; then, if it is torn, no proper end."""

    def __init__(self, data: bytes, size: int = 7, *, torn: bool = False) -> None:
        self._blocks = [data[at : at + size] for at in range(0, len(data), size)]
        self._torn = torn

    def __iter__(self) -> Iterator[bytes]:
        yield from self._blocks
        if self._torn:
            raise httpx.ReadError("connection reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for block in self:
            yield block


@pytest.fixture(params=[Client, AsyncClient])
def called(request: pytest.FixtureRequest) -> Called:
    """The same call of either client."""

    def call(
        name: str, *args: Any, answers: list[Answer], patience_s: float = 5.0, **named: Any
    ) -> tuple[Any, list[httpx.Request]]:
        seen: list[httpx.Request] = []

        def handle(asked: httpx.Request) -> httpx.Response:
            seen.append(asked)
            return answers[min(len(seen), len(answers)) - 1](asked)

        transport = httpx.MockTransport(handle)
        how: Any = {"patience_s": patience_s, "transport": transport}
        if request.param is Client:
            with Client("http://127.0.0.1:9", "t", **how) as client:
                got = getattr(client, name)(*args, **named)
                return (list(got) if isinstance(got, Iterator) else got), seen

        async def in_a_loop() -> Any:
            async with AsyncClient("http://127.0.0.1:9", "t", **how) as client:
                got = getattr(client, name)(*args, **named)
                return await got if inspect.isawaitable(got) else [one async for one in got]

        return asyncio.run(in_a_loop()), seen

    return call


def breaks(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset", request=request)


def says(status: int) -> Answer:
    problem = {"type": "/problems/x", "title": "x", "status": status}
    headers = {"Retry-After": "0", "Content-Type": "application/problem+json"}
    return lambda request: httpx.Response(status, json=problem, headers=headers)


def answers(value: Any) -> Answer:
    return lambda request: httpx.Response(200, json=value)


def sse(*events: tuple[int | None, str], torn: bool = False, size: int = 7) -> Answer:
    """A stream of events: number and type each."""
    text = "retry: 1000\n\n:\n\n"
    for seq, kind in events:
        number = "" if seq is None else f"id: {seq}\n"
        data = {"type": kind, "text": "€ \u2028 \x85"} | ({} if seq is None else {"seq": seq})
        text += f"{number}event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
    return lambda request: httpx.Response(200, stream=Stream(text.encode(), size, torn=torn))


# --- the same for both ------------------------------------------------------------------------


def test_both_have_the_same_calls() -> None:
    def calls(of: type) -> dict[str, str]:
        found = inspect.getmembers(of, inspect.isfunction)
        return {name: str(inspect.signature(what)) for name, what in found if name[0] != "_"}

    ours, theirs = calls(Client), calls(AsyncClient)

    assert ours.pop("close")
    assert theirs.pop("aclose")
    assert ours == theirs
    assert {"submit", "submit_many", "wait", "watch", "result", "cancel", "retry"} <= ours.keys()
    assert all(inspect.getdoc(getattr(Client, name)) for name in ours)


@pytest.mark.parametrize("trouble", [breaks, says(503), says(429)])
def test_a_submission_is_repeated_with_the_same_key(called: Called, trouble: Answer) -> None:
    job, seen = called("submit", "greet", {"name": "Ada"}, answers=[trouble, answers({"id": "j"})])

    assert job == {"id": "j"}
    assert len({request.headers["drayman-request-id"] for request in seen}) == 1
    assert len(seen) == 2


def test_what_may_have_happened_is_not_repeated(called: Called) -> None:
    with pytest.raises(Unreachable):
        called("retry", "job-1", answers=[breaks])


def test_a_refusal_and_the_end_of_patience_are_errors(called: Called) -> None:
    with pytest.raises(ApiError, match="x"):
        called("result", "job-1", answers=[says(409)])
    with pytest.raises(Unreachable):
        called("status", "job-1", answers=[breaks], patience_s=0.05)


def test_pages_are_walked_to_the_end(called: Called) -> None:
    pages = [
        answers({"jobs": [{"id": "1"}, {"id": "2"}], "next_after": "x"}),
        answers({"jobs": [{"id": "3"}], "next_after": None}),
    ]

    jobs, seen = called("jobs", status="failed", answers=pages)

    assert [job["id"] for job in jobs] == ["1", "2", "3"]
    assert seen[1].url.params["after"] == "x"


def test_schedules_are_all_of_their_pages(called: Called) -> None:
    def page(asked: httpx.Request) -> httpx.Response:
        after = asked.url.params.get("after")
        assert asked.url.params["tenant"] == "acme"
        names, then = (["a", "b"], "acme/b") if after is None else ([f"after {after}"], None)
        return httpx.Response(
            200, json={"schedules": [{"name": name} for name in names], "next_after": then}
        )

    found, asked = called("schedules", tenant="acme", answers=[page])

    assert [one["name"] for one in found] == ["a", "b", "after acme/b"]
    assert len(asked) == 2


def test_a_file_is_uploaded_anew_and_downloaded_from_where_it_broke(
    called: Called, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "a.bin").write_bytes(data)

    def torn(request: httpx.Request) -> httpx.Response:
        stream = Stream(data[:1000], 300, torn=True)
        return httpx.Response(200, stream=stream, headers={"ETag": '"0"'})

    def stores(request: httpx.Request) -> httpx.Response:
        # Of a stream the mock has read all by now.
        return httpx.Response(201, json={"bytes": len(request.content)})

    stored, _ = called("upload", tmp_path / "a.bin", answers=[breaks, stores])
    file = {"name": "b.bin", "href": "/f", "sha256": "0" * 64}
    parts: list[Answer] = [torn, lambda request: httpx.Response(206, content=data[1000:])]
    with pytest.raises(Unreachable, match="damaged"):
        called("download", file, tmp_path / "to", answers=parts)

    assert stored == {"bytes": len(data)}
    assert list((tmp_path / "to").iterdir()) == []


# --- streams ----------------------------------------------------------------------------------


def test_a_stream_goes_on_after_the_last_event_and_repeats_none(called: Called) -> None:
    streams = [
        sse((3, "job"), (5, "job.started"), torn=True),
        breaks,
        says(503),
        sse((5, "job.started"), (None, "progress"), (8, "attempt.failed")),  # one was sent twice
        sse((9, "job.completed"), (10, "never read")),
    ]

    events, seen = called("watch", "job-1", answers=streams)

    told = [(event.get("seq"), event["type"]) for event in events]
    assert told == [
        (3, "job"),
        (5, "job.started"),
        (None, "progress"),
        (8, "attempt.failed"),
        (9, "job.completed"),
    ]
    assert all(event["text"] == "€ \u2028 \x85" for event in events)
    lasts = [request.headers.get("last-event-id") for request in seen]
    assert lasts == [None, "5", "5", "5", "8"]


def test_a_stream_begins_after_a_number_and_may_be_reset(called: Called) -> None:
    streams = [sse((90, "reset"), torn=True), sse((91, "job.failed"))]

    events, seen = called("watch", "job-1", after=7, tasks=True, answers=streams)

    assert [event["seq"] for event in events] == [90, 91]
    assert [request.headers["last-event-id"] for request in seen] == ["7", "90"]
    assert seen[0].url.params["tasks"] == "1"


def test_a_stream_that_is_over_hands_over_nothing(called: Called) -> None:
    events, _ = called("watch", "job-1", after=7, answers=[lambda request: httpx.Response(204)])

    assert events == []


def test_a_stream_that_is_refused_or_stays_away_is_an_error(called: Called) -> None:
    with pytest.raises(ApiError):
        called("watch", "job-1", answers=[says(404)])
    with pytest.raises(Unreachable):
        called("watch", "job-1", answers=[sse((3, "job"), torn=True), breaks], patience_s=0.05)


def test_events_are_the_same_however_their_bytes_are_cut() -> None:
    text = 'id: 1\r\nevent: x\r\ndata: {"type":"x","text":"€"}\r\n\r\n'
    text += ':\n\ndata:{"type":\ndata: "y"}\n\n'
    for size in range(1, len(text)):
        parser = Parser()
        data = text.encode()
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        found = [event for block in blocks for event in parser.feed(block)]

        assert found == [{"type": "x", "text": "€"}, {"type": "y"}]


# --- against a real server --------------------------------------------------------------------


class Scissors:
    """A proxy that cuts each connection after so many bytes of the answer."""

    def __init__(self, url: str, after: int) -> None:
        self._to, self._after = httpx.URL(url), after
        self.cuts = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):  # it is over already
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection((self._to.host, self._to.port or 80)) as server:
            self._open.append(server)
            server.sendall(client.recv(65536))
            left = self._after
            with contextlib.suppress(OSError):  # whoever read it has gone
                while left > 0 and (block := server.recv(min(left, 65536))):
                    client.sendall(block)
                    left -= len(block)
            self.cuts += left <= 0


@pytest.fixture
def scissors(server: Server) -> Iterator[Scissors]:
    scissors = Scissors(server.url, 1500)
    yield scissors
    scissors.close()


def test_over_cut_connections_each_event_comes_once_in_order(
    server: Server, scissors: Scissors
) -> None:
    jobs = [{"type": "greet", "params": {"name": str(n)}} for n in range(40)]
    with Client(server.url, server.token()) as sender, Client(scissors.url, server.token()) as cut:
        stream = cut.events(type="greet")
        begin = next(stream)
        ids = [result["id"] for result in sender.submit_many(jobs)]
        events = [next(stream) for _ in jobs]

    assert begin["type"] == "reset"
    assert [event["job_id"] for event in events] == ids
    assert {event["type"] for event in events} == {"job.submitted"}
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    assert scissors.cuts > 3


def test_many_jobs_are_waited_for_and_watched_at_once_in_one_loop(server: Server) -> None:
    async def ended(client: AsyncClient, name: str) -> tuple[str, list[str]]:
        job = await client.submit("greet", {"name": name})
        return job["id"], [event["type"] async for event in client.watch(job["id"])]

    async def all_of_it() -> None:
        async with AsyncClient(server.url, server.token()) as client:
            watched = asyncio.gather(*(ended(client, str(n)) for n in range(10)))
            for _ in range(10):
                done = server.worker.succeed("hello")
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(done, server.loop))
            for job_id, types in await watched:
                assert types[0] == "job"
                assert types[-1] in ("job", "job.completed")
                assert (await client.wait(job_id))["status"] == "completed"
                assert await client.result(job_id) == "hello"
            assert len([job async for job in client.jobs()]) == 10

    asyncio.run(all_of_it())


def test_a_stream_may_be_left_before_its_end(server: Server) -> None:
    async def first() -> str:
        async with AsyncClient(server.url, server.token()) as client:
            job = await client.submit("greet", {"name": "Ada"})
            async for event in client.watch(job["id"]):
                return event["type"]
        raise AssertionError("nothing came")

    assert asyncio.run(first()) == "job"
    with Client(server.url, server.token()) as client:
        for event in client.events():
            assert event["type"] == "reset"
            break
