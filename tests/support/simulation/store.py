"""A store that answers late, fails before or after the deed, and loses power.

A real `MemoryObjects` beneath, so the contract is the tested one. Two kinds: a `bucket` has done
what it has done; a `disk` shows an object at once (write, fsync, link) and keeps it only once its
folder was synced, which is when the call returns. Rule: what was not synced when the power went may
be there afterwards, or not, each by itself.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from cluster.store.memory import MemoryObjects
from cluster.store.objects import ObjectInfo
from jobs.errors import Unavailable

__all__ = ["FaultyObjects"]


class FaultyObjects(MemoryObjects):
    """One machine's folder, or a bucket."""

    def __init__(
        self,
        kind: Literal["disk", "bucket"],
        rng: random.Random,
        now: Callable[[], float],
        *,
        sync: bool = True,
    ) -> None:
        super().__init__(f"{kind}://", lambda: datetime.fromtimestamp(now(), UTC))
        self.kind = kind
        self._rng = rng
        self._syncs = sync
        #: Told of every object once it is durable.
        self.on_durable: Callable[[str, bytes], None] = lambda path, data: None
        #: Told of every object that is to be deleted.
        self.on_deleted: Callable[[str], None] = lambda path: None
        #: How often a call fails before, and after, it did its work.
        self.fail_before = self.fail_after = 0.0
        self.is_gone = False
        #: Objects that are seen and could be lost, in order of their making.
        self._unsynced: dict[str, None] = {}
        self._touched: dict[str, None] = {}
        #: Objects that are gone and could come back.
        self._deleted: dict[str, None] = {}

    # --- what the manager does ----------------------------------------------------------------

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create the object; on a disk durable only after the `settle` of this call."""
        self._may_fail_before()
        if path in self._visible:
            if self.kind == "disk":
                self._touched[_folder(path)] = None
            return False
        self._create(path, data)
        self._may_fail_after()
        return True

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace the object."""
        self._may_fail_before()
        super().put(path, data, durable=durable)
        self._may_fail_after()

    def get(self, path: str) -> bytes:
        """Return the whole object."""
        self._may_fail_before()
        return super().get(path)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield what lies beneath a folder."""
        self._may_fail_before()
        return super().list(prefix, start_after)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove the objects, durably."""
        self._may_fail_before()
        for path in paths:
            self.on_deleted(path)
            self._unsynced.pop(path, None)
            self._visible.pop(path, None)
            if self.kind == "bucket":
                self._durable.pop(path, None)
            else:
                self._deleted[path] = None
                self._touched[_folder(path)] = None
        self._may_fail_after()

    # --- what the world does ------------------------------------------------------------------

    def run(self, function: Callable[..., Any], *args: Any) -> tuple[Any, Callable[[], None]]:
        """Run one piece of work; return its result and what makes it durable.

        Raises what it raises; then nothing of it is durable but by chance.
        """
        self._touched = {}
        result = function(*args)
        touched, self._touched = self._touched, {}
        return result, lambda: self._sync(touched)

    def lose_power(self) -> None:
        """Keep what was synced; of the rest each object is there afterwards, or not."""
        for path in list(self._unsynced):
            if self._rng.random() < 0.5:
                self._settle(path)
        self._unsynced.clear()
        for path in self._deleted:
            if self._rng.random() < 0.5:
                self._durable.pop(path, None)
        self._deleted.clear()
        self.crash()

    def _sync(self, folders: Iterable[str]) -> None:
        if not self._syncs:
            return
        for path in [path for path in self._unsynced if _folder(path) in folders]:
            del self._unsynced[path]
            self._settle(path)
        for path in [path for path in self._deleted if _folder(path) in folders]:
            del self._deleted[path]
            self._durable.pop(path, None)

    def _create(self, path: str, data: bytes) -> None:
        if self.kind == "bucket":
            super().put_if_absent(path, data)
            self.on_durable(path, data)
            return
        MemoryObjects.put(self, path, data, durable=False)
        self._unsynced[path] = None
        self._deleted.pop(path, None)
        self._touched[_folder(path)] = None

    def _settle(self, path: str) -> None:
        entry = self._durable[path] = self._visible[path]
        self.on_durable(path, entry.data)

    def _may_fail_before(self) -> None:
        if self._touched:  # what this piece of work did before has returned, so it is durable
            touched, self._touched = self._touched, {}
            self._sync(touched)
        if self.is_gone or self._rng.random() < self.fail_before:
            raise Unavailable("the store does not answer")

    def _may_fail_after(self) -> None:
        if self._rng.random() < self.fail_after:
            raise Unavailable("the store's answer was lost")


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
