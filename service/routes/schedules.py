"""Schedules: jobs that are submitted again and again, by a cron line.

Rule 1: what could not be submitted is no schedule: its job is checked as `POST /v1/jobs` checks
one, now, by the same code. Rule 2: a name is its tenant's own. Rule 3: putting the same schedule
again changes nothing, so a client may repeat it, and a deployment put all of its own each time.
"""

import re
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import inf
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response

from cluster.cron import check_cron, next_tick, ticks
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import encode_spec
from cluster.views import ScheduleView
from jobs.errors import InvalidInput, NotFound
from service.api import Api
from service.auth import Caller
from service.bodies import read_body
from service.openapi import answers, body
from service.parameters import AnyTenant, OwnTenant
from service.problems import FieldError, InvalidRequest, Malformed, TooLarge
from service.routes.jobs import tenant_for
from service.routes.submit import OVERHEAD_BYTES
from service.schemas.jobs import Job
from service.schemas.schedules import Schedule, ScheduleRequest, Schedules
from service.showing import job_of, reply, schedule_of
from service.submission import DAY_S, EXPIRES_DAYS_MAX, JobRequest, RequestKey, decode_as

__all__ = ["router"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
#: Of a job: what a tick says, or what it has no sense for.
NOT_OF_A_TICK = ("run_at", "delay_s", "expires_at")
NEXT_SHOWN, NEXT_MAX = 3, 100
#: Gaps between ticks that jitter is held against: a working day of quarters of an hour.
GAPS = 32

_USUAL = ("unauthorized", "forbidden", "unavailable")
_LOCATION = {"Location": {"description": "The job.", "schema": {"type": "string"}}}

_Key = tuple[str, str]

_decode = msgspec.json.Decoder(ScheduleRequest).decode


class ScheduleFilter(AnyTenant):
    """Query parameters of `GET /v1/schedules`."""

    after: Annotated[
        str | None, Field(max_length=200, description="`next_after` of the page before.")
    ] = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class Ahead(OwnTenant):
    """Query parameters of `GET /v1/schedules/{name}`."""

    next: Annotated[int, Field(ge=1, le=NEXT_MAX, description="How many ticks ahead.")] = NEXT_SHOWN


Whose = Annotated[OwnTenant, Query()]


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["schedules"], default_response_class=Response)
    reader = Annotated[Caller, Depends(api.caller("read"))]
    submitter = Annotated[Caller, Depends(api.caller("submit"))]

    @routes.put(
        "/v1/schedules/{name}",
        responses=answers(
            200,
            Schedule,
            *_USUAL,
            "malformed",
            "too-large",
            "invalid-input",
            "tenant-overloaded",
            "overloaded",
            description="It was there: replaced, or left as it is if it is the same.",
        )
        | answers(201, Schedule, description="It is new."),
        openapi_extra=body(ScheduleRequest),
    )
    async def put_schedule(caller: submitter, name: str, request: Request) -> Response:
        """Submit a job at each tick of a cron line from now on, in place of any of this name.

        The same again changes nothing: counts and the next tick stay.
        """
        if not NAME.fullmatch(name):
            raise InvalidInput("name", "use 1 to 100 of a-z, 0-9, '.', '_', '-'; first a-z or 0-9")
        asked = await _asked(api, request)
        try:
            known = await api.gateway.schedule(name, caller.tenant)
        except NotFound:
            known = None
        spec = await _spec(api, caller.tenant, name, asked, known)
        return _shown(await api.gateway.put_schedule(spec), 201 if known is None else 200)

    @routes.get("/v1/schedules", responses=answers(200, Schedules, *_USUAL, "invalid-input"))
    async def list_schedules(caller: reader, query: Annotated[ScheduleFilter, Query()]) -> Response:
        """List schedules by tenant and name, each with its next tick."""
        after = _place(query.after)
        views = await api.gateway.schedules(tenant_for(caller, query.tenant))
        first = bisect_right(views, after, key=_key)
        page = views[first : first + query.limit]
        more = first + len(page) < len(views)
        shown = [schedule_of(view, _coming(view, 1)) for view in page]
        return reply(Schedules(shown, "/".join(_key(page[-1])) if more else None))

    @routes.get(
        "/v1/schedules/{name}",
        responses=answers(200, Schedule, *_USUAL, "not-found", "invalid-input"),
    )
    async def get_schedule(caller: reader, name: str, query: Annotated[Ahead, Query()]) -> Response:
        """Show a schedule and its next ticks."""
        view = await api.gateway.schedule(_known(name), _whose(caller, query.tenant))
        return _shown(view, count=query.next)

    @routes.delete(
        "/v1/schedules/{name}",
        status_code=204,
        responses=answers(204, None, *_USUAL, "not-found", "invalid-input")
        | {204: {"description": "It fires no more."}},
    )
    async def delete_schedule(caller: submitter, name: str, query: Whose) -> Response:
        """Forget a schedule. Jobs that it submitted go on."""
        await api.gateway.delete_schedule(_known(name), _whose(caller, query.tenant))
        return Response(status_code=204)

    @routes.post(
        "/v1/schedules/{name}/run",
        status_code=202,
        responses=answers(
            202,
            Job,
            *_USUAL,
            "not-found",
            "invalid-input",
            "tenant-overloaded",
            "overloaded",
            headers=_LOCATION,
        ),
    )
    async def run_schedule(caller: submitter, name: str, query: Whose) -> Response:
        """Submit its job now, beside its ticks; also while it is paused."""
        owner = _whose(caller, query.tenant)
        job_id = await api.gateway.fire_schedule(_known(name), owner)
        job = job_of(await api.gateway.job(job_id, owner))
        return reply(job, 202, {"Location": f"/v1/jobs/{job_id}"})

    @routes.post(
        "/v1/schedules/{name}/pause",
        responses=answers(200, Schedule, *_USUAL, "not-found", "invalid-input"),
    )
    async def pause_schedule(caller: submitter, name: str, query: Whose) -> Response:
        """Fire nothing until it is resumed. Ticks that come meanwhile are not made up for."""
        owner = _whose(caller, query.tenant)
        return _shown(await api.gateway.pause_schedule(_known(name), owner, paused=True))

    @routes.post(
        "/v1/schedules/{name}/resume",
        responses=answers(200, Schedule, *_USUAL, "not-found", "invalid-input"),
    )
    async def resume_schedule(caller: submitter, name: str, query: Whose) -> Response:
        """Fire again, from the next tick on."""
        owner = _whose(caller, query.tenant)
        return _shown(await api.gateway.pause_schedule(_known(name), owner, paused=False))

    return routes


def _known(name: str) -> str:
    """Return the name if there can be one like it; NotFound otherwise, without asking anybody."""
    if not NAME.fullmatch(name):
        raise NotFound("schedule", name[:100])
    return name


def _whose(caller: Caller, tenant: str | None) -> str:
    return tenant_for(caller, tenant) or caller.tenant


def _key(view: ScheduleView) -> _Key:
    return view.tenant, view.name


def _place(after: str | None) -> _Key:
    """Return what a page comes after; a schedule that is gone by then leaves its place."""
    if after is None:
        return "", ""
    tenant, slash, name = after.partition("/")
    if not slash:
        raise InvalidInput("after", "is no cursor of this list; begin again without it")
    return tenant, name


def _coming(view: ScheduleView, count: int) -> list[float]:
    """Return the next ticks; the first is that which the manager has."""
    if view.next_at is None:
        return []
    through = inf if view.ends_at is None else view.ends_at
    return [view.next_at, *ticks(view.cron, view.timezone, view.next_at, through, count - 1)]


def _shown(view: ScheduleView, status: int = 200, count: int = NEXT_SHOWN) -> Response:
    return reply(schedule_of(view, _coming(view, count)), status)


async def _asked(api: Api, request: Request) -> ScheduleRequest:
    limit = api.settings.params_inline_bytes_max + OVERHEAD_BYTES
    declared = request.headers.get("content-length")
    data = await read_body(
        request.receive, limit, declared.encode("latin-1") if declared else None, "a schedule"
    )
    return decode_as(data, _decode, ScheduleRequest)


async def _spec(
    api: Api, tenant: str, name: str, asked: ScheduleRequest, known: ScheduleView | None
) -> ScheduleSpec:
    """Return the checked schedule. Raises InvalidInput, InvalidRequest, TooLarge, Unavailable."""
    check_cron(asked.cron, asked.timezone)
    now = time.time()
    starts_at = None if asked.starts_at is None else asked.starts_at.timestamp()
    ends_at = None if asked.ends_at is None else asked.ends_at.timestamp()
    _check_span(asked, now, starts_at, ends_at)
    if asked.jitter_s:
        _check_jitter(asked, now)
    with _of_its_job():
        job = api.submissions.decode(bytes(asked.job))
        for field in NOT_OF_A_TICK:
            if getattr(job, field) is not None:
                raise InvalidInput(field, "is not for a schedule: each tick submits a job anew")
    if known is not None and _is_same(msgspec.json.encode(job), known.request):
        # However it is spelled: whether anything changes is told from the bytes.
        job = api.submissions.decode(bytes(known.request))
    return ScheduleSpec(
        name=name,
        tenant=tenant,
        cron=asked.cron,
        timezone=asked.timezone,
        catch_up=asked.catch_up,
        jitter_s=asked.jitter_s,
        overlap=asked.overlap,
        starts_at=starts_at,
        ends_at=ends_at,
        paused=asked.paused,
        request=msgspec.Raw(msgspec.json.encode(job)),
        job=await _job(api, tenant, job),
    )


async def _job(api: Api, tenant: str, job: JobRequest) -> msgspec.Raw:
    """Return what each tick submits."""
    submissions = api.submissions
    with _of_its_job():
        if submissions.needs(job):
            await submissions.learn([job])
        spec = submissions.spec(job, Caller(tenant, frozenset()), RequestKey(), time.time())
    if submissions.is_large(spec):
        raise TooLarge(
            f"params of a schedule may have {api.settings.params_inline_bytes_max:,} bytes; send "
            "larger data with PUT /v1/uploads/{name} and put the uri of the answer into params"
        )
    # Each tick is a job of its own, whatever a type with `unique_for_s` makes of equal params.
    spec = msgspec.structs.replace(spec, key=None, key_expires_at=0.0, fingerprint="")
    return msgspec.Raw(encode_spec(spec))


def _check_span(
    asked: ScheduleRequest, now: float, starts_at: float | None, ends_at: float | None
) -> None:
    """Raise InvalidInput if the schedule would never fire between these moments."""
    if starts_at is not None and starts_at > now + EXPIRES_DAYS_MAX * DAY_S:
        raise InvalidInput("starts_at", f"lies over {EXPIRES_DAYS_MAX} days ahead")
    if ends_at is None:
        return
    if ends_at <= now:
        raise InvalidInput("ends_at", "is in the past; it would never fire")
    # A moment sooner, as a tick at its start is one.
    after = now if starts_at is None else max(now, starts_at - 0.001)
    first = next_tick(asked.cron, asked.timezone, after)
    if first is None or first > ends_at:
        raise InvalidInput("ends_at", "comes before the first tick; it would never fire")


def _check_jitter(asked: ScheduleRequest, now: float) -> None:
    """Raise InvalidInput if a job could be later than the next tick."""
    coming = ticks(asked.cron, asked.timezone, now, inf, GAPS + 1)
    gaps_s = [later - sooner for sooner, later in pairwise(coming)]
    if gaps_s and asked.jitter_s > min(gaps_s):
        raise InvalidInput(
            "jitter_s", f"is longer than the time between two ticks, {min(gaps_s):g} s"
        )


@contextmanager
def _of_its_job() -> Iterator[None]:
    """Let what is wrong with the job be told as part of the schedule: `job.params.year`."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(_inside(error.field), error.reason) from None
    except InvalidRequest as error:
        told = [FieldError(_inside(one.field), one.reason) for one in error.errors]
        raise InvalidRequest(told) from None


def _is_same(one: bytes, another: msgspec.Raw) -> bool:
    def canonical(data: bytes | msgspec.Raw) -> bytes:
        return msgspec.json.encode(msgspec.json.decode(data), order="sorted")

    try:
        return canonical(one) == canonical(another)
    except RecursionError:
        raise Malformed("the JSON is nested too deeply") from None


def _inside(field: str) -> str:
    return "job" if field == "body" else f"job.{field}"
