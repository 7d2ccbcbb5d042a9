"""Run a handler in-process, with a scripted context: for your own tests.

    finished = run(annual_report, {"carrier": "UA", ...}, files={"upload:flights.csv": data})
    assert finished.result["pages"] == 7
    assert finished.files["report.pdf"].startswith(b"%PDF")

Rule 1: the handler meets the same checks as on a worker: params are validated, the result must be
JSON, a name of an output must be a plain file name, and what later attempts are to find
(checkpoints, effects) has bounds and holds no secret. Rule 2: nothing outlives the call; the
scratch directory is gone when `run` returns, and what the handler kept is in `Finished`.
"""

import asyncio
import contextlib
import inspect
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel

from jobs.context import Context
from jobs.definition import JobDefinition
from jobs.endpoint import Endpoint
from jobs.errors import InvalidInput, LeaseLost, NotFound
from jobs.fan_out import FanOut
from jobs.kept import checkpoint_json, effect_json, once_key, output_name, strict_json
from jobs.result import encode_result
from jobs.results import ChunkFailure, ChunkResult, Results
from jobs.workflow import Workflow

__all__ = ["Finished", "run", "run_chunk"]


@dataclass
class Finished:
    """What one scripted attempt did, and how it ended."""

    #: What the handler raised, or None: `Retry`, `Discard`, `Snooze`, `StopRequested`, any other.
    error: BaseException | None = None
    #: Output files by name.
    files: dict[str, bytes] = field(default_factory=dict)
    #: Every (fraction, message) shown, in order.
    progress: list[tuple[float | None, str]] = field(default_factory=list)
    #: What was printed and logged.
    logs: str = ""
    #: Every checkpoint saved, in order. Hand the last to the next `run` as `checkpoint`.
    checkpoints: list[Any] = field(default_factory=list)
    #: Effects on record by key. Hand it to the next `run` as `once`.
    once: dict[str, Any] = field(default_factory=dict)
    #: Keys claimed whose effect is not on record: in doubt for the next attempt.
    in_doubt: set[str] = field(default_factory=set)
    #: Jobs it asked for with `ctx.submit`, as `POST /v1/jobs` would take them.
    submitted: list[dict[str, Any]] = field(default_factory=list)
    #: Endpoints it disabled, and why.
    disabled: dict[str, str] = field(default_factory=dict)
    #: Of a fan-out: each chunk, in order.
    chunks: list["Finished"] = field(default_factory=list)
    returned: Any = None

    @property
    def result(self) -> Any:
        """The result as a client would see it (JSON data); raises what the handler raised."""
        if self.error is not None:
            raise self.error
        return self.returned


def run(
    definition: JobDefinition,
    params: BaseModel | Mapping[str, Any] | None = None,
    *,
    attempt: int = 1,
    checkpoint: Any = None,
    once: Mapping[str, Any] | None = None,
    in_doubt: set[str] | None = None,
    secrets: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
    endpoints: Mapping[str, Endpoint] | None = None,
    stop_after: int | None = None,
    stop_reason: str = "cancel",
    lease_lost_after: int | None = None,
    tenant: str = "default",
    labels: Mapping[str, str] | None = None,
    job_id: str = "job-1",
    task_id: str = "task-1",
) -> Finished:
    """Run one attempt of `definition` with `params` (a model, or data to validate as one).

    A fan-out runs as a whole, one chunk after the other: `Finished.chunks` has each, the rest is
    the join's. `run_chunk` runs one chunk alone, with whatever is to happen to it.

    Args:
        once: Effects that earlier attempts recorded, by key; `in_doubt` those only claimed.
        files: What `ctx.files.fetch` finds, by URI.
        endpoints: What `ctx.endpoint` finds, by name.
        stop_after: Ask the handler to stop (for `stop_reason`) after so many context calls.
        lease_lost_after: Refuse checkpoints and effects with LeaseLost after so many of them.

    Raises pydantic's ValidationError for params that do not fit; what the handler raises is in
    `Finished.error`, and `Finished.result` raises it. Runs `async def` handlers too; call it from
    a plain test, not from inside a running event loop.
    """
    model = _model(definition, params)
    script = _Script(secrets or {}, dict(files or {}), stop_after, stop_reason, lease_lost_after)
    script.endpoints = endpoints or {}
    told: dict[str, Any] = {"tenant": tenant, "labels": dict(labels or {}), "job_id": job_id}
    if isinstance(definition, Workflow):
        raise TypeError("a workflow runs on a cluster; run each of its job types here")
    if isinstance(definition, FanOut):
        return _run_fan_out(definition, model, script, told)
    kept = Finished(once=dict(once or {}), in_doubt=set(in_doubt or ()))
    told |= {"task_id": task_id, "attempt": attempt, "checkpoint": checkpoint}
    return _attempt(lambda ctx: definition.handler(ctx, model), kept, script, told)


def run_chunk(
    definition: FanOut,
    params: BaseModel | Mapping[str, Any] | None,
    chunk: Any,
    *,
    attempt: int = 1,
    checkpoint: Any = None,
    once: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
    stop_after: int | None = None,
    stop_reason: str = "cancel",
    tenant: str = "default",
    job_id: str = "job-1",
    task_id: str = "0",
) -> Finished:
    """Run one attempt of one chunk, given as the split yields it or as data; else as `run`."""
    model = _model(definition, params)
    read = definition.chunk.validate_python(chunk)
    script = _Script(secrets or {}, dict(files or {}), stop_after, stop_reason, None)
    told: dict[str, Any] = {
        "tenant": tenant,
        "labels": {},
        "job_id": job_id,
        "task_id": task_id,
    }
    told |= {"attempt": attempt, "checkpoint": checkpoint}
    kept = Finished(once=dict(once or {}))
    return _attempt(lambda ctx: definition.handler(ctx, model, read), kept, script, told)


def _model(definition: JobDefinition, params: BaseModel | Mapping[str, Any] | None) -> BaseModel:
    if isinstance(params, BaseModel):
        return params
    return definition.params_model.model_validate(dict(params or {}))


def _run_fan_out(
    definition: FanOut, params: BaseModel, script: "_Script", told: dict[str, Any]
) -> Finished:
    """Split, run every chunk, join; what each leaves is JSON in between, as on a worker."""
    job_id = told["job_id"]
    told = {**told, "attempt": 1, "checkpoint": None}
    dump, read = definition.chunk.dump_json, definition.chunk.validate_json

    def chunks_of(ctx: Context) -> Any:
        found = _awaited(definition.split(ctx, params))
        return [json.loads(dump(chunk)) for chunk in found]

    split = _attempt(chunks_of, Finished(), script, {**told, "task_id": "split"})
    if split.error is not None:
        return split
    script.keep(f"output:{job_id}/split", split.files)
    done: list[ChunkResult[Any]] = []
    failed: list[ChunkFailure] = []
    chunks: list[Finished] = []
    for index, data in enumerate(split.returned):
        chunk = read(json.dumps(data))
        one = _attempt(
            lambda ctx, chunk=chunk: definition.handler(ctx, params, chunk),  # type: ignore[misc]
            Finished(),
            script,
            {**told, "task_id": str(index)},
        )
        chunks.append(one)
        prefix = f"output:{job_id}/{index}"
        script.keep(prefix, one.files)
        if one.error is None:
            value = definition.value.validate_json(json.dumps(one.returned))
            done.append(ChunkResult(index, value, {n: f"{prefix}/{n}" for n in one.files}))
        else:
            failed.append(ChunkFailure(index, str(one.error)))
    if len(failed) > definition.tolerate * len(chunks):
        last = next(chunk for chunk in chunks if chunk.error is not None)
        last.chunks = chunks
        return last
    if definition.join is None:
        return Finished(returned={"chunks": len(chunks)}, chunks=chunks)
    join, results = definition.join, Results(done, len(done), failed)
    whole = _attempt(
        lambda ctx: join(ctx, params, results), Finished(), script, {**told, "task_id": "join"}
    )
    whole.chunks = chunks
    return whole


def _awaited(value: Any) -> Any:
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _attempt(
    call: Callable[[Context], Any], finished: Finished, script: "_Script", told: dict[str, Any]
) -> Finished:
    printed = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="drayman-test-") as workdir:
        scripted = _Scripted(finished, printed, script)
        ctx = Context(scripted, workdir=Path(workdir), **told)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                returned = _awaited(call(ctx))
            finished.returned = json.loads(strict_json(encode_result(returned)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # StopRequested is a BaseException; it is an ending like the others here.
            finished.error = error
    finished.logs = printed.getvalue()
    for secret in scripted.read:
        finished.logs = finished.logs.replace(secret, "***")
    return finished


@dataclass
class _Script:
    """What is to happen to an attempt, and what it finds."""

    secrets: Mapping[str, str]
    files: dict[str, bytes]
    stop_after: int | None
    stop_reason: str
    lease_lost_after: int | None
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)

    def keep(self, prefix: str, files: Mapping[str, bytes]) -> None:
        """Let later parts of the job find what an earlier one kept."""
        self.files.update({f"{prefix}/{name}": data for name, data in files.items()})


class _Output(io.BytesIO):
    """An output file: part of `Finished.files` once closed."""

    def __init__(self, name: str, kept: dict[str, bytes]) -> None:
        super().__init__()
        self._name, self._kept = name, kept

    def close(self) -> None:
        if not self.closed:
            self._kept[self._name] = self.getvalue()
        super().close()


class _Scripted:
    """The Runtime behind `run`: memory instead of a worker."""

    def __init__(self, finished: Finished, printed: io.StringIO, script: _Script) -> None:
        self._finished, self._printed, self._script = finished, printed, script
        self._calls = 0
        self._records = 0
        self.read: list[str] = []

    def progress(self, fraction: float | None, message: str) -> None:
        self._finished.progress.append((fraction, message))

    def stop_reason(self) -> str | None:
        self._calls += 1
        after = self._script.stop_after
        due = after is not None and self._calls > after
        return self._script.stop_reason if due else None

    def checkpoint(self, value: Any) -> None:
        data = checkpoint_json(value, self.read)
        self._record()
        self._finished.checkpoints.append(json.loads(data))

    def once_claim(self, key: str) -> tuple[Literal["new", "done", "in_doubt"], Any]:
        key = once_key(key, self.read)
        self._record()
        if key in self._finished.once:
            return "done", self._finished.once[key]
        if key in self._finished.in_doubt:
            return "in_doubt", None
        self._finished.in_doubt.add(key)
        return "new", None

    def once_done(self, key: str, value: Any) -> None:
        data = effect_json(value, self.read)
        self._record()
        self._finished.once[key] = json.loads(data)
        self._finished.in_doubt.discard(key)

    def secret(self, name: str) -> str:
        if name not in self._script.secrets:
            raise InvalidInput("secret", f"{name!r} is not set; pass secrets={{{name!r}: ...}}")
        self.read.append(self._script.secrets[name])
        return self._script.secrets[name]

    def endpoint(self, name: str) -> Endpoint:
        if name not in self._script.endpoints:
            raise NotFound("endpoint", name)
        self.read += self._script.endpoints[name].secrets
        return self._script.endpoints[name]

    def disable_endpoint(self, name: str, reason: str) -> None:
        self._finished.disabled[name] = reason

    def submit(self, type: str, params: Any, options: dict[str, Any]) -> str:
        data = json.loads(strict_json(encode_result({} if params is None else params)))
        self._finished.submitted.append({"type": type, "params": data, **options})
        return f"submitted-{len(self._finished.submitted)}"

    def log(self, message: str) -> None:
        self._printed.write(message + "\n")

    def open_output(self, name: str, ephemeral: bool = False) -> BinaryIO:
        if not name or name in {".", ".."} or "/" in name or "\\" in name:
            raise InvalidInput("name", f"{name!r} is not a plain file name; leave folders out")
        return _Output(output_name(name, self.read), self._finished.files)

    def fetch(self, uri: str, into: Path) -> Path:
        files = self._script.files
        if uri not in files:
            raise NotFound("file", uri)
        path = into / (uri.rpartition("/")[2].rpartition(":")[2] or "input")
        if path.exists():
            path = Path(tempfile.mkdtemp(dir=into)) / path.name
        path.write_bytes(files[uri])
        return path

    def open(self, uri: str) -> BinaryIO:
        if uri.startswith("file:") and uri not in self._script.files:
            return Path(unquote(urlsplit(uri).path)).open("rb")
        if uri not in self._script.files:
            raise NotFound("file", uri)
        return io.BytesIO(self._script.files[uri])

    def may_read(self, path: Path) -> bool:
        return True

    def may_write(self, path: Path) -> bool:
        return True

    def _record(self) -> None:
        self._records += 1
        after = self._script.lease_lost_after
        if after is not None and self._records > after:
            raise LeaseLost(0)
