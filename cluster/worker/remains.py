"""What a worker leaves behind when it is killed, and how another one waits until that is gone.

Its keepers kill what it ran within milliseconds; the manager may be as fast to give that work to
another worker. Rule 1: every keeper holds a lock on its worker's scratch directory, and so does
what it forks: only when all of them are dead does the kernel let go of it. Rule 2: who is given
work of a dead worker waits for that lock before it begins. On another machine there is nothing to
wait for: the way there takes longer than the end of a process.
"""

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

import structlog

__all__ = ["hold", "make_scratch", "sweep", "wait_until_gone"]

log = structlog.get_logger("drayman.worker")

#: A process that the kernel cannot end by then is in a call that never returns to the handler.
GIVE_UP_S = 10.0
LOOK_S = 0.005
#: Keepers remove their worker's directory; where they were killed, too, it goes after this.
SWEPT_AFTER_S = 24 * 3600.0


def make_scratch(worker: str) -> Path:
    """Return a new directory of the worker's own, by whose name others find it."""
    return Path(tempfile.mkdtemp(prefix=_prefix(worker)))


def hold(scratch: Path) -> int:
    """Mark this process, and what it forks, as alive; return the descriptor that does."""
    fd = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def sweep() -> None:
    """Remove what workers of this user left behind that died with all their keepers."""
    before = time.time() - SWEPT_AFTER_S
    for folder in _folders("worker"):
        try:
            found = folder.stat()
        except FileNotFoundError:
            continue
        if found.st_uid == os.getuid() and found.st_mtime < before and not _is_held(folder):
            log.info("worker.remains_removed", path=str(folder))
            shutil.rmtree(folder, ignore_errors=True)


async def wait_until_gone(worker: str) -> None:
    """Return when nothing that the dead worker ran lives on this machine."""
    folders = await asyncio.to_thread(_folders, worker)
    give_up_at = time.monotonic() + GIVE_UP_S
    while any(map(_is_held, folders)):
        if time.monotonic() > give_up_at:
            log.error("worker.remains_live", of=worker, waited_s=GIVE_UP_S)
            return
        await asyncio.sleep(LOOK_S)


def _prefix(worker: str) -> str:
    return f"drayman-{worker}-"


def _folders(worker: str) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{_prefix(worker)}*"))


def _is_held(scratch: Path) -> bool:
    try:
        fd = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
