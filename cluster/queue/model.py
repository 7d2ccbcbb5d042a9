"""What the queue remembers: jobs, their tasks, who holds what, and who is next.

Rule 1: only `engine.evolve` writes here. Rule 2: everything can be rebuilt from the journal, so
nothing here depends on the clock, on chance or on the order of a set. Moments are epoch seconds.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

import msgspec

from cluster.queue.line import Priorities, Shares
from cluster.queue.rules import Limit
from cluster.queue.schedule import Schedule
from cluster.queue.spec import JobSpec, decode_spec
from cluster.queue.state import TERMINAL, Move, TaskState, moved

if TYPE_CHECKING:
    from cluster.queue.plan import PlanState

__all__ = [
    "Effect",
    "Gate",
    "GatewayMarks",
    "Job",
    "KeyIndex",
    "Learned",
    "Line",
    "Order",
    "PastAttempt",
    "Side",
    "State",
    "Task",
    "Timer",
    "Usage",
    "WorkerFacts",
]

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

#: Attempts of a type of which it is remembered how long they ran: so many make it known.
LEARNED_RUNS = 20

# Looked up several times a job, where an attribute of the enum costs as much as the rest.
_READY, _LEASED, _PARKED = TaskState.READY, TaskState.LEASED, TaskState.PARKED
_WAITING, _BACKING_OFF = TaskState.WAITING, TaskState.BACKING_OFF

#: Below so many openings there is nothing to tidy.
OPENINGS_MIN = 64


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

    @property
    def limits(self) -> tuple[str, ...]:
        """Keys of limits that its attempts count against."""
        return self.job.limits

    def move(self, kind: Move) -> None:
        """Change the state and keep the counts. Raises IllegalTransition and changes nothing."""
        old = self.state
        self.state = new = moved(old, kind)
        counts = self.line.counts
        counts[old] -= 1
        counts[new] += 1
        plan = self.job.plan
        if plan is not None:
            plan.recount(self, old, new)


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
    #: Keys of limits that its attempts count against.
    limits: tuple[str, ...] = ()
    #: None: it has one task.
    plan: "PlanState | None" = None
    #: It failed, and an operator let it go.
    purged: bool = False

    @property
    def spec(self) -> JobSpec:
        """The whole spec, decoded anew each time: a million of them would not fit in memory.

        That of a planned job is kept: it is large, and asked for with each task.
        """
        return decode_spec(self.raw) if self.plan is None else self.plan.spec_of(self.raw)


class Line(Priorities):
    """Ready tasks of one queue."""

    __slots__ = ("bytes", "chunks", "counts", "name", "paused", "suspects")

    def __init__(self, name: str, shares: Shares) -> None:
        super().__init__(shares)
        self.name = name
        self.paused = False
        #: Ready tasks that must run alone.
        self.suspects: dict[Task, None] = {}
        #: Tasks of this queue in each state.
        self.counts: dict[TaskState, int] = dict.fromkeys(TaskState, 0)
        #: Chunks among those that have not ended: nobody outside is refused for them.
        self.chunks = 0
        #: What the specs of its unfinished jobs take.
        self.bytes = 0

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
            super().restore(task)

    def push_front(self, task: Task) -> None:
        """Put a task back where its ticket says: it lost a lease it never used."""
        if task.suspect:
            self.suspects[task] = None
        else:
            super().push_front(task)

    def remove(self, task: Task, *, served: bool = False) -> None:
        """Forget a task that left READY; `served`: for a lease."""
        if task.suspect:
            del self.suspects[task]
        else:
            self.turns += served
            self.buckets[task.job.priority].remove(task, served=served)

    @property
    def depth(self) -> int:
        """How many tasks wait or run; chunks are bounded by their jobs' windows."""
        counts = self.counts
        return (
            counts[_READY]
            + counts[_LEASED]
            + counts[_WAITING]
            + counts[_BACKING_OFF]
            + counts[_PARKED]
            - self.chunks
        )


class Gate:
    """A limit that jobs share by a key.

    The rate is kept by the generic cell rate algorithm (ITU-T I.371): `tat` is when the next start
    would be due if all came evenly.
    """

    __slots__ = ("before", "in_use", "key", "last", "limit", "sides", "tat")

    def __init__(self, key: str, limit: Limit) -> None:
        self.key, self.limit = key, limit
        #: Leased tasks.
        self.in_use = 0
        self.tat = 0.0
        #: Token of the lease that moved `tat` last, and from where: it may come back unused.
        self.last = 0
        self.before = 0.0
        #: By queue: one that stands still must not hold up another.
        self.sides: dict[str, Side] = {}


class Side(Priorities):
    """What one queue has at a gate: the parked tasks, in turns as in line."""

    __slots__ = ("due_at", "line", "ready")

    def __init__(self, line: str, shares: Shares) -> None:
        super().__init__(shares)
        self.line = line
        #: READY ones: no more than could start now.
        self.ready: dict[Task, None] = {}
        #: When there is room for the next, as far as only time is lacking; 0: not by time.
        self.due_at = 0.0


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


class Usage(msgspec.Struct):
    """What unfinished jobs take."""

    jobs: int = 0
    bytes: int = 0


class Learned(msgspec.Struct):
    """How long the last attempts of a type ran, in seconds, oldest first."""

    runs: deque[float]

    @property
    def usual_s(self) -> float | None:
        """The median; None while too few are known."""
        return sorted(self.runs)[LEARNED_RUNS // 2] if len(self.runs) >= LEARNED_RUNS else None


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
        #: What an operator set, encoded; the run of `drayman up` it is for; and the event it came
        #: with, which numbers it.
        self.config = b""
        self.config_run = ""
        self.config_seq = 0
        self.shares = Shares()
        #: By key or pattern, as set; and those that hold something, by key.
        self.limits: dict[str, Limit] = {}
        #: What keys begin with that a pattern stands for, the longest first.
        self.patterns: list[str] = []
        self.gates: dict[str, Gate] = {}
        #: Sides of gates, by key and queue, at which something waits for which there is room now;
        #: and (moment, key, queue) of those where only time is lacking.
        self.opening: dict[tuple[str, str], None] = {}
        self.openings: list[tuple[float, str, str]] = []
        #: Those that mean nothing any more are dropped once there are so many.
        self.openings_tidy_at = OPENINGS_MIN
        #: When a leased attempt begins that a rate holds back, by token.
        self.starts: dict[int, float] = {}
        #: Unfinished jobs by tenant, and of all.
        self.usage: dict[str, Usage] = {}
        self.total = Usage()
        #: By type.
        self.learned: dict[str, Learned] = {}
        #: By tenant and name.
        self.schedules: dict[tuple[str, str], Schedule] = {}
        #: What they take, by tenant, and all of them.
        self.planned_ahead: dict[str, Usage] = {}
        self.all_ahead = Usage()
        #: Events that somebody wants to hear of, by job; and those that were reached and are to be
        #: told of in the same commit, each with its number and moment (see `telling.py`).
        self.tellers: dict[str, tuple[str, ...]] = {}
        self.telling: dict[str, list[tuple[str, int, float]]] = {}

    def line(self, name: str) -> Line:
        """Return the queue `name`, new if nothing was ever in it."""
        line = self.lines.get(name)
        if line is None:
            line = self.lines[name] = Line(name, self.shares)
        return line

    def count(self, job: Job, sign: int, line: Line) -> None:
        """Count a job of this queue among those that are unfinished, or no more."""
        size, tenant, total = sign * len(job.raw), job.tenant, self.total
        usage = self.usage.get(tenant)
        if usage is None:
            usage = self.usage[tenant] = Usage()
        usage.jobs += sign
        usage.bytes += size
        if not usage.jobs:
            del self.usage[tenant]
        total.jobs += sign
        total.bytes += size
        line.bytes += size

    def limit_by(self, limits: dict[str, Limit]) -> None:
        """Let these limits hold."""
        self.limits = limits
        patterns = (key[:-1] for key in limits if key.endswith("*"))
        self.patterns = sorted(patterns, key=len, reverse=True)

    def keep(self, schedule: Schedule) -> None:
        """Hold a schedule, in place of one of its name."""
        spec = schedule.spec
        self.drop(spec.tenant, spec.name)
        self.schedules[spec.tenant, spec.name] = schedule
        own = self.planned_ahead.setdefault(spec.tenant, Usage())
        for usage in (own, self.all_ahead):
            usage.jobs += 1
            usage.bytes += spec.size

    def drop(self, tenant: str, name: str) -> None:
        """Hold a schedule no more, if there is one of this name."""
        schedule = self.schedules.pop((tenant, name), None)
        if schedule is None:
            return
        own = self.planned_ahead[tenant]
        for usage in (own, self.all_ahead):
            usage.jobs -= 1
            usage.bytes -= schedule.spec.size
        if not own.jobs:
            del self.planned_ahead[tenant]

    def learn(self, job_type: str, run_s: float) -> None:
        """Take in how long an attempt of a type ran."""
        learned = self.learned.get(job_type)
        if learned is None:
            learned = self.learned[job_type] = Learned(deque(maxlen=LEARNED_RUNS))
        learned.runs.append(run_s)
