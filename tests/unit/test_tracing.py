"""Spans are made of events: one tree a trace, whatever became of the work on the way."""

from collections.abc import Iterable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision

from cluster.queue import commands as c
from cluster.queue.events import Event
from cluster.queue.spec import JobSpec, decode_head, encode_spec
from cluster.trace_context import attempt_context, own_context, parse, span_id
from cluster.tracing import Span, Tracer
from tests.support.builders import NOON, Rulebook
from tests.support.planned import step, workflow

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


class Traced(Rulebook):
    """Rules whose events are traced as if each command were one commit."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self.tracer = Tracer(self.state, self.spans.append)

    def do(self, command: c.Command) -> list[Event]:
        events = super().do(command)
        self.tracer.observe(events, [self.now] * len(events))
        return events

    def crash(self) -> None:
        """Go on with a tracer that knows nothing but the state."""
        self.tracer = Tracer(self.state, self.spans.append)
        self.tracer.begin()

    def plan(self, job_id: str, spec: JobSpec) -> None:
        raw = encode_spec(spec)
        self.do(c.Submit(job_id, decode_head(raw), raw))

    def only(self, name: str) -> Span:
        (span,) = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
def book() -> Traced:
    return Traced()


def names(spans: Iterable[Span]) -> list[str]:
    return [span.name for span in spans]


def work_off(book: Traced) -> None:
    while tokens := book.lease("w1", 10):
        for token in tokens:
            book.finish(token, "ok", started_at=book.now, ended_at=book.now + 1)


def test_an_attempt_waits_and_runs_beneath_its_job_which_is_beneath_the_request(
    book: Traced,
) -> None:
    book.submit("a", traceparent=SAMPLED, tenant="acme")
    book.now += 5
    (token,) = book.lease("w1")

    book.finish(token, "ok", started_at=NOON + 6, ended_at=NOON + 8)

    wait, run, job = book.spans
    assert names(book.spans) == ["wait", f"run {job.attributes['drayman.type']}", job.name]
    assert {span.trace_id for span in book.spans} == {TRACE}
    assert (job.parent_id, job.span_id) == (CALLER, span_id("a", 0))
    assert wait.parent_id == run.parent_id == job.span_id
    assert (wait.start, wait.end, run.start, run.end) == (NOON, NOON + 6, NOON + 6, NOON + 8)
    assert run.attributes["drayman.attempt"] == 1
    assert run.attributes["drayman.worker"] == "w1"
    assert run.attributes["drayman.tenant"] == "acme"
    assert run.error is job.error is None


@pytest.mark.parametrize(
    "given",
    [None, UNSAMPLED, "nonsense", "00-" + "g" * 32 + "-1-01", SAMPLED.replace("00-", "01-", 1)],
)
def test_what_is_not_sampled_has_no_spans(book: Traced, given: str | None) -> None:
    token = book.running("a", traceparent=given)

    book.finish(token, "ok")

    assert book.spans == []


def test_each_attempt_has_a_span_and_says_how_it_ended(book: Traced) -> None:
    token = book.running("a", traceparent=SAMPLED, max_attempts=2)
    book.finish(token, "failed", error="it broke", cause="ValueError")
    book.pass_time(1000)
    (token,) = book.lease("w1")
    book.finish(token, "failed", error="it broke again", cause="ValueError")

    runs = [span for span in book.spans if span.name.startswith("run")]
    assert [(run.attributes["drayman.outcome"], run.error) for run in runs] == [
        ("failed", "it broke"),
        ("died", "it broke again"),
    ]
    assert runs[0].span_id == span_id("a", book.task("a").id, 1)
    assert len({span.span_id for span in book.spans}) == len(book.spans)
    job = book.spans[-1]
    assert (job.attributes["drayman.status"], job.error) == ("failed", "it broke again")


def test_what_came_back_unstarted_was_no_attempt(book: Traced) -> None:
    token = book.running("a", traceparent=SAMPLED)
    book.finish(token, "returned")

    assert book.spans == []


def test_a_job_that_is_cancelled_before_it_ran_has_its_span(book: Traced) -> None:
    book.submit("a", traceparent=SAMPLED)
    book.cancel("a")

    (job,) = book.spans
    assert job.attributes["drayman.status"] == "cancelled"
    assert job.attributes["drayman.reason"] == "cancelled"


def test_the_life_after_a_redrive_is_a_span_beneath_the_first(book: Traced) -> None:
    token = book.running("a", traceparent=SAMPLED, max_attempts=1)
    book.finish(token, "failed", error="it broke")
    first = book.spans[-1]
    book.now += 60
    book.do(c.Revive("a"))
    (token,) = book.lease("w1")
    book.finish(token, "ok", started_at=book.now, ended_at=book.now)

    *_, run, second = book.spans
    assert first.span_id != second.span_id
    assert second.parent_id == first.span_id
    assert second.start == NOON + 60
    assert run.parent_id == second.span_id


def test_steps_stand_between_a_workflow_and_its_attempts(book: Traced) -> None:
    book.plan("a", workflow(step("one"), step("two", "one"), traceparent=SAMPLED))

    work_off(book)

    job = book.only("job test.flow")
    for name in ("one", "two"):
        of_step = book.only(f"step {name}")
        assert of_step.parent_id == job.span_id
        assert book.only(f"run test.{name}").parent_id == of_step.span_id
    assert job.parent_id == CALLER


def test_a_step_that_fails_is_an_error_and_what_it_keeps_from_running_has_no_span(
    book: Traced,
) -> None:
    book.plan("a", workflow(step("one"), step("two", "one"), traceparent=SAMPLED))
    (token,) = book.lease("w1")
    book.finish(token, "discarded", error="no use")

    assert book.only("step one").error is not None
    assert book.only("job test.flow").error is not None
    assert "step two" not in names(book.spans)


def test_a_workflow_that_goes_on_after_it_failed_stays_one_tree(book: Traced) -> None:
    book.plan("a", workflow(step("one"), step("two", "one"), traceparent=SAMPLED))
    (token,) = book.lease("w1")
    book.finish(token, "discarded", error="no use")
    book.now += 60
    book.do(c.Revive("a"))
    work_off(book)

    ids = [span.span_id for span in book.spans]
    assert len(set(ids)) == len(ids)
    assert {span.parent_id for span in book.spans} - set(ids) == {CALLER}
    assert names(book.spans).count("job test.flow") == 2
    assert (book.tracer._steps, book.tracer._leases, book.tracer._revived) == ({}, {}, {})


def test_a_job_that_tells_of_another_is_beneath_that(book: Traced) -> None:
    token = book.running("b", traceparent=SAMPLED, tells_of="a")
    book.finish(token, "ok")

    assert book.spans[-1].parent_id == span_id("a", 0)


def test_a_job_that_begins_a_trace_is_its_root_and_says_which_tick_it_is_of(book: Traced) -> None:
    told: dict[str, Any] = {"schedule": "nightly", "scheduled_for": NOON - 60}
    token = book.running("a", traceparent=own_context("a", {}), **told)
    book.finish(token, "ok")

    _, run, job = book.spans
    assert (job.parent_id, job.span_id) == ("", span_id("a", 0))
    assert run.parent_id == job.span_id
    assert job.attributes["drayman.schedule"] == "nightly"
    assert job.attributes["drayman.due"] == "2023-11-14T22:12:20+00:00"
    assert "drayman.schedule" not in run.attributes


def test_a_successor_ends_the_spans_of_attempts_that_were_under_way(book: Traced) -> None:
    token = book.running("a", traceparent=SAMPLED)
    book.crash()
    book.finish(token, "ok", started_at=NOON + 1, ended_at=NOON + 2)

    assert [span.start for span in book.spans] == [NOON, NOON + 1, NOON]


def test_a_clock_that_is_wrong_makes_no_span_end_before_it_begins(book: Traced) -> None:
    token = book.running("a", traceparent=SAMPLED)
    book.finish(token, "ok", started_at=NOON - 500, ended_at=NOON - 400)

    assert all(span.start <= span.end for span in book.spans)


def test_a_defect_here_does_not_reach_the_commit_loop(book: Traced) -> None:
    def broken(span: Any) -> None:
        raise RuntimeError

    token = book.running("a", traceparent=SAMPLED)
    book.tracer._put = broken

    book.finish(token, "ok")

    assert book.task("a").state == "succeeded"


# --- contexts ---------------------------------------------------------------------------------


def test_what_an_attempt_does_is_beneath_its_own_span() -> None:
    own = attempt_context(SAMPLED, "a", "main", 2, traced=True)

    assert parse(own) == (TRACE, span_id("a", "main", 2))


@pytest.mark.parametrize(
    ("sampler", "argument"),
    [
        ("", ""),
        ("always_on", ""),
        ("always_off", ""),
        ("parentbased_always_off", ""),
        ("traceidratio", "0.3"),
        ("parentbased_traceidratio", "0.3"),
        ("traceidratio", "half"),
        ("traceidratio", "0"),
        ("dice", ""),
    ],
)
def test_whether_a_job_that_begins_a_trace_is_sampled_is_as_the_sdk_has_it(
    sampler: str, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    for name, value in environ.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    of_sdk = TracerProvider().sampler

    for job_id in map(str, range(50)):
        context = own_context(job_id)
        trace_id = int(context.split("-")[1], 16)
        wanted = of_sdk.should_sample(None, trace_id, "job").decision
        assert (parse(context) is not None) == (wanted == Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize("given", [None, UNSAMPLED])
def test_without_a_span_of_its_own_the_context_is_passed_on(given: str | None) -> None:
    assert attempt_context(given, "a", "main", 1, traced=True) == given
    assert attempt_context(SAMPLED, "a", "main", 1, traced=False) == SAMPLED


def test_ids_of_different_things_differ() -> None:
    assert span_id("a", "bc") != span_id("ab", "c")
    assert len(span_id("a")) == 16
