"""Calls to the manager over a connection of our own, which Ray is asked for.

A call to a Ray actor passes several threads on each side; with little else to do, that takes a
millisecond each way and as much of the processor. Here a call is one frame, and so is its reply:

    length of the payload, number of the call, code    payload

The code of a call says which method is meant, that of a reply how it ended. The first frame of a
connection has the secret, which only Ray hands out, to whom it lets call actors; the first one back
says that it was right.

Rule 1: nothing is repeated here. A call whose connection broke may have run: it is ManagerAway, and
whoever made it repeats it by its number. Rule 2: replies come in any order. Rule 3: a connection
that says no secret, or too large a frame, is closed unread. Rule 4: where no connection can be had
the caller is told, NoWire, and calls through Ray. Rule 5: nobody who calls waits for a second try.
"""

import asyncio
import contextlib
import hmac
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any

import msgspec
import structlog

from cluster.protocol import Refused, encode, refusal_of
from jobs.errors import DraymanError

__all__ = ["CallFailed", "Endpoint", "ManagerAway", "NoWire", "Wire", "WireServer"]

log = structlog.get_logger(__name__)

#: For those who know the secret. A larger call goes through Ray.
FRAME_BYTES_MAX = 1 << 30
SECRET_BYTES = 32
#: Whoever has not said the secret by then is cut off.
HELLO_S = 5.0
#: A gateway's call takes a second at most: it is to get through by Ray within it.
CONNECT_S = 0.5
#: All callers wait for one question: left unanswered for so long, it is asked again.
FIND_S = 10.0
#: After a connection could not be had, calls go through Ray for so long.
NO_WIRE_S = 10.0
#: A connection that left calls unanswered for so long when a caller gave up is given up, too.
SILENT_S = 5.0
#: A machine that is gone without a word is noticed after so long.
GONE_S = 11

_HEADER = struct.Struct(">IIB")
_HELLO = 255
_OK, _REFUSED, _FAILED = range(3)
_decode_refused = msgspec.json.Decoder(Refused).decode

Method = Callable[[bytes], Awaitable[bytes]]
#: Host, port, secret.
Endpoint = tuple[str, int, bytes]


class ManagerAway(Exception):
    """The manager does not answer: it is restarting, or out of reach. The call may have run."""


class NoWire(Exception):
    """There is no connection to be had. The call has not run."""


class CallFailed(Exception):
    """The manager failed at it, by a defect of its own, which it has logged."""


def _frame(number: int, code: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), number, code) + payload


class _Frames:
    """Cuts a stream of bytes into frames of at most `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Take the next bytes and yield (number, code, payload). ValueError for too large a one."""
        buffer = self._buffer
        buffer += data
        at, size = 0, len(buffer)
        while size - at >= _HEADER.size:
            length, number, code = _HEADER.unpack_from(buffer, at)
            if length > self.bytes_max:
                raise ValueError(f"a frame of {length} bytes")
            begin, end = at + _HEADER.size, at + _HEADER.size + length
            if size < end:
                break
            yield number, code, bytes(buffer[begin:end])
            at = end
        del buffer[:at]


# --- the manager's side -----------------------------------------------------------------------


class WireServer:
    """Answers calls of whoever knows the secret. Lives on one event loop."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = list(methods.values())
        self._names = list(methods)
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._server: asyncio.Server | None = None
        self.connections: set[_Served] = set()
        #: What is being answered. It goes on when its connection is lost.
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> Endpoint | None:
        """Listen on a free port of `host`; None where that cannot be."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Served(self), host, 0)
        except OSError as error:  # not every address that Ray knows a node by is one of its own
            log.warning("manager_not_listening", error=str(error), next="calls go through Ray")
            return None
        port: int = self._server.sockets[0].getsockname()[1]
        return host, port, self._secret

    async def close(self) -> None:
        """Close every connection; what is being answered goes unanswered."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def knows(self, secret: bytes) -> bool:
        """Whether this is the secret."""
        return hmac.compare_digest(secret, self._secret)

    def begin(self, answering: Coroutine[Any, Any, None]) -> None:
        """Run it until it ends or the server is closed."""
        task = asyncio.get_running_loop().create_task(answering)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def answer(self, code: int, payload: bytes) -> tuple[int, bytes]:
        """Call the method that `code` stands for; return how it ended, and with what."""
        try:
            try:
                ended, reply = _OK, await self._methods[code](payload)
            except DraymanError as error:
                refused = refusal_of(error)
                refused.exception()  # one that callers cannot be told is a defect
                ended, reply = _REFUSED, encode(refused)
            if len(reply) > FRAME_BYTES_MAX:
                raise ValueError(f"a reply of {len(reply)} bytes")
            return ended, reply
        except Exception as error:
            log.exception("call_failed", method=self._names[code : code + 1])
            return _FAILED, type(error).__name__.encode()


class _Served(asyncio.Protocol):
    """One connection to the server."""

    def __init__(self, server: WireServer) -> None:
        self._server = server
        self._frames = _Frames(SECRET_BYTES)
        self._is_known = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections.add(self)
        _keep_alive(transport.get_extra_info("socket"))
        self._hello = asyncio.get_running_loop().call_later(HELLO_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        try:
            for number, code, payload in self._frames.feed(data):
                if not self._is_known:
                    self._greet(code, payload)
                else:
                    self._server.begin(self._answer(number, code, payload))
        except ValueError as error:
            log.warning("connection_refused", reason=str(error))
            self._transport.abort()

    def _greet(self, code: int, payload: bytes) -> None:
        if code != _HELLO or not self._server.knows(payload):
            raise ValueError("the secret is wrong")
        self._is_known = True
        self._hello.cancel()
        self._frames.bytes_max = FRAME_BYTES_MAX
        self._transport.write(_frame(0, _HELLO, b""))

    async def _answer(self, number: int, code: int, payload: bytes) -> None:
        ended, reply = await self._server.answer(code, payload)
        if not self._transport.is_closing():
            self._transport.write(_frame(number, ended, reply))

    def connection_lost(self, exc: Exception | None) -> None:
        # What is being answered goes on: it may be half done, and its caller says it again.
        self._hello.cancel()
        self._server.connections.discard(self)

    def abort(self) -> None:
        self._transport.abort()


# --- the caller's side ------------------------------------------------------------------------


class Wire:
    """One caller's connection, made when first needed and again when it was lost.

    `find` asks Ray where the manager listens; None says that it does not. What it raises the
    caller gets.
    """

    def __init__(
        self, find: Callable[[], Awaitable[Endpoint | None]], methods: tuple[str, ...]
    ) -> None:
        self._find = find
        self._codes = {name: code for code, name in enumerate(methods)}
        self._connection: _Connection | None = None
        #: That one, and those given up on which calls are still under way.
        self._open_ones: set[_Connection] = set()
        self._connecting: asyncio.Task[_Connection] | None = None
        #: The last try failed.
        self._is_without = False
        self._not_before_s = 0.0

    async def call(self, method: str, payload: bytes) -> bytes:
        """Call the manager. Raises ManagerAway, NoWire, CallFailed, and what it refuses with."""
        connection = self._connection
        if len(payload) > FRAME_BYTES_MAX:
            raise NoWire(f"{len(payload)} bytes are too many for one frame")
        if connection is None or connection.is_over:
            connection = await self._connect()
        ended, reply = await connection.call(self._codes[method], payload)
        if ended == _OK:
            return reply
        if ended == _REFUSED:
            raise _decode_refused(reply).exception()
        raise CallFailed(f"the manager failed at {method}: {reply.decode()}")

    def close(self) -> None:
        """Close the connection; calls that are under way are ManagerAway."""
        if self._connecting is not None:
            self._connecting.cancel()
        for connection in list(self._open_ones):
            connection.abort()

    async def _connect(self) -> "_Connection":
        """Wait for the connection that all callers share: who gives up does not end the others'."""
        loop = asyncio.get_running_loop()
        if self._connecting is None or self._connecting.done():
            if loop.time() < self._not_before_s:
                raise NoWire("there was none to be had a moment ago")
            self._connecting = loop.create_task(self._open())
            # Nobody may be left to hear of its failure.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        if (
            self._is_without
        ):  # a port behind a firewall would keep everyone waiting, again and again
            raise NoWire("there is none yet")
        connecting = self._connecting
        await asyncio.wait([connecting])
        if connecting.cancelled():
            raise ManagerAway("the connection was closed while it was made")
        return connecting.result()

    async def _open(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(FIND_S):
                endpoint = await self._find()
        except TimeoutError as error:
            raise ManagerAway("it does not say where it listens") from error
        try:
            if endpoint is None:
                raise NoWire("the manager can only be called through Ray")
            host, port, secret = endpoint
            connection = _Connection(secret, self._open_ones)
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: connection, host, port)
                await connection.welcomed()
        except (OSError, TimeoutError, NoWire) as error:
            self._not_before_s = loop.time() + NO_WIRE_S
            if not self._is_without:  # said once, not with every try
                log.warning("manager_not_connected", error=repr(error), next="calls go through Ray")
            self._is_without = True
            raise NoWire(repr(error)) from error
        # Kept here and not by a caller: all of them may have left.
        self._connection, self._is_without = connection, False
        return connection


class _Connection(asyncio.Protocol):
    """One connection to the manager; one of `open_ones` as long as it is open."""

    def __init__(self, secret: bytes, open_ones: "set[_Connection]") -> None:
        self._secret = secret
        self._open_ones = open_ones
        self._frames = _Frames(FRAME_BYTES_MAX)
        self._calls: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._number = 0
        #: Whether the manager took the secret; False: it hung up.
        self._welcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        #: It takes no calls any more: it is lost, or given up.
        self.is_over = False
        #: Since when nothing was heard although something was asked.
        self._silent_since_s = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._open_ones.add(self)
        _keep_alive(transport.get_extra_info("socket"))
        transport.write(_frame(0, _HELLO, self._secret))

    async def welcomed(self) -> None:
        """Return once the manager took the secret; ConnectionError if it did not."""
        try:
            if not await self._welcome:
                raise ConnectionResetError("the manager hung up")
        except asyncio.CancelledError:
            self.abort()
            raise

    async def call(self, code: int, payload: bytes) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        if self.is_over:
            raise ManagerAway("the connection to the manager is lost")
        if not self._calls:
            self._silent_since_s = loop.time()
        self._number = number = (self._number + 1) & 0xFFFF_FFFF
        reply: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._calls[number] = reply
        self._transport.write(_frame(number, code, payload))
        try:
            return await reply
        except asyncio.CancelledError:
            if loop.time() - self._silent_since_s >= SILENT_S:
                # The other side may be gone without a word, or only have nothing to say to a long
                # poll: the next call asks Ray anew, those under way may still be answered.
                self.is_over = True
            raise
        finally:
            self._calls.pop(number, None)
            if self.is_over and not self._calls:
                self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._silent_since_s = asyncio.get_running_loop().time()
        try:
            for number, code, payload in self._frames.feed(data):
                if not self._welcome.done():
                    if code != _HELLO:
                        raise ValueError("no welcome")
                    self._welcome.set_result(True)
                    continue
                reply = self._calls.get(number)
                if reply is not None and not reply.done():  # its caller may have left
                    reply.set_result((code, payload))
        except ValueError as error:
            log.warning("manager_not_understood", reason=str(error))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        self._open_ones.discard(self)
        if not self._welcome.done():
            self._welcome.set_result(False)
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(ManagerAway(f"the connection broke: {exc or 'closed'}"))

    def abort(self) -> None:
        self.is_over = True
        self._transport.abort()


def _keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice a machine that is gone without a word."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": GONE_S - 6,
        "TCP_KEEPINTVL": 2,
        "TCP_KEEPCNT": 3,
        # While something is under way nothing is kept alive, but sent again, for a quarter of
        # an hour by default. Milliseconds.
        "TCP_USER_TIMEOUT": GONE_S * 1_000,
    }
    for option, value in options.items():
        # Not everywhere by this name, and not for one that is closed already.
        with contextlib.suppress(AttributeError, OSError):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
