"""What an attempt reads: uploads, files of this machine, other stores, outputs of other tasks.

Rule 1: whatever was read is noted for lineage, with its checksum where it was read whole.
Rule 2: an output counts only as it was made: one that is gone or spoiled ends the attempt by the
name of the task that made it, whatever the handler makes of that. Rule 3: a path of the worker's
own disk is read only inside the folders that its operator named.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol, cast
from urllib.parse import quote, unquote, urlsplit

import msgspec

from cluster.protocol import EPHEMERAL, Assignment, FileInfo, InputInfo, LostOutput
from cluster.settings import DATA_DIRS_ENV, OUTPUT_DIRS_ENV
from cluster.views import TaskPage, TaskView
from cluster.worker.pipe import Answer
from jobs.buckets import refuse_own
from jobs.errors import InvalidInput, NotFound, Unavailable

__all__ = ["BEING_MADE", "InputLost", "Reading", "ReadingHost", "Store", "may_read", "may_write"]

#: Inputs that lineage names.
INPUTS_MAX = 1_000
#: Tasks of which it is remembered what they made.
KNOWN_MAX = 20_000
#: Said of an output that is being made again, for the attempt that had made it: whatever comes of
#: that is newer, so nobody takes it for lost once more.
BEING_MADE = 0
_UNDER_WAY = frozenset({"waiting", "ready", "leased", "backing_off"})


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


class InputLost(BaseException):
    """Raised inside a handler: what it needs is gone. Not for `except Exception` to swallow."""


class ReadingHost(Protocol):
    """What reading needs of the child."""

    #: Outputs that this process found to be whole, by path.
    checked: set[str]

    def call(self, token: int, op: str, key: str, value: msgspec.Raw) -> Answer:
        """Ask the worker and wait; raises the error it answers."""

    def store(self) -> Store:
        """Open the store, once."""


class Reading:
    """What one attempt read, and what it knows of the tasks that made it."""

    __slots__ = ("_assignment", "_host", "_known", "_tenant", "inputs", "lost")

    def __init__(self, host: ReadingHost, assignment: Assignment, tenant: str) -> None:
        self._host, self._assignment, self._tenant = host, assignment, tenant
        #: What it read, and which of that was gone.
        self.inputs: dict[str, InputInfo] = {}
        self.lost: list[LostOutput] = []
        #: Outputs of other tasks as far as they were looked up, by (job, task).
        self._known: dict[tuple[str, str], TaskView] = {}

    def fetch(self, uri: str, into: Path) -> Path:
        """Bring what `uri` names to this machine."""
        scheme, _, rest = uri.partition(":")
        if scheme == "file":
            path = self._local(uri)
            self._note(InputInfo(uri, "", path.stat().st_size if path.is_file() else 0))
            return path
        if scheme == "output":
            return self._fetch_output(uri, into)
        with self._source(uri) as source:
            path, digest = _copied(source, into, rest.rpartition("/")[2])
        self._note(InputInfo(uri, digest, path.stat().st_size))
        return path

    def open(self, uri: str, workdir: Callable[[], Path]) -> BinaryIO:
        """Open what `uri` names where it lies. An output is checked as a whole before."""
        if uri.startswith("file:"):
            path = self._local(uri)
            self._note(InputInfo(uri, "", path.stat().st_size))
            return path.open("rb")
        if uri.startswith("output:"):
            view, file = self._output_file(uri)
            if file.is_ephemeral:
                return self._fetch_output(uri, workdir()).open("rb")
            # Once a process: chunks that read ranges of one large file would read all of it each.
            if file.path not in self._host.checked and not self._is_whole(file):
                self._lose(view)
            self._host.checked.add(file.path)
            self._note(InputInfo(uri, file.sha256, file.bytes, view.attempts))
            try:
                return cast(BinaryIO, self._host.store().files.open_read(file.path))
            except NotFound:
                self._host.checked.discard(file.path)
                self._lose(view)
        source = self._source(uri)
        self._note(InputInfo(uri, "", source.seek(0, io.SEEK_END)))
        source.seek(0)
        return source

    def _source(self, uri: str) -> BinaryIO:
        scheme, _, rest = uri.partition(":")
        if scheme == "upload":
            path = self._host.store().files.upload_path(self._tenant, rest)
            try:
                return cast(BinaryIO, self._host.store().files.open_read(path))
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
        if not may_read(path):
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
        self._note(InputInfo(uri, digest, file.bytes, view.attempts))
        return path

    def _brought(self, file: FileInfo, into: Path) -> tuple[Path, str]:
        path = _free(into, file.name)
        where = msgspec.Raw(msgspec.json.encode(str(path)))
        self._host.call(self._assignment.token, "bring", file.path, where)
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

    def tasks(self, job_id: str, **which: Any) -> TaskPage:
        """Return tasks of a job, wherever they are remembered: `ids`, or `first` and `limit`."""
        value = msgspec.Raw(msgspec.json.encode(which))
        answer = self._host.call(self._assignment.token, "tasks", job_id, value)
        if answer.found != "evicted":
            page = msgspec.json.decode(answer.value, type=TaskPage)
            return cast(TaskPage, self._host.store().lineage.filled(job_id, page))
        return past_tasks(self._host.store().objects, job_id, self._tenant, which)

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
        if all(lost.task_id != task_id for lost in self.lost):
            self.lost.append(LostOutput(task_id, attempt))
        raise InputLost(f"the output of task {task_id} is gone, or not what it was")

    def insist_on(self, job_id: str, view: TaskView) -> None:
        """End the attempt if a task of its own job had an output that is being made again."""
        if job_id == self._assignment.job_id and view.attempts and view.state in _UNDER_WAY:
            self.lose(view.task_id, BEING_MADE)

    def _lose(self, view: TaskView) -> NoReturn:
        """End the attempt, having looked what else of all it was told of is gone."""
        # One that is not known any more came from a join's results, of which there may be many.
        own = self._assignment.job_id
        job_id = next((job for (job, _), task in self._known.items() if task is view), own)
        if job_id != self._assignment.job_id:
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
                self.lost.append(LostOutput(other.task_id, other.attempts))
        self.lose(view.task_id, view.attempts)

    def _missing(self, paths: list[str]) -> set[str]:
        """Return those held files that are gone, asked for all at once."""
        held = [path for path in paths if path.startswith(EPHEMERAL)]
        if not held:
            return set()
        value = msgspec.Raw(msgspec.json.encode(held))
        answer = self._host.call(self._assignment.token, "missing", "", value)
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

    def _note(self, info: InputInfo) -> None:
        if len(self.inputs) < INPUTS_MAX:
            self.inputs[info.uri] = info


def _is_within(path: Path, variable: str) -> bool:
    allowed = os.environ.get(variable, "")
    folders = [Path(folder).resolve() for folder in allowed.split(os.pathsep) if folder]
    return any(path.is_relative_to(folder) for folder in folders)


def may_read(path: Path) -> bool:
    """Whether params may name this path of the worker's own disk."""
    return _is_within(path, DATA_DIRS_ENV) or may_write(path)


def may_write(path: Path) -> bool:
    """Whether params may name this path to write to."""
    return _is_within(path, OUTPUT_DIRS_ENV)


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
