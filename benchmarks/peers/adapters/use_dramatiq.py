"""Dramatiq on Redis."""

import os

import dramatiq
from body import PAYLOAD, run
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["PEER_BROKER"]))
job = dramatiq.actor(run, actor_name="job")


def enqueue(n: int, nap_s: float = 0.0) -> None:
    job.send(n, PAYLOAD, nap_s)
