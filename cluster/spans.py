"""Where spans go: an OpenTelemetry collector, by OTLP over HTTP, from a thread of its own.

Rule 1: `put` never waits. Rule 2: memory and time are bounded: what comes faster than
`BATCH_MAX / PAUSE_S` for long is dropped and counted, as is what the collector does not take.
Rule 3: OpenTelemetry is imported here and nowhere else of this floor, and only where it is used.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog

from cluster.tracing import Span

__all__ = ["SERVICE", "SpanExporter"]

log = structlog.get_logger(__name__)

#: The name of the service, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` say another.
SERVICE = "drayman"
#: Spans that wait, at most: a collector that is away for some seconds costs none.
QUEUE_MAX = 20_000
#: So many at once and then a pause: some hundredths of a second of each are this thread's.
BATCH_MAX, PAUSE_S = 512, 0.25
#: For one call, and for all that is left at the end.
TIMEOUT_S, CLOSE_S = 5.0, 3.0
#: Between two lines of the log about spans that are lost.
TOLD_EVERY_S = 30.0


class SpanExporter:
    """Sends spans until it is closed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: deque[Span] = deque()
        self._woken = threading.Event()
        self._closing = threading.Event()
        #: Spans that nobody will see.
        self.lost = 0
        self._told_lost, self._told_at = 0, 0.0
        # A daemon: a collector that hangs must not keep the process.
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, span: Span) -> None:
        """Have a span sent, or count it as lost."""
        if len(self._waiting) >= QUEUE_MAX:
            self.lost += 1
        else:
            self._waiting.append(span)
        if not self._woken.is_set():
            self._woken.set()

    def close(self) -> None:
        """Send what waits, within `CLOSE_S`. Blocks."""
        self._closing.set()
        self._woken.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        send = _sender(self._url)
        while True:
            self._woken.wait()
            self._woken.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
                if not send(batch):
                    self.lost += len(batch)
                self._tell()
                self._closing.wait(PAUSE_S)
            if self._closing.is_set():
                return
            # Others come with it, mostly.
            self._closing.wait(PAUSE_S)

    def _tell(self) -> None:
        now = time.monotonic()
        if self.lost > self._told_lost and now - self._told_at > TOLD_EVERY_S:
            log.warning("spans_lost", count=self.lost - self._told_lost, collector=self._url)
            self._told_lost, self._told_at = self.lost, now


def _sender(url: str) -> Callable[[list[Span]], bool]:
    """Return what sends a batch and says whether it was taken."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

    exporter = OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_S)
    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", SERVICE)})
    scope, sampled = InstrumentationScope(SERVICE), TraceFlags(TraceFlags.SAMPLED)

    def context(trace_id: str, span_id: str) -> SpanContext:
        return SpanContext(int(trace_id, 16), int(span_id, 16), True, sampled)

    def readable(span: Span) -> ReadableSpan:
        failed = span.error is not None
        return ReadableSpan(
            name=span.name,
            context=context(span.trace_id, span.span_id),
            parent=context(span.trace_id, span.parent_id) if span.parent_id else None,
            resource=resource,
            attributes=span.attributes,
            status=Status(StatusCode.ERROR, span.error) if failed else Status(StatusCode.UNSET),
            start_time=int(span.start * 1e9),
            end_time=int(span.end * 1e9),
            instrumentation_scope=scope,
        )

    def send(batch: list[Span]) -> bool:
        return exporter.export([readable(span) for span in batch]) is SpanExportResult.SUCCESS

    return send
