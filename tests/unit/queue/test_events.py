"""Every event survives the journal, and a broken journal changes nothing."""

from typing import Any

import msgspec
import pytest

from cluster.queue import events as e
from cluster.queue.engine import _EVOLVE
from cluster.queue.rules import Limit
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import decode_head, encode_spec
from cluster.queue.state import IllegalTransition
from tests.support.builders import Rulebook, a_spec, canonical

RAW = msgspec.Raw(b'{"a":[1,2.5,null,"\\u00e9"]}')
END: dict[str, Any] = {"started_at": 1.25, "ended_at": 2.000001, "log": "logs/é"}
LEASE = ("job-1", "0", 2, 9_007_199_254_740_993)

SPEC = a_spec(params=RAW, labels={"k": "é"}, run_at=1.5, key="k", fingerprint="f")

EVERY: list[e.Event] = [
    e.ManagerStarted(7, "cluster", "0.1.0"),
    e.ManagerStopped(),
    e.BatchAccepted("gateway", 3, msgspec.Raw(b'{"0":{"t":"no","error":"Conflict","args":["x"]}}')),
    e.JobSubmitted("job-1", decode_head(encode_spec(SPEC)), encode_spec(SPEC)),
    e.TaskReady("job-1", "0"),
    e.TaskLeased(*LEASE, 'a "quoted" wörker\n'),
    e.TaskSucceeded(*LEASE, **END, output=RAW),
    e.AttemptFailed(*LEASE, **END, error="boom\n", cause="timeout", retry_at=3.3),
    e.AttemptCrashed(*LEASE, **END, error="dead", cause="signal 11"),
    e.LeaseReleased(*LEASE, **END, cause="drain", started=False, suspect=True),
    e.TaskSnoozed(*LEASE, **END, retry_at=9.75, error="later"),
    e.TaskDied(*LEASE, **END, error="boom", cause="oom", charged="recovery"),
    e.TaskCancelled("job-1", "0", "expired"),
    e.TaskCancelled("job-1", "0", "cancelled", 2, 5, **END),
    e.StopRequested(*LEASE, "cancel"),
    e.TaskRedriven("job-1", "0"),
    e.CheckpointSaved(*LEASE, RAW),
    e.OnceClaimed(*LEASE, "mail"),
    e.OnceDone(*LEASE, "mail", RAW),
    e.JobAliased("j2", "j1"),
    e.JobRefused("j3", RAW, "has no such queue", "refused"),
    e.CompactionPlanned(1, 7),
    e.Compacted(7, 99),
    e.Evicted(42),
    e.QueuePaused("default"),
    e.QueueResumed("default"),
    e.TasksAdded("job-1", "render", "chunk", 1_000, 500),
    e.TasksWithdrawn("job-1"),
    e.StepEnded("job-1", "render", "failed"),
    e.PlanStopped("job-1", "cancelled"),
    e.JobEnded("job-1", "cancelled"),
    e.JobRevived("job-1"),
    e.InputsLost(*LEASE, **END, needs=["fetch", "render.7"]),
    e.OutputLost("job-1", "render.7", 2),
    e.WorkerJoined("w1", "default", "node-é", {"a.b": "0123abcd"}),
    e.TaskMoved("job-1", "0", "slow", "long", 61.5),
    e.TaskUnparked("job-1", "0"),
    e.JobEdited("job-1", RAW),
    e.JobPurged("job-1"),
    e.ConfigSet(RAW, "run-1", {"a": 3.0}, {"api:*": Limit(rate=0.5, burst=2, concurrency=3)}),
    e.ScheduleSet(
        ScheduleSpec(name="nightly", tenant="t", cron="0 3 * * *", request=RAW, job=RAW), 4.5
    ),
    e.ScheduleDeleted("t", "nightly"),
    e.ScheduleFired("t", "nightly", 3.5, 4.5, "job-9", 2),
]


def test_the_list_above_has_every_kind_that_the_rules_know() -> None:
    assert {type(event) for event in EVERY} == set(_EVOLVE)
    assert len({event.kind for event in EVERY}) == len(_EVOLVE)


@pytest.mark.parametrize("event", EVERY, ids=lambda event: event.kind)
def test_an_event_survives_the_journal(event: e.Event) -> None:
    row = e.to_row(event)

    assert e.from_row(row) == event
    assert row[0] == event.kind
    assert isinstance(row[5], bytes)


@pytest.mark.parametrize("event", EVERY, ids=lambda event: event.kind)
def test_a_row_with_a_field_of_a_later_version_is_still_read(event: e.Event) -> None:
    *columns, data = e.to_row(event)
    newer = data[:-1] + (b"," if len(data) > 2 else b"") + b'"of_a_later_version":1}'

    found = e.from_row((*columns, newer))  # type: ignore[arg-type]

    if isinstance(event, e.JobSubmitted):
        assert isinstance(found, e.JobSubmitted)
        assert found.spec == event.spec
    else:
        assert found == event


def test_a_kind_of_a_later_version_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="task_teleported"):
        e.from_row(("task_teleported", "j", "0", 1, 1, b"{}"))


@pytest.mark.parametrize(
    "event",
    [
        e.TaskReady("leased", "0"),
        e.TaskLeased("leased", "0", 2, 99, "w2"),
        e.TaskLeased("done", "0", 2, 99, "w2"),
        e.TaskCancelled("done", "0", "cancelled"),
        e.TaskReady("ready", "0"),
    ],
    ids=repr,
)
def test_an_event_that_the_table_forbids_changes_nothing(book: Rulebook, event: e.Event) -> None:
    book.finish(book.running("done"), "ok")
    book.running("leased")
    book.submit("ready")
    before = canonical(book.state)

    with pytest.raises(IllegalTransition):
        book.happen(event)

    assert canonical(book.state) == before


@pytest.mark.parametrize("kind", [e.TaskSucceeded, e.AttemptFailed, e.AttemptCrashed, e.TaskDied])
def test_an_event_under_a_token_that_nobody_holds_changes_nothing(
    book: Rulebook, kind: type[e.AttemptEnd]
) -> None:
    book.running("a")
    before = canonical(book.state)

    with pytest.raises(KeyError):
        book.happen(kind("a", "0", 1, 999))

    assert canonical(book.state) == before
