"""Who is signed in: a browser's token becomes a cookie that no script can read.

Rule 1: nothing is kept here: the cookie holds the token, so any replica knows it, and a token that
is revoked ends its sessions. Rule 2: the cookie goes to `/v1` only, and to no page of another
origin, see `auth.py`.
"""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.api import Api
from service.auth import Caller, check_origin, cookie_name
from service.openapi import answers
from service.routes.queues import read_json
from service.schemas.tokens import Session
from service.showing import reply

__all__ = ["router"]


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /v1/session` takes."""

    token: str


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["tokens"], default_response_class=Response)
    anyone = Annotated[Caller, Depends(api.caller())]

    @routes.get("/v1/session", responses=answers(200, Session, "unauthorized", "unavailable"))
    async def get_session(caller: anyone) -> Response:
        """Tell whose token this is and what it may do."""
        return reply(_session(caller), headers={"Cache-Control": "no-store"})

    # These two are the dashboard's own: programs send their token with each request.
    @routes.post("/v1/session", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        """Let the browser send the token by itself from now on."""
        check_origin(dict(request.scope["headers"]), "POST")
        wanted = await read_json(request, SignIn)
        token = wanted.token.strip()
        caller = await api.authenticator.identify(b"Bearer " + token.encode())
        cookie = {"Set-Cookie": _cookie(request, token), "Cache-Control": "no-store"}
        return reply(_session(caller), headers=cookie)

    @routes.delete("/v1/session", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        """Let the browser forget the token. The token itself goes on working."""
        check_origin(dict(request.scope["headers"]), "DELETE")
        return Response(
            status_code=204, headers={"Set-Cookie": _cookie(request, "") + "; Max-Age=0"}
        )

    return routes


def _session(caller: Caller) -> Session:
    return Session(caller.tenant, sorted(caller.scopes))


def _cookie(request: Request, token: str) -> str:
    headers = request.headers
    name = cookie_name(headers.get("host", "").encode("latin-1")).decode("latin-1")
    # What a proxy says is believed: all it can do is to have the cookie sent less often.
    is_secret = "https" in (request.url.scheme, headers.get("x-forwarded-proto"))
    return f"{name}={token}; Path=/v1; HttpOnly; SameSite=Strict" + "; Secure" * is_secret
