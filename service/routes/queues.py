"""Queues, dead letters and workers: what an operator looks at, and the few levers there are."""

from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response

from cluster.views import DeadLetterQuery
from jobs.errors import InvalidInput
from service.api import Api
from service.auth import Caller
from service.bodies import read_body
from service.openapi import answers, body
from service.problems import Malformed
from service.routes.jobs import PageFilter, tenant_for
from service.schemas import (
    JobList,
    Queue,
    Queues,
    Redriven,
    RedriveRequest,
    Workers,
    job_list,
    queue_of,
    reply,
    worker_of,
)

T = TypeVar("T", bound=msgspec.Struct)

__all__ = ["read_json", "router"]

#: Ten thousand ids of 36 characters, quoted, fit.
JSON_BYTES_MAX = 512 * 1024

_USUAL = ("unauthorized", "forbidden", "unavailable")


class DeadLetterFilter(PageFilter):
    """Query parameters of `GET /v1/dead-letters`."""

    cause: Annotated[str | None, Field(description="`error`, `timeout`, `oom`, ...")] = None


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["queues"], default_response_class=Response)
    reader = Annotated[Caller, Depends(api.caller("read"))]
    submitter = Annotated[Caller, Depends(api.caller("submit"))]
    admin = Annotated[Caller, Depends(api.caller("admin"))]

    @routes.get("/v1/queues", responses=answers(200, Queues, *_USUAL))
    async def list_queues(caller: reader) -> Response:
        """Show every queue: depth, rate, age of the oldest, workers."""
        return reply(Queues([queue_of(view) for view in await api.gateway.queues()]))

    @routes.post("/v1/queues/{name}/pause", responses=answers(200, Queue, *_USUAL, "not-found"))
    async def pause_queue(caller: admin, name: str) -> Response:
        """Start nothing more from the queue. What runs goes on; submissions are still taken."""
        return reply(queue_of(await api.gateway.pause(name)))

    @routes.post("/v1/queues/{name}/resume", responses=answers(200, Queue, *_USUAL, "not-found"))
    async def resume_queue(caller: admin, name: str) -> Response:
        """Start from the queue again."""
        return reply(queue_of(await api.gateway.resume(name)))

    @routes.get("/v1/dead-letters", responses=answers(200, JobList, *_USUAL, "invalid-input"))
    async def list_dead_letters(
        caller: reader, query: Annotated[DeadLetterFilter, Query()]
    ) -> Response:
        """List jobs that failed for good, longest dead first, with why."""
        page = await api.gateway.dead_letters(
            DeadLetterQuery(
                tenant=tenant_for(caller, query.tenant),
                type=query.type,
                queue=query.queue,
                cause=query.cause,
                after=query.after,
                limit=query.limit,
            )
        )
        return reply(job_list(page))

    @routes.post(
        "/v1/dead-letters/redrive",
        responses=answers(200, Redriven, *_USUAL, "malformed", "too-large", "invalid-input"),
        openapi_extra=body(RedriveRequest),
    )
    async def redrive(caller: submitter, request: Request) -> Response:
        """Give every dead letter that matches `filter` a new budget."""
        wanted = (await read_json(request, RedriveRequest)).filter
        count = await api.gateway.redrive(
            DeadLetterQuery(
                tenant=tenant_for(caller, wanted.tenant),
                type=wanted.type,
                queue=wanted.queue,
                cause=wanted.cause,
                ids=wanted.ids,
            )
        )
        return reply(Redriven(count))

    @routes.get("/v1/workers", responses=answers(200, Workers, *_USUAL))
    async def list_workers(caller: admin) -> Response:
        """Show every worker."""
        return reply(Workers([worker_of(view) for view in await api.gateway.workers()]))

    return routes


async def read_json(request: Request, model: type[T]) -> T:
    """Return a small JSON body. Raises Malformed, InvalidInput or TooLarge."""
    declared = request.headers.get("content-length")
    data = await read_body(
        request.receive, JSON_BYTES_MAX, declared.encode("latin-1") if declared else None, "it"
    )
    try:
        return msgspec.json.decode(data, type=model)
    except msgspec.ValidationError as error:
        raise InvalidInput("body", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from None
