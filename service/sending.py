"""Sends objects of the store over HTTP: whole, in ranges, or not at all if the client has them.

Rule 1: the size is known and sent before the first byte; an object that turns out shorter breaks
the connection rather than end like a whole one. Rule 2: what a job wrote is never trusted by a
browser: no sniffing, no scripts, saved rather than shown.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cluster.protocol import FileInfo
from cluster.store.contract import Objects
from jobs.errors import Conflict, Corrupt
from service.headers import ByteRange, byte_range, not_modified

__all__ = ["SAFE", "send_file", "stream_objects"]

CHUNK_BYTES = 1024 * 1024

#: On everything that a job or a client wrote.
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


async def send_file(request: Request, store: Objects, info: FileInfo) -> Response:
    """Return the file, the one range asked for, or 304. Raises NotFound, Conflict, Corrupt."""
    if info.is_ephemeral:
        raise Conflict(f"the file {info.name!r} is ephemeral: only tasks of its job read it")
    etag = f'"{info.sha256}"'
    headers = SAFE | {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": _disposition(info.name),
    }
    if not_modified(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    size = await asyncio.to_thread(store.size, info.path)
    if size != info.bytes:
        raise Corrupt(info.path, f"has {size} bytes, its record says {info.bytes}")
    wanted = byte_range(request.headers.get("range"), request.headers.get("if-range"), etag, size)
    part = wanted or ByteRange(0, size)
    headers["Content-Length"] = str(part.length)
    if wanted:
        last = part.start + part.length - 1
        headers["Content-Range"] = f"bytes {part.start}-{last}/{size}"
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=info.media_type)
    return StreamingResponse(
        _stream(store, info.path, part), status, headers=headers, media_type=info.media_type
    )


async def stream_objects(store: Objects, paths: list[str]) -> AsyncIterator[bytes]:
    """Yield whole objects, one after the other."""
    for path in paths:
        size = await asyncio.to_thread(store.size, path)
        async for chunk in _stream(store, path, ByteRange(0, size)):
            yield chunk


async def _stream(store: Objects, path: str, part: ByteRange) -> AsyncIterator[bytes]:
    left = part.length
    if not left:
        return
    file = await _opened(store, path)
    try:
        await asyncio.to_thread(file.seek, part.start)
        while left:
            chunk = await asyncio.to_thread(file.read, min(left, CHUNK_BYTES))
            if not chunk:
                raise Corrupt(path, f"ended {left} bytes early")
            left -= len(chunk)
            yield chunk
    finally:
        file.close()


async def _opened(store: Objects, path: str) -> BinaryIO:
    opening = asyncio.ensure_future(asyncio.to_thread(store.open_read, path))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # Whoever asked has left, but a thread can't be: it opens the file all the same.
        opening.add_done_callback(_close)
        raise


def _close(opening: "asyncio.Future[BinaryIO]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _disposition(name: str) -> str:
    """Return a header that saves under `name`: plain for old clients, RFC 8187 for the rest."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
