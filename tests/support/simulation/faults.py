"""What goes wrong, when, and for how long. Every seed draws its own kinds of trouble."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.support.simulation.loop import Process
from tests.support.simulation.machine import Machine
from tests.support.simulation.world import World

__all__ = ["Faults"]

#: So long after the last fault there is nothing left of it.
MENDED_S = 6.0


class Faults:
    """Trouble until `until_s`; afterwards everything works."""

    def __init__(self, world: World, machine: Machine, until_s: float) -> None:
        self._world, self._machine, self._until_s = world, machine, until_s
        self._flow = machine.auditor.flow
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._kill_manager,
            self._kill_manager_somewhere,
            self._kill_manager_after_a_put,
            self._replace_paused_manager,
            self._pause_manager,
            self._kill_worker,
            self._kill_child,
            self._pause_worker,
            self._kill_gateway,
            self._kill_compactor,
            self._cut_power,
            self._stall_store,
            self._lose_store,
            self._set_clock,
        ]
        rng = world.rng
        self._kinds = rng.sample(kinds, rng.randint(0, 5))
        #: One that begins after a jump cannot know of it, and believes the clock.
        self._ends_managers = any(
            "manager" in kind.__name__ or "power" in kind.__name__ for kind in self._kinds
        )
        self._every_s = rng.choice([0.5, 1.0, 2.0, 4.0])
        machine.network.lost = rng.choice([0.0, 0.0, 0.01, 0.1])
        machine.network.doubled = rng.choice([0.0, 0.0, 0.05, 0.3])
        machine.network.late = rng.choice([0.0, 0.0, 0.02, 0.2])
        machine.spawn_fails = rng.choice([0.0, 0.0, 0.3])
        self._flow.reorders = bool(machine.network.late or machine.network.doubled)
        world.store.fail_before = rng.choice([0.0, 0.0, 0.02, 0.1])
        world.store.fail_after = rng.choice([0.0, 0.0, 0.02, 0.1])
        world.io_slow = rng.choice([0.0, 0.01, 0.05])
        world.note("faults", *(kind.__name__ for kind in self._kinds))

    async def run(self) -> None:
        """Make trouble until the time is over, then mend everything."""
        world = self._world
        while self._kinds:
            await asyncio.sleep(world.rng.expovariate(1.0 / self._every_s))
            if world.monotonic() >= self._until_s:
                break
            kind = world.rng.choice(self._kinds)
            world.note("fault", kind.__name__)
            await kind()
        await asyncio.sleep(max(0.0, self._until_s - world.monotonic()))
        self._mend()

    def _mend(self) -> None:
        world, machine = self._world, self._machine
        world.note("mended")
        machine.network.lost = machine.network.doubled = machine.network.late = 0.0
        machine.spawn_fails = world.io_slow = 0.0
        world.store.fail_before = world.store.fail_after = 0.0
        world.store.is_gone = False
        world.stalled_until = world.wall_offset_s = 0.0
        world.on_stored = lambda process: None
        for process in world.processes:
            process.steps_left = None
            process.resume()
        # What was on its way still comes, and who died starts again.
        world.later(MENDED_S, self._flow.mended)

    # --- managers -----------------------------------------------------------------------------

    def _manager(self) -> Process | None:
        life = self._machine.manager
        return None if life is None or life.process.state != "alive" else life.process

    async def _kill_manager(self) -> None:
        if process := self._manager():
            process.kill()

    async def _kill_manager_somewhere(self) -> None:
        """At any await there is."""
        if process := self._manager():
            process.steps_left = self._world.rng.randint(1, 200)

    async def _kill_manager_after_a_put(self) -> None:
        """Between what the store did and the answer to it."""
        victim = self._manager()
        countdown = self._world.rng.randint(1, 4)

        def stored(process: Process) -> None:
            nonlocal countdown
            if process is victim:
                countdown -= 1
                if countdown == 0:
                    process.kill()

        self._world.on_stored = stored

    async def _pause_manager(self) -> None:
        if process := self._manager():
            process.pause()
            self._world.later(self._world.uniform(0.2, 18.0), process.resume)

    async def _replace_paused_manager(self) -> None:
        """A manager that seems dead, and comes back beside its successor."""
        world = self._world
        if process := self._manager():
            if world.chance(0.8):
                process.pause()
            await asyncio.sleep(world.uniform(0.0, 1.0))
            self._machine.start_manager()
            world.later(world.uniform(0.0, 6.0), process.resume)

    # --- the rest of the machine --------------------------------------------------------------

    def _worker(self) -> Process | None:
        lives = [x.process for x in self._machine.workers.values() if x.process.state == "alive"]
        return self._world.rng.choice(lives) if lives else None

    async def _kill_worker(self) -> None:
        if process := self._worker():
            if self._world.chance(0.3):
                process.steps_left = self._world.rng.randint(1, 100)
            else:
                process.kill()

    async def _kill_child(self) -> None:
        if process := self._worker():
            life = self._machine.workers[process.name]
            slots = life.worker._executor._slots if hasattr(life, "worker") else []
            children = [slot.child for slot in slots if getattr(slot, "child", None)]
            if children:
                self._world.rng.choice(children).die("signal 9")

    async def _pause_worker(self) -> None:
        if process := self._worker():
            process.pause()
            self._world.later(self._world.uniform(0.1, 25.0), process.resume)

    async def _kill_gateway(self) -> None:
        if self._machine.gateways:
            self._world.rng.choice(self._machine.gateways).process.kill()

    async def _kill_compactor(self) -> None:
        if self._machine.compactors:
            self._world.rng.choice(self._machine.compactors).kill()

    async def _cut_power(self) -> None:
        if self._machine.has_power:
            self._machine.cut_power()

    async def _stall_store(self) -> None:
        self._world.stalled_until = self._world.monotonic() + self._world.uniform(0.1, 4.0)

    async def _lose_store(self) -> None:
        self._world.store.is_gone = True
        await asyncio.sleep(self._world.uniform(0.1, 3.0))
        self._world.store.is_gone = False

    async def _set_clock(self) -> None:
        far_s = 3600.0
        if self._world.flows:
            # Of an hour that is believed each tick fires: true to the word, and long to simulate.
            far_s = 600.0 if self._ends_managers else 7200.0
        jump_s = self._world.rng.choice([-3600.0, -30.0, -1.0, 0.5, 60.0, far_s])
        self._flow.clock_was_set = True
        self._world.wall_offset_s += jump_s
