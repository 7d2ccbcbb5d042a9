"""Outputs, logs, checkpoints and uploads: where each lies, and how it is written and read.

Rule 1: an attempt writes under its own number, so a late one cannot spoil another's output.
Rule 2: no name from outside becomes a path before `plain_name` has passed it.
Rule 3: a file is counted and hashed as it is written; what `FileInfo` says was what arrived.
"""

import hashlib
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from cluster.store.contract import Objects, ObjectWriter
from jobs.errors import InvalidInput

__all__ = ["FileInfo", "FileWriter", "Files", "log_path", "plain_name"]

#: File systems allow 255; the rest is left for what a client adds when it saves the file.
NAME_BYTES_MAX = 200

_CHUNK_BYTES = 1024 * 1024


class FileInfo(msgspec.Struct, frozen=True):
    """What was written."""

    name: str
    bytes: int
    sha256: str


class FileWriter:
    """A stream into one file; as a context manager, an exception leaves nothing behind."""

    def __init__(self, name: str, writer: ObjectWriter) -> None:
        self._name, self._writer = name, writer
        self._bytes = 0
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        self._writer.write(data)
        self._sha256.update(data)
        self._bytes += len(data)
        return len(data)

    def close(self) -> FileInfo:
        """Make the file visible and durable; say what it holds."""
        self._writer.close()
        return self.info

    def abort(self) -> None:
        """Forget all that was written."""
        self._writer.abort()

    @property
    def info(self) -> FileInfo:
        """What was written so far."""
        return FileInfo(self._name, self._bytes, self._sha256.hexdigest())

    def __enter__(self) -> Self:
        return self

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


class Files:
    """The files of jobs in one store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def __repr__(self) -> str:
        return f"Files({self._objects!r})"

    def result_path(self, job_id: str, task_id: str, attempt: int, name: str) -> str:
        """Return where an attempt's output file lies."""
        return f"results/{_attempt(job_id, task_id, attempt)}/files/{plain_name(name)}"

    def checkpoint_path(self, job_id: str, task_id: str, attempt: int, number: int) -> str:
        """Return where an attempt's checkpoint lies, each of them under a number of its own."""
        return f"results/{_attempt(job_id, task_id, attempt)}/checkpoints/{number:06d}"

    def upload_path(self, tenant: str, name: str) -> str:
        """Return where a tenant's upload lies."""
        return f"uploads/{plain_name(tenant, field='tenant')}/{plain_name(name)}"

    def open_write(self, path: str) -> FileWriter:
        """Open a stream into the file; its name is the path's last segment."""
        return FileWriter(path.rpartition("/")[2], self._objects.open_write(path))

    def open_read(self, path: str) -> BinaryIO:
        """Open the file as a seekable stream; NotFound if there is none."""
        return self._objects.open_read(path)

    def size(self, path: str) -> int:
        """Return the file's length; NotFound if there is none."""
        return self._objects.size(path)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        return self._objects.get_range(path, start, length)

    def stream(self, path: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the file, or a range of it, in chunks that fit in memory."""
        left = self._objects.size(path) - start if length is None else length
        with self._objects.open_read(path) as file:
            file.seek(start)
            while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
                yield chunk
                left -= len(chunk)


def log_path(job_id: str, task_id: str, attempt: int) -> str:
    """Return where what an attempt printed lies, or comes to lie."""
    return f"logs/{_attempt(job_id, task_id, attempt)}.log"


def plain_name(name: str, field: str = "name") -> str:
    """Return the name if it can stand as one segment of a path; InvalidInput says why not."""
    if not name:
        raise InvalidInput(field, "is empty; give the file a name, for example 'report.pdf'")
    if "/" in name or "\\" in name:
        raise InvalidInput(field, f"{name!r} holds a separator; give a name, not a path")
    if name.startswith("."):
        raise InvalidInput(field, f"{name!r} begins with a dot; begin it with a letter or digit")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        raise InvalidInput(field, f"{name!r} holds a control character; remove it")
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(field, f"{name!r} is not valid Unicode; send UTF-8") from error
    if length > NAME_BYTES_MAX:
        raise InvalidInput(field, f"is {length} bytes; at most {NAME_BYTES_MAX} are allowed")
    return name


def _attempt(job_id: str, task_id: str, attempt: int) -> str:
    # Ids are ours, but a path is built from them: one check costs nothing.
    return f"{plain_name(job_id, 'job_id')}/{plain_name(task_id, 'task_id')}/{attempt:d}"
