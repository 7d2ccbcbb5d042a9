"""A store in a folder of this machine: what it acknowledged survives a power cut.

Rule 1: an object is written to a temporary file in its own folder, fsynced, linked (or renamed) to
its name, and the folder fsynced, in this order; so a name always holds a whole object.
Rule 2: a folder that was made is fsynced in its parent before anything in it counts as durable.
Rule 3: after a failed fsync nothing is retried on the same descriptor: Linux reports a lost page
once and then calls the file clean. The caller repeats the call, which begins a new file.
Rule 4: the root is made when the store is opened and never again: a folder that is gone was
unmounted or taken away, and what is written in its place would be lost when it comes back.
"""

import errno
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cluster.store.contract import (
    TEMPORARY_PREFIX,
    AbortOnError,
    ObjectInfo,
    ObjectWriter,
    check_path,
    check_prefix,
    check_range,
)
from jobs.errors import InvalidInput, NotFound, Unavailable

__all__ = ["LocalObjects"]

#: A temporary file this old belongs to a process that died: no write pauses for a day.
_LEFTOVER_AGE_S = 24 * 3600.0

#: Opening a store looks at so many entries for leftovers; a listing clears those further down.
_OPENING_ENTRIES_MAX = 10_000

#: How many folders are remembered as durable before all are forgotten and asked again.
_DURABLE_FOLDERS_MAX = 10_000

_NO_SUCH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
#: Opens a file without a name, and what file systems say that have no such thing.
_NAMELESS = getattr(os, "O_TMPFILE", 0) | os.O_WRONLY | os.O_CLOEXEC
_NO_NAMELESS = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_NO_RIGHT = {errno.EACCES, errno.EROFS, errno.EPERM}


class LocalObjects:
    """Objects as files beneath `root`, which is made if it is missing.

    `fsync` is passed in so that a test can see every call, or make one fail. With `read_only`
    nothing is changed, not even a leftover removed; writing raises InvalidInput.
    """

    concurrency = 1

    def __init__(
        self,
        root: Path | str,
        *,
        fsync: Callable[[int], None] = os.fsync,
        read_only: bool = False,
    ) -> None:
        self._root = Path(root).absolute()
        self._fsync, self._read_only = fsync, read_only
        #: Folders whose entry in their parent is known to be on disk.
        self._durable_folders: set[Path] = set()
        #: Objects whose link may be lost, because the fsync of their folder failed.
        self._doubtful: set[Path] = set()
        #: By folder: the descriptor of a file without a name, for its next object.
        self._ahead: dict[Path, int] = {}
        self.url = self._root.as_uri()
        with self._reported("open", str(self._root)):
            if read_only:
                self._require_folder()
            else:
                self._make_durable(self._root)
                self._clear_leftovers()
            self._root_is = self._identity()

    def __repr__(self) -> str:
        return f"LocalObjects({str(self._root)!r})"

    def __del__(self) -> None:
        for descriptor in getattr(self, "_ahead", {}).values():
            os.close(descriptor)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create the object; False, once it is durable, if the name is taken."""
        final = self._file(path)
        with self._reported("create", path):
            if self._put_ahead(final, data):
                return True
            temporary = self._write_temporary(final, data)
            try:
                return self._link(temporary, final, data)
            finally:
                _remove(temporary)

    def get_ready(self, folder: str) -> None:
        """Open a file for the next object there: finding an inode can take as long as an fsync.

        It has no name, so nothing is left of it if it is never used.
        """
        parent = self._root / check_prefix(folder)
        if parent in self._ahead or not hasattr(os, "O_TMPFILE"):
            return
        self._require_writable()
        with self._reported("create", folder):
            self._make_durable(parent)
            try:
                self._ahead[parent] = os.open(parent, _NAMELESS, 0o666)
            except OSError as error:
                if error.errno not in _NO_NAMELESS:
                    raise

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace the object; with `durable=False` nothing is fsynced."""
        final = self._file(path)
        with self._reported("write", path):
            temporary = self._write_temporary(final, data, durable=durable)
            self._replace(temporary, final, durable=durable)

    def get(self, path: str) -> bytes:
        """Return the whole object."""
        with self._reported("read", path):
            return self._file(path).read_bytes()

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        check_range(start, length)
        with self._reported("read", path), self._file(path).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, path: str) -> int:
        """Return the object's length."""
        with self._reported("read", path):
            file = self._file(path)
            if file.is_dir():
                raise NotFound("object", path)
            return file.stat().st_size

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield what lies beneath a folder; what is written meanwhile may be left out."""
        check_prefix(prefix)
        with self._reported("list", prefix):
            yield from _walk(self._root / prefix, prefix, start_after, clears=not self._read_only)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove the objects, durably, and the folders this leaves empty."""
        files = [self._file(path) for path in paths]
        self._require_writable()
        folders: dict[Path, None] = {}
        with self._reported("delete", "objects"):
            for file in files:
                if _remove(file):
                    folders[file.parent] = None
            for folder in folders:
                # A deletion that a power cut undoes would let a folded intake run again.
                self._sync_folder(folder)
                self._prune(folder)

    def open_read(self, path: str) -> BinaryIO:
        """Open the object as a file."""
        with self._reported("read", path):
            return self._file(path).open("rb")

    def open_write(self, path: str) -> ObjectWriter:
        """Open a stream into a temporary file that becomes the object when closed."""
        final = self._file(path)
        with self._reported("write", path):
            return _LocalWriter(self, path, final, *self._open_temporary(final.parent))

    def local_path(self, path: str) -> Path | None:
        """Return where the object lies or would lie."""
        return self._file(path)

    def free_bytes(self) -> int | None:
        """Return how much an ordinary user may still write on the folder's disk."""
        with self._reported("look at", "the disk"):
            return shutil.disk_usage(self._root).free

    def _file(self, path: str) -> Path:
        return self._root / check_path(path)

    def _write_temporary(self, final: Path, data: bytes, *, durable: bool = True) -> Path:
        temporary, descriptor = self._open_temporary(final.parent)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                _write_all(file, data)
                if durable:
                    self._fsync(file.fileno())
        except BaseException:
            _remove(temporary)
            raise
        return temporary

    def _open_temporary(self, folder: Path) -> tuple[Path, int]:
        """Open a new file in the folder, which is durable when this returns."""
        self._require_writable()
        temporary = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        while True:
            self._make_durable(folder)
            try:
                return temporary, os.open(temporary, flags, 0o666)
            except FileNotFoundError:
                # Someone pruned the folder just now, or removed it by hand: make it again.
                if self._identity() != self._root_is:
                    raise Unavailable(f"{self.url} is gone; mount it again") from None
                self._forget(folder)

    def _link(self, temporary: Path, final: Path, data: bytes) -> bool:
        try:
            os.link(temporary, final)
        except FileExistsError:
            self._settle(temporary, final, data)
            return False
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise InvalidInput(
                    "store",
                    f"{self.url} is on a file system without hard links, so an object could be "
                    "created twice; choose a folder on a local disk (ext4, xfs, apfs) or a bucket",
                ) from error
            raise
        self._enter(final)
        return True

    def _put_ahead(self, final: Path, data: bytes) -> bool:
        """Use the file that was opened ahead; False, with nothing changed, if that is no use."""
        descriptor = self._ahead.pop(final.parent, None)
        if descriptor is None:
            return False
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            _write_all(file, data)
            self._fsync(descriptor)
            try:
                # `src_dir_fd` means nothing for this path, but has Python follow it as linkat does.
                source = f"/proc/self/fd/{descriptor}"
                os.link(source, final, src_dir_fd=descriptor, follow_symlinks=True)
            except OSError:
                return False  # Whatever it is, the usual way meets it again, and says so.
        self._enter(final)
        return True

    def _enter(self, final: Path) -> None:
        """Make a name that was linked just now durable."""
        self._doubtful.add(final)
        self._sync_folder(final.parent)
        self._doubtful.discard(final)

    def _settle(self, temporary: Path, final: Path, data: bytes) -> None:
        """Make the object that has the name durable before anyone is told that it has it."""
        if final in self._doubtful and final.read_bytes() == data:
            # A second fsync of the folder may report success for an entry the first one lost; a
            # rename of the same bytes enters it anew.
            os.replace(temporary, final)
        self._sync_folder(final.parent)
        self._doubtful.discard(final)

    def _replace(self, temporary: Path, final: Path, *, durable: bool) -> None:
        try:
            os.replace(temporary, final)
        except BaseException:
            _remove(temporary)
            raise
        if durable:
            self._sync_folder(final.parent)

    def _sync_folder(self, folder: Path) -> None:
        # A new descriptor each time, for rule 3.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fsync(descriptor)
        finally:
            os.close(descriptor)

    def _identity(self) -> tuple[int, int] | None:
        """Return what tells the root from any other folder of its name; None if it is gone."""
        try:
            status = os.stat(self._root)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _require_folder(self) -> None:
        if not self._root.is_dir():
            raise InvalidInput("store", f"{self._root} is no folder; give the one of a store")

    def _require_writable(self) -> None:
        if self._read_only:
            raise InvalidInput("store", f"{self.url} was opened to be read only")

    def _make_durable(self, folder: Path) -> None:
        """Make the folder and every missing parent, and fsync each in its own parent.

        A folder that is already there may have been made a moment ago by someone who has not
        fsynced it yet, so the first use of each one within the root does it too.
        """
        if folder in self._durable_folders:
            return
        within = folder != self._root and folder.is_relative_to(self._root)
        if within or not folder.is_dir():
            self._make_durable(folder.parent)
            folder.mkdir(exist_ok=True)
            try:
                self._sync_folder(folder.parent)
            except OSError:
                # Rule 3 for folders: the next try must make it anew (unless others are in it).
                _remove_empty(folder)
                raise
        if len(self._durable_folders) >= _DURABLE_FOLDERS_MAX:
            self._durable_folders.clear()
        self._durable_folders.add(folder)

    def _forget(self, folder: Path) -> None:
        for known in (folder, *folder.parents):
            if known == self._root:
                return
            self._durable_folders.discard(known)

    def _prune(self, folder: Path) -> None:
        """Remove the folder and its parents while they are empty, but none at the first level.

        Those (`journal/`, `intake/`) are written all the time, and pruning them would only make
        work.
        """
        while len(folder.relative_to(self._root).parts) > 1:
            if not _remove_empty(folder):
                return
            self._durable_folders.discard(folder)
            folder = folder.parent

    def _clear_leftovers(self) -> None:
        folders = deque([self._root])
        seen = 0
        while folders and seen < _OPENING_ENTRIES_MAX:
            entries = _entries(folders.popleft(), clears=True)
            seen += len(entries)
            folders.extend(Path(entry.path) for name, entry in entries if name.endswith("/"))

    @contextmanager
    def _reported(self, verb: str, path: str) -> Iterator[None]:
        """Turn what the operating system says into our errors."""
        try:
            yield
        except OSError as error:
            if verb == "read" and error.errno in _NO_SUCH:
                raise NotFound("object", path) from error
            if verb == "open" and error.errno in _NO_RIGHT:
                raise InvalidInput(
                    "store",
                    f"{self._root} can't be used: {error.strerror}; give its user the "
                    "right to write there, or choose another folder",
                ) from error
            if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
                raise InvalidInput(
                    "path", f"{path!r}: a name can't be both an object and a folder; choose another"
                ) from error
            raise Unavailable(f"cannot {verb} {path!r} in {self.url}: {error}") from error


class _LocalWriter(AbortOnError):
    """A stream into a temporary file, linked to nothing until it is closed."""

    def __init__(
        self, objects: LocalObjects, path: str, final: Path, temporary: Path, descriptor: int
    ) -> None:
        self._objects, self._path = objects, path
        self._final, self._temporary = final, temporary
        self._file = os.fdopen(descriptor, "wb", buffering=1024 * 1024)
        self._ended = False

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        with self._objects._reported("write", self._path):
            return self._file.write(data)

    def close(self) -> None:
        """Make the object visible and durable."""
        if self._ended:
            return
        with self._objects._reported("write", self._path):
            try:
                self._file.flush()
                self._objects._fsync(self._file.fileno())
                self._file.close()
            except BaseException:
                self.abort()
                raise
            self._ended = True
            self._objects._replace(self._temporary, self._final, durable=True)

    def abort(self) -> None:
        """Remove the temporary file."""
        if self._ended:
            return
        self._ended = True
        try:
            self._file.close()
        except OSError:
            pass  # What is in its buffer could not be written; nobody will read it.
        _remove(self._temporary)


def _walk(folder: Path, prefix: str, start_after: str, *, clears: bool) -> Iterator[ObjectInfo]:
    for name, entry in _entries(folder, clears=clears):
        path = prefix + name
        if name.endswith("/"):
            # All of the folder's paths begin with its own: it is skipped only when that is below
            # `start_after` and is not the beginning of it.
            if path > start_after or start_after.startswith(path):
                yield from _walk(folder / entry.name, path, start_after, clears=clears)
        elif path > start_after:
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            yield ObjectInfo(path, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _entries(folder: Path, *, clears: bool) -> list[tuple[str, os.DirEntry[str]]]:
    """Return the folder's entries as keys sort: a folder counts with its `/`.

    Temporary files are left out; with `clears`, those that nobody writes any more are removed.
    """
    found: list[tuple[str, os.DirEntry[str]]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(TEMPORARY_PREFIX):
                    found.append((entry.name + "/" * entry.is_dir(), entry))
                elif clears:
                    _remove_leftover(entry)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found.sort(key=lambda item: item[0])
    return found


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _remove(file: Path) -> bool:
    """Remove the file; False if it was not there."""
    try:
        file.unlink()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    return True


def _remove_empty(folder: Path) -> bool:
    """Remove the folder; False if it is not empty or already gone, so someone else's now."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _remove_leftover(entry: os.DirEntry[str]) -> None:
    try:
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFTOVER_AGE_S:
            os.unlink(entry.path)
    except OSError:
        pass  # Gone already, or not ours to remove; it is hidden either way.
