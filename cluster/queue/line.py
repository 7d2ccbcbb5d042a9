"""Who is next: tasks in line, by priority, in turns between tenants and between their jobs.

    Priorities    higher first; what waited long gets one turn in ten
      Bucket      tenants of one priority in turns, by weight
        Tenant    its jobs in turns: those of one task are one flow, in order of arrival; each
          Flow    planned job is another, and so is what shares a limit

Turns are start-time fair queueing (P. Goyal, H. Vin, H. Cheng, SIGCOMM 1996): whoever has work has
a start tag; the lowest goes first and its tag grows by the cost of a turn, 1 / weight. Who comes
anew starts at the tag that was reached, or at its own where that is higher: waiting saves nothing
up, and leaving for a moment pays no debt. What was reached is the tag served last, and grows with
each turn by that turn's share of a round: or those that had a turn would wait for ever while there
are newcomers. Everything costs O(log n) of what has work.
"""

import heapq
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from cluster.queue.model import Task

__all__ = [
    "AGED_TURN",
    "OWED_MAX",
    "Bucket",
    "BucketMark",
    "Flow",
    "Priorities",
    "Shares",
    "Tenant",
    "marks_of",
    "put_marks",
]

#: Of so many turns one is for what has waited longest, if it waited long.
AGED_TURN = 10
#: Turns that someone may be before all others, for those that were given back.
OWED_MAX = 10
#: Slots before the first task of a flow that are not given back at once.
SLACK = 1_024
#: Positions are added up where so few take turns, and estimated beyond.
ADDED_UP = 64


class Shares:
    """What a turn costs each tenant: 1 / weight."""

    __slots__ = ("_costs", "_default", "weights")

    def __init__(self) -> None:
        #: As they were set.
        self.weights: dict[str, float] = {}
        self._costs: dict[str, float] = {}
        self._default = 1.0

    def set(self, weights: dict[str, float]) -> None:
        """Let these weights hold from now on; `*` stands for all others."""
        self.weights = weights
        self._costs = {name: 1.0 / weight for name, weight in weights.items()}
        self._default = self._costs.pop("*", 1.0)

    def cost(self, tenant: str) -> float:
        """Return the cost of one turn."""
        return self._costs.get(tenant, self._default)


class _Taker:
    """Someone who takes turns."""

    __slots__ = ("order", "size", "start", "waits")

    def __init__(self) -> None:
        #: Tag of its next turn.
        self.start = 0.0
        #: Breaks ties; given when it gets work.
        self.order = 0
        #: Tasks that it has.
        self.size = 0
        self.waits = False

    def first(self) -> "Task":
        """Return the task that is next."""
        raise NotImplementedError

    def __iter__(self) -> "Iterator[Task]":
        """Yield its tasks as they would be served."""
        raise NotImplementedError


T = TypeVar("T", bound=_Taker)


class _Turns(Generic[T]):
    """Those that have work, by their start tags."""

    __slots__ = ("entered", "heap", "served", "waiting")

    def __init__(self) -> None:
        #: The tag that was reached.
        self.served = 0.0
        #: How often someone got work.
        self.entered = 0
        self.waiting = 0
        #: (start, order, taker): one for each that waits, and some that mean nothing any more.
        self.heap: list[tuple[float, int, T]] = []

    def enter(self, taker: T) -> None:
        """Let someone who got work take turns."""
        if taker.start < self.served:
            taker.start = self.served
        self.entered += 1
        taker.order = self.entered
        self.restore(taker)

    def restore(self, taker: T) -> None:
        """Let someone take turns who has a tag and an order."""
        taker.waits = True
        self.waiting += 1
        heapq.heappush(self.heap, (taker.start, taker.order, taker))

    def leave(self, taker: T) -> None:
        """Forget someone who has no work any more. The tag stays."""
        taker.waits = False
        self.waiting -= 1
        self._tidy()

    def serve(self, taker: T, cost: float) -> None:
        """Charge a turn."""
        start = taker.start
        reached = self.served + cost / (self.waiting + 1)
        self.served = reached if reached > start else start
        self._move(taker, start + cost)

    def give_back(self, taker: T, cost: float) -> None:
        """Undo the charge of a turn that came to nothing.

        It puts nobody more than `OWED_MAX` turns before what was reached, which is where whoever
        comes begins: of hundreds that someone alone took ahead, none was taken from those.
        """
        owed = min(taker.start, self.served - OWED_MAX * cost)
        self._move(taker, max(taker.start - cost, owed))

    def _move(self, taker: T, start: float) -> None:
        taker.start = start
        if taker.waits:
            heap, entry = self.heap, (start, taker.order, taker)
            if heap[0][2] is taker:
                heapq.heapreplace(heap, entry)
            else:
                heapq.heappush(heap, entry)
            if len(heap) > 1:
                self._tidy()

    def _tidy(self) -> None:
        """Keep a live entry at the top, and not many others than live ones."""
        heap = self.heap
        while heap and not _is_live(heap[0]):
            heapq.heappop(heap)
        if len(heap) > 2 * self.waiting + ADDED_UP:
            # Twice the same entry is possible: a tag that moved on and back.
            self.heap = sorted({id(e[2]): e for e in heap if _is_live(e)}.values(), key=_place)

    def put_back(self, takers: list[T], served: float, entered: int) -> None:
        """Let these wait, with the tags they have, as if it had come to that."""
        self.served, self.entered = served, entered
        self.heap, self.waiting = [], 0
        for taker in takers:
            self.restore(taker)

    def takers(self) -> list[T]:
        """Return all that wait, in no order that means anything."""
        return list({id(e[2]): e[2] for e in self.heap if _is_live(e)}.values())

    def in_turn(self, cost: "Callable[[T], float]") -> "Iterator[Task]":
        """Yield tasks as they would be served; a turn of a taker costs `cost`."""
        heap = self.heap
        if self.waiting == 1:
            yield from next(entry[2] for entry in heap if _is_live(entry))
            return
        # The heap is walked from its top, and what was served comes again behind its next tag. Most
        # have one turn at most: their iterators begin with the second.
        seen: set[int] = set()
        front: list[tuple[float, int, int, T, Iterator[Task] | None]] = []
        if heap:
            start, order, taker = heap[0]
            front.append((start, order, 0, taker, None))
        while front:
            start, order, at, taker, rest = heapq.heappop(front)
            if at >= 0:
                for child in (2 * at + 1, 2 * at + 2):
                    if child < len(heap):
                        entry = heap[child]
                        heapq.heappush(front, (entry[0], entry[1], child, entry[2], None))
                if id(taker) in seen or not _is_live((start, order, taker)):
                    continue
                seen.add(id(taker))
                task = taker.first()
            else:
                if rest is None:
                    rest = iter(taker)
                    next(rest)
                following = next(rest, None)
                if following is None:
                    continue
                task = following
            yield task
            if taker.size > 1:
                heapq.heappush(front, (start + cost(taker), order, -1, taker, rest))


def _is_live(entry: tuple[float, int, _Taker]) -> bool:
    start, order, taker = entry
    return taker.waits and taker.start == start and taker.order == order


def _place(entry: tuple[float, int, _Taker]) -> tuple[float, int]:
    return entry[0], entry[1]


class _Hole:
    """Stands where a task was."""

    __slots__ = ("ticket",)

    def __init__(self, ticket: int) -> None:
        self.ticket = ticket


class Flow(_Taker):
    """Tasks in the order of their tickets."""

    __slots__ = ("head", "holes", "key", "tasks")

    def __init__(self, key: int | str) -> None:
        super().__init__()
        self.key = key
        #: From `head` on; the first and the last are never holes.
        self.tasks: list[Any] = []
        self.head = 0
        self.holes = 0

    def append(self, task: "Task") -> None:
        """Put a task with the highest ticket at the end."""
        self.tasks.append(task)
        self.size += 1

    def insert(self, task: "Task") -> None:
        """Put a task where its ticket says."""
        tasks, head = self.tasks, self.head
        at = self._index(task.ticket)
        if at == head and head:
            self.head = head - 1
            tasks[head - 1] = task
        else:
            tasks.insert(at, task)
        self.size += 1

    def remove(self, task: "Task") -> None:
        """Take a task out."""
        tasks, head = self.tasks, self.head
        self.size -= 1
        if not self.size:
            self.tasks = []
            self.head = self.holes = 0
            return
        if tasks[head] is task:
            tasks[head] = None
            self.head = head = head + 1
            if head > SLACK or type(tasks[head]) is _Hole:
                self._trim()
            return
        at = self._index(task.ticket)
        tasks[at] = _Hole(task.ticket)
        self.holes += 1
        while type(tasks[-1]) is _Hole:
            tasks.pop()
            self.holes -= 1
        if self.holes > self.size + SLACK:
            self.tasks = [one for one in tasks[head:] if type(one) is not _Hole]
            self.head = self.holes = 0

    def _trim(self) -> None:
        tasks, head = self.tasks, self.head
        while head < len(tasks) and type(tasks[head]) is _Hole:
            tasks[head] = None
            head += 1
            self.holes -= 1
        if head > SLACK and head > len(tasks) // 2:
            del tasks[:head]
            head = 0
        self.head = head

    def has(self, task: "Task") -> bool:
        """Whether it is here."""
        at = self._index(task.ticket)
        return at < len(self.tasks) and self.tasks[at] is task

    def _index(self, ticket: int) -> int:
        """Return where the ticket is, or would be."""
        tasks = self.tasks
        low, high = self.head, len(tasks)
        while low < high:
            middle = (low + high) // 2
            if tasks[middle].ticket < ticket:
                low = middle + 1
            else:
                high = middle
        return low

    def first(self) -> "Task":
        """Return the task that is next."""
        task: Task = self.tasks[self.head]
        return task

    def __iter__(self) -> "Iterator[Task]":
        for at in range(self.head, len(self.tasks)):
            if type(one := self.tasks[at]) is not _Hole:
                yield one

    def ahead_of(self, task: "Task") -> int:
        """Return how many go before it; those that left are counted until they are tidied."""
        return min(self._index(task.ticket) - self.head, self.size)


def _one(_: _Taker) -> float:
    return 1.0


class Tenant(_Taker):
    """What one tenant has of one priority."""

    __slots__ = ("_tidy_at", "flows", "name", "turns")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        #: Those that have tasks, and those whose tag is above what was served: a job whose chunks
        #: come one by one is not to be new, and next, each time.
        self.flows: dict[int | str, Flow] = {}
        self.turns: _Turns[Flow] = _Turns()
        self._tidy_at = ADDED_UP

    def enter(self, key: int | str) -> Flow:
        """Return the flow of a key that has no tasks, to which one is about to be added."""
        flow = self.flows.get(key)
        if flow is None:
            if len(self.flows) >= self._tidy_at:
                served = self.turns.served
                self.flows = {k: f for k, f in self.flows.items() if f.size or f.start > served}
                self._tidy_at = 2 * len(self.flows) + ADDED_UP
            flow = self.flows[key] = Flow(key)
        self.turns.enter(flow)
        return flow

    def reset(self) -> None:
        """Forget its flows: it has nothing any more, and none of them waits for another."""
        self.flows = {}
        self.turns.put_back([], 0.0, 0)

    def first(self) -> "Task":
        """Return the task that is next."""
        return self.turns.heap[0][2].first()

    def __iter__(self) -> "Iterator[Task]":
        return self.turns.in_turn(_one)

    def ahead_of(self, task: "Task", key: int | str) -> int:
        """Return about how many of its own go before it."""
        mine = self.flows[key]
        ahead = mine.ahead_of(task)
        if self.turns.waiting > ADDED_UP:
            return min(self.size - 1, ahead * self.turns.waiting)
        others = (flow.size for flow in self.flows.values() if flow is not mine)
        return ahead + sum(min(size, ahead) for size in others)


class Bucket:
    """Tasks of one priority."""

    __slots__ = ("_shares", "_tidy_at", "size", "tenants", "tickets", "turns")

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        #: Highest ticket that was given.
        self.tickets = 0
        self.size = 0
        #: Those that have tasks, and those whose tag is above what was served.
        self.tenants: dict[str, Tenant] = {}
        self.turns: _Turns[Tenant] = _Turns()
        self._tidy_at = ADDED_UP

    def push(self, task: "Task") -> None:
        """Put a task at the end of its flow."""
        self.tickets = task.ticket = self.tickets + 1
        self._flow(task).append(task)

    def restore(self, task: "Task") -> None:
        """Put a task that has its ticket, the highest of its flow, in its place."""
        self.tickets = max(self.tickets, task.ticket)
        self._flow(task).append(task)

    def push_front(self, task: "Task") -> None:
        """Put a task back where its ticket says, and give back the turn that it took."""
        tenant = self.tenants.get(task.job.tenant)
        if tenant is not None:
            self.turns.give_back(tenant, self._shares.cost(tenant.name))
            if (flow := tenant.flows.get(flow_key(task))) is not None:
                tenant.turns.give_back(flow, 1.0)
        self._flow(task).insert(task)

    def push_first(self, task: "Task") -> None:
        """Put a task before all others of its flow, and give back the turn that it took."""
        tenant = self.tenants.get(task.job.tenant)
        flow = tenant.flows.get(flow_key(task)) if tenant is not None else None
        if flow is not None and flow.size:
            task.ticket = flow.first().ticket - 1
        else:
            self.tickets = task.ticket = self.tickets + 1
        self.push_front(task)

    def remove(self, task: "Task", *, served: bool) -> None:
        """Take a task out; `served`: it had its turn."""
        tenant = self.tenants[task.job.tenant]
        flow = tenant.flows[flow_key(task)]
        flow.remove(task)
        tenant.size -= 1
        self.size -= 1
        if not flow.size:
            tenant.turns.leave(flow)
        if served and tenant.size:
            tenant.turns.serve(flow, 1.0)
        if not tenant.size:
            tenant.reset()
            self.turns.leave(tenant)
        if served:
            self.turns.serve(tenant, self._shares.cost(tenant.name))

    def __contains__(self, task: "Task") -> bool:
        """Whether it is here."""
        tenant = self.tenants.get(task.job.tenant)
        flow = tenant.flows.get(flow_key(task)) if tenant is not None else None
        return flow is not None and flow.has(task)

    def _flow(self, task: "Task") -> Flow:
        """Return where a task is about to be added, which is counted already."""
        tenant = self.tenants.get(task.job.tenant)
        if tenant is None or not tenant.size:
            tenant = self._enter(task.job.tenant, tenant)
        tenant.size += 1
        self.size += 1
        key = flow_key(task)
        flow = tenant.flows.get(key)
        return flow if flow is not None and flow.size else tenant.enter(key)

    def _enter(self, name: str, tenant: Tenant | None) -> Tenant:
        """Let a tenant that had no tasks take turns."""
        if tenant is None or tenant.start <= self.turns.served:
            # One that would start where any new one does is a new one: it may have been forgotten.
            if len(self.tenants) >= self._tidy_at:
                self._forget()
            tenant = self.tenants[name] = Tenant(name)
        self.turns.enter(tenant)
        return tenant

    def _forget(self) -> None:
        """Forget tenants that would start where any new one does."""
        served = self.turns.served
        self.tenants = {n: t for n, t in self.tenants.items() if t.size or t.start > served}
        self._tidy_at = 2 * len(self.tenants) + ADDED_UP

    def first(self) -> "Task":
        """Return the task that is next."""
        return self.turns.heap[0][2].first()

    def in_turn(self) -> "Iterator[Task]":
        """Yield the tasks as they would be served. Nothing may change meanwhile."""
        return self.turns.in_turn(self._cost)

    def _cost(self, tenant: Tenant) -> float:
        return self._shares.cost(tenant.name)

    def ahead_of(self, task: "Task") -> int:
        """Return about how many tasks go before `task`."""
        tenant = self.tenants[task.job.tenant]
        ahead = tenant.ahead_of(task, flow_key(task))
        if self.turns.waiting == 1:
            return ahead
        cost = self._cost(tenant)
        start = tenant.start + ahead * cost
        if self.turns.waiting > ADDED_UP:
            # All are taken for equals of this one that have enough: a round passes for each turn.
            return min(
                self.size - 1, round((start - self.turns.served) / cost * self.turns.waiting)
            )
        for other in self.turns.takers():
            if other is not tenant and other.start <= start:
                turns = (start - other.start) / self._cost(other)
                ahead += min(other.size, int(turns) + (other.order < tenant.order))
        return ahead


def flow_key(task: "Task") -> int | str:
    """Return which flow of its tenant the task is in."""
    job = task.job
    if job.plan is not None:
        return job.number
    return job.limits[0] if job.limits else 0


#: A flow: key, tag, order.
FlowMark = tuple[int | str, float, int]
#: A tenant: name, tag, order, and of its flows: served, entered, marks.
TenantMark = tuple[str, float, int, float, int, list[FlowMark]]
#: A bucket: tickets, served, entered, tenants.
BucketMark = tuple[int, float, int, list[TenantMark]]


def marks_of(bucket: Bucket) -> BucketMark:
    """Return whose turn it is, as far as the tasks do not say it themselves."""
    served = bucket.turns.served
    tenants: list[TenantMark] = [
        (
            tenant.name,
            tenant.start,
            tenant.order,
            tenant.turns.served,
            tenant.turns.entered,
            sorted(
                (
                    (flow.key, flow.start, flow.order)
                    for flow in tenant.flows.values()
                    if flow.size or flow.start > tenant.turns.served
                ),
                key=lambda mark: mark[2],
            ),
        )
        for tenant in bucket.tenants.values()
        if tenant.size or tenant.start > served
    ]
    return bucket.tickets, served, bucket.turns.entered, sorted(tenants, key=lambda mark: mark[0])


def put_marks(bucket: Bucket, marks: BucketMark) -> None:
    """Let a bucket that has its tasks go on where the marks say."""
    bucket.tickets, served, entered, tenants = marks
    for name, start, order, flows_served, flows_entered, flows in tenants:
        tenant = bucket.tenants.get(name)
        if tenant is None:
            tenant = bucket.tenants[name] = Tenant(name)
        tenant.start, tenant.order = start, order
        for key, flow_start, flow_order in flows:
            flow = tenant.flows.setdefault(key, Flow(key))
            flow.start, flow.order = flow_start, flow_order
        having = [flow for flow in tenant.flows.values() if flow.size]
        tenant.turns.put_back(having, flows_served, flows_entered)
    waiting = [tenant for tenant in bucket.tenants.values() if tenant.size]
    bucket.turns.put_back(waiting, served, entered)


class Priorities:
    """Tasks in line, by priority."""

    __slots__ = ("_order", "_shares", "buckets", "turns")

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self.buckets: dict[int, Bucket] = {}
        #: How many were served.
        self.turns = 0
        self._order: list[int] = []

    def push(self, task: "Task") -> None:
        """Put a task at the end of its flow."""
        self.bucket(task.job.priority).push(task)

    def restore(self, task: "Task") -> None:
        """Put a task that has its ticket, the highest of its flow, in its place."""
        self.bucket(task.job.priority).restore(task)

    def push_front(self, task: "Task") -> None:
        """Put a task back where its ticket says: it lost a turn that it never used."""
        self.bucket(task.job.priority).push_front(task)

    def push_first(self, task: "Task") -> None:
        """Put a task before all others of its flow: it took a turn that led to nothing."""
        self.bucket(task.job.priority).push_first(task)

    def remove(self, task: "Task", *, served: bool = False) -> None:
        """Take a task out; `served`: it had its turn."""
        self.turns += served
        self.buckets[task.job.priority].remove(task, served=served)

    def in_turn(self, aged_before: float = -1.0) -> "Iterator[tuple[int, Task]]":
        """Yield tasks as they would be served, each with the priority that its turn has.

        What became ready by `aged_before` gets one turn in `AGED_TURN`, the oldest of those that
        are next in a lower priority: the highest has the other nine. Nothing may change meanwhile.
        """
        filled = [(p, self.buckets[p]) for p in self._order if self.buckets[p].size]
        if len(filled) == 1:
            [(priority, bucket)] = filled
            yield from zip(repeat(priority), bucket.in_turn(), strict=False)
            return
        # The highest is looked at in each turn, the others when it is theirs, or above them all is
        # done: there may be two thousand.
        heads: list[tuple[int, Task, Iterator[Task]]] = []
        unseen = iter(filled)
        turn = self.turns
        while True:
            turn += 1
            at = 0
            is_aged = turn % AGED_TURN == 0
            if is_aged or not heads:
                for priority, bucket in unseen if is_aged else islice(unseen, 1):
                    heads.append((priority, bucket.first(), islice(bucket.in_turn(), 1, None)))
                if not heads:
                    return
            if is_aged and len(heads) > 1:
                at = min(range(1, len(heads)), key=lambda i: (heads[i][1].ready_at, i))
                if heads[at][1].ready_at > aged_before:
                    at = 0
            top = heads[0][0]
            priority, task, tasks = heads[at]
            yield top, task
            following = next(tasks, None)
            if following is None:
                del heads[at]
            else:
                heads[at] = (priority, following, tasks)

    def head(self) -> "Task | None":
        """Return the task that is next."""
        for _, task in self.in_turn():
            return task
        return None

    def oldest(self) -> "Task | None":
        """Return about the longest waiting: the oldest of those next in their priority."""
        heads = [next(b.in_turn()) for b in self.buckets.values() if b.size]
        return min(heads, key=lambda task: task.ready_at, default=None)

    def position(self, task: "Task") -> int:
        """Return about how many tasks go before `task`."""
        ahead = 0
        for priority in self._order:
            bucket = self.buckets[priority]
            if priority == task.job.priority:
                return ahead + bucket.ahead_of(task)
            ahead += bucket.size
        return ahead

    def bucket(self, priority: int) -> Bucket:
        """Return the bucket of a priority, new if there was none."""
        bucket = self.buckets.get(priority)
        if bucket is None:
            bucket = self.buckets[priority] = Bucket(self._shares)
            self._order = sorted(self.buckets, reverse=True)
        return bucket

    def __contains__(self, task: "Task") -> bool:
        """Whether it is here, by its ticket."""
        bucket = self.buckets.get(task.job.priority)
        return bucket is not None and task in bucket

    @property
    def size(self) -> int:
        """How many tasks are here."""
        return sum(bucket.size for bucket in self.buckets.values())
