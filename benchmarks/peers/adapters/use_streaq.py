"""streaq: no results kept, no line a job."""

import os

from body import PAYLOAD, run_async
from streaq import Worker

worker = Worker(redis_url=os.environ["PEER_BROKER"], concurrency=100)
job = worker.task(name="job", ttl=0, silent=True)(run_async)


async def open() -> None:
    # The producer enqueues as long as it lives, so the context is never left.
    await worker.__aenter__()


async def enqueue(n: int, nap_s: float = 0.0) -> None:
    await job.enqueue(n, PAYLOAD, nap_s)


async def enqueue_many(numbers: range) -> None:
    await worker.enqueue_many([job.enqueue(n, PAYLOAD, 0.0) for n in numbers])
