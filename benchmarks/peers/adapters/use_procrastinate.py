"""Procrastinate; with the periodic task by which its documentation has stalled jobs retried."""

import os

from body import PAYLOAD, run_async
from procrastinate import App, JobContext, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["PEER_BROKER"]))
job = app.task(name="job")(run_async)


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="retry_stalled", pass_context=True)
async def retry_stalled(context: JobContext, timestamp: int) -> None:
    for stalled in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(stalled)


async def open() -> None:
    await app.open_async()
    await app.schema_manager.apply_schema_async()


async def enqueue(n: int, nap_s: float = 0.0) -> None:
    await job.defer_async(n=n, payload=PAYLOAD, nap_s=nap_s)


async def enqueue_many(numbers: range) -> None:
    await job.batch_defer_async(*[{"n": n, "payload": PAYLOAD} for n in numbers])
