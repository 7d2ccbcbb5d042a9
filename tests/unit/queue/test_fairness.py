"""Turns between tenants, and between the jobs of one: shares, newcomers, and what a turn costs."""

import heapq
from collections import Counter
from typing import Any

import msgspec
import pytest

from cluster.protocol import FileInfo, Output
from cluster.queue import line as lines
from cluster.queue.line import AGED_TURN, OWED_MAX
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import Plan, StepSpec
from tests.support.builders import Rulebook, canonical, some_rules


@pytest.fixture
def book() -> Rulebook:
    return Rulebook(some_rules(depth_max=1_000_000))


def serve(book: Rulebook, turns: int) -> list[str]:
    """Run one after the other; return whose each was."""
    served = []
    for _ in range(turns):
        (token,) = book.lease("w1")
        served.append(book.state.leases[token].job.tenant)
        book.finish(token, "ok")
    return served


def flood(book: Rulebook, tenant: str, count: int, **changes: Any) -> None:
    book.submit(*(f"{tenant}-{n}-{book.state.submitted}" for n in range(count)), tenant=tenant,
                **changes)  # fmt: skip


def test_tenants_of_equal_weight_take_turns(book: Rulebook) -> None:
    flood(book, "a", 5)
    flood(book, "b", 5)

    assert "".join(serve(book, 10)) in ("ababababab", "aabbababab", "abababababa")


def test_weights_are_shares_within_one_turn_at_any_moment(book: Rulebook) -> None:
    book.configure(weights={"a": 3.0, "b": 1.0})
    flood(book, "b", 200)
    flood(book, "a", 400)

    served = serve(book, 400)

    for end in range(4, 401):
        shares = Counter(served[:end])
        assert abs(shares["a"] - 0.75 * end) <= 1.5


def test_a_tenant_of_no_name_has_the_weight_of_all_others(book: Rulebook) -> None:
    book.configure(weights={"*": 0.5, "a": 1.0})
    flood(book, "x", 100)
    flood(book, "a", 100)

    assert abs(Counter(serve(book, 90))["a"] - 60) <= 1


def test_weights_that_are_changed_hold_from_the_next_turn_on(book: Rulebook) -> None:
    flood(book, "a", 200)
    flood(book, "b", 200)
    serve(book, 20)

    book.configure(weights={"a": 4.0})

    assert abs(Counter(serve(book, 100))["a"] - 80) <= 2


def test_a_quiet_tenant_is_next_beside_one_with_a_hundred_thousand(book: Rulebook) -> None:
    noisy = book.state.line("default")
    book.submit("first", tenant="noisy")
    task = book.task("first")
    for _ in range(100_000):  # the same task over and over: what is looked at is the line
        noisy.push(msgspec.structs.replace(task))
    for n in range(3):
        noisy.remove(next(task for _, task in noisy.in_turn()), served=True)
        book.submit(f"quiet{n}", tenant="quiet")

        (token,) = book.lease("w1")

        assert book.state.leases[token].job.tenant == "quiet"


def test_being_away_saves_no_turns_up(book: Rulebook) -> None:
    flood(book, "a", 300)
    serve(book, 100)
    flood(book, "late", 100)

    assert abs(Counter(serve(book, 40))["late"] - 20) <= 1


def test_leaving_for_a_moment_pays_no_debt(book: Rulebook) -> None:
    """Whoever has one task at a time, and comes back at once, has its share and no more."""
    flood(book, "steady", 200)
    served = []
    for _ in range(100):
        if "busy" not in {task.job.tenant for _, task in book.state.lines["default"].in_turn()}:
            flood(book, "busy", 1)
        served += serve(book, 1)

    assert abs(Counter(served)["busy"] - 50) <= 2


def test_a_job_whose_chunks_come_one_by_one_leaves_the_tenant_s_others_their_turns(
    book: Rulebook,
) -> None:
    flood(book, "default", 60)
    book.submit("f", plan=Plan([StepSpec(fans_out=True, at_once=1)]))
    served = []
    for _ in range(60):
        (token,) = book.lease("w1")
        task = book.state.leases[token]
        served.append(task.job.id)
        output = Output()
        if task.id == "split":
            output = Output(chunks=50, manifest=FileInfo("m", "p", 1, "x"))
        book.finish(token, "ok", output=msgspec.Raw(msgspec.json.encode(output)))

    assert abs(served.count("f") - 30) <= 1
    assert list(dump(load(rows := list(dump(book.state))))) == rows


def test_a_rate_that_many_jobs_share_does_not_hold_up_the_tenant_s_others(book: Rulebook) -> None:
    book.submit(*(f"api{n}" for n in range(50)), limits=("api",))
    book.submit("quick")

    served = [book.state.leases[token].job.id for token in book.lease("w1", 2)]

    assert "quick" in served


def test_a_tenant_s_share_does_not_grow_with_its_jobs_or_queues_of_work(book: Rulebook) -> None:
    flood(book, "simple", 100)
    for n in range(10):
        plan = Plan([StepSpec(f"s{i}") for i in range(10)])
        book.submit(f"flow{n}", plan=plan, tenant="planner")

    assert abs(Counter(serve(book, 100))["simple"] - 50) <= 1


def test_a_turn_that_came_to_nothing_is_given_back_to_its_tenant(book: Rulebook) -> None:
    book.configure(weights={"a": 3.0})
    flood(book, "a", 20)
    flood(book, "b", 20)
    serve(book, 7)
    line = book.state.lines["default"]
    before = [task.job.id for _, task in line.in_turn()]

    for token in book.lease("w1", 6):
        book.finish(token, "returned")

    assert [task.job.id for _, task in line.in_turn()] == before


def test_whoever_gives_back_what_it_took_ahead_keeps_nobody_waiting_for_as_long(
    book: Rulebook,
) -> None:
    flood(book, "greedy", 500)
    ahead = book.lease("w1", 400)
    flood(book, "before", 1)
    for token in ahead[20:]:
        book.finish(token, "returned")
    flood(book, "after", 1)

    assert {"before", "after"} <= set(serve(book, OWED_MAX + 3))


def test_a_job_that_gives_back_what_it_took_ahead_keeps_no_other_of_its_tenant_waiting(
    book: Rulebook,
) -> None:
    book.submit("f", plan=Plan([StepSpec(fans_out=True, at_once=400)]))
    [split] = book.lease("w1")
    output = Output(chunks=500, manifest=FileInfo("m", "p", 1, "x"))
    book.finish(split, "ok", output=msgspec.Raw(msgspec.json.encode(output)))
    ahead = book.lease("w1", 300)
    book.submit("before")
    for token in ahead[20:]:
        book.finish(token, "returned")
    book.submit("after")

    served = [book.state.leases[token].job.id for token in book.lease("w1", OWED_MAX + 5)]
    assert {"before", "after"} <= set(served)


def test_one_turn_in_ten_goes_to_what_waited_for_long(book: Rulebook) -> None:
    flood(book, "low", 5, priority=-5)
    book.now += 61.0
    flood(book, "high", 100, priority=5)

    served = serve(book, 5 * AGED_TURN)

    assert [served.index("low"), served.count("low")] == [AGED_TURN - 1, 5]


def test_what_has_not_waited_for_long_waits_for_all_of_higher_priority(book: Rulebook) -> None:
    flood(book, "low", 5, priority=-5)
    book.now += 59.0
    flood(book, "high", 50, priority=5)

    assert serve(book, 50) == ["high"] * 50


def test_of_several_priorities_the_oldest_ages_first(book: Rulebook) -> None:
    flood(book, "oldest", 1, priority=-9)
    book.now += 1.0
    flood(book, "older", 1, priority=-1)
    book.now += 99.0
    flood(book, "high", 50, priority=5)

    served = serve(book, 2 * AGED_TURN)

    assert [served.index("oldest"), served.index("older")] == [AGED_TURN - 1, 2 * AGED_TURN - 1]


def test_shares_go_on_after_a_snapshot_where_they_were(book: Rulebook) -> None:
    book.configure(weights={"a": 3.0, "c": 0.3})
    for tenant in "abc":
        flood(book, tenant, 60)
    serve(book, 31)
    flood(book, "d", 20)
    other = Rulebook(book.rules)
    other.state, other.now = load(list(dump(book.state))), book.now

    assert serve(other, 120) == serve(book, 120)
    assert canonical(other.state) == canonical(book.state)


# --- what it costs ----------------------------------------------------------------------------


class Counting:
    """Stands for `heapq` and counts the entries that it moves or looks at."""

    def __init__(self, real: Any) -> None:
        self._real, self.touched = real, 0

    def _levels(self, heap: list[Any]) -> int:
        return max(1, len(heap).bit_length())

    def heappush(self, heap: list[Any], entry: Any) -> None:
        self.touched += self._levels(heap)
        self._real.heappush(heap, entry)

    def heappop(self, heap: list[Any]) -> Any:
        self.touched += self._levels(heap)
        return self._real.heappop(heap)

    def heapreplace(self, heap: list[Any], entry: Any) -> Any:
        self.touched += self._levels(heap)
        return self._real.heapreplace(heap, entry)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    found = Counting(heapq)
    monkeypatch.setattr(lines, "heapq", found)
    return found


def test_a_turn_costs_as_many_steps_as_the_logarithm_of_the_tenants(
    book: Rulebook, counting: Counting
) -> None:
    costs = {}
    for tenants in (10, 1_000):
        for n in range(tenants):
            book.submit(*(f"{tenants}-{n}-{i}" for i in range(25)), tenant=f"{tenants}-{n}")
        counting.touched = 0
        serve(book, 200)
        costs[tenants] = counting.touched / 200

    assert costs[1_000] <= 4 * costs[10]  # three times the levels


def test_tenants_that_come_and_go_leave_nothing_behind(book: Rulebook) -> None:
    flood(book, "t0", 20)
    for n in range(3_000):
        book.submit(f"{n}", tenant=f"t{n}")
        serve(book, 1)
        if n % 7 == 0:
            book.submit(f"cancelled{n}", tenant=f"c{n}")
            book.cancel(f"cancelled{n}")
        if n == 0:
            (bucket,) = book.state.lines["default"].buckets.values()
        assert len(bucket.turns.heap) <= 2 * bucket.turns.waiting + lines.ADDED_UP
        assert len(bucket.tenants) <= 3 * lines.ADDED_UP


def test_jobs_of_many_tasks_that_come_and_go_leave_nothing_behind(book: Rulebook) -> None:
    flood(book, "default", 20)
    for n in range(1_000):
        book.submit(f"{n}", plan=Plan([StepSpec("only")]))
        serve(book, 1)
        (bucket,) = book.state.lines["default"].buckets.values()
        tenant = bucket.tenants["default"]
        assert len(tenant.flows) <= 3 * lines.ADDED_UP
        assert len(tenant.turns.heap) <= 2 * tenant.turns.waiting + lines.ADDED_UP


def test_whoever_had_a_turn_has_another_though_newcomers_never_end(book: Rulebook) -> None:
    flood(book, "steady", 200)
    served = []
    for n in range(200):
        book.submit(f"new{n}", tenant=f"new{n}")
        served += serve(book, 1)

    assert served.count("steady") >= 5


def test_a_job_goes_on_though_newcomers_of_its_tenant_never_end(book: Rulebook) -> None:
    book.submit("flow", plan=Plan([StepSpec("a"), StepSpec("b", needs=["a"])]))
    for n in range(20):
        book.submit(f"new{n}", plan=Plan([StepSpec("a")]))
        book.submit(f"more{n}", plan=Plan([StepSpec("a")]))
        serve(book, 1)

    assert book.job("flow").finished_at
