"""The state of things in one small answer, for a page that is looked at all day.

Rule: however many look at it, the manager is asked once in `FRESH_S` by each replica and tenant.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from cluster.views import JobQuery, JobStatus, JobView, WorkerView
from service.api import Api
from service.auth import Caller
from service.openapi import answers
from service.schemas.overview import Ended, Overview, Recent, Spread, WorkerTotals
from service.showing import moment, reply

__all__ = ["router"]

FRESH_S = 1.0
TENANTS_KEPT = 1_000
#: Jobs that are looked at. More tell hardly more, and cost the manager time.
COMPLETED_MAX, OTHERS_MAX = 200, 50
BINS, BIN_S = 60, 10
STATUSES: tuple[JobStatus, ...] = ("completed", "failed", "cancelled")


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["operate"], default_response_class=Response)
    reader = Annotated[Caller, Depends(api.caller("read"))]
    kept: dict[str | None, tuple[float, Response]] = {}

    @routes.get("/v1/overview", responses=answers(200, Overview, "unauthorized", "unavailable"))
    async def get_overview(caller: reader) -> Response:
        """Sum up the workers and the jobs that ended lately; a second old at most."""
        made_at, answer = kept.get(caller.sees, (0.0, None))
        now = time.monotonic()
        if answer is None or now - made_at > FRESH_S:
            answer = reply(await _overview(api, caller.sees))
            if len(kept) >= TENANTS_KEPT:
                kept.clear()
            kept[caller.sees] = now, answer
        return answer

    return routes


async def _overview(api: Api, tenant: str | None) -> Overview:
    jobs: list[JobView] = []
    now, since = time.time(), 0.0
    for status in STATUSES:
        limit = COMPLETED_MAX if status == "completed" else OTHERS_MAX
        page = await api.gateway.jobs(JobQuery(tenant=tenant, status=status, limit=limit))
        jobs += page.jobs
        if page.next_after is not None and page.jobs:
            # Of those that ended earlier some were not looked at.
            since = max(since, min(view.finished_at or now for view in page.jobs))
    return Overview(moment(now), _totals(await api.gateway.workers()), _recent(jobs, now, since))


def _totals(workers: Sequence[WorkerView]) -> WorkerTotals:
    return WorkerTotals(
        alive=len(workers),
        running=sum(worker.started for worker in workers),
        free=sum(worker.free for worker in workers),
        paused=sum(worker.paused for worker in workers),
        draining=sum(worker.draining for worker in workers),
    )


def _recent(jobs: Iterable[JobView], now: float, since: float) -> Recent:
    end = (now // BIN_S + 1) * BIN_S
    begin = end - BINS * BIN_S
    bins = [[0, 0, 0] for _ in range(BINS)]
    waits: list[float] = []
    runs: list[float] = []
    for job in jobs:
        finished_at = job.finished_at or 0.0
        if not begin <= finished_at < end:
            continue
        bins[int((finished_at - begin) // BIN_S)][STATUSES.index(job.status)] += 1
        # Of one that was tried again it is not known when the last attempt could have begun.
        if job.started_at is not None and (job.attempts == 1 or job.steps):
            waits.append(job.started_at - max(job.submitted_at, job.run_at or 0.0))
            runs.append(finished_at - job.started_at)
    return Recent(
        begin=moment(begin),
        since=moment(max(begin, since)),
        bin_s=BIN_S,
        ended=[Ended(*counts) for counts in bins],
        wait_s=_spread(waits),
        run_s=_spread(runs),
    )


def _spread(seconds: list[float]) -> Spread | None:
    if not seconds:
        return None
    ordered = sorted(max(0.0, one) for one in seconds)
    last = len(ordered) - 1
    return Spread(ordered[last // 2], ordered[round(last * 0.95)])
