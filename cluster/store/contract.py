"""What a store of objects promises, whichever one it is: bytes under names, created once.

Rule 1: what `put_if_absent`, `put`, a writer's `close` and `delete` did is durable when they
return. Rule 2: an object is seen whole or not at all, also after a crash. Rule 3: of any number of
callers who create one name, exactly one is told True. Rule 4: an error that leaves the outcome in
doubt is `Unavailable`; repeat the same bytes under the same name until it is resolved.
Rule 5: a name is checked before anything else happens, so no caller can leave the store's root.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from jobs.errors import InvalidInput

__all__ = ["ObjectInfo", "ObjectWriter", "Objects", "check_path", "check_prefix", "check_range"]

#: Temporary files of a store on disk begin so; no object may.
TEMPORARY_PREFIX = ".tmp-"

#: S3 allows a key 1,024 bytes, file systems a name 255: a store must be movable between the two.
PATH_BYTES_MAX = 1024
SEGMENT_BYTES_MAX = 255


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of one object."""

    path: str
    bytes: int
    modified_at: datetime


class ObjectWriter(Protocol):
    """A stream into one object, which appears at `close` and not before."""

    def write(self, data: bytes) -> int:
        """Take the next bytes."""

    def close(self) -> None:
        """Make the object visible and durable, replacing what had its name."""

    def abort(self) -> None:
        """Forget all that was written. Does nothing after `close`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Objects(Protocol):
    """A store of objects. Paths are keys: `/` between segments, none at either end.

    Raises everywhere: InvalidInput for a bad path, Unavailable when the store does not answer.
    """

    #: Where it is, as a person would write it.
    url: str

    #: How many requests at once pay off.
    concurrency: int

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create the object; False, changing nothing, if the name is taken.

        False after an error may mean that the failed call did create it: read it to know.
        """

    def get_ready(self, folder: str) -> None:
        """Do now what makes the next `put_if_absent` into this folder quicker, if anything does."""

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace the object. With `durable=False` a power cut may undo it."""

    def get(self, path: str) -> bytes:
        """Return the whole object; NotFound if there is none."""

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`; fewer, or none, past the end."""

    def size(self, path: str) -> int:
        """Return the object's length in bytes; NotFound if there is none."""

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield what lies beneath a folder (`a/b/`, or `` for all) in lexicographic order.

        `start_after` skips everything up to and including that path; use it only in a folder
        without subfolders, where every store agrees on the order (SeaweedFS sorts folder by folder
        rather than by whole key).
        """

    def delete(self, paths: Iterable[str]) -> None:
        """Remove the objects; a name that is not there is no error."""

    def open_read(self, path: str) -> BinaryIO:
        """Open the object as a seekable stream; NotFound if there is none."""

    def open_write(self, path: str) -> ObjectWriter:
        """Open a stream into the object. As a context manager an exception aborts it."""

    def local_path(self, path: str) -> Path | None:
        """Return where the object lies, or would lie, on this machine's disk; None if it can't."""

    def free_bytes(self) -> int | None:
        """Return how much room is left; None where nobody can say, as of a bucket."""


class AbortOnError:
    """The context manager of every writer: close on success, abort on an exception."""

    def close(self) -> None:
        """Overridden by the writer."""
        raise NotImplementedError

    def abort(self) -> None:
        """Overridden by the writer."""
        raise NotImplementedError

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


def check_path(path: str) -> str:
    """Return the path if it may name an object; InvalidInput says what is wrong with it."""
    if not path:
        raise InvalidInput("path", "is empty; name an object, for example 'results/a.txt'")
    if path.startswith("/"):
        raise InvalidInput("path", f"{path!r} is absolute; leave the leading '/' out")
    if len(_utf8(path)) > PATH_BYTES_MAX:
        raise InvalidInput("path", f"is longer than {PATH_BYTES_MAX} bytes; use a shorter name")
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise InvalidInput("path", f"{path!r} holds a control character; remove it")
    for segment in path.split("/"):
        _check_segment(path, segment)
    return path


def check_prefix(prefix: str) -> str:
    """Return the prefix if it names a folder: `` for everything, or a path that ends in `/`."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidInput("prefix", f"{prefix!r} is no folder; end it with '/'")
        check_path(prefix[:-1])
    return prefix


def check_range(start: int, length: int) -> None:
    """Refuse a range that begins before the object or has a negative length."""
    if start < 0 or length < 0:
        raise InvalidInput("range", f"start={start} length={length}: both must be 0 or more")


def _check_segment(path: str, segment: str) -> None:
    if segment == "":
        raise InvalidInput("path", f"{path!r} has an empty segment; write one '/' between names")
    if segment in {".", ".."}:
        raise InvalidInput("path", f"{path!r} holds {segment!r}; name the object itself")
    if segment.startswith(TEMPORARY_PREFIX):
        raise InvalidInput("path", f"{path!r}: names in {TEMPORARY_PREFIX!r} are the store's own")
    if len(_utf8(segment)) > SEGMENT_BYTES_MAX:
        raise InvalidInput(
            "path", f"a segment is longer than {SEGMENT_BYTES_MAX} bytes; use a shorter name"
        )


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("path", f"{text!r} is not valid Unicode; send UTF-8") from error
