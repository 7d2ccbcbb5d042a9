"""Calls to the manager over a connection of our own: on real sockets, and on both kinds of loop."""

import asyncio
import functools
import inspect
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from cluster import wire as wires
from cluster.store.journal import Fenced
from cluster.wire import CallFailed, Endpoint, ManagerAway, NoWire, Wire, WireServer
from jobs.errors import (
    Conflict,
    Corrupt,
    DraymanError,
    InvalidInput,
    KeyReused,
    LeaseLost,
    NotFound,
    Overloaded,
    Unavailable,
)
from tests.support.eventually import eventually

LOOPBACK = "127.0.0.1"
#: An address for documentation: no machine has it.
NOT_OURS = "192.0.2.1"
HELLO = 255
REFUSALS = [
    Conflict("the state moved"),
    Corrupt("journal/1.parquet", "cut short"),
    InvalidInput("queue", "no such queue"),
    KeyReused("job-1"),
    LeaseLost(7),
    NotFound("job", "job-2"),
    Overloaded("queue", "it is full", 1.5),
    Unavailable("the store is away", 2.5),
]
Method = Callable[[bytes], Awaitable[bytes]]


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop of Ray's actors and on that of a plain driver."""

    @functools.wraps(test)
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**fixtures))

    signature = inspect.signature(test)
    loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[loop, *signature.parameters.values()], return_annotation=None
    )
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    mark = pytest.mark.parametrize("new_loop", loops, ids=["asyncio", "uvloop"])
    marked: Callable[..., None] = mark(run)
    return marked


def frame(number: int, code: int, payload: bytes) -> bytes:
    return struct.pack(">IIB", len(payload), number, code) + payload


class Ground:
    """A server with methods of the test's, and one caller."""

    def __init__(self, methods: dict[str, Method]) -> None:
        self.methods = methods
        self.server = WireServer(methods)
        self.wire = Wire(self.find, tuple(methods))
        self.endpoint: Endpoint | None = None
        #: How often the caller asked where the manager is.
        self.asked = 0
        #: What asking ends with, if not with the endpoint.
        self.trouble: Exception | None = None
        self.may_find = asyncio.Event()
        self.may_find.set()

    async def find(self) -> Endpoint | None:
        self.asked += 1
        await self.may_find.wait()
        if self.trouble is not None:
            raise self.trouble
        return self.endpoint

    async def start(self) -> None:
        self.endpoint = await self.server.start(LOOPBACK)

    async def restart(self) -> None:
        """The server goes, and another one comes, elsewhere and with another secret."""
        await self.server.close()
        self.server = WireServer(self.methods)
        await self.start()

    async def dial(self, hello: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect without our code."""
        assert self.endpoint is not None
        host, port, secret = self.endpoint
        reader, writer = await asyncio.open_connection(host, port)
        if hello:
            writer.write(frame(0, HELLO, secret))
            assert await reader.readexactly(9) == frame(0, HELLO, b"")
        return reader, writer


async def echo(payload: bytes) -> bytes:
    return payload


@asynccontextmanager
async def ground(**methods: Method) -> AsyncIterator[Ground]:
    """Nothing may be left of it: no task, no connection."""
    it = Ground({"echo": echo, **methods})
    await it.start()
    try:
        yield it
    finally:
        it.may_find.set()
        it.wire.close()
        await it.server.close()
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await eventually(lambda: not it.server.connections)


async def is_cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Wait until the other side hung up; return whether it had said nothing."""
    try:
        said = await reader.read()
    except ConnectionResetError:
        said = b""
    writer.transport.abort()
    return said == b""


class Parked:
    """A method that answers when it is let, and tells who called."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[bytes] = asyncio.Queue()
        self.go = asyncio.Event()
        self.answered: list[bytes] = []

    async def __call__(self, payload: bytes) -> bytes:
        self.came.put_nowait(payload)
        await self.go.wait()
        self.answered.append(payload)
        return payload


# --- calls and replies ------------------------------------------------------------------------


@on_both_loops
async def test_a_call_reaches_the_method_it_names() -> None:
    async def shout(payload: bytes) -> bytes:
        return payload.upper()

    async with ground(shout=shout) as it:
        assert await it.wire.call("shout", b"who?") == b"WHO?"
        assert await it.wire.call("echo", b"who?") == b"who?"
        assert it.asked == 1


@on_both_loops
async def test_a_reply_does_not_wait_for_an_earlier_call() -> None:
    park = Parked()
    async with ground(park=park) as it:
        first = asyncio.ensure_future(it.wire.call("park", b"first"))
        await park.came.get()

        assert await it.wire.call("echo", b"second") == b"second"
        assert not first.done()
        park.go.set()
        assert await first == b"first"


@on_both_loops
async def test_many_calls_at_once_each_get_their_own_reply() -> None:
    async with ground() as it:
        said = [str(number).encode() for number in range(2_000)]

        replies = await asyncio.gather(*(it.wire.call("echo", each) for each in said))

        assert replies == said
        assert len(it.server.connections) == 1


@on_both_loops
async def test_large_payloads_pass_both_ways_beside_small_ones() -> None:
    async with ground() as it:
        large = bytes(range(256)) * 20_000

        replies = await asyncio.gather(
            *(it.wire.call("echo", each) for each in (large, b"", large, b"small"))
        )

        assert replies == [large, b"", large, b"small"]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
@on_both_loops
async def test_a_refusal_comes_back_as_itself(error: DraymanError) -> None:
    async def refuse(_: bytes) -> bytes:
        raise error

    async with ground(refuse=refuse) as it:
        with pytest.raises(type(error)) as caught:
            await it.wire.call("refuse", b"")

        assert type(caught.value) is type(error)
        assert caught.value.args == error.args
        assert str(caught.value) == str(error)


@pytest.mark.parametrize(
    "defect",
    [
        RuntimeError("broken"),
        TimeoutError(),
        Fenced(3, 2),  # no error for callers
        InvalidInput("field", object()),  # type: ignore[arg-type]  # cannot be said in JSON
    ],
    ids=lambda defect: type(defect).__name__,
)
@on_both_loops
async def test_after_a_defect_the_next_call_works(defect: Exception) -> None:
    async def break_down(_: bytes) -> bytes:
        raise defect

    async with ground(break_down=break_down) as it:
        with pytest.raises(CallFailed, match="break_down"):
            await it.wire.call("break_down", b"")

        assert await it.wire.call("echo", b"well") == b"well"
        assert it.asked == 1


@on_both_loops
async def test_a_method_the_server_does_not_know_is_a_defect() -> None:
    async with ground() as it:
        caller = Wire(it.find, ("echo", "newer"))

        with pytest.raises(CallFailed):
            await caller.call("newer", b"")

        assert await caller.call("echo", b"well") == b"well"
        caller.close()


@on_both_loops
async def test_a_call_too_large_for_a_frame_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "FRAME_BYTES_MAX", 100)
    async with ground() as it:
        with pytest.raises(NoWire):
            await it.wire.call("echo", bytes(101))

        assert await it.wire.call("echo", bytes(100)) == bytes(100)


@on_both_loops
async def test_a_reply_too_large_for_a_frame_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def grow(payload: bytes) -> bytes:
        return payload * 2

    monkeypatch.setattr(wires, "FRAME_BYTES_MAX", 100)
    async with ground(grow=grow) as it:
        with pytest.raises(CallFailed):
            await it.wire.call("grow", bytes(51))

        assert await it.wire.call("grow", bytes(50)) == bytes(100)


# --- whom the server does not serve -----------------------------------------------------------

STRANGERS = {
    "wrong secret": frame(0, HELLO, bytes(32)),
    "short secret": frame(0, HELLO, b""),
    "no hello": frame(1, 0, b"{}"),
    "garbage": b"GET / HTTP/1.1\r\nHost: manager\r\n\r\n",
    "a large hello": struct.pack(">IIB", 33, 0, HELLO),
    "64 MiB before any hello": struct.pack(">IIB", 64 << 20, 0, HELLO) + bytes(1 << 20),
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
@on_both_loops
async def test_a_stranger_is_cut_off_unheard_and_others_are_served(said: bytes) -> None:
    async with ground() as it:
        await it.wire.call("echo", b"before")
        reader, writer = await it.dial()

        writer.write(said)

        assert await is_cut_off(reader, writer)
        assert await it.wire.call("echo", b"after") == b"after"
        assert it.asked == 1
        await eventually(lambda: len(it.server.connections) == 1)


@on_both_loops
async def test_who_does_not_say_the_secret_in_time_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wires, "HELLO_S", 0.0)
    async with ground() as it:
        reader, writer = await it.dial()
        writer.write(frame(0, HELLO, bytes(32))[:20])

        assert await is_cut_off(reader, writer)


@on_both_loops
async def test_a_frame_that_comes_in_parts_is_one_call() -> None:
    async with ground() as it:
        reader, writer = await it.dial(hello=True)
        one, other = frame(7, 0, b"in parts"), frame(8, 0, b"whole")
        writer.write(other + one[:4])
        assert await reader.readexactly(len(other)) == other  # so that the part has come, too

        writer.write(one[4:12])
        await it.wire.call("echo", b"meanwhile")
        writer.write(one[12:])

        assert await reader.readexactly(len(one)) == one
        writer.transport.abort()


@on_both_loops
async def test_too_large_a_frame_ends_that_connection_only() -> None:
    async with ground() as it:
        reader, writer = await it.dial(hello=True)

        writer.write(struct.pack(">IIB", wires.FRAME_BYTES_MAX + 1, 1, 0))

        assert await is_cut_off(reader, writer)
        assert await it.wire.call("echo", b"after") == b"after"


@on_both_loops
async def test_what_is_being_answered_goes_on_without_its_caller() -> None:
    park = Parked()
    async with ground(park=park) as it:
        _, writer = await it.dial(hello=True)
        writer.write(frame(1, 1, b"a batch"))
        await park.came.get()

        writer.transport.abort()
        await eventually(lambda: not it.server.connections)
        park.go.set()

        await eventually(lambda: park.answered == [b"a batch"])


@on_both_loops
async def test_a_server_that_closes_leaves_nothing_it_was_answering() -> None:
    """Of those whose caller left, too: `ground` looks for what remains."""
    park = Parked()
    async with ground(park=park) as it:
        for leaves in (True, False):
            _, writer = await it.dial(hello=True)
            writer.write(frame(1, 1, b""))
            await park.came.get()
            if leaves:
                writer.transport.abort()
                await eventually(lambda: not it.server.connections)

        await it.server.close()

        writer.transport.abort()
        assert park.answered == []


@on_both_loops
async def test_a_server_that_cannot_listen_there_has_no_endpoint() -> None:
    server = WireServer({"echo": echo})

    assert await server.start(NOT_OURS) is None

    await server.close()


# --- a manager that goes ----------------------------------------------------------------------


@on_both_loops
async def test_calls_under_way_are_manager_away_when_the_server_goes_and_the_next_asks_anew() -> (
    None
):
    park = Parked()
    async with ground(park=park) as it:
        calls = [asyncio.ensure_future(it.wire.call("park", b"")) for _ in range(3)]
        for _ in calls:
            await park.came.get()

        await it.restart()

        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in ended] == [ManagerAway] * 3
        assert await it.wire.call("echo", b"again") == b"again"
        assert it.asked == 2


@on_both_loops
async def test_a_connection_lost_while_nobody_calls_is_made_anew() -> None:
    async with ground() as it:
        await it.wire.call("echo", b"")
        old = next(iter(it.server.connections))
        await it.restart()
        await eventually(lambda: it.wire._connection is None or it.wire._connection.is_over)

        assert await it.wire.call("echo", b"again") == b"again"
        assert it.asked == 2
        assert old not in it.server.connections


@on_both_loops
async def test_what_find_raises_reaches_every_caller_and_the_next_asks_anew() -> None:
    async with ground() as it:
        it.trouble = ManagerAway("it restarts")

        calls = [it.wire.call("echo", b"") for _ in range(3)]
        ended = await asyncio.gather(*calls, return_exceptions=True)

        assert ended == [it.trouble] * 3
        assert it.asked == 1
        it.trouble = None
        assert await it.wire.call("echo", b"back") == b"back"


@on_both_loops
async def test_a_manager_that_does_not_say_where_it_is_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ground() as it:
        it.may_find.clear()
        with monkeypatch.context() as soon:
            soon.setattr(wires, "FIND_S", 0.0)
            with pytest.raises(ManagerAway):
                await it.wire.call("echo", b"")
        it.may_find.set()

        assert await it.wire.call("echo", b"well") == b"well"


@on_both_loops
async def test_a_manager_that_talks_nonsense_is_away() -> None:
    async with ground() as it:
        end = it.endpoint
        nonsense = frame(0, HELLO, b"") + struct.pack(">IIB", wires.FRAME_BYTES_MAX + 1, 1, 0)
        async with listening(nonsense) as port:
            it.endpoint = (LOOPBACK, port, bytes(32))
            with pytest.raises(ManagerAway):
                await it.wire.call("echo", b"")

        it.endpoint = end
        assert await it.wire.call("echo", b"well") == b"well"


@asynccontextmanager
async def listening(says: bytes, hangs_up: bool = False) -> AsyncIterator[int]:
    """Something that listens and is no manager."""
    open_ones: list[asyncio.StreamWriter] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(writer)
        writer.write(says)
        if hangs_up:
            writer.transport.abort()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_ones:
            writer.transport.abort()


# --- no connection to be had ------------------------------------------------------------------


async def is_without(it: Ground) -> None:
    """No connection can be had, and for a while nobody tries."""
    for _ in range(3):
        with pytest.raises(NoWire):
            await it.wire.call("echo", b"")
    assert it.asked == 1


@on_both_loops
async def test_a_manager_that_listens_nowhere_is_no_wire_and_not_asked_again_soon() -> None:
    async with ground() as it:
        it.endpoint = None

        await is_without(it)


@on_both_loops
async def test_a_refused_port_is_no_wire_and_not_tried_again_soon() -> None:
    async with ground() as it:
        with socket.create_server((LOOPBACK, 0)) as other:
            port = other.getsockname()[1]
        it.endpoint = (LOOPBACK, port, bytes(32))

        await is_without(it)


@on_both_loops
async def test_a_secret_the_manager_does_not_take_is_no_wire() -> None:
    async with ground() as it:
        assert it.endpoint is not None
        it.endpoint = (*it.endpoint[:2], bytes(32))

        await is_without(it)


@pytest.mark.parametrize(
    ("says", "hangs_up"), [(b"", True), (b"", False), (frame(1, 0, b""), False)]
)
@on_both_loops
async def test_something_else_that_accepts_connections_is_no_wire(
    monkeypatch: pytest.MonkeyPatch, says: bytes, hangs_up: bool
) -> None:
    """A proxy that accepts for a port it does not reach; a manager that stands still."""
    monkeypatch.setattr(wires, "CONNECT_S", 0.05)
    async with ground() as it, listening(says, hangs_up) as port:
        it.endpoint = (LOOPBACK, port, bytes(32))

        await is_without(it)


@on_both_loops
async def test_a_second_try_is_made_aside_while_calls_go_through_ray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wires, "NO_WIRE_S", 0.0)
    async with ground() as it:
        endpoint, it.endpoint = it.endpoint, None
        with pytest.raises(NoWire):
            await it.wire.call("echo", b"")
        it.endpoint = endpoint
        it.may_find.clear()

        for _ in range(3):  # it is being tried, which nobody waits for
            with pytest.raises(NoWire):
                await it.wire.call("echo", b"")
        it.may_find.set()
        await eventually(lambda: it.server.connections)
        await eventually(lambda: it.wire._connection is not None)

        assert await it.wire.call("echo", b"found") == b"found"
        assert it.asked == 2


# --- callers that leave -----------------------------------------------------------------------


async def leave(call: "asyncio.Future[bytes]") -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@on_both_loops
async def test_a_caller_that_leaves_harms_nobody_and_its_late_reply_is_dropped() -> None:
    park = Parked()
    async with ground(park=park) as it:
        leaving, staying = (
            asyncio.ensure_future(it.wire.call("park", each)) for each in (b"leaving", b"staying")
        )
        for _ in range(2):
            await park.came.get()

        await leave(leaving)
        park.go.set()

        assert await staying == b"staying"
        assert await it.wire.call("echo", b"next") == b"next"
        assert park.answered == [b"leaving", b"staying"]
        assert it.asked == 1


@on_both_loops
async def test_callers_share_one_connecting_and_one_that_leaves_does_not_end_it() -> None:
    async with ground() as it:
        it.may_find.clear()
        leaving, *staying = (
            asyncio.ensure_future(it.wire.call("echo", str(n).encode())) for n in range(4)
        )
        await eventually(lambda: it.asked)

        await leave(leaving)
        it.may_find.set()

        assert await asyncio.gather(*staying) == [b"1", b"2", b"3"]
        assert it.asked == 1
        assert len(it.server.connections) == 1


@on_both_loops
async def test_a_connection_that_all_its_callers_left_is_kept_for_the_next() -> None:
    async with ground() as it:
        it.may_find.clear()
        only = asyncio.ensure_future(it.wire.call("echo", b""))
        await eventually(lambda: it.asked)
        await leave(only)
        it.may_find.set()
        await eventually(lambda: it.server.connections)

        assert await it.wire.call("echo", b"next") == b"next"
        assert it.asked == 1
        assert len(it.server.connections) == 1


@on_both_loops
async def test_a_silent_connection_is_given_up_when_a_caller_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wires, "SILENT_S", 0.0)
    park = Parked()
    async with ground(park=park) as it:
        leaving = asyncio.ensure_future(it.wire.call("park", b""))
        await park.came.get()
        [old] = it.server.connections

        await leave(leaving)

        assert await it.wire.call("echo", b"next") == b"next"
        assert it.asked == 2
        await eventually(lambda: old not in it.server.connections)


@on_both_loops
async def test_a_long_poll_on_a_connection_given_up_is_still_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was silent because nobody had anything to say, and one of two that waited left."""
    monkeypatch.setattr(wires, "SILENT_S", 0.0)
    park = Parked()
    async with ground(park=park) as it:
        leaving, staying = (
            asyncio.ensure_future(it.wire.call("park", each)) for each in (b"leaving", b"staying")
        )
        for _ in range(2):
            await park.came.get()

        await leave(leaving)
        assert await it.wire.call("echo", b"on a new one") == b"on a new one"
        assert len(it.server.connections) == 2
        park.go.set()

        assert await staying == b"staying"
        await eventually(lambda: len(it.server.connections) == 1)


# --- the end ----------------------------------------------------------------------------------


@on_both_loops
async def test_calls_under_way_are_manager_away_when_their_wire_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those on a connection given up, too."""
    monkeypatch.setattr(wires, "SILENT_S", 0.0)
    park = Parked()
    async with ground(park=park) as it:
        calls = [asyncio.ensure_future(it.wire.call("park", b"")) for _ in range(2)]
        for _ in calls:
            await park.came.get()
        await leave(calls.pop())
        calls.append(asyncio.ensure_future(it.wire.call("park", b"")))
        await park.came.get()

        it.wire.close()

        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in ended] == [ManagerAway] * 2
        await eventually(lambda: not it.server.connections)


@on_both_loops
async def test_who_waits_for_a_connection_that_is_closed_is_told_and_not_cancelled() -> None:
    async with ground() as it:
        it.may_find.clear()
        waiting = asyncio.ensure_future(it.wire.call("echo", b""))
        await eventually(lambda: it.asked)

        it.wire.close()

        with pytest.raises(ManagerAway):
            await waiting
