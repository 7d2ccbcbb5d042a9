"""Plain Ray, tasks or actors (`PEER_RAY`): the queue is the driver's memory and dies with it."""

import os
from itertools import cycle

import ray
from body import PAYLOAD, run

remotes = cycle([])


def open() -> None:
    global remotes
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=200_000_000,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ["PEER_FOLDER"],
    )
    if os.environ["PEER_RAY"] == "actors":
        actors = [Runner.remote() for _ in range(2)]
        remotes = cycle([actor.run for actor in actors])
    else:
        remotes = cycle([ray.remote(max_retries=3)(run)])


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Runner:
    def run(self, n: int, payload: str, nap_s: float) -> None:
        run(n, payload, nap_s)


def enqueue(n: int, nap_s: float = 0.0) -> None:
    next(remotes).remote(n, PAYLOAD, nap_s)
