"""The API's own description: complete and true.

Paths come from the routes, schemas from the very structs that are encoded and decoded
(`schemas/`, `submission.py`), and a test holds real answers against them.
"""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cluster.config import Config
from service.problems import KINDS, Problem
from service.schemas.code import Code, Deployment, Deployments, DeployRequest
from service.schemas.endpoints import Endpoint, EndpointList, EndpointRequest, NewEndpoint
from service.schemas.files import FileList, Upload
from service.schemas.jobs import Attempts, BatchResult, Job, JobList, RetryRequest, Tasks
from service.schemas.operate import Health, JobTypes, Ready
from service.schemas.overview import Overview
from service.schemas.queues import (
    DeadCounts,
    Purged,
    PurgeRequest,
    Queue,
    Queues,
    Redriven,
    RedriveRequest,
    Worker,
    Workers,
)
from service.schemas.schedules import Schedule, ScheduleRequest, Schedules
from service.schemas.tokens import NewToken, Session, Token, TokenRequest, Tokens
from service.submission import BatchLine, JobRequest, WorkflowRequest

__all__ = ["answers", "body", "describe", "header"]

Part = dict[str, Any]

PUBLIC = frozenset({"/healthz", "/readyz"})
#: On every answer that says "later".
_RETRY_AFTER: Part = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}
#: On those that name a limit, in the words of the IETF's RateLimit draft.
_RATE_LIMIT: Part = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in (
        ("RateLimit-Policy", "The limit that is met, and its quota, where it is a setting."),
        ("RateLimit", "What is left of it, which is nothing, and until when."),
    )
}

#: Everything the API says or takes.
_SCHEMAS = (
    Problem,
    Job,
    JobList,
    BatchResult,
    Attempts,
    Tasks,
    FileList,
    Queue,
    Queues,
    Worker,
    Workers,
    RedriveRequest,
    Redriven,
    PurgeRequest,
    Purged,
    DeadCounts,
    RetryRequest,
    JobTypes,
    ScheduleRequest,
    Schedule,
    Schedules,
    Code,
    DeployRequest,
    Deployment,
    Deployments,
    Upload,
    EndpointRequest,
    Endpoint,
    NewEndpoint,
    EndpointList,
    TokenRequest,
    NewToken,
    Token,
    Tokens,
    Session,
    Overview,
    Health,
    Ready,
    JobRequest,
    BatchLine,
    WorkflowRequest,
    Config,
)


def answers(
    status: int,
    schema: type | None,
    *problems: str,
    description: str = "",
    media_type: str = "application/json",
    headers: Part | None = None,
) -> dict[int | str, Part]:
    """Return the `responses` of an operation: the one it is for, and the named problems."""
    content: Part = {"schema": _ref(schema)} if schema else {"schema": {"type": "string"}}
    about = description or (schema.__doc__ or "").partition("\n")[0] if schema else description
    found: dict[int | str, Part] = {
        status: {"description": about or "Done.", "content": {media_type: content}}
    }
    if headers:
        found[status]["headers"] = headers
    for name in problems:
        known = found.setdefault(KINDS[name].status, _problem())
        if KINDS[name].status in (429, 503):
            told = _RETRY_AFTER | (_RATE_LIMIT if name.endswith("overloaded") else {})
            known["headers"] = known.get("headers", {}) | told
        known["description"] = " ".join(
            filter(None, [known["description"], f"`/problems/{name}`: {KINDS[name].title}."])
        )
    return found


def body(schema: type, media_type: str = "application/json") -> Part:
    """Return an `openapi_extra` for a body that the endpoint reads by itself."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": _ref(schema)}}}}


def header(name: str, description: str) -> Part:
    """Return a parameter for an optional header."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
    }


def describe(app: FastAPI) -> Part:
    """Return the OpenAPI document of the app."""
    found = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None) if _is_fastapis_own(operation) else None
            if path not in PUBLIC:
                operation["security"] = [{"token": []}]
    parts = found.setdefault("components", {})
    parts["schemas"] = _components()
    # Its name is that of its table.
    del parts["schemas"]["PoolSettings"]["properties"]["name"]
    parts["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token that `drayman up` printed or `drayman token create` made.",
        }
    }
    return found


def _components() -> Part:
    """Return the JSON Schemas of everything the API says or takes, by name."""
    _, found = msgspec.json.schema_components(_SCHEMAS, ref_template="#/components/schemas/{name}")
    return found


def _is_fastapis_own(operation: Part) -> bool:
    content = operation["responses"].get("422", {}).get("content", {})
    return "HTTPValidationError" in str(content)


def _problem() -> Part:
    content = {"application/problem+json": {"schema": _ref(Problem)}}
    return {"description": "", "content": content}


def _ref(schema: type) -> Part:
    return {"$ref": f"#/components/schemas/{schema.__name__}"}
