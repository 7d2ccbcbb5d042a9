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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel

from jobs.context import Context
from jobs.definition import JobDefinition
from jobs.errors import InvalidInput, LeaseLost, NotFound
from jobs.kept import checkpoint_json, effect_json, once_key, output_name, strict_json
from jobs.result import encode_result

__all__ = ["Finished", "run"]


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
    stop_after: int | None = None,
    stop_reason: str = "cancel",
    lease_lost_after: int | None = None,
    tenant: str = "default",
    labels: Mapping[str, str] | None = None,
    job_id: str = "job-1",
    task_id: str = "task-1",
) -> Finished:
    """Run one attempt of `definition` with `params` (a model, or data to validate as one).

    Args:
        once: Effects that earlier attempts recorded, by key; `in_doubt` those only claimed.
        files: What `ctx.files.fetch` finds, by URI.
        stop_after: Ask the handler to stop (for `stop_reason`) after so many context calls.
        lease_lost_after: Refuse checkpoints and effects with LeaseLost after so many of them.

    Raises pydantic's ValidationError for params that do not fit; what the handler raises is in
    `Finished.error`, and `Finished.result` raises it. Runs `async def` handlers too; call it from
    a plain test, not from inside a running event loop.
    """
    finished = Finished(once=dict(once or {}), in_doubt=set(in_doubt or ()))
    model = params
    if not isinstance(model, BaseModel):
        model = definition.params_model.model_validate(dict(params or {}))
    printed = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="drayman-test-") as workdir:
        scripted = _Scripted(
            finished, printed, secrets or {}, files or {}, stop_after, stop_reason, lease_lost_after
        )
        ctx = Context(
            scripted,
            job_id=job_id,
            task_id=task_id,
            attempt=attempt,
            tenant=tenant,
            labels=dict(labels or {}),
            workdir=Path(workdir),
            checkpoint=checkpoint,
        )
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                returned = definition.handler(ctx, model)
                if inspect.iscoroutine(returned):
                    returned = asyncio.run(returned)
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

    def __init__(
        self,
        finished: Finished,
        printed: io.StringIO,
        secrets: Mapping[str, str],
        files: Mapping[str, bytes],
        stop_after: int | None,
        stop_reason: str,
        lease_lost_after: int | None,
    ) -> None:
        self._finished, self._printed = finished, printed
        self._secrets, self._files = secrets, files
        self._stop_after, self._stop_reason = stop_after, stop_reason
        self._lease_lost_after = lease_lost_after
        self._calls = 0
        self._records = 0
        self.read: list[str] = []

    def progress(self, fraction: float | None, message: str) -> None:
        self._finished.progress.append((fraction, message))

    def stop_reason(self) -> str | None:
        self._calls += 1
        due = self._stop_after is not None and self._calls > self._stop_after
        return self._stop_reason if due else None

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
        if name not in self._secrets:
            raise InvalidInput("secret", f"{name!r} is not set; pass secrets={{{name!r}: ...}}")
        self.read.append(self._secrets[name])
        return self._secrets[name]

    def log(self, message: str) -> None:
        self._printed.write(message + "\n")

    def open_output(self, name: str) -> BinaryIO:
        if not name or name in {".", ".."} or "/" in name or "\\" in name:
            raise InvalidInput("name", f"{name!r} is not a plain file name; leave folders out")
        return _Output(output_name(name, self.read), self._finished.files)

    def fetch(self, uri: str, into: Path) -> Path:
        if uri not in self._files:
            raise NotFound("file", uri)
        path = into / (uri.rpartition("/")[2].rpartition(":")[2] or "input")
        path.write_bytes(self._files[uri])
        return path

    def may_read(self, path: Path) -> bool:
        return True

    def _record(self) -> None:
        self._records += 1
        if self._lease_lost_after is not None and self._records > self._lease_lost_after:
            raise LeaseLost(0)
