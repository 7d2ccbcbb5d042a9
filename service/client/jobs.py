"""Calls of whoever submits jobs: jobs, their results, their files."""

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from service.client.core import (
    ApiError,
    Core,
    Item,
    Items,
    Open,
    Read,
    Steps,
    Tries,
    Unreachable,
    is_later,
    json_body,
    keys,
    refusal,
    wait_s,
)
from service.client.drive import call, stream
from service.client.events import FINISHED, follow
from service.client.types import Attempt, BatchResult, Event, File, Job, Task, Upload

__all__ = ["JobCalls"]

#: One long poll; the server caps it at 30.
POLL_S = 25
#: Lines of one batch, as the server takes them.
BATCH_LINES, BATCH_BYTES = 10_000, 16 << 20
#: Of those that were refused so many are sent again at least; else twice what was taken last.
AGAIN_LINES = 100
#: Jobs and tasks asked for at once, as many as the server gives.
JOBS_PAGE, TASKS_PAGE = 500, 1_000
BLOCK_BYTES = 1 << 20


class JobCalls(Core):
    """What there is to do with jobs."""

    @call
    def submit(
        self,
        /,
        type: str,
        params: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        wait_s: float | None = None,
        **options: Any,
    ) -> Steps[Job]:
        """Submit a job; return it once it is durable.

        With the same `key` again it returns the same job. `wait_s` (to 30) returns the finished
        job if it ends in time. `options` are the fields of `POST /v1/jobs`: queue, priority,
        run_at, delay_s, timeout_s, expires_at, max_attempts, labels, code.
        """
        body = {"type": type, "params": dict(params or {})} | options
        return self._submit("/v1/jobs", body, key, wait_s)

    @call
    def workflow(
        self,
        /,
        steps: Iterable[Mapping[str, Any]],
        *,
        key: str | None = None,
        wait_s: float | None = None,
        **options: Any,
    ) -> Steps[Job]:
        """Submit steps as one job; else as `submit`.

        A step is a mapping with the fields `name`, `type`, `params`, `after`, and so on; `options`
        are the fields of `POST /v1/workflows` beside `steps`: name, on_failure, result, priority,
        run_at, delay_s, expires_at, labels, code.
        """
        body = {"steps": [dict(step) for step in steps]} | options
        return self._submit("/v1/workflows", body, key, wait_s)

    def _submit(
        self, path: str, body: dict[str, Any], key: str | None, wait_s: float | None
    ) -> Steps[Job]:
        headers = keys(key)
        if wait_s is not None:
            headers["Prefer"] = f"wait={int(wait_s)}"
        return self._json("POST", path, json=body, headers=headers, repeatable=True)

    @stream
    def submit_many(
        self, jobs: Iterable[Mapping[str, Any]], *, key: str | None = None
    ) -> Items[BatchResult]:
        """Submit many jobs; yield `{line, id}` or `{line, problem}` for each, in order.

        A job is a mapping with the fields of `POST /v1/jobs`, and maybe `idempotency_key`. What is
        refused for now is sent again, so that a full queue slows the sender down; patience begins
        anew with each that is taken.
        """
        whole = key or uuid.uuid4().hex
        before = 0
        for number, lines in enumerate(_batches(jobs)):
            named = {("Idempotency-Key" if key else "Drayman-Request-Id"): f"{whole}-{number}"}
            for result in (yield from self._submit_lines(lines, named)):
                yield Item({**result, "line": before + result["line"]})
            before += len(lines)

    def _submit_lines(
        self, lines: list[bytes], headers: dict[str, str]
    ) -> Steps[list[BatchResult]]:
        results: dict[int, BatchResult] = {}
        #: Lines to be sent, and when.
        due = dict.fromkeys(range(len(lines)), 0.0)
        most = len(lines)
        tries = Tries(self.patience_s)
        for last in tries:
            now = time.monotonic()
            sent = [at for at, when in due.items() if when <= now][:most]
            try:
                answers = []
                if sent:
                    answers = yield from self._send_lines(lines, sent, headers, tries)
            except ApiError:
                if not results:
                    raise
                break  # why each was refused before is known
            taken = 0
            for answer in answers:
                at = answer["line"] - 1
                results[at] = answer
                if (later_s := wait_s(answer)) is None:
                    del due[at]
                    taken += "id" in answer
                else:
                    due[at] = now + later_s
            if taken:
                tries.renew()
            if not due or (last and not taken):
                break
            most = max(AGAIN_LINES, 2 * taken)
            waits = [due[at] - now for at in sent or due if at in due]
            if waits:
                yield tries.pause(min(waits))
        return [results[at] for at in sorted(results)]

    def _send_lines(
        self, lines: list[bytes], sent: list[int], headers: dict[str, str], tries: Tries
    ) -> Steps[list[BatchResult]]:
        """Send some of the lines at their places, with nothing in the others: see docs/http.md."""
        places = [b""] * (sent[-1] + 1)
        for at in sent:
            places[at] = lines[at]
        answer = yield from self._call(
            "POST",
            "/v1/jobs/batch",
            content=b"\n".join(places),
            headers=headers,
            repeatable=True,
            tries=tries,
        )
        return [json.loads(line) for line in answer.text.splitlines()]

    @call
    def status(self, job_id: str) -> Steps[Job]:
        """Return the job as it is now."""
        return self._json("GET", _job(job_id))

    @stream
    def watch(self, job_id: str, *, after: int | None = None, tasks: bool = False) -> Items[Event]:
        """Yield what happens to the job as it happens, until its last event (`docs/events.md`).

        The first says how it is: `job`; or it goes on after event `after`. Over a lost connection,
        each event comes once nevertheless. `tasks`: those of single chunks, too.
        """
        query = {"tasks": 1} if tasks else {}
        return follow(self, f"{_job(job_id)}/events", query, after, of_a_job=True)

    @call
    def wait(self, job_id: str, timeout_s: float | None = None) -> Steps[Job]:
        """Return the job once it has ended; raises TimeoutError if it has not by then."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = POLL_S if deadline is None else max(0.0, deadline - time.monotonic())
            poll_s = min(POLL_S, int(left_s) + (left_s % 1 > 0))
            prefer = {"Prefer": f"wait={poll_s}"}
            shown: Job = yield from self._json("GET", _job(job_id), headers=prefer)
            if shown["status"] in FINISHED:
                return shown
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {job_id} is {shown['status']} after {timeout_s:g} s")

    @stream
    def events(self, /, *, after: int | None = None, **filters: Any) -> Items[Event]:
        """Yield what happens to jobs from now on, or after event `after`; it never ends.

        The first is a `reset`: read your lists after it. Filters: as for `jobs`.
        """
        query = {name: value for name, value in filters.items() if value is not None}
        return follow(self, "/v1/events", query, after, of_a_job=False)

    @stream
    def jobs(self, /, **filters: Any) -> Items[Job]:
        """Yield jobs, newest first: all pages, or `limit` jobs.

        Filters: status, type, queue, label (`name=value`), tenant.
        """
        return self._pages("/v1/jobs", filters, "jobs", JOBS_PAGE)

    @call
    def cancel(self, job_id: str) -> Steps[Job]:
        """Ask the job to stop, again if the answer is lost; ApiError (409) if it has ended."""
        return self._json("POST", f"{_job(job_id)}/cancel", repeatable=True)

    @call
    def retry(
        self,
        job_id: str,
        params: Mapping[str, Any] | None = None,
        *,
        set: Mapping[str, Any] | None = None,
    ) -> Steps[Job]:
        """Give a failed job a new budget; raises ApiError (409) if it has not failed.

        With `params`, these are its params from now on; with `set`, only these of them change.
        """
        edits = {"params": params, "set": set}
        body = {name: dict(value) for name, value in edits.items() if value is not None}
        return self._json("POST", f"{_job(job_id)}/retry", json=body)

    @call
    def attempts(self, job_id: str) -> Steps[list[Attempt]]:
        """Return the job's attempts, oldest first."""
        return self._part("attempts", "GET", f"{_job(job_id)}/attempts")

    @stream
    def tasks(self, job_id: str, *, after: int = 0, limit: int | None = None) -> Items[Task]:
        """Yield the job's tasks with their lineage: from place `after` on, all or `limit` of them.

        Of each step its split, its chunks in order, its join. They are asked for a page at a time.
        """
        return self._pages(
            f"{_job(job_id)}/tasks", {"after": after, "limit": limit}, "tasks", TASKS_PAGE
        )

    @call
    def logs(
        self, job_id: str, attempt: int | None = None, *, task: str | None = None
    ) -> Steps[str]:
        """Return what the attempts printed: all, or those of this number or task.

        Of one that runs it is what it printed until some two seconds ago.
        """
        given = {"attempt": attempt, "task": task}
        query = {name: value for name, value in given.items() if value is not None}
        answer = yield from self._call("GET", f"{_job(job_id)}/logs", params=query)
        return answer.text

    # --- results and files --------------------------------------------------------------------

    @call
    def result(self, job_id: str) -> Steps[Any]:
        """Return what the handler returned; raises ApiError (409) unless completed."""
        return self._json("GET", f"{_job(job_id)}/result")

    @call
    def files(self, job_id: str) -> Steps[list[File]]:
        """Return the files the job wrote."""
        return self._part("files", "GET", f"{_job(job_id)}/files")

    @call
    def download(self, file: Mapping[str, Any], folder: Path) -> Steps[Path]:
        """Save one of `files(...)`, or of a task's `files`, into the folder; return its path.

        A broken transfer is taken up where it broke; the checksum is compared at the end, and
        nothing has the file's name before that.
        """
        return self._download(file["name"], file["href"], file["sha256"], folder)

    @call
    def task_file(self, job_id: str, task_id: str, name: str, folder: Path) -> Steps[Path]:
        """Save the file `name` that a task of the job kept; else as `download`."""
        href = f"{_job(job_id)}/tasks/{quote(task_id, safe='')}/files/{quote(name, safe='')}"
        return self._download(name, href, "", folder)

    def _download(self, name: str, href: str, promised: str, folder: Path) -> Steps[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(name).name
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with partial.open("wb") as target:
                digest, promised = yield from self._fetch(href, promised, target)
            if digest != promised:
                raise Unreachable(f"{path.name} arrived damaged; download it again")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _fetch(self, href: str, promised: str, target: BinaryIO) -> Steps[tuple[str, str]]:
        """Write the file's bytes; return their SHA-256, and what it is to be.

        Without `promised`, only the answer says it.
        """
        digest, offset = hashlib.sha256(), 0
        tries = Tries(self.patience_s)
        for last in tries:
            headers = {"Accept-Encoding": "identity"}
            if offset:
                headers["If-Range"] = f'"{promised}"'
                headers["Range"] = f"bytes={offset}-"
            try:
                answer: httpx.Response = yield Open(href, {"headers": headers})
                if not answer.is_success:
                    if last or not is_later(answer, True):
                        raise refusal(answer)
                else:
                    if offset and answer.status_code != 206:
                        raise Unreachable("the file changed while it was downloaded")
                    promised = promised or answer.headers.get("etag", "").strip('"')
                    while (block := (yield Read())) is not None:
                        target.write(block)
                        digest.update(block)
                        offset += len(block)
                    return digest.hexdigest(), promised
            except httpx.TransportError as error:
                if last:
                    raise self.unreachable(error) from error
            yield tries.pause()
        raise AssertionError("the last try returns or raises")

    @call
    def upload(self, path: Path | str, name: str | None = None) -> Steps[Upload]:
        """Store a file; return `{uri, bytes, sha256}`. Put the uri into params."""
        path = Path(path)
        target = f"/v1/uploads/{quote(name or path.name, safe='')}"

        def blocks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block

        return self._json("PUT", target, content=blocks)


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _batches(jobs: Iterable[Mapping[str, Any]]) -> Iterator[list[bytes]]:
    """Yield the jobs as lines, in batches that the API takes."""
    batch: list[bytes] = []
    size = 0
    for job in jobs:
        line = json_body(dict(job))
        if batch and (len(batch) == BATCH_LINES or size + len(line) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line) + 1
    if batch:
        yield batch
