"""One attempt as the child sees it: what its context does, and what it leaves behind.

Rule 1: nothing costs before it is used: no directory, no file, no store for a handler that needs
none. Rule 2: an output is durable before the outcome that names it leaves. Rule 3: a secret that
this process was told, by this attempt or an earlier one, leaves neither in the error, the progress
nor the result; the worker, which handed it out, redacts the log. What later attempts must find as
it was (checkpoints, `once`, names of files) is refused with a secret in it. Rule 4: whatever a
handler did, there is an outcome, and the worker can read it.
"""

import asyncio
import hashlib
import io
import mimetypes
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol, cast

import msgspec

from cluster.protocol import (
    NOTHING,
    Assignment,
    FileInfo,
    LostOutput,
    Outcome,
    OutcomeKind,
    Output,
    Submission,
)
from cluster.queue.spec import JobSpec, decode_spec
from cluster.trace_context import TRACED_ENV, attempt_context
from cluster.worker.board import OUTCOME_BYTES_MAX
from cluster.worker.ephemeral import EphemeralFile
from cluster.worker.pipe import Moved
from cluster.worker.reading import Reading, ReadingHost, may_read, may_write
from jobs.context import Context, Files
from jobs.endpoint import Endpoint
from jobs.errors import InvalidInput, Unavailable
from jobs.kept import checkpoint_json, effect_json, once_key, output_name, strict_json, telling
from jobs.outcome import Discard, Retry, Snooze, StopRequested, seconds
from jobs.redact import redact, redact_json

__all__ = [
    "Attempt",
    "AttemptContext",
    "Host",
    "SplitResult",
    "encode_outcome",
]

ERROR_CHARS_MAX = 4096
RESULT_BYTES_INLINE_MAX = 64 * 1024
MESSAGE_BYTES_MAX = 1024
#: A message is redacted before it is cut; so much more of it is looked at.
_MESSAGE_CHARS_MAX = 64 * 1024
#: Jobs that one attempt may submit.
SUBMITS_MAX = 100
#: How often progress leaves the child, at most.
PROGRESS_EVERY_S = 0.1
#: How long until a store that did not answer is asked again for a finished result, at most.
STORE_RETRY_MAX_S = 5.0

_NULL_OUTPUT = msgspec.Raw(b"{}")
_encode = msgspec.json.Encoder().encode


class SplitResult(msgspec.Struct, frozen=True):
    """What a split left: so many chunks, listed in a file whose content has this checksum."""

    count: int
    manifest: FileInfo
    sha256: str


class Host(ReadingHost, Protocol):
    """The child an attempt runs in."""

    stops: dict[int, str]
    scratch: Path
    #: What this process was told so far, by `secret` of any attempt.
    secrets: list[str]

    def show(self, moved: Moved) -> None:
        """Send progress."""

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in a while, from any thread."""

    def submission(
        self, attempt: "Attempt", type: str, params: Any, options: dict[str, Any]
    ) -> Submission:
        """Return a job to be submitted. Raises InvalidInput."""

    def write_log(self, attempt: "Attempt", text: str) -> None:
        """Append to the attempt's captured output."""


class AttemptContext(Context):
    """A context whose costly parts are made when first touched."""

    def __init__(self, attempt: "Attempt", assignment: Assignment, spec: JobSpec) -> None:
        # Not super().__init__: it wants the scratch directory and the checkpoint, decoded.
        self._runtime = self._attempt = attempt
        self.job_id = assignment.job_id
        self.task_id = assignment.task_id
        self.attempt = assignment.attempt
        self.tenant = spec.tenant
        self.labels = spec.labels
        tick = spec.scheduled_for
        self.scheduled_for = None if tick is None else datetime.fromtimestamp(tick, UTC)

    def __getattr__(self, name: str) -> Any:
        if name == "files":
            task = f"{self.job_id}/{self.task_id}"
            value: Any = Files(self._attempt, self._attempt.workdir(), task)
        elif name == "resumed_from":
            value = msgspec.json.decode(self._attempt.assignment.checkpoint)
        elif name == "traceparent":
            value = self._attempt.traceparent()
        else:
            raise AttributeError(f"Context has no attribute {name!r}")
        setattr(self, name, value)
        return value


class Attempt:
    """The runtime behind one context, and the maker of its outcome."""

    __slots__ = (
        "_asked",
        "_host",
        "_moved",
        "_open",
        "_outputs",
        "_reading",
        "_secrets",
        "_shown_at",
        "_submits",
        "_token",
        "_workdir",
        "assignment",
        "chunks",
        "ended",
        "on_stop",
        "output_file",
        "params",
        "started_at",
        "tenant",
    )

    def __init__(self, host: Host, assignment: Assignment) -> None:
        self._host = host
        self.assignment = assignment
        self._token = assignment.token
        self.tenant = "default"
        self.started_at = time.time()
        self.ended = False
        #: In async mode its own output file, once it printed something.
        self.output_file: Any = None
        #: How to wake the handler when a stop is requested.
        self.on_stop: Callable[[], object] | None = None
        self._secrets = host.secrets
        #: Those that this attempt asked for.
        self._asked: list[str] = []
        self._outputs: dict[str, FileInfo] = {}
        self._reading: Reading | None = None
        #: Jobs to be submitted with its success.
        self._submits: list[Submission] = []
        #: Of a split: what it made.
        self.chunks: SplitResult | None = None
        #: Fingerprint of the params, of a task of a planned job.
        self.params = ""
        self._open: list[_OutputFile] = []
        self._workdir: Path | None = None
        self._moved: Moved | None = None
        self._shown_at = 0.0

    def traceparent(self) -> str | None:
        """Return the trace context of what it does."""
        mine = self.assignment
        return attempt_context(
            decode_spec(mine.spec).traceparent,
            mine.job_id,
            mine.task_id,
            mine.attempt,
            traced=TRACED_ENV in os.environ,
        )

    # --- the runtime --------------------------------------------------------------------------

    def progress(self, fraction: float | None, message: str) -> None:
        """Send progress now, or the latest of it a moment later."""
        waiting = self._moved is not None
        text = scrub(redact(str(message)[:_MESSAGE_CHARS_MAX], self._secrets))
        text = text.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore")
        self._moved = Moved(self._token, fraction, text)
        wait_s = self._shown_at + PROGRESS_EVERY_S - time.monotonic()
        if wait_s <= 0:
            self._show()
        elif not waiting:
            self._host.later(wait_s, self._show)

    def _show(self) -> None:
        moved, self._moved = self._moved, None
        if moved is not None and not self.ended:
            self._shown_at = time.monotonic()
            self._host.show(moved)

    def stop_reason(self) -> str | None:
        """Return the stop that was ordered."""
        return self._host.stops.get(self._token)

    def checkpoint(self, value: Any) -> None:
        """Have the worker make it durable."""
        data = checkpoint_json(value, self._telling())
        self._host.call(self._token, "checkpoint", "", msgspec.Raw(data))

    def once_claim(self, key: str) -> tuple[Literal["new", "done", "in_doubt"], Any]:
        """Have the worker claim it."""
        key = once_key(key, self._telling())
        answer = self._host.call(self._token, "once_claim", key, NOTHING)
        found = answer.found
        assert found != "evicted"
        return found, msgspec.json.decode(answer.value)

    def once_done(self, key: str, value: Any) -> None:
        """Have the worker record it."""
        data = effect_json(value, self._telling())
        self._host.call(self._token, "once_done", key, msgspec.Raw(data))

    def secret(self, name: str) -> str:
        """Have the worker hand it out, so that it knows what to redact if we die."""
        if not isinstance(name, str):
            raise InvalidInput("secret", f"the name is a {type(name).__name__}; give a text")
        answer = self._host.call(self._token, "secret", name, NOTHING)
        value = msgspec.json.decode(answer.value, type=str)
        self._asked.append(value)
        if value not in self._secrets:
            self._secrets.append(value)
        return value

    def endpoint(self, name: str) -> Endpoint:
        """Have the worker read it, so that it knows what to redact if we die."""
        answer = self._host.call(self._token, "endpoint", str(name), NOTHING)
        found = msgspec.json.decode(answer.value, type=Endpoint)
        self._asked += found.secrets
        self._secrets += [one for one in found.secrets if one not in self._secrets]
        return found

    def disable_endpoint(self, name: str, reason: str) -> None:
        """Have the worker note it."""
        value = msgspec.Raw(msgspec.json.encode(str(reason)))
        self._host.call(self._token, "disable_endpoint", str(name), value)

    def _telling(self) -> list[str]:
        return telling(self._secrets, self._asked)

    def log(self, message: str) -> None:
        """Append a line."""
        self._host.write_log(self, message + "\n")

    def open_output(self, name: str, ephemeral: bool = False) -> BinaryIO:
        """Open an output under this attempt's own path, or one that is held."""
        name = output_name(name, self._telling())
        path = self.own_path(name)
        writer = self._ephemeral(name) if ephemeral else self.files.open_write(path)
        output = _OutputFile(name, path, writer, self._outputs)
        self._open.append(output)
        return cast(BinaryIO, output)

    def _ephemeral(self, name: str) -> EphemeralFile:
        def hold(local: Path) -> str | None:
            where = msgspec.Raw(msgspec.json.encode(str(local)))
            answer = self._host.call(self._token, "hold", name, where)
            return msgspec.json.decode(answer.value, type=str | None)

        def stored() -> tuple[str, Any]:
            path = self.own_path(name)
            return path, self.files.open_write(path)

        return EphemeralFile(name, self._host.scratch, hold, stored)

    def own_path(self, name: str) -> str:
        """Return where this attempt's output `name` lies."""
        a = self.assignment
        path: str = self.files.result_path(a.job_id, a.task_id, a.attempt, name)
        return path

    @property
    def files(self) -> Any:
        """The files of the store."""
        return self._host.store().files

    @property
    def reading(self) -> Reading:
        """What it reads; made when first asked for."""
        if self._reading is None:
            self._reading = Reading(self._host, self.assignment, self.tenant)
        return self._reading

    def fetch(self, uri: str, into: Path) -> Path:
        """Bring what `uri` names to this machine."""
        return self.reading.fetch(uri, into)

    def open(self, uri: str) -> BinaryIO:
        """Open what `uri` names where it lies."""
        return self.reading.open(uri, self.workdir)

    # --- jobs it submits ----------------------------------------------------------------------

    def submit(self, type: str, params: Any, options: dict[str, Any]) -> str:
        """Keep a job to be submitted with this attempt's success."""
        if len(self._submits) >= SUBMITS_MAX:
            told = f"an attempt may submit {SUBMITS_MAX} jobs; for more, fan out"
            raise InvalidInput("submit", told)
        submission = self._host.submission(self, type, params, options)
        self._submits.append(submission)
        return submission.job_id

    def may_read(self, path: Path) -> bool:
        """Whether params may name this path of the worker's own disk."""
        return may_read(path)

    def may_write(self, path: Path) -> bool:
        """Whether params may name this path to write to."""
        return may_write(path)

    def workdir(self) -> Path:
        """Return the scratch directory, made now if it was not yet."""
        if self._workdir is None:
            self._workdir = Path(tempfile.mkdtemp(prefix="work-", dir=self._host.scratch))
        return self._workdir

    # --- how it ended -------------------------------------------------------------------------

    def succeeded(self, data: bytes) -> Outcome:
        """Return the outcome of a handler that returned `data` (JSON). May write to the store."""
        reading = self._reading
        if reading is not None and reading.lost:
            return self._ended_lost(reading.lost)  # whatever the handler made of it
        data = strict_json(data)
        for unclosed in self._open:
            unclosed.close()
        output = _NULL_OUTPUT
        if data != b"null" or self._outputs or self.params or (reading and reading.inputs):
            output = self._output(data)
        self.close()
        return Outcome(
            self._token, "ok", self.started_at, time.time(), output, submits=self._submits
        )

    def _ended_lost(self, outputs: list[LostOutput]) -> Outcome:
        self.close()
        lost = msgspec.Raw(msgspec.json.encode(outputs))
        told = ", ".join(one.task_id for one in outputs[:5])
        error = f"the output of {told} is gone, or not what it was"
        now = time.time()
        return Outcome(self._token, "lost", self.started_at, now, lost, error, "input lost")

    def _output(self, data: bytes) -> msgspec.Raw:
        data = redact_json(data, self._secrets)
        files = list(self._outputs.values())
        result, path, digest = msgspec.Raw(data), None, ""
        if len(data) > RESULT_BYTES_INLINE_MAX:
            a = self.assignment
            where = f"results/{a.job_id}/{a.task_id}/{a.attempt}/result.json"
            self._insist(lambda: self._host.store().objects.put(where, data))
            result, path, digest = NOTHING, where, hashlib.sha256(data).hexdigest()
        split = self.chunks
        output = Output(
            result,
            path,
            files,
            digest,
            split.count if split is not None else None,
            split.manifest if split is not None else None,
            split.sha256 if split is not None else "",
            [] if self._reading is None else list(self._reading.inputs.values()),
            self.params,
        )
        return msgspec.Raw(msgspec.json.encode(output))

    def _insist(self, write: Callable[[], None]) -> None:
        """Repeat a write while the store is away: hours of work may hang on it."""
        pause_s = 0.1
        while True:
            try:
                return write()
            except Unavailable:
                if self.stop_reason() is not None:
                    raise
                time.sleep(pause_s)
                pause_s = min(STORE_RETRY_MAX_S, pause_s * 2)

    def unstarted(self) -> Outcome:
        """Return the outcome of an attempt that was stopped while it waited for its moment."""
        self.close()
        return Outcome(self._token, "returned")

    def failed(self, error: BaseException) -> Outcome:
        """Return the outcome of a handler that raised. Raises nothing itself."""
        try:
            return self._failed(error)
        except BaseException as broken:
            # An exception of the handler's own making, or a store that is away: it must still end.
            self.ended = True
            return _unwritable(self._token, self.started_at, broken)

    def _failed(self, error: BaseException) -> Outcome:
        reading = self._reading
        if reading is not None and reading.lost and self.stop_reason() is None:
            return self._ended_lost(reading.lost)
        if isinstance(error, Discard):
            return self._ended("discarded", _text(error), "discarded")
        if isinstance(error, Snooze):
            delay_s = seconds("Snooze.delay_s", error.delay_s)
            return self._ended("snoozed", str(error.reason), "snoozed", delay_s)
        if isinstance(error, Retry):
            after_s = error.after_s
            after_s = None if after_s is None else seconds("Retry.after_s", after_s)
            return self._ended("failed", _text(error), "error", after_s)
        stop = self.stop_reason()
        if isinstance(error, StopRequested | asyncio.CancelledError) and stop is not None:
            return self._ended("stopped", f"stopped: {stop}", stop)
        # The first frame is the child's own.
        trace = error.__traceback__ and error.__traceback__.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        self._host.write_log(self, "".join(lines))
        return self._ended("failed", _told(error), "error")

    def _ended(
        self, kind: OutcomeKind, error: str = "", cause: str = "", delay_s: float | None = None
    ) -> Outcome:
        self.close()
        error = scrub(redact(error, self._secrets))[:ERROR_CHARS_MAX]
        return Outcome(
            self._token, kind, self.started_at, time.time(), NOTHING, error, cause, delay_s
        )

    def close(self) -> None:
        """Drop what was not kept: unfinished outputs, the scratch directory, late progress."""
        self.ended = True
        if self._open:
            for output in self._open:
                output.abort()
            self._open.clear()
        if self._workdir is not None:
            shutil.rmtree(self._workdir, ignore_errors=True)
        if self._host.stops:
            self._host.stops.pop(self._token, None)


class _OutputFile(io.BufferedIOBase):
    """An output file; it exists once closed, and not at all if its block raised."""

    def __init__(self, name: str, path: str, writer: Any, outputs: dict[str, FileInfo]) -> None:
        super().__init__()
        self._name, self._path, self._writer, self._outputs = name, path, writer, outputs
        self._bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError(f"output {self._name!r} is closed")
        block = data if isinstance(data, bytes) else bytes(memoryview(data).cast("B"))
        self._writer.write(block)
        self._bytes += len(block)
        return len(block)

    def tell(self) -> int:
        return self._bytes

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        info = self._writer.close()
        path = self._writer.path if isinstance(self._writer, EphemeralFile) else self._path
        kind, _ = mimetypes.guess_type(self._name)
        self._outputs[self._name] = FileInfo(
            self._name, path, info.bytes, info.sha256, kind or "application/octet-stream"
        )

    def abort(self) -> None:
        """Forget what was written. Does nothing once closed."""
        if not self.closed:
            super().close()
            self._writer.abort()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _told(error: BaseException) -> str:
    """Return `ValueError: message`."""
    name, text = type(error).__name__, _text(error)
    return f"{name}: {text}" if text else name


def _text(error: BaseException) -> str:
    """Return the text of an exception, also of one whose own cannot be had."""
    try:
        return str(error)
    except Exception as broken:
        return f"(its message raised {type(broken).__name__})"


def scrub(text: str) -> str:
    """Return the text with what UTF-8 cannot say (lone surrogates) spelled out."""
    return text.encode(errors="backslashreplace").decode()


def encode_outcome(outcome: Outcome) -> bytes:
    """Return the outcome for the board; for one that cannot go there, one that says so."""
    try:
        encoded = _encode(outcome)
        if len(encoded) <= OUTCOME_BYTES_MAX:
            return encoded
        raise InvalidInput(
            "outcome",
            f"it is {len(encoded)} bytes, {OUTCOME_BYTES_MAX} at most; write fewer output files",
        )
    except Exception as broken:
        return _encode(_unwritable(outcome.token, outcome.started_at, broken))


def _unwritable(token: int, started_at: float, broken: BaseException) -> Outcome:
    told = f"its outcome could not be written: {scrub(_told(broken))[:ERROR_CHARS_MAX]}"
    return Outcome(token, "failed", started_at, time.time(), error=told, cause="error")
