"""arq: no results kept; polls every 10 ms, as its default of 500 ms would be most of a latency."""

import os

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from body import PAYLOAD, run_async

SETTINGS = RedisSettings.from_dsn(os.environ["PEER_BROKER"])
#: For `--custom-log-dict`: a line a job would be most of the work.
QUIET = {"version": 1, "disable_existing_loggers": False}
redis: ArqRedis


async def job(ctx: dict, n: int, payload: str, nap_s: float) -> None:
    await run_async(n, payload, nap_s)


class WorkerSettings:
    functions = (job,)
    redis_settings = SETTINGS
    max_jobs = 100
    poll_delay = 0.01
    keep_result = 0


async def open() -> None:
    global redis
    redis = await create_pool(SETTINGS)


async def enqueue(n: int, nap_s: float = 0.0) -> None:
    await redis.enqueue_job("job", n, PAYLOAD, nap_s)
