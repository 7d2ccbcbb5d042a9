"""Fan-outs and workflows through the manager: what workers get, what people see, what a crash does.

Workers are scripted; manager, gateway, journal, snapshots and store are the real ones.
"""

import asyncio
import time
import uuid
from typing import Any

import msgspec
import pytest

from cluster.gateway import Gateway, ManagerAway
from cluster.history.reader import History
from cluster.ids import uuid7_maker
from cluster.manager import Manager
from cluster.protocol import FileInfo, LostOutput, Outcome, Output, Progress, Submission
from cluster.queue.snapshot import SNAPSHOT_VERSION, dump, load
from cluster.queue.spec import JobSpec, encode_spec
from cluster.store.identity import read_identities
from cluster.store.memory import MemoryObjects
from cluster.store.snapshot import Snapshots
from cluster.views import DeadLetterQuery, JobQuery
from jobs.errors import Conflict, InvalidInput
from tests.support.builders import Rulebook, canonical
from tests.support.cluster import Life, life
from tests.support.eventually import eventually
from tests.support.planned import fan_out, fine, inputs_of, raw, roles, step, work, workflow


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects("memory://")


async def submit(one: Life, spec: JobSpec) -> str:
    return (await one.gateway.submit(spec)).job_id


async def result_of(one: Life, job_id: str) -> Any:
    return msgspec.json.decode((await one.gateway.job(job_id, None)).result)


# --- a fan-out --------------------------------------------------------------------------------


async def test_a_fan_out_runs_its_split_then_its_chunks_then_its_join(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(params=raw({"book": 7})))

        given = await work(one, fine(3))

        assert roles(given) == ["split", "0", "1", "2", "join"]
        assert await result_of(one, job_id) == {"task": "join", "attempt": 1}
        view = await one.gateway.job(job_id, None)
        assert (view.status, view.attempts) == ("completed", 5)


async def test_each_task_gets_what_it_needs_and_no_more(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one, fan_out(params=raw({"book": 7}), max_attempts=1, tolerate=0.5))

        split, *chunks, join = await work(one, fine(3, t1="failed"))

        assert msgspec.json.decode(split.spec)["params"] == {"book": 7}
        assert inputs_of(split).role == "split"
        for index, chunk in enumerate(chunks):
            inputs = inputs_of(chunk)
            assert "params" not in msgspec.json.decode(chunk.spec)
            assert (inputs.role, inputs.index, inputs.split) == ("chunk", index, ("split", 1))
            assert inputs.manifest is not None
        inputs = inputs_of(join)
        assert (inputs.role, inputs.count, inputs.failed) == ("join", 3, [(1, "it broke")])


async def test_no_more_chunks_run_at_once_than_the_type_allows(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one, fan_out(at_once=4))
        await work(one, fine(100), most=1)

        first = (await one.report(free=50)).assignments
        answers = [fine()(assignment) for assignment in first[:2]]
        second = (
            await one.report(outcomes=answers, free=50, held=[a.token for a in first])
        ).assignments

        assert roles(first) == ["0", "1", "2", "3"]
        assert roles(second) == ["4", "5"]


async def test_a_fan_out_of_nothing_is_joined_at_once(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        without = await submit(one, fan_out(join=False))

        given = await work(one, fine(0))

        assert sorted(roles(given)) == ["join", "split", "split"]
        assert await result_of(one, without) == {"chunks": 0}
        assert (await one.gateway.job(job_id, None)).status == "completed"


async def test_without_a_join_the_result_is_how_many_chunks_there_were(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(join=False))

        await work(one, fine(5))

        assert await result_of(one, job_id) == {"chunks": 5}


async def test_a_split_that_says_no_number_ends_as_a_dead_letter(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        nothing = Outcome(0, "ok", 1.0, 2.0, raw(Output()))

        await work(one, fine(split=nothing))

        view = await one.gateway.job(job_id, None)
        assert view.status == "failed"
        assert view.error is not None
        assert "how" in view.error.message or "None chunks" in view.error.message
        assert view.error.message.startswith("split: ")


# --- crashes ----------------------------------------------------------------------------------


def cut(objects: MemoryObjects, segments: int) -> MemoryObjects:
    """Return the store as it was when so many segments were in it."""
    copy = MemoryObjects("memory://")
    for info in objects.list(""):
        if not info.path.startswith("journal/") or int(info.path[8:28]) <= segments:
            copy.put(info.path, objects.get(info.path))
    return copy


def finished_in(state: Any, job_id: str) -> set[str]:
    """Return the tasks whose output a state has."""
    plan = state.jobs[job_id].plan
    chunks = map(str, range(max(0, plan.steps[""].count)))
    return {name for name in (*plan.tasks, *chunks) if plan.is_done(name)}


async def test_a_crash_between_any_two_commits_loses_nothing_and_repeats_nothing(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(at_once=2))
        await work(one, fine(4), free=1)
        await one.manager._commit.barrier()
        commits = one.manager._commit.number
    assert commits > 12
    tried = 0
    for segments in range(1, commits + 1):
        async with life(cut(objects, segments), "w2") as two:
            if job_id not in two.state.jobs:
                continue
            tried += 1
            before = finished_in(two.state, job_id)
            given = await work(two, fine(4), worker="w2")

            assert before.isdisjoint(roles(given))
            assert before | set(roles(given)) == {"split", "0", "1", "2", "3", "join"}
            assert (await two.gateway.job(job_id, None)).status == "completed"
    assert tried > 10


async def test_a_worker_that_goes_on_over_a_crash_of_the_manager_keeps_its_chunks(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(3), most=1)
        held = (await one.report(free=3)).assignments

    async with life(objects, "w1") as two:
        tokens = [assignment.token for assignment in held]
        await two.report(held=tokens, started=tokens, epoch=1)
        await two.report(outcomes=[fine()(assignment) for assignment in held])

        given = await work(two, fine(3))

        assert roles(given) == ["join"]
        assert [a.number for a in await two.gateway.attempts(job_id, None)] == [1, 1]


async def test_chunks_of_a_worker_that_died_run_elsewhere_and_the_others_go_on(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1", "w2") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(3), most=1)
        (mine,) = (await one.report("w1", free=1)).assignments
        waiting = asyncio.create_task(one.report("w1", held=[mine.token]))
        await asyncio.sleep(0)
        one.manager._attendance.lose("w1", "signal 9")
        await waiting

        given = await work(one, fine(3), worker="w2")

        assert (mine.task_id, sorted(roles(given))) == ("0", ["0", "1", "2", "join"])
        view = await one.gateway.job(job_id, None)
        assert (view.status, view.recoveries, view.attempts) == ("completed", 1, 6)


async def test_state_of_a_plan_outlives_a_snapshot_at_any_point(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(at_once=2))
        for _ in range(7):
            if not one.state.jobs[job_id].finished_at:
                await work(one, fine(4), most=1)
            rows = list(dump(one.state))
            again = load(rows)

            assert list(dump(again)) == rows
            assert canonical(again) == canonical(one.state)


# --- waiting, queues, rates -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
async def test_whoever_waits_is_told_when_a_planned_job_ends(
    objects: MemoryObjects, how: str
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(max_attempts=1))
        await work(one, fine(3), most=2)
        waiting = asyncio.create_task(one.gateway.wait(job_id, None, 25.0))
        await asyncio.sleep(0)
        if how == "cancelled":
            await one.gateway.cancel(job_id, None)
        else:
            await work(one, fine(3) if how == "completed" else fine(3, t2="failed"))

        async with asyncio.timeout(10.0):
            view = await waiting

        assert view.status == how


async def test_queues_count_the_tasks_that_are_in_memory(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one, fan_out(at_once=5))
        [queue] = await one.gateway.queues()
        assert (queue.ready, queue.leased) == (1, 0)

        await work(one, fine(100), most=1)
        await one.report(free=2)
        [queue] = await one.gateway.queues()
        assert (queue.ready, queue.leased) == (3, 2)


async def test_queues_are_empty_when_a_planned_job_is_over(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one, fan_out(at_once=5))
        await work(one, fine(20))

        [queue] = await one.gateway.queues()

        counts = (queue.ready, queue.leased, queue.scheduled, queue.backing_off, queue.dead)
        assert counts == (0, 0, 0, 0, 0)


async def test_every_chunk_counts_for_the_rate_of_its_queue(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        await submit(one, fan_out())
        await work(one, fine(8))
        one.clock.offset_s += 1.0

        [queue] = await one.gateway.queues()

        seconds = one.clock.monotonic() - one.manager._rates._born_at
        assert queue.drain_rate == pytest.approx(10 / seconds, rel=0.2)


# --- what people see --------------------------------------------------------------------------


async def test_status_of_a_planned_job_can_be_asked_for(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        jobs: dict[str, str] = {}
        jobs["completed"] = await submit(one, fan_out())
        await work(one, fine(2))
        jobs["failed"] = await submit(one, fan_out(max_attempts=1))
        await work(one, fine(2, t1="failed"))
        jobs["cancelled"] = await submit(one, fan_out())
        await one.gateway.cancel(jobs["cancelled"], None)
        jobs["processing"] = await submit(one, fan_out())
        await work(one, fine(2), most=1)
        jobs["scheduled"] = await submit(one, fan_out(run_at=4e9))
        jobs["pending"] = await submit(one, fan_out())

        for status, job_id in jobs.items():
            page = await one.gateway.jobs(JobQuery(status=status))  # type: ignore[arg-type]
            assert [job.id for job in page.jobs] == [job_id], status
            assert (await one.gateway.job(job_id, None)).status == status


async def test_the_view_of_a_fan_out_tells_how_far_it_is(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        view = await one.gateway.job(job_id, None)
        assert (view.progress, view.started_at) == (None, None)
        [only] = view.steps
        assert (only.name, only.type, only.state, only.chunks) == (
            "",
            "test.pages",
            "running",
            None,
        )

        await work(one, fine(4), most=3)
        view = await one.gateway.job(job_id, None)

        [only] = view.steps
        assert (only.chunks, only.done, only.running, only.failed) == (4, 2, 0, 0)
        assert view.progress is not None
        assert (view.progress.fraction, view.progress.message) == (0.5, "2 of 4 chunks")
        assert (view.status, view.attempts) == ("processing", 3)
        assert view.started_at is not None


async def test_a_fan_out_of_nothing_is_as_far_as_its_join(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(0), most=1)
        seen = [(await one.gateway.job(job_id, None)).progress]
        [join] = (await one.report("w1", free=1)).assignments
        told = [Progress(join.token, 0.3, "Writing")]
        await one.report("w1", held=[join.token], started=[join.token], progress=told)
        seen.append((await one.gateway.job(job_id, None)).progress)

    assert [one and one.fraction for one in seen] == [0.0, 0.3]


async def test_the_view_of_a_workflow_names_its_steps_and_its_result(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        spec = workflow(
            step("fetch"), step("pages", "fetch", fans_out=True, join=True), step("mail", "pages"),
            result="pages",
        )  # fmt: skip
        job_id = await submit(one, spec)
        given = await work(one, fine(2), most=2)
        view = await one.gateway.job(job_id, None)
        assert [(s.name, s.type, s.state, s.needs) for s in view.steps] == [
            ("fetch", "test.fetch", "succeeded", []),
            ("pages", "test.pages", "running", ["fetch"]),
            ("mail", "test.mail", "waiting", ["pages"]),
        ]
        assert view.progress is not None
        assert view.progress.fraction == pytest.approx(1 / 3)
        assert view.progress.message == "pages: 0 of 2 chunks"

        given += await work(one, fine(2))

        assert roles(given) == ["fetch", "pages.split", "pages.0", "pages.1", "pages.join", "mail"]
        assert await result_of(one, job_id) == {"task": "pages.join", "attempt": 1}
        assert (await one.gateway.job(job_id, None)).progress is not None
        outputs = inputs_of(given[-1]).outputs
        assert {name: task for name, (task, _) in outputs.items()} == {"pages": "pages.join"}


async def test_the_error_of_a_planned_job_names_the_task(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        spec = workflow(step("fetch"), step("pages", "fetch", fans_out=True), max_attempts=1)
        job_id = await submit(one, spec)

        await work(one, fine(3, pages_1="failed"))

        view = await one.gateway.job(job_id, None)
        assert view.error is not None
        assert (view.error.message, view.error.attempt) == ("pages.1: it broke", 1)
        assert [s.state for s in view.steps] == ["succeeded", "failed"]
        assert view.steps[1].failed == 1
        assert view.result == raw(None)


async def test_steps_that_do_not_need_a_failed_one_still_run_where_the_workflow_goes_on(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        steps = step("a"), step("b", "a"), step("c")
        stops = await submit(one, workflow(*steps, max_attempts=1))
        await work(one, fine(a="failed"), free=1)
        goes_on = await submit(one, workflow(*steps, goes_on=True, max_attempts=1))
        await work(one, fine(a="failed"), free=1)

        for job_id, states in (
            (stops, ["failed", "waiting", "cancelled"]),
            (goes_on, ["failed", "skipped", "succeeded"]),
        ):
            view = await one.gateway.job(job_id, None)
            assert view.status == "failed"
            assert [s.state for s in view.steps] == states


async def test_a_page_of_tasks_lists_split_chunks_and_join_in_order(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(at_once=2))
        await work(one, fine(5), most=3)

        first = await one.gateway.tasks(job_id, None, 0, 4)
        second = await one.gateway.tasks(job_id, None, first.next_after or 0, 4)

        assert [task.task_id for task in first.tasks] == ["split", "0", "1", "2"]
        assert [task.task_id for task in second.tasks] == ["3", "4", "join"]
        assert (first.next_after, second.next_after) == (4, None)
        states = [task.state for task in (*first.tasks, *second.tasks)]
        assert states == ["succeeded"] * 3 + ["ready"] * 2 + ["waiting"] * 2


async def test_a_page_of_large_results_ends_early_and_says_where_to_go_on(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        large = Outcome(0, "ok", 1.0, 2.0, raw(Output(raw("x" * 60_000))))
        await work(one, fine(100, **{f"t{n}": large for n in range(100)}), most=101)

        found: list[str] = []
        after: int | None = 0
        pages = 0
        while after is not None:
            page = await one.gateway.tasks(job_id, None, after)
            found += [task.task_id for task in page.tasks]
            after, pages = page.next_after, pages + 1
        named = await one.gateway.tasks(job_id, None, ids=[str(n) for n in range(100)])

        assert found == ["split", *map(str, range(100)), "join"]
        assert pages == 2
        assert [task.task_id for task in named.tasks] == list(map(str, range(len(named.tasks))))
        assert 1 <= len(named.tasks) < 100


async def test_a_step_that_comes_while_what_it_needs_is_made_again_waits_for_it(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, workflow(step("a"), step("b", "a"), step("c", "a")))
        await work(one, fine(), most=1)
        [b] = (await one.report(free=1)).assignments
        gone = Outcome(b.token, "lost", 1.0, 2.0, raw([LostOutput("a", 1)]))
        c, again = (await one.report(outcomes=[gone], free=2)).assignments
        assert (c.task_id, again.task_id) == ("c", "a")
        assert inputs_of(c).outputs == {"a": ("a", None)}

        waits = Outcome(c.token, "lost", 1.0, 2.0, raw([LostOutput("a", 0)]))
        await one.report(outcomes=[fine()(again), waits])
        given = await work(one, fine())

        assert sorted(roles(given)) == ["b", "c"]
        for assignment in given:
            name, output = inputs_of(assignment).outputs["a"]
            assert output is not None
            assert msgspec.json.decode(output.result) == {"task": name, "attempt": 2}
        assert (await one.gateway.job(job_id, None)).status == "completed"


async def test_of_many_chunks_that_failed_a_join_is_told_less_of_each(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        await submit(one, fan_out(tolerate=1.0, max_attempts=1))
        long = Outcome(0, "failed", 1.0, 2.0, error="x" * 4_000)
        given = await work(one, fine(101, **{f"t{n}": long for n in range(101)}))

        failed = inputs_of(given[-1]).failed
        assert (given[-1].task_id, len(failed)) == ("join", 101)
        assert {len(error) for _, error in failed} == {100}


async def test_a_page_of_jobs_with_many_steps_ends_early_and_says_where_to_go_on(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        steps = [step(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(1_000)]
        jobs = [await submit(one, workflow(*steps, max_attempts=1)) for _ in range(25)]

        first = await one.gateway.jobs(JobQuery(limit=50))
        second = await one.gateway.jobs(JobQuery(limit=50, after=first.next_after))

        assert [view.id for view in (*first.jobs, *second.jobs)] == jobs[::-1]
        assert (len(first.jobs), second.next_after) == (20, None)

        for _ in jobs:
            await work(one, fine(s0="failed"), free=1, most=1)
        first = await one.gateway.dead_letters(DeadLetterQuery(limit=50))
        second = await one.gateway.dead_letters(DeadLetterQuery(limit=50, after=first.next_after))
        few = await one.gateway.dead_letters(DeadLetterQuery(limit=3))

        assert [view.id for view in (*first.jobs, *second.jobs)] == jobs
        assert (len(first.jobs), len(few.jobs), second.next_after) == (20, 3, None)


# --- who gets what follows ----------------------------------------------------------------------


def stop_folding(one: Life) -> None:
    """Let nothing but what happens give out work: here intake is folded all the time."""
    for task in one.manager._tasks:
        if "_fold_forever" in repr(task.get_coro()):
            task.cancel()


async def test_a_step_goes_to_a_worker_that_waits_as_soon_as_it_may(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1", "w2") as one:
        stop_folding(one)
        await submit(one, workflow(step("a"), step("b", "a")))
        [a] = (await one.report("w1", free=1)).assignments
        waiting = asyncio.ensure_future(one.report("w2", free=1))
        await eventually(lambda: one.manager._sessions["w2"].parked)

        await one.report("w1", outcomes=[fine()(a)])

        assert roles((await waiting).assignments) == ["b"]


async def test_what_an_attempt_submits_goes_to_a_worker_that_waits(objects: MemoryObjects) -> None:
    async with life(objects, "w1", "w2") as one:
        stop_folding(one)
        await submit(one, JobSpec("test.parent"))
        [parent] = (await one.report("w1", free=1)).assignments
        waiting = asyncio.ensure_future(one.report("w2", free=1))
        await eventually(lambda: one.manager._sessions["w2"].parked)
        child = Submission("child", msgspec.Raw(encode_spec(JobSpec("test.child"))))

        await one.report("w1", outcomes=[Outcome(parent.token, "ok", 1.0, 2.0, submits=[child])])

        assert [a.job_id for a in (await waiting).assignments] == ["child"]


async def test_a_worker_hears_at_once_that_a_job_failed_of_which_it_runs_a_task(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1", "w2") as one:
        stop_folding(one)
        await submit(one, workflow(step("a"), step("b"), max_attempts=1))
        [a] = (await one.report("w1", free=1)).assignments
        [b] = (await one.report("w2", free=1)).assignments
        waiting = asyncio.ensure_future(one.report("w2", held=[b.token], started=[b.token]))
        await eventually(lambda: one.manager._sessions["w2"].parked)
        parked = one.manager._sessions["w2"].parked
        assert parked is not None

        await one.report("w1", outcomes=[fine(a="failed")(a)])

        assert parked.is_set()
        assert [(s.token, s.reason) for s in (await waiting).stops] == [(b.token, "job failed")]


# --- failing, and again -----------------------------------------------------------------------


async def test_a_planned_job_is_among_the_dead_letters_once_and_only_when_it_failed(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        failed = await submit(one, fan_out(max_attempts=1))
        await work(one, fine(3, t0="failed", t2="failed"), free=3)
        goes_on = await submit(one, fan_out(max_attempts=1, tolerate=0.5))
        await work(one, fine(3, t0="failed"), most=2)
        assert one.state.jobs[goes_on].plan.steps[""].dead == 1

        letters = await one.gateway.dead_letters(DeadLetterQuery())
        assert [job.id for job in letters.jobs] == [failed]

        assert await one.gateway.redrive(DeadLetterQuery(limit=10)) == 1
        given = await work(one, fine(3))
        assert (await one.gateway.job(failed, None)).status == "completed"
        assert (await one.gateway.job(goes_on, None)).status == "completed"
        assert roles(given).count("0") == 1
        assert (await one.gateway.dead_letters(DeadLetterQuery())).jobs == []


async def test_a_retried_job_runs_only_what_failed_and_what_waited_for_it(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(max_attempts=1))
        await work(one, fine(3, t1="failed"))
        with pytest.raises(Conflict, match="failed; only unfinished"):
            await one.gateway.cancel(job_id, None)

        await one.gateway.retry(job_id, None)
        assert (await one.gateway.job(job_id, None)).status == "processing"
        given = await work(one, fine(3))

        assert roles(given) == ["1", "join"]
        assert one.state.jobs[job_id].revision == 2
        with pytest.raises(Conflict, match="completed; only failed"):
            await one.gateway.retry(job_id, None)


async def test_a_cancelled_job_leases_nothing_more_and_ends_when_the_last_attempt_did(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(9), most=1)
        held = (await one.report(free=2)).assignments
        tokens = [assignment.token for assignment in held]

        view = await one.gateway.cancel(job_id, None)
        assert (view.status, view.stopping) == ("processing", "cancelled")
        orders = await one.report(held=tokens, started=tokens, free=5)
        assert sorted(stop.token for stop in orders.stops) == tokens
        assert orders.assignments == []
        await one.report(outcomes=[Outcome(token, "stopped", 1.0, 2.0) for token in tokens])

        view = await one.gateway.job(job_id, None)
        assert (view.status, view.reason) == ("cancelled", "cancelled")
        assert [step.state for step in view.steps] == ["cancelled"]


async def test_the_error_of_a_job_is_not_that_of_a_chunk_it_did_without(
    objects: MemoryObjects,
) -> None:
    other = Outcome(0, "failed", 1.0, 2.0, error="no joining")
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out(max_attempts=1, tolerate=0.5))
        await work(one, fine(3, t1="failed"), most=4)
        assert (await one.gateway.job(job_id, None)).error is None

        await work(one, fine(3, join=other))

        view = await one.gateway.job(job_id, None)
        assert view.error is not None
        assert (view.status, view.error.message) == ("failed", "join: no joining")


async def test_a_manifest_that_was_lost_is_made_again_and_the_chunks_go_on(
    objects: MemoryObjects,
) -> None:
    lost = Outcome(0, "lost", 1.0, 2.0, raw([LostOutput("split", 1)]), "gone", "input lost")
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(2), most=1)

        given = await work(one, fine(2, t0=lost), most=2)
        given += await work(one, fine(2))

        assert roles(given) == ["0", "1", "split", "0", "join"]
        assert inputs_of(given[3]).split == ("split", 2)
        assert (await one.gateway.job(job_id, None)).status == "completed"


async def test_a_split_that_gives_other_chunks_the_second_time_fails_its_job(
    objects: MemoryObjects,
) -> None:
    lost = Outcome(0, "lost", 1.0, 2.0, raw([LostOutput("split", 1)]), "gone", "input lost")
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(2), most=1)
        await work(one, fine(2, t0=lost), most=1)

        await work(one, fine(3))

        view = await one.gateway.job(job_id, None)
        assert view.status == "failed"
        assert view.error is not None
        assert "gives other chunks" in view.error.message


async def test_a_result_that_the_join_found_lost_is_made_again_before_it_runs_again(
    objects: MemoryObjects,
) -> None:
    lost = Outcome(0, "lost", 1.0, 2.0, raw([LostOutput("1", 1)]), "gone", "input lost")
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())
        await work(one, fine(3, join=lost), most=5)
        view = await one.gateway.tasks(job_id, None, ids=["1", "join"])
        assert [(t.state, t.needs) for t in view.tasks] == [("ready", []), ("waiting", ["1"])]

        given = await work(one, fine(3))

        assert [(a.task_id, a.attempt) for a in given] == [("1", 2), ("join", 2)]
        assert (await one.gateway.job(job_id, None)).status == "completed"


# --- jobs that jobs submit --------------------------------------------------------------------


def submitting(*specs: JobSpec) -> tuple[Outcome, list[str]]:
    """Return a success that submits jobs, and their ids."""
    ids = [uuid7_maker()() for _ in specs]
    submissions = [
        Submission(job_id, msgspec.Raw(encode_spec(spec)))
        for job_id, spec in zip(ids, specs, strict=True)
    ]
    return Outcome(0, "ok", 1.0, 2.0, raw(Output()), submits=submissions), ids


async def test_what_an_attempt_submits_is_there_with_its_success(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        parent = await submit(one, JobSpec("test.parent"))
        outcome, ids = submitting(fan_out(parent=parent), JobSpec("greet", parent=parent))
        (assignment,) = (await one.take()).assignments
        done = msgspec.structs.replace(outcome, token=assignment.token)

        await one.report(outcomes=[done])
        await one.report(outcomes=[done])  # as after a lost answer

        assert list(one.state.jobs) == [parent, *ids]
        assert (await one.gateway.job(ids[0], None)).parent == parent
    async with life(objects, "w1") as two:
        assert list(two.state.jobs) == [parent, *ids]


async def test_what_cannot_be_submitted_fails_the_attempt_and_submits_nothing(
    objects: MemoryObjects,
) -> None:
    async with life(objects, "w1") as one:
        parent = await submit(one, JobSpec("test.parent"))
        outcome, _ = submitting(JobSpec("greet"), workflow(step("a", queue="nowhere")))
        (assignment,) = (await one.take()).assignments

        await one.report(outcomes=[msgspec.structs.replace(outcome, token=assignment.token)])

        view = await one.gateway.job(parent, None)
        assert view.status == "failed"
        assert view.error is not None
        assert view.error.message == (
            "ctx.submit: steps.0.queue: no queue 'nowhere'; use one of: default"
        )
        assert list(one.state.jobs) == [parent]


# --- while the manager is away ----------------------------------------------------------------


class Port:
    """The manager's handle: there, or not."""

    def __init__(self) -> None:
        self.manager: Manager | None = None

    async def submit(self, payload: bytes) -> bytes:
        return await self._reached().submit(payload)

    async def call(self, payload: bytes) -> bytes:
        return await self._reached().call(payload)

    def _reached(self) -> Manager:
        if self.manager is None:
            raise ManagerAway("the actor is restarting")
        return self.manager


async def test_planned_jobs_that_came_while_the_manager_was_away_run_or_say_why_not(
    objects: MemoryObjects,
) -> None:
    port = Port()
    gateway = Gateway(
        port,
        new_id=uuid7_maker(),
        incarnation=uuid.uuid4().hex,
        history=History(objects),
        objects=objects,
        wall=time.time,
        monotonic=time.monotonic,
    )
    async with life(objects):
        pass
    good = (await gateway.submit(fan_out())).job_id
    keyed = fan_out(key="k" * 64, key_expires_at=9e9, fingerprint="f")
    first = (await gateway.submit(keyed)).job_id
    again = (await gateway.submit(keyed)).job_id
    bad = (await gateway.submit(workflow(step("a"), step("b", queue="nowhere")))).job_id
    assert (await gateway.job(good, None)).status == "pending"

    async with life(objects, "w1") as one:
        await work(one, fine(2))
        port.manager = one.manager

        assert again == first
        for job_id in (good, first):
            assert (await one.gateway.job(job_id, None)).status == "completed"
        view = await one.gateway.job(bad, None)
        assert view.status == "failed"
        assert view.error is not None
        assert view.error.cause == "refused"
        assert "steps.1.queue" in view.error.message
        assert "nowhere" in view.error.message
        assert [job.id for job in (await one.gateway.dead_letters(DeadLetterQuery())).jobs] == [bad]
    async with life(objects) as two:  # and it stays so over a restart
        assert (await two.gateway.job(bad, None)).status == "failed"
    await gateway.close()


async def test_a_plan_with_a_queue_that_there_is_not_is_refused_at_once(
    objects: MemoryObjects,
) -> None:
    async with life(objects) as one:
        with pytest.raises(InvalidInput, match=r"steps\.0\.queue.*no queue 'nowhere'"):
            await submit(one, workflow(step("a", queue="nowhere")))
        assert one.state.jobs == {}


# --- what was written before there were plans -------------------------------------------------

#: Fields that each kind of row had.
OLDER = {"head": 10, "line": 3, "job": 8}
OLDER_TASK = 22


def as_before(rows: list[tuple[str, str, bytes]]) -> list[tuple[str, str, bytes]]:
    """Return rows of a snapshot in the shapes that they had before plans."""
    older = []
    for kind, name, data in rows:
        if kind == "worker":
            continue
        if kind in OLDER:
            fields = msgspec.msgpack.decode(data)[: OLDER[kind]]
            if kind == "job":
                fields[7] = [task[:OLDER_TASK] for task in fields[7]]
            data = msgspec.msgpack.encode(fields)
        older.append((kind, name, data))
    return older


def test_rows_of_an_older_snapshot_still_load() -> None:
    book = Rulebook()
    book.submit("a", "b", "c", max_attempts=1)
    book.finish(book.lease("w1")[0], "failed", error="it broke")
    book.lease("w1")

    again = load(as_before(list(dump(book.state))))

    new, old = canonical(again), canonical(book.state)
    assert {name for name in new if new[name] != old[name]} <= {"lines"}  # who was served last
    assert {job.id: len(list(job.tasks)) for job in again.order} == {"a": 1, "b": 1, "c": 1}


async def test_a_store_of_an_older_version_goes_on(objects: MemoryObjects) -> None:
    async with life(objects, "w1") as one:
        done = await submit(one, JobSpec("greet"))
        (assignment,) = (await one.take()).assignments
        await one.finish(assignment.token)
        running = await submit(one, JobSpec("greet"))
        (assignment,) = (await one.take()).assignments
        waiting = await submit(one, JobSpec("greet"))
        await one.manager._housekeeper.compact()
    identity, _ = read_identities(objects, objects)
    assert identity is not None
    snapshots = Snapshots(objects, identity.journal_id, SNAPSHOT_VERSION)
    [last] = snapshots.numbers()
    header, rows = snapshots.read(last)
    older = as_before(list(rows))
    objects.delete([snapshots.path(last)])
    snapshots.write(last, header.seq, older)

    async with life(objects, "w1") as two:
        assert two.manager._commit.base == last
        await two.finish(assignment.token)
        planned = await submit(two, fan_out())
        await work(two, fine(2))

        for job_id in (done, running, waiting, planned):
            assert (await two.gateway.job(job_id, None)).status == "completed"


async def test_files_of_a_join_are_the_jobs(objects: MemoryObjects) -> None:
    file = FileInfo("book.pdf", "results/book.pdf", 7, "0" * 64)
    joined = Outcome(0, "ok", 1.0, 2.0, raw(Output(raw(1), files=[file])))
    async with life(objects, "w1") as one:
        job_id = await submit(one, fan_out())

        await work(one, fine(2, join=joined))

        assert (await one.gateway.job(job_id, None)).files == [file]
