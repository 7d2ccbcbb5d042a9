"""The folder that `into` names, on this disk or in a bucket, and what an import keeps there.

Rule 1: a file is there whole or not at all: it is renamed into place on a disk, and a bucket shows
an object once it is closed. Rule 2: names follow from the import's name and the chunk, so that
writing again replaces. Rule 3: `_<name>.import.json` lists what the import owns here, before the
first file is written and again after; of those, what a later import of the same name does not
write is removed. Rule 4: nothing else in the folder is touched.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from jobs.buckets import refuse_own
from jobs.context import Files
from jobs.errors import InvalidInput
from jobs.library.table.source import file_path
from jobs.outcome import Discard

__all__ = ["Place", "open_place", "publish"]

_STORES = ("s3", "gs", "gcs")
_AT_ONCE = 4


class Place(Protocol):
    """A folder."""

    def read(self, name: str) -> bytes | None:
        """Return the file's bytes; None if there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Write or replace the file, durable on return."""

    def remove(self, name: str) -> None:
        """Remove the file; fine if there is none."""

    def uri(self, name: str) -> str:
        """Return where the file is, for whoever reads the result."""


def open_place(files: Files, uri: str) -> Place:
    """Return the folder at `uri`. Raises Discard if jobs may not use it."""
    named = file_path(uri)
    if named is not None:
        try:
            path = files.target(named)
        except InvalidInput as error:
            raise Discard(f"into: {error}") from error
        if path.exists() and not path.is_dir():
            raise Discard(f"into: {uri} is a file; name a folder")
        return _Disk(path)
    if uri.partition("://")[0] not in _STORES:
        raise Discard(f"into: {uri} cannot be written; use a path, file:/// or s3://")
    try:
        refuse_own(uri)
    except InvalidInput as error:
        raise Discard(f"into: {error}") from error
    from pyarrow import ArrowInvalid, fs

    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
    except ArrowInvalid as error:
        raise Discard(f"into: {uri.partition('?')[0]} is not a usable URI ({error})") from error
    return _Bucket(filesystem, root.rstrip("/"), uri.partition("?")[0].rstrip("/"))


def publish(
    place: Place,
    name: str,
    files: Sequence[tuple[str, Callable[[], bytes]]],
    summary: dict[str, Any],
    tick: Callable[[int], None],
) -> None:
    """Make `files` (name, how to get its bytes) what the import `name` has in `place`.

    Killed in between, and called again, it ends the same. `tick` gets how many are written.
    """
    listing = f"_{name}.import.json"
    mine = re.compile(rf"(?:[^/=]+=[^/]*/)*{re.escape(name)}-\d{{5,}}\.parquet")
    new = [file for file, _ in files]
    before = place.read(listing)
    old = json.loads(before)["files"] if before else []
    # The list lies in a folder others may write to: only names an import could have given count.
    old = [file for file in old if isinstance(file, str) and mine.fullmatch(file)]
    place.write(listing, _listed({"files": sorted({*old, *new})}))

    def put(one: tuple[str, Callable[[], bytes]]) -> None:
        place.write(one[0], one[1]())

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(files), _AT_ONCE):
            list(pool.map(put, files[start : start + _AT_ONCE]))
            tick(min(len(files), start + _AT_ONCE))
    for stale in sorted(set(old) - set(new)):
        place.remove(stale)
    place.write(listing, _listed({**summary, "files": new}))


def _listed(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


class _Disk:
    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".import-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
        _sync_folder(path.parent)

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def uri(self, name: str) -> str:
        return (self._root / name).as_uri()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Bucket:
    def __init__(self, filesystem: Any, root: str, shown: str) -> None:
        self._filesystem, self._root, self._shown = filesystem, root, shown

    def read(self, name: str) -> bytes | None:
        try:
            with self._filesystem.open_input_stream(f"{self._root}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        # Not `with`: closing after an error would show half an object.
        stream = self._filesystem.open_output_stream(f"{self._root}/{name}")
        stream.write(data)
        stream.close()

    def remove(self, name: str) -> None:
        try:
            self._filesystem.delete_file(f"{self._root}/{name}")
        except FileNotFoundError:
            pass  # An earlier attempt removed it.

    def uri(self, name: str) -> str:
        return f"{self._shown}/{name}"
