"""Clients: what they ask for, how they repeat themselves, and when they lose patience."""

import asyncio
from typing import Any

import msgspec

from cluster.gateway import ManagerAway
from cluster.queue.spec import JobSpec
from cluster.views import DeadLetterQuery, JobQuery
from jobs.errors import Conflict, DraymanError, KeyReused, NotFound, Overloaded, Unavailable
from jobs.retry import RetryPolicy
from tests.support.simulation.auditor import Auditor
from tests.support.simulation.machine import GatewayLife, Machine
from tests.support.simulation.world import World

__all__ = ["Clients"]

#: How each kind of job goes. Where a step is bounded, it is by the attempt's number.
PROGRAMS: list[list[Any]] = [
    [],
    [["work", 0.02]],
    [["work", 0.3]],
    [["work", 0.8], ["progress"], ["work", 0.8]],
    [["work", 0.2], ["checkpoint"], ["work", 0.5], ["checkpoint"], ["work", 0.5]],
    [["once", "mail", "skip"], ["work", 0.2], ["once", "bill", "fail"]],
    [["work", 0.1], ["fail", 1]],
    [["fail", 9]],
    [["retry", 1, 0.5], ["work", 0.1]],
    [["snooze", 1, 0.4], ["work", 0.1]],
    [["discard"]],
    [["work", 0.1], ["crash", 1], ["work", 0.1]],
    [["work", 0.05], ["crash", 99]],
    [["once", "mail", "skip"], ["crash", 1], ["work", 0.5]],
    [["stubborn", 1.0]],
    [["work", 3.0]],
]
#: How often a keyed request is repeated before its client gives up.
REPEATS_MAX = 8


class Clients:
    """Several, each with its own mind."""

    def __init__(self, world: World, auditor: Auditor, machine: Machine, until_s: float) -> None:
        self._world, self._auditor, self._machine = world, auditor, machine
        self._until_s = until_s
        self._keys = [f"key{i}" for i in range(world.rng.randint(1, 4))]
        #: key -> the one request it stands for, mostly.
        self._requests: dict[str, JobSpec] = {}
        self._numbers = 0
        self._jobs: list[str] = []

    async def run(self, count: int) -> None:
        """Let so many clients submit and meddle until the time is over."""
        await asyncio.gather(*(self._client() for _ in range(count)))

    async def _client(self) -> None:
        world = self._world
        while world.monotonic() < self._until_s:
            if not self._jobs or world.chance(0.7):
                await self._submit()
            else:
                await self._meddle(world.rng.choice(self._jobs))
            await asyncio.sleep(world.rng.expovariate(3.0))

    # --- submitting ---------------------------------------------------------------------------

    def _spec(self) -> JobSpec:
        world = self._world
        self._numbers += 1
        rng = world.rng
        steps = rng.choice(PROGRAMS)
        run_at = world.wall() + world.uniform(0.1, 3.0) if world.chance(0.1) else None
        expires_at = world.wall() + world.uniform(0.5, 5.0) if world.chance(0.05) else None
        timeout_s = world.uniform(0.1, 2.0) if world.chance(0.15) else None
        return JobSpec(
            type="program",
            params=msgspec.Raw(msgspec.json.encode({"steps": steps})),
            queue=rng.choice(["default", "default", "io"]),
            priority=rng.choice([0, 0, 0, 5]),
            run_at=run_at,
            expires_at=expires_at,
            timeout_s=timeout_s,
            grace_s=0.5,
            max_attempts=rng.choice([1, 2, 3]),
            retry=RetryPolicy(base_s=0.3, max_s=1.0),
            labels={"request": str(self._numbers)},
        )

    async def _submit(self) -> None:
        world = self._world
        key = world.rng.choice(self._keys) if world.chance(0.3) else None
        if key is None:
            spec = self._spec()
        else:
            first = self._requests.get(key)
            if first is None or world.chance(0.2):
                first_number = self._numbers + 1
                spec = msgspec.structs.replace(
                    self._spec(), key=key, key_expires_at=9e9, fingerprint=f"f{first_number}"
                )
                self._requests.setdefault(key, spec)
            else:
                spec = first
        if world.chance(0.15):
            await self._submit_many(spec)
            return
        for _ in range(1 if key is None else REPEATS_MAX):
            if await self._try(spec):
                return
            await asyncio.sleep(world.uniform(0.05, 1.0))

    async def _try(self, spec: JobSpec) -> bool:
        """Submit once; return whether that was the end of it."""
        life = self._gateway()
        if life is None:
            return False
        answer = life.ask(lambda gateway: gateway.submit(spec))
        world = self._world
        try:
            if world.chance(0.1):
                await asyncio.wait_for(answer, world.uniform(0.0, 0.05))
            accepted = await answer
        except TimeoutError:
            return False  # it disconnected
        except (ManagerAway, Unavailable, Overloaded):
            return False
        except KeyReused:
            assert spec.key is not None
            self._auditor.key_refused(spec.key, spec.fingerprint)
            return True
        except DraymanError as error:
            self._auditor.refused(error)
            return True
        self._accepted(accepted, spec)
        return True

    async def _submit_many(self, spec: JobSpec) -> None:
        """Submit a handful at once, with whatever `spec` is among them."""
        life = self._gateway()
        if life is None:
            return
        specs = [spec, *(self._spec() for _ in range(self._world.rng.randint(1, 6)))]
        try:
            results = await life.ask(lambda gateway: gateway.submit_many(specs))
        except (ManagerAway, Unavailable, Overloaded):
            return
        for one, result in zip(specs, results, strict=True):
            if hasattr(result, "job_id"):
                self._accepted(result, one)

    def _accepted(self, accepted: Any, spec: JobSpec) -> None:
        job_id = accepted.job_id
        self._world.note("acked", job_id, spec.key or "")
        self._auditor.accepted(job_id, spec.key, spec.fingerprint)
        if job_id not in self._jobs:
            self._jobs.append(job_id)

    # --- meddling -----------------------------------------------------------------------------

    async def _meddle(self, job_id: str) -> None:
        world = self._world
        life = self._gateway()
        if life is None:
            return
        what = world.rng.choice(
            ["job", "job", "wait", "cancel", "cancel", "retry", "attempts", "list", "pause", "dead"]
        )
        world.note("asks", what, job_id)
        try:
            await getattr(self, f"_{what}")(life, job_id)
        except NotFound:
            self._auditor.not_found(job_id)
        except (ManagerAway, Unavailable, Overloaded, Conflict, TimeoutError):
            pass  # What a client must live with.

    async def _job(self, life: GatewayLife, job_id: str) -> None:
        view = await life.ask(lambda gateway: gateway.job(job_id, None))
        self._auditor.seen(view.id, view.status)

    async def _wait(self, life: GatewayLife, job_id: str) -> None:
        view = await life.ask(lambda gateway: gateway.wait(job_id, None, 2.0))
        self._auditor.seen(view.id, view.status)

    async def _cancel(self, life: GatewayLife, job_id: str) -> None:
        await life.ask(lambda gateway: gateway.cancel(job_id, None))
        self._auditor.cancel_accepted(job_id)

    async def _retry(self, life: GatewayLife, job_id: str) -> None:
        await life.ask(lambda gateway: gateway.retry(job_id, None))

    async def _attempts(self, life: GatewayLife, job_id: str) -> None:
        await life.ask(lambda gateway: gateway.attempts(job_id, None))

    async def _list(self, life: GatewayLife, job_id: str) -> None:
        page = await life.ask(lambda gateway: gateway.jobs(JobQuery()))
        for view in page.jobs:
            self._auditor.seen(view.id, view.status)

    async def _pause(self, life: GatewayLife, job_id: str) -> None:
        queue = self._world.rng.choice(["default", "io"])
        await life.ask(lambda gateway: gateway.pause(queue))
        await asyncio.sleep(self._world.uniform(0.1, 1.0))
        await self.resume(queue)

    async def _dead(self, life: GatewayLife, job_id: str) -> None:
        await life.ask(lambda gateway: gateway.redrive(DeadLetterQuery(limit=10)))

    async def resume(self, queue: str) -> None:
        """Resume a queue, whatever it takes; a machine that never comes back is noticed."""
        deadline = self._world.monotonic() + 120.0
        while self._world.monotonic() < deadline:
            life = self._gateway()
            try:
                if life is not None:
                    await life.ask(lambda gateway: gateway.resume(queue))
                    return
            except (ManagerAway, Unavailable, Overloaded):
                pass  # Said again below.
            await asyncio.sleep(0.5)

    def _gateway(self) -> GatewayLife | None:
        lives = self._machine.gateways
        return self._world.rng.choice(lives) if lives else None
