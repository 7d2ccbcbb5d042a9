"""What a cluster is started with. Everything but `config` is fixed for a manager's life."""

import math
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from cluster.config import Config
from jobs.errors import InvalidInput

__all__ = [
    "DATA_DIRS_ENV",
    "NAMESPACE",
    "OUTPUT_DIRS_ENV",
    "ClusterSettings",
    "tuned",
]

#: Carries `data_dirs` from a worker to its children.
DATA_DIRS_ENV = "DRAYMAN_DATA_DIRS"
#: The same of `output_dirs`.
OUTPUT_DIRS_ENV = "DRAYMAN_OUTPUT_DIRS"
#: Ray namespace of every actor of ours.
NAMESPACE = "drayman"
#: Long enough to make one write of many, short beside the write itself.
BUCKET_LINGER_S = 0.025
#: What may be set of a pool without a file, and the least of each; `size` is both min and max.
TUNABLE = {"size": 1, "concurrency": 1, "heartbeat_timeout_s": 2, "memory_limit_mb": 128}


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One Drayman: where it keeps things and what runs its work."""

    store: str
    #: Where the journal lies, if not in the store.
    journal: str | None = None
    #: Modules that define job types, besides installed entry points.
    job_modules: list[str] = []
    #: What it begins with of what can be changed while it runs.
    config: Config
    #: Random name of this `drayman up`: what was changed since holds through a manager's crash, and
    #: no longer.
    run: str = ""
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
    #: Private networks that `http.call` may reach, like `10.0.0.0/8`, with commas.
    http_allow: str = ""
    #: Where people reach this Drayman, for links in what is sent to them.
    public_url: str = ""
    #: Where spans of traces go: OTLP over HTTP, the whole URL. Empty: there are none.
    otlp: str = ""

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


def tuned(config: Config, wishes: Sequence[str]) -> Config:
    """Return the config with wishes for pools like `cpu:memory_limit_mb=2000` fulfilled.

    Raises InvalidInput that says what can be wished for.
    """
    pools = dict(config.pools)
    for wish in wishes:
        name, colon, setting = wish.partition(":")
        field, equals, text = setting.partition("=")
        if not (colon and equals) or field not in TUNABLE:
            raise InvalidInput(
                "pool", f"{wish!r} is not like cpu:size=4; what can be set: {', '.join(TUNABLE)}"
            )
        if name not in pools:
            raise InvalidInput("pool", f"no pool {name!r}; there are: {', '.join(pools)}")
        kind = float if field == "heartbeat_timeout_s" else int
        try:
            value = kind(text)
        except ValueError:
            raise InvalidInput("pool", f"{text!r} in {wish!r} is not a number") from None
        if not TUNABLE[field] <= value < math.inf:
            raise InvalidInput("pool", f"{field} is {TUNABLE[field]} at least; got {text}")
        changes = {"min": value, "max": value} if field == "size" else {field: value}
        pools[name] = msgspec.structs.replace(pools[name], **changes)
    return msgspec.structs.replace(config, pools=pools)
