"""Jobs that a manager submits by itself begin traces of their own."""

import msgspec
import pytest

from cluster.queries import Query
from cluster.queue import commands as c
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import JobSpec, encode_spec
from cluster.store.memory import MemoryObjects
from cluster.trace_context import parse
from cluster.tracing import Span
from tests.support.cluster import life
from tests.support.eventually import eventually


@pytest.mark.parametrize("traced", [True, False])
async def test_each_tick_begins_a_trace_of_its_own_where_there_are_traces(traced: bool) -> None:
    spans: list[Span] = []
    put_span = spans.append if traced else None
    async with life(MemoryObjects("memory://"), put_span=put_span) as one:
        job = msgspec.Raw(encode_spec(JobSpec("greet", tenant="t")))
        often = ScheduleSpec(name="often", tenant="t", cron="* * * * *", request=job, job=job)
        await one.manager.call(msgspec.json.encode(Query("put_schedule", schedule=often)))
        for _ in range(2):
            one.clock.offset_s += 60.0
            one.manager.tick()
        query = Query("fire_schedule", tenant="t", name="often")
        await one.manager.call(msgspec.json.encode(query))

        jobs = list(one.state.jobs.values())
        contexts = [job.spec.traceparent for job in jobs]
        assert len(jobs) >= 3
        if not traced:
            assert set(contexts) == {None}
            return
        assert len({parse(context) for context in contexts}) == len(jobs)
        for job in jobs:
            one.manager._commit.run(c.Cancel(job.id))
        await eventually(lambda: len(spans) >= len(jobs))
        assert {(span.trace_id, span.span_id) for span in spans} >= set(map(parse, contexts))
        assert {span.parent_id for span in spans} == {""}
        assert {span.attributes["drayman.schedule"] for span in spans} == {"often"}
        assert len({span.attributes.get("drayman.due") for span in spans}) >= len(jobs)
