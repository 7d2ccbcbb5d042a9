"""Calls of whoever operates Drayman: queues, workers, dead letters, code, tokens, schedules."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from service.client.core import Core, Items, Steps
from service.client.drive import call, stream
from service.client.jobs import JOBS_PAGE
from service.client.types import DeadCount, Job, Overview, Queue, Worker

__all__ = ["OperatorCalls"]

SCHEDULES_PAGE = 1_000


class OperatorCalls(Core):
    """What there is to do with everything but one's own jobs."""

    @call
    def queues(self) -> Steps[list[Queue]]:
        """Return every queue."""
        return self._part("queues", "GET", "/v1/queues")

    @call
    def overview(self) -> Steps[Overview]:
        """Return the workers and the jobs that ended lately, summed up."""
        return self._json("GET", "/v1/overview")

    @call
    def pause(self, queue: str) -> Steps[Queue]:
        """Start nothing more from the queue."""
        return self._tell("queues", queue, "pause")

    @call
    def resume(self, queue: str) -> Steps[Queue]:
        """Start from the queue again."""
        return self._tell("queues", queue, "resume")

    @call
    def drain(self, queue: str) -> Steps[Queue]:
        """Take nothing new into the queue; what is in it is done."""
        return self._tell("queues", queue, "drain")

    @call
    def fill(self, queue: str) -> Steps[Queue]:
        """Take submissions into the queue again."""
        return self._tell("queues", queue, "fill")

    @stream
    def dead_letters(self, /, **filters: Any) -> Items[Job]:
        """Yield failed jobs, longest dead first. Filters: type, queue, cause, tenant."""
        return self._pages("/v1/dead-letters", filters, "jobs", JOBS_PAGE)

    @call
    def dead_counts(self, /, **filters: Any) -> Steps[list[DeadCount]]:
        """Return how many dead letters there are by queue, type and cause. Filters as above."""
        query = {name: value for name, value in filters.items() if value is not None}
        return self._part("counts", "GET", "/v1/dead-letters/counts", params=query)

    @call
    def redrive(self, /, *, rate: float | None = None, **filters: Any) -> Steps[int]:
        """Give every matching dead letter a new budget; return how many. Filters as above, ids.

        `rate`: so many a second. Without any filter, all are meant.
        """
        body: dict[str, Any] = {"filter": filters} | ({} if rate is None else {"rate": rate})
        return self._part("redriven", "POST", "/v1/dead-letters/redrive", json=body)

    @call
    def purge(self, /, **filters: Any) -> Steps[int]:
        """Let every matching dead letter go for good; return how many. Filters as for `redrive`."""
        return self._part("purged", "POST", "/v1/dead-letters/purge", json={"filter": filters})

    @call
    def workers(self) -> Steps[list[Worker]]:
        """Return every worker."""
        return self._part("workers", "GET", "/v1/workers")

    @call
    def pause_worker(self, worker: str) -> Steps[Worker]:
        """Give the worker nothing more for now; what it has goes on."""
        return self._tell("workers", worker, "pause")

    @call
    def resume_worker(self, worker: str) -> Steps[Worker]:
        """Give the worker work again."""
        return self._tell("workers", worker, "resume")

    @call
    def drain_worker(self, worker: str) -> Steps[Worker]:
        """Let the worker finish what it has, and end."""
        return self._tell("workers", worker, "drain")

    def _tell(self, things: str, name: str, what: str) -> Steps[Any]:
        return self._json("POST", f"/v1/{things}/{quote(name, safe='')}/{what}", repeatable=True)

    @call
    def types(self) -> Steps[list[dict[str, Any]]]:
        """Return the job types and the JSON Schemas of their params."""
        return self._part("types", "GET", "/v1/types")

    @call
    def config(self) -> Steps[tuple[dict[str, Any], str]]:
        """Return the config in force, and its ETag."""
        answer = yield from self._call("GET", "/v1/config")
        return answer.json(), answer.headers["ETag"]

    @call
    def configure(
        self, config: Mapping[str, Any], etag: str | None = None
    ) -> Steps[tuple[dict[str, Any], str]]:
        """Put a config in force, whole; return it as it is then, and its ETag.

        ApiError (412) if the one in force is not that of `etag`.
        """
        headers = {} if etag is None else {"If-Match": etag}
        answer = yield from self._call("PUT", "/v1/config", json=dict(config), headers=headers)
        return answer.json(), answer.headers["ETag"]

    @call
    def put_code(self, data: bytes) -> Steps[dict[str, Any]]:
        """Keep a bundle (`cluster.bundle.make_bundle`); return `{code, modules, types}`."""
        return self._json("PUT", "/v1/code", content=data)

    @call
    def code(self, sha: str) -> Steps[dict[str, Any]]:
        """Return what is in a bundle that is kept; ApiError (404) if it is not."""
        return self._json("GET", f"/v1/code/{quote(sha, safe='')}")

    @call
    def deploy(self, code: str, types: list[str] | None = None) -> Steps[dict[str, Any]]:
        """Run new jobs of all its types, or of these, with a bundle; return `{code, types}`."""
        body: dict[str, Any] = {"code": code} | ({} if types is None else {"types": types})
        return self._json("POST", "/v1/code/deploy", json=body, repeatable=True)

    @call
    def deployed(self) -> Steps[dict[str, str]]:
        """Return the hash of the code that is deployed for each type."""
        return self._part("types", "GET", "/v1/code")

    @call
    def create_token(self, tenant: str, scopes: list[str], name: str = "") -> Steps[dict[str, Any]]:
        """Make a token; its text is in the answer and nowhere else."""
        body = {"tenant": tenant, "scopes": scopes, "name": name}
        return self._json("POST", "/v1/tokens", json=body)

    @call
    def tokens(self) -> Steps[list[dict[str, Any]]]:
        """Return the tokens that work."""
        return self._part("tokens", "GET", "/v1/tokens")

    @call
    def revoke_token(self, token_id: str) -> Steps[dict[str, Any]]:
        """Revoke a token by its id."""
        return self._json("DELETE", f"/v1/tokens/{quote(token_id, safe='')}", repeatable=False)

    # --- endpoints and schedules ------------------------------------------------------------------

    @call
    def put_endpoint(self, name: str, url: str = "") -> Steps[dict[str, Any]]:
        """Let webhooks to this name go to a URL; the secret of a new one is in the answer.

        `default` has no URL: its secret signs what goes to URLs that jobs name.
        """
        return self._json("PUT", _endpoint(name), json={"url": url} if url else {})

    @call
    def endpoints(self) -> Steps[list[dict[str, Any]]]:
        """Return the tenant's webhook endpoints."""
        return self._part("endpoints", "GET", "/v1/endpoints")

    @call
    def rotate_endpoint(self, name: str) -> Steps[dict[str, Any]]:
        """Make a new secret, which is in the answer; the old one signs too for another day."""
        return self._json("POST", f"{_endpoint(name)}/rotate", repeatable=False)

    @call
    def test_endpoint(self, name: str) -> Steps[Job]:
        """Send a test event; return the job that delivers it."""
        return self._json("POST", f"{_endpoint(name)}/test", repeatable=False)

    @call
    def delete_endpoint(self, name: str) -> Steps[None]:
        """Forget a webhook endpoint and its secrets; ApiError (404) if there is none."""
        yield from self._call("DELETE", _endpoint(name), repeatable=False)

    @call
    def put_schedule(
        self, /, name: str, cron: str, job: Mapping[str, Any], **options: Any
    ) -> Steps[dict[str, Any]]:
        """Submit `job` at each tick of a cron line, in place of any schedule of this name.

        `job` has the fields of `POST /v1/jobs`: type, params, and so on. `options` are those of
        `PUT /v1/schedules/{name}` beside it: timezone, catch_up, jitter_s, overlap, starts_at,
        ends_at, paused. The same again changes nothing.
        """
        body = {"cron": cron, "job": dict(job)} | options
        return self._json("PUT", _schedule(name), json=body)

    @call
    def schedules(self, /, **filters: Any) -> Steps[list[dict[str, Any]]]:
        """Return every schedule, each with its next tick. Filter: tenant."""
        found: list[dict[str, Any]] = []
        query = filters | {"limit": SCHEDULES_PAGE}
        while True:
            page = yield from self._json("GET", "/v1/schedules", params=query)
            found += page["schedules"]
            if page["next_after"] is None:
                return found
            query["after"] = page["next_after"]

    @call
    def schedule(self, name: str, *, ahead: int = 3) -> Steps[dict[str, Any]]:
        """Return a schedule and so many of its next ticks."""
        return self._json("GET", _schedule(name), params={"next": ahead})

    @call
    def delete_schedule(self, name: str) -> Steps[None]:
        """Forget a schedule; ApiError (404) if there is none. Jobs that it submitted go on."""
        yield from self._call("DELETE", _schedule(name), repeatable=False)

    @call
    def run_schedule(self, name: str) -> Steps[Job]:
        """Submit a schedule's job now; return the job."""
        return self._json("POST", f"{_schedule(name)}/run")

    @call
    def pause_schedule(self, name: str) -> Steps[dict[str, Any]]:
        """Fire nothing until it is resumed."""
        return self._json("POST", f"{_schedule(name)}/pause", repeatable=True)

    @call
    def resume_schedule(self, name: str) -> Steps[dict[str, Any]]:
        """Fire again, from the next tick on."""
        return self._json("POST", f"{_schedule(name)}/resume", repeatable=True)


def _endpoint(name: str) -> str:
    return f"/v1/endpoints/{quote(name, safe='')}"


def _schedule(name: str) -> str:
    return f"/v1/schedules/{quote(name, safe='')}"
