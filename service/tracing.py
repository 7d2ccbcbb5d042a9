"""The span of a request that submits, and where spans go.

Rule 1: the span's own context takes the place of the caller's `traceparent`, so that the job is its
child. Rule 2: whether a trace that begins here is sampled is the SDK's business
(`OTEL_TRACES_SAMPLER`); of one that began elsewhere the caller has decided. Rule 3: while tracing
is off nothing of this stands between a request and its answer.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import InvalidInput

__all__ = ["TRACED_PATHS", "Traced", "request_tracer", "traces_url"]

#: Calls that submit, beside the busiest, which does not come by the middleware.
TRACED_PATHS = ("/v1/jobs/batch", "/v1/workflows")
TRACES_PATH = "/v1/traces"
#: Where a collector listens unless somebody says otherwise.
USUAL = "http://localhost:4318"
#: How long a span waits for others.
DELAY_MS = 500


def traces_url(given: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return where spans go: as `--otlp` says, else OpenTelemetry's variables; empty: nowhere.

    Raises InvalidInput for what is no URL, or where the extra `otel` is not installed.
    """
    if not given and (
        environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
    ):
        return ""
    exact = "" if given else environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = given or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if not (exact or base):
        if "OTEL_TRACES_EXPORTER" not in environ:
            return ""
        base = USUAL
    url = exact or base.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput("otlp", f"{exact or base!r} is not like {USUAL}")
    if not _is_installed():
        raise InvalidInput(
            "otlp", 'traces need OpenTelemetry; install it with: pip install "drayman[otel]"'
        )
    return url


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def request_tracer(url: str) -> Any:
    """Return an OpenTelemetry tracer whose spans go there."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from cluster.spans import SERVICE, TIMEOUT_S

    name = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    exporter = OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=DELAY_MS))
    return provider.get_tracer(SERVICE)


class Traced:
    """Wraps an ASGI application whose requests submit: one span each."""

    def __init__(self, app: ASGIApp, tracer: Any, *, paths: tuple[str, ...] | None = None) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, StatusCode

        self._app, self._tracer = app, tracer
        #: None: every request that comes here.
        self._paths = paths
        self._extract, self._kind, self._error = extract, SpanKind.SERVER, StatusCode.ERROR

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request within its span."""
        is_traced = self._paths is None or scope.get("path") in self._paths
        if not is_traced or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if pair[0] != b"traceparent"]
        given = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
        path = scope["path"]
        span = self._tracer.start_span(
            f"POST {path}",
            context=self._extract({"traceparent": given}),
            kind=self._kind,
            attributes={"http.request.method": "POST", "http.route": path},
        )
        own = span.get_span_context()
        context = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
        headers.append((b"traceparent", context.encode()))

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(self._error)
                where = dict(message["headers"]).get(b"location", b"").decode("latin-1")
                if job_id := where.removeprefix("/v1/jobs/"):
                    span.set_attribute("drayman.job", job_id)
            await send(message)

        try:
            await self._app({**scope, "headers": headers}, receive, watched)
        except Exception as error:
            # Most become a problem further out; which one is told there.
            span.set_status(self._error, str(error)[:500])
            raise
        finally:
            span.end()
