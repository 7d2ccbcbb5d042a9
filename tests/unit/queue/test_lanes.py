"""Lanes: where work goes at once, where it goes on, and where there is more memory."""

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.model import LEARNED_RUNS
from cluster.queue.rules import QueueLimits
from cluster.queue.spec import Plan, StepSpec
from cluster.queue.state import TaskState
from tests.support.builders import Rulebook, a_job, canonical, some_rules

LANES = {
    "fast": QueueLimits(max_run_s=1.0, then="slow", oom_to="big"),
    "slow": QueueLimits(max_run_s=60.0, then="long"),
    "long": QueueLimits(),
    "big": QueueLimits(),
}
RULES = some_rules(limits=LANES)


def moves(events: list[e.Event]) -> list[tuple[str, str]]:
    return [(event.queue, event.reason) for event in events if isinstance(event, e.TaskMoved)]


def run(book: Rulebook, job_id: str, seconds: float, **changes: object) -> None:
    book.submit(job_id, queue="fast", **changes)
    queue = book.task(job_id).line.name
    (token,) = book.lease("w1", queues=[queue])
    book.finish(token, "ok", started_at=1.0, ended_at=1.0 + seconds)


def test_a_declared_duration_says_which_queue() -> None:
    book = Rulebook(RULES)
    for job_id, expected_s in (("a", 0.9), ("b", 1.0), ("c", 1.1), ("d", 100.0)):
        events = book.do(a_job(job_id, queue="fast", routed=True, expected_s=expected_s))
        assert [e.JobSubmitted] == [type(event) for event in events][:1]

    assert [book.task(job_id).line.name for job_id in "abcd"] == ["fast", "fast", "slow", "long"]
    assert canonical(book.replayed()) == canonical(book.state)


def test_steps_of_types_that_name_no_queue_go_where_their_jobs_would() -> None:
    book = Rulebook(some_rules((), limits=LANES, default_queue="slow"))
    steps = [StepSpec("a", queue="default"), StepSpec("b", queue="fast"), StepSpec("c")]

    book.submit("job", plan=Plan(steps))

    assert {task.id: task.line.name for task in book.state.jobs["job"].tasks} == {
        "a": "slow",
        "b": "fast",
        "c": "slow",
    }
    assert canonical(book.replayed()) == canonical(book.state)


def test_who_named_a_queue_gets_it() -> None:
    book = Rulebook(RULES)

    book.submit("a", queue="fast", expected_s=100.0)

    assert book.task("a").line.name == "fast"


def test_a_type_is_known_after_twenty_runs_and_goes_by_the_usual_one() -> None:
    book = Rulebook(RULES)
    for n in range(LEARNED_RUNS - 1):
        run(book, f"run{n}", 5.0, type="video")
    book.submit("early", queue="fast", routed=True, type="video")
    run(book, "last", 5.0, type="video")
    book.submit("late", queue="fast", routed=True, type="video")
    book.submit("other", queue="fast", routed=True, type="text")

    lines = [book.task(job_id).line.name for job_id in ("early", "late", "other")]
    assert lines == ["fast", "slow", "fast"]


def test_what_is_declared_counts_more_than_what_was_learned() -> None:
    book = Rulebook(RULES)
    for n in range(LEARNED_RUNS):
        run(book, f"run{n}", 5.0)

    book.submit("a", queue="fast", routed=True, expected_s=0.5)

    assert book.task("a").line.name == "fast"


def test_a_type_that_got_quicker_is_sent_back_to_the_fast_lane() -> None:
    book = Rulebook(RULES)
    for n in range(LEARNED_RUNS):
        run(book, f"slow{n}", 5.0)
    for n in range(LEARNED_RUNS // 2 + 1):
        run(book, f"quick{n}", 0.1)

    book.submit("a", queue="fast", routed=True)

    assert book.task("a").line.name == "fast"
    assert len(book.state.learned["test.job"].runs) == LEARNED_RUNS


def test_a_lane_that_leads_back_is_followed_once() -> None:
    back = {"fast": LANES["fast"], "slow": QueueLimits(max_run_s=2.0, then="fast")}
    book = Rulebook(some_rules(limits=back))

    book.submit("a", queue="fast", routed=True, expected_s=1_000.0)

    assert book.task("a").line.name == "slow"


def test_one_that_runs_too_long_is_stopped_and_goes_on_from_its_checkpoint_uncharged() -> None:
    book = Rulebook(RULES)
    token = book.running("a", queue="fast", resumable=True)

    assert book.do(c.Promote(token)) == [e.StopRequested("a", "0", 1, token, "promote")]
    assert book.do(c.Promote(token)) == []
    events = book.finish(token, "stopped", cause="promote", started_at=10.0, ended_at=12.0)

    assert moves(events) == [("slow", "long")]
    task = book.task("a")
    assert (task.state, task.line.name, task.failures, task.recoveries) == (
        TaskState.READY,
        "slow",
        0,
        0,
    )
    assert book.job("a").queue == "slow"
    assert list(book.state.learned["test.job"].runs) == [2.0]
    assert canonical(book.replayed()) == canonical(book.state)


def test_one_that_cannot_go_on_runs_on_and_counts_elsewhere() -> None:
    book = Rulebook(RULES)
    token = book.running("a", queue="fast")
    book.now += 3.0

    assert moves(book.do(c.Promote(token))) == [("slow", "long")]
    assert book.state.lines["fast"].depth == 0
    assert book.state.lines["slow"].depth == 1
    assert moves(book.do(c.Promote(token))) == [("long", "long")]
    assert book.do(c.Promote(token)) == []  # nowhere to go on from there
    book.finish(token, "ok")

    assert book.task("a").state is TaskState.SUCCEEDED


def test_one_that_is_done_or_fails_before_it_stops_is_judged_as_always() -> None:
    book = Rulebook(RULES)
    done = book.running("done", queue="fast", resumable=True)
    fails = book.running("fails", "w2", queue="fast", resumable=True)
    last = book.running("last", "w3", queue="fast", resumable=True, max_attempts=1)
    for token in (done, fails, last):
        book.do(c.Promote(token))

    assert moves(book.finish(done, "ok")) == []
    assert moves(book.finish(fails, "failed", worker="w2")) == [("slow", "long")]
    assert moves(book.finish(last, "failed", worker="w3")) == []
    assert book.task("fails").failures == 1
    assert book.task("last").state is TaskState.DEAD


def test_a_cancel_counts_more_than_a_promotion() -> None:
    book = Rulebook(RULES)
    token = book.running("a", queue="fast", resumable=True)
    book.do(c.Promote(token))

    book.cancel("a")
    events = book.finish(token, "stopped")

    assert moves(events) == []
    assert book.task("a").state is TaskState.CANCELLED


def test_a_worker_that_dies_with_one_asked_to_move_on_lets_it_move_on() -> None:
    book = Rulebook(RULES)
    token = book.running("a", queue="fast", resumable=True)
    book.do(c.Promote(token))

    assert moves(book.lose("w1")) == [("slow", "long")]


def test_out_of_memory_goes_where_there_is_more_uncharged() -> None:
    book = Rulebook(RULES)
    token = book.running("a", queue="fast")

    events = book.finish(token, "crashed", cause="oom", alone=True)

    assert moves(events) == [("big", "oom")]
    assert (book.task("a").recoveries, book.task("a").failures) == (0, 0)
    (token,) = book.lease("w1", queues=["big"])
    assert moves(book.finish(token, "crashed", cause="oom", alone=True)) == []
    assert book.task("a").recoveries == 1  # there is no more than that


def test_a_suspect_whose_worker_ran_out_of_memory_moves_and_the_others_do_not() -> None:
    book = Rulebook(RULES)
    book.submit("x", "y", queue="fast")
    book.lease("w1", 2, ["fast"])
    assert moves(book.lose("w1", "oom")) == []  # nobody knows which of them it was
    book.submit("beside", queue="fast")
    book.lease("w2", 2, ["fast"])

    assert moves(book.lose("w2", "oom")) == [("big", "oom")]

    assert book.task("x").line.name == "big"
    assert not book.task("x").suspect
    assert book.task("beside").line.name == book.task("y").line.name == "fast"


def test_out_of_memory_where_no_queue_has_more_stays_where_it_is() -> None:
    book = Rulebook(RULES)
    book.submit("x", "y", queue="slow")
    book.lease("w1", 2, ["slow"])

    events = book.do(c.LoseWorker("w1", "oom", arrived=frozenset()))

    assert moves(events) == []
    assert list(book.state.lines) == ["slow"]


def test_an_attempt_that_is_stopped_for_another_reason_moves_nowhere() -> None:
    book = Rulebook(RULES)
    token = book.running("a", queue="fast", resumable=True)

    assert moves(book.finish(token, "stopped", cause="drain")) == []
    (token,) = book.lease("w1", queues=["fast"])
    assert moves(book.do(c.Reclaim("w1", [token], "oom"))) == []


def test_a_step_moves_alone() -> None:
    book = Rulebook(RULES)
    steps = [StepSpec("one", resumable=True), StepSpec("two")]
    book.submit("a", queue="fast", plan=Plan(steps))
    one, two = book.lease("w1", 2, ["fast"])

    book.do(c.Promote(one))
    book.finish(one, "stopped")

    plan = book.job("a").plan
    assert plan is not None
    assert (plan.tasks["one"].line.name, plan.tasks["two"].line.name) == ("slow", "fast")
    assert book.job("a").queue == "fast"
    book.finish(two, "ok")
    (token,) = book.lease("w1", queues=["slow"])
    book.finish(token, "ok")
    assert book.job("a").finished_at
    assert {name: line.depth for name, line in book.state.lines.items()} == {"fast": 0, "slow": 0}
    assert canonical(book.replayed()) == canonical(book.state)


def test_what_runs_out_of_memory_where_lanes_lead_in_a_circle_ends() -> None:
    lanes = {
        "fast": QueueLimits(max_run_s=1.0, then="big"),
        "big": QueueLimits(oom_to="fast"),
    }
    book = Rulebook(some_rules(limits=lanes, interruptions_max=5, recoveries_max=3))
    book.submit("a", queue="fast")
    for _ in range(5 + 3 + 1):
        assert not book.job("a").finished_at
        (token,) = book.lease("w1", queues=["fast", "big"])
        book.do(c.Promote(token))
        book.finish(token, "crashed", cause="oom", alone=True)

    assert book.task("a").state is TaskState.DEAD


def test_what_was_moved_while_leased_and_comes_back_unused_takes_a_place_of_its_own() -> None:
    book = Rulebook(RULES)
    token = book.running("moved", queue="fast")
    book.submit("there", queue="slow")
    book.do(c.Promote(token))

    book.finish(token, "returned")

    order = [task.job.id for _, task in book.state.lines["slow"].in_turn()]
    assert order == ["there", "moved"]
    tokens = book.lease("w1", 2, ["slow"])
    assert [book.state.leases[token].job.id for token in tokens] == order
    assert canonical(book.replayed()) == canonical(book.state)
