"""Calls to the manager over a connection of our own, which Ray is asked for.

A call to a Ray actor passes several threads on each side; with little else to do, that takes a
millisecond each way and as much of the processor. Here a call is one frame, and so is its reply:

    length of the payload, number of the call, code    payload

The code of a call says which method is meant, that of a reply how it ended. The first frame of a
connection has the secret, which only Ray hands out, to whom it lets call actors.

Rule 1: nothing is repeated here. A call whose connection broke may have run: it is ManagerAway, and
whoever made it repeats it by its number. Rule 2: replies come in any order. Rule 3: a connection
that says no secret, or too large a frame, is closed unread. Rule 4: where no connection can be had
the caller is told, NoWire, and calls through Ray.
"""

import asyncio
import hmac
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
import structlog

from cluster.protocol import Refused, encode, refusal_of
from jobs.errors import DraymanError

__all__ = ["CallFailed", "Endpoint", "ManagerAway", "NoWire", "Wire", "WireServer"]

log = structlog.get_logger(__name__)

FRAME_BYTES_MAX = 64 << 20
#: Whoever has not said the secret by then is cut off.
HELLO_S = 5.0
CONNECT_S = 2.0
#: After a connection could not be had, calls go through Ray for so long.
NO_WIRE_S = 10.0
#: A connection that was silent for so long when a caller gave up on it is given up, too.
SILENT_S = 5.0

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
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Take the next bytes and yield (number, code, payload). ValueError for too large a one."""
        buffer = self._buffer
        buffer += data
        at, size = 0, len(buffer)
        while size - at >= _HEADER.size:
            length, number, code = _HEADER.unpack_from(buffer, at)
            if length > FRAME_BYTES_MAX:
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
        self._secret = secrets.token_bytes(32)
        self._server: asyncio.Server | None = None
        self._connections: set[_Served] = set()

    async def start(self, host: str) -> Endpoint:
        """Listen on a free port of `host`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Served(self), host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return host, port, self._secret

    async def close(self) -> None:
        """Close every connection; what is being answered goes unanswered."""
        if self._server is not None:
            self._server.close()
        tasks = [task for each in self._connections for task in each.close()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def knows(self, secret: bytes) -> bool:
        """Whether this is the secret."""
        return hmac.compare_digest(secret, self._secret)

    async def answer(self, code: int, payload: bytes) -> tuple[int, bytes]:
        """Call the method that `code` stands for; return how it ended, and with what."""
        try:
            return _OK, await self._methods[code](payload)
        except DraymanError as error:
            return _REFUSED, encode(refusal_of(error))
        except Exception as error:
            log.exception("call_failed", method=self._names[code : code + 1])
            return _FAILED, type(error).__name__.encode()


class _Served(asyncio.Protocol):
    """One connection to the server."""

    def __init__(self, server: WireServer) -> None:
        self._server = server
        self._frames = _Frames()
        self._is_known = False
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server._connections.add(self)
        self._hello = asyncio.get_running_loop().call_later(HELLO_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        try:
            for number, code, payload in self._frames.feed(data):
                if not self._is_known:
                    self._greet(code, payload)
                else:
                    task = asyncio.get_running_loop().create_task(
                        self._answer(number, code, payload)
                    )
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except ValueError as error:
            log.warning("connection_refused", reason=str(error))
            self._transport.abort()

    def _greet(self, code: int, payload: bytes) -> None:
        if code != _HELLO or not self._server.knows(payload):
            raise ValueError("the secret is wrong")
        self._is_known = True
        self._hello.cancel()

    async def _answer(self, number: int, code: int, payload: bytes) -> None:
        ended, reply = await self._server.answer(code, payload)
        if not self._transport.is_closing():
            self._transport.write(_frame(number, ended, reply))

    def connection_lost(self, exc: Exception | None) -> None:
        # What is being answered goes on: it may be half done, and its caller says it again.
        self._hello.cancel()
        self._server._connections.discard(self)

    def close(self) -> list["asyncio.Task[None]"]:
        self._transport.abort()
        for task in self._tasks:
            task.cancel()
        return list(self._tasks)


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
        self._connecting: asyncio.Task[_Connection] | None = None
        self._not_before_s = 0.0

    async def call(self, method: str, payload: bytes) -> bytes:
        """Call the manager. Raises ManagerAway, NoWire, CallFailed, and what it refuses with."""
        connection = self._connection
        if connection is None or connection.is_lost:
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
        if self._connection is not None:
            self._connection.abort()

    async def _connect(self) -> "_Connection":
        """Wait for the connection that all callers share: who gives up does not end the others'."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before_s:
            raise NoWire
        if self._connecting is None or self._connecting.done():
            self._connecting = loop.create_task(self._open())
            # Nobody may be left to hear of its failure.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._connection = await asyncio.shield(self._connecting)
        return self._connection

    async def _open(self) -> "_Connection":
        endpoint = await self._find()
        loop = asyncio.get_running_loop()
        try:
            if endpoint is None:
                raise NoWire
            host, port, secret = endpoint
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(secret), host, port
                )
        except (OSError, TimeoutError, NoWire) as error:
            self._not_before_s = loop.time() + NO_WIRE_S
            log.warning("manager_not_connected", error=str(error), next="calls go through Ray")
            raise NoWire from error
        return connection


class _Connection(asyncio.Protocol):
    """One connection to the manager."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._frames = _Frames()
        self._calls: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._number = 0
        self.is_lost = False
        self._heard_s = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        _keep_alive(transport.get_extra_info("socket"))
        self._heard_s = asyncio.get_running_loop().time()
        transport.write(_frame(0, _HELLO, self._secret))

    async def call(self, code: int, payload: bytes) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        if self.is_lost:
            raise ManagerAway("the connection to the manager is lost")
        self._number = number = (self._number + 1) & 0xFFFF_FFFF
        reply: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._calls[number] = reply
        self._transport.write(_frame(number, code, payload))
        try:
            return await reply
        except asyncio.CancelledError:
            if loop.time() - self._heard_s > SILENT_S:
                # The other side may be gone without a word; the next call asks Ray anew.
                self.abort()
            raise
        finally:
            self._calls.pop(number, None)

    def data_received(self, data: bytes) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        for number, code, payload in self._frames.feed(data):
            reply = self._calls.get(number)
            if reply is not None and not reply.done():  # its caller may have left
                reply.set_result((code, payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(ManagerAway(f"the connection broke: {exc or 'closed'}"))

    def abort(self) -> None:
        self.is_lost = True
        self._transport.abort()


def _keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice a machine that is gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # not everywhere by this name
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
