"""Waiting for what happens outside this process, where there is no signal to await."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["eventually", "gone", "written"]


async def eventually(holds: Callable[[], object], *, within_s: float = 20.0) -> float:
    """Wait until `holds()` is true and return how long it took; fail once the time is over."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, f"not true within {within_s} s: {holds}"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def written(path: Path, within_s: float = 20.0) -> str:
    """Wait for a file that a handler writes, and return its text."""
    await eventually(path.exists, within_s=within_s)
    return path.read_text()  # noqa: ASYNC240 - a test may wait for a disk


def gone(*pids: int) -> bool:
    """Whether none of the processes lives; a zombie counts as gone."""
    return not any(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"
