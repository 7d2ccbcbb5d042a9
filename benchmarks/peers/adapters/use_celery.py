"""Celery: late acks, large prefetch (its documentation advises 64 or 128 for short tasks)."""

import os

from body import PAYLOAD, run
from celery import Celery

app = Celery("peers", broker=os.environ["PEER_BROKER"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
)
if os.environ["PEER_BROKER"].startswith("amqp"):
    # Without it a publish returns before RabbitMQ has the message.
    app.conf.broker_transport_options = {"confirm_publish": True}

job = app.task(name="job")(run)


def open() -> None:
    # RabbitMQ's queue outlives the workers of the run before.
    app.control.purge()


def enqueue(n: int, nap_s: float = 0.0) -> None:
    job.delay(n, PAYLOAD, nap_s)
