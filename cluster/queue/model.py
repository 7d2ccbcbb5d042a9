"""What the queue remembers: jobs, their tasks, who holds what, and who is next.

Rule 1: only `engine.evolve` writes here. Rule 2: everything can be rebuilt from the journal, so
nothing here depends on the clock, on chance or on the order of a set. Moments are epoch seconds.
"""

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from cluster.queue.spec import JobSpec, decode_spec
from cluster.queue.state import TERMINAL, TaskState

if TYPE_CHECKING:
    from cluster.queue.plan import PlanState

__all__ = [
    "Bucket",
    "Effect",
    "GatewayMarks",
    "Job",
    "KeyIndex",
    "Line",
    "Order",
    "PastAttempt",
    "QueueLimits",
    "Rules",
    "State",
    "Task",
    "Timer",
    "WorkerFacts",
]

# Looked up several times a job, where an attribute of the enum costs as much as the rest.
_READY, _LEASED = TaskState.READY, TaskState.LEASED

#: Batches of one gateway whose replies can still be asked for again: the highest number seen and
#: those just below it. Lower ones are too old to tell from new.
GATEWAY_WINDOW = 1024
#: A gateway silent for so long has ended, and nothing of it is on its way any more.
GATEWAY_FORGOTTEN_S = 48 * 3600.0
#: Stands in a gateway's window for a batch that came through intake.
FOLDED = b""
#: Ids that stand for jobs known before; there are few.
ALIASES_MAX = 100_000
#: Workers of which it is remembered where they ran.
WORKERS_KNOWN_MAX = 10_000
#: Jobs in one block of the order of submission.
ORDER_BLOCK = 1024


class QueueLimits(msgspec.Struct, frozen=True):
    """What one queue bears."""

    #: Unfinished tasks from outside; more are refused with Overloaded.
    depth_max: int = 1_000_000


class Rules(msgspec.Struct, frozen=True):
    """Settings that decide; the same for every command of a manager's life."""

    queues: dict[str, QueueLimits]
    #: Crashes, OOM kills and lost workers a task may survive.
    recoveries_max: int = 3
    #: Uncharged losses (its worker died beside it, a planned stop) before it is looked at.
    interruptions_max: int = 100
    idempotency_keys_max: int = 10_000_000


class PastAttempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """An attempt that ended without success, or was superseded."""

    number: int
    outcome: str
    worker: str
    leased_at: float
    started_at: float
    ended_at: float
    error: str = ""
    cause: str = ""
    log: str = ""


class Effect(msgspec.Struct, frozen=True):
    """A side effect that an attempt claimed, and what came of it."""

    #: Lease under which it was claimed.
    token: int
    #: Recorded JSON, or None while nobody said that it happened.
    value: bytes | None = None


class Task(msgspec.Struct, eq=False, gc=False):
    """The unit of dispatch, leasing and retry."""

    job: "Job"
    #: The queue it waits in.
    line: "Line"
    #: Unique within the job.
    id: str
    state: TaskState
    #: Number of the last attempt leased, from 1; 0 before the first. Never reused once started.
    attempt: int = 0
    #: Attempts charged against `max_attempts`; a redrive starts them anew.
    failures: int = 0
    recoveries: int = 0
    interruptions: int = 0
    #: The current lease's fencing value; 0 when not LEASED.
    token: int = 0
    worker: str = ""
    leased_at: float = 0.0
    #: When the timer moves it on (WAITING, BACKING_OFF).
    due_at: float = 0.0
    #: When it is cancelled unless it runs or ended; 0 for never. A redrive after it lifts it.
    expires_at: float = 0.0
    #: Its ticket in the line (READY); lower goes first within a priority.
    ticket: int = 0
    ready_at: float = 0.0
    #: Why it was asked to stop, while LEASED.
    stop: str = ""
    #: A process died while this ran beside others: run it alone until it is known.
    suspect: bool = False
    started_at: float = 0.0
    ended_at: float = 0.0
    #: Encoded Output of the attempt that succeeded.
    output: bytes = b""
    log: str = ""
    past: list[PastAttempt] | None = None
    checkpoint: bytes = b""
    #: Effects under `ctx.once`, by key.
    once: dict[str, Effect] | None = None


class WorkerFacts(msgspec.Struct, frozen=True):
    """What lineage says of a worker."""

    pool: str
    node: str
    #: Fingerprint of the code of each job type there.
    code: dict[str, str] = {}


class Job(msgspec.Struct, eq=False, gc=False):
    """One submitted request. It and its tasks name each other; `tasks` is emptied when it goes."""

    id: str
    #: The submitted spec as its bytes, which is what workers and the journal get.
    raw: bytes
    #: What every decision looks at, out of the spec.
    type: str
    tenant: str
    queue: str
    priority: int
    submitted_at: float
    #: Its place in the order of submission, from 1.
    number: int
    #: Those in memory: of a planned job, not the chunks that are done or not yet in line.
    tasks: Collection[Task] = ()
    finished_at: float = 0.0
    #: Number of the event that finished it last, and how many have; 0 before the first.
    finished_seq: int = 0
    revision: int = 0
    #: Why it was cancelled.
    reason: str = ""
    #: The code it was submitted with; see JobSpec.
    code: str = ""
    #: None: it has one task.
    plan: "PlanState | None" = None

    @property
    def spec(self) -> JobSpec:
        """The whole spec, decoded anew each time: a million of them would not fit in memory.

        That of a planned job is kept: it is large, and asked for with each task.
        """
        return decode_spec(self.raw) if self.plan is None else self.plan.spec_of(self.raw)


class Bucket:
    """Ready tasks of one priority: one job after the other, or in turns where several go at once.

    Jobs of one task are one flow, in order of arrival; the tasks of a planned job are another. Each
    task gets its ticket when it enters: one more than its flow's last, or than the ticket that was
    served last, whichever is higher; the lowest is served next. So flows take turns, and one that
    was empty owes nothing (start-time fair queueing: P. Goyal, H. Vin, H. Cheng, SIGCOMM 1996).

    Entries are removed lazily: a task that left READY stays in its deque until it is at an end.
    """

    __slots__ = ("flows", "served", "simple")

    def __init__(self) -> None:
        #: Tasks of jobs that have one.
        self.simple: deque[Task] = deque()
        #: Those of planned jobs, by the job's number. A flow that is empty is not in it.
        self.flows: dict[int, deque[Task]] = {}
        #: Highest ticket that was served.
        self.served = 0

    def push(self, task: Task) -> None:
        """Put a task at the end of its flow."""
        flow = self._flow(task)
        last = self.served
        if flow and flow[-1].ticket > last:
            last = flow[-1].ticket
        task.ticket = last + 1
        flow.append(task)

    def restore(self, task: Task) -> None:
        """Put a task that has its ticket, the highest of its flow, in its place."""
        self._flow(task).append(task)

    def push_front(self, task: Task) -> None:
        """Put a task back where its ticket says."""
        flow = self._flow(task)
        # Those before it were given back just now too, so this is a short walk.
        ahead = 0
        while ahead < len(flow) and flow[ahead].ticket < task.ticket:
            ahead += 1
        flow.insert(ahead, task)

    def _flow(self, task: Task) -> "deque[Task]":
        job = task.job
        if job.plan is None:
            return self.simple
        flow = self.flows.get(job.number)
        if flow is None:
            flow = self.flows[job.number] = deque()
        return flow

    def dropped(self, task: Task) -> None:
        """Forget a task that left READY, as far as that is cheap now."""
        if task.ticket > self.served and task.state is _LEASED:
            self.served = task.ticket
        job = task.job
        flow = self.simple if job.plan is None else self.flows.get(job.number)
        if not flow:
            return
        while flow and flow[0].state is not _READY:
            flow.popleft()
        while flow and flow[-1].state is not _READY:
            flow.pop()
        if job.plan is not None and not flow:
            del self.flows[job.number]

    def ready(self) -> Iterator[Task]:
        """Yield ready tasks, next first."""
        # Among equals a job of one task goes first.
        flows = [(flow, number) for number, flow in ((0, self.simple), *self.flows.items()) if flow]
        order: Iterable[Task] = flows[0][0] if len(flows) == 1 else _in_turn(flows)
        for task in order:
            if task.state is _READY and not task.suspect:
                yield task

    def tidy(self, number: int) -> None:
        """Drop everything of a job that is not READY: it may become so again, elsewhere."""
        flow = self.flows.get(number)
        if flow is None:
            return
        kept = deque(task for task in flow if task.state is _READY)
        if kept:
            self.flows[number] = kept
        else:
            del self.flows[number]

    def ahead_of(self, task: Task) -> int:
        """Return about how many ready tasks go before `task`; O(flows)."""
        ahead = 0
        for flow in (self.simple, *self.flows.values()):
            if flow:
                ahead += min(max(0, task.ticket - flow[0].ticket), len(flow))
        return ahead

    def places(self) -> Callable[[int], int]:
        """Return what says the same of a ticket, for many of them while nothing changes."""
        flows = [flow for flow in (self.simple, *self.flows.values()) if flow]
        # Of each flow those between its first ticket and `ticket`, less those beyond its end.
        firsts = sorted(flow[0].ticket for flow in flows)
        ends = sorted(flow[0].ticket + len(flow) for flow in flows)
        sums = [0, *accumulate(firsts)], [0, *accumulate(ends)]

        def ahead(ticket: int) -> int:
            begun, over = bisect_left(firsts, ticket), bisect_left(ends, ticket)
            return begun * ticket - sums[0][begun] - (over * ticket - sums[1][over])

        return ahead

    def __len__(self) -> int:
        return len(self.simple) + sum(map(len, self.flows.values()))


def _in_turn(flows: list[tuple[deque[Task], int]]) -> Iterator[Task]:
    """Yield the tasks of all flows by ticket, then by the flow's number.

    As `heapq.merge` does, which begins with a generator a flow: there may be thousands, of which
    few have a turn.
    """
    # The number is a flow's own, so that no two of these are ever compared beyond it.
    heap: list[tuple[int, int, Task, deque[Task] | Iterator[Task]]] = [
        (flow[0].ticket, number, flow[0], flow) for flow, number in flows
    ]
    heapq.heapify(heap)
    while heap:
        _, number, task, rest = heap[0]
        if isinstance(rest, deque):
            rest = iter(rest)
            next(rest)
        yield task
        following = next(rest, None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following.ticket, number, following, rest))


class Line:
    """Ready tasks of one queue, by priority."""

    __slots__ = ("_order", "buckets", "chunks", "counts", "name", "paused", "suspects")

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False
        self.buckets: dict[int, Bucket] = {}
        #: Ready tasks that must run alone.
        self.suspects: dict[Task, None] = {}
        #: Tasks of this queue in each state.
        self.counts: dict[TaskState, int] = dict.fromkeys(TaskState, 0)
        #: Chunks among those that have not ended: nobody outside is refused for them.
        self.chunks = 0
        self._order: list[int] = []

    def push(self, task: Task) -> None:
        """Put a task that became READY in line."""
        if task.suspect:
            self.suspects[task] = None
        else:
            self.bucket(task.job.priority).push(task)

    def restore(self, task: Task) -> None:
        """Put a READY task that has its ticket, the highest of its flow, in its place."""
        if task.suspect:
            self.suspects[task] = None
        else:
            self.bucket(task.job.priority).restore(task)

    def push_front(self, task: Task) -> None:
        """Put a task back where its ticket says: it lost a lease it never used."""
        if task.suspect:
            self.suspects[task] = None
        else:
            self.bucket(task.job.priority).push_front(task)

    def dropped(self, task: Task) -> None:
        """Forget a task that left READY."""
        if task.suspect:
            self.suspects.pop(task, None)
        else:
            self.buckets[task.job.priority].dropped(task)

    def ready(self) -> Iterator[Task]:
        """Yield ready tasks, next first, suspects apart. The line must not change meanwhile."""
        for priority in self._order:
            yield from self.buckets[priority].ready()

    def head(self) -> Task | None:
        """Return the next ready task."""
        return next(self.ready(), None)

    def position(self, task: Task) -> int:
        """Return about how many ready tasks go before `task`; O(priorities + flows)."""
        ahead = 0
        for priority in self._order:
            bucket = self.buckets[priority]
            if priority == task.job.priority:
                return ahead + bucket.ahead_of(task)
            ahead += len(bucket)
        return ahead

    def places(self) -> Callable[[Task], int]:
        """Return `position` for many tasks, while the line does not change; O(log flows) each."""
        lengths = [len(self.buckets[priority]) for priority in self._order]
        before = dict(zip(self._order, accumulate(lengths, initial=0), strict=False))
        of_priority: dict[int, Callable[[int], int]] = {}

        def position(task: Task) -> int:
            priority = task.job.priority
            if priority not in of_priority:
                of_priority[priority] = self.buckets[priority].places()
            return before[priority] + of_priority[priority](task.ticket)

        return position

    def bucket(self, priority: int) -> Bucket:
        """Return the bucket of a priority, new if there was none."""
        bucket = self.buckets.get(priority)
        if bucket is None:
            bucket = self.buckets[priority] = Bucket()
            self._order = sorted(self.buckets, reverse=True)
        return bucket


class Timer:
    """Tasks and the moment each is due, earliest first.

    An entry is never removed when its task moves on; it is dropped once it is met at the head and
    `live(at, task)` says that it means nothing any more.
    """

    __slots__ = ("_count", "_heap", "_live")

    def __init__(self, live: Callable[[float, Task], bool]) -> None:
        self._heap: list[tuple[float, int, Task]] = []
        self._count = 0
        self._live = live

    def add(self, at: float, task: Task) -> None:
        """Remember that `task` is due at `at`."""
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, task))

    def next_at(self) -> float | None:
        """Return when the earliest entry is due."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def live(self) -> list[tuple[float, Task]]:
        """Return every entry that still means something, earliest first."""
        return [(at, task) for at, _, task in sorted(self._heap) if self._live(at, task)]

    def due(self, now: float, limit: int, states: frozenset[TaskState]) -> list[Task]:
        """Return up to `limit` tasks in one of `states` due by `now`, earliest first.

        They stay until they move on.
        """
        self._drop_stale()
        heap = self._heap
        # A dict, because a task that came back for the same moment has two entries.
        found: dict[Task, None] = {}
        frontier = [(heap[0], 0)] if heap else []
        while frontier and len(found) < limit:
            (at, _, task), i = heapq.heappop(frontier)
            if at > now:
                break
            if task.state in states and self._live(at, task):
                found[task] = None
            for child in (2 * i + 1, 2 * i + 2):
                if child < len(heap):
                    heapq.heappush(frontier, (heap[child], child))
        return list(found)

    def _drop_stale(self) -> None:
        while self._heap and not self._live(self._heap[0][0], self._heap[0][2]):
            heapq.heappop(self._heap)


def _timer_live(at: float, task: Task) -> bool:
    return task.due_at == at and task.state in (TaskState.WAITING, TaskState.BACKING_OFF)


def _expiry_live(at: float, task: Task) -> bool:
    # A dead letter that is redriven after it is not held to it any more, and one that is redriven
    # before it gets a new entry. A planned job has started with its first task.
    plan = task.job.plan
    started = plan is not None and plan.started
    return task.expires_at == at and task.state not in TERMINAL and not started


class KeyIndex:
    """Idempotency keys within their window: which job each stands for."""

    __slots__ = ("_by_hour", "_entries", "_purged_hour")

    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, str, float]] = {}
        self._by_hour: dict[int, list[str]] = {}
        self._purged_hour = 0

    def __len__(self) -> int:
        return len(self._entries)

    def count(self, now: float) -> int:
        """Return how many keys are held, about: those whose hour is over are not counted."""
        hour = int(now // 3600)
        over = [past for past in self._by_hour if past < hour]
        return max(0, len(self._entries) - sum(len(self._by_hour[past]) for past in over))

    def find(self, key: str, now: float) -> tuple[str, str] | None:
        """Return (job id, fingerprint) of the request that holds `key`, if it still does."""
        entry = self._entries.get(key)
        if entry is None or entry[2] <= now:
            return None
        return entry[0], entry[1]

    def add(self, key: str, job_id: str, fingerprint: str, expires_at: float, now: float) -> None:
        """Give `key` to `job_id` until `expires_at`."""
        hour = int(now // 3600)
        if hour > self._purged_hour:
            self._purge(now, hour)
        self._entries[key] = (job_id, fingerprint, expires_at)
        self._by_hour.setdefault(int(expires_at // 3600), []).append(key)

    def restore(self, key: str, entry: tuple[str, str, float]) -> None:
        """Put an entry of `items` back."""
        self._entries[key] = entry
        self._by_hour.setdefault(int(entry[2] // 3600), []).append(key)

    def items(self) -> Iterator[tuple[str, tuple[str, str, float]]]:
        """Yield every entry, expired ones that were not purged yet included."""
        return iter(self._entries.items())

    def _purge(self, now: float, hour: int) -> None:
        self._purged_hour = hour
        for past in [h for h in self._by_hour if h < hour]:
            for key in self._by_hour.pop(past):
                entry = self._entries.get(key)
                if entry is not None and entry[2] <= now:
                    del self._entries[key]


class GatewayMarks:
    """Which batches of one gateway are committed, and what was refused in each."""

    __slots__ = ("at", "high", "window")

    def __init__(self) -> None:
        #: Moment of its last batch.
        self.at = 0.0
        self.high = 0
        self.window: dict[int, bytes] = {}

    def add(self, number: int, refused: bytes) -> None:
        """Remember batch `number`, and forget those that are too old now."""
        if self.too_old(number):
            return
        self.window[number] = refused
        if number > self.high:
            before, self.high = self.high, number
            for old in range(before - GATEWAY_WINDOW + 1, min(before, number - GATEWAY_WINDOW) + 1):
                self.window.pop(old, None)

    def add_folded(self, number: int) -> None:
        """Remember that some of batch `number` came through intake, unless all came itself."""
        if number not in self.window:
            self.add(number, FOLDED)

    def was_committed(self, number: int) -> bool:
        """Whether batch `number` is known to have come itself."""
        return self.window.get(number, FOLDED) != FOLDED

    def too_old(self, number: int) -> bool:
        """Whether nobody knows any more if batch `number` was committed."""
        return number <= self.high - GATEWAY_WINDOW


class Order:
    """Jobs by their place in the order of submission, in blocks so that any may leave."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, Job]] = {}

    def add(self, job: Job) -> None:
        """Put a job at its number, which is above every other."""
        number = job.number
        block = self._blocks.get(number // ORDER_BLOCK)
        if block is None:
            block = self._blocks[number // ORDER_BLOCK] = {}
        block[number] = job

    def remove(self, job: Job) -> None:
        """Forget a job."""
        key = job.number // ORDER_BLOCK
        block = self._blocks[key]
        del block[job.number]
        if not block:
            del self._blocks[key]

    def __iter__(self) -> Iterator[Job]:
        """Yield all, first submitted first."""
        for block in self._blocks.values():
            yield from block.values()

    def below(self, number: int) -> Iterator[Job]:
        """Yield those with a lower number, last submitted first. None may leave meanwhile."""
        for key in reversed(self._blocks):
            if key * ORDER_BLOCK < number:
                for job in reversed(self._blocks[key].values()):
                    if job.number < number:
                        yield job


class State:
    """Everything. One per manager; `evolve` alone writes it."""

    def __init__(self) -> None:
        #: Number of the last event.
        self.seq = 0
        #: Moment of the last event: time never runs backwards past it.
        self.at = 0.0
        self.epoch = 0
        #: Cluster whose manager claimed the journal last and has not stopped in good order.
        self.owner = ""
        self.next_token = 1
        self.jobs: dict[str, Job] = {}
        self.order = Order()
        #: Jobs ever submitted, which is the number of the last one.
        self.submitted = 0
        #: Jobs that finished for good, in that order: history will have them, then they leave.
        self.finished: deque[Job] = deque()
        #: Segments whose compaction was begun, or 0: the same ones are done again after a crash.
        self.planned = 0
        #: Last segment that history and snapshot cover, and the number of its last event.
        self.compacted = 0
        self.compacted_seq = 0
        #: Segments that hold a claim. Their names stay taken for ever: a manager that slept through
        #: its successor's claim and a compaction would write there next.
        self.claims: list[int] = []
        self.keys = KeyIndex()
        self.gateways: dict[str, GatewayMarks] = {}
        #: Intake that was folded, and when: it may turn up again.
        self.folded: dict[str, float] = {}
        #: Ids acknowledged while the manager was away that stand for jobs known before.
        self.aliases: dict[str, str] = {}
        self.lines: dict[str, Line] = {}
        self.leases: dict[int, Task] = {}
        #: worker -> tokens it holds, in order of leasing.
        self.held: dict[str, dict[int, None]] = {}
        #: worker -> tokens asked to stop, and why.
        self.stopping: dict[str, dict[int, str]] = {}
        self.timers = Timer(_timer_live)
        self.expiries = Timer(_expiry_live)
        #: (job id, task id) of dead letters, oldest first.
        self.dead: dict[tuple[str, str], Task] = {}
        #: Planned jobs in memory, and those whose plan moves on by itself (see `plan.look`).
        self.plans: dict[str, Job] = {}
        self.moving: dict[str, Job] = {}
        #: What is known of workers: those that hold or held something, the latest last.
        self.workers: dict[str, WorkerFacts] = {}

    def line(self, name: str) -> Line:
        """Return the queue `name`, new if nothing was ever in it."""
        line = self.lines.get(name)
        if line is None:
            line = self.lines[name] = Line(name)
        return line
