"""A worker: takes attempts from the manager, has children run them, tells how they ended.

    report (all it holds, what ended)  --exchange-->  orders (what to run, stop, give back)

It only supervises: no handler ever runs in its process, so none can stop its heartbeat.

Rule 1: every report stands by itself (level-triggered); one that failed is simply followed by the
next, after all calls under way are settled. Rule 2: an outcome is kept, and sent again, until a
reply to a report that carried it has come: then it is durable. Rule 3: orders of an older epoch are
refused, and each orders number is applied once. Rule 4: work goes on while the manager is away; an
idle worker that has not heard from it for long ends itself, so that nothing leaks. Rule 5: a worker
of which a part broke ends itself: alive but stuck is worse than dead.
"""

import asyncio
import os
import random
import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import structlog

from cluster.protocol import Orders, Report, decode_orders, encode
from cluster.worker.ephemeral import Holder
from cluster.worker.executor import Executor
from cluster.worker.logs import Logs, LogStore
from cluster.worker.remains import make_scratch, sweep
from cluster.worker.slot import Patience, SlotConfig

__all__ = ["ManagerPort", "Worker", "WorkerTimes"]

log = structlog.get_logger("drayman.worker")

HEARTBEAT_S = 3.0
RETRY_MIN_S, RETRY_MAX_S = 0.05, 1.0
#: Outcomes worth waiting for the manager with, even when the rest is idle.
ORPHAN_FACTOR = 12
#: Numbers of orders remembered as applied; more than two calls are never under way.
NUMBERS_KEPT = 16
#: A worker that leaves lets its attempts finish for the first part of the grace, and gives them the
#: second to stop by themselves; the rest is for the word to reach the manager.
FINISH_PART, STOP_PART = 0.5, 0.4
#: A worker whose manager does not take its last outcomes ends so long after its grace.
CONFIRM_S = 5.0
#: An empty answer that comes at once is no reason to ask again at once.
QUICK_S, PACE_S = 0.02, 0.1


class ManagerPort(Protocol):
    """The manager as a worker sees it. Raises whatever its carrier raises when it is away."""

    async def exchange(self, report: bytes) -> bytes:
        """Take an encoded Report, return encoded Orders."""

    async def record(self, record: bytes) -> bytes:
        """Take an encoded Record, return encoded Recorded or Refused."""

    async def call(self, query: bytes) -> bytes:
        """Answer an encoded Query: `+` and JSON, `-` and a Refused, `~` if it knows no such job."""


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """How patient a worker is."""

    #: A report goes out at least this often.
    heartbeat_s: float = HEARTBEAT_S
    #: A call without an answer for so long counts as failed.
    call_s: float = 30.0
    #: An idle worker ends itself when the manager has been away for so long.
    orphan_s: float = 300.0
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def within(cls, heartbeat_timeout_s: float) -> "WorkerTimes":
        """Return what fits a manager that gives a silent worker up after so long.

        A hung worker's children are killed before that, however long after a heartbeat it hung.
        """
        heartbeat_s = min(HEARTBEAT_S, heartbeat_timeout_s / 5)
        return cls(heartbeat_s, patience=Patience(worker_s=0.7 * heartbeat_timeout_s))


class Worker:
    """One worker, to be wrapped by whatever carries it. All methods run on one event loop."""

    def __init__(
        self,
        name: str,
        pool: str,
        queues: Sequence[str],
        concurrency: int,
        mode: Literal["process", "async"],
        store_url: str,
        job_modules: Sequence[str],
        manager: ManagerPort,
        *,
        node: str = "",
        times: WorkerTimes | None = None,
        memory_limit_bytes: int = 0,
        tasks_max: int = 0,
        growth_bytes_max: int = 0,
        holder: Holder | None = None,
    ) -> None:
        self.name, self.pool, self.queues = name, pool, list(queues)
        self._manager = manager
        self._node = node
        self._times = times or WorkerTimes()
        self._store_url = store_url
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()
        self._leaving: asyncio.Task[None] | None = None
        self._scratch = make_scratch(name)
        self._executor = Executor(
            SlotConfig(
                mode,
                concurrency,
                store_url,
                tuple(job_modules),
                memory_limit_bytes,
                self._times.patience,
                tasks_max,
                growth_bytes_max,
            ),
            concurrency,
            self._scratch,
            record=manager.record,
            ask=manager.call,
            logs=Logs(self._open_logs),
            news=self._news.set,
            holder=holder,
        )
        self._number = 0
        self._applied = 0
        self._epoch = 0
        self._numbers: deque[int] = deque(maxlen=NUMBERS_KEPT)
        #: What the last report said was started and welcome.
        self._told_started: set[int] = set()
        self._told_hungry = False
        #: Since when every call has failed; None while the manager answers.
        self._away_since_s: float | None = None

    def _open_logs(self) -> LogStore:
        from cluster.store.objects import open_store

        return open_store(self._store_url)

    # --- what its carrier calls ---------------------------------------------------------------

    async def run(self) -> None:
        """Work until drained, stopped, or orphaned. Nothing of any attempt lives on its return."""
        log.info("worker.started", worker=self.name, pool=self.pool, queues=self.queues)
        try:
            await asyncio.to_thread(sweep)
            await self._executor.start()
            stopping = asyncio.ensure_future(self._stopping.wait())
            talking = asyncio.ensure_future(self._talk())
            parts: set[asyncio.Future[Any]] = {stopping, talking, self._executor.broken}
            try:
                done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in done:
                    part.result()
            finally:
                for task in (stopping, talking):
                    task.cancel()
                await asyncio.gather(stopping, talking, return_exceptions=True)
        finally:
            if self._leaving is not None:
                self._leaving.cancel()
            await self._executor.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._ended.set()
            log.info("worker.ended", worker=self.name)

    async def watch(self) -> None:
        """Never return while the worker lives: whoever awaits this notices its death."""
        await self._ended.wait()

    def leave(self, grace_s: float, reason: str = "drain") -> None:
        """Hand back what has not started, and the rest within the grace; then `run` returns.

        What runs may finish for a while, is then asked to stop, and is killed at last. No attempt
        is charged for it. Said again, it changes nothing.
        """
        if self._leaving is None:
            log.info("worker.leaving", worker=self.name, reason=reason, grace_s=grace_s)
            self._leaving = asyncio.ensure_future(self._leave(grace_s, reason))

    async def drain(self, grace_s: float) -> None:
        """Leave, and return when this has ended."""
        self.leave(grace_s)
        await self._ended.wait()

    async def _leave(self, grace_s: float, reason: str) -> None:
        executor = self._executor
        executor.drain()
        self._news.set()
        if await self._ends_within(grace_s * FINISH_PART):
            return
        for token in list(executor.held):
            executor.stop(token, reason, within_s=grace_s * STOP_PART)
        if await self._ends_within(grace_s * (1 - FINISH_PART) + CONFIRM_S):
            return
        log.error("worker.left_unheard", worker=self.name, unconfirmed=len(executor.held))
        self.stop()

    async def _ends_within(self, limit_s: float) -> bool:
        try:
            await asyncio.wait_for(self._ended.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """End `run` now. What runs is killed; the manager takes it for a lost worker."""
        self._stopping.set()

    # --- the exchange -------------------------------------------------------------------------

    async def _talk(self) -> None:
        pause_s = RETRY_MIN_S
        while not self._done():
            began_s = time.monotonic()
            try:
                heard = await self._round()
            except Exception as error:
                # Whatever the carrier raises, it means: not known to be durable. Say it all again.
                log.warning("worker.exchange_failed", error=str(error), next_try_s=pause_s)
                self._away_since_s = self._away_since_s or began_s
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(RETRY_MAX_S, pause_s * 2)
                continue
            pause_s, self._away_since_s = RETRY_MIN_S, None
            if not heard and time.monotonic() - began_s < QUICK_S:
                await asyncio.sleep(PACE_S)

    def _done(self) -> bool:
        executor = self._executor
        if executor.draining and not executor.held:
            return True
        if self._away_since_s is None:
            return False
        away_s = time.monotonic() - self._away_since_s
        limit_s = self._times.orphan_s * (ORPHAN_FACTOR if executor.ended else 1)
        if away_s > limit_s and executor.idle:
            log.error("worker.orphaned", away_s=round(away_s), next="it ends itself")
            return True
        return False

    async def _round(self) -> bool:
        """Call until a call that was not overtaken is answered; return whether it said anything.

        A report without outcomes may be parked by the manager. When there is news meanwhile, or
        a heartbeat is due, the next report goes out at once and releases it.
        """
        calls: list[asyncio.Task[bool]] = []
        try:
            while True:
                call, carried = self._call()
                calls.append(call)
                if len(calls) > 1:
                    await calls.pop(0)
                if carried:
                    await call
                    return True
                news = asyncio.ensure_future(self._worth_telling())
                try:
                    await asyncio.wait(
                        {call, news},
                        timeout=self._times.heartbeat_s,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    news.cancel()
                if call.done():
                    return call.result()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _worth_telling(self) -> None:
        """Return once a report would say something that the last one did not."""
        while True:
            self._news.clear()
            executor = self._executor
            if executor.ended or executor.progress:
                return
            if not self._told_hungry and any(executor.appetite()):
                return
            if not self._told_started.issuperset(executor.started()):
                return
            await self._news.wait()

    def _call(self) -> tuple["asyncio.Task[bool]", bool]:
        report = self._report()
        return asyncio.ensure_future(self._exchange(report)), bool(report.outcomes)

    def _report(self) -> Report:
        executor = self._executor
        self._number += 1
        free, prefetch = executor.appetite()
        started = executor.started()
        progress, executor.progress = list(executor.progress.values()), {}
        self._told_started = set(started)
        self._told_hungry = bool(free or prefetch)
        return Report(
            worker=self.name,
            number=self._number,
            applied=self._applied,
            epoch=self._epoch,
            pool=self.pool,
            queues=self.queues,
            free=free,
            prefetch=prefetch,
            held=list(executor.held),
            started=started,
            outcomes=list(executor.ended.values()),
            progress=progress,
            node=self._node,
            pid=os.getpid(),
            draining=executor.draining,
            code={} if executor.ended else executor.types(),
        )

    async def _exchange(self, report: Report) -> bool:
        """Make one call and apply its orders; return whether there were any."""
        async with asyncio.timeout(self._times.call_s):
            orders = decode_orders(await self._manager.exchange(encode(report)))
        return self._apply(orders, report)

    def _apply(self, orders: Orders, report: Report) -> bool:
        if orders.epoch < self._epoch:
            raise StaleManager(orders.epoch, self._epoch)
        if orders.epoch > self._epoch:
            self._epoch, self._applied = orders.epoch, 0
            self._numbers.clear()
        executor = self._executor
        executor.confirm([outcome.token for outcome in report.outcomes])
        if orders.number:  # 0: what stands in it may be said any number of times
            if orders.number in self._numbers:
                return False
            self._numbers.append(orders.number)
            self._applied = max(self._applied, orders.number)
        executor.drop(orders.drop)
        executor.assign(orders.assignments)
        for stop in orders.stops:
            executor.stop(stop.token, stop.reason)
        executor.recall(orders.recall)
        if orders.drain and orders.drain_s:
            self.leave(orders.drain_s)
        elif orders.drain and not executor.draining:
            executor.drain()
        return bool(orders.assignments or orders.stops or orders.recall or orders.drop)


class StaleManager(Exception):
    """An older manager answered: it does not know yet that it was replaced."""

    def __init__(self, epoch: int, known: int) -> None:
        super().__init__(epoch, known)

    def __str__(self) -> str:
        return f"orders of epoch {self.args[0]} refused, epoch {self.args[1]} is known"
