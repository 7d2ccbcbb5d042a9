"""taskiq on a Redis stream, which acknowledges; its list broker does not."""

import os

from body import PAYLOAD, run_async
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(os.environ["PEER_BROKER"])
job = broker.task(task_name="job")(run_async)


async def open() -> None:
    await broker.startup()


async def enqueue(n: int, nap_s: float = 0.0) -> None:
    await job.kiq(n, PAYLOAD, nap_s)
