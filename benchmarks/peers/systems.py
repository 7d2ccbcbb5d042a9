"""Who is measured: each system's adapter, broker, and how its two worker processes are started.

Every setting is the fastest documented one that still runs a job at least once; where a system has
none, its note says so. What a setting is for stands in its adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

__all__ = ["SYSTEMS", "System"]


@dataclass(frozen=True)
class System:
    """One row of the table."""

    name: str
    #: Its pins and its environment; `ray` is the project's own.
    environment: str
    broker: str
    adapter: str = ""
    #: One command line each; `{python}`, `{bin}` (its folder), `{url}` and `{i}` are filled in.
    workers: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    is_node: bool = False

    @property
    def is_embedded(self) -> bool:
        """Whether the producer is all there is: no broker, no workers to start or stop."""
        return not self.workers

    def answers_to(self, name: str) -> bool:
        """Tell whether a name given by a person means this system."""
        return name in (self.name, self.name.removesuffix(" (fsync)"), self.environment)


def _celery(broker: str, name: str) -> list[System]:
    worker = ("{python} -m celery -A use_celery worker -l WARNING --without-gossip "
              "--without-mingle --without-heartbeat -n w{i}@peers ")  # fmt: skip
    shared = {"environment": "celery", "broker": broker, "adapter": "use_celery"}
    return [
        System(f"{name} prefork", workers=(worker + "-P prefork -c 2",), **shared),
        System(f"{name} solo", workers=(worker + "-P solo",) * 2, **shared),
    ]


_RQ = "{bin}/rq worker -q -u {url}"

ON_REDIS = [
    *_celery("redis", "celery-redis"),
    System("rq", "rq", "redis", "use_rq", (_RQ,) * 2, note="a fork a job, its default"),
    System("rq simple", "rq", "redis", "use_rq", (_RQ + " -w rq.worker.SimpleWorker",) * 2,
           note="runs a job in the worker's own process"),
    System("dramatiq", "dramatiq", "redis", "use_dramatiq",
           ("{bin}/dramatiq use_dramatiq -p 2 -t 1",), {"dramatiq_queue_prefetch": "100"}),
    System("arq", "arq", "redis", "use_arq",
           ("{bin}/arq use_arq.WorkerSettings --custom-log-dict use_arq.QUIET",) * 2),
    System("taskiq", "taskiq", "redis", "use_taskiq",
           ("{bin}/taskiq worker use_taskiq:broker --workers 2 --max-async-tasks 100"
            " --ack-type when_saved --log-level WARNING",)),
    System("huey", "huey", "redis", "use_huey",
           ("{bin}/huey_consumer use_huey.huey -k process -w 2 -n -q",), note="at most once"),
    System("saq", "saq", "redis", "use_saq", ("{bin}/saq use_saq.settings",) * 2),
    System("streaq", "streaq", "redis", "use_streaq", ("{bin}/streaq run use_streaq:worker",) * 2),
    System("bullmq", "bullmq", "redis", "use_bullmq.mjs", ("node use_bullmq.mjs work",) * 2,
           note="the producer is Node.js too", is_node=True),
]  # fmt: skip

OTHERS = [
    *_celery("rabbitmq", "celery-rabbitmq"),
    System("procrastinate", "procrastinate", "postgresql", "use_procrastinate",
           ("{bin}/procrastinate --app use_procrastinate.app worker -c 10"
            " --delete-jobs successful",) * 2),
    System("pgqueuer", "pgqueuer", "postgresql", "use_pgqueuer",
           ("{python} use_pgqueuer.py",) * 2),
    System("dbos", "dbos", "postgresql", "use_dbos", ("{python} use_dbos.py w{i}",) * 2),
    System("ray tasks", "ray", "none", "use_ray", env={"PEER_RAY": "tasks"},
           note="in memory: dies with the driver"),
    System("ray actors", "ray", "none", "use_ray", env={"PEER_RAY": "actors"},
           note="in memory: dies with the driver"),
]  # fmt: skip

_FSYNC = [
    replace(system, name=f"{system.name} (fsync)", broker="redis-fsync") for system in ON_REDIS
]

SYSTEMS = [*ON_REDIS, *_FSYNC, *OTHERS]
