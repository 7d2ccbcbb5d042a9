"""PgQueuer on asyncpg, dequeuing 100 at a time; `python use_pgqueuer.py` is its worker."""

import json
import os

import asyncpg
import uvloop
from body import PAYLOAD, run_async
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries

queries: Queries


async def open() -> None:
    global queries
    queries = Queries(AsyncpgDriver(await asyncpg.connect(os.environ["PEER_BROKER"])))
    await queries.install()


async def enqueue(n: int, nap_s: float = 0.0) -> None:
    await queries.enqueue("job", json.dumps([n, PAYLOAD, nap_s]).encode())


async def enqueue_many(numbers: range) -> None:
    payloads = [json.dumps([n, PAYLOAD, 0.0]).encode() for n in numbers]
    await queries.enqueue(["job"] * len(payloads), payloads, [0] * len(payloads))


async def work() -> None:
    connection = await asyncpg.connect(os.environ["PEER_BROKER"])
    queuer = PgQueuer.from_asyncpg_connection(connection)

    @queuer.entrypoint("job")
    async def job(job: Job) -> None:
        await run_async(*json.loads(job.payload))

    await queuer.run(batch_size=100)


if __name__ == "__main__":
    uvloop.run(work())
