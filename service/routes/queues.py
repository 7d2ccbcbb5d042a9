"""Queues, dead letters and workers: what an operator looks at, and the few levers there are."""

from typing import Annotated, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response

from cluster.views import DeadLetterQuery
from service.api import Api
from service.auth import Caller
from service.bodies import read_body
from service.openapi import answers, body
from service.parameters import AnyTenant
from service.routes.jobs import PageFilter, tenant_for
from service.schemas.jobs import JobList
from service.schemas.queues import (
    DeadCount,
    DeadCounts,
    Purged,
    PurgeRequest,
    Queue,
    Queues,
    Redriven,
    RedriveRequest,
    WhichDead,
    Worker,
    Workers,
)
from service.showing import job_list, queue_of, reply, worker_of
from service.submission import decode_as

T = TypeVar("T", bound=msgspec.Struct)

__all__ = ["read_json", "router"]

#: Ten thousand ids of 36 characters, quoted, fit.
JSON_BYTES_MAX = 512 * 1024

_USUAL = ("unauthorized", "forbidden", "unavailable")
_TAKES = (*_USUAL, "malformed", "too-large", "invalid-input")

Cause = Annotated[str | None, Field(description="`error`, `timeout`, `oom`, ...")]


class DeadLetterFilter(PageFilter):
    """Query parameters of `GET /v1/dead-letters`."""

    cause: Cause = None


class CountFilter(AnyTenant):
    """Query parameters of `GET /v1/dead-letters/counts`."""

    type: str | None = None
    queue: str | None = None
    cause: Cause = None


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

    @routes.post("/v1/queues/{name}/drain", responses=answers(200, Queue, *_USUAL, "not-found"))
    async def drain_queue(caller: admin, name: str) -> Response:
        """Take nothing new into the queue: submissions are refused. What is in it is done."""
        return reply(queue_of(await api.gateway.drain_queue(name)))

    @routes.post("/v1/queues/{name}/fill", responses=answers(200, Queue, *_USUAL, "not-found"))
    async def fill_queue(caller: admin, name: str) -> Response:
        """Take submissions into the queue again."""
        return reply(queue_of(await api.gateway.drain_queue(name, fill=True)))

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

    @routes.get(
        "/v1/dead-letters/counts", responses=answers(200, DeadCounts, *_USUAL, "invalid-input")
    )
    async def count_dead_letters(
        caller: reader, query: Annotated[CountFilter, Query()]
    ) -> Response:
        """Count jobs that failed for good, by queue, type and cause."""
        found = await api.gateway.dead_counts(
            DeadLetterQuery(
                tenant=tenant_for(caller, query.tenant),
                type=query.type,
                queue=query.queue,
                cause=query.cause,
            )
        )
        counts = [DeadCount(one.queue, one.type, one.cause, one.count, one.error) for one in found]
        return reply(DeadCounts(counts))

    @routes.post(
        "/v1/dead-letters/redrive",
        responses=answers(200, Redriven, *_TAKES),
        openapi_extra=body(RedriveRequest),
    )
    async def redrive(caller: submitter, request: Request) -> Response:
        """Give every dead letter that matches `filter` a new budget, all at once or at a rate."""
        wanted = await read_json(request, RedriveRequest)
        query = _query(caller, wanted.filter)
        return reply(Redriven(await api.gateway.redrive(query, rate=wanted.rate or 0.0)))

    @routes.post(
        "/v1/dead-letters/purge",
        responses=answers(200, Purged, *_TAKES),
        openapi_extra=body(PurgeRequest),
    )
    async def purge(caller: submitter, request: Request) -> Response:
        """Let every dead letter that matches `filter` go for good. History keeps them."""
        wanted = await read_json(request, PurgeRequest)
        return reply(Purged(await api.gateway.purge(_query(caller, wanted.filter))))

    @routes.get("/v1/workers", responses=answers(200, Workers, *_USUAL))
    async def list_workers(caller: admin) -> Response:
        """Show every worker."""
        return reply(Workers([worker_of(view) for view in await api.gateway.workers()]))

    async def told(name: str, what: Literal["pause", "resume", "drain"]) -> Response:
        return reply(worker_of(await api.gateway.tell_worker(name, what)))

    @routes.post("/v1/workers/{name}/pause", responses=answers(200, Worker, *_USUAL, "not-found"))
    async def pause_worker(caller: admin, name: str) -> Response:
        """Give the worker nothing more. What it has goes on. A manager that restarts forgets it."""
        return await told(name, "pause")

    @routes.post("/v1/workers/{name}/resume", responses=answers(200, Worker, *_USUAL, "not-found"))
    async def resume_worker(caller: admin, name: str) -> Response:
        """Give the worker work again."""
        return await told(name, "resume")

    @routes.post("/v1/workers/{name}/drain", responses=answers(200, Worker, *_USUAL, "not-found"))
    async def drain_worker(caller: admin, name: str) -> Response:
        """Let the worker finish what it has, and end. Its pool starts another if it wants one."""
        return await told(name, "drain")

    return routes


def _query(caller: Caller, wanted: WhichDead) -> DeadLetterQuery:
    """Return the query for a filter. Raises Forbidden if it is not the caller's to ask."""
    return DeadLetterQuery(
        tenant=tenant_for(caller, wanted.tenant),
        type=wanted.type,
        queue=wanted.queue,
        cause=wanted.cause,
        ids=wanted.ids,
    )


async def read_json(request: Request, model: type[T]) -> T:
    """Return a small JSON body. Raises Malformed, InvalidInput or TooLarge."""
    declared = request.headers.get("content-length")
    data = await read_body(
        request.receive, JSON_BYTES_MAX, declared.encode("latin-1") if declared else None, "it"
    )
    return decode_as(data, msgspec.json.Decoder(model).decode, model)
