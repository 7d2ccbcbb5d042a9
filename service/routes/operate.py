"""Types, health and metrics: what programs ask before and while they use the rest."""

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends
from starlette.responses import Response

from cluster.views import DeadCount, DeadLetterQuery, QueueView
from jobs.errors import Unavailable
from service.api import Api
from service.auth import Caller
from service.metrics import CONTENT_TYPE
from service.openapi import answers
from service.schemas.operate import Health, JobType, JobTypes, Ready
from service.showing import reply

__all__ = ["RUN_HEADER", "router"]

RUN_HEADER = "Drayman-Run"
#: Counting dead letters takes the manager 2 us each, in which it does nothing else: where there are
#: more than so many, they are counted again only after so long.
DEAD_FEW, DEAD_AGAIN_S = 5_000, 60.0


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["operate"], default_response_class=Response)
    shown: dict[int, Response] = {}
    dead = _DeadLetters(api)

    @routes.get("/v1/types", responses=answers(200, JobTypes, "unauthorized"))
    async def list_types(caller: Annotated[Caller, Depends(api.caller())]) -> Response:
        """List the job types with the JSON Schemas of their params. Any valid token may."""
        await api.catalog.learn([])
        if api.catalog.revision not in shown:
            shown.clear()
            shown[api.catalog.revision] = reply(_types(api))
        return shown[api.catalog.revision]

    @routes.get("/healthz", responses=answers(200, Health))
    async def healthz() -> Response:
        """Tell whether this process answers. Needs no token."""
        return reply(Health())

    @routes.get(
        "/readyz",
        responses=answers(
            200,
            Ready,
            "unavailable",
            headers={
                RUN_HEADER: {
                    "description": "Random name of the run that answers.",
                    "schema": {"type": "string"},
                }
            },
        ),
    )
    async def readyz() -> Response:
        """Tell whether the manager answers too. Needs no token."""
        headers = {RUN_HEADER: api.settings.run, "Cache-Control": "no-store"}
        asked_at = time.perf_counter()
        await api.gateway.ping()
        return reply(Ready("ready", time.perf_counter() - asked_at), headers=headers)

    @routes.get(
        "/metrics",
        responses=answers(
            200,
            None,
            "unauthorized",
            "forbidden",
            description="Prometheus' text format.",
            media_type="text/plain",
        ),
    )
    async def metrics(caller: Annotated[Caller, Depends(api.caller("read"))]) -> Response:
        """Return counters of this process and gauges of the whole system."""
        try:
            queues, workers = await api.gateway.queues(), await api.gateway.workers()
            signals = await api.gateway.signals()
            text = api.metrics.render(queues, workers, await dead.counts(queues), signals)
        except Unavailable:
            text = api.metrics.render(None, None, None, None)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    return routes


class _DeadLetters:
    """How many there are of each kind, as far as counting them holds nobody up."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._counted_s = -DEAD_AGAIN_S
        self._counts: list[DeadCount] = []

    async def counts(self, queues: list[QueueView]) -> list[DeadCount]:
        """Return the counts; raises Unavailable."""
        now_s = time.monotonic()
        few = sum(queue.dead for queue in queues) <= DEAD_FEW
        if few or now_s - self._counted_s >= DEAD_AGAIN_S:
            self._counts = await self._api.gateway.dead_counts(DeadLetterQuery())
            self._counted_s = now_s
        return self._counts


def _types(api: Api) -> JobTypes:
    return JobTypes(
        [
            JobType(
                name=known.card.name,
                summary=known.card.summary,
                builtin=known.builtin,
                queue=known.card.queue,
                max_attempts=known.card.max_attempts,
                timeout_s=known.card.timeout_s,
                unique_for_s=known.card.unique_for_s,
                unique_by=known.card.unique_by,
                expected_s=known.card.expected_s,
                resumable=known.card.resumable,
                limits=known.card.limits,
                code=known.code,
                params_schema=msgspec.json.decode(known.card.schema),
            )
            for name, known in sorted(api.catalog.items(), key=lambda one: (one[1].builtin, one[0]))
        ]
    )
