"""Uploads: data too large for params, streamed to the store and named in params by URI."""

import asyncio
import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from cluster.store.contract import ObjectWriter
from cluster.store.files import Files
from service.api import Api
from service.auth import Caller
from service.bodies import stream_body
from service.openapi import answers
from service.schemas.files import Upload
from service.showing import reply

__all__ = ["router"]

#: A hop to a thread and back costs about as much as writing this.
BLOCK_BYTES = 1024 * 1024


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["uploads"], default_response_class=Response)
    submitter = Annotated[Caller, Depends(api.caller("submit"))]

    @routes.put(
        "/v1/uploads/{name}",
        status_code=201,
        responses=answers(
            201,
            Upload,
            "unauthorized",
            "forbidden",
            "too-large",
            "invalid-input",
            "unavailable",
            description="It is durable, and replaced what had the name.",
        ),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def put_upload(caller: submitter, request: Request, name: str) -> Response:
        """Store the body. Names are the tenant's own; put the `uri` of the answer into params."""
        path = Files(api.store).upload_path(caller.tenant, name)
        writer = await asyncio.to_thread(api.store.open_write, path)
        try:
            size, sha256 = await _copy(api, request, writer)
            await asyncio.to_thread(writer.close)
        except BaseException:
            # Also when the client left or the request was cancelled: half a file is no file.
            writer.abort()
            raise
        return reply(Upload(f"upload:{name}", size, sha256), 201)

    return routes


async def _copy(api: Api, request: Request, writer: ObjectWriter) -> tuple[int, str]:
    """Write the body as it arrives; return its length and SHA-256."""
    declared = request.headers.get("content-length")
    hashed, size, block = hashlib.sha256(), 0, bytearray()

    def write(data: bytes) -> None:
        writer.write(data)
        hashed.update(data)

    async for chunk in stream_body(
        request.receive,
        api.settings.upload_bytes_max,
        declared.encode("latin-1") if declared else None,
        "an upload",
    ):
        size += len(chunk)
        block += chunk
        if len(block) >= BLOCK_BYTES:
            await asyncio.to_thread(write, bytes(block))
            block.clear()
    if block:
        await asyncio.to_thread(write, bytes(block))
    return size, hashed.hexdigest()
