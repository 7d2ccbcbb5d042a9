"""The span of a request that submits, and where spans go: to a collector that may be in trouble."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest
import structlog

from cluster.spans import QUEUE_MAX, SpanExporter
from cluster.tracing import Span
from jobs.errors import InvalidInput
from service.tracing import request_tracer, traces_url
from tests.support.api import running_api
from tests.support.collector import Collector, collecting
from tests.support.live import until

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPAN = Span(TRACE, "00000000000000aa", CALLER, "job greet", 10.0, 11.5, {"drayman.job": "a"})


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
async def acme(collector: Collector) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API that traces."""
    tracer = request_tracer(f"{collector.url}/v1/traces")
    async with running_api(tracer=tracer) as api:
        yield api.client("acme")
    tracer.span_processor.shutdown()


async def context_of(client: httpx.AsyncClient, job_id: str) -> list[str]:
    return str((await client.get(f"/v1/jobs/{job_id}")).json()["traceparent"]).split("-")


async def test_the_span_of_a_request_stands_between_its_caller_and_the_job(
    acme: httpx.AsyncClient, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    job = (await acme.post("/v1/jobs", json=GREET, headers=headers)).json()

    (span,) = until(lambda: collector.trace(TRACE))
    assert (span.name, span.parent_id, span.service) == ("POST /v1/jobs", CALLER, "drayman")
    assert span.attributes["http.response.status_code"] == 202
    assert span.attributes["drayman.job"] == job["id"]
    assert await context_of(acme, job["id"]) == ["00", TRACE, span.span_id, "01"]


async def test_a_request_without_a_trace_begins_one(
    acme: httpx.AsyncClient, collector: Collector
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()

    _, trace_id, own, flags = await context_of(acme, job["id"])
    (span,) = until(lambda: collector.trace(trace_id))
    assert (span.span_id, span.parent_id, int(flags, 16) & 1) == (own, "", 1)


async def test_a_caller_that_does_not_sample_gets_no_span(
    acme: httpx.AsyncClient, collector: Collector
) -> None:
    unsampled = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
    job = (await acme.post("/v1/jobs", json=GREET, headers=unsampled)).json()
    await acme.post("/v1/jobs", json=GREET)

    until(lambda: collector.spans)
    assert collector.trace(TRACE) == []
    assert (await context_of(acme, job["id"]))[-1] == "00"


async def test_a_refused_request_has_a_span_that_says_so(
    acme: httpx.AsyncClient, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    answer = await acme.post("/v1/jobs", json={"type": "nope"}, headers=headers)

    assert answer.status_code == 422
    (span,) = until(lambda: collector.trace(TRACE))
    assert span.failed


async def test_the_lines_of_a_batch_are_beneath_its_request(
    acme: httpx.AsyncClient, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    line = b'{"type":"greet","params":{"name":"Ada"}}\n'
    answer = await acme.post("/v1/jobs/batch", content=line * 2, headers=headers)

    (span,) = until(lambda: collector.trace(TRACE))
    for result in answer.text.splitlines():
        job_id = httpx.Response(200, text=result).json()["id"]
        assert (await context_of(acme, job_id))[2] == span.span_id


async def test_reading_has_no_spans(acme: httpx.AsyncClient, collector: Collector) -> None:
    await acme.get("/v1/jobs")
    await acme.post("/v1/jobs", json=GREET)

    until(lambda: collector.spans)
    assert [span.name for span in collector.spans] == ["POST /v1/jobs"]


# --- where they go ----------------------------------------------------------------------------


def test_spans_arrive_as_they_were_made(collector: Collector) -> None:
    exporter = SpanExporter(f"{collector.url}/v1/traces")
    exporter.put(SPAN)
    exporter.close()

    (span,) = collector.spans
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE, SPAN.span_id, CALLER)
    assert (span.start_ns, span.end_ns) == (10_000_000_000, 11_500_000_000)
    assert span.attributes == {"drayman.job": "a"}
    assert not span.failed


def test_a_span_that_begins_a_trace_has_no_parent(collector: Collector) -> None:
    exporter = SpanExporter(f"{collector.url}/v1/traces")
    exporter.put(msgspec.structs.replace(SPAN, parent_id=""))
    exporter.close()

    (span,) = collector.spans
    assert (span.span_id, span.parent_id) == (SPAN.span_id, "")


def test_what_a_collector_refuses_is_counted_and_told(collector: Collector) -> None:
    collector.status = 400
    exporter = SpanExporter(f"{collector.url}/v1/traces")
    with structlog.testing.capture_logs() as logs:
        exporter.put(SPAN)
        exporter.close()

    assert exporter.lost == 1
    assert [line for line in logs if line["event"] == "spans_lost"]


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    exporter = SpanExporter("http://127.0.0.1:9/v1/traces")
    for _ in range(QUEUE_MAX + 1000):
        exporter.put(SPAN)

    assert exporter.lost >= 1
    assert len(exporter._waiting) <= QUEUE_MAX


@pytest.mark.parametrize(
    ("given", "environ", "url"),
    [
        ("", {}, ""),
        ("http://c:4318", {}, "http://c:4318/v1/traces"),
        ("https://c/otlp/", {}, "https://c/otlp/v1/traces"),
        ("http://c:4318/v1/traces", {"OTEL_SDK_DISABLED": "true"}, "http://c:4318/v1/traces"),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://e:4318"}, "http://e:4318/v1/traces"),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://e/x"}, "http://e/x"),
        ("", {"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces"),
        ("", {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://e"}, ""),
        ("", {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://e"}, ""),
    ],
)
def test_where_spans_go_is_said_by_the_option_or_by_the_usual_variables(
    given: str, environ: dict[str, str], url: str
) -> None:
    assert traces_url(given, environ) == url


@pytest.mark.parametrize("given", ["localhost:4318", "ftp://c", "http://", "nonsense"])
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput, match="otlp"):
        traces_url(given, {})
