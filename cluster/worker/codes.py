"""The bundles that assignments name (`cluster/code.py`), unpacked in a worker's scratch.

Rule 1: a bundle is fetched once, however many attempts wait for it. Rule 2: what is wrong with a
bundle is known for a while, so that a thousand jobs of it do not each cost a child. Rule 3: a store
that does not answer is nobody's fault: who waited too long is given back. Rule 4: an import that
takes long is waited for elsewhere: who is next in line is not to pay for it.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from cluster.code import Unpacked, unpack
from cluster.store.contract import Objects
from jobs.errors import Corrupt, InvalidInput, NotFound, Unavailable

__all__ = ["Codes", "Verdict", "remove"]

log = structlog.get_logger("drayman.worker")

RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0
#: How long a bundle that did not work here is not tried again.
BROKEN_S = 30.0
#: A child that dies before it is ready so many times in a row will not be.
DEATHS_MAX = 2
#: More bundles than this are not kept unless they are in use.
KEPT_MAX = 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of attempts of a bundle with which no child is up."""

    kind: Literal["discarded", "failed", "snoozed"]
    reason: str
    #: Of the failure; empty: its kind.
    cause: str = ""
    #: Until when that is believed, monotonic.
    until_s: float = float("inf")


class Codes:
    """Every bundle this worker was asked for."""

    def __init__(
        self,
        open_store: Callable[[], Objects],
        folder: Path,
        patience_s: float,
        *,
        arrived: Callable[[str], None],
        broken: Callable[[str, str], None],
        missed: Callable[[str], None],
    ) -> None:
        """Call `arrived`, `broken` (with the reason) or `missed` (the store is away) of a hash."""
        self._open_store, self._folder, self._patience_s = open_store, folder, patience_s
        self._arrived, self._broken, self._missed = arrived, broken, missed
        self._store: Objects | None = None
        #: By hash, the one used last at the end.
        self._unpacked: dict[str, Unpacked] = {}
        self._fetching: set[str] = set()
        self._verdicts: dict[str, Verdict] = {}
        #: A child came up with these.
        self._proven: set[str] = set()
        self._deaths: dict[str, int] = {}

    def get(self, sha: str) -> Unpacked | None:
        """Return the bundle if it is here."""
        found = self._unpacked.pop(sha, None)
        if found is not None:
            self._unpacked[sha] = found
        return found

    def wants(self, sha: str) -> bool:
        """Whether somebody has to call `fetch` for it to come."""
        return sha not in self._unpacked and sha not in self._fetching

    def verdict(self, sha: str) -> Verdict | None:
        """Return what is known against the bundle here."""
        found = self._verdicts.get(sha)
        if found is not None and time.monotonic() > found.until_s:
            del self._verdicts[sha]
            return None
        return found

    def is_proven(self, sha: str) -> bool:
        """Whether a child has come up with it."""
        return sha in self._proven

    def works(self, sha: str) -> None:
        """Note that a child came up with it."""
        self._deaths.pop(sha, None)
        self._verdicts.pop(sha, None)
        self._proven.add(sha)

    def fails(self, sha: str, reason: str, cause: str = "") -> Verdict:
        """Note that no child can come up with it; with a cause, another time it might."""
        self._deaths.pop(sha, None)
        kind: Literal["discarded", "failed"] = "failed" if cause else "discarded"
        found = Verdict(kind, reason, cause, time.monotonic() + BROKEN_S)
        self._verdicts[sha] = found
        return found

    def is_slow(self, sha: str, reason: str) -> Verdict:
        """Note that a child has been coming up with it for long; until it is up, or dead."""
        found = self._verdicts[sha] = Verdict("snoozed", reason)
        return found

    def died(self, sha: str) -> bool:
        """Note that a child died before it was ready; return whether that is to be expected."""
        self._verdicts.pop(sha, None)
        self._deaths[sha] = self._deaths.get(sha, 0) + 1
        return self._deaths[sha] >= DEATHS_MAX

    def is_whole(self, sha: str) -> bool:
        """Whether its files are still there; if not, it is forgotten, and may be fetched again."""
        found = self._unpacked.get(sha)
        if found is not None and not found.path.is_dir():
            del self._unpacked[sha]
            found = None
        return found is not None

    def fetch(self, sha: str) -> Coroutine[Any, Any, None]:
        """Return what, awaited, brings the bundle here or says why it does not come."""
        self._fetching.add(sha)  # now, so that nobody begins again before this has
        return self._fetch(sha)

    async def _fetch(self, sha: str) -> None:
        began_s, pause_s = time.monotonic(), RETRY_MIN_S
        try:
            while True:
                try:
                    found = await asyncio.to_thread(self._unpack, sha)
                    break
                except (Unavailable, OSError) as error:
                    log.warning(
                        "worker.code_unavailable", code=sha, error=str(error), next_try_s=pause_s
                    )
                except (NotFound, Corrupt, InvalidInput) as error:
                    log.error("worker.code_broken", code=sha, error=str(error))
                    self._broken(sha, f"its code cannot be had: {error}")
                    return
                if time.monotonic() - began_s > self._patience_s:
                    self._missed(sha)
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(RETRY_MAX_S, pause_s * 2)
            self._unpacked[sha] = found
        finally:
            self._fetching.discard(sha)
        self._arrived(sha)

    def _unpack(self, sha: str) -> Unpacked:
        if self._store is None:
            self._store = self._open_store()
        return unpack(self._store, sha, self._folder)

    def forget_unused(self, used: set[str]) -> list[Path]:
        """Forget those nobody uses if there are many; return the folders to remove."""
        surplus = len(self._unpacked) - KEPT_MAX
        unused = [sha for sha in self._unpacked if sha not in used]
        gone = unused[: max(0, surplus)]
        self._proven.difference_update(gone)
        return [self._unpacked.pop(sha).path.parent for sha in gone]


def remove(folders: list[Path]) -> None:
    """Remove unpacked bundles."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
