"""Who is served when several jobs of many tasks, and many of one, stand in one line."""

from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from cluster.protocol import FileInfo, Output
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import Plan, StepSpec
from cluster.queue.state import TaskState
from tests.support.builders import Rulebook, canonical, some_rules


def fan_out(book: Rulebook, job_id: str, count: int, **changes: object) -> None:
    """Submit a fan-out and split it: its chunks are in line."""
    step = StepSpec(fans_out=True, join=True)
    book.submit(job_id, plan=Plan([step]), queue="splits", **changes)
    plan = book.job(job_id).plan
    assert plan is not None
    tokens = book.lease("splitter", 10, ["splits"])
    (token,) = [t for t in tokens if book.state.leases[t].id == "split"]
    for other in reversed(tokens):
        if other != token:
            book.finish(other, "returned", worker="splitter")
    output = Output(chunks=count, manifest=FileInfo("manifest", "path", 1, job_id))
    book.finish(token, "ok", worker="splitter", output=msgspec.Raw(msgspec.json.encode(output)))


@pytest.fixture
def book() -> Rulebook:
    return Rulebook(some_rules(("default", "splits"), depth_max=1_000_000))


def serve(book: Rulebook, count: int, queue: str = "splits") -> list[str]:
    """Lease one task after the other, and finish it; return their jobs."""
    served = []
    for _ in range(count):
        (token,) = book.lease("w1", queues=[queue])
        served.append(book.state.leases[token].job.id)
        book.finish(token, "ok", output=msgspec.Raw(b"{}"))
    return served


def simple(book: Rulebook, *job_ids: str, priority: int = 0) -> None:
    book.submit(*job_ids, queue="splits", priority=priority)


def test_jobs_of_one_task_go_in_the_order_they_came(book: Rulebook) -> None:
    simple(book, *"abc")
    simple(book, "urgent", priority=5)
    simple(book, *"de")

    assert serve(book, 6) == ["urgent", *"abcde"]


def test_what_waited_long_gets_a_tenth_though_those_above_it_wait_longer_still(
    book: Rulebook,
) -> None:
    book.rules = some_rules(("default", "splits"), depth_max=1_000, ageing_s=60.0)
    simple(book, *(f"high-{n}" for n in range(40)), priority=5)
    simple(book, "low-1", "low-2")
    simple(book, "lowest", priority=-5)
    before = serve(book, 10)

    book.pass_time(61.0)
    served = serve(book, 30)

    assert not [job_id for job_id in before if job_id.startswith("low")]
    assert [n for n, job_id in enumerate(served) if job_id.startswith("low")] == [9, 19, 29]
    assert [job_id for job_id in served if job_id.startswith("low")] == ["low-1", "low-2", "lowest"]


def test_a_job_behind_a_thousand_chunks_waits_for_one_of_each_flow_at_most(book: Rulebook) -> None:
    fan_out(book, "f", 1_000)
    fan_out(book, "g", 1_000)
    serve(book, 101)
    simple(book, "late")

    served = serve(book, 3)
    assert served.index("late") <= 2
    assert Counter(served).most_common(1)[0][1] == 1


def test_jobs_of_one_task_share_with_a_fan_out_as_one(book: Rulebook) -> None:
    fan_out(book, "f", 100)
    simple(book, *(f"s{n}" for n in range(100)))

    served = serve(book, 60)
    assert served[::2] == ["f"] * 30 or served[1::2] == ["f"] * 30
    assert [job_id for job_id in served if job_id != "f"] == [f"s{n}" for n in range(30)]


def test_two_fan_outs_share_evenly_whoever_came_first(book: Rulebook) -> None:
    fan_out(book, "f", 3_000)
    serve(book, 500)
    fan_out(book, "g", 3_000)

    serve(book, 20)  # those that were given back for the split of "g" have their turns first
    served = Counter(serve(book, 2_000))  # over several windows of both
    assert abs(served["f"] - served["g"]) <= 1


def test_three_flows_leased_in_batches_share_evenly(book: Rulebook) -> None:
    fan_out(book, "f", 300)
    fan_out(book, "g", 300)
    simple(book, *(f"s{n}" for n in range(300)))

    serve(book, 20)  # as above
    tokens = book.lease("w1", 90, ["splits"])
    flows = Counter(book.state.leases[token].job.id[0] for token in tokens)
    assert flows == {"f": 30, "g": 30, "s": 30}


def test_a_flow_that_was_idle_has_no_credit(book: Rulebook) -> None:
    fan_out(book, "f", 500)
    simple(book, "early")
    serve(book, 200)
    simple(book, *(f"s{n}" for n in range(50)))

    served = serve(book, 20)
    assert 9 <= served.count("f") <= 11
    assert all(one == "f" or other == "f" for one, other in pairwise(served))


def test_a_task_that_was_given_back_is_next_again_and_its_flow_loses_no_turn(
    book: Rulebook,
) -> None:
    fan_out(book, "f", 10)
    simple(book, *"abcd")
    line = book.state.lines["splits"]
    before = [(task.job.id, task.id, task.ticket) for _, task in line.in_turn()]
    tokens = book.lease("w1", 5, ["splits"])
    for token in reversed(tokens):
        book.finish(token, "returned")
    assert [(task.job.id, task.id, task.ticket) for _, task in line.in_turn()] == before

    tokens = book.lease("w1", 5, ["splits"])
    for token in tokens:  # in any order
        book.finish(token, "returned")
    assert [(task.job.id, task.id, task.ticket) for _, task in line.in_turn()] == before


def test_the_last_of_a_flow_that_was_given_back_keeps_its_place_beside_newcomers(
    book: Rulebook,
) -> None:
    simple(book, "a")
    (token,) = book.lease("w1", queues=["splits"])
    simple(book, "b")
    book.finish(token, "returned")
    simple(book, "c")

    assert serve(book, 3) == ["a", "b", "c"]


def test_a_position_counts_about_those_that_go_before(book: Rulebook) -> None:
    fan_out(book, "f", 100)
    fan_out(book, "g", 7)
    simple(book, *(f"s{n}" for n in range(20)))
    simple(book, "urgent", priority=5)
    serve(book, 10)
    line = book.state.lines["splits"]

    order = [task for _, task in line.in_turn()]
    for place, task in enumerate(order):
        assert abs(line.position(task) - place) <= 3  # a turn of each flow
    assert line.position(order[0]) == 0
    urgent_after = line.position(order[-1])
    simple(book, "urgent2", priority=5)
    assert line.position(order[-1]) == urgent_after + 1


def test_tasks_that_were_withdrawn_and_resumed_are_in_line_once(book: Rulebook) -> None:
    fan_out(book, "f", 40)
    simple(book, *"abc")
    tokens = book.lease("w1", 8, ["splits"])
    chunks = [token for token in tokens if book.state.leases[token].job.id == "f"]
    bad = chunks[0]
    for token in set(tokens) - {bad}:
        book.finish(token, "crashed", alone=False)  # suspects now
    assert book.state.lines["splits"].suspects
    book.finish(bad, "discarded")
    line = book.state.lines["splits"]
    assert {task.job.id for _, task in line.in_turn()} <= {"a", "b", "c"}
    book.do(c.Revive("f"))

    ready = [*(task for _, task in line.in_turn()), *line.suspects]
    assert len(ready) == len(set(ready)) == line.counts[TaskState.READY]
    assert len([task for task in ready if task.job.id == "f"]) == 40
    book.do(c.Cancel("f"))
    assert {task.job.id for task in [*(task for _, task in line.in_turn()), *line.suspects]} <= {
        "a",
        "b",
        "c",
    }
    assert line.buckets[0].size == 0 or line.size <= 3


def test_a_line_loaded_from_a_snapshot_serves_in_the_same_order(book: Rulebook) -> None:
    fan_out(book, "f", 2_500)
    simple(book, *(f"s{n}" for n in range(40)))
    fan_out(book, "g", 30)
    serve(book, 50)
    book.lease("w2", 5, ["splits"])
    (token,) = book.lease("w3", queues=["splits"])
    book.finish(token, "returned", worker="w3")
    fan_out(book, "h", 30, priority=1)
    simple(book, "late")

    other = Rulebook(book.rules)
    other.state, other.now = load(list(dump(book.state))), book.now
    assert canonical(other.state) == canonical(book.state)
    for _ in range(40):
        leased = book.do(c.Lease("w1", ["splits"], 50))
        assert other.do(c.Lease("w1", ["splits"], 50)) == leased
        for event in leased:
            assert isinstance(event, e.TaskLeased)
            one, two = (
                b.finish(event.token, "ok", output=msgspec.Raw(b"{}")) for b in (book, other)
            )
            assert one == two
    assert canonical(other.state) == canonical(book.state)


def test_of_many_priorities_turns_go_as_if_each_were_looked_at(book: Rulebook) -> None:
    book.rules = some_rules(("default", "splits"), depth_max=10_000, ageing_s=60.0)
    for priority in range(-20, 20):
        simple(book, f"{priority}", priority=priority)
    first = serve(book, 9)
    book.pass_time(61.0)

    rest = serve(book, 31)

    assert first == [str(n) for n in range(19, 10, -1)]
    # Each tenth turn is for the oldest below the highest; all are as old, so for the next of them.
    assert rest[:3] == ["9", "10", "8"]
    assert sorted(map(int, first + rest)) == list(range(-20, 20))
