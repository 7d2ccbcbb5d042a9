"""Users' code on a running cluster: sent, looked at, deployed.

Rule 1: whoever sends code runs it on the workers, so that takes an admin. A token that may submit
may name code that an admin sent. Rule 2: what is in a bundle is never imported here.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from cluster.code import CODE_BYTES_MAX, BundleCard
from service.api import Api
from service.auth import Caller
from service.bodies import read_body
from service.openapi import answers, body
from service.problems import TooLarge
from service.routes.queues import read_json
from service.schemas.code import Code, Deployment, Deployments, DeployRequest
from service.showing import reply

__all__ = ["router"]

_USUAL = ("unauthorized", "forbidden", "unavailable")


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["code"], default_response_class=Response)
    admin = Annotated[Caller, Depends(api.caller("admin"))]
    anyone = Annotated[Caller, Depends(api.caller())]

    @routes.put(
        "/v1/code",
        responses=answers(
            200,
            Code,
            *_USUAL,
            "too-large",
            "invalid-input",
            description="It is durable. The same bytes again change nothing.",
        ),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def put_code(caller: admin, request: Request) -> Response:
        """Keep a bundle of modules, as `drayman deploy` makes it. It changes no type yet."""
        declared = request.headers.get("content-length")
        try:
            data = await read_body(
                request.receive,
                CODE_BYTES_MAX,
                declared.encode("latin-1") if declared else None,
                "code",
            )
        except TooLarge:
            # Its advice is for params.
            raise TooLarge(
                f"code may have {CODE_BYTES_MAX:,} bytes; put data into uploads, and what many "
                "jobs import into the workers' Python"
            ) from None
        sha, card = await api.catalog.put(data)
        return reply(_code(sha, card))

    @routes.get("/v1/code", responses=answers(200, Deployments, "unauthorized", "unavailable"))
    async def list_deployed(caller: anyone) -> Response:
        """Tell which code is deployed for which type. Any valid token may."""
        await api.catalog.learn([])
        return reply(Deployments(api.catalog.deployed))

    @routes.get(
        "/v1/code/{sha}", responses=answers(200, Code, "unauthorized", "not-found", "unavailable")
    )
    async def get_code(caller: anyone, sha: str) -> Response:
        """Tell what is in a bundle that is kept. Any valid token may."""
        return reply(_code(sha, await api.catalog.card(sha)))

    @routes.post(
        "/v1/code/deploy",
        responses=answers(
            200,
            Deployment,
            *_USUAL,
            "malformed",
            "not-found",
            "too-large",
            "invalid-input",
            description="New jobs of these types run it; within two seconds on every replica.",
        ),
        openapi_extra=body(DeployRequest),
    )
    async def deploy(caller: admin, request: Request) -> Response:
        """Run new jobs with this code. Jobs that were submitted before keep the code they had."""
        wanted = await read_json(request, DeployRequest)
        types = await api.catalog.deploy(wanted.code, wanted.types)
        return reply(Deployment(wanted.code, types))

    return routes


def _code(sha: str, card: BundleCard) -> Code:
    return Code(sha, card.modules, sorted(kind.name for kind in card.types))
