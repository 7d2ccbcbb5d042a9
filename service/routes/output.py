"""What a job left behind: its result, its files, its logs.

Rule: a name from the client is looked up among the names the job wrote; it never becomes a path.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from cluster.protocol import FileInfo
from jobs.errors import Conflict, NotFound
from service.api import Api, job_id_of
from service.auth import Caller
from service.openapi import answers, header
from service.schemas import FileList, file_of, reply
from service.sending import SAFE, send_file, stream_objects

__all__ = ["router"]

_SEEN = ("unauthorized", "forbidden", "not-found", "unavailable")
_RANGES = {
    "parameters": [
        header("Range", "`bytes=first-last`, one range."),
        header("If-Range", "Send the range only if this is still the ETag."),
        header("If-None-Match", "Answer 304 if this is still the ETag."),
    ]
}


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
        ),
    )
    async def get_logs(
        caller: reader,
        job_id: str,
        attempt: Annotated[int | None, Query(ge=1, description="Only this attempt.")] = None,
        task: Annotated[str | None, Query(description="Only this task.")] = None,
    ) -> Response:
        """Return what finished attempts printed and logged."""
        views = await api.gateway.attempts(job_id_of(job_id), caller.sees)
        paths = [
            view.log
            for view in views
            if view.log and attempt in (None, view.number) and task in (None, view.task_id)
        ]
        return StreamingResponse(
            stream_objects(api.store, paths),
            media_type="text/plain; charset=utf-8",
            headers=SAFE,
        )

    return routes


async def _files(api: Api, caller: Caller, job_id: str) -> dict[str, FileInfo]:
    view = await api.gateway.job(job_id_of(job_id), caller.sees)
    return {info.name: info for info in view.files}
