"""Limits that jobs share by a key: what waits off the line, and what lets it in."""

import itertools
from typing import Any

import msgspec
import pytest

from cluster.protocol import FileInfo, Outcome, Output
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.dispatch import AHEAD_SEEN
from cluster.queue.gates import AHEAD_S, LEAD_S, USED, limit_of, next_opening
from cluster.queue.rules import Limit
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import Plan, StepSpec, encode_spec
from cluster.queue.state import TaskState
from tests.support.auditor import check_gates
from tests.support.builders import NOON, Rulebook, a_spec, canonical, some_rules

ONE = Limit(concurrency=1)


def states(book: Rulebook, *job_ids: str) -> list[str]:
    return [book.task(job_id).state.value for job_id in job_ids]


def leased(book: Rulebook, worker: str, limit: int, *queues: str) -> list[str]:
    tokens = book.lease(worker, limit, queues or ("default",))
    return [book.state.leases[token].job.id for token in tokens]


def ran(book: Rulebook, job_id: str, worker: str = "w1") -> None:
    book.finish(book.task(job_id).token, "ok", worker=worker)


def starts(book: Rulebook, rate_s: float, queues: tuple[str, ...] = ("default",)) -> list[float]:
    """Run what time lets in, as a worker that asks all the time; return when each began."""
    found: list[float] = []
    last = book.now + rate_s
    while True:
        while tokens := book.lease("w1", 100, queues):
            found += [book.state.starts[token] - NOON for token in tokens]
            for token in tokens:
                book.finish(token, "ok")
        at = next_opening(book.state)
        if at is None or at > last:
            return found
        book.now = max(book.now, at)
        book.do(c.Tick())


# --- concurrency ------------------------------------------------------------------------------


def test_a_call_over_the_limit_waits_for_its_turn(book: Rulebook) -> None:
    book.configure({"api": Limit(concurrency=2)})
    book.submit(*"abc", limits=("api",))

    assert states(book, *"abc") == ["ready", "ready", "parked"]
    assert leased(book, "w1", 5) == ["a", "b"]
    assert leased(book, "w2", 5) == []

    ran(book, "a")

    assert leased(book, "w2", 5) == ["c"]


def test_whoever_makes_room_tells_in_the_same_commit(book: Rulebook) -> None:
    book.configure({"api": ONE})
    book.submit(*"ab", limits=("api",))
    (token,) = book.lease("w1", 5)

    events = book.finish(token, "failed", delay_s=60.0)

    assert events[-1] == e.TaskUnparked("b", "0")
    assert not book.state.opening


def test_other_keys_and_jobs_without_one_pass_by(book: Rulebook) -> None:
    book.configure({"api": ONE})
    book.submit("a", "b", limits=("api",))
    book.submit("other", limits=("else",))
    book.submit("free")

    assert leased(book, "w1", 5) == ["a", "other", "free"]


def test_of_several_patterns_the_longest_holds_and_a_key_of_its_own_before_all(
    book: Rulebook,
) -> None:
    limits = {"*": Limit(concurrency=9), "user:*": Limit(concurrency=2), "user:7": ONE}
    book.configure(limits)

    assert limit_of(book.state, "user:7") == ONE
    assert limit_of(book.state, "user:8") == limits["user:*"]
    assert limit_of(book.state, "host") == limits["*"]
    assert limit_of(Rulebook().state, "host") is None


def test_each_key_of_a_pattern_has_a_limit_of_its_own(book: Rulebook) -> None:
    book.configure({"user:*": ONE})
    for user in "xy":
        book.submit(f"{user}1", f"{user}2", limits=(f"user:{user}",))

    assert leased(book, "w1", 9) == ["x1", "y1"]


def test_a_job_with_two_keys_waits_while_one_of_them_is_full(book: Rulebook) -> None:
    book.configure({"a": ONE, "b": ONE})
    book.submit("holds", limits=("b",))
    assert leased(book, "w1", 1) == ["holds"]
    book.submit("both", limits=("a", "b"))
    book.submit("only", limits=("a",))

    assert states(book, "both", "only") == ["parked", "ready"]
    assert leased(book, "w2", 5) == ["only"]
    ran(book, "holds")
    assert states(book, "both") == ["parked"]  # the other one is full by now
    ran(book, "only", "w2")
    assert leased(book, "w2", 5) == ["both"]


def test_those_that_wait_at_one_another_s_limit_do_not_change_places_for_ever(
    book: Rulebook,
) -> None:
    book.configure({"a": ONE, "b": ONE})
    book.submit("holds-b", limits=("b",))
    book.lease("w1")
    book.submit("1", "2", limits=("a", "b"))  # at b
    book.submit("holds-a", limits=("a",))
    book.lease("w1")
    book.submit("3", "4", limits=("b", "a"))  # one of each at a, if b has room
    tokens = list(book.state.leases)

    book.do(c.Finish("w1", [Outcome(token, "ok") for token in tokens], [0.0, 0.0]))

    for _ in range(4):
        (job_id,) = leased(book, "w1", 5)
        ran(book, job_id)
    assert not book.state.gates


def test_parked_tasks_go_by_priority_and_in_turns_between_tenants(book: Rulebook) -> None:
    book.configure({"api": ONE})
    book.submit("runs", limits=("api",))
    book.submit("x1", "x2", tenant="x", limits=("api",))
    book.submit("y1", tenant="y", limits=("api",))
    book.submit("urgent", priority=5, tenant="x", limits=("api",))

    order = []
    for _ in range(5):
        (job_id,) = leased(book, "w1", 5)
        order.append(job_id)
        ran(book, job_id)

    assert order == ["runs", "urgent", "x1", "y1", "x2"]


def test_a_parked_task_of_low_priority_ages_as_one_in_line_does(book: Rulebook) -> None:
    book.rules = some_rules(ageing_s=60.0)
    book.configure({"api": ONE})
    book.submit("low", priority=-5, limits=("api",), run_at=NOON + 1)
    book.submit("first", limits=("api",))
    book.pass_time(1.0)
    book.now += 61.0
    served = []
    for n in range(30):
        book.submit(f"high{n}", f"more{n}", priority=5, limits=("api",))
        (job_id,) = leased(book, "w1", 1)
        served.append(job_id)
        ran(book, job_id)

    assert "low" in served


@pytest.mark.parametrize("how", ["cancel", "expire"])
def test_a_parked_task_that_leaves_lets_the_next_one_in(book: Rulebook, how: str) -> None:
    book.configure({"api": ONE})
    book.submit("runs", limits=("api",))
    book.lease("w1")
    book.submit("goes", limits=("api",), expires_at=NOON + 5)
    book.submit("next", limits=("api",))

    if how == "cancel":
        book.cancel("goes")
    else:
        book.pass_time(5.0)
    ran(book, "runs")

    assert book.task("goes").state is TaskState.CANCELLED
    assert leased(book, "w1", 5) == ["next"]
    check_gates(book.state)


def test_a_ready_task_that_is_cancelled_gives_its_place_to_one_that_is_parked(
    book: Rulebook,
) -> None:
    book.configure({"api": ONE})
    book.submit("a", "b", limits=("api",))

    book.cancel("a")

    assert states(book, "b") == ["ready"]


def test_a_paused_queue_holds_nobody_elsewhere_up(book: Rulebook) -> None:
    book.configure({"api": ONE})
    book.do(c.PauseQueue("default"))
    book.submit("d1", "d2", limits=("api",))
    book.submit("i1", "i2", limits=("api",), queue="io")

    assert states(book, "d1", "i1") == ["ready", "ready"]  # of each queue as many as may start
    for job_id in ("i1", "i2"):
        assert leased(book, "w1", 5, "default", "io") == [job_id]
        assert states(book, "d1", "d2") == ["parked", "parked"]
        check_gates(book.state)
        ran(book, job_id)


def test_one_that_steps_back_for_another_queue_keeps_its_place(book: Rulebook) -> None:
    book.configure({"api": Limit(concurrency=2)})
    book.submit(*(f"d{n}" for n in range(6)), limits=("api",))
    for n in range(5):
        book.submit(f"i{n}", limits=("api",), queue="io")
        assert leased(book, "w2", 1, "io") == [f"i{n}"]
        ran(book, f"i{n}", "w2")

    order = []
    for _ in range(3):
        two = leased(book, "w1", 2)
        order += two
        for job_id in two:
            ran(book, job_id)
    assert order == [f"d{n}" for n in range(6)]


def test_one_worker_of_two_queues_takes_no_more_of_a_key_than_may_run(book: Rulebook) -> None:
    book.configure({"api": Limit(concurrency=2)})
    for n in range(3):
        for queue in ("default", "io"):
            book.now += 1.0
            book.submit(f"{queue}{n}", limits=("api",), queue=queue)

    assert leased(book, "w1", 9, "default", "io") == ["default0", "io0"]
    check_gates(book.state)


def test_those_picked_together_run_though_one_stepped_back_for_the_other(book: Rulebook) -> None:
    """The last of a queue by its ticket need not be last in turn."""
    book.configure({"api": Limit(concurrency=2)})
    book.submit("i-x", tenant="x", limits=("else",), queue="io")
    book.submit("i-x2", tenant="x", limits=("api",), queue="io")
    book.submit("i-y", tenant="y", limits=("api",), queue="io")
    assert leased(book, "w1", 1, "io") == ["i-x"]  # now it is the turn of y
    book.now += 1.0
    book.submit("d1", "d2", limits=("api",), priority=1)

    book.cancel("d2")

    assert leased(book, "w1", 9, "default", "io") == ["d1", "i-y"]
    assert states(book, "i-x2") == ["parked"]
    check_gates(book.state)


def test_a_suspect_counts_against_its_limit(book: Rulebook) -> None:
    book.configure({"api": Limit(concurrency=2)})
    book.submit("s1", "s2", limits=("api",))
    assert leased(book, "w1", 2) == ["s1", "s2"]
    book.lose("w1")
    assert len(book.state.lines["default"].suspects) == 2
    book.submit("i1", "i2", limits=("api",), queue="io")

    assert leased(book, "w2", 9, "default", "io") == ["s1", "i1"]
    assert leased(book, "w3", 9, "default", "io") == []
    ran(book, "s1", "w2")
    assert leased(book, "w3", 9, "default") == ["s2"]
    check_gates(book.state)


def test_what_counts_against_a_limit_is_never_given_ahead(book: Rulebook) -> None:
    book.configure({"api": ONE})
    book.submit("limited", limits=("api",))
    book.submit("free")

    events = book.do(c.Lease("w1", ["default"], 5, ahead=True))

    assert [event.job_id for event in events if isinstance(event, e.TaskLeased)] == ["free"]


def test_nothing_is_left_of_a_key_that_nobody_uses(book: Rulebook) -> None:
    book.configure({"user:*": Limit(concurrency=1), "rate:*": Limit(rate=10.0, concurrency=5)})
    for n in range(30):
        limits = (f"user:{n}", f"rate:{n}", "user:all")
        book.submit(f"{n}", f"cancelled{n}", limits=limits)
        book.cancel(f"cancelled{n}")
        assert leased(book, "w1", 5) == [f"{n}"]
        ran(book, f"{n}")

    assert all(key.startswith("rate:") for key in book.state.gates)
    book.now += 60.0  # what was used up is there again
    book.do(c.PlanCompaction(1))
    book.do(c.EndCompaction(1, book.state.seq))
    assert book.state.gates == {}
    assert next_opening(book.state) is None


# --- jobs of many tasks -----------------------------------------------------------------------


def fan_out(book: Rulebook, job_id: str, chunks: int, **step: Any) -> None:
    book.submit(job_id, plan=Plan([StepSpec(fans_out=True, **step)]), max_attempts=1)
    (token,) = book.lease("w1")
    output = Output(chunks=chunks, manifest=FileInfo("m", "p", 1, "x"))
    book.finish(token, "ok", output=msgspec.Raw(msgspec.json.encode(output)))


def test_chunks_wait_at_the_limit_of_their_step(book: Rulebook) -> None:
    book.configure({"api": Limit(concurrency=2)})
    fan_out(book, "f", 6, limits=["api"], at_once=4)
    plan = book.job("f").plan
    assert plan is not None

    assert (plan.counts[TaskState.READY], plan.counts[TaskState.PARKED]) == (2, 2)
    for _ in range(3):
        tokens = book.lease("w1", 9)
        assert len(tokens) == 2
        for token in tokens:
            book.finish(token, "ok")
        check_gates(book.state)
    assert book.job("f").finished_at


def test_parked_chunks_of_a_job_that_failed_are_withdrawn_and_come_back(book: Rulebook) -> None:
    book.configure({"api": ONE})
    fan_out(book, "f", 5, limits=["api"])
    book.submit("other", limits=("api",))
    (token,) = book.lease("w1")

    book.finish(token, "failed")

    assert book.job("f").finished_at
    assert leased(book, "w1", 5) == ["other"]
    check_gates(book.state)
    ran(book, "other")
    assert not book.state.gates

    book.do(c.Revive("f"))
    for _ in range(5):
        (token,) = book.lease("w1", 9)
        book.finish(token, "ok")
    assert book.job("f").finished_at
    assert canonical(book.replayed()) == canonical(book.state)


# --- moving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "parked", "leased", "backing_off", "waiting"])
def test_a_task_that_moves_takes_what_it_is_at_a_limit_along(book: Rulebook, state: str) -> None:
    book.configure({"api": ONE})
    run_at = NOON + 5 if state == "waiting" else None
    if state == "parked":
        book.submit("before", limits=("api",))
    book.submit("a", limits=("api",), run_at=run_at)
    if state in ("leased", "backing_off"):
        (token,) = book.lease("w1")
    if state == "backing_off":
        book.finish(token, "failed", delay_s=9.0)
    assert states(book, "a") == [state]

    book.happen(e.TaskMoved("a", "0", "io", "known long"))
    while book.state.opening:
        book.do(c.Advance())

    assert states(book, "a") == [{"parked": "ready"}.get(state, state)]  # of another queue
    assert (book.task("a").line.name, book.job("a").queue) == ("io", "io")
    check_gates(book.state)
    assert canonical(book.replayed()) == canonical(book.state)
    if state == "leased":
        assert leased(book, "w2", 5, "io", "default") == []
        book.submit("next", limits=("api",))
        assert states(book, "next") == ["parked"]
        ran(book, "a")
        assert leased(book, "w2", 5) == ["next"]


def test_a_suspect_under_a_limit_moves_as_one(book: Rulebook) -> None:
    book.configure({"api": Limit(concurrency=2)})
    book.submit("a", "b", limits=("api",))
    book.lease("w1", 2)
    book.lose("w1")

    book.happen(e.TaskMoved("a", "0", "io", "oom"))

    assert list(book.state.lines["io"].suspects) == [book.task("a")]
    check_gates(book.state)


# --- rates ------------------------------------------------------------------------------------


def test_starts_are_evenly_spaced_however_often_a_worker_asks(book: Rulebook) -> None:
    book.configure({"api": Limit(rate=10.0)})
    book.submit(*map(str, range(40)), limits=("api",))

    begun = starts(book, 10.0)

    assert len(begun) == 40
    gaps = [after - before for before, after in itertools.pairwise(begun)]
    assert min(gaps) >= 0.1
    assert max(gaps) == pytest.approx(0.1 / USED, abs=1e-4)


@pytest.mark.parametrize(
    ("rate", "burst", "jobs"),
    [(0.001, 1, 5), (0.5, 3, 12), (40.0, 1, 60), (40.0, 50, 80), (1_000.0, 1_000, 1_400),
     (100_000.0, 1, 300)],
)  # fmt: skip
def test_in_no_window_do_more_begin_than_the_burst_and_what_the_rate_gives(
    rate: float, burst: int, jobs: int
) -> None:
    book = Rulebook(some_rules(depth_max=10_000))
    book.configure({"api": Limit(rate=rate, burst=burst)})
    half = jobs // 2
    book.submit(*map(str, range(half)), limits=("api",))
    book.submit(*map(str, range(half, jobs)), limits=("api",), queue="io")

    begun = sorted(starts(book, 10.0 * jobs / rate + 1.0, ("default", "io")))

    assert len(begun) == jobs
    for first in range(jobs):
        for last in range(first, jobs, max(1, jobs // 40)):
            most = burst + rate * (begun[last] - begun[first]) + 1e-3
            assert last - first + 1 <= most
    wait_s = max(0, jobs - burst) / (rate * USED)
    assert begun[-1] - begun[0] <= wait_s + 2 * AHEAD_S


def test_several_that_may_start_soon_are_leased_at_once(book: Rulebook) -> None:
    """Each begins later than the lease of the one before it: none may lose its place by that."""
    book.configure({"api": Limit(rate=100.0)})
    book.submit(*"abcdef", limits=("api",))

    tokens = book.lease("w1", 6)

    begun = [book.state.starts[token] - NOON for token in tokens]
    assert begun[0] == pytest.approx(LEAD_S, abs=1e-5)
    assert all(at <= AHEAD_S + 1e-4 for at in begun)
    check_gates(book.state)


def test_under_two_rates_the_slower_one_says_when(book: Rulebook) -> None:
    book.configure({"slow": Limit(rate=10.0), "quick": Limit(rate=40.0)})
    book.submit("q1", limits=("quick",))
    book.submit("both1", "both2", limits=("quick", "slow"))
    book.submit("q2", "q3", limits=("quick",))

    begun = starts(book, 5.0)

    assert len(begun) == 5
    gaps = sorted(after - before for before, after in zip(sorted(begun), sorted(begun)[1:],
                                                          strict=False))  # fmt: skip
    assert min(gaps) >= 1 / 40.0


def test_a_lease_that_was_never_used_gives_its_start_back(book: Rulebook) -> None:
    book.configure({"api": Limit(rate=0.001)})
    book.submit("a", "b", limits=("api",))
    (token,) = book.lease("w1", 5)
    before = book.state.starts[token]

    book.finish(token, "returned")

    assert book.state.starts == {}
    assert leased(book, "w2", 5) == ["a"]
    assert list(book.state.starts.values()) == [before]


def test_one_that_comes_back_after_others_took_their_starts_waits_for_a_new_one(
    book: Rulebook,
) -> None:
    book.configure({"api": Limit(rate=100.0)})
    book.submit(*"abc", limits=("api",))
    first, second = book.lease("w1", 2)
    taken = book.state.starts[second]

    book.finish(first, "returned")

    assert states(book, "a", "c") == ["parked", "parked"]
    check_gates(book.state)
    book.pass_time(0.02)
    assert leased(book, "w1", 1) == ["a"]  # before those that came after it
    assert book.state.starts[book.task("a").token] >= taken + 0.01


def test_a_clock_that_stands_still_or_jumps_does_not_break_a_rate(book: Rulebook) -> None:
    book.configure({"api": Limit(rate=2.0, burst=2)})
    book.submit(*"abcdef", limits=("api",))
    assert leased(book, "w1", 9) == ["a", "b"]
    for _ in range(3):
        assert book.pass_time(0.0) == []
        assert leased(book, "w1", 9) == []

    book.pass_time(1e9)

    assert leased(book, "w1", 9) == ["c", "d"]  # a burst, not all that time would have given
    assert book.pass_time(0.0) == []
    check_gates(book.state, ticked=True)


def test_openings_that_mean_nothing_any_more_are_dropped(book: Rulebook) -> None:
    book.rules = some_rules(depth_max=100_000)
    book.configure({"user:*": Limit(rate=0.001)})
    book.submit("runs", limits=("user:1",))
    book.lease("w1")
    for n in range(1_000):
        book.submit(f"a{n}", limits=("user:1",))
    assert len(book.state.openings) == 1
    for n in range(1_000):
        book.submit(f"x{n}", f"y{n}", limits=(f"user:x{n}",))
        book.lease("w1")
        book.cancel(f"y{n}")

    assert len(book.state.openings) <= 70


def test_a_tick_lets_in_a_bounded_number(book: Rulebook) -> None:
    book.rules = some_rules(depth_max=100_000)
    book.configure({"api": Limit(rate=100_000.0, burst=5_000)})
    book.submit(*(f"a{n}" for n in range(7_600)), limits=("api",))
    assert len(book.lease("w1", 10_000)) > 5_000
    parked = book.state.lines["default"].counts[TaskState.PARKED]

    events = book.pass_time(5.0)

    assert 0 < parked == len([one for one in events if isinstance(one, e.TaskUnparked)])
    check_gates(book.state, ticked=True)


# --- changes live -----------------------------------------------------------------------------


def test_limits_that_are_set_while_tasks_wait_and_run_hold_at_once(book: Rulebook) -> None:
    book.submit(*"abcd", limits=("api",))
    assert leased(book, "w1", 2) == ["a", "b"]

    book.configure({"api": Limit(concurrency=3)})

    assert states(book, "c", "d") == ["ready", "parked"]
    check_gates(book.state)


def test_a_limit_below_what_runs_lets_nothing_more_in_until_there_is_room(book: Rulebook) -> None:
    book.configure({"api": Limit(concurrency=3)})
    book.submit(*"abcde", limits=("api",))
    assert leased(book, "w1", 5) == ["a", "b", "c"]

    book.configure({"api": ONE})

    for job_id in "ab":
        ran(book, job_id)
        assert leased(book, "w1", 5) == []
    ran(book, "c")
    assert leased(book, "w1", 5) == ["d"]


def test_limits_that_are_lifted_let_all_in(book: Rulebook) -> None:
    book.configure({"api": Limit(concurrency=1, rate=0.001)})
    book.submit(*"abc", limits=("api",))
    book.lease("w1")

    book.configure()

    assert states(book, "b", "c") == ["ready", "ready"]
    ran(book, "a")
    assert (book.state.starts, book.state.gates, book.state.opening) == ({}, {}, {})
    assert leased(book, "w1", 5) == ["b", "c"]


def test_a_higher_rate_holds_at_once(book: Rulebook) -> None:
    book.configure({"api": Limit(rate=0.001)})
    book.submit("a", "b", limits=("api",))
    assert leased(book, "w1", 5) == ["a"]

    book.configure({"api": Limit(rate=10.0)})
    book.pass_time(0.2)

    assert leased(book, "w1", 5) == ["b"]


def test_a_lower_rate_holds_at_once(book: Rulebook) -> None:
    book.configure({"api": Limit(rate=10.0)})
    book.submit("a", "b", limits=("api",))
    assert leased(book, "w1", 5) == ["a"]

    book.configure({"api": Limit(rate=1.0)})
    book.pass_time(0.9)

    assert leased(book, "w1", 5) == []
    book.pass_time(0.2)
    assert leased(book, "w1", 5) == ["b"]


def test_other_limits_left_as_they_are_are_as_they_were(book: Rulebook) -> None:
    book.configure({"api": Limit(rate=0.01, burst=2), "x": ONE})
    book.submit(*"abc", limits=("api",))
    book.lease("w1", 2)
    before = next_opening(book.state)

    book.configure({"api": Limit(rate=0.01, burst=2)})

    assert next_opening(book.state) == pytest.approx(before)


def test_a_redrive_with_another_spec_counts_against_its_limits(book: Rulebook) -> None:
    book.configure({"api": ONE, "else": ONE})
    token = book.running("a", limits=("api",))
    book.finish(token, "discarded")
    book.submit("b", limits=("else",))

    book.do(c.Revive("a", raw=encode_spec(a_spec(limits=("else",)))))

    assert states(book, "a") == ["parked"]
    check_gates(book.state)
    assert canonical(book.replayed()) == canonical(book.state)


# --- snapshots --------------------------------------------------------------------------------


def test_limits_loaded_from_a_snapshot_go_on_where_they_were(book: Rulebook) -> None:
    book.configure({"api": Limit(rate=5.0, burst=3), "x:*": Limit(concurrency=2)})
    for n in range(12):
        book.submit(f"a{n}", limits=("api", f"x:{n % 2}"), tenant="uv"[n % 2], priority=n % 3)
        book.submit(f"b{n}", limits=("x:0",), queue="io")
    book.lease("w1", 3, ["default", "io"])
    rows = list(dump(book.state))

    other = Rulebook(book.rules)
    other.state, other.now = load(rows), book.now

    assert list(dump(other.state)) == rows
    assert canonical(other.state) == canonical(book.state)
    assert other.state.starts == book.state.starts
    for one in (book, other):
        for token in list(one.state.leases):
            one.finish(token, "ok")
    for _ in range(60):
        for one in (book, other):
            one.pass_time(0.1)
            for token in one.lease("w1", 2, ["default", "io"]):
                one.finish(token, "returned" if one.state.seq % 5 == 0 else "ok")
    assert canonical(other.state) == canonical(book.state)
    assert all(job.finished_at for job in book.state.order)


def test_who_takes_ahead_does_not_look_through_all_that_count_against_limits(
    book: Rulebook,
) -> None:
    book.rules = some_rules(depth_max=10_000)
    book.configure({"k:*": ONE})
    for n in range(AHEAD_SEEN):
        book.submit(f"limited-{n}", limits=(f"k:{n}",))
    book.submit("free")

    ahead = book.do(c.Lease("w1", ["default"], 1, ahead=True))

    assert [event for event in ahead if isinstance(event, e.TaskLeased)] == []
    assert len(leased(book, "w1", AHEAD_SEEN + 1)) == AHEAD_SEEN + 1
