"""Looking at jobs, cancelling and retrying them."""

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import Field
from starlette.responses import Response

from cluster.views import DeadLetterQuery, JobQuery, JobStatus
from jobs.errors import Conflict, InvalidInput
from service.api import Api, job_id_of
from service.auth import Caller
from service.bodies import read_body
from service.editing import edited
from service.headers import wait_s
from service.openapi import answers, body
from service.parameters import AnyTenant, Parameters
from service.problems import Forbidden
from service.routes.submit import OVERHEAD_BYTES
from service.schemas.jobs import KEPT, Attempts, Job, JobList, RetryRequest, Tasks
from service.sending import SAFE
from service.showing import attempt_of, job_list, job_of, reply, task_of
from service.submission import decode_as

__all__ = ["PageFilter", "label_of", "router", "tenant_for"]

decode_retry = msgspec.json.Decoder(RetryRequest).decode
_SEEN = ("unauthorized", "forbidden", "not-found", "unavailable")


class PageFilter(AnyTenant):
    """What every list of jobs can be narrowed by."""

    type: str | None = None
    queue: str | None = None
    after: Annotated[str | None, Field(description="`next_after` of the page before.")] = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class JobFilter(PageFilter):
    """Query parameters of `GET /v1/jobs`."""

    status: JobStatus | None = None
    label: Annotated[str | None, Field(description="`name=value`.")] = None


class TaskPage(Parameters):
    """Query parameters of `GET /v1/jobs/{job_id}/tasks`."""

    after: Annotated[int, Field(ge=0, description="`next_after` of the page before.")] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


def tenant_for(caller: Caller, wanted: str | None) -> str | None:
    """Return whose jobs to look at. Raises Forbidden if they are not the caller's to see."""
    if wanted is None or wanted == caller.tenant:
        return wanted or caller.sees
    if not caller.is_admin:
        raise Forbidden("only a token with the scope 'admin' may look at another tenant")
    return wanted


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["jobs"], default_response_class=Response)
    reader = Annotated[Caller, Depends(api.caller("read"))]
    submitter = Annotated[Caller, Depends(api.caller("submit"))]

    @routes.get(
        "/v1/jobs",
        responses=answers(
            200, JobList, "unauthorized", "forbidden", "invalid-input", "unavailable"
        ),
    )
    async def list_jobs(caller: reader, query: Annotated[JobFilter, Query()]) -> Response:
        """List jobs, running and finished, newest first."""
        page = await api.gateway.jobs(
            JobQuery(
                tenant=tenant_for(caller, query.tenant),
                status=query.status,
                type=query.type,
                queue=query.queue,
                label=label_of(query.label),
                after=query.after,
                limit=query.limit,
            )
        )
        return reply(job_list(page))

    @routes.get("/v1/jobs/{job_id}", responses=answers(200, Job, *_SEEN))
    async def get_job(
        caller: reader,
        job_id: str,
        prefer: Annotated[
            str | None,
            Header(description="`wait=N` answers once the job has ended, after N seconds at most."),
        ] = None,
    ) -> Response:
        """Show one job."""
        wanted_s = wait_s(prefer or "", api.settings.wait_s_max)
        if wanted_s is None:
            return reply(job_of(await api.gateway.job(job_id_of(job_id), caller.sees)))
        view = await api.gateway.wait(job_id_of(job_id), caller.sees, wanted_s)
        return reply(job_of(view), headers={"Preference-Applied": f"wait={wanted_s:g}"})

    @routes.get(
        "/v1/jobs/{job_id}/params",
        responses=answers(200, None, *_SEEN, description="What it was submitted with."),
    )
    async def get_params(caller: reader, job_id: str) -> Response:
        """Return the job's params as JSON. The steps of a workflow have theirs in themselves."""
        params = await api.gateway.params(job_id_of(job_id), caller.sees)
        return Response(params, media_type="application/json", headers=SAFE)

    @routes.post(
        "/v1/jobs/{job_id}/cancel",
        status_code=202,
        responses=answers(
            202, Job, *_SEEN, "conflict", description="It is cancelled, or will stop soon."
        ),
    )
    async def cancel_job(caller: submitter, job_id: str) -> Response:
        """Stop the job: asked first, then by force. `stopping` is set until it has stopped."""
        return reply(job_of(await api.gateway.cancel(job_id_of(job_id), caller.sees)), 202)

    @routes.post(
        "/v1/jobs/{job_id}/retry",
        status_code=202,
        responses=answers(
            202,
            Job,
            *_SEEN,
            "conflict",
            "malformed",
            "too-large",
            "invalid-input",
            description="It has a new budget.",
        ),
        openapi_extra={"requestBody": body(RetryRequest)["requestBody"] | {"required": False}},
    )
    async def retry_job(caller: submitter, job_id: str, request: Request) -> Response:
        """Give a failed job a new budget of attempts, and maybe other params.

        What had succeeded is not done again. Params of a job of several tasks can't be changed.
        """
        limit = api.settings.params_bytes_max + OVERHEAD_BYTES
        declared = request.headers.get("content-length")
        data = await read_body(
            request.receive, limit, declared.encode("latin-1") if declared else None, "a retry"
        )
        wanted = decode_as(data, decode_retry, RetryRequest) if data else RetryRequest()
        if wanted.params == KEPT and not wanted.set:
            return reply(job_of(await api.gateway.retry(job_id_of(job_id), caller.sees)), 202)
        view = await api.gateway.job(job_id_of(job_id), caller.sees)
        spec = await edited(api, view, wanted, caller, time.time())
        which = DeadLetterQuery(tenant=view.tenant, ids=[view.alias_of or view.id])
        if not await api.gateway.redrive(which, spec=spec):
            raise Conflict(f"job {view.id} was retried or purged meanwhile")
        return reply(job_of(await api.gateway.job(view.id, caller.sees)), 202)

    @routes.get("/v1/jobs/{job_id}/tasks", responses=answers(200, Tasks, *_SEEN, "invalid-input"))
    async def list_tasks(
        caller: reader, job_id: str, query: Annotated[TaskPage, Query()]
    ) -> Response:
        """Show the tasks of a job with their lineage: inputs, code, attempts, worker, outputs."""
        page = await api.gateway.tasks(job_id_of(job_id), caller.sees, query.after, query.limit)
        tasks = [task_of(view, job_id) for view in page.tasks]
        return reply(Tasks(tasks, page.next_after))

    @routes.get("/v1/jobs/{job_id}/attempts", responses=answers(200, Attempts, *_SEEN))
    async def list_attempts(caller: reader, job_id: str) -> Response:
        """Show every attempt of a job with how it ended."""
        views = await api.gateway.attempts(job_id_of(job_id), caller.sees)
        return reply(Attempts([attempt_of(view) for view in views]))

    return routes


def label_of(text: str | None) -> tuple[str, str] | None:
    """Return the name and the value of `name=value`. Raises InvalidInput."""
    if text is None:
        return None
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidInput("label", "write name=value")
    return name, value
