"""One schedule: a world, the product in it, trouble, and what the auditor says in the end."""

import asyncio
import gc
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cluster.settings import ClusterSettings
from tests.support.simulation.auditor import Auditor
from tests.support.simulation.child import slots_of
from tests.support.simulation.clients import Clients
from tests.support.simulation.faults import Faults
from tests.support.simulation.loop import Stalled
from tests.support.simulation.machine import Machine
from tests.support.simulation.operators import Operators, first_config
from tests.support.simulation.world import START_S, World

__all__ = ["SHORT", "Plan", "Result", "simulate"]

#: After the trouble so much time may pass until everything has ended.
SETTLE_S = 240.0
#: And so much until no pool has more workers than it must.
REST_S = 60.0
#: In so many schedules the journal is compacted: it takes long, being the real Parquet.
COMPACTS = 0.08


@dataclass(frozen=True)
class Plan:
    """What is different about this run: a planted bug, or a part that a later issue brings."""

    #: Builds the manager, as `cluster.manager.build` does.
    build_manager: Any = None
    #: Builds a gateway, as `cluster.gateway.Gateway` does.
    build_gateway: Any = None
    #: How long there is trouble, at least and at most.
    trouble_s: tuple[float, float] = (2.0, 10.0)
    #: Whether the store's disk keeps what it was told to sync.
    sync: bool = True


#: More of these fit into the time that CI has.
SHORT = Plan(trouble_s=(0.3, 2.0))


@dataclass
class Result:
    """What came of one seed."""

    seed: int
    violations: list[str]
    trace: list[str] = field(repr=False)
    counts: dict[str, int]
    virtual_s: float


def simulate(seed: int, plan: Plan | None = None, *, keep_trace: bool = False) -> Result:
    """Run one schedule to its end. The same seed gives the same trace, to the letter."""
    collects = gc.isenabled()
    gc.disable()  # a collection runs finalizers, at moments that no seed decides
    try:
        return _simulate(seed, plan or Plan(), keep_trace)
    finally:
        if collects:
            gc.enable()


def _simulate(seed: int, plan: Plan, keep_trace: bool) -> Result:
    world = World(seed, "disk" if seed % 2 else "bucket", sync=plan.sync)
    auditor = Auditor(world)
    world.store.on_durable, world.store.on_deleted = auditor.durable, auditor.deleted
    with world.installed(slots_of(world, auditor)):
        settings = _settings(world)
        auditor.flow.config = settings.config
        machine = Machine(world, auditor, settings)
        machine.build_manager = plan.build_manager or machine.build_manager
        machine.build_gateway = plan.build_gateway or machine.build_gateway
        try:
            world.loop.run_until_complete(_schedule(world, auditor, machine, plan))
        except Stalled as error:
            world.violated(str(error))
        world.over = True
        world.loop.bury()
    trace = list(world.lines()) if keep_trace or world.violations else []
    virtual_s = world.monotonic() - START_S
    counts = dict(auditor.counts + auditor.flow.counts)
    return Result(seed, world.violations, trace, counts, virtual_s)


def _settings(world: World) -> ClusterSettings:
    rng = world.rng
    compacts = rng.random() < COMPACTS
    return ClusterSettings(
        compact_segments=rng.randint(2, 30) if compacts else 5_000,
        store="simulated://",
        cluster_id="simulation",
        commit_linger_ms=rng.choice([0.0, 0.0, 5.0]),
        config=first_config(world),
    )


async def _schedule(world: World, auditor: Auditor, machine: Machine, plan: Plan) -> None:
    until_s = world.monotonic() + world.uniform(*plan.trouble_s)
    machine.start(gateways=world.rng.randint(1, 2))
    clients = Clients(world, auditor, machine, until_s)
    faults = Faults(world, machine, until_s)
    count = world.rng.randint(1, 4)
    operators = Operators(world, auditor, machine, until_s)
    await asyncio.gather(faults.run(), clients.run(count), operators.run())
    for queue in ("default", "io"):
        await clients.resume(queue)
    await operators.settle()
    deadline = world.monotonic() + SETTLE_S
    while not (auditor.settled and machine.idle) and world.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.2)
    world.note("settled")
    auditor.check_end()
    await _pools_rest(world, auditor, machine)
    if machine.manager is not None and machine.manager.manager is not None:
        auditor.life_ended(machine.manager.name, machine.manager.manager._commit)


async def _pools_rest(world: World, auditor: Auditor, machine: Machine) -> None:
    """Check that each pool comes to its least size when there is nothing to do."""
    pools = auditor.flow.config.pools
    deadline = world.monotonic() + REST_S
    while True:
        sizes = Counter(life.pool.name for life in machine.workers.values())
        odd = [f"{name} {sizes[name]}" for name in pools if sizes[name] != pools[name].min]
        if not odd:
            return
        if world.monotonic() > deadline:
            world.violated(f"at rest pools have other sizes than their least: {', '.join(odd)}")
            return
        await asyncio.sleep(0.5)
