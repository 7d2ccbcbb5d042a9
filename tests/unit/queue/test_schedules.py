"""Schedules: ticks that fire once, and what becomes of those that do not."""

from typing import Any

import msgspec
import pytest

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue import standing
from cluster.queue.rules import QueueLimits, Rules
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import JobSpec, Plan, StepSpec, encode_spec
from jobs.errors import InvalidInput, NotFound, Overloaded
from tests.support.builders import NOON, Rulebook, a_spec, canonical, some_rules


def a_schedule(name: str = "s", job: JobSpec | None = None, **changes: Any) -> ScheduleSpec:
    raw = msgspec.Raw(encode_spec(job or a_spec(tenant="t")))
    told: dict[str, Any] = {"tenant": "t", "cron": "* * * * *", "request": raw, "job": raw}
    return ScheduleSpec(name=name, **{**told, **changes})


def put(book: Rulebook, spec: ScheduleSpec, next_at: float | None = NOON + 60) -> int:
    book.do(c.PutSchedule(spec, next_at))
    return book.state.schedules[spec.tenant, spec.name].generation


def fire(book: Rulebook, generation: int, *ticks: tuple[float, str], missed: int = 0,
         next_at: float | None = NOON + 999) -> list[e.Event]:  # fmt: skip
    return book.do(c.FireSchedule("t", "s", generation, [*ticks], next_at, missed))


def test_a_tick_and_its_job_are_one_commit(book: Rulebook) -> None:
    generation = put(book, a_schedule())

    events = fire(book, generation, (NOON + 60, "j1"))

    assert [type(event) for event in events] == [e.ScheduleFired, e.JobSubmitted]
    spec = book.job("j1").spec
    assert (spec.schedule, spec.scheduled_for, spec.tenant) == ("s", NOON + 60, "t")
    schedule = book.state.schedules["t", "s"]
    assert (schedule.next_at, schedule.last_at, schedule.last_job, schedule.fired) == (
        NOON + 999, NOON + 60, "j1", 1,
    )  # fmt: skip
    assert canonical(book.replayed()) == canonical(book.state)


def test_the_same_spec_again_changes_nothing(book: Rulebook) -> None:
    put(book, a_schedule())

    assert book.do(c.PutSchedule(a_schedule(), NOON + 5_000)) == []
    assert book.state.schedules["t", "s"].next_at == NOON + 60


def test_ticks_found_for_a_spec_that_was_replaced_fire_nothing(book: Rulebook) -> None:
    old = put(book, a_schedule())
    fire(book, old, (NOON + 60, "j1"))
    new = put(book, a_schedule(cron="0 * * * *"))

    assert new > old
    assert fire(book, old, (NOON + 120, "j2")) == []
    schedule = book.state.schedules["t", "s"]
    assert (schedule.fired, schedule.last_job) == (1, "j1")  # what was, stays told
    assert "j2" not in book.state.jobs


def test_ticks_of_a_schedule_that_was_deleted_fire_nothing(book: Rulebook) -> None:
    generation = put(book, a_schedule())
    book.do(c.DeleteSchedule("t", "s"))

    assert fire(book, generation, (NOON + 60, "j1")) == []
    with pytest.raises(NotFound):
        book.do(c.DeleteSchedule("t", "s"))
    again = put(book, a_schedule())
    assert fire(book, generation, (NOON + 60, "j1")) == []
    assert fire(book, again, (NOON + 60, "j1"))


def test_names_are_a_tenant_s_own(book: Rulebook) -> None:
    put(book, a_schedule())
    put(book, a_schedule(tenant="u", job=a_spec(tenant="u")))

    book.do(c.DeleteSchedule("u", "s"))

    assert list(book.state.schedules) == [("t", "s")]


def test_several_ticks_fire_several_jobs_and_missed_ones_are_counted(book: Rulebook) -> None:
    generation = put(book, a_schedule(catch_up="all"))

    fire(book, generation, (NOON + 60, "j1"), (NOON + 120, "j2"), missed=3)

    schedule = book.state.schedules["t", "s"]
    assert (schedule.fired, schedule.skipped) == (2, 3)
    assert list(book.state.jobs) == ["j1", "j2"]


def test_ticks_that_were_all_missed_are_counted_and_the_next_one_is_set(book: Rulebook) -> None:
    generation = put(book, a_schedule())

    fire(book, generation, missed=4)

    schedule = book.state.schedules["t", "s"]
    assert (schedule.fired, schedule.skipped, schedule.next_at) == (0, 4, NOON + 999)
    assert (schedule.last_at, schedule.last_job) == (None, "")


def test_a_schedule_that_ends_has_no_next_tick(book: Rulebook) -> None:
    generation = put(book, a_schedule())

    fire(book, generation, (NOON + 60, "j1"), next_at=None)

    assert book.state.schedules["t", "s"].next_at is None


def test_where_jobs_may_not_overlap_a_tick_is_skipped_while_one_runs(book: Rulebook) -> None:
    generation = put(book, a_schedule(overlap="skip"))
    fire(book, generation, (NOON + 60, "j1"), (NOON + 120, "j2"))
    assert list(book.state.jobs) == ["j1"]
    (token,) = book.lease("w1")

    fire(book, generation, (NOON + 180, "j3"), missed=1)
    assert (book.state.schedules["t", "s"].fired, book.state.schedules["t", "s"].skipped) == (1, 3)
    book.finish(token, "discarded")
    fire(book, generation, (NOON + 240, "j4"))

    assert list(book.state.jobs) == ["j1", "j4"]


def test_a_tick_is_bound_by_no_limit_of_depth(book: Rulebook) -> None:
    book.rules = some_rules(depth_max=1)
    book.submit("full")
    generation = put(book, a_schedule())

    fire(book, generation, (NOON + 60, "j1"))

    assert "j1" in book.state.jobs


def test_a_tick_s_job_goes_where_its_like_goes() -> None:
    book = Rulebook(Rules({"fast": QueueLimits(max_run_s=1.0, then="slow"), "slow": QueueLimits()}))
    job = a_spec(tenant="t", queue="fast", routed=True, expected_s=9.0)
    generation = put(book, a_schedule(job=job))

    fire(book, generation, (NOON + 60, "j1"))

    assert book.task("j1").line.name == "slow"


def test_an_unknown_queue_is_refused_when_it_is_put(book: Rulebook) -> None:
    with pytest.raises(InvalidInput, match=r"job\.queue.*default, io"):
        book.do(c.PutSchedule(a_schedule(job=a_spec(queue="nope")), None))
    plan = Plan([StepSpec("a", queue="nope")])
    with pytest.raises(InvalidInput, match="nope"):
        book.do(c.PutSchedule(a_schedule(job=a_spec(plan=plan)), None))


def test_there_are_so_many_schedules_and_no_more(
    book: Rulebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "SCHEDULES_MAX", 2)
    put(book, a_schedule("a"))
    put(book, a_schedule("b"))

    with pytest.raises(Overloaded):
        book.do(c.PutSchedule(a_schedule("c"), None))
    put(book, a_schedule("a", cron="0 * * * *"))  # one that there is may change


def test_one_tenant_leaves_room_for_the_schedules_of_others(
    book: Rulebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "SCHEDULES_MAX", 10)
    for n in range(8):
        put(book, a_schedule(f"s{n}"))

    with pytest.raises(Overloaded) as refused:
        book.do(c.PutSchedule(a_schedule("s8"), None))

    assert (refused.value.scope, refused.value.name) == ("tenant", "t")
    put(book, a_schedule("s0", cron="0 * * * *"))
    put(book, a_schedule(tenant="u"))
    book.do(c.DeleteSchedule("t", "s1"))
    put(book, a_schedule("s8"))


def test_schedules_take_so_many_bytes_and_no_more(
    book: Rulebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = a_spec(labels={"text": "x" * 1_000})
    size = a_schedule(job=large).size
    monkeypatch.setattr(standing, "SCHEDULES_BYTES_MAX", 2 * size)
    put(book, a_schedule("a", job=large))

    with pytest.raises(Overloaded) as refused:
        book.do(c.PutSchedule(a_schedule("b", job=a_spec(labels={"text": "x" * 3_000})), None))

    assert (refused.value.scope, refused.value.name) == ("system", "")
    put(book, a_schedule("b"))
    put(book, a_schedule("a"))  # it takes less than before
    assert book.state.all_ahead.bytes == 2 * a_schedule().size


def test_schedules_survive_a_snapshot(book: Rulebook) -> None:
    generation = put(book, a_schedule(timezone="Europe/Berlin", jitter_s=2.5, ends_at=NOON + 1e6))
    put(book, a_schedule(tenant="u", paused=True), None)
    fire(book, generation, (NOON + 60, "j1"), missed=2)
    rows = list(dump(book.state))

    loaded = load(rows)

    assert list(dump(loaded)) == rows
    assert canonical(loaded) == canonical(book.state)
