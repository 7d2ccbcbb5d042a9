"""RQ: no results; a retry, for a job whose work-horse is killed fails for good without one."""

import os

from body import PAYLOAD, run
from redis import Redis
from rq import Queue, Retry

queue = Queue(connection=Redis.from_url(os.environ["PEER_BROKER"]))
RETRY = Retry(max=3)


def enqueue(n: int, nap_s: float = 0.0) -> None:
    queue.enqueue(run, n, PAYLOAD, nap_s, result_ttl=0, retry=RETRY)


def enqueue_many(numbers: range) -> None:
    queue.enqueue_many(
        [Queue.prepare_data(run, (n, PAYLOAD), result_ttl=0, retry=RETRY) for n in numbers]
    )
