"""Requests that come when they are due, whether or not earlier ones were answered (open loop).

So a server that stands still is seen to: what was due meanwhile waits, and its wait counts. Each
request has a connection for itself while it lasts; connections are used again.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Answer", "Arrivals"]

#: Connections opened before the first request.
READY = 32
#: How long the last answers are waited for.
LAST_S = 30.0


@dataclass(slots=True)
class Answer:
    """What became of one request. Moments are of `time.perf_counter`."""

    n: int
    due: float
    sent: float = 0.0
    done: float = 0.0
    #: 0: the connection was lost.
    status: int = 0
    #: Seconds, as the header says; None without one.
    retry_after_s: int | None = None

    @property
    def from_due_ms(self) -> float:
        """From when it should have been sent: what this machine was late with counts, too."""
        return (self.done - self.due) * 1000

    @property
    def from_sent_ms(self) -> float:
        """From when it was sent."""
        return (self.done - self.sent) * 1000


@dataclass
class Arrivals:
    """A stream of requests to one address, and their answers in the order in which they came."""

    address: tuple[str, int]
    #: The bytes of request number n.
    request: Callable[[int], bytes]
    answers: list[Answer] = field(default_factory=list)
    _idle: list["_Connection"] = field(default_factory=list)
    _under_way: set["_Connection"] = field(default_factory=set)

    async def run(self, rate: float, seconds: float, first: int = 0) -> None:
        """Send `rate` requests a second; return once all are answered."""
        # A look for garbage among so many answers takes longer than the server for most of them.
        gc.disable()
        try:
            await self._run(rate, seconds, first)
        finally:
            gc.enable()

    async def _run(self, rate: float, seconds: float, first: int) -> None:
        self._idle += [await self._connect() for _ in range(READY)]
        began = time.perf_counter()
        count = 0
        while count < rate * seconds:
            now = time.perf_counter()
            while count < rate * seconds and (due := began + count / rate) <= now:
                await self._send(Answer(first + count, due))
                count += 1
            await asyncio.sleep(max(0.0, began + count / rate - time.perf_counter()))
        last = [connection.free.wait() for connection in self._under_way]
        async with asyncio.timeout(LAST_S):
            await asyncio.gather(*last)
        open_still, self._idle = self._idle, []
        for connection in open_still:
            connection.transport.close()
        await asyncio.gather(*(connection.closed.wait() for connection in open_still))

    async def _send(self, answer: Answer) -> None:
        connection = self._idle.pop() if self._idle else await self._connect()
        self._under_way.add(connection)
        connection.send(answer, self.request(answer.n))

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: _Connection(self), *self.address))[1]

    def answered(self, connection: "_Connection", answer: Answer) -> None:
        """Take an answer, or the loss of its connection."""
        self._under_way.discard(connection)
        self.answers.append(answer)
        if answer.status:
            self._idle.append(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, stream: Arrivals) -> None:
        self._stream = stream
        self._buffer = b""
        self._answer: Answer | None = None
        #: Set once what was sent is answered, or never will be.
        self.free = asyncio.Event()
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, answer: Answer, request: bytes) -> None:
        self.free.clear()
        self._answer, answer.sent = answer, time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or self._answer is None:
            return
        told = dict(line.split(b":", 1) for line in head.lower().split(b"\r\n")[1:])
        if len(body) < int(told[b"content-length"]):
            return
        self._answer.status = int(head[9:12])
        if b"retry-after" in told:
            self._answer.retry_after_s = int(told[b"retry-after"])
        self._done(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        if self in self._stream._idle:
            self._stream._idle.remove(self)
        if self._answer is not None:
            self._done(self._answer)

    def _done(self, answer: Answer) -> None:
        answer.done = time.perf_counter()
        self._buffer, self._answer = b"", None
        self._stream.answered(self, answer)
        self.free.set()
