"""An attempt with a moment of its own begins then: not before, and not long after."""

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.protocol import NOTHING, START_AHEAD_S, Assignment, OrderlyStop, Report, encode
from cluster.worker.pipe import Feed, decode_to_child, until_start_s
from tests.support.eventually import eventually

JOBS = ["tests.support.jobs_for_tests", "tests.worker.flow_jobs"]
MODES = [("process", "flow.moment"), ("async", "flow.async_moment"), ("async", "flow.moment")]
#: Ahead enough that the handler would be there before.
AHEAD_S = START_AHEAD_S - 0.05


def due(starts_at: float) -> Assignment:
    return Assignment(1, "job", "task", 1, NOTHING, starts_at=starts_at)


@pytest.mark.parametrize(("mode", "type"), MODES)
async def test_handler_begins_at_its_moment(start: Any, result: Any, mode: str, type: str) -> None:
    bench = await start(mode=mode, job_modules=JOBS)
    await bench.manager.outcome(bench.manager.submit(type))

    starts_at = time.time() + AHEAD_S
    outcome = await bench.manager.outcome(bench.manager.submit(type, starts_at=starts_at))

    assert outcome.started_at >= starts_at
    assert starts_at <= result(outcome) < starts_at + 1


@pytest.mark.parametrize("mode", ["process", "async"])
async def test_moment_that_has_passed_is_now(start: Any, result: Any, mode: str) -> None:
    bench = await start(mode=mode, job_modules=JOBS)

    token = bench.manager.submit("flow.moment", starts_at=time.time() - 3600)

    assert result(await bench.manager.outcome(token)) > 0


@pytest.mark.parametrize("mode", ["process", "async"])
async def test_clock_that_is_off_delays_no_handler_for_long(start: Any, mode: str) -> None:
    bench = await start(mode=mode, job_modules=JOBS)

    token = bench.manager.submit("flow.moment", starts_at=time.time() + 3600)

    assert (await bench.manager.outcome(token, within_s=5)).kind == "ok"


@pytest.mark.parametrize("mode", ["process", "async"])
@pytest.mark.parametrize("reason", ["cancel", "drain", "promote"])
async def test_stop_before_its_moment_keeps_it_from_beginning(
    start: Any, tmp_path: Path, mode: str, reason: str
) -> None:
    bench = await start(mode=mode, job_modules=JOBS)
    await bench.manager.outcome(bench.manager.submit("test.noop"))
    count = tmp_path / "count"

    token = bench.manager.submit("test.count", {"path": str(count)}, starts_at=time.time() + 3600)
    await eventually(lambda: token in bench.slot.fed)
    bench.manager.stops.append(OrderlyStop(token, reason))
    bench.manager.wake()
    outcome = await bench.manager.outcome(token)
    after = await bench.manager.outcome(bench.manager.submit("test.noop"))

    told = ("stopped", "cancel") if reason == "cancel" else ("returned", "")
    assert (outcome.kind, outcome.cause) == told
    assert not count.exists()
    assert after.kind == "ok"


async def test_others_on_the_loop_do_not_wait_for_it(start: Any) -> None:
    bench = await start(mode="async", concurrency=10, job_modules=JOBS)
    await bench.manager.outcome(bench.manager.submit("test.async_ok"))

    late = bench.manager.submit("flow.async_moment", starts_at=time.time() + AHEAD_S)
    prompt = bench.manager.submit("flow.async_moment")
    outcomes = await bench.manager.all_outcomes([late, prompt])

    assert outcomes[1].ended_at < outcomes[0].started_at


@pytest.mark.parametrize("mode", ["process", "async"])
async def test_the_wait_is_not_part_of_its_time_limit(start: Any, mode: str) -> None:
    bench = await start(mode=mode, job_modules=JOBS)

    token = bench.manager.submit("flow.moment", timeout_s=0.1, starts_at=time.time() + 3600)

    assert (await bench.manager.outcome(token)).kind == "ok"


async def test_attempt_that_waits_for_its_moment_is_not_told_as_started(start: Any) -> None:
    bench = await start(job_modules=JOBS, concurrency=2)
    warm = [bench.manager.submit("test.sleep", {"seconds": 0.1}) for _ in range(2)]
    await bench.manager.all_outcomes(warm)
    told: list[tuple[float, Report]] = []
    bench.manager.before = lambda report: told.append((time.time(), report))

    due_at = time.time() + START_AHEAD_S
    token = bench.manager.submit("test.sleep", {"seconds": 0.2}, starts_at=time.time() + 3600)
    while token not in bench.manager.outcomes:
        await bench.manager.outcome(bench.manager.submit("test.noop"))

    assert not any(token in report.started for at, report in told if at < due_at)


def test_moment_reaches_the_child() -> None:
    assert decode_to_child(encode(Feed([due(12.5)]))).assignments[0].starts_at == 12.5


def test_wait_is_bounded_both_ways() -> None:
    now = time.time()

    assert until_start_s(due(0.0)) == 0.0
    assert until_start_s(due(now - 5)) == 0.0
    assert until_start_s(due(now + 5)) == START_AHEAD_S
    assert 0.0 < until_start_s(due(time.time() + 0.2)) <= 0.2
