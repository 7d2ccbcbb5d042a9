"""Fan-outs and workflows: what follows what, what is made again, and how the whole job ends."""

from typing import Any

import msgspec
import pytest

from cluster.protocol import FileInfo, Outcome, Output, Record, Submission
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.engine import evolve, job_status
from cluster.queue.plan import Step, StepState, StepTask, locate
from cluster.queue.plan_next import REBUILDS_MAX
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import Plan, StepSpec, encode_spec
from cluster.queue.state import TaskState
from jobs.errors import Conflict, Overloaded
from tests.support.builders import Rulebook, a_spec, canonical

S = TaskState


def fan_out(**changes: Any) -> StepSpec:
    return StepSpec(**{"fans_out": True, "join": True, **changes})


def submit(book: Rulebook, *steps: StepSpec, goes_on: bool = False, **changes: Any) -> None:
    book.submit("j", plan=Plan(list(steps), goes_on=goes_on), **changes)


def chunks(count: int, manifest: str = "sum") -> msgspec.Raw:
    file = FileInfo("manifest", "path", 1, manifest)
    return msgspec.Raw(msgspec.json.encode(Output(chunks=count, manifest=file)))


def lost(*named: tuple[str, int]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(named))


OK = msgspec.Raw(msgspec.json.encode(Output()))


def take(book: Rulebook, task_id: str, worker: str = "w1") -> int:
    """Lease until that task is leased, and give the others back."""
    tokens = book.lease(worker, 100)
    found = [token for token in tokens if book.state.leases[token].id == task_id]
    for token in tokens:
        if token not in found:
            book.finish(token, "returned", worker=worker)
    (token,) = found
    return token


def end(book: Rulebook, task_id: str, kind: Any = "ok", **more: Any) -> list[e.Event]:
    return book.finish(take(book, task_id), kind, **{"output": OK, **more})


def split(book: Rulebook, count: int, name: str = "split") -> None:
    end(book, name, output=chunks(count))


def plan_of(book: Rulebook) -> Any:
    return book.job("j").plan


def step_of(book: Rulebook, name: str = "") -> Step:
    step: Step = plan_of(book).steps[name]
    return step


def ready(book: Rulebook) -> list[str]:
    return [task.id for line in book.state.lines.values() for _, task in line.in_turn()]


def until_rest(book: Rulebook) -> None:
    """Let everything that is in line go well."""
    while tokens := book.lease("w9", 100, ["default", "io"]):
        for token in tokens:
            book.finish(token, "ok", worker="w9", output=OK)


# --- the way it goes ------------------------------------------------------------------------------


def test_a_fan_out_goes_from_its_split_over_its_chunks_to_its_join(book: Rulebook) -> None:
    submit(book, fan_out())
    assert (ready(book), job_status(book.job("j"))) == (["split"], "pending")
    split(book, 3)
    assert (ready(book), job_status(book.job("j"))) == (["0", "1", "2"], "processing")
    for name in "021":
        end(book, name)
    assert ready(book) == ["join"]
    end(book, "join")

    assert job_status(book.job("j")) == "completed"
    assert list(book.state.finished) == [book.job("j")]


def test_a_fan_out_of_no_chunks_goes_on_to_its_join(book: Rulebook) -> None:
    submit(book, fan_out())
    split(book, 0)

    assert ready(book) == ["join"]


def test_chunks_enter_the_line_in_a_window_and_leave_memory_when_done(book: Rulebook) -> None:
    submit(book, fan_out(at_once=2))
    split(book, 5)
    assert ready(book) == ["0", "1"]
    end(book, "1")

    assert ready(book) == ["0", "2"]
    assert "1" not in plan_of(book).tasks
    assert step_of(book).is_done(1)


def test_a_step_begins_once_all_it_needs_have_succeeded(book: Rulebook) -> None:
    submit(book, StepSpec("a"), StepSpec("b", queue="io"), StepSpec("c", needs=["a", "b"]))
    assert sorted(ready(book)) == ["a", "b"]
    end(book, "a")
    assert ready(book) == ["b"]
    (token,) = book.lease("w1", queues=["io"])
    book.finish(token, "ok", output=OK)

    assert ready(book) == ["c"]


def test_a_failed_step_stops_the_others_and_the_job_fails(book: Rulebook) -> None:
    submit(book, StepSpec("a"), StepSpec("b"), StepSpec("c", needs=["a"]))
    (a, b) = book.lease("w1", 2)
    book.finish(a, "discarded", error="bad")
    assert book.state.stopping == {"w1": {b: "job failed"}}
    book.finish(b, "stopped")

    assert job_status(book.job("j")) == "failed"
    assert list(book.state.dead) == [("j", "a")]
    assert ready(book) == []


def test_where_others_go_on_a_failed_step_takes_only_those_that_need_it(book: Rulebook) -> None:
    steps = StepSpec("a"), StepSpec("b"), StepSpec("c", needs=["a"]), StepSpec("d", needs=["b"])
    submit(book, *steps, goes_on=True)
    end(book, "a", "discarded")
    end(book, "b")
    end(book, "d")

    states = {name: str(step.state) for name, step in plan_of(book).steps.items()}
    assert states == {"a": "failed", "b": "succeeded", "c": "skipped", "d": "succeeded"}
    assert job_status(book.job("j")) == "failed"


def test_a_cancelled_job_ends_when_nothing_of_it_runs(book: Rulebook) -> None:
    submit(book, fan_out())
    split(book, 3)
    token = take(book, "0")
    book.cancel("j")
    assert (ready(book), job_status(book.job("j"))) == ([], "processing")
    book.finish(token, "ok", output=OK)  # too late: what it made is dropped

    assert job_status(book.job("j")) == "cancelled"
    assert not step_of(book).is_done(0)


# --- failures that are tolerated ------------------------------------------------------------------


def test_the_share_that_may_fail_is_not_a_chunk_less_for_the_way_numbers_are_kept() -> None:
    assert Step(fan_out(tolerate=0.29), count=100).tolerated == 29
    assert Step(fan_out(tolerate=0.999), count=100).tolerated == 99


def test_a_tolerated_failure_is_no_dead_letter_once_the_job_completed(book: Rulebook) -> None:
    submit(book, fan_out(tolerate=0.5))
    split(book, 2)
    end(book, "0", "discarded")
    assert list(book.state.dead) == [("j", "0")]
    until_rest(book)

    assert job_status(book.job("j")) == "completed"
    assert not book.state.dead


def test_a_chunk_whose_output_was_lost_may_be_one_that_is_tolerated(book: Rulebook) -> None:
    submit(book, fan_out(tolerate=0.5))
    split(book, 2)
    end(book, "0")
    end(book, "1")
    end(book, "join", "lost", output=lost(("1", 1)))
    end(book, "1", "discarded")

    assert ready(book) == ["join"]


def test_reviving_a_join_leaves_out_chunks_whose_failure_was_tolerated(book: Rulebook) -> None:
    submit(book, fan_out(tolerate=0.5))
    split(book, 2)
    end(book, "0", "discarded")
    end(book, "1")
    end(book, "join", "discarded")
    book.do(c.Revive("j"))

    assert ready(book) == ["join"]


def test_reviving_a_job_runs_again_what_failed_and_nothing_that_is_done(book: Rulebook) -> None:
    submit(book, fan_out())
    split(book, 4)
    end(book, "0")
    end(book, "1", "discarded")
    assert job_status(book.job("j")) == "failed"
    book.do(c.Revive("j"))
    assert sorted(ready(book)) == ["1", "2", "3"]
    until_rest(book)

    assert job_status(book.job("j")) == "completed"
    assert book.replayed().jobs["j"].finished_at
    with pytest.raises(Conflict, match="completed"):
        book.do(c.Revive("j"))


# --- outputs that were lost -----------------------------------------------------------------------


def test_what_a_join_finds_lost_is_made_again_first_and_nothing_else(book: Rulebook) -> None:
    submit(book, fan_out())
    split(book, 3)
    for name in "012":
        end(book, name)
    events = end(book, "join", "lost", output=lost(("0", 1), ("2", 1)))
    assert [type(event) for event in events][:3] == [e.OutputLost, e.OutputLost, e.InputsLost]
    assert ready(book) == ["0", "2"]
    (token,) = book.lease("w1")
    assert book.state.leases[token].attempt == 2
    book.finish(token, "ok", output=OK)
    end(book, "2")

    assert ready(book) == ["join"]
    assert plan_of(book).tasks["join"].failures == 0


def test_what_is_lost_is_made_again_through_all_it_was_made_of(book: Rulebook) -> None:
    submit(book, StepSpec("a"), fan_out(name="b", needs=["a"]), StepSpec("c", needs=["b"]))
    end(book, "a")
    split(book, 1, "b.split")
    end(book, "b.0")
    end(book, "b.join")
    end(book, "c", "lost", output=lost(("b.join", 1)))
    end(book, "b.join", "lost", output=lost(("b.0", 1)))
    end(book, "b.0", "lost", output=lost(("b.split", 1)))
    end(book, "b.split", "lost", output=lost(("a", 1)))
    end(book, "a")
    split(book, 1, "b.split")
    until_rest(book)

    assert job_status(book.job("j")) == "completed"
    assert set(plan_of(book).rebuilt.values()) == {1}


@pytest.mark.parametrize(
    "name", ["1", "join", "00", "9", "-1", "whole", "\u00b2", "", "x.y", "split.split", "9" * 5000]
)
def test_a_chunk_that_names_what_it_cannot_have_read_is_charged(book: Rulebook, name: str) -> None:
    submit(book, fan_out())
    split(book, 2)
    end(book, "0", "lost", output=lost((name, 1)), error="gone")

    assert (plan_of(book).tasks["0"].failures, plan_of(book).tasks["0"].state) == (1, S.BACKING_OFF)
    assert not plan_of(book).rebuilt


def test_nobody_waits_for_a_step_beside_it(book: Rulebook) -> None:
    submit(book, StepSpec("a"), StepSpec("b"))
    end(book, "a", "lost", output=lost(("b", 1)))

    assert plan_of(book).tasks["a"].state is S.BACKING_OFF


def test_what_was_made_again_since_is_not_lost_twice_and_finding_so_is_not_free_for_ever(
    book: Rulebook,
) -> None:
    submit(book, StepSpec("a"), StepSpec("b", needs=["a"]))
    end(book, "a")
    end(book, "b", "lost", output=lost(("a", 1)))
    end(book, "a")
    end(book, "b", "lost", output=lost(("a", 1)))
    task = plan_of(book).tasks["b"]
    assert (task.state, task.interruptions, plan_of(book).rebuilt) == (S.READY, 1, {"a": 1})
    while task.state is S.READY:
        end(book, "b", "lost", output=lost(("a", 1)))

    assert task.interruptions == book.rules.interruptions_max
    assert job_status(book.job("j")) == "failed"


def test_two_that_find_the_same_lost_let_it_be_made_again_once(book: Rulebook) -> None:
    submit(book, StepSpec("a"), StepSpec("b", needs=["a"]), StepSpec("c", needs=["a"]))
    end(book, "a")
    tokens = book.lease("w1", 2)
    found = [Outcome(token, "lost", output=lost(("a", 1))) for token in tokens]
    events = book.do(c.Finish("w1", found, [0.5, 0.5]))

    assert [type(event) for event in events] == [e.OutputLost, e.InputsLost, e.InputsLost]
    end(book, "a")
    assert ready(book) == ["b", "c"]


def test_an_output_that_is_lost_again_and_again_fails_who_needs_it(book: Rulebook) -> None:
    submit(book, fan_out())
    split(book, 1)
    for attempt in range(1, REBUILDS_MAX + 1):
        end(book, "0")
        end(book, "join", "lost", output=lost(("0", attempt)))
    end(book, "0")
    end(book, "join", "lost", output=lost(("0", REBUILDS_MAX + 1)))

    (past,) = [past for past in plan_of(book).tasks["join"].past if past.outcome == "failed"]
    assert past.error == f"the output of task 0 was lost {REBUILDS_MAX + 1} times"
    assert job_status(book.job("j")) == "failed"


def test_numbers_go_on_for_a_chunk_of_which_only_the_reporter_knows(book: Rulebook) -> None:
    submit(book, fan_out(join=True))
    split(book, 1)
    book.finish(take(book, "0"), "failed")
    book.pass_time(1_000)
    end(book, "0")
    book.do(c.PlanCompaction(1))
    book.do(c.EndCompaction(1, book.state.seq))
    assert not step_of(book).finished
    end(book, "join", "lost", output=lost(("0", 2)))

    token = take(book, "0")
    assert book.state.leases[token].attempt == 3
    book.finish(token, "ok", output=OK)
    book.do(c.PlanCompaction(2))
    book.do(c.EndCompaction(2, book.state.seq))
    end(book, "join", "lost", output=lost(("0", 2)))  # made again since, though no row says so

    assert ready(book) == ["join"]


def test_a_loss_is_replayed_alike_from_a_snapshot_that_left_the_chunk_to_lineage(
    book: Rulebook,
) -> None:
    submit(book, fan_out())
    split(book, 1)
    book.finish(take(book, "0"), "failed")
    book.pass_time(1_000)
    end(book, "0")
    rows, at = list(dump(book.state, through=book.state.seq)), len(book.journal)
    book.do(c.PlanCompaction(1))
    end(book, "join", "lost", output=lost(("0", 2)))

    again = load(rows)
    for when, row in book.journal[at:]:
        evolve(again, e.from_row(row), when)
    assert canonical(again) == canonical(book.state)
    task = plan_of(book).tasks["0"]
    assert (task.attempt, task.failures, len(task.past)) == (2, 0, 2)


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [chunks(2, "other"), chunks(3)])
def test_a_split_that_gives_other_chunks_when_made_again_fails_the_job(
    book: Rulebook, other: msgspec.Raw
) -> None:
    submit(book, fan_out())
    split(book, 2)
    end(book, "0")
    end(book, "1", "lost", output=lost(("split", 1)))
    end(book, "split", output=other)

    assert job_status(book.job("j")) == "failed"
    assert "gives other chunks" in plan_of(book).tasks["split"].past[-1].error
    assert (step_of(book).count, step_of(book).succeeded) == (2, 1)


@pytest.mark.parametrize("count", [-1, -9, 10**12, None])
def test_a_split_without_a_number_of_chunks_that_can_be_fails_the_job(
    book: Rulebook, count: int | None
) -> None:
    submit(book, fan_out())
    end(book, "split", output=msgspec.Raw(msgspec.json.encode(Output(chunks=count))))

    assert job_status(book.job("j")) == "failed"
    assert f"there are {count} chunks" in plan_of(book).tasks["split"].past[-1].error


def test_a_split_whose_output_cannot_be_read_fails_the_job(book: Rulebook) -> None:
    submit(book, fan_out())
    end(book, "split", output=msgspec.Raw(b'{"chunks": "many"}'))

    assert job_status(book.job("j")) == "failed"
    assert "cannot be read" in plan_of(book).tasks["split"].past[-1].error


# --- time -----------------------------------------------------------------------------------------


def test_nothing_begins_before_its_time_and_an_unstarted_job_expires(book: Rulebook) -> None:
    submit(book, StepSpec("a"), StepSpec("b"), run_at=book.now + 10, expires_at=book.now + 20)
    assert (ready(book), job_status(book.job("j"))) == ([], "scheduled")
    book.pass_time(10)
    assert ready(book) == ["a", "b"]
    book.pass_time(10)

    assert (job_status(book.job("j")), book.job("j").reason) == ("cancelled", "expired")


def test_a_failed_job_begins_nothing_by_itself_when_its_time_comes(
    book: Rulebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.queue.engine.TICK_MAX", 1)  # as if many were due at once
    submit(book, StepSpec("a"), StepSpec("b"), run_at=book.now + 10)
    book.pass_time(10)
    (token,) = book.lease("w1", 5)
    book.finish(token, "discarded")
    assert job_status(book.job("j")) == "failed"
    book.pass_time(1)
    assert ready(book) == []
    book.do(c.Revive("j"))

    assert sorted(ready(book)) == ["a", "b"]


def test_a_completed_job_leaves_nothing_that_waits_behind(book: Rulebook) -> None:
    # "a" is made again for "b", while "c" ends the job.
    steps = StepSpec("a"), StepSpec("b", needs=["a"]), StepSpec("c", needs=["a"])
    submit(book, *steps, goes_on=True)
    end(book, "a")
    b, ended = take(book, "b"), take(book, "c")
    book.finish(ended, "lost", output=lost(("a", 1)))
    book.finish(b, "ok", output=OK)
    book.cancel("j")

    assert job_status(book.job("j")) == "cancelled"
    assert not book.state.lines["default"].counts[S.WAITING]
    assert {task.state for task in book.job("j").tasks} == {S.CANCELLED, S.SUCCEEDED}


def test_a_job_whose_steps_are_over_waits_for_what_runs_and_begins_nothing(book: Rulebook) -> None:
    submit(book, StepSpec("a"), fan_out(name="c", needs=["a"]), goes_on=True)
    end(book, "a")
    split(book, 3, "c.split")
    bad, finds, runs = (take(book, f"c.{n}") for n in range(3))
    book.finish(bad, "discarded")  # all steps are over now
    book.finish(finds, "lost", output=lost(("a", 1)))
    assert (ready(book), job_status(book.job("j"))) == ([], "processing")
    book.finish(runs, "ok", output=OK)
    assert job_status(book.job("j")) == "failed"
    book.do(c.Revive("j"))
    until_rest(book)

    assert job_status(book.job("j")) == "completed"


def test_a_step_that_is_skipped_takes_along_all_that_follow_it(book: Rulebook) -> None:
    chain = [StepSpec(f"s{n}", needs=[f"s{n - 1}"] if n else []) for n in range(50)]
    submit(book, *chain, StepSpec("beside"), goes_on=True)
    end(book, "s0", "discarded", error="bad")

    states = [step_of(book, f"s{n}").state for n in range(50)]
    assert states == [StepState.FAILED, *[StepState.SKIPPED] * 49]
    assert not book.job("j").finished_at
    end(book, "beside")
    assert job_status(book.job("j")) == "failed"
    book.do(c.Revive("j"))
    until_rest(book)
    assert job_status(book.job("j")) == "completed"


# --- jobs that an attempt submits -----------------------------------------------------------------


def child(job_id: str = "child", **changes: Any) -> Submission:
    return Submission(job_id, msgspec.Raw(encode_spec(a_spec(**changes))))


def test_what_an_attempt_submits_comes_with_its_success_and_once(book: Rulebook) -> None:
    token = book.running("parent")
    outcome = Outcome(token, "ok", output=OK, submits=[child(), child("other"), child()])
    events = book.do(c.Finish("w1", [outcome, outcome], [0.5, 0.5]))

    kinds = [event.kind for event in events]
    assert kinds == ["task_succeeded", "job_submitted", "job_submitted"]
    assert book.do(c.Finish("w1", [outcome], [0.5])) == []
    assert canonical(book.replayed()) == canonical(book.state)


def test_a_chunk_that_is_made_again_submits_nothing_twice(book: Rulebook) -> None:
    submit(book, fan_out())
    split(book, 2)
    (zero, one) = book.lease("w1", 2)
    book.finish(zero, "ok", output=OK, submits=[child("child", queue="io")])
    book.finish(one, "ok", output=OK)
    end(book, "join", "lost", output=lost(("0", 1)))

    end(book, "0", submits=[child("twin", queue="io")])

    assert list(book.state.jobs) == ["j", "child"]
    assert sorted(ready(book)) == ["0", "join"]  # 0 is the one task of the child


@pytest.mark.parametrize("kind", ["failed", "discarded", "snoozed", "stopped", "crashed", "lost"])
def test_an_attempt_that_does_not_succeed_submits_nothing(book: Rulebook, kind: Any) -> None:
    book.finish(book.running("parent"), kind, submits=[child()])

    assert list(book.state.jobs) == ["parent"]


def test_a_cancelled_attempt_submits_nothing(book: Rulebook) -> None:
    token = book.running("parent")
    book.cancel("parent")
    book.finish(token, "ok", output=OK, submits=[child()])

    assert list(book.state.jobs) == ["parent"]
    assert job_status(book.job("parent")) == "cancelled"


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (child(queue="nowhere"), "ctx.submit: queue: no queue 'nowhere'"),
        (child(plan=Plan([StepSpec("a", queue="no")])), "ctx.submit: steps.0.queue: no queue 'no'"),
        (Submission("child", msgspec.Raw(b'{"type": 1}')), "cannot be read"),
        (Submission("child", msgspec.Raw(b'{"type": "t", "retry": 7}')), "cannot be read"),
    ],
)
def test_what_cannot_be_submitted_fails_the_attempt_and_nothing_is(
    book: Rulebook, bad: Submission, told: str
) -> None:
    token = book.running("parent")
    book.finish(token, "ok", output=OK, submits=[child("good"), bad])

    assert list(book.state.jobs) == ["parent"]
    assert job_status(book.job("parent")) == "failed"
    assert told in (book.task("parent").past or [])[-1].error


def test_an_idempotency_key_stands_for_one_job_also_when_an_attempt_submits(book: Rulebook) -> None:
    keyed = {"key": "k", "fingerprint": "f", "key_expires_at": book.now + 100}
    book.submit("first", **keyed)
    token = take_job(book, "parent")
    book.finish(token, "ok", output=OK, submits=[child("second", **keyed)])
    assert (list(book.state.jobs), book.state.aliases) == (["first", "parent"], {"second": "first"})

    token = take_job(book, "other")
    book.finish(token, "ok", output=OK, submits=[child("third", **{**keyed, "fingerprint": "g"})])
    assert job_status(book.job("other")) == "failed"


def take_job(book: Rulebook, job_id: str) -> int:
    book.submit(job_id, queue="io")
    (token,) = book.lease("w1", queues=["io"])
    return token


# --- ids and snapshots ----------------------------------------------------------------------------


def test_an_id_says_which_task_it_is_and_no_other_does(book: Rulebook) -> None:
    submit(book, StepSpec("a"), fan_out(name="b"), fan_out(name="c", join=False))
    plan = plan_of(book)
    assert [str(locate(plan, name)[1]) for name in ("a", "b.split", "b.10", "b.join")] == [
        "whole",
        "split",
        "chunk",
        "join",
    ]
    for name in ("b", "a.0", "a.split", "b.01", "b.+1", "b.whole", "c.join", "d", ""):
        with pytest.raises(KeyError):
            locate(plan, name)


def test_a_plan_goes_on_from_a_snapshot_taken_anywhere(book: Rulebook) -> None:
    submit(book, fan_out(name="a", at_once=2, tolerate=0.5), StepSpec("b", needs=["a"]))
    turns = 0
    kinds = {1: "discarded", 2: "failed", 4: "crashed", 6: "lost"}
    while not book.job("j").finished_at:
        rows = list(dump(book.state))
        assert list(dump(load(rows))) == rows
        book.state = load(rows)
        book.pass_time(1_000)
        for token in book.lease("w1"):
            task = book.state.leases[token]
            assert isinstance(task, StepTask)
            output = {"a.split": chunks(5), "a.join": lost(("a.4", 1))}.get(task.id, OK)
            kind: Any = kinds.get(turns, "ok") if task.index >= 0 else "ok"
            if task.id == "a.join":
                kind, output = ("lost", output) if task.attempt == 1 else ("ok", OK)
            book.finish(token, kind, output=output)
            turns += 1

    assert job_status(book.job("j")) == "completed"
    assert {step.state for step in plan_of(book).steps.values()} == {StepState.SUCCEEDED}
    assert plan_of(book).rebuilt == {"a.4": 1}


def test_effects_of_a_chunk_are_remembered_when_its_output_is_made_again(book: Rulebook) -> None:
    submit(book, fan_out())
    split(book, 2)
    token = take(book, "0")
    book.do(c.SaveRecord(Record(token, "once_claim", "mail")))
    book.do(c.SaveRecord(Record(token, "once_done", "mail", msgspec.Raw(b"7"))))
    book.finish(token, "ok", output=OK)
    end(book, "1")

    end(book, "join", "lost", output=lost(("0", 1)))
    again = book.state.leases[take(book, "0")]

    assert again.once is not None
    assert again.once["mail"].value == b"7"
    assert [(past.number, past.outcome) for past in again.past or ()] == [(1, "succeeded")]
    assert canonical(book.replayed()) == canonical(book.state)


def test_nobody_is_refused_for_the_chunks_of_another(book: Rulebook) -> None:
    depth_max = book.rules.queues["default"].depth_max
    submit(book, fan_out(at_once=2 * depth_max))
    split(book, 2 * depth_max)
    assert book.state.lines["default"].counts[S.READY] == 2 * depth_max

    book.submit("simple")
    for name in map(str, range(depth_max - 1)):
        book.submit(name)

    with pytest.raises(Overloaded):
        book.submit("one too many")


def test_a_planned_job_that_was_refused_is_submitted_anew_and_not_retried(book: Rulebook) -> None:
    raw = encode_spec(a_spec(plan=Plan([fan_out()])))
    book.do(c.Refuse("j", raw, "has no such queue", "refused"))

    with pytest.raises(Conflict, match="submit it anew"):
        book.do(c.Revive("j"))
    assert job_status(book.job("j")) == "failed"
