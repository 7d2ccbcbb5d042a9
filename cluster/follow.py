"""All who watch through one replica, on one subscription to the manager.

Rule 1: a watcher gets every event of what it watches once, in the order of their numbers, and where
it cannot, it is told so by a `Begin`. Rule 2: what the manager does not have any more (it was
restarted, or the watcher was away) is read in the journal, by one reading for all who need it.
Rule 3: a watcher that is slow to take what came is let go once `BUFFER_MAX` messages wait for it;
it may come again with the last number it saw. Rule 4: without watchers nothing is asked.

A watcher begins with its job as it is after some event, and goes on with what follows; or it names
the last event it saw, and goes on from there. Meanwhile what is told anew is held back for it.
"""

import asyncio
import contextlib
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

import structlog
from msgspec.structs import replace

from cluster.commit import Offload
from cluster.feed import (
    LAST,
    POLL_S,
    Facts,
    Filter,
    Message,
    Told,
    Watch,
    Watched,
    message_of,
)
from cluster.fold import read_event
from cluster.queue.events import Event, JobEnded
from cluster.store.journal import Journal
from cluster.store.segment import Rows, SegmentHeader
from cluster.views import JobView
from jobs.errors import Corrupt, DraymanError, NotFound, Overloaded, Unavailable

__all__ = ["Begin", "EventsPort", "Follower", "Watcher", "read_events"]

log = structlog.get_logger(__name__)

#: Messages that may wait for a watcher to take them.
BUFFER_MAX = 1_000
#: Watchers of one replica: more than the edge has connections.
WATCHERS_MAX = 10_000
#: Watchers that begin with one answer: when an edge is reloaded, all of them come again at once.
JOIN_MAX = 100
#: Messages that are made up for when a watcher comes again; beyond, it begins anew.
RESUME_MAX = 10_000
#: Events that are looked through for one that watches many jobs.
LOOK_MAX = 50_000
#: Between two questions that were both answered with something: what comes meanwhile comes at once.
PACE_S = 0.01
#: Between tries while the manager is away, and when it is not known what is wrong.
RETRY_S, RETRY_ODD_S = 0.25, 2.0
#: How often it is looked whether a job that waits in intake is taken over.
TAKEN_IN_S = 0.5
#: How often segments may go while they are read, before the reader gives up.
TRIES = 5

#: Number, moment, and what happened.
Found = tuple[int, float, Event]


class EventsPort(Protocol):
    """The gateway, as far as it is needed here."""

    async def events(self, watch: Watch, timeout_s: float) -> Watched:
        """Return what happened, once something did or the time is over."""

    async def job(self, job_id: str, tenant: str | None) -> JobView:
        """Return a job. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a watcher begins: it gets all that comes after event `seq`, and nothing before it."""

    #: `reset`: it wanted to go on from an earlier event and cannot, so it may have missed some.
    kind: Literal["job", "reset"]
    seq: int
    #: The job as it is after that event; None for one that watches many.
    view: JobView | None = None


@dataclass(frozen=True, slots=True)
class _Joined:
    """What the manager said when it began to tell of what a watcher watches."""

    answer: Watched
    view: JobView | None
    facts: Facts | None


class Watcher:
    """One who watches a job, or all that a filter takes. Iterate by `next`, then `close`."""

    def __init__(
        self,
        follower: "Follower",
        *,
        job_id: str = "",
        wanted: Filter,
        after: int | None,
        chunks: bool = False,
    ) -> None:
        self._follower = follower
        self.job_id, self.wanted, self.chunks = job_id, wanted, chunks
        #: The last event it was told of, or saw before it came.
        self.after = after
        #: It gets nothing more than what waits for it.
        self.is_over = False
        #: It is over because it did not take what came.
        self.is_behind = False
        #: What was told since it came, until it has begun.
        self._held: list[Message] | None = []
        self._items: deque[Begin | Message] = deque()
        self._room = BUFFER_MAX
        self._progress: Told | None = None
        self._news = asyncio.Event()
        self.joined: asyncio.Future[_Joined] = asyncio.get_running_loop().create_future()
        self.beginning: asyncio.Task[None]

    async def begun(self, within_s: float) -> None:
        """Return once it has begun, or the time is over: while the manager is away nobody knows.

        Raises NotFound where there is nothing to watch.
        """
        await asyncio.wait([self.beginning], timeout=within_s)
        if self.beginning.done():
            await self.beginning

    async def next(self) -> list[Begin | Message | Told]:
        """Return what came, once something did; nothing: it is over."""
        while not (self._items or self._progress or self.is_over):
            self._news.clear()
            await self._news.wait()
        found: list[Begin | Message | Told] = [*self._items]
        self._items.clear()
        self._room = BUFFER_MAX
        if self._progress is not None:
            found.append(self._progress)
            self._progress = None
        return found

    @property
    def has_news(self) -> bool:
        """Whether something waits to be taken."""
        return bool(self._items)

    def close(self) -> None:
        """Let go of it. Safe to repeat."""
        self.end()
        self._follower.leave(self)

    # --- what the follower says ---------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """Give it a message, in order; one that it has changes nothing."""
        if self.is_over:
            return
        if self._held is None:
            if self._put(message) and self.job_id and message.type in LAST:
                self.end()
            return
        self._held.append(message)
        if len(self._held) > BUFFER_MAX + RESUME_MAX:
            self.fall_behind()

    def tell(self, progress: Told) -> None:
        """Give it the latest progress in place of any before."""
        if self._held is None and not self.is_over:
            self._progress = progress
            self._news.set()

    def begin(self, first: Begin | None, missed: Iterable[Message] = ()) -> None:
        """Let it begin, anew or with what it missed; then comes what was held back."""
        held, self._held = self._held or [], None
        if first is not None:
            self.after = first.seq
            self._items.append(first)
        missed = [*missed, *held]
        self._room += len(missed)
        last = [message for message in missed if self._put(message)][-1:]
        if self.job_id and last and last[0].type in LAST:
            self.end()
        self._news.set()

    def end(self) -> None:
        """Give it nothing more."""
        self.is_over = True
        self._progress = None
        self._news.set()

    def fall_behind(self) -> None:
        """Let go of one that cannot be told everything; it may come again."""
        self._items.clear()
        self.is_behind = True
        self.end()

    def _put(self, message: Message) -> bool:
        """Let a message wait for it; return whether it was new."""
        if self.is_over or message.seq <= (self.after or 0):
            return False
        if len(self._items) >= self._room:
            self.fall_behind()
            return False
        self.after = message.seq
        self._items.append(message)
        self._news.set()
        return True


class Follower:
    """The watchers of one replica. Lives on one event loop."""

    def __init__(
        self,
        gateway: EventsPort,
        journal: Journal,
        *,
        name: str,
        sleep: Any = asyncio.sleep,
        offload: Offload = asyncio.to_thread,
    ) -> None:
        self._gateway, self._name = gateway, name
        self._sleep = sleep
        self._reader = _JournalReader(journal, offload)
        self._watchers: set[Watcher] = set()
        self._jobs: dict[str, set[Watcher]] = {}
        self._filtering: set[Watcher] = set()
        #: Those that the manager was not asked for yet, or has not answered.
        self._joining: dict[Watcher, None] = {}
        self._number = 0
        #: Version of what is watched, as the manager knows it; 0: it does not.
        self._version = self._versions = 0
        self._to_add: set[str] = set()
        self._to_drop: set[str] = set()
        self._filters_told: list[Filter] = []
        #: Everything up to this event was told to who watches it.
        self._covered = 0
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    # --- watchers come and go -----------------------------------------------------------------

    def job(
        self, job_id: str, tenant: str | None, after: int | None = None, *, chunks: bool = False
    ) -> Watcher:
        """Begin to watch a job; with `after`, from that event on."""
        watcher = Watcher(
            self, job_id=job_id, wanted=Filter(tenant=tenant), after=after, chunks=chunks
        )
        return self._enter(watcher)

    def all(self, wanted: Filter, after: int | None = None) -> Watcher:
        """Begin to watch every job that the filter takes; with `after`, from that event on."""
        return self._enter(Watcher(self, wanted=wanted, after=after))

    def leave(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        if watcher not in self._watchers:
            return
        self._watchers.discard(watcher)
        self._unlist(watcher)
        watcher.beginning.cancel()
        if not (self._watchers and watcher.job_id):  # a job more that is told of costs nothing
            self._changed.set()

    async def close(self) -> None:
        """Let go of every watcher and of the subscription."""
        for watcher in list(self._watchers):
            watcher.close()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def _enter(self, watcher: Watcher) -> Watcher:
        if len(self._watchers) >= WATCHERS_MAX:
            raise Overloaded("system", f"{WATCHERS_MAX:,} watch through this server", 5.0)
        self._watchers.add(watcher)
        self._list(watcher)
        loop = asyncio.get_running_loop()
        watcher.beginning = loop.create_task(self._begin(watcher))
        watcher.beginning.add_done_callback(lambda task: _has_begun(watcher, task))
        if self._running is None:
            self._running = loop.create_task(self._run())
        return watcher

    def _list(self, watcher: Watcher) -> None:
        if watcher.job_id:
            self._jobs.setdefault(watcher.job_id, set()).add(watcher)
            self._to_add.add(watcher.job_id)
            self._to_drop.discard(watcher.job_id)
        else:
            self._filtering.add(watcher)
        self._joining[watcher] = None
        self._changed.set()

    def _unlist(self, watcher: Watcher) -> None:
        self._joining.pop(watcher, None)
        self._filtering.discard(watcher)
        watching = self._jobs.get(watcher.job_id)
        if watching is not None:
            watching.discard(watcher)
            if not watching:
                del self._jobs[watcher.job_id]
                self._to_add.discard(watcher.job_id)
                # Even if it was not added yet: that may be under way.
                self._to_drop.add(watcher.job_id)

    # --- how one begins -----------------------------------------------------------------------

    async def _begin(self, watcher: Watcher) -> None:
        if not watcher.job_id:
            await self._begin_all(watcher)
            return
        joined, view = await self._find(watcher)
        facts = joined.facts or _facts_of(view)
        missed = await self._missed(watcher, joined, facts)
        if missed is None:
            kind: Literal["job", "reset"] = "job" if watcher.after is None else "reset"
            watcher.begin(Begin(kind, joined.answer.seq, view))
        else:
            watcher.begin(None, missed)
        if view.finished_at is not None and (watcher.after or 0) <= joined.answer.seq:
            watcher.end()  # nothing will follow

    async def _find(self, watcher: Watcher) -> tuple[_Joined, JobView]:
        """Return the job to watch, once the manager tells of it or it is over. NotFound."""
        while True:
            joined = await watcher.joined
            view = joined.view
            if view is None:
                with contextlib.suppress(Unavailable):
                    view = await self._gateway.job(watcher.job_id, watcher.wanted.tenant)
            if view is not None:
                if watcher.wanted.tenant not in (None, view.tenant):
                    raise NotFound("job", watcher.job_id)
                if view.alias_of is None and (joined.view or view.finished_at is not None):
                    return joined, view
            if view is None or view.alias_of is None:
                await self._sleep(TAKEN_IN_S)  # it waits in intake, or the manager is away
            self._unlist(watcher)
            watcher.job_id = (view.alias_of if view is not None else None) or watcher.job_id
            watcher.joined = asyncio.get_running_loop().create_future()
            self._list(watcher)

    async def _missed(
        self, watcher: Watcher, joined: _Joined, facts: Facts
    ) -> list[Message] | None:
        """Return what came since the last event it saw; None if that cannot be told."""
        after, since = watcher.after, joined.answer.since
        if after is None or after > joined.answer.upto:
            return None
        if after >= since:
            return []
        job_id = watcher.job_id
        found = await self._reader.of_job(job_id, after, since, joined.answer.segment)
        if found is None:
            return None
        messages = _messages(found, {job_id: facts})
        missed = [one for one in messages if watcher.chunks or not one.is_chunk]
        return missed if len(missed) <= RESUME_MAX else None

    async def _begin_all(self, watcher: Watcher) -> None:
        answer = (await watcher.joined).answer
        missed = await self._missed_of_all(watcher, answer)
        if missed is None:
            watcher.begin(Begin("reset", answer.since))
        else:
            watcher.begin(None, missed)

    async def _missed_of_all(self, watcher: Watcher, answer: Watched) -> list[Message] | None:
        after, since = watcher.after, answer.since
        # What happened before is of jobs that may have left memory: nobody knows whose they were.
        if after is None or after > answer.upto or after < answer.compacted_seq:
            return None
        if since - after > LOOK_MAX:
            return None
        if after >= since:
            return []
        found = await self._reader.of_all(after, since, answer.segment)
        if found is None:
            return None
        messages = _messages(found, await self._facts(found))
        missed = [one for one in messages if _takes(watcher, one)]
        return missed if len(missed) <= RESUME_MAX else None

    async def _facts(self, found: Sequence[Found]) -> dict[str, Facts]:
        """Return what is to be known of the jobs to which something happened."""
        job_ids = list({job_id for _, _, event in found if (job_id := _job_of(event))})
        answer = await self._gateway.events(Watch(facts=job_ids), 0.0)
        facts = dict(answer.facts)
        for job_id in job_ids:
            if job_id not in facts:
                with contextlib.suppress(NotFound):  # then nobody may be told of it
                    facts[job_id] = _facts_of(await self._gateway.job(job_id, None))
        return facts

    # --- the subscription ---------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                if not self._watchers:
                    await self._unsubscribe()
                    if not self._watchers:
                        break
                await self._exchange()
            except Unavailable:
                self._version = 0
                await self._sleep(RETRY_S)
            except Exception:
                # Whatever it is: nobody else would go on telling those who watch.
                log.exception("events_not_followed", next_try_s=RETRY_ODD_S)
                self._version = 0
                await self._sleep(RETRY_ODD_S)
        self._running = None

    async def _unsubscribe(self) -> None:
        self._number += 1
        self._version = self._covered = 0
        with contextlib.suppress(DraymanError):  # a manager that is away knows of none
            await self._gateway.events(Watch(self._name, self._number), 0.0)

    async def _exchange(self) -> None:
        """Ask once, and pass on what is answered."""
        asked = [*islice(self._joining, JOIN_MAX)]
        watch = self._watch(asked)
        asking = asyncio.ensure_future(self._gateway.events(watch, POLL_S))
        if watch.version == watch.base:
            # Only waits: who comes meanwhile does not wait with it. The next call ends it.
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait([asking, changed], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                asking.cancel()
                raise
            finally:
                changed.cancel()
            if not asking.done():
                asking.add_done_callback(lambda task: task.cancelled() or task.exception())
                return
        answer = await asking
        if not answer.is_known:
            self._version = 0
            return
        self._version = watch.version
        await self._take(watch, answer)
        for watcher in asked:
            if watcher in self._joining:
                del self._joining[watcher]
                job_id = watcher.job_id
                joined = _Joined(answer, answer.views.get(job_id), answer.facts.get(job_id))
                watcher.joined.set_result(joined)
        if answer.messages:
            await self._sleep(PACE_S)

    def _watch(self, asked: Sequence[Watcher]) -> Watch:
        """Return what to ask: with all that is watched, or what has changed of it."""
        self._changed.clear()
        self._number += 1
        filters = list(dict.fromkeys(watcher.wanted for watcher in self._filtering))
        is_whole = not self._version
        new = {watcher.job_id: None for watcher in asked if watcher.job_id}
        # Those that are asked about in any case: it may have come to know them only now.
        add = list(self._jobs if is_whole else self._to_add.union(new))
        drop = [] if is_whole else list(self._to_drop)
        is_changed = bool(is_whole or add or drop or asked or filters != self._filters_told)
        self._to_add.clear()
        self._to_drop.clear()
        self._filters_told = filters
        base = self._version
        if is_changed:
            self._versions += 1
        return Watch(
            self._name,
            self._number,
            self._covered,
            base,
            self._versions if is_changed else base,
            add,
            drop,
            [job_id for job_id in add if any(w.chunks for w in self._jobs[job_id])],
            filters,
            list(new),
            list(new),
        )

    async def _take(self, watch: Watch, answer: Watched) -> None:
        upto = max(answer.lost, answer.since if watch.base == 0 else 0)
        if self._covered and upto > self._covered and len(self._joining) < len(self._watchers):
            await self._fill(upto, answer)
        if answer.left_out > self._covered:
            for watcher in self._filtering.difference(self._joining):
                watcher.fall_behind()
        for message in answer.messages:
            if message.seq > self._covered:
                self._deliver(message)
        for told in answer.progress:
            for watcher in self._jobs.get(told.job_id, ()):
                watcher.tell(told)
        self._covered = max(self._covered, answer.upto)

    async def _fill(self, upto: int, answer: Watched) -> None:
        """Tell everybody what the manager did not."""
        after, segment = self._covered, answer.segment
        if self._filtering and upto - after <= LOOK_MAX:
            found = await self._reader.of_all(after, upto, segment)
        else:
            found = await self._reader.of_jobs(self._jobs, after, upto, segment)
            for watcher in self._filtering:
                watcher.fall_behind()
        if found is None:
            for watcher in self._watchers:
                watcher.fall_behind()
            return
        for message in _messages(found, await self._facts(found)):
            self._deliver(message)
        self._covered = upto

    def _deliver(self, message: Message) -> None:
        for watcher in self._jobs.get(message.job_id, ()):
            if watcher.chunks or not message.is_chunk:
                watcher.deliver(message)
        for watcher in self._filtering:
            if _takes(watcher, message):
                watcher.deliver(message)


def _has_begun(watcher: Watcher, task: "asyncio.Task[None]") -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        if not isinstance(error, DraymanError):
            log.error("watcher_failed", job=watcher.job_id, exc_info=error)
        watcher.end()


def _takes(watcher: Watcher, message: Message) -> bool:
    return not message.is_chunk and watcher.wanted.takes(message.status, message.facts)


def _job_of(event: Event) -> str:
    job_id: str = getattr(event, "job_id", "")
    return job_id


def _facts_of(view: JobView) -> Facts:
    """Return what a view says; not which event was its last."""
    status = view.status if view.finished_at is not None else ""
    planned = bool(view.steps)
    return Facts(view.tenant, view.type, view.queue, planned, status, labels=view.labels)


def _messages(found: Sequence[Found], facts: dict[str, Facts]) -> list[Message]:
    """Return what is told of events that were read in the journal."""
    ends = {event.job_id: seq for seq, _, event in found if isinstance(event, JobEnded)}
    for job_id, seq in ends.items():
        known = facts.get(job_id)
        if known is not None and known.status and not known.finished_seq:
            facts[job_id] = replace(known, finished_seq=seq)
    messages = (
        message_of(seq, at, event, facts[job_id])
        for seq, at, event in found
        if (job_id := _job_of(event)) in facts
    )
    return [message for message in messages if message is not None]


# --- the journal ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reading:
    """Who wants to know what happened to a job after `after`, up to `upto`."""

    job_id: str
    after: int
    upto: int
    segment: int
    answer: "asyncio.Future[list[Found] | None]"


class _JournalReader:
    """Reads the journal's segments, once for all who ask meanwhile."""

    def __init__(self, journal: Journal, offload: Offload) -> None:
        self._journal, self._offload = journal, offload
        self._wanted: list[_Reading] = []
        self._task: asyncio.Task[None] | None = None

    async def of_all(self, after: int, upto: int, segment: int) -> list[Found] | None:
        """Return every event; None if the journal does not reach back that far any more."""
        return await self._read(None, after, upto, segment)

    async def of_jobs(
        self, job_ids: Iterable[str], after: int, upto: int, segment: int
    ) -> list[Found] | None:
        """Return every event of some jobs, or None."""
        return await self._read(frozenset(job_ids), after, upto, segment)

    async def of_job(self, job_id: str, after: int, upto: int, segment: int) -> list[Found] | None:
        """Return every event of one job, or None."""
        loop = asyncio.get_running_loop()
        reading = _Reading(job_id, after, upto, segment, loop.create_future())
        self._wanted.append(reading)
        if self._task is None:
            self._task = loop.create_task(self._read_together())
        return await reading.answer

    async def _read_together(self) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, []
            try:
                begin, found = await self._offload(
                    read_events,
                    self._journal,
                    {one.job_id for one in wanted},
                    min(one.after for one in wanted),
                    max(one.upto for one in wanted),
                    max(one.segment for one in wanted),
                )
            except Exception as error:  # whatever it is, nobody is left waiting
                for one in wanted:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            by_job: dict[str, list[Found]] = defaultdict(list)
            for entry in found:
                by_job[_job_of(entry[2])].append(entry)
            for one in wanted:
                if not one.answer.done():  # it may have left
                    mine = [e for e in by_job[one.job_id] if one.after < e[0] <= one.upto]
                    one.answer.set_result(mine if begin <= one.after + 1 else None)
        self._task = None

    async def _read(
        self, job_ids: Collection[str] | None, after: int, upto: int, segment: int
    ) -> list[Found] | None:
        begin, found = await self._offload(
            read_events, self._journal, job_ids, after, upto, segment
        )
        return found if begin <= after + 1 else None


def read_events(
    journal: Journal, job_ids: Collection[str] | None, after: int, upto: int, last: int
) -> tuple[int, list[Found]]:
    """Return the events of these jobs after `after` up to `upto`, and the first that was looked at.

    `last` is a segment at or behind that of `upto`. What compaction deleted is not there: then the
    first that was looked at is a later one. Blocks. Raises Corrupt and Unavailable.
    """
    for _ in range(TRIES):
        with contextlib.suppress(NotFound):  # deleted since it was listed
            return _read_events(journal, job_ids, after, upto, last)
    raise Unavailable("the journal is being compacted", 1.0)


def _read_events(
    journal: Journal, job_ids: Collection[str] | None, after: int, upto: int, last: int
) -> tuple[int, list[Found]]:
    numbers = journal.numbers_upto(last)
    # Below a compaction the segments of claims are left alone.
    whole = next(
        (at + 1 for at in range(len(numbers) - 2, -1, -1) if numbers[at] != numbers[at + 1] - 1), 0
    )
    numbers = numbers[whole:]
    if not numbers or numbers[-1] != last:
        raise Unavailable(f"segment {last} of the journal is not there", 1.0)
    at = bisect_right(numbers, after + 1, key=lambda number: _first_seq(journal, number))
    first, found = 0, []
    for number, segment in journal.read_each(numbers[max(0, at - 1) :]):
        header, rows = _whole(segment)
        first = first or header.first_seq
        if header.first_seq > upto:
            break
        columns = zip(rows.seq, rows.at, *rows.event_columns, strict=True)
        for seq, moment, *row in columns:
            if after < seq <= upto and (row[1] in job_ids if job_ids is not None else row[1]):
                event = read_event(journal.path(number), seq, tuple(row))
                found.append((seq, moment, event))
    return first, found


def _first_seq(journal: Journal, number: int) -> int:
    [(_, segment)] = journal.read_each([number])
    return _whole(segment)[0].first_seq


def _whole(
    segment: tuple[SegmentHeader, Rows] | Corrupt | NotFound,
) -> tuple[SegmentHeader, Rows]:
    if isinstance(segment, Corrupt | NotFound):
        raise segment
    return segment
