"""When one manager is not enough, and what P of them would do: `python -m benchmarks.shards`.

A seeded simulation, not a measurement of Drayman. Partitions are single servers with the costs of
the one manager there is; commits are groups with one write in flight; workers pull by exchange and
move credits to where work waits. It shows what follows from these costs. It does not show: the
network, gateways and workers at their limits, compaction, garbage collection, stores with slow
tails, or what P processes do to each other on one machine.
"""

import heapq
import math
import random
from bisect import bisect
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, count, product
from typing import Any

from benchmarks.table import number

__all__ = ["main"]

#: CPU of a manager: to accept a job, to lease and finish it, and to take a call of any kind.
ACCEPT_S, RUN_S, CALL_S = 5.3e-6, 9e-6, 60e-6
TRIP_S = 0.0005
#: (write, linger) of a commit.
STORES = {"disk": (0.001, 0.0), "bucket": (0.040, 0.025)}
GATEWAYS, IN_FLIGHT, BATCH_MAX, TENANTS = 4, 2, 1_000, 1_000
#: As the worker and the gateway have them today.
HEARTBEAT_S, NOTICED_S, LONG_S, AHEAD_S, AWAY_S = 3.0, 0.05, 0.05, 0.02, 1.0
#: Spread of handler times: lognormal, so that some are long.
SIGMA = 0.5
#: Ready tasks that a backlog is kept at.
FED = 2_000
DOWN_AT_S, DOWN_S, NOTICE_DEATH_S = 1.0, 2.0, 0.05
#: Later than this is late; of jobs submitted in so much of the end of a run nothing is said.
SETTLE_S = 0.25


@dataclass(frozen=True)
class Setup:
    """One run. `rate` 0 keeps a backlog at every partition; `homes` 0: workers serve all."""

    partitions: int = 1
    workers: int = 100
    slots: int = 1
    handler_s: float = 0.1
    rate: float = 0.0
    zipf: float = 0.0
    hot: float = 0.0
    split: bool = False
    homes: int = 0
    store: str = "disk"
    down: bool = False
    warm_s: float = 0.5
    seconds: float = 1.0


class Job:
    """One job: when it was submitted, acknowledged and started, and where it is."""

    __slots__ = ("acked", "at", "started", "tenant", "where")

    def __init__(self, at: float, tenant: int, where: int) -> None:
        self.at, self.tenant, self.where = at, tenant, where
        self.acked = self.started = math.inf


class Partition:
    """One manager: a single server, and a commit with one write in flight."""

    def __init__(self, sim: "Sim") -> None:
        self.sim, self.inbox, self.ready = sim, deque[partial[Any]](), deque[Job]()
        self.busy = self.writing = self.down = False
        self.busy_s = self.debt_s = 0.0
        self.calls = self.finished = 0
        self.open: list[Callable[[], None]] = []
        self.flying: list[Callable[[], None]] = []
        self.has_events = False
        #: Reports held open, longest first: with credit, and without; then what each was given.
        self.hungry, self.sated = (OrderedDict[Worker, tuple[int, int]]() for _ in range(2))
        self.given: dict[Worker, int] = {}
        self.told: set[Worker] = set()

    def receive(self, call: "partial[Any]") -> None:
        self.inbox.append(call)
        if not self.busy:
            self.turn()

    def turn(self) -> None:
        self.busy = bool(self.inbox) and not self.down
        if self.busy:
            cost_s, end = self.inbox.popleft()()
            self.calls += 1
            self.spend(CALL_S + cost_s, partial(self.ended, end))

    def spend(self, cost_s: float, then: Callable[[], None]) -> None:
        self.busy_s += cost_s
        self.sim.later(cost_s, then)

    def ended(self, end: Callable[[], None]) -> None:
        end()
        debt_s, self.debt_s = self.debt_s, 0.0
        if debt_s:
            self.spend(debt_s, self.turn)
        else:
            self.turn()

    def submit(self, jobs: list[Job], answer: Callable[[], None]) -> Any:
        return ACCEPT_S * len(jobs), partial(self.accepted, jobs, answer)

    def accepted(self, jobs: list[Job], answer: Callable[[], None]) -> None:
        self.ready += jobs
        self.commit(answer)
        self.dispatch()

    def dispatch(self) -> None:
        """Give ready tasks to parked workers evenly; tell those without credit that some wait."""
        share = -(-len(self.ready) // max(1, len(self.hungry)))
        while self.ready and self.hungry:
            worker, (number, free) = self.hungry.popitem(last=False)
            tasks = self.take(worker, min(free, share))
            self.debt_s += RUN_S / 2 * len(tasks)
            self.commit(partial(worker.hear, self, number, tasks, len(self.ready)))
        for _ in range(min(len(self.ready), len(self.sated))):
            worker, (number, _) = self.sated.popitem(last=False)
            self.told.add(worker)
            self.barrier(partial(worker.hear, self, number, [], len(self.ready)))

    def take(self, worker: "Worker", limit: int) -> list[Job]:
        tasks = [self.ready.popleft() for _ in range(min(limit, len(self.ready)))]
        self.given[worker] += len(tasks)
        return tasks

    def exchange(
        self, worker: "Worker", number: int, ended: int, free: int, got: int, ask: bool
    ) -> Any:
        self.hungry.pop(worker, None)
        self.sated.pop(worker, None)
        # What was given since it made this report is promised already.
        free = max(0, free - (self.given.setdefault(worker, 0) - got))
        if free:
            self.told.discard(worker)
        tasks = self.take(worker, free)
        end = partial(self.reported, worker, number, ended, free, tasks, ask)
        return RUN_S / 2 * (ended + len(tasks)), end

    def reported(
        self, worker: "Worker", number: int, ended: int, free: int, tasks: list[Job], ask: bool
    ) -> None:
        self.finished += ended
        if not (ended or tasks or ask):
            if free or worker not in self.told:
                (self.hungry if free else self.sated)[worker] = number, free
            return self.dispatch() if self.ready else None
        answer = partial(worker.hear, self, number, tasks, len(self.ready))
        return self.commit(answer) if ended or tasks else self.barrier(answer)

    def barrier(self, answer: Callable[[], None]) -> None:
        """Let an answer out once all that it may have seen is durable."""
        group = self.open if self.has_events else self.flying if self.writing else None
        if group is None:
            self.sim.later(TRIP_S / 2, answer)
        else:
            group.append(answer)

    def commit(self, answer: Callable[[], None]) -> None:
        self.has_events = True
        self.open.append(answer)
        if not self.writing:
            self.writing = True
            self.sim.later(self.sim.linger_s, self.write)

    def write(self) -> None:
        self.flying, self.open, self.has_events = self.open, [], False
        self.sim.later(self.sim.write_s, self.durable)

    def durable(self) -> None:
        for answer in self.flying:
            self.sim.later(TRIP_S / 2, answer)
        self.flying, self.writing = [], self.has_events
        if self.writing:
            self.sim.later(self.sim.linger_s, self.write)


class Worker:
    """Slots, and the credits it has promised of them: never more in all than it has."""

    def __init__(self, sim: "Sim", homes: list[Partition], turn: int) -> None:
        self.sim, self.idle, self.line = sim, sim.setup.slots, deque[tuple[Job, Partition]]()
        handler_s, slots = sim.setup.handler_s, sim.setup.slots
        ahead = min(1_000, math.ceil(AHEAD_S * slots / max(handler_s, 1e-5)))
        ahead = ahead if handler_s <= LONG_S else 0
        each, rest = divmod(slots + ahead, len(homes))
        order = homes[turn % len(homes) :] + homes[: turn % len(homes)]
        self.credit = {p: each + (i < rest) for i, p in enumerate(order)}
        self.waiting, self.ended, self.got, self.number = (
            dict.fromkeys(order, 0) for _ in range(4)
        )
        #: Reports whose answer will come for sure; credits that were taken back by such a one.
        self.sure: dict[Partition, int] = {}
        self.leaving: dict[Partition, tuple[int, Partition]] = {}
        self.again: set[Partition] = set()

    def tell(self, at: Partition) -> None:
        """Report to one partition, unless an answer is under way: then right after it."""
        if at in self.sure:
            self.again.add(at)
            return
        self.number[at] += 1
        number, ended, self.ended[at] = self.number[at], self.ended[at], 0
        if ask := at in self.leaving or ended > 0:
            self.sure[at] = number
        report = partial(at.exchange, self, number, ended, self.credit[at], self.got[at], ask)
        self.sim.later(TRIP_S / 2, partial(at.receive, report))

    def beat(self, at: Partition, number: int, again: bool) -> None:
        """Report if nothing was said since report `number`: a heartbeat, or that a task runs."""
        if number == self.number[at] and at not in self.sure:
            self.tell(at)
        if again:
            self.sim.later(HEARTBEAT_S, partial(self.beat, at, self.number[at], True))

    def hear(self, at: Partition, number: int, tasks: list[Job], waiting: int) -> None:
        self.waiting[at] = waiting
        self.got[at] += len(tasks)
        self.credit[at] -= len(tasks)
        self.line.extend((job, at) for job in tasks)
        self.start()
        if self.sure.get(at) == number:
            del self.sure[at]
            if at in self.leaving:
                self.move(at, *self.leaving.pop(at))
        if waiting and not self.credit[at]:
            self.call_back(at)
        if number == self.number[at] or at in self.again:
            self.again.discard(at)
            self.tell(at)

    def move(self, source: Partition, credits: int, to: Partition) -> None:
        """Promise elsewhere what `source` has confirmed that it will not use."""
        credits += min(0, self.credit[source])  # it gave more before it heard
        self.credit[source] = max(0, self.credit[source])
        if credits > 0:
            self.credit[to] += credits
            self.tell(to)

    def call_back(self, to: Partition) -> None:
        spare = [p for p, c in self.credit.items() if c > 0 and not self.waiting[p]]
        source = max(spare, key=self.credit.__getitem__, default=None)
        if source is not None and source not in self.leaving and source not in self.sure:
            credits = min(self.credit[source], max(1, self.waiting[to]))
            self.credit[source] -= credits
            self.leaving[source] = credits, to
            self.tell(source)

    def start(self) -> None:
        while self.idle and self.line:
            self.idle -= 1
            job, source = self.line.popleft()
            job.started = self.sim.now
            self.sim.count_waiting(-1)
            took_s = self.sim.handler_s()
            if took_s > NOTICED_S:
                self.sim.later(NOTICED_S, partial(self.beat, source, self.number[source], False))
            self.sim.later(took_s, partial(self.end, source))

    def end(self, source: Partition) -> None:
        self.idle += 1
        self.ended[source] += 1
        # A slot stays where it was, unless far more waits elsewhere: each move is one more call.
        to = max(self.waiting, key=self.waiting.__getitem__)
        to = to if self.waiting[to] > 2 * self.waiting[source] else source
        self.credit[to] += 1
        self.waiting[to] = max(0, self.waiting[to] - 1)
        self.start()
        self.tell(source)
        if to is not source:
            self.tell(to)

    def lose(self, at: Partition) -> None:
        """Promise elsewhere what a dead partition was promised; too much promised only waits."""
        others = [p for p in self.credit if p is not at and self.credit[at] > 0]
        for i in range(self.credit[at] if others else 0):
            self.credit[others[i % len(others)]] += 1
            self.credit[at] -= 1
        for other in others:
            self.tell(other)


class Sim:
    """The clock, the gateways, and what is counted."""

    def __init__(self, setup: Setup, seed: int = 1) -> None:
        self.setup, self.rng, self.now = setup, random.Random(seed), 0.0
        self.write_s, self.linger_s = STORES[setup.store]
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = count()
        self.partitions = [Partition(self) for _ in range(setup.partitions)]
        self.jobs: list[Job] = []
        self.waiting, self.waited_s, self.counted_at = 0, 0.0, 0.0
        homes = setup.homes or setup.partitions
        ring = self.partitions * 2
        self.workers = [
            Worker(self, ring[i % setup.partitions :][:homes], i // setup.partitions)
            for i in range(setup.workers)
        ]
        weights = [1 / n**setup.zipf for n in range(1, TENANTS + 1)]
        weights[0] = setup.hot / (1 - setup.hot) * sum(weights[1:]) if setup.hot else weights[0]
        self.shares = list(accumulate(weights))
        self.places = [self.rng.randrange(setup.partitions) for _ in range(TENANTS)]
        self.pending = {(g, p): list[Job]() for g in range(GATEWAYS) for p in range(len(ring) // 2)}
        self.sent = dict.fromkeys(self.pending, 0)
        self.mu = math.log(max(setup.handler_s, 1e-9)) - SIGMA**2 / 2

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay_s, next(self.serial), act))

    def handler_s(self) -> float:
        return math.exp(self.rng.gauss(self.mu, SIGMA)) if self.setup.handler_s else 0.0

    def count_waiting(self, change: int) -> None:
        self.waited_s += self.waiting * (self.now - self.counted_at)
        self.counted_at = self.now
        self.waiting += change

    def new_job(self, tenant: int, where: int) -> Job:
        self.jobs.append(Job(self.now, tenant, where))
        self.count_waiting(1)
        return self.jobs[-1]

    def arrive(self) -> None:
        tenant = bisect(self.shares, self.rng.random() * self.shares[-1])
        spread = self.setup.split and tenant == 0
        where = self.rng.randrange(len(self.partitions)) if spread else self.places[tenant]
        way = self.rng.randrange(GATEWAYS), where
        self.pending[way].append(self.new_job(tenant, where))
        self.send(way)
        self.later(self.rng.expovariate(self.setup.rate), self.arrive)

    def send(self, way: tuple[int, int]) -> None:
        if self.pending[way] and self.sent[way] < IN_FLIGHT:
            batch, self.pending[way] = self.pending[way][:BATCH_MAX], self.pending[way][BATCH_MAX:]
            self.sent[way] += 1
            self.hand_over(self.partitions[way[1]], batch, partial(self.answered, way, batch))

    def hand_over(self, to: Partition, batch: list[Job], answer: Callable[[], None]) -> None:
        self.later(TRIP_S / 2, partial(to.receive, partial(to.submit, batch, answer)))

    def answered(self, way: tuple[int, int], batch: list[Job]) -> None:
        for job in batch:
            job.acked = self.now
        self.sent[way] -= 1
        self.send(way)

    def feed(self, where: int) -> None:
        """Keep a backlog at a partition, whatever the others do."""
        if (room := FED - len(self.partitions[where].ready)) > FED // 4:
            batch = [self.new_job(0, where) for _ in range(room)]
            self.hand_over(self.partitions[where], batch, partial(self.feed, where))
        else:
            self.later(0.001, partial(self.feed, where))

    def set_down(self, part: Partition, down: bool) -> None:
        part.down, mine = down, [worker for worker in self.workers if part in worker.credit]
        part.hungry.clear()
        part.sated.clear()
        if down:
            for worker in mine:
                self.later(NOTICE_DEATH_S, partial(worker.lose, part))
        else:
            part.turn()
            for worker in mine:
                worker.tell(part)

    def until(self, end_s: float) -> None:
        events, pop = self.events, heapq.heappop
        while events and events[0][0] <= end_s:
            self.now, _, act = pop(events)
            act()
        self.now = end_s

    def run(self) -> "Result":
        setup = self.setup
        for worker in self.workers:
            for part in worker.credit:
                self.later(self.rng.random() * 0.01, partial(worker.tell, part))
                beat = partial(worker.beat, part, 0, True)
                self.later(self.rng.random() * HEARTBEAT_S, beat)
        if setup.rate:
            self.later(0.02, self.arrive)
        else:
            for where in range(setup.partitions):
                self.feed(where)
        if setup.down:
            for at_s, down in ((DOWN_AT_S, True), (DOWN_AT_S + DOWN_S, False)):
                self.later(at_s, partial(self.set_down, self.partitions[0], down))
        self.until(setup.warm_s)
        before = [(p.finished, p.busy_s, p.calls) for p in self.partitions]
        self.until(setup.warm_s + setup.seconds)
        self.count_waiting(0)
        rows = zip(self.partitions, before, strict=True)
        change = [(p.finished - f, p.busy_s - b, p.calls - c) for p, (f, b, c) in rows]
        return Result(self, *(list(each) for each in zip(*change, strict=True)))


class Result:
    """What one run showed between its warm-up and its end."""

    def __init__(
        self, sim: Sim, finished: list[int], busy_s: list[float], calls: list[int]
    ) -> None:
        self.sim, span_s = sim, sim.setup.seconds
        self.rate = sum(finished) / span_s
        self.busy = 100 * max(busy_s) / span_s
        self.calls = sum(calls) / max(1, sum(finished))
        # Of the last ones it is not known yet when they start.
        since_s, until_s = sim.setup.warm_s, sim.now - SETTLE_S
        self.jobs = [job for job in sim.jobs if since_s <= job.at < until_s]
        places = Counter(job.where for job in self.jobs)
        self.hottest = 100 * max(places.values(), default=0) / max(1, len(self.jobs))

    def start_ms(self, share: float, of: Callable[[Job], bool] = lambda job: True) -> float:
        """Return submit to start; infinite where the line grows."""
        waits = sorted(job.started - job.at for job in self.jobs if of(job))
        return waits[int(share * (len(waits) - 1))] * 1000 if waits else math.nan


Rows = Iterator[Sequence[str | float]]


def cell(value: str | float) -> str:
    """Return the value as a table shows it; of a line that grows there is no latency."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if value < math.inf else "grows"


def run(setup: Setup, **changes: Any) -> Result:
    return Sim(replace(setup, **changes)).run()


def checks() -> Rows:
    """What must come out if the simulation is right, and what does."""
    most = run(Setup(workers=8, slots=1_000, handler_s=0.0, warm_s=0.2, seconds=0.3))
    yield "no-op jobs a second = 1 / 14.3 µs", 1 / (ACCEPT_S + RUN_S), most.rate
    some = run(Setup(workers=180, rate=1_500.0, warm_s=0.0, seconds=4.0))
    waits = [min(job.started, some.sim.now) - job.at for job in some.sim.jobs]
    yield "Little: jobs waiting = sum of waits / time", sum(waits) / 4, some.sim.waited_s / 4
    cost_s = some.calls * CALL_S + ACCEPT_S + RUN_S
    yield "busy % = rate x cost of a job", some.rate * cost_s * 100, some.busy


def one_partition() -> Rows:
    for slots, sizes in ((1, (250, 800, 6_000)), (16, (60, 300, 1_200))):
        for handler_s, most in zip((0.01, 0.1, 1.0), sizes, strict=True):
            warm_s, seconds = (0.25, 0.25) if handler_s < 1 else (1.8, 0.7)
            setup = Setup(1, most, slots, handler_s, warm_s=warm_s, seconds=seconds)
            full = run(setup)
            fed = full.rate * handler_s / slots
            half = run(setup, workers=int(fed / 2))
            less = half.rate, half.calls, round(half.busy)
            yield round(handler_s * 1000), slots, full.rate, full.calls, round(fed), *less


def most_of_many() -> Rows:
    for partitions, homes in ((1, 1), (2, 2), (4, 4), (4, 2), (8, 8), (8, 2)):
        setup = Setup(partitions, 250 * partitions, 4, homes=homes, warm_s=0.25, seconds=0.25)
        found = run(setup)
        yield partitions, homes, found.rate, found.rate / partitions, found.calls


def latency() -> Rows:
    for store, zipf, parts in product(STORES, (0.0, 1.1), (1, 2, 4, 8)):
        workers = (400 if store == "disk" else 700) * parts
        setup = Setup(parts, workers, 1, rate=2_500.0 * parts, zipf=zipf, homes=min(2, parts))
        got = run(setup, store=store, warm_s=0.25, seconds=0.5)
        name = f"Zipf {zipf}" if zipf else "even"
        starts = got.start_ms(0.5), got.start_ms(0.99)
        yield store, name, parts, got.rate, round(got.hottest), round(got.busy), *starts


def hot_tenant() -> Rows:
    base = Setup(4, 1_800, rate=10_000.0, homes=2, seconds=1.25)
    for name, hot, split in (
        ("none", 0.0, False),
        ("half", 0.5, False),
        ("half, split", 0.5, True),
    ):
        got = run(base, hot=hot, split=split)
        home = got.sim.places[0]
        its = got.start_ms(0.99, lambda job: job.tenant == 0)
        there, elsewhere = (
            got.start_ms(0.99, partial(is_beside, home, at_home)) for at_home in (True, False)
        )
        yield name, got.rate, round(got.busy), its, there, elsewhere


def is_beside(home: int, at_home: bool, job: Job) -> bool:
    return job.tenant > 0 and (job.where == home) is at_home


def restart() -> Rows:
    for parts, store in ((1, "disk"), (4, "disk"), (4, "bucket"), (8, "disk")):
        setup = Setup(parts, 150 * parts, rate=500.0 * parts, store=store, homes=min(2, parts))
        got = run(setup, down=True, warm_s=DOWN_AT_S, seconds=3.25)
        back_s = DOWN_AT_S + DOWN_S
        during = [job for job in got.jobs if job.at < back_s]
        late = [job for job in during if job.started - job.at > SETTLE_S]
        # What has no answer within a second goes to intake, and is acknowledged from there.
        acks = [min(job.acked - job.at, AWAY_S + sum(STORES[store])) for job in during]
        slow = sum(ack > SETTLE_S for ack in acks)
        shares = 100 * len(late) / len(during), 100 * slow / len(acks)
        over_s = max(job.started for job in late) - back_s
        elsewhere = got.start_ms(0.99, lambda job: job.where > 0)
        yield parts, store, *shares, max(acks), over_s, elsewhere if parts > 1 else "-"


#: Title, columns, and what fills them.
TABLES: list[tuple[str, str, Callable[[], Rows]]] = [
    ("Does it add up?", "what | expected | simulated", checks),
    (
        "One partition on a disk, with a backlog; and with half of the workers it feeds",
        "handler ms | slots a worker | jobs/s at most | calls a job | workers it feeds "
        "| half: jobs/s | half: calls a job | half: busy %",
        one_partition,
    ),
    (
        "P partitions with a backlog: 100 ms, four slots a worker, disk",
        "P | partitions a worker serves | jobs/s | jobs/s each | calls a job",
        most_of_many,
    ),
    (
        "Submit to start: 2,500 jobs/s a partition, 100 ms, workers serve two partitions",
        "store | tenants | P | jobs/s | hottest's share % | hottest busy % | p50 ms | p99 ms",
        latency,
    ),
    (
        "A hot tenant: P = 4, 10,000 jobs/s",
        "its share | jobs/s | busiest % | its p99 ms | p99 of others there | p99 elsewhere",
        hot_tenant,
    ),
    (
        "One partition of P is away for 2 s; each has 500 jobs/s",
        "P | store | start 0.25 s late, % | ack 0.25 s late, % | slowest ack s "
        "| caught up after s | p99 ms elsewhere",
        restart,
    ),
]


def main() -> None:
    """Print every table; the same each time."""
    for title, head, rows in TABLES:
        print(f"\n{title}\n\n| {head} |\n{'|---' * len(head.split(' | '))}|")
        for row in rows():
            print(f"| {' | '.join(map(cell, row))} |", flush=True)


if __name__ == "__main__":
    main()
