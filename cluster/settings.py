"""What a cluster is started with. Everything here is fixed for a manager's life."""

import math
import sys
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from cluster.queue.model import QueueLimits, Rules
from jobs.errors import InvalidInput

__all__ = [
    "DATA_DIRS_ENV",
    "NAMESPACE",
    "OUTPUT_DIRS_ENV",
    "ClusterSettings",
    "PoolSettings",
    "default_pools",
    "tuned_pools",
]

#: Carries `data_dirs` from a worker to its children.
DATA_DIRS_ENV = "DRAYMAN_DATA_DIRS"
#: The same of `output_dirs`.
OUTPUT_DIRS_ENV = "DRAYMAN_OUTPUT_DIRS"
#: Ray namespace of every actor of ours.
NAMESPACE = "drayman"
#: Long enough to make one write of many, short beside the write itself.
BUCKET_LINGER_S = 0.025
#: What an operator may set of a pool, and the least of each.
TUNABLE = {"size": 1, "concurrency": 1, "heartbeat_timeout_s": 2, "memory_limit_mb": 128}


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Workers of one resource shape serving some queues."""

    name: str
    queues: list[str]
    #: Workers to keep running.
    size: int
    #: `process`: one handler at a time in a process of its own. `async`: many on one loop.
    mode: Literal["process", "async"] = "process"
    #: Handlers at once in one worker.
    concurrency: int = 1
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    #: Silence after which a worker is taken for hung. Longer forgives longer stalls of a whole
    #: machine; shorter finds a hung one sooner. Crashes are seen at once, whatever this is.
    heartbeat_timeout_s: float = 15.0
    #: Memory (MiB) that the process of an attempt may hold, with all it started; one that holds
    #: more is killed, cause `oom`. None leaves that to the machine.
    memory_limit_mb: int | None = None


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One Drayman: where it keeps things and what runs its work."""

    store: str
    #: Where the journal lies, if not in the store.
    journal: str | None = None
    #: Modules that define job types, besides installed entry points.
    job_modules: list[str] = []
    pools: list[PoolSettings] = []
    #: Tells this cluster from another on the same store.
    cluster_id: str = ""
    #: Wait this long for more events before a commit; 0 commits at once. None waits only where the
    #: journal is in a bucket: each of its writes takes long and costs money.
    commit_linger_ms: float | None = None
    #: While the store's disk has less room (MiB), or less than two snapshots take, no new work is
    #: accepted; what is left is for the work there is, and for compaction.
    free_space_min_mb: float = 1024.0
    #: The store's folder is the same one on every node; else all of Drayman stays on one.
    shared_mount: bool = False
    depth_max: int = 1_000_000
    #: The journal is folded into history and a snapshot when it has grown by so many segments, or
    #: after so long if any job finished meanwhile.
    compact_segments: int = 5_000
    compact_after_s: float = 300.0
    #: History, results and logs of jobs that finished longer ago are deleted; None keeps them.
    retention_days: float | None = None
    #: Take over a store whose last manager belonged to another cluster and was not stopped.
    take_over: bool = False
    #: Directories to put on the workers' import path.
    python_path: list[str] = []
    #: What a node holds of ephemeral outputs, at most; one file may take a quarter of it. More than
    #: Ray's object store has room for lies on the node's disk, where Ray spills it.
    ephemeral_bytes_max: int = 2 << 30
    #: Directories of the workers' own disks that params may name files in.
    data_dirs: list[str] = []
    #: Those that job types may also write into, where params say so.
    output_dirs: list[str] = []

    def extend_path(self) -> None:
        """Let modules in `python_path` be imported in this process."""
        sys.path[:0] = [folder for folder in self.python_path if folder not in sys.path]

    @property
    def linger_s(self) -> float:
        """How long a commit waits for company."""
        if self.commit_linger_ms is not None:
            return self.commit_linger_ms / 1000
        is_bucket = urlsplit(self.journal or self.store).scheme not in ("", "file", "memory")
        return BUCKET_LINGER_S if is_bucket else 0.0

    @property
    def needs_one_node(self) -> bool:
        """Whether what one node stores is on no other."""
        urls = [self.store, self.journal or self.store]
        return not self.shared_mount and any(urlsplit(u).scheme in ("", "file") for u in urls)

    def rules(self) -> Rules:
        """Return the rules these settings amount to."""
        limits = QueueLimits(depth_max=self.depth_max)
        return Rules({queue: limits for pool in self.pools for queue in pool.queues})

    def pool(self, name: str) -> PoolSettings:
        """Return the pool `name`."""
        return next(pool for pool in self.pools if pool.name == name)


def default_pools(cpus: int, gpus: int = 0) -> list[PoolSettings]:
    """Return pools for a machine or cluster of this size: `cpu`, `io`, and `gpu` if it has any.

    The workers hold logical CPUs only as bookkeeping (0): with two cores, the manager, the edge
    and the workers share them anyway, and Ray must place all of these.
    """
    pools = [
        PoolSettings(name="cpu", queues=["default"], size=max(2, cpus)),
        PoolSettings(name="io", queues=["io"], size=1, mode="async", concurrency=100),
    ]
    if gpus:
        pools.append(PoolSettings(name="gpu", queues=["gpu"], size=gpus, num_gpus=1.0))
    return pools


def tuned_pools(pools: list[PoolSettings], wishes: Sequence[str]) -> list[PoolSettings]:
    """Return the pools with wishes like `cpu:memory_limit_mb=2000` fulfilled.

    Raises InvalidInput that says what can be wished for.
    """
    by_name = {pool.name: pool for pool in pools}
    for wish in wishes:
        name, colon, setting = wish.partition(":")
        field, equals, text = setting.partition("=")
        if not (colon and equals) or field not in TUNABLE:
            raise InvalidInput(
                "pool", f"{wish!r} is not like cpu:size=4; what can be set: {', '.join(TUNABLE)}"
            )
        if name not in by_name:
            raise InvalidInput("pool", f"no pool {name!r}; there are: {', '.join(by_name)}")
        kind = float if field == "heartbeat_timeout_s" else int
        try:
            value = kind(text)
        except ValueError:
            raise InvalidInput("pool", f"{text!r} in {wish!r} is not a number") from None
        if not TUNABLE[field] <= value < math.inf:
            raise InvalidInput("pool", f"{field} is {TUNABLE[field]} at least; got {text}")
        by_name[name] = msgspec.structs.replace(by_name[name], **{field: value})
    return list(by_name.values())
