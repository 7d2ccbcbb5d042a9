"""Operators: what they declare at the beginning, and all that they change while it runs.

What a seed's cluster has (lanes, limits, tenants, pools that grow and shrink, schedules) is drawn
here; a seed may have none of it. In the end they put all of it right, so that every job ends.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from cluster.config import Config, PoolSettings
from cluster.gateway import Gateway, ManagerAway
from cluster.queue.rules import Limit, QueueLimits, TenantLimits
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import JobSpec, encode_spec
from cluster.views import DeadLetterQuery, WorkerView
from jobs.errors import Conflict, NotFound, Overloaded, Unavailable
from jobs.retry import RetryPolicy
from tests.support.simulation.auditor import Auditor
from tests.support.simulation.machine import Machine
from tests.support.simulation.world import World

__all__ = ["KEYS", "NEW_QUEUE", "TENANTS", "Operators", "first_config"]

TENANTS = ["default", "acme", "beta"]
#: Keys of limits that jobs name; the last two are of one pattern.
KEYS = ["api", "disk", "host:a", "host:b"]
PATTERNS = ["api", "disk", "host:*", "host:a", "*"]
#: A queue that no file declared: a change brings it.
NEW_QUEUE = "extra"
#: How long operators insist; a machine that never comes back is noticed.
INSIST_S = 120.0
#: Longer than a message is under way.
UNDER_WAY_S = 2.5
#: Until all ticks that are due have fired: a clock that jumped is doubted for a minute.
CAUGHT_UP_S = 90.0


def first_config(world: World) -> Config:
    """Return what this seed's file says."""
    rng = world.rng
    size, concurrency = rng.randint(1, 2), rng.choice([1, 1, 2])
    cpu = PoolSettings(queues=["default"], min=size, max=size, concurrency=concurrency, idle_s=3.0)
    io = PoolSettings(queues=["io", "default"], mode="async", concurrency=4, idle_s=3.0)
    config = Config(pools={"cpu": cpu, "io": io})
    if world.flows:
        for _ in range(rng.choice([0, 2, 4, 6])):
            config = _changed(world, config)
    return config


def _changed(world: World, config: Config) -> Config:
    """Return the config with one thing other than before. Nothing is ever taken from it."""
    change = world.rng.choice([_limits, _limits, _tenants, _pool_sizes, _lanes, _memory, _pools])
    return change(world, config)


def _limits(world: World, config: Config) -> Config:
    rng = world.rng
    key = rng.choice(PATTERNS)
    limits = dict(config.limits)
    if key in limits and rng.random() < 0.3:
        del limits[key]
    else:
        rate = rng.choice([None, None, 3.0, 10.0, 50.0])
        concurrency = rng.choice([1, 1, 2, 3]) if rate is None or rng.random() < 0.3 else None
        burst = 1 if rate is None else rng.choice([1, 1, 2, 5])
        limits[key] = Limit(rate, burst, concurrency)
    return replace(config, limits=limits)


def _tenants(world: World, config: Config) -> Config:
    rng = world.rng
    name = rng.choice([*TENANTS, "*"])
    depth_max = rng.choice([None, None, 3, 20]) if name != "*" else None
    limits = TenantLimits(weight=rng.choice([0.5, 1.0, 3.0]), depth_max=depth_max)
    return replace(config, tenants=config.tenants | {name: limits})


def _pool_sizes(world: World, config: Config) -> Config:
    rng = world.rng
    name = rng.choice(list(config.pools))
    pool = config.pools[name]
    least = rng.choice([0, 0, 1, 2])
    concurrency = rng.choice([1, 2, 4]) if rng.random() < 0.3 else pool.concurrency
    changed = replace(
        pool,
        min=least,
        max=least + rng.choice([0, 1, 2]) or 1,
        idle_s=rng.choice([0.5, 2.0, 10.0]),
        wait_s=rng.choice([0.2, 1.0, 5.0]),
        concurrency=concurrency,
    )
    return replace(config, pools=config.pools | {name: changed})


def _lanes(world: World, config: Config) -> Config:
    """Let there be a fast and a slow queue, or let the border between them be another."""
    rng = world.rng
    pools = dict(config.pools)
    if "slow" not in pools:
        least = rng.choice([0, 1])
        pools["slow"] = PoolSettings(queues=["slow"], min=least, max=2, idle_s=rng.choice([1, 5]))
        pools["cpu"] = replace(pools["cpu"], queues=["default", "fast"])
    fast = QueueLimits(max_run_s=rng.choice([0.3, 0.7, 1.5]), then="slow")
    return replace(config, pools=pools, queues=config.queues | {"fast": fast})


def _memory(world: World, config: Config) -> Config:
    """Let there be a pool with more memory, for what runs out of it elsewhere."""
    pools = dict(config.pools)
    if "big" not in pools:
        least = world.rng.choice([0, 1])
        pools["big"] = PoolSettings(queues=["big"], min=least, max=1, idle_s=1.0)
    name = world.rng.choice(["default", "io"])
    limits = replace(config.queues.get(name, QueueLimits()), oom_to="big")
    return replace(config, pools=pools, queues=config.queues | {name: limits})


def _pools(world: World, config: Config) -> Config:
    """Let there be a queue more, and a pool for it."""
    rng = world.rng
    least = rng.choice([0, 1])
    pool = PoolSettings(
        queues=[NEW_QUEUE, *rng.sample(["default", "io"], rng.randint(0, 2))],
        min=least,
        max=least + 1,
        idle_s=2.0,
        mode=rng.choice(["process", "async"]),
        concurrency=rng.choice([1, 3]),
    )
    return replace(config, pools=config.pools | {"extra": pool})


class Operators:
    """Several people with one plan, which changes."""

    def __init__(self, world: World, auditor: Auditor, machine: Machine, until_s: float) -> None:
        self._world, self._auditor, self._machine = world, auditor, machine
        self._until_s = until_s
        self._doings: list[Callable[[Gateway], Awaitable[None]]] = [
            self._configure,
            self._configure,
            self._drain_queue,
            self._pause_worker,
            self._drain_worker,
            self._put_schedule,
            self._put_schedule,
            self._change_schedule,
            self._redrive,
            self._edit,
            self._purge,
        ]

    async def run(self) -> None:
        """Change one thing after the other until the time is over."""
        world = self._world
        doings = world.rng.sample(self._doings, world.rng.randint(2, 6))
        every_s = world.rng.choice([0.3, 1.0])
        while world.flows and world.monotonic() < self._until_s:
            await asyncio.sleep(world.rng.expovariate(1.0 / every_s))
            doing = world.rng.choice(doings)
            world.note("operator", doing.__name__)
            await self._try(doing)

    async def _try(self, doing: Callable[[Gateway], Awaitable[Any]]) -> bool:
        """Do it once; return whether that was the end of it."""
        gateway = self._machine.any_gateway()
        if gateway is None:
            return False
        try:
            await gateway.ask(doing)
        except (ManagerAway, Unavailable, Overloaded, TimeoutError):
            return False
        except (Conflict, NotFound) as error:  # somebody was quicker
            self._world.note("refused", error)
        return True

    async def _insist(self, doing: Callable[[Gateway], Awaitable[Any]]) -> None:
        deadline = self._world.monotonic() + INSIST_S
        while not await self._try(doing) and self._world.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.5)

    # --- the config ---------------------------------------------------------------------------

    async def _configure(self, gateway: Gateway) -> None:
        config, revision = await gateway.config()
        await self._put(gateway, _changed(self._world, config), revision)

    async def _put(self, gateway: Gateway, config: Config, revision: int) -> None:
        told = await gateway.configure(config, revision)
        self._auditor.configured(told)

    async def _drain_queue(self, gateway: Gateway) -> None:
        queue = self._world.rng.choice(["default", "io"])
        await gateway.drain_queue(queue)
        await asyncio.sleep(self._world.uniform(0.1, 1.0))
        await gateway.drain_queue(queue, fill=True)

    async def _fill_all(self, gateway: Gateway) -> None:
        config, revision = await gateway.config()
        queues = {name: replace(queue, draining=False) for name, queue in config.queues.items()}
        if queues != config.queues:
            await self._put(gateway, replace(config, queues=queues), revision)

    # --- workers ------------------------------------------------------------------------------

    async def _worker(self, gateway: Gateway) -> WorkerView | None:
        workers = await gateway.workers()
        return self._world.rng.choice(workers) if workers else None

    async def _pause_worker(self, gateway: Gateway) -> None:
        worker = await self._worker(gateway)
        if worker is None:
            return
        await gateway.tell_worker(worker.name, "pause")
        self._auditor.worker_paused(worker.name)
        await asyncio.sleep(self._world.uniform(0.1, 2.0))
        self._auditor.flow.worker_resuming(worker.name)
        await gateway.tell_worker(worker.name, "resume")

    async def _drain_worker(self, gateway: Gateway) -> None:
        worker = await self._worker(gateway)
        if worker is not None:
            await gateway.tell_worker(worker.name, "drain")

    async def _resume_all(self, gateway: Gateway) -> None:
        for worker in await gateway.workers():
            if worker.paused:
                self._auditor.flow.worker_resuming(worker.name)
                await gateway.tell_worker(worker.name, "resume")

    # --- schedules ----------------------------------------------------------------------------

    async def _put_schedule(self, gateway: Gateway) -> None:
        world, rng = self._world, self._world.rng
        job = JobSpec(
            "program",
            params=_raw({"steps": rng.choice([[], [["work", 0.05]], [["fail", 1]]])}),
            tenant=(tenant := rng.choice(TENANTS)),
            limits=(rng.choice(KEYS),) if rng.random() < 0.2 else (),
            retry=RetryPolicy(base_s=0.3, max_s=1.0),
        )
        ends = world.wall() + rng.uniform(0.5, 5.0) if rng.random() < 0.2 else None
        starts = world.wall() + rng.uniform(0.0, 3.0) if rng.random() < 0.2 else None
        if ends is not None and starts is not None and starts >= ends:
            starts = None
        schedule = ScheduleSpec(
            name=rng.choice(["tick", "tock"]),
            tenant=tenant,
            cron=f"*/{rng.choice([1, 1, 2, 3])} * * * * *",
            catch_up=rng.choice(["all", "all", "latest", "none"]),
            jitter_s=rng.choice([0.0, 0.0, 0.5]),
            overlap=rng.choice(["allow", "allow", "skip"]),
            starts_at=starts,
            ends_at=ends,
            request=_raw({}),
            job=_raw(job),
        )
        await gateway.put_schedule(schedule)
        self._auditor.flow.schedule_put(schedule)

    async def _change_schedule(self, gateway: Gateway) -> None:
        schedules = await gateway.schedules(None)
        if not schedules:
            return
        one = self._world.rng.choice(schedules)
        what = self._world.rng.choice(["pause", "resume", "fire", "delete"])
        if what == "fire":
            job_id = await gateway.fire_schedule(one.name, one.tenant)
            self._auditor.accepted(job_id, None, "")
        elif what == "delete":
            await gateway.delete_schedule(one.name, one.tenant)
        else:
            await gateway.pause_schedule(one.name, one.tenant, paused=what == "pause")

    async def _end_schedules(self, gateway: Gateway) -> None:
        for one in await gateway.schedules(None):
            await gateway.delete_schedule(one.name, one.tenant)

    # --- dead letters -------------------------------------------------------------------------

    async def _redrive(self, gateway: Gateway) -> None:
        rate = self._world.rng.choice([0.0, 1.0, 5.0])
        await gateway.redrive(DeadLetterQuery(limit=10), rate=rate)

    async def _edit(self, gateway: Gateway) -> None:
        """Revive one with other params."""
        rng = self._world.rng
        dead = [job for job in self._auditor.dead() if job.plan is None]
        if not dead:
            return
        job = rng.choice(dead)
        spec = replace(
            job.spec,
            params=_raw({"steps": rng.choice([[], [["work", 0.2]], [["fail", 9]]])}),
            limits=tuple(rng.sample(KEYS, rng.randint(0, 2))),
        )
        await gateway.redrive(DeadLetterQuery(ids=[job.id]), spec=spec)

    async def _purge(self, gateway: Gateway) -> None:
        await gateway.purge(DeadLetterQuery(limit=self._world.rng.randint(1, 3)))

    # --- the end ------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Put right what was changed, and end the schedules once they have caught up."""
        if not self._world.flows:
            return
        await asyncio.sleep(UNDER_WAY_S)
        for doing in (self._fill_all, self._resume_all):
            await self._insist(doing)
        deadline = self._world.monotonic() + CAUGHT_UP_S
        while self._auditor.behind() and self._world.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        for name in self._auditor.behind():
            self._world.violated(f"schedule {name} has ticks due that did not fire")
        await self._insist(self._end_schedules)


def _raw(value: Any) -> msgspec.Raw:
    data = encode_spec(value) if isinstance(value, JobSpec) else msgspec.json.encode(value)
    return msgspec.Raw(data)
