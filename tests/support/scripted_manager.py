"""A manager for one worker, in memory: it leases what a test submits and keeps what comes back.

It stands in for Ray and the manager's actor, not for the queue's rules: no retries, no limits.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.protocol import (
    NOTHING,
    Assignment,
    OrderlyStop,
    Orders,
    Outcome,
    Progress,
    Record,
    Recorded,
    Refused,
    Report,
    decode_record,
    decode_report,
    encode,
)
from cluster.queue.spec import JobSpec, encode_spec

__all__ = ["ManagerAway", "ScriptedManager"]


class ManagerAway(Exception):
    pass


class ScriptedManager:
    def __init__(self, *, epoch: int = 1, park_s: float = 5.0, eager: bool = False) -> None:
        self.epoch, self.park_s = epoch, park_s
        #: Hand out everything at once, whatever the worker asks for.
        self.eager = eager
        self.reports: list[Report] = []
        self.records: list[Record] = []
        #: Questions asked, and the answers that are laid out for them.
        self.queries: list[dict[str, Any]] = []
        self.answers: list[bytes] = []
        self.outcomes: dict[int, Outcome] = {}
        #: Tokens whose outcome came more than once, with how often.
        self.repeated: dict[int, int] = {}
        self.progress: list[Progress] = []
        self.leased: dict[int, Assignment] = {}
        #: Decides what becomes of a call before and after it is handled; raise to fail it.
        self.before: Callable[[Report], None] = lambda report: None
        self.after: Callable[[Report, Orders], None] = lambda report, orders: None
        self.answer: Callable[[Record], Recorded | Refused] = lambda record: Recorded()
        self.stops: list[OrderlyStop] = []
        self.recall: list[int] = []
        self.drop: list[int] = []
        self.drain = False
        self.away = False
        self._ready: list[Assignment] = []
        self._tokens = itertools.count(1)
        self._orders = itertools.count(1)
        self._changed = asyncio.Condition()
        self._arrivals = 0
        self._done = asyncio.Condition()

    # --- what a test does ---------------------------------------------------------------------

    def submit(
        self, type: str, params: dict[str, Any] | None = None, *, alone: bool = False, **spec: Any
    ) -> int:
        """Queue one task and return its token."""
        return self.submit_raw(type, msgspec.json.encode(params or {}), alone=alone, **spec)

    def submit_raw(self, type: str, params: bytes, *, alone: bool = False, **spec: Any) -> int:
        token = next(self._tokens)
        attempt = spec.pop("attempt", 1)
        checkpoint = spec.pop("checkpoint", NOTHING)
        starts_at = spec.pop("starts_at", 0.0)
        encoded = encode_spec(JobSpec(type=type, params=msgspec.Raw(params), **spec))
        assignment = Assignment(
            token,
            f"job-{token}",
            f"task-{token}",
            attempt,
            msgspec.Raw(encoded),
            checkpoint,
            alone,
            code=spec.get("code", ""),
            starts_at=starts_at,
        )
        self._ready.append(assignment)
        self.wake()
        return token

    def resend(self, token: int) -> None:
        """Lease the same token again, as after orders that may not have arrived."""
        self._ready.append(self.leased[token])
        self.wake()

    def wake(self) -> None:
        """Answer a parked report, if there is something to say."""
        asyncio.get_running_loop().create_task(self._notify())

    async def outcome(self, token: int, within_s: float = 20.0) -> Outcome:
        """Wait for the outcome of a token."""
        async with asyncio.timeout(within_s), self._done:
            await self._done.wait_for(lambda: token in self.outcomes)
        return self.outcomes[token]

    async def all_outcomes(self, tokens: list[int], within_s: float = 20.0) -> list[Outcome]:
        async with asyncio.timeout(within_s), self._done:
            await self._done.wait_for(lambda: all(t in self.outcomes for t in tokens))
        return [self.outcomes[token] for token in tokens]

    async def reported(self, until: Callable[[Report], bool], within_s: float = 20.0) -> Report:
        """Wait for a report like this, or return the last one if it is."""
        async with asyncio.timeout(within_s), self._done:
            await self._done.wait_for(lambda: bool(self.reports) and until(self.reports[-1]))
        return self.reports[-1]

    # --- the port -----------------------------------------------------------------------------

    async def exchange(self, data: bytes) -> bytes:
        report = decode_report(data)
        if self.away:
            raise ManagerAway("the manager is away")
        self.before(report)
        self.reports.append(report)
        self._arrivals += 1
        mine = self._arrivals
        self.progress += report.progress
        for outcome in report.outcomes:
            if outcome.token in self.outcomes:
                self.repeated[outcome.token] = self.repeated.get(outcome.token, 1) + 1
            else:
                self.outcomes[outcome.token] = outcome
            self.leased.pop(outcome.token, None)
        async with self._done:
            self._done.notify_all()
        await self._notify()
        if not report.outcomes:
            await self._park(report, mine)
        orders = self._make_orders(report, mine)
        self.after(report, orders)
        return encode(orders)

    async def call(self, data: bytes) -> bytes:
        if self.away:
            raise ManagerAway("the manager is away")
        self.queries.append(msgspec.json.decode(data))
        return self.answers.pop(0)

    async def record(self, data: bytes) -> bytes:
        if self.away:
            raise ManagerAway("the manager is away")
        record = decode_record(data)
        self.records.append(record)
        return encode(self.answer(record))

    async def _park(self, report: Report, mine: int) -> None:
        try:
            async with asyncio.timeout(self.park_s), self._changed:
                await self._changed.wait_for(
                    lambda: self._arrivals > mine or self._has_orders(report) or self.away
                )
        except TimeoutError:
            pass
        if self.away:
            raise ManagerAway("the manager went away")

    def _has_orders(self, report: Report) -> bool:
        room = self.eager or report.free + report.prefetch
        return bool((self._ready and room) or self._commands())

    def _commands(self) -> bool:
        return bool(self.stops or self.recall or self.drop or self.drain)

    def _make_orders(self, report: Report, mine: int) -> Orders:
        number = next(self._orders)
        if self._arrivals > mine:
            return Orders(self.epoch, number)
        room = len(self._ready) if self.eager else report.free + report.prefetch
        assignments, self._ready = self._ready[:room], self._ready[room:]
        self.leased |= {a.token: a for a in assignments}
        orders = Orders(
            self.epoch, number, assignments, self.stops, self.recall, self.drop, self.drain
        )
        self.stops, self.recall, self.drop, self.drain = [], [], [], False
        return orders

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
