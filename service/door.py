"""The door every request passes: it counts, and it never shows a trace.

A plain ASGI middleware, because Starlette's BaseHTTPMiddleware costs more than accepting a job.
Rule 1: whatever is raised below becomes a problem, unless the answer has begun; then the
connection breaks, which is how a client learns that it has not everything. Rule 2: a defect is
logged with its trace, here and only here.
"""

import time
import traceback

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import Corrupt, DraymanError
from service.bodies import ClientGone
from service.metrics import Metrics
from service.problems import RequestError, problem_response

__all__ = ["Door"]

log = structlog.get_logger(__name__)

#: What proxies log for a client that left before its answer; nobody sees it on the wire.
CLIENT_GONE = 499
#: What a counter may be named by; anything else a client could make up without end.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Door:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, route: str | None = None) -> None:
        self._app = app
        self._metrics = metrics
        #: The path's pattern, if only one is behind this door.
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on the server's own messages."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started_at = time.perf_counter()
        try:
            await self._app(scope, receive, watched)
        except ClientGone:
            status = CLIENT_GONE
        except Exception as error:
            if isinstance(error, Corrupt) or not isinstance(error, DraymanError | RequestError):
                _log_defect(scope, error)
            if status:
                raise
            self._metrics.refused(error)
            await problem_response(error)(scope, receive, watched)
        finally:
            route = self._route or _template(scope)
            seconds = time.perf_counter() - started_at
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.answered(method, route, status or CLIENT_GONE, seconds)


def _log_defect(scope: Scope, error: Exception) -> None:
    # Formatted here: a renderer that shows local variables would log tokens and params.
    trace = "".join(traceback.format_exception(error))
    log.error("request_failed", method=scope["method"], path=scope["path"], trace=trace)


def _template(scope: Scope) -> str:
    """Return the path's pattern: counting by the path itself would make a counter a job."""
    return getattr(scope.get("route"), "path", None) or "unmatched"
