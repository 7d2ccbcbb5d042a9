"""The one commit loop: what is decided here becomes durable in order, or nothing leaves.

Rule 1: `run` decides and evolves with no await between, and puts the events into the open batch.
Rule 2: one write is in flight at a time; whatever gathers meanwhile is the next batch, so load
makes batches bigger rather than more. Rule 3: nothing leaves the manager before `barrier()`:
everything its decision could have seen is durable then, also for a command that had no event.
Rule 4: a write in doubt is repeated with the same bytes until it is settled. Rule 5: a manager
that was fenced, or finds its journal corrupt, ends its process: memory never outlives the journal.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog

from cluster.fold import fold
from cluster.queue import commands as c
from cluster.queue.engine import decide, evolve_all
from cluster.queue.events import Event, to_columns
from cluster.queue.model import State
from cluster.queue.rules import Rules
from cluster.store.journal import Fenced, Journal, Prepared
from cluster.store.segment import Rows, SegmentHeader
from cluster.store.snapshot import Snapshots
from jobs.errors import DraymanError, Unavailable

__all__ = ["Clock", "CommitLog", "Offload"]

log = structlog.get_logger(__name__)

#: Runs blocking work of the store elsewhere than on the loop. The simulation replaces it.
Offload = Callable[..., Awaitable[Any]]

#: Events that may wait for a store in trouble before new work is refused.
BACKLOG_MAX = 50_000
#: How long a write may be in doubt before new work is refused.
STUCK_S = 1.0
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0


class Clock(Protocol):
    """Both kinds of time, and waiting."""

    def wall(self) -> float:
        """Return epoch seconds, UTC."""

    def monotonic(self) -> float:
        """Return seconds that never jump."""

    async def sleep(self, delay_s: float) -> None:
        """Wait."""


class _Batch:
    """Events that become durable together."""

    __slots__ = ("ats", "done", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ats: list[float] = []
        self.done = asyncio.Event()


class _Write:
    """One segment on its way to the store; called again, it writes the same bytes again."""

    def __init__(self, journal: Journal, header: SegmentHeader, batch: _Batch) -> None:
        self._journal, self._header, self._batch = journal, header, batch
        self._prepared: Prepared | None = None

    def __call__(self) -> int:
        """Make the segment durable and return its size. Blocks; raises what the journal raises."""
        if self._prepared is None:
            header, batch = self._header, self._batch
            numbers = list(range(header.first_seq, header.first_seq + header.rows))
            rows = Rows(numbers, batch.ats, *to_columns(batch.events))
            self._prepared = self._journal.prepare(header, rows)
        self._journal.commit(self._prepared)
        return len(self._prepared.data)


class CommitLog:
    """State, and the journal that it can be rebuilt from."""

    def __init__(
        self,
        journal: Journal,
        snapshots: Snapshots,
        journal_id: str,
        state: State,
        rules: Rules,
        *,
        clock: Clock,
        offload: Offload,
        nonce: Callable[[], str],
        on_fatal: Callable[[DraymanError], None],
        linger_s: float = 0.0,
    ) -> None:
        self.state = state
        self.rules = rules
        #: Number of the last segment written or read, and of the last a snapshot was read of.
        self.number = 0
        self.base = 0
        #: Number of the last event that is durable.
        self.durable = 0
        #: Called with events once they are durable: the number of the first, all, their moments.
        self.on_durable: Callable[[int, list[Event], list[float]], None] | None = None
        #: The same, of whoever makes traces.
        self.trace: Callable[[list[Event], list[float]], None] | None = None
        #: Bytes written in this life.
        self.bytes_written = 0
        self._journal, self._snapshots, self._journal_id = journal, snapshots, journal_id
        self.clock = self._clock = clock
        self._offload, self._nonce = offload, nonce
        self._on_fatal, self._linger_s = on_fatal, linger_s
        self._open = _Batch()
        self._writing: _Batch | None = None
        self._wake = asyncio.Event()
        self._in_doubt_since: float | None = None
        #: What `now` said last, and when that was.
        self._told_at, self._told_monotonic = 0.0, clock.monotonic()

    # --- deciding -----------------------------------------------------------------------------

    def now(self) -> float:
        """Return the moment of the next event: never before the last one's.

        A wall clock that was set back does not stop time, or whatever waits for a moment would wait
        until the clock has caught up: time goes on at half its pace until then.
        """
        monotonic = self._clock.monotonic()
        crept = self._told_at + (monotonic - self._told_monotonic) / 2
        self._told_at = max(self._clock.wall(), crept, self.state.at)
        self._told_monotonic = monotonic
        return max(round(self._told_at, 6), self.state.at)

    def run(self, command: c.Command, now: float | None = None) -> list[Event]:
        """Decide `command`, evolve by it and queue its events for the next commit.

        Nothing is durable on return: await `barrier()` before anything leaves. `now` is what
        `now()` returned, for many commands at one moment. Raises what `decide` raises.
        """
        if now is None:
            now = self.now()
        events = decide(self.state, self.rules, command, now)
        if events:
            self._apply(events, now)
        # What follows for planned jobs is part of it. Also if nothing came of the command itself:
        # newer rules may see something to do in a journal that older ones wrote.
        while self.state.moving or self.state.opening:
            self._apply(decide(self.state, self.rules, c.Advance(), now), now)
        return events

    def record(self, event: Event) -> None:
        """Add an event that no rule decides (a batch's mark)."""
        self._apply([event], self.now())

    def _apply(self, events: list[Event], now: float) -> None:
        batch = self._open
        try:
            evolve_all(self.state, events, now)
        except Exception as error:
            # Nothing but a replay brings state and journal together again.
            self._on_fatal(Unavailable(f"an event could not be applied: {error!r}"))
            raise
        if not batch.events:
            self._wake.set()
        batch.events += events
        batch.ats += [now] * len(events)

    async def barrier(self) -> None:
        """Return once everything decided so far is durable."""
        batch = self._open if self._open.events else self._writing
        if batch is not None:
            await batch.done.wait()

    async def prove(self) -> None:
        """Return if no other manager has claimed the journal; else this one is told to end.

        For what cannot be taken back and is no commit, such as the kill of a worker. Raises Fenced,
        or Unavailable while the store cannot say.
        """
        number = self.number + 1
        epoch = await self._offload(self._journal.epoch_of, number)
        if epoch is not None and epoch != self.state.epoch:
            fenced = Fenced(number, epoch)
            self._on_fatal(fenced)
            raise fenced

    def check_writable(self) -> None:
        """Raise Unavailable while the journal cannot be written, before memory outgrows it."""
        stuck = self._in_doubt_since
        if stuck is not None and self._clock.monotonic() - stuck > STUCK_S:
            raise Unavailable("the journal cannot be written now", 2.0)
        if len(self._open.events) > BACKLOG_MAX:
            raise Unavailable("the journal is behind", 1.0)

    # --- writing ------------------------------------------------------------------------------

    async def replay(self) -> None:
        """Rebuild the state from the newest snapshot and what the journal holds after it."""
        await self._offload(self._replay)

    def _replay(self) -> None:
        folded = fold(self._journal, self._snapshots, state=self.state)
        self.number, self.base = folded.number, folded.base
        self.durable = self.state.seq

    async def claim(self, event_of: Callable[[int], Event]) -> None:
        """Take the next segment with `event_of(number)`; older managers are fenced from then on.

        Raises Fenced if someone else took it first.
        """
        number = self.number + 1
        self._apply([event_of(number)], self.now())
        batch, self._open = self._open, _Batch()
        self._wake.clear()
        await self._commit(batch, epoch=number)
        batch.done.set()

    async def write_forever(self) -> None:
        """Commit batch after batch until cancelled or fenced."""
        while True:
            await self._wake.wait()
            if self._linger_s:
                await self._clock.sleep(self._linger_s)
            self._wake.clear()
            batch, self._open = self._open, _Batch()
            self._writing = batch
            try:
                await self._commit(batch, epoch=self.state.epoch)
            except DraymanError as error:
                self._on_fatal(error)
                return
            except Exception as error:
                # Whatever it is, nothing will be committed any more: better a new manager.
                self._on_fatal(Unavailable(f"the commit loop failed: {error!r}"))
                raise
            self._writing = None
            batch.done.set()
            if not self._open.events:
                await self._get_ready()

    async def _get_ready(self) -> None:
        try:
            await self._offload(self._journal.get_ready)
        except (DraymanError, OSError) as error:
            log.debug("journal_not_ready", error=str(error))  # the next write will tell

    async def _commit(self, batch: _Batch, *, epoch: int) -> None:
        count = len(batch.events)
        # What gathered since belongs to the next batch, but is already in the state's count.
        first = self.state.seq - len(self._open.events) - count + 1
        header = SegmentHeader(
            number=self.number + 1,
            epoch=epoch,
            nonce=self._nonce(),
            journal_id=self._journal_id,
            first_seq=first,
            rows=count,
        )
        write = _Write(self._journal, header, batch)
        wait_s = RETRY_FIRST_S
        while True:
            try:
                size = await self._offload(write)
            except (Unavailable, OSError) as error:
                if self._in_doubt_since is None:
                    self._in_doubt_since = self._clock.monotonic()
                log.warning("journal_write_in_doubt", segment=header.number, error=str(error))
                await self._clock.sleep(wait_s)
                wait_s = min(RETRY_MAX_S, wait_s * 2)
                continue
            self._in_doubt_since = None
            self.number, self.durable = header.number, first + count - 1
            self.bytes_written += size
            if self.on_durable is not None:
                self.on_durable(first, batch.events, batch.ats)
            if self.trace is not None:
                self.trace(batch.events, batch.ats)
            return
