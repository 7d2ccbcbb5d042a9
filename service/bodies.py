"""Request bodies, read under a limit: never more in memory than the limit and one chunk.

The declared length is believed only to refuse early; what counts is what arrives, so chunked
bodies are held to the same limit.
"""

import asyncio
import re
from collections.abc import AsyncIterator

from starlette.types import Message, Receive

from cluster.room import Room
from service.problems import Malformed, TooLarge, TooSlow

__all__ = ["Bodies", "ClientGone", "not_json", "read_body", "stream_body"]

#: A body that began to come is to be whole after so long, and a second more for so many bytes.
WHOLE_S, BYTES_A_SECOND = 30.0, 16 * 1024
#: Told to who would have others' bodies thrown out of memory: by then some are done with.
CROWDED_S = 1.0


class ClientGone(Exception):
    """The client left before its request was whole: there is nobody to answer."""


class Bodies:
    """Bodies that are held at once, by all requests together.

    Rule 1: what was read is held until it is released. Rule 2: who sends part of a body and then
    nothing, or next to nothing, holds it for a while only.
    """

    def __init__(self, bytes_max: int) -> None:
        self._room = Room("too much is being submitted at once", bytes_max, "bytes", CROWDED_S)

    @property
    def held_bytes(self) -> int:
        """How much is held."""
        return self._room.taken

    async def read(
        self, receive: Receive, limit_bytes: int, declared: bytes | None, what: str, tenant: str
    ) -> bytes:
        """Return the whole body, to be released.

        Raises TooLarge (`what` begins its text), TooSlow, ClientGone, or Overloaded.
        """
        held, began = 0, asyncio.get_running_loop().time()

        async def in_time() -> Message:
            if not held:  # nothing is held up
                return await receive()
            try:
                async with asyncio.timeout_at(began + WHOLE_S + held / BYTES_A_SECOND):
                    return await receive()
            except TimeoutError:
                raise TooSlow(f"{held:,} bytes came, and then too few for too long") from None

        chunks: list[bytes] = []
        try:
            async for chunk in stream_body(in_time, limit_bytes, declared, what):
                self._room.take(tenant, len(chunk))
                held += len(chunk)
                chunks.append(chunk)
        except BaseException:
            if held:
                self._room.give(tenant, held)
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self, tenant: str, body: bytes) -> None:
        """Hold a body no more."""
        if body:
            self._room.give(tenant, len(body))


#: Escapes in JSON: those of one character in two halves (UTF-16), of one half, and all others.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|\\.",
    re.DOTALL,
)


def not_json(body: bytes, error: Exception) -> Malformed:
    """Return what is told of a body that can't be decoded.

    Of half a character msgspec says what its parser stumbled on, not what it is.
    """
    for escape in _ESCAPE.finditer(body):
        if half := escape["half"]:
            where = f"{half.decode()} at byte {escape.start()}"
            return Malformed(
                f"the body is not Unicode: {where} is a lone surrogate, half of a character"
            )
    return Malformed(f"the body is not JSON: {error}")


async def read_body(receive: Receive, limit_bytes: int, declared: bytes | None, what: str) -> bytes:
    """Return the whole body. Raises TooLarge (`what` begins its text) or ClientGone."""
    chunks = [chunk async for chunk in stream_body(receive, limit_bytes, declared, what)]
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def stream_body(
    receive: Receive, limit_bytes: int, declared: bytes | None, what: str
) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises TooLarge (`what` begins its text) or ClientGone."""
    too_large = TooLarge(
        f"{what} may have {limit_bytes:,} bytes; send larger data with PUT /v1/uploads/{{name}} "
        "and put the uri of the answer into params"
    )
    if declared is not None:
        if not declared.isdigit():
            raise Malformed("Content-Length is not a number")
        if int(declared[:20]) > limit_bytes:
            raise too_large
    received = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        received += len(chunk)
        if received > limit_bytes:
            raise too_large
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return
