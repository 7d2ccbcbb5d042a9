"""huey: its worker pops a task before it runs, so a crash loses it: at most once."""

import os

from body import PAYLOAD, run
from huey import RedisHuey

huey = RedisHuey(results=False, url=os.environ["PEER_BROKER"])
job = huey.task(name="job")(run)


def enqueue(n: int, nap_s: float = 0.0) -> None:
    job(n, PAYLOAD, nap_s)
