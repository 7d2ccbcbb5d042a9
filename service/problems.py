"""How the API refuses: RFC 9457 problem details, and the only place that knows HTTP codes.

Rule 1: `type` is stable and resolves to a short page; clients key on it, never on `detail`.
Rule 2: an answer never holds a stack trace or a path of the store. Rule 3: whatever says "wait"
carries `Retry-After`.
"""

import math
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jobs.errors import (
    Conflict,
    Corrupt,
    DraymanError,
    InvalidInput,
    KeyReused,
    LeaseLost,
    NotFound,
    Overloaded,
    Unavailable,
)

__all__ = [
    "KINDS",
    "FieldError",
    "Forbidden",
    "InvalidRequest",
    "Malformed",
    "PreconditionFailed",
    "Problem",
    "ProblemKind",
    "RangeNotSatisfiable",
    "RequestError",
    "TooLarge",
    "TooSlow",
    "Unauthorized",
    "problem_of",
    "problem_response",
]

MEDIA_TYPE = "application/problem+json"


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with a request."""

    #: Where it is: `params.year`, `priority`, `Idempotency-Key`.
    field: str
    reason: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = ""
    errors: list[FieldError] = []
    #: How long to wait before trying again; the `Retry-After` header says the same, rounded up.
    retry_after_s: float | None = None
    #: The job that the refusal is about.
    job_id: str | None = None
    #: Limits that are met, as `RateLimit-Policy` names them.
    violated_policies: list[str] = msgspec.field(default=[], name="violated-policies")


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One entry of the catalogue; `/problems/<name>` shows it."""

    status: int
    title: str
    #: What it means and what to do, for the page.
    help: str


KINDS: dict[str, ProblemKind] = {
    "malformed": ProblemKind(
        400,
        "The request is not well-formed",
        "The body is not valid JSON (or UTF-8), or a header can't be read. "
        "`detail` says where. Correct it and send again; nothing was changed.",
    ),
    "unauthorized": ProblemKind(
        401,
        "A valid token is needed",
        "Send `Authorization: Bearer <token>`. `drayman up` prints an admin token; "
        "`drayman token create` makes more. A revoked token stops working within seconds.",
    ),
    "forbidden": ProblemKind(
        403,
        "The token lacks a scope",
        "The token is valid but may not do this. `detail` names the scope that is missing; "
        "an operator can make a token that has it with `drayman token create --scope`.",
    ),
    "not-found": ProblemKind(
        404,
        "There is no such thing",
        "Nothing has this name, or it belongs to another tenant: the two look the same on purpose.",
    ),
    "method-not-allowed": ProblemKind(
        405,
        "The method does not apply here",
        "The path exists, but not for this method. The `Allow` header lists those that do.",
    ),
    "conflict": ProblemKind(
        409,
        "The state does not allow this now",
        "For example: cancelling a job that has ended, or asking for the result of one that has "
        "not. Read the job again and decide anew; nothing was changed.",
    ),
    "lease-lost": ProblemKind(
        409,
        "Another worker holds this task now",
        "Only workers meet this: stop, discard the output, ask for new work.",
    ),
    "precondition-failed": ProblemKind(
        412,
        "It is not what `If-Match` says any more",
        "Somebody changed it since you read it. Read it again, decide anew, and send the new "
        "`ETag`; nothing was changed.",
    ),
    "too-slow": ProblemKind(
        408,
        "The body came too slowly",
        "What has come of a request is kept until it is whole, so it has to be whole in time: "
        "half a minute, and a second more for each 16 KiB. Send it again, or less at once.",
    ),
    "too-large": ProblemKind(
        413,
        "The request is too large",
        "Params may be 1 MiB, a batch 10,000 lines. Send larger data with "
        "`PUT /v1/uploads/{name}` and put the `uri` of the answer into params.",
    ),
    "range-not-satisfiable": ProblemKind(
        416,
        "The range lies outside the file",
        "`Content-Range` of the answer says how long the file is.",
    ),
    "invalid-input": ProblemKind(
        422,
        "Something in the request is wrong",
        "`errors` lists each field and the reason. Correct them and send again; "
        "nothing was changed.",
    ),
    "key-reused": ProblemKind(
        422,
        "The idempotency key belongs to another request",
        "The same key was used for a different request within its window (24 hours). "
        "`job_id` is the job it made. Send a new key for a new request.",
    ),
    "tenant-overloaded": ProblemKind(
        429,
        "Your tenant has reached its limit",
        "Wait as long as `Retry-After` says, and a little more by chance, then send the same "
        "request with the same idempotency key. `violated-policies` names the limit. Other tenants "
        "are not affected.",
    ),
    "overloaded": ProblemKind(
        503,
        "The queue or the system is full",
        "Refused to protect what was accepted before. Wait as long as `Retry-After` says, and a "
        "little more by chance, then send the same request with the same idempotency key. "
        "`violated-policies` names the limit.",
    ),
    "unavailable": ProblemKind(
        503,
        "Something that is needed does not answer now",
        "Nothing was changed unless `detail` says so. Wait as long as `Retry-After` says, then "
        "send the same request with the same idempotency key.",
    ),
    "corrupt": ProblemKind(
        500,
        "Stored data is not what was written",
        "An operator has to look: the server's log says what and where.",
    ),
    "internal": ProblemKind(
        500,
        "A defect in Drayman",
        "The server's log holds the details. Sending the same request again with the same "
        "idempotency key is safe.",
    ),
}


class RequestError(Exception):
    """Root of what only the HTTP side can find wrong."""


class Malformed(RequestError):
    """The bytes are not what they claim to be."""


class Unauthorized(RequestError):
    """No token, or none that is known."""


class Forbidden(RequestError):
    """A known token without the right."""


class PreconditionFailed(RequestError):
    """What the client would replace is not what it has seen."""


class TooLarge(RequestError):
    """More than a limit allows."""


class TooSlow(RequestError):
    """A body that did not come in time."""


class RangeNotSatisfiable(RequestError):
    """A byte range that begins past the end of the file."""

    def __init__(self, length_bytes: int) -> None:
        super().__init__(length_bytes)
        self.length_bytes = length_bytes

    def __str__(self) -> str:
        return f"the file has {self.length_bytes} bytes"


class InvalidRequest(RequestError):
    """Several fields are wrong; `InvalidInput` for many."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "; ".join(f"{e.field}: {e.reason}" for e in self.errors)


def problem_of(error: Exception) -> Problem:
    """Return what the client is told about `error`."""
    match error:
        case InvalidRequest():
            return _problem("invalid-input", str(error), errors=error.errors)
        case InvalidInput():
            found = FieldError(error.field, error.reason)
            return _problem("invalid-input", str(error), errors=[found])
        case RequestValidationError() | WebSocketRequestValidationError():
            return problem_of(InvalidRequest([_field_error(e) for e in error.errors()]))
        case KeyReused():
            return _problem("key-reused", str(error), job_id=error.job_id)
        case Overloaded():
            return _overloaded(error)
        case Unavailable():
            return _problem("unavailable", str(error), retry_after_s=error.retry_after_s)
        case Corrupt():  # its text names a path of the store: for the log, not for the client
            return _problem("corrupt", "stored data is damaged; the server's log says where")
        case DraymanError() | RequestError():
            name = next((n for t, n in _NAMES.items() if isinstance(error, t)), "internal")
            return _problem(name, str(error))
        case HTTPException():
            return _http_problem(error)
    return _problem("internal", "the server's log holds the details")


_NAMES: dict[type[Exception], str] = {
    NotFound: "not-found",
    Conflict: "conflict",
    LeaseLost: "lease-lost",
    Malformed: "malformed",
    Unauthorized: "unauthorized",
    Forbidden: "forbidden",
    PreconditionFailed: "precondition-failed",
    TooLarge: "too-large",
    TooSlow: "too-slow",
    RangeNotSatisfiable: "range-not-satisfiable",
}

_STATUS_NAMES = {
    400: "malformed",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
}


def problem_response(error: Exception) -> Response:
    """Return the answer that tells the client about `error`."""
    problem = problem_of(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if problem.retry_after_s is not None:
        wait_s = max(1, math.ceil(problem.retry_after_s))
        headers["Retry-After"] = str(wait_s)
        if isinstance(error, Overloaded) and error.quota:
            headers |= _rate_limit(error, wait_s)
    if isinstance(error, TooSlow):  # what else comes on this connection is the rest of it
        headers["Connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="drayman"'
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.length_bytes}"
    return Response(
        msgspec.json.encode(problem), problem.status, headers=headers, media_type=MEDIA_TYPE
    )


def _problem(name: str, detail: str, **more: Any) -> Problem:
    kind = KINDS[name]
    return Problem(f"/problems/{name}", kind.title, kind.status, detail, **more)


def _overloaded(error: Overloaded) -> Problem:
    name = "tenant-overloaded" if error.scope == "tenant" else "overloaded"
    # Sooner would only be refused again.
    wait_s = max(1.0, error.retry_after_s)
    told = f"{error.reason}; try again in {wait_s:g} s"
    policies = [_policy(error)] if error.quota else []
    return _problem(name, told, retry_after_s=wait_s, violated_policies=policies)


def _policy(error: Overloaded) -> str:
    return f"{error.scope}-{error.unit}"


#: What the RateLimit draft (draft-ietf-httpapi-ratelimit-headers) calls our units.
_QUOTA_UNITS = {"jobs": "concurrent-requests", "bytes": "content-bytes"}


def _rate_limit(error: Overloaded, wait_s: int) -> dict[str, str]:
    """Return the fields that tell of a limit which is met."""
    policy = _policy(error)
    return {
        "RateLimit-Policy": f'"{policy}";q={error.quota};qu="{_QUOTA_UNITS[error.unit]}"',
        "RateLimit": f'"{policy}";r=0;t={wait_s}',
    }


def _http_problem(error: HTTPException) -> Problem:
    name = _STATUS_NAMES.get(error.status_code)
    if name is None:
        return Problem("about:blank", error.detail, error.status_code)
    detail = {
        404: "no such path; /docs lists those there are",
        405: "this path does not take this method; see the Allow header",
    }.get(error.status_code, error.detail)
    return _problem(name, detail)


def _field_error(error: dict[str, Any]) -> FieldError:
    # FastAPI begins a location with where it looked (query, path, header): noise to the reader.
    location = [str(part) for part in error["loc"][1:]] or [str(part) for part in error["loc"]]
    return FieldError(".".join(location), str(error["msg"]))
