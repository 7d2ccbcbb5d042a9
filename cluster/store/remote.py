"""A store in a bucket (S3, Google Cloud Storage, Azure), through obstore.

Rule 1: a call is repeated on errors that pass, a few times with backoff, and then is
`Unavailable`: the outcome of a write is then in doubt (contract, rule 4). Rule 2: refused
credentials are `Unavailable` too, naming the settings, since they are often rotated under us.
Rule 3: a bucket that does not exist is `InvalidInput`: waiting will not make it.
"""

import errno
import io
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import from_url

from cluster.store.contract import (
    AbortOnError,
    ObjectInfo,
    ObjectWriter,
    check_path,
    check_prefix,
    check_range,
)
from jobs.errors import DraymanError, InvalidInput, NotFound, Unavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

__all__ = ["SCHEMES", "RemoteObjects"]

#: URL schemes, and where each kind of bucket finds its credentials.
SCHEMES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and AWS_REGION",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

#: Tries of one call, on top of the few that obstore makes of each request.
_TRIES = 4
_FIRST_PAUSE_S = 0.1
_REQUEST_RETRIES: "RetryConfig" = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}

#: One request. Long enough for a part of a big upload over a slow line.
_REQUEST_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 5

#: A streamed object stays in memory up to this size, then goes to a temporary file.
_SPOOL_BYTES = 8 * 1024 * 1024
_READ_AHEAD_BYTES = 4 * 1024 * 1024

#: S3 deletes so many keys in one request.
_DELETE_BATCH = 1000
_LIST_PAGE = 1000

_REFUSED = (PermissionDeniedError, UnauthenticatedError)
_FINAL = (InvalidPathError, NotSupportedError, UnknownConfigurationKeyError)

#: Listing reports a refusal as a generic error; its text still tells.
_REFUSED_STATUS = re.compile(r"status code: 40[13]\b")
_CONFLICT_STATUS = re.compile(r"status code: 409\b")
_ERROR_CODE = re.compile(r"<Code>(\w+)</Code>")

T = TypeVar("T")


class RemoteObjects:
    """Objects in one bucket, beneath the folder of the URL if it has one."""

    concurrency = 64

    def __init__(self, url: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url = url.rstrip("/")
        self._sleep = sleep
        self._settings = SCHEMES[urlsplit(url).scheme]
        try:
            self._store = from_url(
                self.url, client_options=_client_options(url), retry_config=_REQUEST_RETRIES
            )
        except (BaseError, ValueError) as error:
            raise InvalidInput(
                "store", f"cannot open {url!r}: {_reason(error)}; check {self._settings}"
            ) from error

    def __repr__(self) -> str:
        return f"RemoteObjects({self.url!r})"

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create the object; False if the name is taken, be it by an earlier try of this call."""
        check_path(path)

        def create() -> bool:
            try:
                # A multipart upload could not be conditional, whatever its size.
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
            except AlreadyExistsError as error:
                # S3's 409 means that another create is under way, not that it will succeed.
                if _CONFLICT_STATUS.search(str(error)):
                    raise
                return False
            return True

        return self._call("create", path, create)

    def get_ready(self, folder: str) -> None:
        """Check the name; there is nothing to do ahead."""
        check_prefix(folder)

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace the object; a bucket makes everything durable."""
        check_path(path)
        self._call("write", path, lambda: obstore.put(self._store, path, data))

    def get(self, path: str) -> bytes:
        """Return the whole object."""
        check_path(path)
        return self._call("read", path, lambda: obstore.get(self._store, path).bytes().to_bytes())

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        check_range(start, length)
        # Stores disagree on a range that begins past the end, so none is asked for.
        length = min(length, self.size(path) - start)
        if length <= 0:
            return b""
        return self._call(
            "read",
            path,
            lambda: obstore.get_range(self._store, path, start=start, length=length).to_bytes(),
        )

    def size(self, path: str) -> int:
        """Return the object's length."""
        check_path(path)
        return self._call("read", path, lambda: obstore.head(self._store, path)["size"])

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield what lies beneath a folder, fetched a page at a time."""
        check_prefix(prefix)
        stream = obstore.list(
            self._store, prefix=prefix or None, offset=start_after or None, chunk_size=_LIST_PAGE
        )
        # One try: a stream that failed once ends at its next step, as if nothing were left.
        while page := self._call("list", prefix, partial(next, stream, ()), tries=1):
            for meta in page:
                yield ObjectInfo(meta["path"], meta["size"], meta["last_modified"])

    def delete(self, paths: Iterable[str]) -> None:
        """Remove the objects, many in one request."""
        checked = [check_path(path) for path in paths]
        for at in range(0, len(checked), _DELETE_BATCH):
            batch = checked[at : at + _DELETE_BATCH]
            try:
                self._call("delete", batch[0], partial(self._delete, batch))
            except NotFound:
                for path in batch:
                    self._delete_one(path)

    def open_read(self, path: str) -> BinaryIO:
        """Open the object as a stream that fetches a few MiB at a time."""
        reader = _RemoteReader(self, path, self.size(path))
        return io.BufferedReader(reader, buffer_size=_READ_AHEAD_BYTES)

    def open_write(self, path: str) -> ObjectWriter:
        """Open a stream that is uploaded when closed."""
        return _RemoteWriter(self, check_path(path))

    def local_path(self, path: str) -> Path | None:
        """Return None: nothing here is on this machine."""
        check_path(path)
        return None

    def free_bytes(self) -> int | None:
        """Return None: a bucket has no end."""
        return None

    def _delete(self, paths: Sequence[str]) -> None:
        obstore.delete(self._store, paths)

    def _delete_one(self, path: str) -> None:
        try:
            self._call("delete", path, lambda: self._delete([path]))
        except NotFound:
            pass  # That is what was asked for.

    def _upload(self, path: str, file: "BinaryIO | tempfile.SpooledTemporaryFile[bytes]") -> None:
        """Write a whole file as the object."""

        def upload() -> None:
            file.seek(0)
            obstore.put(self._store, path, cast("BinaryIO", file))

        self._call("write", path, upload)

    def _call(self, verb: str, path: str, request: Callable[[], T], tries: int = _TRIES) -> T:
        """Make a request, repeating it while its error may pass."""
        for left in reversed(range(tries)):
            try:
                return request()
            except (BaseError, OSError) as error:
                final = self._final(verb, path, error)
                if final is not None:
                    raise final from error
                if not left:
                    where = f"cannot {verb} {path!r} in {self.url}"
                    raise Unavailable(f"{where}: {_reason(error)}") from error
                # Jitter, or all who failed together come back together.
                self._sleep(_FIRST_PAUSE_S * 2 ** (tries - 1 - left) * (0.5 + random.random()))
        raise AssertionError("unreachable: the last try returns or raises")

    def _final(self, verb: str, path: str, error: Exception) -> DraymanError | None:
        """Return our error for one that repeating will not mend, None for any other."""
        text = str(error)
        if "NoSuchBucket" in text or (_is_missing(error) and verb in {"create", "write", "list"}):
            return InvalidInput("store", f"{self.url}: no such bucket; create it first")
        if _is_missing(error):
            return NotFound("object", path)
        if isinstance(error, _REFUSED) or _REFUSED_STATUS.search(text):
            return Unavailable(
                f"{self.url} refuses to {verb} {path!r}: {_reason(error)}; check {self._settings}",
                retry_after_s=10.0,
            )
        if isinstance(error, _FINAL):
            return InvalidInput("store", f"{self.url} can't {verb} {path!r}: {_reason(error)}")
        return None


class _RemoteReader(io.RawIOBase):
    """Ranges of an object as a file; `io.BufferedReader` makes them few and large."""

    def __init__(self, objects: RemoteObjects, path: str, size: int) -> None:
        self._objects, self._path, self._size = objects, path, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek to before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = self._objects.get_range(self._path, self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _RemoteWriter(AbortOnError):
    """Gathers the stream here and uploads it at the end.

    A multipart upload begun early would save the disk, but could neither be repeated after an
    error nor be sure to leave nothing behind.
    """

    def __init__(self, objects: RemoteObjects, path: str) -> None:
        self._objects, self._path = objects, path
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        return self._spool.write(data)

    def close(self) -> None:
        """Upload the object."""
        if self._spool.closed:
            return
        with self._spool:
            self._objects._upload(self._path, self._spool)

    def abort(self) -> None:
        """Forget all that was written."""
        self._spool.close()


def _client_options(url: str) -> "ClientConfig":
    options: ClientConfig = {
        "timeout": timedelta(seconds=_REQUEST_TIMEOUT_S),
        "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
    }
    # An endpoint that says http:// means it; asking for a second setting helps nobody.
    if url.startswith("s3://") and _s3_endpoint().startswith("http://"):
        options["allow_http"] = True
    return options


def _s3_endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _is_missing(error: Exception) -> bool:
    # obstore raises the built-in one for a missing object.
    return isinstance(error, FileNotFoundError | NotFoundError)


def _reason(error: Exception) -> str:
    """Return what an operator needs; obstore appends a debug dump of the whole chain."""
    text = str(error).strip() or type(error).__name__
    code = _ERROR_CODE.search(text)
    return text.splitlines()[0] + (f" ({code[1]})" if code else "")
