"""Tokens, for admins: made, listed, revoked. The text of one is shown at its birth only."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.api import Api
from service.auth import Caller
from service.openapi import answers, body
from service.routes.queues import read_json
from service.schemas.tokens import NewToken, Token, TokenRequest, Tokens
from service.showing import reply, token_of

__all__ = ["router"]

_USUAL = ("unauthorized", "forbidden", "invalid-input", "unavailable")


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["tokens"], default_response_class=Response)
    admin = Annotated[Caller, Depends(api.caller("admin"))]

    @routes.post(
        "/v1/tokens",
        status_code=201,
        responses=answers(201, NewToken, *_USUAL, "malformed", "too-large"),
        openapi_extra=body(TokenRequest),
    )
    async def create_token(caller: admin, request: Request) -> Response:
        """Make a token for a tenant. It can't be shown again."""
        wanted = await read_json(request, TokenRequest)
        token, record = await asyncio.to_thread(
            api.tokens.create, wanted.tenant, wanted.scopes, wanted.name
        )
        shown = token_of(record)
        made = NewToken(token, shown.id, shown.tenant, shown.scopes, shown.name, shown.created_at)
        return reply(made, 201, {"Cache-Control": "no-store"})

    @routes.get("/v1/tokens", responses=answers(200, Tokens, *_USUAL))
    async def list_tokens(caller: admin) -> Response:
        """List the tokens that work, oldest first."""
        records = await asyncio.to_thread(api.tokens.read, {})
        shown = sorted(map(token_of, records.values()), key=lambda token: token.created_at)
        return reply(Tokens(shown))

    @routes.delete("/v1/tokens/{token_id}", responses=answers(200, Token, *_USUAL, "not-found"))
    async def revoke_token(caller: admin, token_id: str) -> Response:
        """Revoke a token by its id. It stops working within five seconds."""
        return reply(token_of(await asyncio.to_thread(api.tokens.revoke, token_id)))

    return routes
