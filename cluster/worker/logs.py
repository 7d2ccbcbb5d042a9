"""The logs of a worker's attempts, on their way from the capture file into the store.

Rule 1: the last writer of a log is the one that knows most: writers of one log take turns.
Rule 2: a log is worth a delay, not a result: when the store refuses it for long, the outcome goes
without it.
"""

import asyncio
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from cluster.store.files import log_path
from cluster.worker.capture import read_log
from cluster.worker.held import Held
from jobs.errors import DraymanError

__all__ = ["LogStore", "Logs"]

log = structlog.get_logger("drayman.worker")

#: A log that the store refuses for so long is given up.
LOG_PATIENCE_S = 15.0
RETRY_MIN_S, RETRY_MAX_S = 0.05, 1.0


class LogStore(Protocol):
    """Where logs are kept."""

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace an object."""


class Logs:
    """Puts logs into a store that is opened when the first one comes."""

    def __init__(self, open_store: Callable[[], LogStore]) -> None:
        self._open_store = open_store
        self._store: LogStore | None = None

    async def keep(self, held: Held, path: Path, end: int | None = None) -> tuple[bytes, str]:
        """Put what an attempt that ended left in the file; return it, and where it lies."""
        data = await asyncio.to_thread(_read, held, path, held.output_at, end)
        return data, await self._insist(held, data)

    async def keep_so_far(self, held: Held, path: Path) -> None:
        """Put what a running attempt printed so far, if that is news."""
        data = await asyncio.to_thread(_read, held, path, held.output_at, None, True)
        crc = zlib.crc32(data)
        if crc == held.log_crc or held.slot is None or held.ending is not None:
            return
        held.log_crc = crc
        await self._insist(held, data)

    async def _insist(self, held: Held, data: bytes) -> str:
        """Return where it lies; empty if there is nothing to put, or no store."""
        if not data:
            return ""
        a = held.assignment
        path = log_path(a.job_id, a.task_id, a.attempt)
        give_up_s = time.monotonic() + LOG_PATIENCE_S
        pause_s = RETRY_MIN_S
        held.logging = held.logging or asyncio.Lock()
        async with held.logging:
            while True:
                try:
                    await asyncio.to_thread(self._put, path, data)
                    return path
                except (DraymanError, OSError) as error:
                    if time.monotonic() > give_up_s:
                        log.warning("worker.log_lost", token=held.token, error=str(error))
                        return ""
                await asyncio.sleep(pause_s)
                pause_s = min(RETRY_MAX_S, pause_s * 2)

    def _put(self, path: str, data: bytes) -> None:
        if self._store is None:
            self._store = self._open_store()
        self._store.put(path, data, durable=False)


def _read(held: Held, path: Path, start: int, end: int | None, partial: bool = False) -> bytes:
    """Return what an attempt printed; nothing if that cannot be read."""
    start = 0 if held.beginning else start
    end = 1 << 62 if end is None else end
    try:
        return read_log(path, start, end, held.secrets, partial=partial, beginning=held.beginning)
    except FileNotFoundError:
        return b""  # It printed nothing.
    except OSError as error:
        log.warning("worker.log_unreadable", token=held.token, error=str(error))
        return b""
