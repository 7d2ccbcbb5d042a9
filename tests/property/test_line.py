"""A line beside a naive one: the same order of service, whatever comes, leaves and comes back.

The naive one keeps lists, looks at all of them for each turn, and never forgets anybody.
"""

import copy
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cluster.queue import line as lines
from cluster.queue.line import (
    ADDED_UP,
    AGED_TURN,
    OWED_MAX,
    Priorities,
    Shares,
    marks_of,
    put_marks,
)
from cluster.queue.model import Job, Line, Task
from cluster.queue.state import TaskState

WEIGHTS = {"a": 3.0, "b": 1.0, "*": 0.5}
LINE = Line("default", Shares())

some = st.integers(0, 1_000)
priorities = st.sampled_from([0, 0, 0, 5])
tenants = st.sampled_from(["a", "a", "a", "b", "c"])
keys = st.sampled_from([(), (), (), ("k",), ("m", "k")])


def cost(tenant: str) -> float:
    return 1.0 / WEIGHTS.get(tenant, WEIGHTS["*"])


class Turns:
    """Whose turn it is, by looking at everybody."""

    def __init__(self) -> None:
        self.reached = 0.0
        self.entered = 0
        self.tags: dict[Any, float] = {}
        self.orders: dict[Any, int] = {}

    def enter(self, who: Any) -> None:
        self.tags[who] = max(self.tags.get(who, 0.0), self.reached)
        self.entered += 1
        self.orders[who] = self.entered

    def leave(self, who: Any) -> None:
        del self.orders[who]

    def serve(self, who: Any, amount: float) -> None:
        tag = self.tags.get(who, 0.0)
        self.reached = max(tag, self.reached + amount / (len(self.orders) + 1))
        self.tags[who] = tag + amount

    def give_back(self, who: Any, amount: float) -> None:
        owed = min(self.tags[who], self.reached - OWED_MAX * amount)
        self.tags[who] = max(self.tags[who] - amount, owed)

    def next(self, among: Any) -> Any:
        return min(among, key=lambda who: (self.tags[who], self.orders[who]))


class Naive:
    """Tasks of one priority, in lists."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.flows: dict[str, Turns] = {}
        self.tasks: dict[tuple[str, Any], list[Task]] = {}

    def key(self, task: Task) -> Any:
        return task.job.limits[0] if task.job.limits else 0

    def of(self, tenant: str) -> dict[Any, list[Task]]:
        return {key: tasks for (name, key), tasks in self.tasks.items() if name == tenant}

    def add(self, task: Task, *, at: int | None = None) -> None:
        tenant, key = task.job.tenant, self.key(task)
        if not self.of(tenant):
            self.turns.enter(tenant)
        flow = self.tasks.get((tenant, key))
        if flow is None:
            self.flows.setdefault(tenant, Turns()).enter(key)
            flow = self.tasks[tenant, key] = []
        flow.insert(len(flow) if at is None else at, task)

    def give_back(self, task: Task, *, first: bool) -> None:
        tenant, key = task.job.tenant, self.key(task)
        if tenant in self.turns.tags:
            self.turns.give_back(tenant, cost(tenant))
        if key in (turns := self.flows.setdefault(tenant, Turns())).tags:
            turns.give_back(key, 1.0)
        flow = self.tasks.get((tenant, key), [])
        before = [one for one in flow if one.ticket < task.ticket]
        self.add(task, at=0 if first else len(before))

    def remove(self, task: Task, *, served: bool) -> None:
        tenant, key = task.job.tenant, self.key(task)
        flow, flows = self.tasks[tenant, key], self.flows[tenant]
        flow.remove(task)
        if not flow:
            del self.tasks[tenant, key]
            flows.leave(key)
        if served:
            flows.serve(key, 1.0)
        if not self.of(tenant):
            del self.flows[tenant]
            self.turns.leave(tenant)
        if served:
            self.turns.serve(tenant, cost(tenant))

    def in_turn(self) -> list[Task]:
        turns, flows = copy.deepcopy(self.turns), copy.deepcopy(self.flows)
        left = {name: list(tasks) for name, tasks in self.tasks.items()}
        found = []
        while left:
            tenant = turns.next({name for name, _ in left})
            key = flows[tenant].next({key for name, key in left if name == tenant})
            found.append(left[tenant, key].pop(0))
            if not left[tenant, key]:
                del left[tenant, key]
            turns.tags[tenant] += cost(tenant)
            flows[tenant].tags[key] += 1.0
        return found


class LineOfAll(RuleBasedStateMachine):
    """Tasks come, are served, leave, and are given back."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = Shares()
        self.shares.set(WEIGHTS)
        self.line = Priorities(self.shares)
        self.naive: dict[int, Naive] = {}
        self.count = 0
        self.at_a_limit = False
        self.served: list[Task] = []

    def of(self, priority: int) -> Naive:
        return self.naive.setdefault(priority, Naive())

    def all(self) -> list[Task]:
        return [
            task for one in self.naive.values() for tasks in one.tasks.values() for task in tasks
        ]

    @rule(priority=priorities, tenant=tenants, limits=keys, count=st.integers(1, 8))
    def push(self, priority: int, tenant: str, limits: tuple[str, ...], count: int) -> None:
        for _ in range(count):
            self.count += 1
            job = Job(f"j{self.count}", b"", "t", tenant, "default", priority, 0.0, self.count)
            job.limits = limits
            task = Task(job, LINE, "0", TaskState.READY, ready_at=float(self.count))
            self.line.push(task)
            self.of(priority).add(task)

    @precondition(lambda self: self.line.size)
    @rule(count=st.integers(1, 6))
    def serve(self, count: int) -> None:
        for _ in range(count):
            task = self.line.head()
            if task is None:
                break
            self.line.remove(task, served=True)
            self.of(task.job.priority).remove(task, served=True)
            self.served.append(task)

    @precondition(lambda self: self.line.size)
    @rule(picks=st.lists(some, min_size=1, max_size=4))
    def remove(self, picks: list[int]) -> None:
        for pick in picks:
            if tasks := self.all():
                task = tasks[pick % len(tasks)]
                self.line.remove(task)
                self.of(task.job.priority).remove(task, served=False)
                assert task not in self.line

    @initialize(at_a_limit=st.booleans())
    def begin(self, at_a_limit: bool) -> None:
        """A line at a limit takes back what steps back, before all; another what was returned."""
        self.at_a_limit = at_a_limit

    @precondition(lambda self: self.served)
    @rule(pick=st.integers(0, 5))
    def give_back(self, pick: int) -> None:
        task = self.served.pop(-1 - pick % min(6, len(self.served)))
        first = self.at_a_limit
        if first:
            self.line.push_first(task)
        else:
            self.line.push_front(task)
        self.of(task.job.priority).give_back(task, first=first)

    @rule()
    def come_back_from_a_snapshot(self) -> None:
        marks = {priority: marks_of(bucket) for priority, bucket in self.line.buckets.items()}
        turns, self.line = self.line.turns, Priorities(self.shares)
        for task in sorted(self.all(), key=lambda task: task.ticket):
            self.line.restore(task)
        self.line.turns = turns
        for priority, mark in marks.items():
            put_marks(self.line.bucket(priority), mark)
            assert marks_of(self.line.bucket(priority)) == mark

    @rule(aged=some)
    def some_have_waited_for_long(self, aged: int) -> None:
        left = {p: one.in_turn() for p, one in sorted(self.naive.items(), reverse=True)}
        found, turn = [], self.line.turns
        while left := {priority: tasks for priority, tasks in left.items() if tasks}:
            turn += 1
            top, *lower = left
            chosen = top
            if turn % AGED_TURN == 0 and lower:
                oldest = min(lower, key=lambda priority: left[priority][0].ready_at)
                chosen = oldest if left[oldest][0].ready_at <= aged else top
            found.append((top, left[chosen].pop(0)))
        assert list(self.line.in_turn(float(aged))) == found

    @invariant()
    def it_serves_in_the_same_order(self) -> None:
        waiting = []
        for priority, one in sorted(self.naive.items(), reverse=True):
            waiting += [(priority, task) for task in one.in_turn()]

        assert list(self.line.in_turn()) == waiting
        assert self.line.size == len(waiting)
        assert self.line.head() is (waiting[0][1] if waiting else None)
        assert all(task in self.line for _, task in waiting)
        assert not any(task in self.line for task in self.served)
        if waiting:
            assert self.line.position(waiting[0][1]) <= len(self.naive)
        for _, task in waiting:
            assert 0 <= self.line.position(task) <= len(waiting) + 5

    @invariant()
    def nothing_grows_without_work(self) -> None:
        for bucket in self.line.buckets.values():
            all_turns: list[Any] = [bucket.turns, *(t.turns for t in bucket.tenants.values())]
            for turns in all_turns:
                assert len(turns.heap) <= 2 * turns.waiting + ADDED_UP
                assert not turns.heap or turns.heap[0][2].waits
            for tenant in bucket.tenants.values():
                assert tenant.size == sum(flow.size for flow in tenant.flows.values())
                assert tenant.size or not tenant.flows
            assert bucket.size == sum(tenant.size for tenant in bucket.tenants.values())


@pytest.fixture(autouse=True)
def little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a line tidy what it tidies in the thousands otherwise."""
    monkeypatch.setattr(lines, "SLACK", 2)


TestLine = pytest.mark.timeout(120)(LineOfAll.TestCase)
TestLine.settings = settings(
    max_examples=50, stateful_step_count=50, deadline=None, derandomize=True
)
