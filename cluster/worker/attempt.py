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
from typing import Any, BinaryIO, Literal, NoReturn, Protocol, cast
from urllib.parse import quote, unquote, urlsplit

import msgspec

from cluster.protocol import (
    EPHEMERAL,
    NOTHING,
    Assignment,
    FileInfo,
    InputInfo,
    LostOutput,
    Outcome,
    OutcomeKind,
    Output,
    Submission,
)
from cluster.queue.spec import JobSpec, decode_spec
from cluster.settings import DATA_DIRS_ENV, OUTPUT_DIRS_ENV
from cluster.trace_context import TRACED_ENV, attempt_context
from cluster.views import TaskPage, TaskView
from cluster.worker.board import OUTCOME_BYTES_MAX
from cluster.worker.ephemeral import EphemeralFile
from cluster.worker.pipe import Answer, Moved
from jobs.buckets import refuse_own
from jobs.context import Context, Files
from jobs.endpoint import Endpoint
from jobs.errors import InvalidInput, NotFound, Unavailable
from jobs.kept import checkpoint_json, effect_json, once_key, output_name, strict_json, telling
from jobs.outcome import Discard, Retry, Snooze, StopRequested, seconds
from jobs.redact import redact, redact_json

__all__ = [
    "BEING_MADE",
    "Attempt",
    "AttemptContext",
    "Host",
    "InputLost",
    "SplitResult",
    "Store",
    "encode_outcome",
]

ERROR_CHARS_MAX = 4096
RESULT_BYTES_INLINE_MAX = 64 * 1024
MESSAGE_BYTES_MAX = 1024
#: A message is redacted before it is cut; so much more of it is looked at.
_MESSAGE_CHARS_MAX = 64 * 1024
#: Inputs that lineage names, and jobs that one attempt may submit.
INPUTS_MAX = 1_000
SUBMITS_MAX = 100
#: Tasks of which it is remembered what they made.
KNOWN_MAX = 20_000
#: Said of an output that is being made again, for the attempt that had made it: whatever comes of
#: that is newer, so nobody takes it for lost once more.
BEING_MADE = 0
_UNDER_WAY = frozenset({"waiting", "ready", "leased", "backing_off"})
#: How often progress leaves the child, at most.
PROGRESS_EVERY_S = 0.1
#: How long until a store that did not answer is asked again for a finished result, at most.
STORE_RETRY_MAX_S = 5.0

_NULL_OUTPUT = msgspec.Raw(b"{}")
_encode = msgspec.json.Encoder().encode


class Store(Protocol):
    """What an attempt needs of the store."""

    @property
    def objects(self) -> Any:
        """Its objects."""

    @property
    def files(self) -> Any:
        """The files of jobs in it."""

    @property
    def lineage(self) -> Any:
        """What it has of finished chunks."""


class SplitResult(msgspec.Struct, frozen=True):
    """What a split left: so many chunks, listed in a file whose content has this checksum."""

    count: int
    manifest: FileInfo
    sha256: str


class InputLost(BaseException):
    """Raised inside a handler: what it needs is gone. Not for `except Exception` to swallow."""


class Host(Protocol):
    """The child an attempt runs in."""

    stops: dict[int, str]
    scratch: Path
    #: What this process was told so far, by `secret` of any attempt.
    secrets: list[str]
    #: Outputs that this process found to be whole, by path.
    checked: set[str]

    def call(self, token: int, op: str, key: str, value: msgspec.Raw) -> Answer:
        """Ask the worker and wait; raises the error it answers."""

    def show(self, moved: Moved) -> None:
        """Send progress."""

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in a while, from any thread."""

    def store(self) -> Store:
        """Open the store, once."""

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
        "_inputs",
        "_known",
        "_lost",
        "_moved",
        "_open",
        "_outputs",
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
        #: What it read, and which of that was gone.
        self._inputs: dict[str, InputInfo] = {}
        self._lost: list[LostOutput] = []
        #: Outputs of other tasks as far as they were looked up, by (job, task).
        self._known: dict[tuple[str, str], TaskView] = {}
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

    def fetch(self, uri: str, into: Path) -> Path:
        """Bring what `uri` names to this machine."""
        scheme, _, rest = uri.partition(":")
        if scheme == "file":
            path = self._local(uri)
            self._read(InputInfo(uri, "", path.stat().st_size if path.is_file() else 0))
            return path
        if scheme == "output":
            return self._fetch_output(uri, into)
        with self._source(uri) as source:
            path, digest = _copied(source, into, rest.rpartition("/")[2])
        self._read(InputInfo(uri, digest, path.stat().st_size))
        return path

    def open(self, uri: str) -> BinaryIO:
        """Open what `uri` names where it lies. An output is checked as a whole before."""
        if uri.startswith("file:"):
            path = self._local(uri)
            self._read(InputInfo(uri, "", path.stat().st_size))
            return path.open("rb")
        if uri.startswith("output:"):
            view, file = self._output_file(uri)
            if file.is_ephemeral:
                return self._fetch_output(uri, self.workdir()).open("rb")
            # Once a process: chunks that read ranges of one large file would read all of it each.
            if file.path not in self._host.checked and not self._is_whole(file):
                self._lose(view)
            self._host.checked.add(file.path)
            self._read(InputInfo(uri, file.sha256, file.bytes, view.attempts))
            try:
                return cast(BinaryIO, self.files.open_read(file.path))
            except NotFound:
                self._host.checked.discard(file.path)
                self._lose(view)
        source = self._source(uri)
        self._read(InputInfo(uri, "", source.seek(0, io.SEEK_END)))
        source.seek(0)
        return source

    def _source(self, uri: str) -> BinaryIO:
        scheme, _, rest = uri.partition(":")
        if scheme == "upload":
            path = self.files.upload_path(self.tenant, rest)
            try:
                return cast(BinaryIO, self.files.open_read(path))
            except NotFound:  # which names a path in the store: no name that anybody gave
                fix = f"send it with PUT /v1/uploads/{quote(rest, safe='')} (drayman upload)"
                raise NotFound("upload", rest, fix) from None
        folder, _, name = uri.rpartition("/")
        if scheme in {"s3", "gs", "az"} and name and urlsplit(uri).path.strip("/"):
            from cluster.store.objects import open_store

            refuse_own(uri)
            return open_store(folder).open_read(name)
        raise InvalidInput(
            "uri",
            f"{uri!r} cannot be fetched; use upload:, output:, file:///, s3://, gs:// or az://",
        )

    def _local(self, uri: str) -> Path:
        parts = urlsplit(uri)
        if parts.netloc not in {"", "localhost"}:
            raise InvalidInput("uri", f"{uri!r} names another machine; use file:///path")
        path = Path(unquote(parts.path)).resolve()
        if not self.may_read(path):
            raise InvalidInput("uri", f"{uri!r} is outside the folders that jobs may read")
        if not path.exists():
            raise NotFound("file", str(path))
        return path

    # --- outputs of other tasks ---------------------------------------------------------------

    def _fetch_output(self, uri: str, into: Path) -> Path:
        view, file = self._output_file(uri)
        try:
            if file.is_ephemeral:
                path, digest = self._brought(file, into)
            else:
                with self._host.store().files.open_read(file.path) as source:
                    path, digest = _copied(source, into, file.name)
        except NotFound:
            self._lose(view)
        if digest != file.sha256:
            self._lose(view)
        self._read(InputInfo(uri, digest, file.bytes, view.attempts))
        return path

    def _brought(self, file: FileInfo, into: Path) -> tuple[Path, str]:
        path = _free(into, file.name)
        where = msgspec.Raw(msgspec.json.encode(str(path)))
        self._host.call(self._token, "bring", file.path, where)
        with path.open("rb") as brought:
            return path, hashlib.file_digest(brought, "sha256").hexdigest()

    def _output_file(self, uri: str) -> tuple[TaskView, FileInfo]:
        job_id, _, rest = uri.removeprefix("output:").partition("/")
        task_id, _, name = rest.partition("/")
        if not (job_id and task_id and name):
            raise InvalidInput("uri", f"{uri!r}: write it as output:JOB/TASK/NAME")
        view = self.task_of(job_id, task_id)
        self.insist_on(job_id, view)
        for file in view.files:
            if file.name == name:
                return view, file
        known = ", ".join(file.name for file in view.files) or "none"
        raise NotFound("file", f"{uri}: that task kept {known}")

    def task_of(self, job_id: str, task_id: str) -> TaskView:
        """Return a task of this tenant, with what it left. Raises NotFound."""
        known = self._known.get((job_id, task_id))
        if known is None:
            self.know(job_id, self.tasks(job_id, ids=[task_id]).tasks)
            known = self._known[job_id, task_id]
        return known

    def know(self, job_id: str, tasks: list[TaskView]) -> None:
        """Remember tasks that were looked up, the last so many."""
        if len(self._known) > KNOWN_MAX:
            self._known.clear()
        self._known.update({(job_id, task.task_id): task for task in tasks})

    @property
    def files(self) -> Any:
        """The files of the store."""
        return self._host.store().files

    def own_path(self, name: str) -> str:
        """Return where this attempt's output `name` lies."""
        a = self.assignment
        path: str = self.files.result_path(a.job_id, a.task_id, a.attempt, name)
        return path

    def tasks(self, job_id: str, **which: Any) -> TaskPage:
        """Return tasks of a job, wherever they are remembered: `ids`, or `first` and `limit`."""
        value = msgspec.Raw(msgspec.json.encode(which))
        answer = self._host.call(self._token, "tasks", job_id, value)
        if answer.found != "evicted":
            page = msgspec.json.decode(answer.value, type=TaskPage)
            return cast(TaskPage, self._host.store().lineage.filled(job_id, page))
        return past_tasks(self._host.store().objects, job_id, self.tenant, which)

    def result_of(self, view: TaskView) -> bytes:
        """Return what a task returned, as JSON; an output that is gone ends the attempt."""
        if view.result_ref is None:
            return bytes(view.result)
        try:
            data: bytes = self._host.store().objects.get(view.result_ref)
        except NotFound:
            self._lose(view)
        if view.result_sha256 and hashlib.sha256(data).hexdigest() != view.result_sha256:
            self._lose(view)
        return data

    def lose(self, task_id: str, attempt: int) -> NoReturn:
        """End the attempt: an output of a task of its own job is gone or spoiled."""
        if all(lost.task_id != task_id for lost in self._lost):
            self._lost.append(LostOutput(task_id, attempt))
        raise InputLost(f"the output of task {task_id} is gone, or not what it was")

    def insist_on(self, job_id: str, view: TaskView) -> None:
        """End the attempt if a task of its own job had an output that is being made again."""
        if job_id == self.assignment.job_id and view.attempts and view.state in _UNDER_WAY:
            self.lose(view.task_id, BEING_MADE)

    def _lose(self, view: TaskView) -> NoReturn:
        """End the attempt, having looked what else of all it was told of is gone."""
        # One that is not known any more came from a join's results, of which there may be many.
        own = self.assignment.job_id
        job_id = next((job for (job, _), task in self._known.items() if task is view), own)
        if job_id != self.assignment.job_id:
            raise Unavailable(
                f"the output of task {view.task_id} of job {job_id} is gone, or not what it was; "
                "submit that job anew"
            )
        others = [
            task for (job, _), task in self._known.items() if job == job_id and task is not view
        ]
        missing = self._missing([file.path for one in others for file in one.files])
        for other in others:
            if not self._is_there(other, missing):
                self._lost.append(LostOutput(other.task_id, other.attempts))
        self.lose(view.task_id, view.attempts)

    def _missing(self, paths: list[str]) -> set[str]:
        """Return those held files that are gone, asked for all at once."""
        held = [path for path in paths if path.startswith(EPHEMERAL)]
        if not held:
            return set()
        value = msgspec.Raw(msgspec.json.encode(held))
        answer = self._host.call(self._token, "missing", "", value)
        return set(msgspec.json.decode(answer.value, type=list[str]))

    def _is_there(self, view: TaskView, missing: set[str]) -> bool:
        if view.result_ref is not None:
            try:
                data = self._host.store().objects.get(view.result_ref)
            except NotFound:
                return False
            if view.result_sha256 and hashlib.sha256(data).hexdigest() != view.result_sha256:
                return False
        if any(file.path in missing for file in view.files):
            return False
        return all(file.is_ephemeral or self._is_whole(file) for file in view.files)

    def _is_whole(self, file: FileInfo) -> bool:
        """Whether an output is there as it was made."""
        digest = hashlib.sha256()
        try:
            with self._host.store().files.open_read(file.path) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
        except NotFound:
            return False
        return digest.hexdigest() == file.sha256

    def _read(self, info: InputInfo) -> None:
        if len(self._inputs) < INPUTS_MAX:
            self._inputs[info.uri] = info

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
        return _is_within(path, DATA_DIRS_ENV) or self.may_write(path)

    def may_write(self, path: Path) -> bool:
        """Whether params may name this path to write to."""
        return _is_within(path, OUTPUT_DIRS_ENV)

    def workdir(self) -> Path:
        """Return the scratch directory, made now if it was not yet."""
        if self._workdir is None:
            self._workdir = Path(tempfile.mkdtemp(prefix="work-", dir=self._host.scratch))
        return self._workdir

    # --- how it ended -------------------------------------------------------------------------

    def succeeded(self, data: bytes) -> Outcome:
        """Return the outcome of a handler that returned `data` (JSON). May write to the store."""
        if self._lost:
            return self._ended_lost()  # whatever the handler made of it
        data = strict_json(data)
        for unclosed in self._open:
            unclosed.close()
        output = _NULL_OUTPUT
        if data != b"null" or self._outputs or self.params or self._inputs:
            output = self._output(data)
        self.close()
        return Outcome(
            self._token, "ok", self.started_at, time.time(), output, submits=self._submits
        )

    def _ended_lost(self) -> Outcome:
        self.close()
        lost = msgspec.Raw(msgspec.json.encode(self._lost))
        told = ", ".join(one.task_id for one in self._lost[:5])
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
            list(self._inputs.values()),
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
        if self._lost and self.stop_reason() is None:
            return self._ended_lost()
        if isinstance(error, Discard):
            return self._ended("discarded", _text(error), "discarded")
        if isinstance(error, Snooze):
            return self._ended("snoozed", delay_s=seconds("Snooze.delay_s", error.delay_s))
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


def _copied(source: BinaryIO, into: Path, name: str) -> tuple[Path, str]:
    """Return where the copy lies, and the checksum of what was copied."""
    path = _free(into, name)
    digest = hashlib.sha256()
    with path.open("wb") as copy:
        while block := source.read(1 << 20):
            digest.update(block)
            copy.write(block)
    return path, digest.hexdigest()


def _free(into: Path, name: str) -> Path:
    """Return a path in the directory where no file of that name is yet."""
    path = into / name
    if path.exists():
        path = Path(tempfile.mkdtemp(prefix="input-", dir=into)) / name
    return path


def past_tasks(objects: Any, job_id: str, tenant: str, which: dict[str, Any]) -> TaskPage:
    """Return tasks of a job that only history knows. Raises NotFound."""
    from cluster.history.lineage import Lineage, record_page
    from cluster.history.reader import History

    record = History(objects).find(job_id)
    if record is None or record.view.tenant != tenant:
        raise NotFound("job", job_id)
    return record_page(Lineage(objects), job_id, record.view.steps, record.tasks, **which)


def _is_within(path: Path, variable: str) -> bool:
    allowed = os.environ.get(variable, "")
    folders = [Path(folder).resolve() for folder in allowed.split(os.pathsep) if folder]
    return any(path.is_relative_to(folder) for folder in folders)


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
