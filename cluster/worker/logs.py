"""The logs of a worker's attempts, on their way from the capture file into the store.

Rule 1: the last writer of a log is the one that knows most: writers of one log take turns.
Rule 2: a log is worth a delay, not a result: when the store refuses it for long, the outcome goes
without it.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from cluster.store.files import log_path
from cluster.worker.capture import read_log
from cluster.worker.held import Held
from jobs.errors import DraymanError

__all__ = ["LogStore", "Logs", "read_quietly"]

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

    async def put(self, held: Held, data: bytes) -> str:
        """Put the log of an attempt and return where; empty if there is none, or no store."""
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


def read_quietly(
    held: Held, path: Path, start: int, end: int | None = None, partial: bool = False
) -> bytes:
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
