"""A store in memory, for tests and simulation, that can lose power.

It keeps apart what was made durable from what was only written, so that `crash()` leaves exactly
what a power cut would leave of a disk. It keeps the whole contract and passes the same suite.
"""

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cluster.store.contract import (
    AbortOnError,
    ObjectInfo,
    ObjectWriter,
    check_path,
    check_prefix,
    check_range,
)
from jobs.errors import NotFound

__all__ = ["MemoryObjects"]


@dataclass(frozen=True, slots=True)
class _Entry:
    data: bytes
    modified_at: datetime


class MemoryObjects:
    """Objects in two dicts: what readers see, and what a crash would leave."""

    concurrency = 1

    def __init__(
        self, url: str = "memory://", now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.url = url
        self._now = now
        self._lock = threading.Lock()
        self._visible: dict[str, _Entry] = {}
        self._durable: dict[str, _Entry] = {}

    def __repr__(self) -> str:
        return f"MemoryObjects({self.url!r}, objects={len(self._visible)})"

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create the object; False if the name is taken."""
        check_path(path)
        with self._lock:
            if path in self._visible:
                # Told "it exists", a caller may build on it: it must not vanish in a crash.
                self._durable[path] = self._visible[path]
                return False
            self._visible[path] = self._durable[path] = _Entry(bytes(data), self._now())
            return True

    def get_ready(self, folder: str) -> None:
        """Check the name; there is nothing to do ahead."""
        check_prefix(folder)

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace the object; a crash undoes it unless `durable`."""
        check_path(path)
        with self._lock:
            self._visible[path] = entry = _Entry(bytes(data), self._now())
            if durable:
                self._durable[path] = entry

    def get(self, path: str) -> bytes:
        """Return the whole object."""
        return self._entry(path).data

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        check_range(start, length)
        return self._entry(path).data[start : start + length]

    def size(self, path: str) -> int:
        """Return the object's length."""
        return len(self._entry(path).data)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield what lies beneath a folder as it was at the first step."""
        check_prefix(prefix)
        with self._lock:
            found = [
                ObjectInfo(path, len(entry.data), entry.modified_at)
                for path, entry in self._visible.items()
                if path.startswith(prefix) and path > start_after
            ]
        yield from sorted(found, key=lambda info: info.path)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove the objects, durably."""
        checked = [check_path(path) for path in paths]
        with self._lock:
            for path in checked:
                self._visible.pop(path, None)
                self._durable.pop(path, None)

    def open_read(self, path: str) -> BinaryIO:
        """Open the object as it is now."""
        return io.BytesIO(self.get(path))

    def open_write(self, path: str) -> ObjectWriter:
        """Open a stream that becomes the object when closed."""
        return _MemoryWriter(self, check_path(path))

    def local_path(self, path: str) -> Path | None:
        """Return None: nothing here is on disk."""
        check_path(path)
        return None

    def free_bytes(self) -> int | None:
        """Return None: memory is not what these tests run out of."""
        return None

    def crash(self) -> None:
        """Lose power: all that was not made durable is gone."""
        with self._lock:
            self._visible = dict(self._durable)

    def _entry(self, path: str) -> _Entry:
        check_path(path)
        with self._lock:
            entry = self._visible.get(path)
        if entry is None:
            raise NotFound("object", path)
        return entry


class _MemoryWriter(AbortOnError):
    def __init__(self, objects: MemoryObjects, path: str) -> None:
        self._objects, self._path = objects, path
        self._buffer: io.BytesIO | None = io.BytesIO()

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        if self._buffer is None:
            raise ValueError("write to a closed object")
        return self._buffer.write(data)

    def close(self) -> None:
        """Make the object visible and durable."""
        if self._buffer is not None:
            data, self._buffer = self._buffer.getvalue(), None
            self._objects.put(self._path, data)

    def abort(self) -> None:
        """Forget all that was written."""
        self._buffer = None
