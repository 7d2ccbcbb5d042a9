"""What a job left behind: its result, its files, its logs.

Rule: a name from the client is looked up among the names the job wrote; it never becomes a path.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from cluster.protocol import FileInfo
from cluster.store.contract import Objects
from cluster.store.files import log_path
from jobs.errors import Conflict, Corrupt, NotFound
from service.api import Api, job_id_of
from service.auth import Caller
from service.headers import not_modified
from service.openapi import answers, header
from service.parameters import Parameters
from service.schemas.files import FileList
from service.sending import CHUNK_BYTES, SAFE, send_file, stream_objects
from service.showing import file_of, reply

__all__ = ["router"]

_SEEN = ("unauthorized", "forbidden", "not-found", "unavailable")
#: Logs of running attempts in one answer: each is in memory meanwhile, and has at most 1 MiB.
RUNNING_MAX = 16
_GROWING = {
    "ETag": {"description": "Of what was printed until now.", "schema": {"type": "string"}},
    "Drayman-Complete": {
        "description": "`false` until the job has ended: there may be more later.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
}
_RANGES = {
    "parameters": [
        header("Range", "`bytes=first-last`, one range."),
        header("If-Range", "Send the range only if this is still the ETag."),
        header("If-None-Match", "Answer 304 if this is still the ETag."),
    ]
}


class LogFilter(Parameters):
    """Query parameters of `GET /v1/jobs/{job_id}/logs`."""

    attempt: Annotated[int | None, Field(ge=1, description="Only this attempt.")] = None
    task: Annotated[str | None, Field(description="Only this task.")] = None


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["output"], default_response_class=Response)
    reader = Annotated[Caller, Depends(api.caller("read"))]

    @routes.get(
        "/v1/jobs/{job_id}/result",
        responses=answers(200, None, *_SEEN, "conflict", description="What the handler returned."),
    )
    async def get_result(caller: reader, job_id: str) -> Response:
        """Return what the handler returned, as JSON. 409 until the job is completed."""
        view = await api.gateway.job(job_id_of(job_id), caller.sees)
        if view.status != "completed":
            why = f": {view.error.message}" if view.error else ""
            raise Conflict(f"the job is {view.status}, only a completed job has a result{why}")
        if view.result_ref is None:
            return Response(bytes(view.result), media_type="application/json", headers=SAFE)
        await asyncio.to_thread(_check, api.store, view.result_ref, view.result_sha256)
        return StreamingResponse(
            stream_objects(api.store, [view.result_ref]),
            media_type="application/json",
            headers=SAFE,
        )

    @routes.get("/v1/jobs/{job_id}/files", responses=answers(200, FileList, *_SEEN))
    async def list_files(caller: reader, job_id: str) -> Response:
        """List the files that the job wrote."""
        files = await _files(api, caller, job_id)
        return reply(FileList([file_of(job_id, info) for info in files.values()]))

    @routes.head("/v1/jobs/{job_id}/files/{name}", include_in_schema=False)
    @routes.get(
        "/v1/jobs/{job_id}/files/{name}",
        responses=answers(
            200,
            None,
            *_SEEN,
            "conflict",
            "range-not-satisfiable",
            description="The file.",
            media_type="application/octet-stream",
        )
        | {206: {"description": "The range."}, 304: {"description": "The client's copy is good."}},
        openapi_extra=_RANGES,
    )
    async def get_file(request: Request, caller: reader, job_id: str, name: str) -> Response:
        """Download a file, whole or a range of it. 409 for an ephemeral one."""
        files = await _files(api, caller, job_id)
        if name not in files:
            raise NotFound("file", name)
        return await send_file(request, api.store, files[name])

    @routes.head("/v1/jobs/{job_id}/tasks/{task_id}/files/{name}", include_in_schema=False)
    @routes.get(
        "/v1/jobs/{job_id}/tasks/{task_id}/files/{name}",
        responses=answers(
            200,
            None,
            *_SEEN,
            "conflict",
            "range-not-satisfiable",
            description="The file.",
            media_type="application/octet-stream",
        )
        | {206: {"description": "The range."}, 304: {"description": "The client's copy is good."}},
        openapi_extra=_RANGES,
    )
    async def get_task_file(
        request: Request, caller: reader, job_id: str, task_id: str, name: str
    ) -> Response:
        """Download a file that one task kept, whole or a range of it. 409 for an ephemeral one."""
        page = await api.gateway.tasks(job_id_of(job_id), caller.sees, ids=[task_id])
        for info in page.tasks[0].files:
            if info.name == name:
                return await send_file(request, api.store, info)
        raise NotFound("file", name)

    @routes.get(
        "/v1/jobs/{job_id}/logs",
        responses=answers(
            200,
            None,
            *_SEEN,
            "invalid-input",
            description="What the attempts printed, oldest first.",
            media_type="text/plain",
            headers=_GROWING,
        )
        | {304: {"description": "Nothing was printed since."}},
        openapi_extra={
            "parameters": [header("If-None-Match", "Answer 304 if this is still the ETag.")]
        },
    )
    async def get_logs(
        request: Request,
        caller: reader,
        job_id: str,
        query: Annotated[LogFilter, Query()],
    ) -> Response:
        """Return what attempts printed and logged; of one that runs, what it has until now.

        Of the attempts that run, the first 16 are there, and of the chunks that are done, none: ask
        for a task to see what another printed.
        """
        job = await api.gateway.job(job_id_of(job_id), caller.sees)
        real_id = job.alias_of or job.id
        # Where each log lies, or what it has until now.
        logs: list[str | bytes] = []
        running = 0
        is_known = False
        for view in await api.gateway.attempts(job_id_of(job_id), caller.sees):
            if query.task not in (None, view.task_id):
                continue
            is_known = True
            if query.attempt not in (None, view.number):
                continue
            if view.outcome != "running":
                logs += [view.log] if view.log else []
            elif (running := running + 1) <= RUNNING_MAX:
                path = log_path(real_id, view.task_id, view.number)
                logs.append(await asyncio.to_thread(_so_far, api.store, path))
        if query.task is not None and not is_known and job.steps:
            # The attempts of a chunk that is done are not among those; their logs are.
            for number in await _attempts_of_chunk(api, caller, job_id, query.task):
                if query.attempt in (None, number):
                    path = log_path(real_id, query.task, number)
                    logs.append(await asyncio.to_thread(_so_far, api.store, path))
        etag = _etag(logs)
        headers = SAFE | {
            "ETag": etag,
            "Cache-Control": "private, no-cache",
            "Drayman-Complete": "false" if job.finished_at is None else "true",
        }
        if not_modified(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        return StreamingResponse(
            _stream(api.store, logs), media_type="text/plain; charset=utf-8", headers=headers
        )

    return routes


async def _attempts_of_chunk(api: Api, caller: Caller, job_id: str, task_id: str) -> Iterable[int]:
    try:
        page = await api.gateway.tasks(job_id, caller.sees, ids=[task_id])
    except NotFound:
        return ()
    return range(1, page.tasks[0].attempts + 1) if page.tasks else ()


async def _files(api: Api, caller: Caller, job_id: str) -> dict[str, FileInfo]:
    view = await api.gateway.job(job_id_of(job_id), caller.sees)
    return {info.name: info for info in view.files}


def _check(store: Objects, path: str, sha256: str) -> None:
    """Raise Corrupt if the result that lies there is not what the handler returned, or NotFound."""
    digest = hashlib.sha256()
    with store.open_read(path) as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    if sha256 and digest.hexdigest() != sha256:
        raise Corrupt(path, "the result is not what the handler returned")


def _so_far(store: Objects, path: str) -> bytes:
    """Return the log of an attempt that runs, whole: it is replaced as it grows."""
    try:
        return store.get(path)
    except NotFound:
        return b""  # It has printed nothing yet, or not been stored.


def _etag(logs: Iterable[str | bytes]) -> str:
    """Name an answer. The log of an attempt that has ended is never written again."""
    digest = hashlib.sha256()
    for log in logs:
        digest.update(hashlib.sha256(log if isinstance(log, bytes) else log.encode()).digest())
    return f'"{digest.hexdigest()}"'


async def _stream(store: Objects, logs: Iterable[str | bytes]) -> AsyncIterator[bytes]:
    for log in logs:
        if isinstance(log, bytes):
            yield log
        else:
            async for chunk in stream_objects(store, [log]):
                yield chunk
