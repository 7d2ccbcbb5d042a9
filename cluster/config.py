"""What an operator may change while Drayman runs: queues, tenants, limits, pools.

It is what `drayman.toml` says. The manager journals it whole, so that it holds through crashes;
each `drayman up` begins with its own file. Rule: whatever it names exists in it, see `checked`.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from cluster.queue.rules import Limit, QueueLimits, Rules, TenantLimits
from jobs.definition import LIMIT_CHARS
from jobs.errors import InvalidInput

__all__ = [
    "Alerts",
    "Config",
    "PoolSettings",
    "decode_config",
    "default_config",
    "encode_config",
    "place",
]

#: A queue, a pool.
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
#: Each is looked at again and again, and told of in every answer about queues.
QUEUES_MAX = 1_000
#: Beyond that a message helps nobody.
QUEUES_SHOWN = 20
#: A key that TOML takes without quotes.
BARE = re.compile(r"[A-Za-z0-9_-]+")
#: What Ray takes in a label selector; one that it refused would keep the pool from starting.
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
LABEL = re.compile(rf"(?:[a-zA-Z0-9][a-zA-Z0-9.-]{{0,252}}/)?{_LABEL}")
LABEL_WANTED = re.compile(rf"!?(?:{_LABEL}|in\({_LABEL}(?:, ?{_LABEL})*\))")
URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?(/\S*)?")
#: One start in eleven days: with much less, arithmetic with moments fails.
RATE_MIN = 1e-6
#: Resources that Ray has words of its own for.
NOT_CUSTOM = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Amount = Annotated[float, Meta(ge=0, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=366 * 86_400)]


class PoolSettings(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Workers of one resource shape serving some queues."""

    name: str = ""
    queues: list[str]
    #: Workers there are at least and at most; between them the backlog decides.
    min: Count = 1
    max: Count = 1
    #: `process`: one handler at a time in a process of its own. `async`: many on one loop.
    mode: Literal["process", "async"] = "process"
    #: Handlers at once in one worker.
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 1
    # What each worker holds of a node; Ray places it where that is free.
    num_cpus: Amount = 0.0
    num_gpus: Amount = 0.0
    resources: dict[str, Amount] = {}
    #: Labels of the nodes it may run on, in Ray's own words: `{"tier": "!spot"}`.
    label_selector: dict[str, str] = {}
    #: Silence after which a worker is taken for hung. Longer forgives longer stalls of a whole
    #: machine; shorter finds a hung one sooner. Crashes are seen at once, whatever this is.
    heartbeat_timeout_s: Annotated[float, Meta(ge=2, le=86_400)] = 15.0
    #: Memory (MiB) that the process of an attempt may hold, with all it started; one that holds
    #: more is killed, cause `oom`. None leaves that to the machine.
    memory_limit_mb: Annotated[int, Meta(ge=128)] | None = None
    #: Work that waits is to be begun within so long: the pool grows until it is.
    wait_s: Seconds = 5.0
    #: A worker that had nothing to do for so long ends.
    idle_s: Seconds = 60.0
    #: The process that runs handlers is renewed after so many attempts, and between two attempts
    #: once it has grown by so much (MiB) since its first; None: never for that reason.
    max_tasks_per_worker: Annotated[int, Meta(ge=1)] | None = None
    renew_above_mb: Annotated[int, Meta(ge=1)] | None = None

    @property
    def shape(self) -> dict[str, float]:
        """What one worker holds of a node, in Ray's words."""
        found = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in found.items() if amount}

    def problems(self, at: str, name: str) -> Iterator[tuple[str, str]]:
        """Yield all that is wrong with it, as the pool `name`, which is at `at`."""
        yield from _of_name(at, name)
        if not self.queues:
            yield f"{at}.queues", "is empty; say which queues its workers serve"
        for queue in self.queues:
            yield from _of_name(f"{at}.queues", queue)
        if self.max < self.min:
            yield f"{at}.max", f"must be at least min, {self.min}; got {self.max}"
        if self.num_gpus > 1 and self.num_gpus % 1:
            yield f"{at}.num_gpus", f"beyond 1 only whole numbers can be had, got {self.num_gpus:g}"
        for resource in self.resources:
            if not resource or resource in NOT_CUSTOM:
                fix = "say num_cpus or num_gpus" if resource in ("CPU", "GPU") else "name another"
                yield place("pools", name, "resources", resource), f"is no custom resource; {fix}"
        for label, wanted in self.label_selector.items():
            if not (LABEL.fullmatch(label) and LABEL_WANTED.fullmatch(wanted)):
                yield (
                    place("pools", name, "label_selector", label),
                    f"{wanted[:100]!r}: use a value, '!value', 'in(a,b)' or '!in(a,b)'",
                )


class Alerts(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Whom to tell of trouble."""

    #: Gets a POST when dead letters grow.
    dead_letters_url: str = ""
    #: At most once in so long.
    every_s: Seconds = 60.0


class Config(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """All of it. A queue that a pool serves need not be listed to exist."""

    pools: dict[str, PoolSettings]
    queues: dict[str, QueueLimits] = {}
    #: By tenant; `*` stands for all others.
    tenants: dict[str, TenantLimits] = {}
    #: By key; one that ends in `*` stands for all that begin so, each for itself.
    limits: dict[str, Limit] = {}
    alerts: Alerts = Alerts()
    #: Where types wait that name no queue, and are no `async def`.
    default_queue: str = "default"
    #: Unfinished jobs of all queues together, and what their specs take in memory.
    depth_max: Annotated[int, Meta(ge=1)] = 5_000_000
    bytes_max: Annotated[int, Meta(ge=1)] = 4 << 30
    #: What waited longer gets one turn in ten whatever its priority.
    ageing_s: Seconds = 60.0
    #: Dead letters kept to be redriven; of more the oldest are let go, and are in history alone.
    dead_letters_max: Annotated[int, Meta(ge=1)] = 100_000

    @property
    def all_queues(self) -> dict[str, QueueLimits]:
        """Every queue there is, with its limits."""
        served = [queue for pool in self.pools.values() for queue in pool.queues]
        return dict.fromkeys(served, QueueLimits()) | self.queues

    def rules(self) -> Rules:
        """Return what of it decides."""
        return Rules(
            self.all_queues,
            tenants=self.tenants,
            depth_max=self.depth_max,
            bytes_max=self.bytes_max,
            ageing_s=self.ageing_s,
            default_queue=self.default_queue,
        )

    def pool(self, name: str) -> PoolSettings | None:
        """Return the pool `name`, if there is one."""
        return self.pools.get(name)

    def checked(self) -> "Config":
        """Return it with each pool knowing its name. Raises InvalidInput naming what is wrong."""
        for field, reason in self.problems():
            raise InvalidInput(field, reason)
        return msgspec.structs.replace(self, pools=_named(self.pools))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield all that is wrong: where, and why."""
        queues = self.all_queues
        known = ", ".join(sorted(queues)[:QUEUES_SHOWN])
        served = {queue for pool in self.pools.values() for queue in pool.queues}
        if not self.pools:
            yield "pools", "there is none; nothing would ever run"
        if len(queues) > QUEUES_MAX:
            yield "queues", f"{len(queues):,} are too many; have {QUEUES_MAX:,} at most"
            return
        for name, pool in self.pools.items():
            yield from pool.problems(place("pools", name), name)
        for name, queue in self.queues.items():
            at = place("queues", name)
            yield from _of_name(at, name)
            if name not in served and self.pools:
                pools = ", ".join(self.pools)
                yield at, f"no pool serves it; add it to the queues of one of these: {pools}"
            for field in ("then", "oom_to"):
                to = getattr(queue, field)
                if to and (to not in queues or to == name):
                    yield f"{at}.{field}", f"no other queue {to[:100]!r}; there are: {known}"
                elif _leads_back(queues, name, field):
                    yield f"{at}.{field}", "leads back here; work would move in a circle"
            if bool(queue.then) != (queue.max_run_s is not None):
                yield f"{at}.then", "goes with max_run_s: give both or neither"
        for name, tenant in self.tenants.items():
            if not name:
                yield "tenants", "one has no name"
            if not 0.001 <= tenant.weight <= 1000:
                yield (
                    f"{place('tenants', name)}.weight",
                    f"use 0.001 to 1000, got {tenant.weight:g}",
                )
        for name, limit in self.limits.items():
            at = place("limits", name)
            if not 1 <= len(name) <= LIMIT_CHARS or "*" in name[:-1]:
                yield at, f"use 1 to {LIMIT_CHARS} characters; only the last may be a '*'"
            if limit.rate is None and limit.concurrency is None:
                yield at, "says neither rate nor concurrency"
            if limit.rate is not None and not (RATE_MIN <= limit.rate <= 100_000):
                yield (
                    f"{at}.rate",
                    f"use {RATE_MIN:f} to 100,000 starts a second, got {limit.rate:g}",
                )
            if limit.rate is None and limit.burst != 1:
                yield f"{at}.burst", "says how many of a rate may start at once; give the rate"
        if self.default_queue not in queues:
            yield "default_queue", f"no queue {self.default_queue[:100]!r}; there are: {known}"
        url = self.alerts.dead_letters_url
        if url and not _is_url(url):
            yield "alerts.dead_letters_url", "is no URL that begins with http:// or https://"


def place(*names: str) -> str:
    """Return where something is, as TOML spells it: `limits."http:api.example.com"`."""
    return ".".join(
        name if BARE.fullmatch(name) else msgspec.json.encode(name[:100]).decode() for name in names
    )


def _is_url(text: str) -> bool:
    try:
        return URL.fullmatch(text) is not None and urlsplit(text).port != 0
    except ValueError:  # its brackets hold no address, or there is no such port
        return False


def _of_name(at: str, name: str) -> Iterator[tuple[str, str]]:
    if not NAME.fullmatch(name):
        yield at, f"{name[:100]!r}: use 1 to 63 of a-z, 0-9, '-', '_', led by a letter"


def _leads_back(queues: dict[str, QueueLimits], name: str, field: str) -> bool:
    """Whether following `field` from queue to queue leads back to this one."""
    at, seen = getattr(queues[name], field), set[str]()
    while at in queues and at not in seen:
        if at == name:
            return True
        seen.add(at)
        at = getattr(queues[at], field)
    return False


def _named(pools: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
    return {name: msgspec.structs.replace(pool, name=name) for name, pool in pools.items()}


def default_config(cpus: int, gpus: int = 0) -> Config:
    """Return what suits a machine or cluster of this size: pools `cpu`, `io`, and `gpu` if any.

    The workers hold logical CPUs only as bookkeeping (0): with two cores, the manager, the edge
    and the workers share them anyway, and Ray must place all of these.
    """
    size = max(2, cpus)
    pools = {
        "cpu": PoolSettings(queues=["default"], min=size, max=size),
        "io": PoolSettings(queues=["io"], mode="async", concurrency=100),
    }
    if gpus:
        pools["gpu"] = PoolSettings(queues=["gpu"], min=gpus, max=gpus, num_gpus=1.0)
    return Config(pools=_named(pools))


decode_config = msgspec.json.Decoder(Config).decode
encode_config = msgspec.json.Encoder().encode
