"""Async workers: many attempts in one child."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from cluster.protocol import OrderlyStop
from tests.support.eventually import eventually, gone, written


async def started(start: Any, **settings: Any) -> Any:
    return await start(mode="async", concurrency=10, **settings)


async def test_many_handlers_wait_at_once(start: Any) -> None:
    bench = await started(start)
    began = time.monotonic()

    tokens = [bench.manager.submit("test.async_ok", {"seconds": 1.0}) for _ in range(10)]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert {outcome.kind for outcome in outcomes} == {"ok"}
    assert time.monotonic() - began < 8


async def test_what_each_prints_is_told_apart(start: Any) -> None:
    bench = await started(start)

    tokens = [bench.manager.submit("test.async_ok", {"seconds": 0.05}) for _ in range(5)]
    outcomes = await bench.manager.all_outcomes(tokens)

    for outcome in outcomes:
        assert bench.log(outcome) == f"task task-{outcome.token} slept\n"
    await eventually(lambda: not list(bench.slot.scratch.glob("*.out")))


async def test_plain_handlers_run_on_threads_beside_the_loop(start: Any, result: Any) -> None:
    bench = await started(start)

    plain = bench.manager.submit("test.sleep", {"seconds": 0.3})
    quick = bench.manager.submit("test.async_ok", {"seconds": 0.0})
    printed = bench.manager.submit("test.print", {"n": 1})

    first = await bench.manager.outcome(quick)
    last = await bench.manager.outcome(plain)
    assert first.ended_at < last.ended_at
    assert result(last) == "slept"
    assert bench.log(await bench.manager.outcome(printed)) == "line 0\n"


async def test_cancel_ends_one_and_leaves_the_others(start: Any, tmp_path: Path) -> None:
    bench = await started(start)
    other = bench.manager.submit("test.async_ok", {"seconds": 1.0})
    token = bench.manager.submit("test.async_hold", {"path": str(tmp_path / "pid")}, grace_s=60)
    await written(tmp_path / "pid")

    bench.manager.stops.append(OrderlyStop(token, "cancel"))
    bench.manager.wake()
    outcome = await bench.manager.outcome(token, within_s=5)

    assert (outcome.kind, outcome.cause) == ("stopped", "cancel")
    assert (await bench.manager.outcome(other)).kind == "ok"


async def test_stubborn_handler_takes_its_child_with_it_and_neighbours_go_back(
    start: Any, tmp_path: Path
) -> None:
    bench = await started(start)
    neighbour = bench.manager.submit("test.async_hold", {"path": str(tmp_path / "n")})
    token = bench.manager.submit(
        "test.async_stubborn", {"path": str(tmp_path / "pid")}, timeout_s=0.2, grace_s=0.2
    )
    pid = int(await written(tmp_path / "pid"))
    await written(tmp_path / "n")

    outcome = await bench.manager.outcome(token, within_s=3)
    innocent = await bench.manager.outcome(neighbour, within_s=3)

    assert (outcome.kind, outcome.cause) == ("failed", "timeout")
    assert (innocent.kind, innocent.cause) == ("stopped", "killed with another")
    assert gone(pid)


async def test_blocked_loop_does_not_stop_heartbeats_or_time_limits(
    start: Any, tmp_path: Path
) -> None:
    bench = await started(start)
    token = bench.manager.submit(
        "test.async_block", {"path": str(tmp_path / "pid")}, timeout_s=0.5, grace_s=0.3
    )
    await written(tmp_path / "pid")
    before = len(bench.manager.reports)

    outcome = await bench.manager.outcome(token, within_s=4)

    assert (outcome.kind, outcome.cause) == ("failed", "timeout")
    assert len(bench.manager.reports) > before


async def test_crash_makes_everything_that_ran_a_suspect(start: Any, tmp_path: Path) -> None:
    bench = await started(start)
    tokens = [
        bench.manager.submit("test.async_hold", {"path": str(tmp_path / f"{n}")}) for n in range(3)
    ]
    pids = {int(await written(tmp_path / f"{n}")) for n in range(3)}
    assert len(pids) == 1

    os.kill(pids.pop(), signal.SIGKILL)
    outcomes = await bench.manager.all_outcomes(tokens)

    assert {(o.kind, o.cause, o.alone) for o in outcomes} == {("crashed", "signal 9", False)}


async def test_suspects_run_one_by_one_in_a_child_of_their_own(
    start: Any, tmp_path: Path, result: Any
) -> None:
    bench = await started(start)
    neighbour = bench.manager.submit("test.async_ok", {"seconds": 1.5})
    poison = bench.manager.submit("test.signal", {"n": 9}, alone=True)
    innocent = bench.manager.submit("test.about", alone=True)

    crashed = await bench.manager.outcome(poison)
    cleared = await bench.manager.outcome(innocent)

    assert (crashed.kind, crashed.alone) == ("crashed", True)
    assert result(cleared)["pid"] != bench.slot.child_pid
    assert (await bench.manager.outcome(neighbour)).kind == "ok"
    await eventually(lambda: len(bench.slots) == 1)


async def test_records_can_be_made_without_blocking_the_loop(start: Any, result: Any) -> None:
    bench = await started(start)

    outcome = await bench.manager.outcome(bench.manager.submit("test.async_once", {"value": 3}))

    assert result(outcome) == f"job-{outcome.token}:task-{outcome.token}:pay"
    ops = [record.op for record in bench.manager.records]
    assert ops == ["checkpoint", "once_claim", "once_done"]
