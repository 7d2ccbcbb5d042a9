"""The manager's promises, one by one, over the real commit loop: only store and time are ours."""

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from cluster.protocol import Batch, Record, Submission, decode_batch_reply, encode
from cluster.queue.spec import JobSpec, encode_spec
from cluster.views import DeadLetterQuery, JobQuery
from jobs.errors import Conflict, KeyReused, NotFound, Unavailable
from jobs.retry import RetryPolicy
from tests.support.cluster import GatedObjects, life
from tests.support.eventually import eventually

SPEC = JobSpec(type="noop")
KEYED = JobSpec(type="noop", key="k", key_expires_at=9e9, fingerprint="f")


def done(task: "asyncio.Task[Any]") -> bool:
    return task.done()


async def turns(count: int = 50) -> None:
    """Let everything that can go on go on."""
    for _ in range(count):
        await asyncio.sleep(0.001)


@pytest.fixture
def objects() -> GatedObjects:
    return GatedObjects()


# --- nothing overtakes the commit -----------------------------------------------------------------


async def test_no_reply_leaves_before_the_commit_and_all_leave_after(objects: GatedObjects) -> None:
    async with life(objects) as now:
        first = await now.gateway.submit(KEYED)
        objects.gate.clear()
        new = asyncio.create_task(now.gateway.submit(SPEC))
        await turns()
        replay = asyncio.create_task(now.gateway.submit(KEYED))
        reused = asyncio.create_task(
            now.gateway.submit(msgspec.structs.replace(KEYED, fingerprint="other"))
        )
        read = asyncio.create_task(now.gateway.jobs(JobQuery()))
        unknown = asyncio.create_task(now.gateway.job("nobody", None))
        order = asyncio.create_task(now.take())
        waiting = [new, replay, reused, read, unknown, order]
        await turns()

        assert not any(map(done, waiting))

        objects.gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert results[1].job_id == first.job_id
        assert results[1].replayed
        assert isinstance(results[2], KeyReused)
        assert len(results[3].jobs) == 2
        assert isinstance(results[4], NotFound)
        assert len(results[5].assignments) == 1


async def test_a_write_in_doubt_is_repeated_with_the_same_bytes(objects: GatedObjects) -> None:
    async with life(objects) as now:
        lost = iter([True, True])

        def lose(path: str) -> None:
            if next(lost, False):
                raise Unavailable("the reply was lost")

        objects.after = lose
        written = len(objects.written)

        accepted = await now.gateway.submit(SPEC)

        tries = objects.written[written:]
        assert len(set(tries)) == 1
        assert len(tries) == 3
        assert accepted.job_id in now.state.jobs
        assert not now.fatal
    async with life(objects) as later:
        assert set(later.state.jobs) == {accepted.job_id}


async def test_a_journal_that_cannot_be_written_refuses_new_work(objects: GatedObjects) -> None:
    async with life(objects) as now:
        failing = threading.Event()
        failing.set()

        def fail(path: str) -> None:
            if failing.is_set():
                raise Unavailable("the store is away")

        objects.before = fail
        stuck = asyncio.create_task(now.gateway.submit(SPEC))
        await turns()
        now.clock.offset_s += 5.0

        with pytest.raises(Unavailable):
            await now.gateway.submit(SPEC)

        assert not stuck.done()
        failing.clear()
        assert (await stuck).job_id in now.state.jobs


async def test_batches_that_overtake_each_other_are_both_accepted(objects: GatedObjects) -> None:
    async with life(objects) as now:
        spec = msgspec.Raw(encode_spec(SPEC))
        for number in (3, 1, 2):
            batch = Batch("g1", number, [Submission(f"job{number}", spec)])
            reply = decode_batch_reply(await now.manager.submit(encode(batch)))

            assert [result.job_id for result in reply.results(batch.submissions)] == [
                f"job{number}"
            ]


async def test_time_goes_on_slowly_while_the_wall_clock_is_behind(objects: GatedObjects) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        before, wall = now.manager._commit.now(), now.clock.wall
        now.clock.wall = lambda: wall() - 3600.0  # type: ignore[method-assign]
        now.clock.offset_s += 20.0

        after = now.manager._commit.now()

        assert before + 9.9 < after < before + 15.0


# --- fencing --------------------------------------------------------------------------------------


async def test_a_fenced_manager_answers_nobody_and_ends(objects: GatedObjects) -> None:
    async with life(objects) as old, life(objects) as new:
        late = asyncio.create_task(old.gateway.submit(SPEC))
        await turns()

        assert old.fatal
        assert not late.done()
        late.cancel()
        assert not new.state.jobs


async def test_a_fenced_manager_with_nothing_to_write_ends_too(
    objects: GatedObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.manager.PROVE_S", 0.005)
    async with life(objects) as old, life(objects) as new:
        await old.gateway.queues()
        await eventually(lambda: old.fatal)

        assert not new.fatal


async def test_a_fenced_manager_that_nobody_asks_ends_in_the_end(
    objects: GatedObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.manager.PROVE_S", 0.005)
    monkeypatch.setattr("cluster.manager.PROVE_IDLE_S", 0.02)
    async with life(objects) as old, life(objects) as new:
        await eventually(lambda: old.fatal)

        assert not new.fatal


async def test_another_cluster_is_refused_until_it_takes_over(objects: GatedObjects) -> None:
    async with life(objects, cluster_id="here") as now:
        await now.gateway.submit(SPEC)

    with pytest.raises(Conflict, match="--take-over"):
        async with life(objects, cluster_id="there"):
            pass
    async with life(objects, cluster_id="there", take_over=True) as taken:
        assert len(taken.state.jobs) == 1


async def test_a_store_left_in_good_order_is_free_for_any_cluster(objects: GatedObjects) -> None:
    async with life(objects, cluster_id="here") as now:
        await now.gateway.submit(SPEC)
        await now.manager.drain(0.0)

    async with life(objects, cluster_id="there") as other:
        assert len(other.state.jobs) == 1


# --- repeated and lost messages -------------------------------------------------------------------


async def test_a_repeated_batch_gets_the_first_answer_and_submits_nothing(
    objects: GatedObjects,
) -> None:
    raw = msgspec.Raw(encode_spec(SPEC))
    wrong = msgspec.Raw(encode_spec(JobSpec(type="noop", queue="nowhere")))
    payload = encode(Batch("g", 1, [Submission("a", raw), Submission("b", wrong)]))
    async with life(objects) as now:
        first = await now.manager.submit(payload)
        events = now.state.seq

        again = await now.manager.submit(payload)

        assert decode_batch_reply(again) == decode_batch_reply(first)
        assert now.state.seq == events
    async with life(objects) as later:
        assert decode_batch_reply(await later.manager.submit(payload)) == decode_batch_reply(first)
        assert set(later.state.jobs) == {"a"}


async def test_an_old_report_is_refused(objects: GatedObjects) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        await now.take()

        stale = await now.report(number=1, free=1)

        assert not stale.assignments


async def test_orders_that_were_not_applied_are_sent_again(objects: GatedObjects) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        lost = await now.take()

        again = await now.report(applied=0)

        assert again.assignments == lost.assignments
        assert len(now.state.leases) == 1


async def test_a_token_the_worker_does_not_have_is_taken_back_uncharged(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        first = await now.take()

        await now.report(applied=first.number, free=1)

        (task,) = now.state.leases.values()
        assert task.token != first.assignments[0].token
        assert (task.failures, task.recoveries) == (0, 0)


async def test_a_token_of_nobody_is_dropped(objects: GatedObjects) -> None:
    async with life(objects) as now:
        orders = await now.report(held=[77])

        assert orders.drop == [77]


async def test_a_late_completion_changes_nothing(objects: GatedObjects) -> None:
    async with life(objects) as now:
        accepted = await now.gateway.submit(SPEC)
        first = (await now.take()).assignments[0]
        now.workers.dies("w1")
        await turns()
        second = (await now.take("w2")).assignments[0]

        late = await now.finish(first.token, "w1")

        assert late.drain
        assert (await now.gateway.job(accepted.job_id, None)).status == "processing"
        await now.finish(second.token, "w2")
        assert (await now.gateway.job(accepted.job_id, None)).status == "completed"


# --- the manager dies -----------------------------------------------------------------------------


async def test_running_work_is_adopted_by_the_next_manager(objects: GatedObjects) -> None:
    async with life(objects) as now:
        accepted = await now.gateway.submit(SPEC)
        token = (await now.take()).assignments[0].token

    async with life(objects, "w1") as later:
        orders = await later.report(held=[token], started=[token], outcomes=[])
        await later.finish(token)
        view = await later.gateway.job(accepted.job_id, None)

        assert not orders.drop
        assert (view.status, view.attempts, view.recoveries) == ("completed", 1, 0)


async def test_work_of_workers_that_died_meanwhile_is_requeued(objects: GatedObjects) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        await now.take()

    async with life(objects) as later:
        orders = await later.take("w2")

        assert [a.attempt for a in orders.assignments] == [2]


# --- workers --------------------------------------------------------------------------------------


async def test_a_submission_is_leased_in_its_own_commit_to_a_parked_worker(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        parked = asyncio.create_task(now.take())
        await turns(5)
        written = len(objects.written)

        await now.gateway.submit(SPEC)
        orders = await parked

        assert len(orders.assignments) == 1
        assert len(objects.written) == written + 1


async def test_a_report_from_before_this_manager_takes_no_lease_away(
    objects: GatedObjects,
) -> None:
    async with life(objects, "w1") as before:
        await before.gateway.submit(SPEC)
        (assignment,) = (await before.take()).assignments
    async with life(objects, "w1") as now:
        orders = await now.report(epoch=before.state.epoch)

        assert list(now.state.leases) == [assignment.token]
        assert orders.epoch == now.state.epoch

        await now.report()

        assert not now.state.leases


async def test_a_checkpoint_that_was_overtaken_changes_nothing(objects: GatedObjects) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        (assignment,) = (await now.take()).assignments
        for number, value in ((1, b"1"), (3, b"3"), (2, b"2")):
            record = Record(assignment.token, "checkpoint", "", msgspec.Raw(value), number)
            await now.manager.record(encode(record))

        assert now.state.leases[assignment.token].checkpoint == b"3"


async def test_a_silent_worker_is_killed_and_its_work_given_away(objects: GatedObjects) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        await now.take()
        for _ in range(40):  # in steps that no suspended machine would make
            now.clock.offset_s += 0.5
            now.manager.tick()
        orders = await now.take("w2")

        assert now.workers.killed == ["w1"]
        assert [a.attempt for a in orders.assignments] == [2]


async def test_a_manager_that_stood_still_forgives_the_silence(objects: GatedObjects) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        await now.take()
        now.clock.offset_s += 3600.0
        now.manager.tick()

        assert not now.workers.killed
        assert len(now.state.leases) == 1


async def test_cancelling_running_work_asks_its_worker_until_it_stopped(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        accepted = await now.gateway.submit(SPEC)
        orders = await now.take()
        token = orders.assignments[0].token
        view = await now.gateway.cancel(accepted.job_id, None)
        held: dict[str, Any] = {"applied": orders.number, "held": [token]}

        asked = await now.report(**held)
        await now.finish(token, kind="stopped")

        assert (view.status, view.stopping) == ("processing", "cancel")
        assert [(s.token, s.reason) for s in asked.stops] == [(token, "cancel")]
        assert (await now.gateway.job(accepted.job_id, None)).status == "cancelled"


async def test_unstarted_work_is_taken_back_for_an_idle_worker(objects: GatedObjects) -> None:
    async with life(objects) as now:
        for _ in range(3):
            await now.gateway.submit(SPEC)
        orders = await now.take(free=3)
        tokens = [a.token for a in orders.assignments]
        busy = asyncio.create_task(
            now.report(applied=orders.number, held=tokens, started=tokens[:1])
        )
        idle = asyncio.create_task(now.take("w2"))
        await turns(20)
        now.clock.offset_s += 0.5
        now.manager.tick()

        recalled = (await busy).recall

        assert set(recalled) <= set(tokens[1:])
        assert recalled
        await now.finish(recalled[0], kind="returned")
        assert [a.attempt for a in (await idle).assignments] == [1]


async def test_half_is_taken_back_from_a_worker_that_reports_all_the_time(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        for _ in range(5):
            await now.gateway.submit(SPEC)
        orders = await now.take(free=5)
        tokens = [a.token for a in orders.assignments]
        now.clock.offset_s += 0.5
        busy = asyncio.create_task(
            now.report(applied=orders.number, held=tokens, started=tokens[:1])
        )
        idle = asyncio.create_task(now.take("w2"))
        await turns(20)

        now.manager.tick()

        assert (await busy).recall == tokens[-2:]
        await now.finish(tokens[-1], kind="returned")
        assert len((await idle).assignments) == 1


async def test_what_waits_behind_a_long_task_is_taken_back_though_nobody_is_idle(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        for _ in range(3):
            await now.gateway.submit(SPEC)
        orders = await now.take(free=3)
        tokens = [a.token for a in orders.assignments]
        now.clock.offset_s += 2.0
        busy = asyncio.create_task(
            now.report(applied=orders.number, held=tokens, started=tokens[:1], free=0)
        )
        await turns(20)

        now.manager.tick()

        assert (await busy).recall == tokens[1:]


async def test_what_every_worker_takes_long_to_begin_goes_round_more_and_more_slowly(
    objects: GatedObjects,
) -> None:
    async with life(objects) as now:
        await now.gateway.submit(SPEC)
        workers, stays_s = ["w1", "w2"], []
        orders = await now.take("w1", free=1)
        for _ in range(2):
            (given,) = orders.assignments
            here, there = workers
            waits = asyncio.create_task(
                now.report(here, applied=orders.number, held=[given.token], free=0)
            )
            idle = asyncio.create_task(now.take(there))
            await turns(20)
            began_s = now.clock.offset_s
            while not waits.done():
                now.clock.offset_s += 0.5
                now.manager.tick()
                await turns(20)
            stays_s.append(now.clock.offset_s - began_s)
            assert (await waits).recall == [given.token]
            await now.finish(given.token, kind="returned", worker=here)
            orders = await asyncio.wait_for(idle, 2)
            workers.reverse()

    assert stays_s[0] <= 1.5
    assert 4.0 <= stays_s[1] <= 4.5


# --- asking ---------------------------------------------------------------------------------------


async def test_wait_returns_when_the_job_ends(objects: GatedObjects) -> None:
    async with life(objects) as now:
        accepted = await now.gateway.submit(SPEC)
        token = (await now.take()).assignments[0].token
        waiting = asyncio.create_task(now.gateway.wait(accepted.job_id, None, 20.0))
        await turns(5)

        await now.finish(token)

        assert (await waiting).status == "completed"


async def test_redrive_gives_dead_letters_a_new_budget(objects: GatedObjects) -> None:
    once = JobSpec(type="noop", max_attempts=1, retry=RetryPolicy(base_s=0.0))
    async with life(objects) as now:
        accepted = await now.gateway.submit(once)
        token = (await now.take()).assignments[0].token
        await now.finish(token, kind="failed")
        letters = await now.gateway.dead_letters(DeadLetterQuery())

        count = await now.gateway.redrive(DeadLetterQuery())

        assert [job.id for job in letters.jobs] == [accepted.job_id]
        assert count == 1
        assert (await now.take()).assignments[0].job_id == accepted.job_id


async def test_a_client_that_leaves_does_not_harm_its_batch_mates(objects: GatedObjects) -> None:
    async with life(objects) as now:
        objects.gate.clear()
        leaving = asyncio.create_task(now.gateway.submit(SPEC))
        staying = [asyncio.create_task(now.gateway.submit(SPEC)) for _ in range(5)]
        await turns(10)
        leaving.cancel()
        await turns(5)
        objects.gate.set()

        accepted = await asyncio.gather(*staying)

        assert len({a.job_id for a in accepted}) == 5
        assert (await now.gateway.submit(SPEC)).job_id in now.state.jobs


async def test_another_tenants_job_is_not_there(objects: GatedObjects) -> None:
    async with life(objects) as now:
        accepted = await now.gateway.submit(SPEC)

        with pytest.raises(NotFound):
            await now.gateway.job(accepted.job_id, "someone-else")
        with pytest.raises(NotFound):
            await now.gateway.cancel(accepted.job_id, "someone-else")
