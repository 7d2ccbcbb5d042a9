"""Room on the store's disk: new work is refused while there is little, so that a full disk heals.

Rule 1: only submissions are refused. What is left is for reports of running work and for
compaction, which makes room: without it no segment could ever be deleted. Rule 2: a store whose
room nobody knows, such as a bucket, is never refused.
"""

from collections.abc import Iterable

import structlog

from cluster.commit import Clock, Offload
from cluster.store.contract import Objects
from cluster.store.snapshot import Snapshots
from jobs.errors import DraymanError, Unavailable

__all__ = ["SpaceGuard"]

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
#: A compaction writes a new snapshot beside the old one, and history beside both.
SNAPSHOTS_KEPT_FREE = 2
#: With so many times the least that is kept, no snapshot is large enough to be looked at.
PLENTY = 16
RETRY_AFTER_S = 10.0


class SpaceGuard:
    """Knows since its last look whether there is room for new work."""

    def __init__(
        self,
        stores: Iterable[Objects],
        snapshots: Snapshots,
        min_bytes: int,
        *,
        clock: Clock,
        offload: Offload,
    ) -> None:
        self._clock, self._offload = clock, offload
        self._stores = {objects.url: objects for objects in stores}
        self._snapshots, self._min_bytes = snapshots, min_bytes
        #: What to tell who submits; empty while there is room.
        self._refusal = ""

    async def watch(self) -> None:
        """Look again and again, for as long as there is a disk to look at."""
        while await self._offload(self.look):
            await self._clock.sleep(LOOK_EVERY_S)

    def look(self) -> bool:
        """Look how much is left; False where there is nothing to look at. Blocks."""
        limited = False
        refusal = ""
        for url, objects in self._stores.items():
            try:
                free = objects.free_bytes()
                if free is None:
                    continue
                limited = True
                if free >= PLENTY * self._min_bytes:
                    continue
                kept = max(self._min_bytes, SNAPSHOTS_KEPT_FREE * self._snapshots.newest_bytes())
            except DraymanError as error:
                # The store is in trouble: its journal says so to whoever submits.
                log.warning("free_space_unknown", store=url, error=str(error))
                return True
            if free < kept:
                refusal = (
                    f"the disk of {url} is nearly full: {_mib(free)} MiB free, {_mib(kept)} MiB "
                    "are kept for the work that is accepted; make room"
                )
        if refusal and not self._refusal:
            log.error("disk_nearly_full", reason=refusal, next="submissions are refused")
        if self._refusal and not refusal:
            log.info("disk_has_room_again", next="submissions are accepted")
        self._refusal = refusal
        return limited

    def check(self) -> None:
        """Raise Unavailable if there was too little room for new work."""
        if self._refusal:
            raise Unavailable(self._refusal, RETRY_AFTER_S)


def _mib(count: int) -> int:
    return count >> 20
