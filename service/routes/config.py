"""The config, for admins: what is in force, and another one in its place.

Rule 1: it goes and comes whole; `ETag` is its revision. Rule 2: whoever sends `If-Match` overwrites
no change that they have not seen.
"""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from cluster.config import Config
from jobs.errors import Conflict
from service.api import Api
from service.auth import Caller
from service.bodies import not_json, read_body
from service.config_file import BYTES_MAX, config_of, table_of
from service.openapi import answers, body, header
from service.problems import FieldError, InvalidRequest, PreconditionFailed, TooLarge

__all__ = ["router"]

_USUAL = ("unauthorized", "forbidden", "unavailable")
_ETAG = {"ETag": {"description": "Its revision.", "schema": {"type": "string"}}}


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["config"], default_response_class=Response)
    admin = Annotated[Caller, Depends(api.caller("admin"))]

    @routes.get("/v1/config", responses=answers(200, Config, *_USUAL, headers=_ETAG))
    async def get_config(caller: admin) -> Response:
        """Show the config in force: every setting, those left at their defaults included."""
        return _shown(*await api.gateway.config())

    @routes.put(
        "/v1/config",
        responses=answers(
            200,
            Config,
            *_USUAL,
            "malformed",
            "precondition-failed",
            "too-large",
            "invalid-input",
            headers=_ETAG,
        ),
        openapi_extra=body(Config)
        | {"parameters": [header("If-Match", "Only if this is still its `ETag`; else 412.")]},
    )
    async def put_config(caller: admin, request: Request) -> Response:
        """Put another config in force, whole: what it leaves out has its default."""
        config = _checked(await _json(request))
        if_match = request.headers.get("if-match")
        if if_match is None or if_match.strip() == "*":
            return _shown(config, await api.gateway.configure(config, None))
        current, revision = await api.gateway.config()
        if current == config:
            return _shown(current, revision)  # it may be the same request, its answer lost
        if _tag(revision) not in {tag.strip() for tag in if_match.split(",")}:
            raise _changed_meanwhile(revision)
        try:
            return _shown(config, await api.gateway.configure(config, revision))
        except Conflict:
            raise _changed_meanwhile(revision + 1) from None

    return routes


def _changed_meanwhile(revision: int) -> PreconditionFailed:
    return PreconditionFailed(
        f"the config was changed meanwhile, to revision {revision} or later; read it again"
    )


def _tag(revision: int) -> str:
    return f'"{revision}"'


def _shown(config: Config, revision: int) -> Response:
    return Response(
        msgspec.json.encode(table_of(config, everything=True)),
        headers={"ETag": _tag(revision), "Cache-Control": "no-store"},
        media_type="application/json",
    )


async def _json(request: Request) -> object:
    declared = request.headers.get("content-length")
    try:
        data = await read_body(
            request.receive, BYTES_MAX, declared.encode("latin-1") if declared else None, "it"
        )
    except TooLarge:
        raise TooLarge(f"a config may have {BYTES_MAX:,} bytes") from None  # not as params may
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(data, error) from None


def _checked(table: object) -> Config:
    config, problems = config_of(table)
    if config is None:
        raise InvalidRequest([FieldError(at, reason) for at, reason in problems])
    return config
