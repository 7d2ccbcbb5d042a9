"""Submitting: one job, the busiest call of all, and batches of them.

Rule 1: an answer with an id means the job is durable. Rule 2: a line of a batch that is wrong is a
result, not a failure of the others. Rule 3: once a job is accepted nothing turns the answer into
an error, whatever else goes wrong.
"""

import asyncio
import time
from collections import Counter
from typing import Any, TypeAlias

import msgspec
import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.protocol import Accepted, Refused, refusal_of
from cluster.queue.spec import NO_PARAMS, JobSpec
from jobs.errors import DraymanError, NotFound, Unavailable
from service.api import Api
from service.auth import Caller, credentials
from service.bodies import Bodies
from service.headers import wait_s
from service.openapi import answers, body, header
from service.problems import Malformed, RequestError, TooLarge, problem_of
from service.schemas.jobs import FINISHED, BatchResult, Job
from service.showing import accepted_job, encode, encode_lines, job_of
from service.submission import BatchLine, JobRequest, RequestKey, WorkflowRequest

__all__ = ["SubmitEndpoint", "router"]

log = structlog.get_logger(__name__)

#: Room for everything of a job but its params.
OVERHEAD_BYTES = 64 * 1024
#: What became of a line of a batch; None: it is blank.
_Made: TypeAlias = JobSpec | Exception | None
#: How many lines of a batch are checked and handed over before others get a turn (some ms).
LINES_AT_ONCE = 500

_KEYS = [
    header(
        "Idempotency-Key",
        "Names the request: repeated with the same key within 24 hours it "
        "answers with the same job and `Idempotency-Replayed: true`.",
    ),
    header(
        "Drayman-Request-Id",
        "A key that a client makes for its own retries. It ranks behind "
        "a job type's own `unique_for_s`; `Idempotency-Key` ranks before it.",
    ),
]
_TRACE = header("traceparent", "W3C trace context, kept with the job.")
_HEADERS = [
    *_KEYS,
    header(
        "Prefer",
        "`wait=N` answers with the finished job if it ends within N seconds (at most 30).",
    ),
    _TRACE,
]
_PROBLEMS = (
    "malformed",
    "unauthorized",
    "forbidden",
    "too-slow",
    "too-large",
    "invalid-input",
    "tenant-overloaded",
    "overloaded",
    "unavailable",
)


class SubmitEndpoint:
    """`POST /v1/jobs` as a bare ASGI application."""

    def __init__(self, api: Api, bodies: Bodies | None = None) -> None:
        self._api = api
        #: Of all the ways in together.
        self.bodies = bodies or Bodies(api.settings.bodies_bytes_max)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept one job."""
        api = self._api
        sent: dict[bytes, bytes] = dict(scope["headers"])
        caller = await api.authenticator.identify(credentials(sent, "POST"))
        caller.need("submit")
        api.gateway.check_room(1, tenant=caller.tenant)
        limit = api.settings.params_bytes_max + OVERHEAD_BYTES
        declared = sent.get(b"content-length")
        data = await self.bodies.read(receive, limit, declared, "a job", caller.tenant)
        try:
            key = RequestKey.of(sent.get(b"idempotency-key"), sent.get(b"drayman-request-id"))
            now = time.time()
            spec = await self._spec(data, caller, key, now, sent.get(b"traceparent"))
            accepted = await api.gateway.submit(spec)
        finally:
            self.bodies.release(caller.tenant, data)
        if b"prefer" in sent:
            # Its params lie in the body, which must not stay while the job is waited for.
            spec, data = msgspec.structs.replace(spec, params=NO_PARAMS), b""
        if not accepted.replayed:
            api.metrics.accepted(spec.type)
        job, status, applied = await self._answer(accepted, spec, caller, now, sent.get(b"prefer"))
        answer = encode(job)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer)).encode()),
            (b"location", f"/v1/jobs/{accepted.job_id}".encode()),
        ]
        if accepted.replayed:
            headers.append((b"idempotency-replayed", b"true"))
        if applied is not None:
            headers.append((b"preference-applied", f"wait={applied:g}".encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _spec(
        self, data: bytes, caller: Caller, key: RequestKey, now: float, trace: bytes | None
    ) -> JobSpec:
        submissions = self._api.submissions
        request = submissions.decode(data)
        if submissions.needs(request):
            await submissions.learn([request])
        spec = submissions.spec(request, caller, key, now, trace)
        if submissions.is_large(spec):
            self._api.gateway.check_spec(spec)
            spec = await submissions.park(spec)
        return spec

    async def _answer(
        self, accepted: Accepted, spec: JobSpec, caller: Caller, now: float, prefer: bytes | None
    ) -> tuple[Job, int, float | None]:
        """Return the job, the status and the wait that was granted."""
        gateway = self._api.gateway
        wanted_s = (
            wait_s(prefer.decode("latin-1"), self._api.settings.wait_s_max) if prefer else None
        )
        try:
            if wanted_s is not None:
                view = await gateway.wait(accepted.job_id, caller.tenant, wanted_s)
                return job_of(view), 200 if view.status in FINISHED else 202, wanted_s
            if accepted.replayed:
                return job_of(await gateway.job(accepted.job_id, caller.tenant)), 202, None
        except (NotFound, Unavailable):
            pass  # It is accepted all the same: what is known of it here has to do.
        return accepted_job(accepted, spec, now), 202, None


class WorkflowEndpoint(SubmitEndpoint):
    """`POST /v1/workflows`: the same, for steps that are posted one by one."""

    async def _spec(
        self, data: bytes, caller: Caller, key: RequestKey, now: float, trace: bytes | None
    ) -> JobSpec:
        submissions = self._api.submissions
        request = submissions.decode_workflow(data)
        await submissions.learn_steps(request)
        return submissions.workflow(request, caller, key, now, trace)


def router(api: Api, submit: SubmitEndpoint) -> APIRouter:
    """Return the routes; `submit` is usually reached past them, through the door."""
    routes = APIRouter(tags=["jobs"])
    workflow = WorkflowEndpoint(api, submit.bodies)

    @routes.post(
        "/v1/jobs",
        status_code=202,
        response_class=Response,
        responses=_accepted(),
        openapi_extra=body(JobRequest) | {"parameters": _HEADERS},
    )
    async def submit_job(request: Request) -> Response:
        """Submit a job. The answer comes once it is durable, usually in milliseconds."""
        return _Bare(submit)

    @routes.post(
        "/v1/workflows",
        status_code=202,
        response_class=Response,
        responses=_accepted(),
        openapi_extra=body(WorkflowRequest) | {"parameters": _HEADERS},
    )
    async def submit_workflow(request: Request) -> Response:
        """Submit steps that wait for each other and use what others made, as one job.

        What is wrong is refused with its place: an unknown step or type, a cycle, a reference to
        what is not there, params that a type does not take.
        """
        return _Bare(workflow)

    @routes.post(
        "/v1/jobs/batch",
        status_code=202,
        response_class=Response,
        responses=answers(
            202,
            BatchResult,
            *_PROBLEMS,
            description="One result a line, in order.",
            media_type="application/x-ndjson",
        ),
        openapi_extra=body(BatchLine, "application/x-ndjson") | {"parameters": [*_KEYS, _TRACE]},
    )
    async def submit_batch(request: Request) -> Response:
        """Submit up to 10,000 jobs, one a line. A line that is wrong does not stop the others.

        A blank line has no result, but a number: lines that were refused are sent again at their
        places, with the same key and nothing in the other places.
        """
        sent: dict[bytes, bytes] = dict(request.scope["headers"])
        caller = await api.authenticator.identify(credentials(sent, "POST"))
        caller.need("submit")
        api.gateway.check_room(1, tenant=caller.tenant)
        limit, declared = api.settings.batch_bytes_max, sent.get(b"content-length")
        bodies, tenant = submit.bodies, caller.tenant
        data = await bodies.read(request.receive, limit, declared, "a batch", tenant)
        try:
            key = RequestKey.of(sent.get(b"idempotency-key"), sent.get(b"drayman-request-id"))
            lines = _lines(data, api.settings.batch_lines_max)
            api.gateway.check_room(len(lines) - lines.count(b""), len(data), tenant)
            results = await _batch(api, caller, key, lines, sent.get(b"traceparent"))
        finally:
            bodies.release(tenant, data)
        return Response(
            encode_lines(results),
            202,
            media_type="application/x-ndjson",
        )

    return routes


_ANSWER_HEADERS = {
    "Location": {"description": "The job.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "`true` if an earlier request with this key made the job.",
        "schema": {"type": "string"},
    },
    "Preference-Applied": {
        "description": "The wait that was granted.",
        "schema": {"type": "string"},
    },
}


def _accepted() -> dict[int | str, dict[str, Any]]:
    """Return what the calls that accept one job answer."""
    durable = answers(
        202,
        Job,
        *_PROBLEMS,
        "key-reused",
        description="The job is durable.",
        headers=_ANSWER_HEADERS,
    )
    in_time = answers(200, Job, description="It ended within `Prefer: wait`.")
    return durable | {200: in_time[200]}


class _Bare(Response):
    """Lets an ASGI application stand where FastAPI wants a Response."""

    def __init__(self, app: SubmitEndpoint) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _lines(data: bytes, lines_max: int) -> list[bytes]:
    lines = data.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) > lines_max:
        raise TooLarge(f"a batch may have {lines_max:,} lines, got {len(lines):,}; send several")
    if not lines:
        raise Malformed("the batch is empty; send one JSON object a line")
    return lines


async def _batch(
    api: Api, caller: Caller, key: RequestKey, lines: list[bytes], trace: bytes | None
) -> list[BatchResult]:
    """Submit what is right of the lines; return a result for each, in order.

    While some are on their way to the manager the next ones are checked.
    """
    now = time.time()
    parts: list[asyncio.Task[list[BatchResult]]] = []
    for first in range(0, len(lines), LINES_AT_ONCE):
        some = lines[first : first + LINES_AT_ONCE]
        made = await _specs(api, caller, key, some, first, now, trace)
        # A task each: what was begun goes on when the client leaves.
        parts.append(asyncio.create_task(_submit(api, made, first)))
        await asyncio.sleep(0)
    return [result for part in parts for result in await part]


async def _specs(
    api: Api,
    caller: Caller,
    key: RequestKey,
    lines: list[bytes],
    first: int,
    now: float,
    trace: bytes | None,
) -> list[_Made]:
    """Return, for each line, its spec or why there is none; `first` lines were before these.

    A blank line is None.
    """
    submissions = api.submissions
    decode_line, make = submissions.decode_line, submissions.spec
    requests: list[BatchLine | Exception | None] = []
    for number, line in enumerate(lines, first + 1):
        try:
            requests.append(None if not line or line.isspace() else decode_line(line))
        except Exception as error:
            requests.append(_reason(error, number))
    unknown = [r for r in requests if isinstance(r, BatchLine) and submissions.needs(r)]
    away: Unavailable | None = None
    if unknown:
        try:
            await submissions.learn(unknown)
        except Unavailable as error:
            away = error  # It is the answer to those that nothing is known of.
    made: list[_Made] = []
    for number, request in enumerate(requests, first + 1):
        if request is None or isinstance(request, Exception):
            made.append(request)
        elif away is not None and not submissions.knows(request):
            made.append(away)
        else:
            try:
                own = key.line(number, request.idempotency_key)
                made.append(make(request, caller, own, now, trace))
            except Exception as error:
                made.append(_reason(error, number))
    return made


def _reason(error: Exception, number: int) -> Exception:
    if not isinstance(error, DraymanError | RequestError):
        # A defect of ours, which is no reason to refuse the other lines.
        log.error("line_not_understood", line=number, exc_info=error)
    return error


async def _submit(api: Api, made: list[_Made], first: int) -> list[BatchResult]:
    """Submit the specs among the lines that follow the `first`; return a result a line."""
    await _park(api, made)
    specs = [spec for spec in made if isinstance(spec, JobSpec)]
    try:
        answers = await api.gateway.submit_many(specs)
    except DraymanError as error:
        answers = [refusal_of(error)] * len(specs)
    answered = iter(answers)
    results: list[BatchResult] = []
    accepted: list[str] = []
    for number, spec in enumerate(made, first + 1):
        if spec is None:
            continue
        answer = spec if isinstance(spec, Exception) else next(answered)
        if isinstance(answer, Accepted):
            results.append(BatchResult(number, answer.job_id, answer.replayed))
            if not answer.replayed and isinstance(spec, JobSpec):
                accepted.append(spec.type)
            continue
        reason = answer.exception() if isinstance(answer, Refused) else answer
        api.metrics.refused(reason)
        results.append(BatchResult(number, problem=problem_of(reason)))
    for job_type, count in Counter(accepted).items():
        api.metrics.accepted(job_type, count)
    return results


async def _park(api: Api, made: list[_Made]) -> None:
    """Move large params into the store, many at once; what can't be moved becomes its error."""
    submissions = api.submissions

    async def park(place: int, spec: JobSpec) -> None:
        try:
            api.gateway.check_spec(spec)
            made[place] = await submissions.park(spec)
        except DraymanError as error:
            made[place] = error

    large = [
        park(place, spec)
        for place, spec in enumerate(made)
        if isinstance(spec, JobSpec) and submissions.is_large(spec)
    ]
    if large:
        await asyncio.gather(*large)
