"""Who watches gets every event once, in order: over slow readers, restarts and compactions."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.feed import LOOKS_MAX, OUTBOX_MAX, Facts, Filter, Message, Told, Watch, message_of
from cluster.follow import BUFFER_MAX, Begin, Follower, Watcher
from cluster.gateway import Gateway
from cluster.history.reader import History
from cluster.protocol import Outcome, Progress
from cluster.queue import events as e
from cluster.queue.spec import JobSpec, decode_head, encode_spec
from cluster.store.journal import Journal
from cluster.store.memory import MemoryObjects
from cluster.wire import ManagerAway
from jobs.errors import NotFound
from tests.support.cluster import GatedObjects, Life, life
from tests.support.eventually import eventually
from tests.support.planned import fan_out, fine, work

EVENTS_PAGE = (Path(__file__).parents[2] / "docs/events.md").read_text()


class Switch:
    """The way to whichever manager lives; nothing gets through while none does."""

    def __init__(self) -> None:
        self.life: Life | None = None

    async def submit(self, payload: bytes) -> bytes:
        return await self._manager().submit(payload)

    async def call(self, payload: bytes) -> bytes:
        manager = self._manager()
        asking = asyncio.ensure_future(manager.call(payload))
        while not asking.done():
            # As a connection breaks when the process behind it dies.
            await asyncio.wait([asking], timeout=0.005)
            if self.life is None or self.life.manager is not manager:
                asking.cancel()
                raise ManagerAway("it died")
        return asking.result()

    def _manager(self) -> Any:
        if self.life is None:
            raise ManagerAway("there is none")
        return self.life.manager


class Replica:
    """One replica's gateway and follower, over any number of managers."""

    def __init__(self, objects: MemoryObjects) -> None:
        self.switch = Switch()
        self.gateway = Gateway(
            self.switch,
            new_id=lambda: uuid.uuid4().hex,
            incarnation=uuid.uuid4().hex,
            history=History(objects),
            objects=objects,
            wall=lambda: 0.0,
            monotonic=lambda: 0.0,
            sleep=soon,
        )
        self.follower = Follower(self.gateway, Journal(objects), name=uuid.uuid4().hex, sleep=soon)

    @asynccontextmanager
    async def through(self, one: Life) -> AsyncIterator[None]:
        """Reach this manager within the block."""
        self.switch.life = one
        try:
            yield
        finally:
            self.switch.life = None

    async def close(self) -> None:
        await self.follower.close()
        await self.gateway.close()


async def soon(delay_s: float) -> None:
    await asyncio.sleep(0.001)


@pytest.fixture
def objects() -> GatedObjects:
    return GatedObjects()


@pytest.fixture
async def replica(objects: GatedObjects) -> AsyncIterator[Replica]:
    found = Replica(objects)
    yield found
    await found.close()


@pytest.fixture
async def one(objects: GatedObjects, replica: Replica) -> AsyncIterator[Life]:
    async with life(objects, "w1") as found, replica.through(found):
        yield found


async def submit(one: Life, **fields: Any) -> str:
    return (await one.gateway.submit(JobSpec("greet", **fields))).job_id


async def run(one: Life, kind: str = "ok", **more: Any) -> None:
    """Take the next attempt and end it."""
    (given,) = (await one.take()).assignments
    await one.report(outcomes=[Outcome(given.token, kind, 1.0, 2.0, **more)])  # type: ignore[arg-type]


async def read(
    watcher: Watcher, enough: Callable[[list[Any]], bool] = lambda _: False
) -> list[Any]:
    """Return what a watcher gets until it is over, or that is enough."""
    found: list[Any] = []
    async with asyncio.timeout(10):
        while not enough(found) and (items := await watcher.next()):
            found += [item for item in items if not isinstance(item, Told)]
    return found


def types(items: list[Any]) -> list[str]:
    return [item.kind if isinstance(item, Begin) else item.type for item in items]


def seqs(items: list[Any]) -> list[int]:
    return [item.seq for item in items]


def data(items: list[Any]) -> list[Any]:
    return [msgspec.json.decode(item.data) for item in items]


def has(kind: str, times: int = 1) -> Callable[[list[Any]], bool]:
    return lambda items: types(items).count(kind) >= times


# --- one job ----------------------------------------------------------------------------------


async def test_a_watcher_begins_with_the_job_and_gets_what_follows_once_in_order(
    one: Life, replica: Replica
) -> None:
    job_id = await submit(one, max_attempts=2)
    watcher = replica.follower.job(job_id, None)
    begun = await read(watcher, has("job"))
    await run(one, "failed", error="it broke", delay_s=0.0)
    await eventually(lambda: one.state.lines["default"].counts["ready"])
    await run(one)

    rest = await read(watcher)

    assert begun[0].view.status == "pending"
    assert types(rest) == [
        "job.started",
        "attempt.failed",
        "job.ready",
        "job.started",
        "job.completed",
    ]
    assert seqs(begun + rest) == sorted({*seqs(begun + rest)})
    assert [item.status for item in rest] == [
        "processing",
        "pending",
        "pending",
        "processing",
        "completed",
    ]


async def test_who_comes_again_gets_what_came_since_and_nothing_twice(
    one: Life, replica: Replica
) -> None:
    job_id = await submit(one)
    whole = replica.follower.job(job_id, None, 0)
    await run(one)
    items = await read(whole)

    again = [data(await read(replica.follower.job(job_id, None, item.seq))) for item in items]

    assert types(items) == ["job.submitted", "job.started", "job.completed"]
    assert again == [data(items[1:]), data(items[2:]), []]


async def test_a_number_that_no_event_had_yet_begins_anew(one: Life, replica: Replica) -> None:
    job_id = await submit(one)

    watcher = replica.follower.job(job_id, None, 10**9)

    (begin,) = await read(watcher, has("reset"))
    assert (begin.kind, begin.view.id) == ("reset", job_id)


async def test_a_job_that_is_over_is_told_as_it_is_and_no_more(one: Life, replica: Replica) -> None:
    job_id = await submit(one)
    await run(one, "discarded", error="no use")

    items = await read(replica.follower.job(job_id, None))

    assert [item.view.status for item in items] == ["failed"]


async def test_a_dead_letter_that_is_revived_goes_on_for_who_comes_again(
    one: Life, replica: Replica
) -> None:
    job_id = await submit(one)
    watcher = replica.follower.job(job_id, None)
    await read(watcher, has("job"))
    await run(one, "discarded", error="no use")
    failed = (await read(watcher))[-1]

    await one.gateway.retry(job_id, None)
    again = replica.follower.job(job_id, None, failed.seq)
    await again.begun(10)
    await run(one)

    assert types(await read(again)) == ["job.redriven", "job.started", "job.completed"]


async def test_another_tenants_job_is_not_there(one: Life, replica: Replica) -> None:
    job_id = await submit(one, tenant="acme")

    for wanted in (job_id, "nobody-knows-it"):
        with pytest.raises(NotFound):
            await replica.follower.job(wanted, "other").begun(10)


async def test_nothing_is_told_before_it_is_durable(
    one: Life, replica: Replica, objects: GatedObjects
) -> None:
    job_id = await submit(one)
    watcher = replica.follower.job(job_id, None)
    await read(watcher, has("job"))

    objects.gate.clear()
    taking = asyncio.ensure_future(one.take())
    await eventually(lambda: one.state.leases)
    was_told = watcher.has_news
    objects.gate.set()
    await taking

    assert not was_told
    assert types(await read(watcher, has("job.started"))) == ["job.started"]


async def test_without_watchers_nothing_is_kept(one: Life, replica: Replica) -> None:
    feed, commit = one.manager._feed, one.manager._commit
    job_id, other = await submit(one), await submit(one)
    assert commit.on_durable is None

    watcher = replica.follower.job(job_id, None)
    await read(watcher, has("job"))
    (subscription,) = feed._subscriptions.values()
    assert list(subscription.jobs) == [job_id]
    assert not [m for m in subscription.outbox if m.job_id == other]
    watcher.close()

    await eventually(lambda: commit.on_durable is None)
    assert not feed._subscriptions
    assert not feed._watching


async def test_progress_is_told_without_a_number_and_at_last(one: Life, replica: Replica) -> None:
    job_id = await submit(one)
    watcher = replica.follower.job(job_id, None)
    await read(watcher, has("job"))
    (given,) = (await one.take()).assignments
    await read(watcher, has("job.started"))
    token = given.token
    report = one.report(
        held=[token], started=[token], applied=1, progress=[Progress(token, 0.5, "half way")]
    )
    reporting = asyncio.ensure_future(report)

    async with asyncio.timeout(10):
        (told,) = await watcher.next()

    assert isinstance(told, Told)
    (said,) = data([told])
    assert (said["type"], said["fraction"], said["message"]) == ("progress", 0.5, "half way")
    assert "seq" not in said
    reporting.cancel()


async def test_a_subscriber_that_fetches_nothing_is_told_where_to_read_on(one: Life) -> None:
    job_id = await submit(one)
    feed, commit = one.manager._feed, one.manager._commit
    await feed.answer(Watch("replica", 1, add=[job_id], version=1))
    first = commit.durable + 1
    event = e.TaskLeased(job_id, "0", 1, 1, "w1")

    feed.publish(first, [event] * (OUTBOX_MAX + 5), [1.0] * (OUTBOX_MAX + 5))
    answer = await feed.answer(Watch("replica", 2, first - 1, base=1, version=1))

    assert answer.lost == first + OUTBOX_MAX
    assert seqs(answer.messages) == [answer.lost + n for n in range(1, 5)]


async def test_a_call_that_was_overtaken_is_answered_with_nothing(one: Life) -> None:
    job_id = await submit(one)
    feed = one.manager._feed
    await feed.answer(Watch("replica", 1, add=[job_id], version=1))
    parked = asyncio.ensure_future(feed.answer(Watch("replica", 2, base=1, version=1)))
    await asyncio.sleep(0)

    later = await feed.answer(Watch("replica", 3, base=1, version=2, drop=[job_id]))
    late = await feed.answer(Watch("replica", 2, base=1, version=1))
    strange = await feed.answer(Watch("replica", 4, base=7, version=8))

    assert later.is_known
    assert [(await parked).is_known, late.is_known, strange.is_known] == [False, False, False]


# --- restarts and compactions -----------------------------------------------------------------


async def test_nothing_is_missed_or_doubled_when_the_manager_dies(
    objects: GatedObjects, replica: Replica
) -> None:
    async with life(objects, "w1") as first, replica.through(first):
        job_id = await submit(first, max_attempts=5)
        watcher = replica.follower.job(job_id, None, 0)
        many = replica.follower.all(Filter(tenant="default"))
        items = await read(watcher, has("job.submitted"))
        everything = await read(many, has("reset"))
        await run(first, "failed", error="it broke", delay_s=0.0)
    async with life(objects, "w1") as second:
        # Before the replica knows of it.
        await eventually(lambda: second.state.lines["default"].counts["ready"])
        await run(second, "failed", error="it broke", delay_s=0.0)
        async with replica.through(second):
            await eventually(lambda: second.state.lines["default"].counts["ready"])
            await run(second)
            items += await read(watcher)
            everything += await read(many, has("job.completed"))

    expected = ["job.submitted", *["job.started", "attempt.failed", "job.ready"] * 2]
    assert types(items) == [*expected, "job.started", "job.completed"]
    assert seqs(items) == sorted({*seqs(items)})
    assert data(everything[1:]) == data(items[1:])


async def test_below_the_compaction_a_stream_begins_anew_and_says_so(
    one: Life, replica: Replica
) -> None:
    job_id, other = await submit(one), await submit(one)
    await run(one)
    for _ in range(2):  # the second deletes what the first covered
        await one.manager._housekeeper.compact()
    one.manager.tick()
    assert list(one.state.jobs) == [other]

    evicted = await read(replica.follower.job(job_id, None, 1))
    waiting = replica.follower.job(other, None, 1)
    begun = await read(waiting, has("reset"))
    many = await read(replica.follower.all(Filter(), 1), has("reset"))

    assert [(item.kind, item.view.status) for item in evicted] == [("reset", "completed")]
    assert [(item.kind, item.view.status) for item in begun] == [("reset", "pending")]
    assert many[0].view is None
    # Whoever comes again with that number has everything.
    assert await read(replica.follower.job(job_id, None, evicted[0].seq)) == []


async def test_a_job_that_waits_in_intake_is_followed_once_it_is_taken_over(
    objects: GatedObjects, replica: Replica
) -> None:
    accepted = await replica.gateway.submit(JobSpec("greet"))
    watcher = replica.follower.job(accepted.job_id, None)
    async with life(objects, "w1") as one, replica.through(one):
        await read(watcher, has("job"))
        await run(one)

        assert types(await read(watcher)) == ["job.started", "job.completed"]


# --- many chunks, many jobs -------------------------------------------------------------------


async def test_chunks_are_told_to_those_alone_who_ask(one: Life, replica: Replica) -> None:
    job_id = (await one.gateway.submit(fan_out())).job_id
    plain, curious = (replica.follower.job(job_id, None, chunks=chunks) for chunks in (False, True))
    for watcher in (plain, curious):
        await read(watcher, has("job"))

    await work(one, fine(3))
    told, all_told = await read(plain), await read(curious)
    again = await read(replica.follower.job(job_id, None, 0, chunks=True))

    assert types(told) == [
        *["task.started", "task.succeeded"],  # split
        *["task.started", "task.succeeded"],  # join
        *["step.succeeded", "job.completed"],
    ]
    assert len(all_told) == len(told) + 3 * 2
    assert data(again[1:]) == data(all_told)


async def test_the_progress_of_a_fan_out_says_how_many_chunks_are_done(one: Life) -> None:
    job_id = (await one.gateway.submit(fan_out())).job_id
    feed, commit = one.manager._feed, one.manager._commit
    await feed.answer(Watch("replica", 1, add=[job_id], version=1))

    await work(one, fine(3), free=1, most=2)
    one.clock.offset_s += 1
    answer = await feed.answer(Watch("replica", 2, commit.durable, base=1, version=1))

    (told,) = data(answer.progress)
    assert (told["job_id"], told["message"]) == (job_id, "1 of 3 chunks")
    assert told["steps"] == [{"name": "", "chunks": 3, "done": 1, "running": 0, "failed": 0}]


async def test_a_planned_job_that_failed_and_was_revived_reads_the_same_in_the_journal(
    one: Life, replica: Replica
) -> None:
    job_id = (await one.gateway.submit(fan_out())).job_id
    watcher = replica.follower.job(job_id, None, 0, chunks=True)
    await work(one, fine(3, t1="discarded"))
    failed = await read(watcher)
    await one.gateway.retry(job_id, None)
    again = replica.follower.job(job_id, None, failed[-1].seq, chunks=True)
    await again.begun(10)
    await work(one, fine(3))
    revived = await read(again)

    whole = await read(replica.follower.job(job_id, None, 0, chunks=True))

    assert (failed[-1].type, failed[-1].status) == ("job.failed", "failed")
    assert "job.redriven" in types(revived)
    assert (revived[-1].type, revived[-1].status) == ("job.completed", "completed")
    assert data(whole) == data(failed + revived)


async def test_a_filter_takes_the_jobs_of_one_tenant_type_queue_status_and_label(
    one: Life, replica: Replica
) -> None:
    ours = {"tenant": "acme", "queue": "default", "labels": {"team": "red"}}
    filters = [
        Filter(tenant="acme"),
        Filter(tenant="acme", type="greet"),
        Filter("acme", "greet", "default", None, ("team", "red")),
        Filter(status="pending", label=("team", "red")),
        Filter(tenant="acme", type="other"),
        Filter(tenant="acme", label=("team", "blue")),
    ]
    watchers = [replica.follower.all(wanted) for wanted in filters]
    for watcher in watchers:
        await read(watcher, has("reset"))

    job_id = await submit(one, **ours)
    other = await submit(one, tenant="other", labels={"team": "blue"})
    end = replica.follower.all(Filter(), 0)
    both = await read(end, has("job.submitted", 2))
    got = [await read(watcher, has("job.submitted")) for watcher in watchers[:4]]

    assert [item.job_id for item in both] == [job_id, other]
    assert [data(items) for items in got] == [data(both[:1])] * 4
    assert not any(watcher.has_news for watcher in watchers)


async def test_a_watcher_that_takes_nothing_is_let_go_and_may_come_again(
    one: Life, replica: Replica
) -> None:
    slow, quick = (replica.follower.all(Filter(type=kind)) for kind in ("greet", "call"))
    (begin,) = await read(slow, has("reset"))
    await read(quick, has("reset"))

    jobs = [JobSpec("greet")] * (BUFFER_MAX + 1)
    await one.gateway.submit_many(jobs)
    await eventually(lambda: slow.is_over)
    await one.gateway.submit(JobSpec("call"))

    assert slow.is_behind
    assert await read(slow) == []
    assert types(await read(quick, has("job.submitted"))) == ["job.submitted"]
    again = replica.follower.all(Filter(type="greet"), begin.seq)
    assert len(await read(again, has("job.submitted", len(jobs)))) == len(jobs)


async def test_more_than_filters_can_look_at_lets_their_watchers_go_but_none_of_a_job(
    one: Life, replica: Replica
) -> None:
    job_id, other = await submit(one), await submit(one)
    watcher, many = replica.follower.job(job_id, None), replica.follower.all(Filter())
    await read(watcher, has("job"))
    await read(many, has("reset"))
    first, count = one.manager._commit.durable + 1, LOOKS_MAX + 1

    one.manager._feed.publish(first, [e.TaskReady(other, "0")] * count, [1.0] * count)
    await eventually(lambda: many.is_over)

    assert (many.is_behind, watcher.is_behind) == (True, False)


# --- what is public ---------------------------------------------------------------------------

LEASE: dict[str, Any] = {"job_id": "j", "task_id": "0", "attempt": 1, "token": 1}
RAW = encode_spec(JobSpec("greet", params=msgspec.Raw(b'"secret"')))
SECRET = msgspec.Raw(b'"secret"')
SAMPLES: list[e.Event] = [
    e.JobSubmitted("j", decode_head(RAW), RAW),
    e.JobSubmitted("j", decode_head(encode_spec(JobSpec("greet", run_at=9e9))), b""),
    e.JobRefused("j", msgspec.Raw(RAW), "bad", "refused"),
    e.TaskReady("j", "0"),
    e.TaskLeased(**LEASE, worker="w1"),
    e.TaskSucceeded(**LEASE, output=SECRET),
    e.AttemptFailed(**LEASE, error="x" * 10_000, cause="error", retry_at=5.0),
    e.AttemptCrashed(**LEASE, error="x", cause="signal 9"),
    e.LeaseReleased(**LEASE, cause="drain"),
    e.InputsLost(**LEASE, needs=["a"]),
    e.TaskSnoozed(**LEASE, retry_at=5.0, error="banks rest"),
    e.TaskDied(**LEASE, error="x", cause="error"),
    e.TaskCancelled("j", "0", "cancelled", 1, 1),
    e.StopRequested(**LEASE, reason="cancel"),
    e.TaskRedriven("j", "0"),
    e.TaskMoved("j", "0", "slow", "long"),
    e.OutputLost("j", "0", 1),
    e.JobEdited("j", SECRET),
    e.JobPurged("j"),
    e.PlanStopped("j", "cancelled"),
    e.JobRevived("j"),
    *(e.StepEnded("j", "render", state) for state in ("succeeded", "failed", "skipped")),
    e.JobEnded("j"),
    e.JobEnded("j", "cancelled"),
    e.CheckpointSaved(**LEASE, value=SECRET),
    e.OnceDone(**LEASE, key="mail", value=SECRET),
    e.TasksAdded("j", "render", "chunk", 0, 1_000),
    e.TaskUnparked("j", "0"),
    e.Evicted(7),
]
ALWAYS = {"type", "seq", "at", "job_id", "tenant", "job_type", "queue", "status"}


def told(event: e.Event) -> list[Message]:
    """Return what is told of an event, of jobs with one task and of planned ones."""
    jobs = [
        Facts("acme", "greet", "default", planned, status, finished_seq)
        for planned in (False, True)
        for status, finished_seq in (("", 0), ("completed", 7))
    ]
    messages = [message_of(7, 1.0, event, facts) for facts in jobs if _fits(event, facts)]
    return [message for message in messages if message is not None]


def _fits(event: e.Event, facts: Facts) -> bool:
    of_plans = (e.OutputLost, e.PlanStopped, e.JobRevived, e.StepEnded, e.JobEnded, e.InputsLost)
    of_others = (e.JobRefused, e.JobEdited)
    if isinstance(event, e.JobEnded) and event.reason and facts.status:
        return False
    return not isinstance(event, of_others if facts.planned else of_plans)


def test_the_page_tells_of_every_public_event_and_of_no_other() -> None:
    rows = re.findall(r"^\| `([a-z._]+)` \|([^|]*)\|([^|]*)\|", EVENTS_PAGE, re.MULTILINE)
    page = {
        kind: ({*re.findall(r"`(\w+)`", statuses)}, {*re.findall(r"`(\w+)`", fields)})
        for kind, statuses, fields in rows
    }

    found: dict[str, tuple[set[str], set[str]]] = {}
    for message in [message for event in SAMPLES for message in told(event)]:
        statuses, fields = found.setdefault(message.type, (set(), set()))
        statuses |= {message.status} - {None}
        fields |= msgspec.json.decode(message.data).keys() - ALWAYS
        if message.type.endswith(".moved"):
            fields.add("queue")  # the new one

    assert found == page


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.kind)
def test_a_message_is_thin_and_holds_nothing_of_a_jobs_params_or_results(event: e.Event) -> None:
    for message in told(event):
        assert len(bytes(message.data)) < 1_000
        assert b"secret" not in bytes(message.data)
        assert msgspec.json.decode(message.data)["seq"] == 7
