"""SAQ: no results; a time limit above the recovery job's 20 s, and tries for what it lost."""

import os

from body import PAYLOAD, run_async
from saq import Queue

queue = Queue.from_url(os.environ["PEER_BROKER"])


async def job(ctx: dict, *, n: int, payload: str, nap_s: float) -> None:
    await run_async(n, payload, nap_s)


settings = {"queue": queue, "functions": [job], "concurrency": 100}


async def open() -> None:
    await queue.connect()


async def enqueue(n: int, nap_s: float = 0.0) -> None:
    await queue.enqueue("job", n=n, payload=PAYLOAD, nap_s=nap_s, ttl=-1, timeout=60, retries=3)
