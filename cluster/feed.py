"""What happens, told to those who watch: which events are public, and who is to get them.

A replica subscribes for all of its watchers: it says which jobs they watch, or which kinds of jobs,
and asks again and again what happened (a long poll). Rule 1: nothing is told before it is durable,
so no number that was told can ever mean something else. Rule 2: while nobody subscribes this costs
nothing; of a job that nobody watches an event costs one look-up. Rule 3: what a subscriber did not
confirm is kept, up to `OUTBOX_MAX` messages; beyond that it is told up to where it has to read the
journal itself. Rule 4: all of this is memory only. A manager that does not know a subscriber says
so, and is told everything anew.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from cluster.commit import Clock, CommitLog
from cluster.protocol import Progress
from cluster.queue import events as e
from cluster.queue.engine import job_status
from cluster.queue.model import Job
from cluster.queue.plan import OVER
from cluster.views import JobView, ProgressView, StepView
from jobs.errors import NotFound

__all__ = [
    "LAST",
    "POLL_S",
    "Facts",
    "Feed",
    "Filter",
    "Message",
    "Told",
    "Watch",
    "Watched",
    "message_of",
]

log = structlog.get_logger(__name__)

#: How long a question is held while there is nothing to tell: less than proxies wait.
POLL_S = 20.0
#: Messages kept for a subscriber that does not fetch them.
OUTBOX_MAX = 20_000
#: Events a second that are held against filters, which costs some microseconds each, and at most
#: so many at once. What comes beyond is told to nobody by a filter.
LOOKS_A_SECOND, LOOKS_MAX = 20_000, 20_000
#: One that has not asked for so long is gone.
LAPSE_S = 60.0
#: Between two words of a job's progress.
PROGRESS_S = 0.25
#: The last second that a datetime can be.
MOMENT_MAX = 253_402_300_799.0
#: Characters of an error that are told; the job's own page has all of them.
ERROR_MAX = 500
#: Steps that are told with a job's progress.
STEPS_MAX = 20

_encode = msgspec.json.Encoder().encode


# --- what travels -----------------------------------------------------------------------------


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """What is true of a job in each of its events."""

    tenant: str
    type: str
    queue: str
    #: It has steps: what happens to its tasks is not what happens to it.
    planned: bool
    #: How it ended, and with which event; as long as it is over.
    status: str = ""
    finished_seq: int = 0
    #: Told where somebody asks for jobs by their labels.
    labels: dict[str, str] = {}


class Filter(msgspec.Struct, frozen=True, array_like=True):
    """Whose events are wanted; None: any."""

    tenant: str | None = None
    type: str | None = None
    queue: str | None = None
    status: str | None = None
    label: tuple[str, str] | None = None

    def takes(self, status: str | None, facts: Facts) -> bool:
        """Whether an event that leaves such a job so is wanted."""
        return (
            (self.tenant is None or facts.tenant == self.tenant)
            and (self.type is None or facts.type == self.type)
            and (self.queue is None or facts.queue == self.queue)
            and (self.status is None or status == self.status)
            and (self.label is None or facts.labels.get(self.label[0]) == self.label[1])
        )


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One public event, as its watchers get it."""

    seq: int
    job_id: str
    type: str
    status: str | None
    #: Of a chunk, which is told to those alone who want to know of single tasks.
    is_chunk: bool
    facts: Facts
    #: All of it as JSON.
    data: msgspec.Raw


class Told(msgspec.Struct, frozen=True, array_like=True):
    """How far a job says it is. It has no number, as it is in no journal."""

    job_id: str
    data: msgspec.Raw


class Watch(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a replica watches, and what it wants to know at once."""

    #: Random name of this subscription; empty: there is none, only a question.
    subscriber: str = ""
    #: Counts up by one a call; a lower one than seen is out of date.
    number: int = 0
    #: It has every message up to this event.
    after: int = 0
    #: The set of jobs is what it was at version `base`, with and without these; 0: these are all.
    base: int = 0
    version: int = 0
    add: list[str] = []
    drop: list[str] = []
    #: Those of the added whose single chunks are wanted, too.
    chunks: list[str] = []
    filters: list[Filter] = []
    #: Jobs that are to be told as they are now, and those of which the facts are.
    views: list[str] = []
    facts: list[str] = []


class Watched(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened."""

    #: Every event up to this one is durable, and was told as far as it was wanted.
    upto: int
    #: The segment of the journal that holds that event, and the last that is in history.
    segment: int
    compacted_seq: int
    #: Whether the subscription is known; if not, nothing else here is to be heeded.
    is_known: bool = True
    #: What was added is told from after this event on.
    since: int = 0
    #: Messages up to this event were dropped before they were fetched.
    lost: int = 0
    #: What filters take was left out up to this event: there was too much of it.
    left_out: int = 0
    messages: list[Message] = []
    progress: list[Told] = []
    #: The event that what follows is true of. Jobs that are not in memory are left out.
    seq: int = 0
    views: dict[str, JobView] = {}
    facts: dict[str, Facts] = {}


# --- which events are public ------------------------------------------------------------------

#: After these a job does nothing any more, unless an operator revives it.
LAST = frozenset({"job.completed", "job.failed", "job.cancelled"})

#: What else of an event is told, where it has that.
_MORE = ("error", "cause", "retry_at", "reason", "queue")

_PENDING, _PROCESSING = "pending", "processing"

#: What an event is to a job with one task: its public type, and the status it leaves the job in.
_OF_JOB: dict[type[e.Event], tuple[str, str | None]] = {
    e.JobRefused: ("job.failed", "failed"),
    e.TaskReady: ("job.ready", _PENDING),
    e.TaskLeased: ("job.started", _PROCESSING),
    e.TaskSucceeded: ("job.completed", "completed"),
    e.AttemptFailed: ("attempt.failed", _PENDING),
    e.AttemptCrashed: ("attempt.failed", _PENDING),
    e.LeaseReleased: ("attempt.released", _PENDING),
    e.TaskSnoozed: ("attempt.snoozed", _PENDING),
    e.TaskDied: ("job.failed", "failed"),
    e.TaskCancelled: ("job.cancelled", "cancelled"),
    e.StopRequested: ("job.stopping", _PROCESSING),
    e.TaskRedriven: ("job.redriven", _PENDING),
    e.TaskMoved: ("job.moved", None),
    e.JobEdited: ("job.edited", None),
    e.JobPurged: ("job.purged", "failed"),
}
#: What it is to a job with steps, where that is something else.
_OF_PLAN = _OF_JOB | {
    e.TaskReady: ("task.ready", None),
    e.TaskLeased: ("task.started", _PROCESSING),
    e.TaskSucceeded: ("task.succeeded", None),
    e.AttemptFailed: ("attempt.failed", None),
    e.AttemptCrashed: ("attempt.failed", None),
    e.LeaseReleased: ("attempt.released", None),
    e.InputsLost: ("attempt.released", None),
    e.TaskSnoozed: ("attempt.snoozed", None),
    e.TaskDied: ("task.failed", None),
    e.TaskCancelled: ("task.cancelled", None),
    e.StopRequested: ("task.stopping", None),
    e.TaskRedriven: ("task.redriven", None),
    e.TaskMoved: ("task.moved", None),
    e.OutputLost: ("task.output_lost", None),
    e.PlanStopped: ("job.stopping", _PROCESSING),
    e.JobRevived: ("job.redriven", _PENDING),
}


def message_of(seq: int, at: float, event: e.Event, facts: Facts) -> Message | None:
    """Return what watchers are told of an event, or None if that is nobody's business.

    The same for one of memory and for one that was read in the journal; but its queue is the one
    that the job is in by now.
    """
    found = _type_of(seq, at, event, facts)
    return None if found is None else _message(seq, at, event, facts, *found)


def _message(
    seq: int, at: float, event: e.Event, facts: Facts, kind: str, status: str | None
) -> Message:
    told: Any = event
    task_id = _task_of(event, facts)
    data: dict[str, Any] = {
        "type": kind,
        "seq": seq,
        "at": _moment(at),
        "job_id": told.job_id,
        "tenant": facts.tenant,
        "job_type": facts.type,
        "queue": facts.queue,
    }
    if status is not None:
        data["status"] = status
    if task_id is not None:
        data["task_id"] = task_id
    if isinstance(event, e.StepEnded):
        data["step"] = event.step
    if attempt := getattr(event, "attempt", None):
        data["attempt"] = attempt
    for name in _MORE:
        if value := getattr(event, name, None):
            data[name] = _moment(value) if name == "retry_at" else value[:ERROR_MAX]
    if isinstance(event, e.InputsLost):
        data["cause"] = "inputs lost"
    is_chunk = task_id is not None and _is_chunk(task_id)
    return Message(seq, told.job_id, kind, status, is_chunk, facts, msgspec.Raw(_encode(data)))


def _task_of(event: e.Event, facts: Facts) -> str | None:
    return getattr(event, "task_id", None) if facts.planned else None


def _is_chunk(task_id: str) -> bool:
    # No step has a name that begins with a digit.
    return task_id.rpartition(".")[2].isdigit()


def _type_of(seq: int, at: float, event: e.Event, facts: Facts) -> tuple[str, str | None] | None:
    if isinstance(event, e.JobSubmitted):
        run_at = event.spec.run_at
        return "job.submitted", "scheduled" if run_at is not None and run_at > at else _PENDING
    if isinstance(event, e.JobEnded):
        # Only a failed one goes on after its end.
        status = "cancelled" if event.reason in OVER else "failed"
        status = facts.status if facts.finished_seq == seq else status
        return f"job.{status}", status
    if isinstance(event, e.StepEnded):
        return f"step.{event.state}", _PROCESSING
    return (_OF_PLAN if facts.planned else _OF_JOB).get(type(event))


def _moment(at: float) -> str:
    moment = datetime.fromtimestamp(min(at, MOMENT_MAX), UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


# --- who gets them ----------------------------------------------------------------------------


class _Subscription:
    """What one replica watches, and what it did not fetch yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = self.version = 0
        #: Jobs, and whether their chunks are wanted, too.
        self.jobs: dict[str, bool] = {}
        self.filters: list[Filter] = []
        self.outbox: deque[Message] = deque()
        self.since = self.lost = self.left_out = 0
        #: Jobs of which progress is to be told.
        self.moved: dict[str, None] = {}
        self.asked_at = self.told_at = 0.0
        #: Set when a parked call is to be answered.
        self.woken = asyncio.Event()

    def put(self, message: Message) -> None:
        """Keep a message until it is fetched."""
        self.outbox.append(message)
        if len(self.outbox) > OUTBOX_MAX:
            self.drop(message.seq)
        self.woken.set()

    def drop(self, upto: int) -> None:
        """Forget everything up to this event: it is to be read in the journal."""
        self.lost = upto
        self.outbox.clear()
        self.woken.set()

    def confirm(self, after: int) -> None:
        """Forget what has arrived."""
        while self.outbox and self.outbox[0].seq <= after:
            self.outbox.popleft()
        if self.lost <= after:
            self.lost = 0
        if self.left_out <= after:
            self.left_out = 0


class Feed:
    """The subscriptions of one manager."""

    def __init__(
        self,
        commit: CommitLog,
        *,
        view: Callable[[str], JobView],
        progress: Callable[[Job], tuple[ProgressView | None, list[StepView]]],
    ) -> None:
        self._commit, self._state = commit, commit.state
        self._clock: Clock = commit.clock
        self._view, self._progress = view, progress
        self._subscriptions: dict[str, _Subscription] = {}
        #: Who watches a job.
        self._watching: dict[str, list[_Subscription]] = {}
        self._with_filters: list[_Subscription] = []
        self._needs_labels = False
        #: Events that may be held against filters yet.
        self._looks, self._looked_at = float(LOOKS_MAX), commit.clock.monotonic()

    # --- what the manager says ----------------------------------------------------------------

    def publish(self, first: int, events: Sequence[e.Event], ats: Sequence[float]) -> None:
        """Tell those who watch of events, numbered from `first`, that are durable now."""
        watching, everything = self._watching, bool(self._with_filters)
        if everything and not self._may_look(len(events)):
            everything = False
            for one in self._with_filters:
                one.left_out = first + len(events) - 1
                one.woken.set()
        try:
            for place, event in enumerate(events):
                if everything or getattr(event, "job_id", None) in watching:
                    self._tell(first + place, ats[place], event, everything)
        except Exception:
            # A defect of ours must not end the commit loop. Whoever watches reads the journal.
            log.exception("events_not_told", first=first, count=len(events))
            for one in self._subscriptions.values():
                one.drop(first + len(events) - 1)

    def moved(self, progress: Iterable[Progress]) -> None:
        """Note that attempts said how far they are."""
        if not self._watching:
            return
        leases = self._state.leases
        for one in progress:
            task = leases.get(one.token)
            if task is not None:
                self._note_moved(task.job.id)

    def tick(self) -> None:
        """Let progress go out, and forget subscribers that are gone."""
        now = self._clock.monotonic()
        for one in list(self._subscriptions.values()):
            if one.moved and now - one.told_at >= PROGRESS_S:
                one.woken.set()
            if now - one.asked_at > LAPSE_S:
                self._forget(one)

    def _may_look(self, count: int) -> bool:
        """Whether so many events more may be held against filters now."""
        now = self._clock.monotonic()
        self._looks += (now - self._looked_at) * LOOKS_A_SECOND
        self._looks, self._looked_at = min(self._looks, LOOKS_MAX), now
        if count > self._looks:
            return False
        self._looks -= count
        return True

    def _tell(self, seq: int, at: float, event: e.Event, everything: bool) -> None:
        job_id = getattr(event, "job_id", None)
        job = self._state.jobs.get(job_id) if job_id is not None else None
        if job is None:
            return
        facts = _facts(job, labels=self._needs_labels)
        found = _type_of(seq, at, event, facts)
        if found is None:
            return
        task_id = _task_of(event, facts)
        is_chunk = task_id is not None and _is_chunk(task_id)
        if is_chunk:
            self._note_moved(job.id)
        watching = [
            one for one in self._watching.get(job.id, ()) if one.jobs[job.id] or not is_chunk
        ]
        if everything and not is_chunk:
            watching += [
                one
                for one in self._with_filters
                if job.id not in one.jobs and any(f.takes(found[1], facts) for f in one.filters)
            ]
        if watching:
            message = _message(seq, at, event, facts, *found)
            for one in watching:
                one.put(message)

    def _note_moved(self, job_id: str) -> None:
        for one in self._watching.get(job_id, ()):
            one.moved[job_id] = None

    # --- what a subscriber asks ---------------------------------------------------------------

    async def answer(self, watch: Watch) -> Watched:
        """Return what happened, as soon as something did or something else is asked."""
        one = None
        if watch.subscriber:
            one = self._subscriptions.get(watch.subscriber)
            if watch.base == 0 and (one is None or watch.number > one.number):
                one = self._begin(watch, one)
            elif one is None or watch.number <= one.number or not self._change(one, watch):
                return self._watched(is_known=False)
            one.number = watch.number
            one.woken.set()  # an earlier call that is still parked is not waited for any more
            one.woken = asyncio.Event()
            one.asked_at = self._clock.monotonic()
            one.confirm(watch.after)
        seq = self._state.seq
        views = {job_id: view for job_id in watch.views if (view := self._known(job_id))}
        facts = {
            job_id: _facts(job, labels=True)
            for job_id in watch.facts
            if (job := self._state.jobs.get(job_id)) is not None
        }
        progress: list[Told] = []
        only_waits = watch.base and watch.version == watch.base
        if one is not None and only_waits and not (one.outbox or one.lost or one.left_out):
            await self._park(one)
            if one.number != watch.number:
                return self._watched(is_known=False)
        if one is not None:
            progress = self._progress_of(one)
        if views or facts or progress:
            await self._commit.barrier()  # they may say what is not durable yet
        if one is None:
            return self._watched(seq=seq, views=views, facts=facts)
        return self._watched(
            since=one.since,
            lost=one.lost,
            left_out=one.left_out,
            messages=list(one.outbox),
            progress=progress,
            seq=seq,
            views=views,
            facts=facts,
        )

    def _watched(self, **more: Any) -> Watched:
        commit = self._commit
        return Watched(commit.durable, commit.number, self._state.compacted_seq, **more)

    async def _park(self, one: _Subscription) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(one.woken.wait(), POLL_S)

    def _begin(self, watch: Watch, before: _Subscription | None) -> _Subscription:
        if before is not None:
            before.woken.set()
            self._forget(before)
        one = _Subscription(watch.subscriber)
        one.version = watch.version
        if watch.add or watch.filters:
            self._subscriptions[one.name] = one
            self._commit.on_durable = self.publish
        self._watch(one, watch)
        return one

    def _change(self, one: _Subscription, watch: Watch) -> bool:
        """Change what is watched; False if that is not what it is thought to be."""
        if watch.base != one.version:
            return False
        if watch.version != watch.base:
            one.version = watch.version
            self._watch(one, watch)
        return True

    def _watch(self, one: _Subscription, watch: Watch) -> None:
        one.since = self._commit.durable
        jobs = self._state.jobs
        for job_id in watch.add:
            # One that is over for good, or unknown, is none of ours: nothing will happen to it.
            if job_id in jobs and job_id not in one.jobs:
                one.jobs[job_id] = False
                self._watching.setdefault(job_id, []).append(one)
        for job_id in watch.chunks:
            if job_id in one.jobs:
                one.jobs[job_id] = True
        for job_id in watch.drop:
            self._unwatch(one, job_id)
        one.filters = watch.filters
        self._look_at_filters()

    def _unwatch(self, one: _Subscription, job_id: str) -> None:
        if one.jobs.pop(job_id, None) is None:
            return
        one.moved.pop(job_id, None)
        watching = self._watching[job_id]
        watching.remove(one)
        if not watching:
            del self._watching[job_id]

    def _forget(self, one: _Subscription) -> None:
        for job_id in list(one.jobs):
            self._unwatch(one, job_id)
        self._subscriptions.pop(one.name, None)
        self._look_at_filters()
        if not self._subscriptions:
            self._commit.on_durable = None

    def _look_at_filters(self) -> None:
        self._with_filters = [one for one in self._subscriptions.values() if one.filters]
        wanted = [one for subscription in self._with_filters for one in subscription.filters]
        # They stand in the job's spec, which is decoded for it.
        self._needs_labels = any(one.label is not None for one in wanted)

    def _known(self, job_id: str) -> JobView | None:
        try:
            return self._view(job_id)
        except NotFound:  # not in memory: whoever asks looks into history
            return None

    def _progress_of(self, one: _Subscription) -> list[Told]:
        now = self._clock.monotonic()
        if not one.moved or now - one.told_at < PROGRESS_S:
            return []
        one.told_at = now
        moved, one.moved = one.moved, {}
        found = []
        for job_id in moved:
            job = self._state.jobs.get(job_id)
            if job is not None and not job.finished_at and (told := self._told(job)) is not None:
                found.append(told)
        return found

    def _told(self, job: Job) -> Told | None:
        progress, steps = self._progress(job)
        if progress is None:  # what said so has ended since
            return None
        data: dict[str, Any] = {
            "type": "progress",
            "at": _moment(self._commit.now()),
            "job_id": job.id,
            "fraction": progress.fraction,
            "message": progress.message,
        }
        running = [step for step in steps if step.state == "running" and step.chunks is not None]
        if running:
            data["steps"] = [
                {
                    "name": step.name,
                    "chunks": step.chunks,
                    "done": step.done,
                    "running": step.running,
                    "failed": step.failed,
                }
                for step in running[:STEPS_MAX]
            ]
        return Told(job.id, msgspec.Raw(_encode(data)))


def _facts(job: Job, *, labels: bool = False) -> Facts:
    return Facts(
        job.tenant,
        job.type,
        job.queue,
        job.plan is not None,
        job_status(job) if job.finished_at else "",
        job.finished_seq if job.finished_at else 0,
        job.spec.labels if labels else {},
    )
