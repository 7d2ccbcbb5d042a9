"""Where a tenant's webhooks go, by name, and the secrets that sign what goes there.

Rule 1: an endpoint is its tenant's own; whoever may submit for the tenant may put one. Rule 2: the
text of a secret is shown at its birth only. Rule 3: a replaced secret signs on for a day, beside
the new one, so that a receiver can change over while deliveries arrive.
"""

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from cluster.endpoints import Endpoints
from jobs.endpoint import DEFAULT
from jobs.errors import InvalidInput
from jobs.library.http.place import Place
from service.api import Api
from service.auth import Caller
from service.openapi import answers, body
from service.parameters import OwnTenant
from service.routes.jobs import tenant_for
from service.routes.queues import read_json
from service.schemas.endpoints import Endpoint, EndpointList, EndpointRequest, NewEndpoint
from service.schemas.jobs import Job
from service.showing import accepted_job, endpoint_of, reply
from service.submission import JobRequest, RequestKey

__all__ = ["router"]

_USUAL = ("unauthorized", "forbidden", "invalid-input", "unavailable")
#: They hold a secret.
_UNKEPT = {"Cache-Control": "no-store"}

Whose = Annotated[OwnTenant, Query()]


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["endpoints"], default_response_class=Response)
    reader = Annotated[Caller, Depends(api.caller("read"))]
    submitter = Annotated[Caller, Depends(api.caller("submit"))]
    endpoints = Endpoints(api.store)

    async def shown(tenant: str, name: str) -> Endpoint:
        return endpoint_of(await asyncio.to_thread(endpoints.get, tenant, name, time.time()))

    @routes.get("/v1/endpoints", responses=answers(200, EndpointList, *_USUAL))
    async def list_endpoints(caller: reader, query: Whose) -> Response:
        """List the tenant's endpoints by name."""
        found = await asyncio.to_thread(endpoints.of, _whose(caller, query.tenant), time.time())
        return reply(EndpointList([endpoint_of(record) for record in found]))

    @routes.get("/v1/endpoints/{name}", responses=answers(200, Endpoint, *_USUAL, "not-found"))
    async def get_endpoint(caller: reader, name: str, query: Whose) -> Response:
        """Show an endpoint, and whether it is disabled."""
        return reply(await shown(_whose(caller, query.tenant), name))

    @routes.put(
        "/v1/endpoints/{name}",
        responses=answers(
            200,
            Endpoint,
            *_USUAL,
            "malformed",
            "too-large",
            description="It was there: it leads here now, and is not disabled any more.",
        )
        | answers(201, NewEndpoint, description="It is new: keep its secret."),
        openapi_extra=body(EndpointRequest),
    )
    async def put_endpoint(caller: submitter, name: str, request: Request) -> Response:
        """Let webhooks to this name go to a URL. The secret of a new one can't be shown again."""
        wanted = await read_json(request, EndpointRequest)
        if wanted.url:
            _check(wanted.url)
        record, secret = await asyncio.to_thread(
            endpoints.put, caller.tenant, name, wanted.url, time.time()
        )
        if not secret:
            return reply(endpoint_of(record))
        return reply(NewEndpoint(secret, endpoint_of(record)), 201, _UNKEPT)

    @routes.delete(
        "/v1/endpoints/{name}",
        status_code=204,
        responses=answers(204, None, *_USUAL, "not-found")
        | {204: {"description": "It is gone, and so are its secrets."}},
    )
    async def delete_endpoint(caller: submitter, name: str) -> Response:
        """Forget an endpoint. What is still to be delivered to it fails, and can be retried."""
        await asyncio.to_thread(endpoints.delete, caller.tenant, name)
        return Response(status_code=204)

    @routes.post(
        "/v1/endpoints/{name}/rotate",
        responses=answers(
            200,
            NewEndpoint,
            *_USUAL,
            "not-found",
            "conflict",
            description="Its new secret. The old one signs too for another 24 hours.",
        ),
    )
    async def rotate_endpoint(caller: submitter, name: str) -> Response:
        """Make a new secret for an endpoint. It can't be shown again."""
        secret = await asyncio.to_thread(endpoints.rotate, caller.tenant, name, time.time())
        return reply(NewEndpoint(secret, await shown(caller.tenant, name)), headers=_UNKEPT)

    @routes.post(
        "/v1/endpoints/{name}/test",
        status_code=202,
        responses=answers(
            202,
            Job,
            *_USUAL,
            "not-found",
            "tenant-overloaded",
            "overloaded",
            description="The job that delivers it: it says what the receiver answered.",
        ),
    )
    async def test_endpoint(caller: submitter, name: str) -> Response:
        """Send an event of type `endpoint.test`, signed as any other, and tried once."""
        if name == DEFAULT:
            raise InvalidInput("name", f"{DEFAULT!r} leads nowhere; test another")
        record = await asyncio.to_thread(endpoints.get, caller.tenant, name, time.time())
        now = time.time()
        request = JobRequest("notify.webhook", _params(record.name, now), max_attempts=1, code="")
        spec = api.submissions.spec(request, caller, RequestKey(), now)
        accepted = await api.gateway.submit(spec)
        job = accepted_job(accepted, spec, now)
        return reply(job, 202, {"Location": job.links.self})

    return routes


def _whose(caller: Caller, tenant: str | None) -> str:
    """Return whose endpoints: the caller's own, or for an admin another's."""
    return tenant_for(caller, tenant) or caller.tenant


def _check(url: str) -> None:
    """Refuse what is no URL; which addresses it may lead to is looked at with each delivery."""
    try:
        Place.of(url)
    except ValueError as error:
        raise InvalidInput("url", str(error)) from None


def _params(name: str, now: float) -> msgspec.Raw:
    event: dict[str, Any] = {
        "type": "endpoint.test",
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "data": {"endpoint": name},
    }
    return msgspec.Raw(msgspec.json.encode({"endpoint": name, "event": event}))
