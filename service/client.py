"""A client for the HTTP API, for web applications, scripts and Ray jobs.

    with Client() as drayman:
        job = drayman.submit("report.annual", {"year": 2013}, key=key_for(user, "report", 3600))
        job = drayman.wait(job["id"])

Rule 1: it answers in the API's own JSON (`docs/http.md`), as plain dicts. Rule 2: a call that
failed on the way is repeated only when repeating it changes nothing: every submission carries a
key, given or made here. Rule 3: it imports neither Ray nor anything of the server.
"""

import contextlib
import hashlib
import json
import random
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from service.target import NoTarget, find_target

__all__ = ["ApiError", "Client", "Json", "NoTarget", "Unreachable", "key_for"]

Json = dict[str, Any]

FINISHED = frozenset({"completed", "failed", "cancelled"})
#: Of an answer that says "later": too many requests, or nothing there to take it.
LATER = frozenset({429, 502, 503, 504})
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 3.0
#: Whoever is told to wait waits up to this part longer, so that not all come back at once.
SPREAD = 0.5
#: One long poll; the server caps it at 30.
POLL_S = 25
#: Lines of one batch, as the server takes them.
BATCH_LINES = 10_000
#: Of those that were refused so many are sent again at least; else twice what was taken last.
AGAIN_LINES = 100
#: Jobs and tasks asked for at once, as many as the server gives.
JOBS_PAGE, TASKS_PAGE = 500, 1_000
BLOCK_BYTES = 1 << 20


class ApiError(Exception):
    """The API refused; `problem` is its problem details (RFC 9457)."""

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(status, problem)
        self.status, self.problem = status, problem

    @property
    def kind(self) -> str:
        """The stable name of the problem: `not-found`, `invalid-input`, ..."""
        return str(self.problem.get("type", "")).rpartition("/")[2]

    def __str__(self) -> str:
        errors = self.problem.get("errors")
        if errors:
            return "; ".join(f"{e['field']}: {e['reason']}" for e in errors)
        return self.problem.get("detail") or self.problem.get("title") or f"HTTP {self.status}"


class Unreachable(Exception):
    """The API did not answer, or said "later" until patience ended."""


def key_for(user: str, action: str, window_s: float, *, now: float | None = None) -> str:
    """Return an idempotency key that is the same for this user and action within a window.

    Windows are fixed slices of time: two clicks either side of a boundary are two jobs. A job type
    with `unique_for_s` has no such boundary.
    """
    slice_number = int((time.time() if now is None else now) // window_s)
    text = json.dumps([user, action, window_s, slice_number])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Client:
    """Talks to one Drayman. Use as a context manager, or call `close`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = 30.0,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Find the Drayman (see `service.target`); raises NoTarget if there is none to be found.

        `patience_s`: how long to repeat a call that may be repeated.
        """
        target = find_target(url, token)
        self.url = target.url
        self._patience_s = patience_s
        self._http = httpx.Client(
            base_url=target.url,
            headers={"Authorization": f"Bearer {target.token}", "User-Agent": "drayman"},
            timeout=timeout_s,
            transport=transport,
            # A proxy from the environment must not see tokens meant for this machine.
            trust_env=not _is_local(target.url),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- jobs ---------------------------------------------------------------------------------

    def submit(
        self,
        type: str,
        params: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        wait_s: float | None = None,
        **options: Any,
    ) -> Json:
        """Submit a job; return it once it is durable.

        With the same `key` again it returns the same job. `wait_s` (to 30) returns the finished
        job if it ends in time. `options` are the fields of `POST /v1/jobs`: queue, priority,
        run_at, delay_s, timeout_s, expires_at, max_attempts, labels, code.
        """
        body = {"type": type, "params": dict(params or {})} | options
        return self._submit("/v1/jobs", body, key, wait_s)

    def workflow(
        self,
        steps: Iterable[Mapping[str, Any]],
        *,
        key: str | None = None,
        wait_s: float | None = None,
        **options: Any,
    ) -> Json:
        """Submit steps as one job; else as `submit`.

        A step is a mapping with the fields `name`, `type`, `params`, `after`, and so on; `options`
        are the fields of `POST /v1/workflows` beside `steps`: name, on_failure, result, priority,
        run_at, delay_s, expires_at, labels, code.
        """
        body = {"steps": [dict(step) for step in steps]} | options
        return self._submit("/v1/workflows", body, key, wait_s)

    def _submit(self, path: str, body: Json, key: str | None, wait_s: float | None) -> Json:
        headers = _keys(key)
        if wait_s is not None:
            headers["Prefer"] = f"wait={int(wait_s)}"
        return self._json("POST", path, json=body, headers=headers, repeatable=True)

    def submit_many(
        self, jobs: Iterable[Mapping[str, Any]], *, key: str | None = None
    ) -> Iterator[Json]:
        """Submit many jobs; yield `{line, id}` or `{line, problem}` for each, in order.

        A job is a mapping with the fields of `POST /v1/jobs`, and maybe `idempotency_key`. What is
        refused for now is sent again, so that a full queue slows the sender down; patience begins
        anew with each that is taken.
        """
        whole = key or uuid.uuid4().hex
        for number, batch in enumerate(_batches(jobs)):
            lines = [json.dumps(dict(job)).encode() for job in batch]
            named = {("Idempotency-Key" if key else "Drayman-Request-Id"): f"{whole}-{number}"}
            for result in self._submit_lines(lines, named):
                yield result | {"line": number * BATCH_LINES + result["line"]}

    def _submit_lines(self, lines: list[bytes], headers: dict[str, str]) -> list[Json]:
        results: dict[int, Json] = {}
        #: Lines to be sent, and when.
        due = dict.fromkeys(range(len(lines)), 0.0)
        most = len(lines)
        tries = _Tries(self._patience_s)
        for last in tries:
            now = time.monotonic()
            sent = [at for at, when in due.items() if when <= now][:most]
            try:
                answers = self._send_lines(lines, sent, headers, tries) if sent else []
            except ApiError:
                if not results:
                    raise
                break  # why each was refused before is known
            taken = 0
            for answer in answers:
                at = answer["line"] - 1
                results[at] = answer
                if (wait_s := _wait_s(answer)) is None:
                    del due[at]
                    taken += "id" in answer
                else:
                    due[at] = now + wait_s
            if taken:
                tries.renew()
            if not due or (last and not taken):
                break
            most = max(AGAIN_LINES, 2 * taken)
            waits = [due[at] - now for at in sent or due if at in due]
            if waits:
                tries.pause(min(waits))
        return [results[at] for at in sorted(results)]

    def _send_lines(
        self, lines: list[bytes], sent: list[int], headers: dict[str, str], tries: "_Tries"
    ) -> list[Json]:
        """Send some of the lines at their places, with nothing in the others: see docs/http.md."""
        places = [b""] * (sent[-1] + 1)
        for at in sent:
            places[at] = lines[at]
        answer = self._call(
            "POST",
            "/v1/jobs/batch",
            content=b"\n".join(places),
            headers=headers,
            repeatable=True,
            tries=tries,
        )
        return [json.loads(line) for line in answer.text.splitlines()]

    def status(self, job_id: str) -> Json:
        """Return the job as it is now."""
        return self._json("GET", _job(job_id))

    def watch(self, job_id: str, *, every_s: int = 1) -> Iterator[Json]:
        """Yield the job now, every `every_s` seconds, and at once when it ends; then stop."""
        shown = self.status(job_id)
        yield shown
        while shown["status"] not in FINISHED:
            shown = self._json("GET", _job(job_id), headers={"Prefer": f"wait={every_s}"})
            yield shown

    def wait(self, job_id: str, timeout_s: float | None = None) -> Json:
        """Return the job once it has ended; raises TimeoutError if it has not by then."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = POLL_S if deadline is None else max(0.0, deadline - time.monotonic())
            poll_s = min(POLL_S, int(left_s) + (left_s % 1 > 0))
            shown = self._json("GET", _job(job_id), headers={"Prefer": f"wait={poll_s}"})
            if shown["status"] in FINISHED:
                return shown
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {job_id} is {shown['status']} after {timeout_s:g} s")

    def jobs(self, **filters: Any) -> Iterator[Json]:
        """Yield jobs, newest first: all pages, or `limit` jobs.

        Filters: status, type, queue, label (`name=value`), tenant.
        """
        return self._pages("/v1/jobs", filters)

    def cancel(self, job_id: str) -> Json:
        """Ask the job to stop, again if the answer is lost; ApiError (409) if it has ended."""
        return self._json("POST", f"{_job(job_id)}/cancel", repeatable=True)

    def retry(
        self,
        job_id: str,
        params: Mapping[str, Any] | None = None,
        *,
        set: Mapping[str, Any] | None = None,
    ) -> Json:
        """Give a failed job a new budget; raises ApiError (409) if it has not failed.

        With `params`, these are its params from now on; with `set`, only these of them change.
        """
        edits = {"params": params, "set": set}
        body = {name: dict(value) for name, value in edits.items() if value is not None}
        return self._json("POST", f"{_job(job_id)}/retry", json=body)

    def attempts(self, job_id: str) -> list[Json]:
        """Return the job's attempts, oldest first."""
        return list(self._json("GET", f"{_job(job_id)}/attempts")["attempts"])

    def tasks(self, job_id: str, *, after: int = 0, limit: int | None = None) -> Iterator[Json]:
        """Yield the job's tasks with their lineage: from place `after` on, all or `limit` of them.

        Of each step its split, its chunks in order, its join. They are asked for a page at a time.
        """
        return self._pages(
            f"{_job(job_id)}/tasks", {"after": after, "limit": limit}, "tasks", TASKS_PAGE
        )

    def logs(self, job_id: str, attempt: int | None = None) -> str:
        """Return what the attempts printed."""
        query = {} if attempt is None else {"attempt": attempt}
        return self._call("GET", f"{_job(job_id)}/logs", params=query).text

    # --- results and files --------------------------------------------------------------------

    def result(self, job_id: str) -> Any:
        """Return what the handler returned; raises ApiError (409) unless completed."""
        return self._call("GET", f"{_job(job_id)}/result").json()

    def files(self, job_id: str) -> list[Json]:
        """Return the files the job wrote."""
        return list(self._json("GET", f"{_job(job_id)}/files")["files"])

    def download(self, file: Json, folder: Path) -> Path:
        """Save one of `files(...)`, or of a task's `files`, into the folder; return its path.

        A broken transfer is taken up where it broke; the checksum is compared at the end, and
        nothing has the file's name before that.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(str(file["name"])).name
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with partial.open("wb") as target:
                digest, promised = self._fetch(file, target)
            if digest != promised:
                raise Unreachable(f"{path.name} arrived damaged; download it again")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def task_file(self, job_id: str, task_id: str, name: str, folder: Path) -> Path:
        """Save the file `name` that a task of the job kept; else as `download`."""
        href = f"{_job(job_id)}/tasks/{quote(task_id, safe='')}/files/{quote(name, safe='')}"
        return self.download({"name": name, "href": href, "sha256": ""}, folder)

    def upload(self, path: Path, name: str | None = None) -> Json:
        """Store a file; return `{uri, bytes, sha256}`. Put the uri into params."""
        target = f"/v1/uploads/{quote(name or path.name, safe='')}"

        def blocks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block

        return self._json("PUT", target, content=blocks)

    # --- operating ----------------------------------------------------------------------------

    def queues(self) -> list[Json]:
        """Return every queue."""
        return list(self._json("GET", "/v1/queues")["queues"])

    def pause(self, queue: str) -> Json:
        """Start nothing more from the queue."""
        return self._tell("queues", queue, "pause")

    def resume(self, queue: str) -> Json:
        """Start from the queue again."""
        return self._tell("queues", queue, "resume")

    def drain(self, queue: str) -> Json:
        """Take nothing new into the queue; what is in it is done."""
        return self._tell("queues", queue, "drain")

    def fill(self, queue: str) -> Json:
        """Take submissions into the queue again."""
        return self._tell("queues", queue, "fill")

    def dead_letters(self, **filters: Any) -> Iterator[Json]:
        """Yield failed jobs, longest dead first. Filters: type, queue, cause, tenant."""
        return self._pages("/v1/dead-letters", filters)

    def dead_counts(self, **filters: Any) -> list[Json]:
        """Return how many dead letters there are by queue, type and cause. Filters as above."""
        query = {name: value for name, value in filters.items() if value is not None}
        return list(self._json("GET", "/v1/dead-letters/counts", params=query)["counts"])

    def redrive(self, *, rate: float | None = None, **filters: Any) -> int:
        """Give every matching dead letter a new budget; return how many. Filters as above, ids.

        `rate`: so many a second. Without any filter, all are meant.
        """
        body: Json = {"filter": filters} | ({} if rate is None else {"rate": rate})
        return int(self._json("POST", "/v1/dead-letters/redrive", json=body)["redriven"])

    def purge(self, **filters: Any) -> int:
        """Let every matching dead letter go for good; return how many. Filters as for `redrive`."""
        answer = self._json("POST", "/v1/dead-letters/purge", json={"filter": filters})
        return int(answer["purged"])

    def workers(self) -> list[Json]:
        """Return every worker."""
        return list(self._json("GET", "/v1/workers")["workers"])

    def pause_worker(self, worker: str) -> Json:
        """Give the worker nothing more for now; what it has goes on."""
        return self._tell("workers", worker, "pause")

    def resume_worker(self, worker: str) -> Json:
        """Give the worker work again."""
        return self._tell("workers", worker, "resume")

    def drain_worker(self, worker: str) -> Json:
        """Let the worker finish what it has, and end."""
        return self._tell("workers", worker, "drain")

    def _tell(self, things: str, name: str, what: str) -> Json:
        return self._json("POST", f"/v1/{things}/{quote(name, safe='')}/{what}", repeatable=True)

    def types(self) -> list[Json]:
        """Return the job types and the JSON Schemas of their params."""
        return list(self._json("GET", "/v1/types")["types"])

    def config(self) -> tuple[Json, str]:
        """Return the config in force, and its ETag."""
        answer = self._call("GET", "/v1/config")
        return answer.json(), answer.headers["ETag"]

    def configure(self, config: Mapping[str, Any], etag: str | None = None) -> tuple[Json, str]:
        """Put a config in force, whole; return it as it is then, and its ETag.

        ApiError (412) if the one in force is not that of `etag`.
        """
        headers = {} if etag is None else {"If-Match": etag}
        answer = self._call("PUT", "/v1/config", json=dict(config), headers=headers)
        return answer.json(), answer.headers["ETag"]

    def put_code(self, data: bytes) -> Json:
        """Keep a bundle (`cluster.bundle.make_bundle`); return `{code, modules, types}`."""
        return self._json("PUT", "/v1/code", content=data)

    def code(self, sha: str) -> Json:
        """Return what is in a bundle that is kept; ApiError (404) if it is not."""
        return self._json("GET", f"/v1/code/{quote(sha, safe='')}")

    def deploy(self, code: str, types: list[str] | None = None) -> Json:
        """Run new jobs of all its types, or of these, with a bundle; return `{code, types}`."""
        body: Json = {"code": code} | ({} if types is None else {"types": types})
        return self._json("POST", "/v1/code/deploy", json=body, repeatable=True)

    def deployed(self) -> dict[str, str]:
        """Return the hash of the code that is deployed for each type."""
        return dict(self._json("GET", "/v1/code")["types"])

    def create_token(self, tenant: str, scopes: list[str], name: str = "") -> Json:
        """Make a token; its text is in the answer and nowhere else."""
        body = {"tenant": tenant, "scopes": scopes, "name": name}
        return self._json("POST", "/v1/tokens", json=body)

    def tokens(self) -> list[Json]:
        """Return the tokens that work."""
        return list(self._json("GET", "/v1/tokens")["tokens"])

    def revoke_token(self, token_id: str) -> Json:
        """Revoke a token by its id."""
        return self._json("DELETE", f"/v1/tokens/{quote(token_id, safe='')}", repeatable=False)

    # --- schedules ----------------------------------------------------------------------------

    def put_endpoint(self, name: str, url: str = "") -> Json:
        """Let webhooks to this name go to a URL; the secret of a new one is in the answer.

        `default` has no URL: its secret signs what goes to URLs that jobs name.
        """
        return self._json("PUT", _endpoint(name), json={"url": url} if url else {})

    def endpoints(self) -> list[Json]:
        """Return the tenant's webhook endpoints."""
        return list(self._json("GET", "/v1/endpoints")["endpoints"])

    def rotate_endpoint(self, name: str) -> Json:
        """Make a new secret, which is in the answer; the old one signs too for another day."""
        found: Json = self._call("POST", f"{_endpoint(name)}/rotate", repeatable=False).json()
        return found

    def test_endpoint(self, name: str) -> Json:
        """Send a test event; return the job that delivers it."""
        found: Json = self._call("POST", f"{_endpoint(name)}/test", repeatable=False).json()
        return found

    def delete_endpoint(self, name: str) -> None:
        """Forget a webhook endpoint and its secrets; ApiError (404) if there is none."""
        self._call("DELETE", _endpoint(name), repeatable=False)

    def put_schedule(self, name: str, cron: str, job: Mapping[str, Any], **options: Any) -> Json:
        """Submit `job` at each tick of a cron line, in place of any schedule of this name.

        `job` has the fields of `POST /v1/jobs`: type, params, and so on. `options` are those of
        `PUT /v1/schedules/{name}` beside it: timezone, catch_up, jitter_s, overlap, starts_at,
        ends_at, paused. The same again changes nothing.
        """
        body = {"cron": cron, "job": dict(job)} | options
        return self._json("PUT", _schedule(name), json=body)

    def schedules(self, **filters: Any) -> list[Json]:
        """Return every schedule, each with its next tick. Filter: tenant."""
        return list(self._json("GET", "/v1/schedules", params=filters)["schedules"])

    def schedule(self, name: str, *, ahead: int = 3) -> Json:
        """Return a schedule and so many of its next ticks."""
        return self._json("GET", _schedule(name), params={"next": ahead})

    def delete_schedule(self, name: str) -> None:
        """Forget a schedule; ApiError (404) if there is none. Jobs that it submitted go on."""
        self._call("DELETE", _schedule(name), repeatable=False)

    def run_schedule(self, name: str) -> Json:
        """Submit a schedule's job now; return the job."""
        return self._json("POST", f"{_schedule(name)}/run")

    def pause_schedule(self, name: str) -> Json:
        """Fire nothing until it is resumed."""
        return self._json("POST", f"{_schedule(name)}/pause", repeatable=True)

    def resume_schedule(self, name: str) -> Json:
        """Fire again, from the next tick on."""
        return self._json("POST", f"{_schedule(name)}/resume", repeatable=True)

    # --- calling ------------------------------------------------------------------------------

    def _json(self, method: str, path: str, **request: Any) -> Json:
        found: Json = self._call(method, path, **request).json()
        return found

    def _pages(
        self, path: str, filters: Mapping[str, Any], items: str = "jobs", at_once: int = JOBS_PAGE
    ) -> Iterator[Json]:
        query = {name: value for name, value in filters.items() if value is not None}
        left = query.pop("limit", None)
        while left is None or left > 0:
            page = self._json("GET", path, params=query | {"limit": min(left or at_once, at_once)})
            yield from page[items][:left]
            left = None if left is None else left - len(page[items])
            if page["next_after"] is None:
                return
            query["after"] = page["next_after"]

    def _call(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool | None = None,
        content: Any = None,
        tries: "_Tries | None" = None,
        **request: Any,
    ) -> httpx.Response:
        """Send a request until it is answered for good. Raises ApiError or Unreachable."""
        repeatable = method in ("GET", "PUT") if repeatable is None else repeatable
        tries = tries or _Tries(self._patience_s)
        for last in tries:
            body = content() if callable(content) else content
            wait_s: float | None = None
            try:
                answer = self._http.request(method, path, content=body, **request)
            except httpx.TransportError as error:
                # Refused before it was sent, it can be sent again whatever it is.
                if last or not (repeatable or isinstance(error, httpx.ConnectError)):
                    raise Unreachable(f"{self.url} does not answer: {error}") from error
            else:
                if answer.is_success:
                    return answer
                if last or not _is_later(answer, repeatable):
                    raise _refusal(answer)
                wait_s = _retry_after_s(answer)
            tries.pause(wait_s)
        raise AssertionError("the last try returns or raises")

    def _fetch(self, file: Json, target: Any) -> tuple[str, str]:
        """Write the file's bytes; return their SHA-256, and what it is to be."""
        digest, offset = hashlib.sha256(), 0
        promised: str = file["sha256"]  # empty if only the answer says it
        tries = _Tries(self._patience_s)
        for last in tries:
            headers = {"Accept-Encoding": "identity"}
            if offset:
                headers["If-Range"] = f'"{promised}"'
                headers["Range"] = f"bytes={offset}-"
            try:
                with self._http.stream("GET", file["href"], headers=headers) as answer:
                    if not answer.is_success:
                        answer.read()
                        if last or not _is_later(answer, True):
                            raise _refusal(answer)
                    else:
                        if offset and answer.status_code != 206:
                            raise Unreachable("the file changed while it was downloaded")
                        promised = promised or answer.headers.get("etag", "").strip('"')
                        for block in answer.iter_bytes():
                            target.write(block)
                            digest.update(block)
                            offset += len(block)
                        return digest.hexdigest(), promised
            except httpx.TransportError as error:
                if last:
                    raise Unreachable(f"{self.url} does not answer: {error}") from error
            tries.pause()
        raise AssertionError("the last try returns or raises")


class _Tries:
    """Tries of one call, with jitter between them, until patience ends."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.renew()

    def renew(self) -> None:
        """Have patience anew."""
        self._deadline = time.monotonic() + self._patience_s
        self._backoff_s = BACKOFF_FIRST_S

    def __iter__(self) -> Iterator[bool]:
        """Yield whether this try is the last, unless patience is renewed by it."""
        while True:
            yield time.monotonic() >= self._deadline

    def pause(self, asked_s: float | None = None) -> None:
        """Wait before the next try: as long as the server asked, and up to `SPREAD` longer."""
        wait_s = random.uniform(0, self._backoff_s)
        self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2)
        if asked_s is not None and asked_s > 0:
            wait_s = asked_s * random.uniform(1, 1 + SPREAD)
        time.sleep(min(wait_s, max(0.0, self._deadline - time.monotonic())))


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _endpoint(name: str) -> str:
    return f"/v1/endpoints/{quote(name, safe='')}"


def _schedule(name: str) -> str:
    return f"/v1/schedules/{quote(name, safe='')}"


def _keys(given: str | None) -> dict[str, str]:
    """Return the header that makes repeating a submission safe."""
    if given is not None:
        escaped = given.replace("\\", r"\\").replace('"', r"\"")
        return {"Idempotency-Key": f'"{escaped}"'}
    # Not Idempotency-Key: that would override a job type's own `unique_for_s`.
    return {"Drayman-Request-Id": uuid.uuid4().hex}


def _batches(jobs: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    for job in jobs:
        batch.append(job)
        if len(batch) == BATCH_LINES:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_later(answer: httpx.Response, repeatable: bool) -> bool:
    """Return whether to try again: the API says so, or an edge before it failed."""
    if answer.status_code == 429:
        return True  # refused before anything was done
    if not repeatable:
        return False
    is_ours = answer.headers.get("content-type", "").startswith("application/problem+json")
    return answer.status_code in LATER or (answer.status_code == 500 and not is_ours)


def _wait_s(answer: Json) -> float | None:
    """Return how long to wait before a line of a batch is sent again; None if it is not to be."""
    problem = answer.get("problem")
    if problem is None or problem["status"] not in LATER:
        return None
    return max(1.0, float(problem.get("retry_after_s", 0.0)))


def _retry_after_s(answer: httpx.Response) -> float | None:
    with contextlib.suppress(ValueError):  # a date: the backoff will do
        return max(0.0, float(answer.headers.get("retry-after", "")))
    return None


def _refusal(answer: httpx.Response) -> Exception:
    with contextlib.suppress(ValueError):
        problem = answer.json()
        if isinstance(problem, dict):
            return ApiError(answer.status_code, problem)
    if answer.status_code >= 500:
        return Unreachable(f"{answer.url} answered HTTP {answer.status_code} without a reason")
    return ApiError(answer.status_code, {"title": f"HTTP {answer.status_code}"})


def _is_local(url: str) -> bool:
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
