"""An HTTP/1.1 client that does one thing: send the same request on many connections at once.

A general client costs more a request than the server under test; this one keeps each connection
busy with one request at a time and counts.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field

from benchmarks.figures import percentile
from benchmarks.server import Server

__all__ = ["LINE", "Load", "fire", "post"]

#: A job that does nothing, as the API takes it.
LINE = json.dumps({"type": "bench.noop", "params": {"payload": "x" * 80}}).encode()


@dataclass
class Load:
    """What came back."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    #: Connections the server closed early; the edge does so when it takes on a new configuration.
    lost: int = 0

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Latency that `share` of the requests stayed below."""
        return percentile(self.latencies_ms, share)


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, load: Load, until: float) -> None:
        self.request, self.load, self.until = request, load, until
        self.buffer = b""
        self.sent_at = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.sent_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        at = lowered.index(b"content-length:") + 15
        length = int(lowered[at:].partition(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.load.latencies_ms.append((now - self.sent_at) * 1000)
        status = int(head[9:12])
        self.load.statuses[status] = self.load.statuses.get(status, 0) + 1
        self.buffer = b""
        if now < self.until:
            self._send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.load.lost += 1
            self.done.set_result(None)


async def fire(
    address: tuple[str, int], request: bytes, *, connections: int, seconds: float
) -> Load:
    """Send `request` over and over on `connections` connections for `seconds`."""
    load = Load()
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    until = started + seconds
    made = [
        await loop.create_connection(lambda: _Connection(request, load, until), *address)
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in made))
    load.seconds = time.perf_counter() - started
    return load


def post(server: Server, job: bytes = LINE) -> bytes:
    """Return the request that submits the job."""
    host, port = server.address
    return (
        f"POST /v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Authorization: Bearer {server.token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(job)}\r\n\r\n"
    ).encode() + job
