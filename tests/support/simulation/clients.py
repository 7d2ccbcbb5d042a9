"""Clients: what they ask for, how they repeat themselves, and when they lose patience."""

import asyncio
from functools import partial
from typing import Any

import msgspec

from cluster.gateway import ManagerAway
from cluster.queue.spec import JobSpec, Plan, StepSpec
from cluster.views import DeadLetterQuery, JobQuery
from jobs.errors import Conflict, DraymanError, KeyReused, NotFound, Overloaded, Unavailable
from jobs.retry import RetryPolicy
from tests.support.simulation.auditor import Auditor
from tests.support.simulation.machine import GatewayLife, Machine
from tests.support.simulation.operators import KEYS, NEW_QUEUE, TENANTS
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
    [["work", 0.1], ["fail", 1], ["submit", 2]],
    [["work", 0.1], ["oom", 1], ["work", 0.1]],
    [["checkpoint"], ["work", 0.2], ["oom", 5]],
]
#: Those that are too long for a fast queue come as often as the others there.
LONG: list[list[Any]] = [
    [["work", 1.0], ["checkpoint"], ["work", 1.0], ["checkpoint"], ["work", 1.0]],
    [["work", 3.0]],
    [["work", 0.2], ["checkpoint"], ["work", 6.0]],
    [["stubborn", 3.0]],
    [["work", 12.0]],
]
#: How chunks go, and those that differ from the others.
CHUNKS: list[list[Any]] = [
    [],
    [["work", 0.02]],
    [["work", 0.1], ["progress"]],
    [["once", "mail", "skip"]],
    [["checkpoint"], ["work", 0.05]],
    [["fail", 1]],
]
ODD: list[list[Any]] = [
    [["fail", 9]],
    [["fail", 1]],
    [["discard"]],
    [["crash", 1], ["work", 0.05]],
    [["snooze", 1, 0.3]],
    [["stubborn", 0.5]],
    [["work", 1.5]],
    [["lose", "split", 1]],
    [["spoil"]],
]
SPLITS: list[list[Any]] = [[], [], [["work", 0.2]], [["fail", 1]], [["crash", 1]], [["fail", 2]]]
JOINS: list[list[Any]] = [
    [],
    [["work", 0.2]],
    [["fail", 1]],
    [["lose", "0", 1]],
    [["lose", "1", 2], ["work", 0.1]],
    [["lose", "split", 1]],
    [["fail", 9]],
    [["crash", 1]],
]
#: How a step of a workflow goes; "need" is the first step that it needs.
STEPS: list[list[Any]] = [
    [],
    [["work", 0.1]],
    [["fail", 1]],
    [["lose", "need", 1], ["work", 0.1]],
    [["discard"]],
    [["crash", 1]],
    [["checkpoint"], ["work", 0.3]],
]
#: How many of all jobs have a plan.
PLANNED = 0.12
QUESTIONS = ["job", "job", "wait", "cancel", "cancel", "retry"]
QUESTIONS += ["attempts", "tasks", "list", "pause", "dead"]
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
        queue = self._queue()
        steps = rng.choice(LONG if queue == "fast" and world.chance(0.3) else PROGRAMS)
        flows = self._flowing() if world.flows else {}
        run_at = world.wall() + world.uniform(0.1, 3.0) if world.chance(0.1) else None
        expires_at = world.wall() + world.uniform(0.5, 5.0) if world.chance(0.05) else None
        timeout_s = world.uniform(0.1, 2.0) if world.chance(0.15) else None
        params, plan = {"steps": steps}, None
        if world.chance(PLANNED):
            params, plan = self._workflow() if world.chance(0.3) else self._fan_out()
        return JobSpec(
            type="program",
            params=msgspec.Raw(msgspec.json.encode(params)),
            plan=plan,
            queue=queue,
            priority=rng.choice([0, 0, 0, 5]),
            run_at=run_at,
            expires_at=expires_at,
            timeout_s=timeout_s,
            grace_s=0.5,
            max_attempts=rng.choice([1, 2, 3]),
            retry=RetryPolicy(base_s=0.3, max_s=1.0),
            labels={"request": str(self._numbers)},
            **flows,
        )

    def _queue(self) -> str:
        """Return a queue that there is, as far as anybody can know."""
        queues = ["default", "default", "io"]
        known = self._auditor.flow.config.all_queues
        queues += [name for name in ("fast", "fast", "slow", NEW_QUEUE) if name in known]
        return self._world.rng.choice(queues)

    def _flowing(self) -> dict[str, Any]:
        """Return what a job says about its place in the flow."""
        rng = self._world.rng
        return {
            "tenant": rng.choice(TENANTS),
            "limits": tuple(rng.sample(KEYS, rng.choice([0, 0, 1, 1, 2]))),
            "routed": rng.random() < 0.3,
            "expected_s": rng.choice([None, None, 0.1, 5.0]),
            "resumable": rng.random() < 0.6,
        }

    def _fan_out(self) -> tuple[dict[str, Any], Plan]:
        return self._chunks("", 40), Plan([self._step_of_chunks("")])

    def _step_of_chunks(self, name: str, **more: Any) -> StepSpec:
        rng = self._world.rng
        return StepSpec(
            name,
            fans_out=True,
            join=rng.random() < 0.7,
            at_once=rng.choice([1, 2, 3, 5, 10]),
            tolerate=rng.choice([0.0, 0.0, 0.2, 0.5]),
            **more,
        )

    def _chunks(self, prefix: str, most: int) -> dict[str, Any]:
        """Return params of a fan-out."""
        rng = self._world.rng
        count = rng.choice([0, 1, 2, 3, 5, 8, rng.randint(0, most)])
        odd = {str(rng.randint(0, count)): rng.choice(ODD) for _ in range(rng.choice([0, 0, 1, 3]))}
        return {
            "split": rng.choice(SPLITS),
            "count": count,
            "run": _named(rng.choice(CHUNKS), prefix),
            "odd": {at: _named(steps, prefix) for at, steps in odd.items()},
            "join": _named(rng.choice(JOINS if count > 1 else JOINS[:3]), prefix),
            "changes": rng.random() < 0.1,
        }

    def _workflow(self) -> tuple[dict[str, Any], Plan]:
        rng = self._world.rng
        steps: list[StepSpec] = []
        for name in "abcd"[: rng.randint(1, 4)]:
            needs = rng.sample(steps, min(len(steps), rng.choice([0, 1, 1, 2])))
            queue = rng.choice([None, None, "io", "default"])
            more: dict[str, Any] = {"needs": [step.name for step in needs], "queue": queue}
            if self._world.flows:
                more["resumable"] = rng.random() < 0.5
                more["limits"] = rng.choice([None, None, [], [rng.choice(KEYS)]])
            if rng.random() < 0.4:
                params = self._chunks(f"{name}.", 6)
                step = self._step_of_chunks(name, params=_raw(params), **more)
            else:
                need = needs[0] if needs else None
                params = {"steps": _told(rng.choice(STEPS), need)}
                step = StepSpec(name, params=_raw(params), **more)
            steps.append(step)
        return {}, Plan(steps, rng.random() < 0.5, rng.choice(steps).name)

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
        what = world.rng.choice(QUESTIONS)
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

    async def _tasks(self, life: GatewayLife, job_id: str) -> None:
        first: int | None = 0
        while first is not None:
            turn = partial(_page, job_id, first)
            page = await life.ask(turn)
            self._auditor.plans.seen(job_id, page.tasks)
            first = page.next_after

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
        return self._machine.any_gateway()


async def _page(job_id: str, first: int, gateway: Any) -> Any:
    return await gateway.tasks(job_id, None, first, 9)


def _raw(params: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(params))


def _named(steps: list[Any], prefix: str) -> list[Any]:
    """Return a program that names tasks of its own step by their whole ids."""
    return [
        [op, prefix + args[0], *args[1:]] if op == "lose" else [op, *args] for op, *args in steps
    ]


def _told(steps: list[Any], need: StepSpec | None) -> list[Any]:
    """Return a program with the task that it loses, if there is one."""
    if need is None:
        return [step for step in steps if step[0] != "lose"]
    name = need.name
    if need.fans_out:
        name += ".join" if need.join else ".0"
    return [[op, name, *args[1:]] if op == "lose" else [op, *args] for op, *args in steps]
