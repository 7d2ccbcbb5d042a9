"""Outputs that are kept in memory of the cluster instead of the store: cheap, and gone with a node.

Rule 1: such a file is written on this machine and handed to the holder when it is closed: it is
held, whole, before the outcome that names it leaves. Rule 2: where the holder has no room it goes
to the store like any other: what a live job may still read is never dropped for what comes after
it. Rule 3: its path begins with `ray:`, names the node, and is for workers alone.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cluster.store.files import FileInfo, FileWriter

__all__ = ["EphemeralFile", "Holder"]

_BLOCK_BYTES = 1 << 20


class Holder(Protocol):
    """Holds files for the workers of one machine, and brings those that any machine holds."""

    async def hold(self, key: str, path: Path) -> str | None:
        """Hold what the local file has, as `<job>/<task>/<attempt>/<name>`.

        Return the path under which every machine finds it; None if there is no room, or no holder.
        Raises InvalidInput for a file that is too large.
        """

    async def bring(self, path: str, into: Path) -> None:
        """Write what is held as `path` to the local file `into`. Raises NotFound if it is gone."""

    async def missing(self, paths: list[str]) -> list[str]:
        """Return those that are gone."""


class EphemeralFile:
    """A stream into one file for the holder, or for the store if that cannot take it."""

    def __init__(
        self,
        name: str,
        folder: Path,
        hold: Callable[[Path], str | None],
        stored: Callable[[], tuple[str, FileWriter]],
    ) -> None:
        """Write in `folder`; `hold` hands it over, `stored` opens a file of the store instead."""
        self._name, self._hold, self._stored = name, hold, stored
        self._file = tempfile.NamedTemporaryFile(prefix="ephemeral-", dir=folder)  # noqa: SIM115
        self._bytes = 0
        self._sha256 = hashlib.sha256()
        #: Where it lies, once closed.
        self.path = ""

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)
        return len(data)

    def close(self) -> FileInfo:
        """Have it held; say what it holds. Raises InvalidInput if it is too large for that."""
        with self._file as file:
            file.flush()
            held = self._hold(Path(file.name))
            self.path = held or self._store(Path(file.name))
        return FileInfo(self._name, self._bytes, self._sha256.hexdigest())

    def _store(self, local: Path) -> str:
        path, writer = self._stored()
        with local.open("rb") as source, writer:
            while block := source.read(_BLOCK_BYTES):
                writer.write(block)
        return path

    def abort(self) -> None:
        """Forget all that was written."""
        self._file.close()
