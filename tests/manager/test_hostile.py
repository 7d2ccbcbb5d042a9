"""What a hostile or unlucky caller did to others once, and must not do again."""

from typing import Any

import pytest
from msgspec import Raw

from cluster.protocol import (
    Accepted,
    Batch,
    Outcome,
    Refused,
    Submission,
    decode_batch_reply,
    encode,
)
from cluster.queue import commands as c
from cluster.queue.engine import decide
from cluster.queue.spec import JobSpec, encode_spec
from cluster.store.memory import MemoryObjects
from cluster.views import JobQuery
from jobs.errors import InvalidInput
from tests.support.builders import a_job, some_rules
from tests.support.cluster import GatedObjects, life
from tests.support.eventually import eventually


async def submit(one: Any, **fields: Any) -> str:
    job_id: str = (await one.gateway.submit(JobSpec("greet", **fields))).job_id
    return job_id


@pytest.mark.parametrize("field", [b'"type":7', b'"type":"greet","max_attempts":"many"'])
async def test_a_member_that_cannot_be_read_is_refused_and_the_others_ride_on(
    field: bytes,
) -> None:
    async with life(MemoryObjects("memory://"), "w1") as one:
        good = encode_spec(JobSpec("greet"))
        bad = good.replace(b'"type":"greet"', field)
        batch = Batch("g", 1, [Submission("j1", Raw(good)), Submission("j2", Raw(bad))])

        replies = [decode_batch_reply(await one.manager.submit(encode(batch))) for _ in range(2)]
        first, again = (reply.results(batch.submissions) for reply in replies)

        assert [type(result) for result in first] == [Accepted, Refused]
        assert again == first
        assert list(one.state.jobs) == ["j1"]


async def test_a_task_that_never_arrived_is_never_charged_for_its_worker() -> None:
    async with life(MemoryObjects("memory://"), "w1", "w2", "w3", "w4", "w5") as one:
        job_id = await submit(one)
        for worker in ("w1", "w2", "w3", "w4", "w5"):
            (assignment,) = (await one.take(worker)).assignments
            one.workers.dies(worker)
            await eventually(lambda token=assignment.token: token not in one.state.leases)

        (task,) = one.state.jobs[job_id].tasks
        assert (task.state.value, task.recoveries, task.interruptions) == ("ready", 0, 5)


async def test_keys_whose_window_is_over_make_room_for_new_ones() -> None:
    async with life(MemoryObjects("memory://")) as one:
        rules = some_rules(("default",), idempotency_keys_max=1)
        now = one.manager._commit.now()
        await submit(one, key="k1", fingerprint="f", key_expires_at=now + 1.0)

        later = a_job("j2", key="k2", fingerprint="f", key_expires_at=now + 9e9)

        assert decide(one.state, rules, later, now + 7_200.0) != []


async def test_a_write_that_fails_in_no_known_way_ends_the_manager() -> None:
    objects = GatedObjects()
    async with life(objects) as one:

        def fail(path: str) -> None:
            raise MemoryError("no room")

        objects.before = fail
        one.manager._commit.run(c.PauseQueue("default"))

        await eventually(lambda: one.fatal)
        assert "no room" in str(one.fatal[0])


async def test_waits_beyond_all_reason_are_cut_to_a_year() -> None:
    async with life(MemoryObjects("memory://"), "w1") as one:
        job_id = await submit(one)
        (assignment,) = (await one.take()).assignments
        await one.report(outcomes=[Outcome(assignment.token, "snoozed", 1.0, 2.0, delay_s=1e15)])

        view = await one.gateway.job(job_id, None)
        assert view.next_attempt_at is not None
        assert view.next_attempt_at < one.manager._commit.now() + 367 * 86_400


async def test_why_a_job_was_put_off_is_shown_while_it_waits() -> None:
    async with life(MemoryObjects("memory://"), "w1") as one:
        job_id = await submit(one)
        (assignment,) = (await one.take()).assignments
        told = Outcome(assignment.token, "snoozed", 1.0, 2.0, error="banks rest", delay_s=60.0)
        await one.report(outcomes=[told])

        view = await one.gateway.job(job_id, None)

        assert view.error is not None
        assert (view.status, view.error.message) == ("pending", "banks rest")
        (attempt,) = await one.gateway.attempts(job_id, None)
        assert (attempt.outcome, attempt.error) == ("snoozed", "banks rest")


@pytest.mark.parametrize("after", ["²", "9" * 5000, "-1", "x"])
async def test_a_cursor_that_is_none_is_refused(after: str) -> None:
    async with life(MemoryObjects("memory://")) as one:
        with pytest.raises(InvalidInput, match="after"):
            await one.gateway.jobs(JobQuery(after=after))
