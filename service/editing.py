"""A failed job with other params: what it is when it is tried again.

Rule: it stays the same job. All that was asked for beside its params is kept; only the limits that
its type names follow from the new ones.
"""

import asyncio
from dataclasses import replace

import msgspec

from cluster.queue.spec import JobSpec
from cluster.store.contract import Objects
from cluster.views import JobView
from jobs.errors import Conflict, InvalidInput
from service.api import Api
from service.auth import Caller
from service.schemas.jobs import KEPT, RetryRequest
from service.submission import NO_KEY, JobRequest

__all__ = ["edited"]


async def edited(
    api: Api, view: JobView, wanted: RetryRequest, caller: Caller, now: float
) -> JobSpec:
    """Return the spec of the job with other params, checked as at submission; large ones parked.

    Raises Conflict if it has not failed or has several tasks, and what a submission raises.
    """
    if view.status != "failed":
        raise Conflict(f"job {view.id} is {view.status}; only failed jobs can be retried")
    if view.steps:
        raise Conflict(f"job {view.id} has several tasks; its params can't be changed")
    before = await api.gateway.spec(view.alias_of or view.id, view.tenant)
    params = await _params(api.store, before, wanted)
    request = JobRequest(view.type, params, code=view.code or "")
    submissions = api.submissions
    if submissions.needs(request):
        await submissions.learn([request])
    checked = submissions.spec(request, replace(caller, tenant=view.tenant), NO_KEY, now)
    # Those of the type come first; what follows was asked for.
    limits = [*checked.limits, *before.limits[len(checked.limits) :]]
    return await submissions.park(
        msgspec.structs.replace(
            before, params=params, params_ref=None, limits=tuple(dict.fromkeys(limits))
        )
    )


async def _params(store: Objects, before: JobSpec, wanted: RetryRequest) -> msgspec.Raw:
    if wanted.params != KEPT:
        if wanted.set:
            raise InvalidInput("set", "changes some params; give it or params, not both")
        return wanted.params
    path = before.params_ref
    data = bytes(before.params) if path is None else await asyncio.to_thread(store.get, path)
    kept = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return msgspec.Raw(msgspec.json.encode(kept | wanted.set))
