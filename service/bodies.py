"""Request bodies, read under a limit: never more in memory than the limit and one chunk.

The declared length is believed only to refuse early; what counts is what arrives, so chunked
bodies are held to the same limit.
"""

from collections.abc import AsyncIterator

from starlette.types import Receive

from service.problems import Malformed, TooLarge

__all__ = ["ClientGone", "read_body", "stream_body"]


class ClientGone(Exception):
    """The client left before its request was whole: there is nobody to answer."""


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
