"""The open-loop load of the benchmarks: it sends when it should, whatever became of others."""

import asyncio

from benchmarks.arrivals import Arrivals
from tests.support.eventually import eventually

REFUSED = b"HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}"
ACCEPTED = b"HTTP/1.1 202 X\r\ncontent-length: 0\r\n\r\n"


async def test_each_request_is_answered_apart_and_none_waits_for_another() -> None:
    first_may_go = asyncio.Event()
    serving: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(writer)
        while asked := await reader.read(1):
            if asked == b"\x00":
                await first_may_go.wait()
            elif asked == b"\x09":
                first_may_go.set()
            elif asked == b"\x05":
                break
            writer.write(REFUSED if asked[0] % 2 else ACCEPTED)
        writer.close()
        await writer.wait_closed()
        serving.remove(writer)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    stream = Arrivals(server.sockets[0].getsockname()[:2], lambda n: bytes([n]))

    await stream.run(1_000, 0.01)

    found = {one.n: (one.status, one.retry_after_s) for one in stream.answers}
    lost = {5: (0, None)}
    assert found == {n: (503, 7) if n % 2 else (202, None) for n in range(10)} | lost
    assert stream.answers[-1].n in (0, 9)  # the first waited for the last
    assert all(one.due <= one.sent <= one.done for one in stream.answers)
    server.close()
    await eventually(lambda: not serving)
