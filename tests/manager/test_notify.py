"""Notifications are jobs, submitted in the commit of the event they tell of or not at all."""

import asyncio
import uuid
from typing import Any

import msgspec
import pytest

from cluster.notify import NOTIFIES, TOLD_BYTES_MAX
from cluster.protocol import FileInfo, Output, encode
from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.rules import QueueLimits, Rules
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import JobSpec, Notify, decode_spec, encode_spec
from cluster.views import JobQuery
from jobs.errors import Unavailable
from jobs.retry import RetryPolicy
from tests.support.builders import NOON, Rulebook, canonical, some_rules
from tests.support.cluster import GatedObjects, Life, life
from tests.support.eventually import eventually
from tests.support.planned import step, workflow

CARRIER = JobSpec(
    "notify.webhook",
    msgspec.Raw(b'{"endpoint":"billing"}'),
    queue="io",
    max_attempts=10,
    retry=RetryPolicy(waits_s=(5.0, 300.0)),
    limits=("webhook:billing",),
)


FLOW = workflow(step("one"), step("two", "one")).plan


def tells(*on: str, **changes: Any) -> Notify:
    """Return a wish to be told of these events."""
    carrier = msgspec.structs.replace(CARRIER, **changes)
    return Notify(list(on), carrier)


def told(book: Rulebook, job_id: str) -> list[tuple[str, JobSpec]]:
    """Return the jobs that tell of one, as (event, spec), first submitted first."""
    found = []
    for job in book.state.order:
        spec = job.spec
        if spec.tells_of == job_id:
            found.append((msgspec.json.decode(spec.params)["event"]["type"], spec))
    return found


def events_told(book: Rulebook, job_id: str) -> list[str]:
    return [event for event, _ in told(book, job_id)]


@pytest.fixture
def book() -> Rulebook:
    return Rulebook()


def test_a_job_that_ends_submits_what_tells_of_it_in_the_same_commit(book: Rulebook) -> None:
    token = book.running("a", notify=[tells("completed", "failed")])

    events = book.finish(token, "ok")

    assert [type(event) for event in events] == [e.TaskSucceeded, e.JobSubmitted]
    assert events_told(book, "a") == ["job.completed"]
    assert canonical(book.replayed()) == canonical(book.state)


def test_a_notification_is_a_job_of_the_same_tenant_found_by_its_label(book: Rulebook) -> None:
    token = book.running(
        "a", tenant="acme", traceparent="00-1", notify=[tells("completed", "failed")]
    )

    book.finish(token, "ok")

    [(_, spec)] = told(book, "a")
    assert (spec.type, spec.tenant, spec.queue) == ("notify.webhook", "acme", "io")
    assert spec.labels == {NOTIFIES: "a", "event": "job.completed"}
    assert (spec.max_attempts, spec.retry.waits_s) == (10, (5.0, 300.0))
    assert spec.limits == ("webhook:billing",)
    assert spec.traceparent == "00-1"
    assert msgspec.json.decode(spec.params)["endpoint"] == "billing"


def test_what_is_told_of_a_completed_job_is_thin_and_names_its_files(book: Rulebook) -> None:
    output = Output(
        msgspec.Raw(b'{"pages":3}'),
        files=[FileInfo("a.pdf", "results/x", 9, "00", "application/pdf")],
    )
    token = book.running("a", labels={"team": "x"}, notify=[tells("completed")])
    book.now += 2.5

    book.finish(token, "ok", output=msgspec.Raw(encode(output)), started_at=NOON, ended_at=NOON + 1)

    [(_, spec)] = told(book, "a")
    assert msgspec.json.decode(spec.params)["event"] == {
        "type": "job.completed",
        "timestamp": "2023-11-14T22:13:22.500Z",
        "data": {
            "id": "a",
            "type": "test.job",
            "status": "completed",
            "queue": "default",
            "labels": {"team": "x"},
            "attempts": 1,
            "submitted_at": "2023-11-14T22:13:20.000Z",
            "started_at": "2023-11-14T22:13:20.000Z",
            "finished_at": "2023-11-14T22:13:22.500Z",
            "error": None,
            "reason": None,
            "result": {"pages": 3},
            "files": [{"name": "a.pdf", "bytes": 9, "uri": "output:a/0/a.pdf"}],
        },
    }


def test_each_event_is_told_only_to_those_who_asked_for_it(book: Rulebook) -> None:
    notify = [
        tells("started", type="one"),
        tells("failed", type="two"),
        tells("failed", "completed"),
    ]
    token = book.running("a", max_attempts=1, notify=notify)
    assert [(event, spec.type) for event, spec in told(book, "a")] == [("job.started", "one")]

    book.finish(token, "failed", error="no paper", cause="error")

    ends = [(event, spec) for event, spec in told(book, "a") if event == "job.failed"]
    assert [spec.type for _, spec in ends] == ["two", "notify.webhook"]
    data = msgspec.json.decode(ends[0][1].params)["event"]["data"]
    assert data["error"] == {"message": "no paper", "cause": "error"}


def test_that_a_job_started_is_told_once_however_often_it_is_tried(book: Rulebook) -> None:
    token = book.running("a", notify=[tells("started")])
    book.finish(token, "returned")
    [token] = book.lease("w1")
    book.finish(token, "failed", error="x")
    book.pass_time(3600)
    book.lease("w1")

    assert events_told(book, "a") == ["job.started"]


def test_an_attempt_that_fails_and_is_tried_again_tells_nothing(book: Rulebook) -> None:
    token = book.running("a", notify=[tells("completed", "failed")])

    book.finish(token, "failed", error="x")

    assert told(book, "a") == []


def test_a_cancelled_and_an_expired_job_are_told_of_with_the_reason(book: Rulebook) -> None:
    book.submit("a", notify=[tells("cancelled")])
    book.submit("b", expires_at=NOON + 5, notify=[tells("cancelled")])

    book.cancel("a")
    book.pass_time(6)

    reasons = [
        msgspec.json.decode(spec.params)["event"]["data"]["reason"]
        for job_id in ("a", "b")
        for _, spec in told(book, job_id)
    ]
    assert reasons == ["cancelled", "expired"]


def test_a_dead_letter_that_is_redriven_is_told_of_again(book: Rulebook) -> None:
    token = book.running("a", max_attempts=1, notify=[tells("completed", "failed")])
    book.finish(token, "failed", error="x")

    book.do(c.Revive("a"))
    [token] = book.lease("w1")
    book.finish(token, "ok")

    assert events_told(book, "a") == ["job.failed", "job.completed"]


def test_a_job_that_was_refused_at_intake_is_told_of_as_failed(book: Rulebook) -> None:
    spec = JobSpec("test.job", notify=[tells("failed")])

    book.do(c.Refuse("a", encode_spec(spec), "the key was reused", "idempotency_key_reused"))

    [(event, told_by)] = told(book, "a")
    assert event == "job.failed"
    data = msgspec.json.decode(told_by.params)["event"]["data"]
    assert data["error"]["message"] == "the key was reused"


def test_a_workflow_tells_once_of_its_start_and_of_its_end(book: Rulebook) -> None:
    book.submit("a", plan=FLOW, notify=[tells("started", "completed")])
    for _ in range(2):
        [token] = book.lease("w1")
        book.finish(token, "ok", output=msgspec.Raw(encode(Output(msgspec.Raw(b"7")))))

    assert events_told(book, "a") == ["job.started", "job.completed"]
    data = msgspec.json.decode(told(book, "a")[1][1].params)["event"]["data"]
    assert (data["status"], data["result"], data["attempts"]) == ("completed", 7, 2)
    assert canonical(book.replayed()) == canonical(book.state)


def test_a_workflow_that_fails_tells_the_error_of_the_step_that_failed_first(
    book: Rulebook,
) -> None:
    book.submit("a", plan=FLOW, notify=[tells("failed")])
    [token] = book.lease("w1")

    book.finish(token, "discarded", error="no such table")

    [(_, spec)] = told(book, "a")
    data = msgspec.json.decode(spec.params)["event"]["data"]
    assert data["error"] == {"message": "no such table", "cause": "discarded"}


@pytest.mark.parametrize("output", [b'{"files":7}', b"[]", b'"x"'])
def test_an_output_that_cannot_be_read_does_not_keep_the_job_from_being_told_of(
    book: Rulebook, output: bytes
) -> None:
    token = book.running("a", notify=[tells("completed")])

    book.finish(token, "ok", output=msgspec.Raw(output), started_at=1e300, ended_at=1e300)

    [(_, spec)] = told(book, "a")
    data = msgspec.json.decode(spec.params)["event"]["data"]
    assert (data["status"], data["files"], data["result"]) == ("completed", [], None)


def test_a_target_that_cannot_be_read_is_refused_with_its_job() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_spec(b'{"type":"a","notify":[{"on":["failed"],"job":{"type":7}}]}')


def test_ids_of_notifications_are_uuids_of_version_7_that_sort_by_the_event(
    book: Rulebook,
) -> None:
    first = book.running("a", notify=[tells("completed"), tells("completed")])
    book.finish(first, "ok")
    book.now += 1
    second = book.running("b", notify=[tells("completed")])
    book.finish(second, "ok")

    ids = [job.id for job in book.state.order if job.spec.tells_of]
    assert len(set(ids)) == 3
    assert {uuid.UUID(one).version for one in ids} == {7}
    assert {uuid.UUID(one).variant for one in ids} == {uuid.RFC_4122}
    assert max(ids[:2]) < ids[2]


def test_a_notification_does_not_notify(book: Rulebook) -> None:
    endless = tells("completed", notify=[tells("completed")])
    book.finish(book.running("a", notify=[endless]), "ok")
    [token] = book.lease("w1", queues=["io"])

    book.finish(token, "ok")

    assert len(book.state.jobs) == 2


def test_a_full_queue_does_not_refuse_what_tells_of_a_job() -> None:
    book = Rulebook(some_rules(depth_max=1))
    book.submit("waits", queue="io")
    token = book.running("a", notify=[tells("completed")])

    book.finish(token, "ok")

    assert events_told(book, "a") == ["job.completed"]


def test_a_queue_that_was_taken_away_does_not_keep_a_job_from_ending() -> None:
    book = Rulebook()
    token = book.running("a", notify=[tells("completed")])
    book.rules = Rules({"default": QueueLimits()})

    book.finish(token, "ok")

    [(_, spec)] = told(book, "a")
    assert spec.queue == "default"


def test_what_is_told_stays_small_whatever_labels_and_errors_a_job_has(book: Rulebook) -> None:
    labels = {f"label-{n}": "\x01" * 255 for n in range(32)}
    token = book.running("a", max_attempts=1, labels=labels, notify=[tells("failed")])

    book.finish(token, "failed", error="é" * 100_000)

    [(_, spec)] = told(book, "a")
    assert len(bytes(spec.params)) < TOLD_BYTES_MAX + 1_000


def test_who_is_told_survives_a_snapshot_and_a_start_is_not_told_again(book: Rulebook) -> None:
    token = book.running("a", notify=[tells("started", "completed")])
    book.finish(token, "returned")

    other = Rulebook(book.rules)
    other.state, other.now = load(dump(book.state)), book.now
    assert canonical(other.state) == canonical(book.state)
    [token] = other.lease("w1")
    other.finish(token, "ok")

    assert events_told(other, "a") == ["job.started", "job.completed"]


def test_an_edited_dead_letter_tells_whom_its_new_spec_names(book: Rulebook) -> None:
    token = book.running("a", max_attempts=1, notify=[tells("completed", "failed")])
    book.finish(token, "failed", error="x")
    quiet = encode_spec(JobSpec("test.job"))

    book.do(c.Revive("a", 0.0, quiet))
    [token] = book.lease("w1")
    book.finish(token, "ok")

    assert events_told(book, "a") == ["job.failed"]


def test_a_job_that_asked_for_nothing_leaves_no_trace_of_it(book: Rulebook) -> None:
    book.finish(book.running("a"), "ok")

    assert book.state.tellers == {}
    assert book.state.telling == {}
    assert b"notify" not in book.job("a").raw


async def test_after_a_crash_there_is_the_event_and_what_tells_of_it_or_neither() -> None:
    objects = GatedObjects()

    def away(path: str) -> None:
        raise Unavailable("the store is away")

    async with life(objects) as now:
        job_id = (await now.gateway.submit(JobSpec("noop", notify=[tells("completed")]))).job_id
        [assignment] = (await now.take()).assignments
        objects.before = away
        ending = asyncio.create_task(now.finish(assignment.token))
        await eventually(lambda: now.state.jobs[job_id].finished_at)
        assert len(now.state.jobs) == 2
        ending.cancel()
    objects.before = lambda path: None

    async with life(objects) as now:
        assert (await now.gateway.job(job_id, None)).status == "pending"
        assert await notifications(now, job_id) == []
        [assignment] = (await now.take("w2")).assignments
        await now.finish(assignment.token, "w2")

    async with life(objects) as now:
        assert (await now.gateway.job(job_id, None)).status == "completed"
        assert await notifications(now, job_id) == ["notify.webhook"]


async def notifications(now: Life, job_id: str) -> list[str]:
    page = await now.gateway.jobs(JobQuery(label=(NOTIFIES, job_id)))
    return [view.type for view in page.jobs]
