"""The job that every system runs: it counts itself in shared memory, outside of any queue.

The file behind `PEER_COUNTS` holds one byte for each job, and after them for each of the first
TIMED jobs when it started and in which process. `use_bullmq.mjs` does the same in JavaScript.
"""

import asyncio
import mmap
import os
import struct
import time

PAYLOAD = "x" * 80
JOBS, TIMED = 1 << 25, 1 << 14
SLOT = struct.Struct("dd")

with open(os.environ["PEER_COUNTS"], "r+b") as _file:
    _counts = mmap.mmap(_file.fileno(), 0)


def run(n: int, payload: str = "", nap_s: float = 0.0) -> None:
    _count(n)
    if nap_s:
        time.sleep(nap_s)


async def run_async(n: int, payload: str = "", nap_s: float = 0.0) -> None:
    _count(n)
    if nap_s:
        await asyncio.sleep(nap_s)


def _count(n: int) -> None:
    if n < TIMED:
        SLOT.pack_into(_counts, JOBS + n * SLOT.size, time.time(), os.getpid())
    _counts[n] += 1
