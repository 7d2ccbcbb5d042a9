"""The HTTP API, put together from its parts.

Rule 1: nothing here waits or reads a file: `create_app` can be called anywhere. Rule 2: whatever
goes wrong is answered with a problem (`problems.py`), including paths that do not exist.
"""

import uuid
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.follow import Follower
from cluster.store.contract import Objects
from cluster.store.journal import Journal
from jobs.definition import JobDefinition
from service.api import Api
from service.api_settings import ApiSettings
from service.auth import Authenticator, TokenStore
from service.catalog import Catalog
from service.door import Door
from service.metrics import Metrics
from service.openapi import describe
from service.ports import Gateway
from service.problems import problem_response
from service.routes import (
    code,
    config,
    dashboard,
    endpoints,
    events,
    jobs,
    operate,
    output,
    overview,
    pages,
    queues,
    schedules,
    session,
    submit,
    tokens,
    uploads,
)
from service.submission import Submissions
from service.tracing import TRACED_PATHS, Traced

__all__ = ["create_app"]


#: Where the busiest call of all goes.
SUBMIT = "/v1/jobs"


class _Api(FastAPI):
    """Lets the busiest call past the routing and all that is around it, which costs more."""

    busiest: Door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == SUBMIT and scope["method"] == "POST":
            await self.busiest(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(
    gateway: Gateway,
    registry: Mapping[str, JobDefinition],
    store: Objects,
    settings: ApiSettings | None = None,
    *,
    journal: Objects | None = None,
    tracer: Any = None,
) -> FastAPI:
    """Return the API over `gateway`, for the types of `registry` and those that are deployed.

    `journal` is where the journal lies, if not in the store. With a `tracer` (OpenTelemetry's),
    what submits has a span.
    """
    settings = settings or ApiSettings()
    catalog = Catalog(registry, store)
    token_store = TokenStore(store)
    api = Api(
        gateway=gateway,
        catalog=catalog,
        store=store,
        settings=settings,
        tokens=token_store,
        authenticator=Authenticator(token_store),
        submissions=Submissions(catalog, store, settings),
        metrics=Metrics(),
        follower=Follower(gateway, Journal(journal or store), name=uuid.uuid4().hex),
    )
    app = _Api(
        title="Drayman",
        summary="Long-running jobs on Ray: accept in milliseconds, run for hours, lose nothing.",
        version=version("drayman"),
        # FastAPI's own pages load scripts from another host; ours are in `routes/pages.py`.
        docs_url=None,
        redoc_url=None,
        # A redirect would drop the body and method of a POST with many clients.
        redirect_slashes=False,
        # `metrics.py` counts; FastAPI's own would be looked up in the environment on every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    endpoint = submit.SubmitEndpoint(api)
    rooms = [submit.router(api, endpoint), pages.router(app), dashboard.router()]
    rooms += [room.router(api) for room in (endpoints, events, overview, session)]
    rooms += [
        room.router(api)
        for room in (jobs, schedules, output, queues, uploads, operate, tokens, code, config)
    ]
    for room in rooms:
        app.include_router(room)

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            error.headers = {"Allow": ", ".join(_methods(rooms, request.url.path))}
        is_unknown = isinstance(error, HTTPException) and error.status_code == 404
        page = dashboard.unknown_page(request) if is_unknown else None
        return page or problem_response(error)

    async def refuse_websocket(websocket: WebSocket, error: Exception) -> None:
        await websocket.send_denial_response(problem_response(error))

    app.add_exception_handler(HTTPException, refuse)
    app.add_exception_handler(RequestValidationError, refuse)
    app.add_exception_handler(WebSocketRequestValidationError, refuse_websocket)
    busiest: ASGIApp = endpoint
    if tracer is not None:
        busiest = Traced(endpoint, tracer)
        app.add_middleware(Traced, tracer=tracer, paths=TRACED_PATHS)
    app.add_middleware(Door, metrics=api.metrics)
    app.busiest = Door(busiest, api.metrics, route=SUBMIT)
    described: dict[str, object] = {}

    def openapi() -> dict[str, object]:
        if not described:
            described.update(describe(app))
        return described

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to do this
    return app


def _methods(rooms: list[APIRouter], path: str) -> list[str]:
    """Return every method that some route takes at this path; Starlette names one route's only."""
    routes = [route for room in rooms for route in room.routes if isinstance(route, Route)]
    fitting = [route for route in routes if route.path_regex.match(path)]
    return sorted({method for route in fitting for method in route.methods or ()})
