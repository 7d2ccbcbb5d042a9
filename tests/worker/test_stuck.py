"""Alive but stuck: whatever a child, its keeper or the worker does, an end comes within a bound."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.worker.slot import Patience
from cluster.worker.worker import WorkerTimes
from tests.support.eventually import eventually, gone, written


def times(**patience: float) -> WorkerTimes:
    return WorkerTimes(heartbeat_s=0.2, patience=Patience(**patience))


async def test_handler_that_holds_the_gil_is_not_taken_for_dead(start: Any, result: Any) -> None:
    bench = await start(times=times(worker_s=0.6))

    outcome = await bench.manager.outcome(bench.manager.submit("test.gil_for", {"n": 2}))

    assert result(outcome) == "held"
    assert len(bench.manager.reports) > 5


async def test_hung_keeper_is_killed_and_the_attempt_ends(start: Any, tmp_path: Path) -> None:
    bench = await start(times=times(kill_s=0.3))
    token = bench.manager.submit(
        "test.stubborn", {"path": str(tmp_path / "pid")}, timeout_s=0.3, grace_s=0.1
    )
    handler = int(await written(tmp_path / "pid"))

    os.kill(bench.slot.keeper_pid, signal.SIGSTOP)
    outcome = await bench.manager.outcome(token)

    assert (outcome.kind, outcome.cause) == ("failed", "timeout")
    assert gone(handler)


async def test_death_that_a_hung_keeper_does_not_tell_is_found_out(
    start: Any, tmp_path: Path
) -> None:
    bench = await start(times=times(kill_s=0.3))
    token = bench.manager.submit("test.stubborn", {"path": str(tmp_path / "pid")})
    handler = int(await written(tmp_path / "pid"))

    os.kill(bench.slot.keeper_pid, signal.SIGSTOP)
    os.kill(handler, signal.SIGKILL)
    outcome = await bench.manager.outcome(token)

    assert (outcome.kind, outcome.cause) == ("crashed", "signal 9")


async def test_child_that_does_not_come_to_an_end_is_given_up(
    start: Any, tmp_path: Path, result: Any
) -> None:
    bench = await start(times=times(kill_s=0.2))
    token = bench.manager.submit("test.hold_socket", {"path": str(tmp_path / "pids")})
    handler, heir = map(int, (await written(tmp_path / "pids")).split())

    try:
        # With its keeper dead, nobody knows of the heir any more, and it keeps the socket open.
        os.kill(bench.slot.keeper_pid, signal.SIGKILL)
        outcome = await bench.manager.outcome(token, within_s=25)
        again = await bench.manager.outcome(bench.manager.submit("test.ok", {"value": 1}))
    finally:
        with suppress(ProcessLookupError):
            os.kill(heir, signal.SIGKILL)

    assert outcome.kind == "crashed"
    assert gone(handler)
    assert result(again) == 1


async def test_child_that_never_begins_is_replaced_and_nobody_is_charged(
    start: Any, result: Any
) -> None:
    bench = await start(times=times(begin_s=0.5))
    stopped = bench.slot.child_pid
    os.kill(stopped, signal.SIGSTOP)

    outcome = await bench.manager.outcome(bench.manager.submit("test.about"))

    assert result(outcome)["pid"] != stopped
    assert gone(stopped)


async def test_work_that_no_child_is_there_for_goes_back(start: Any, tmp_path: Path) -> None:
    bench = await start(times=times(backlog_s=0.4))
    bench.manager.eager = True
    running = bench.manager.submit("test.stubborn", {"path": str(tmp_path / "pid")})
    handler = int(await written(tmp_path / "pid"))
    waiting = [bench.manager.submit("test.noop") for _ in range(3)]
    await bench.manager.reported(lambda report: set(waiting) <= set(report.held))

    # What the next child is started with.
    object.__setattr__(bench.worker._executor._config, "job_modules", ("no.such.module",))
    os.kill(handler, signal.SIGKILL)
    outcomes = await bench.manager.all_outcomes(waiting)

    assert {outcome.kind for outcome in outcomes} == {"returned"}
    assert (await bench.manager.outcome(running)).kind == "crashed"
    assert bench.manager.reports[-1].free == 0


async def test_stopped_handler_is_ended_by_its_time_limit(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.stop_self", {"path": str(tmp_path / "pid")}, timeout_s=0.5,
                                 grace_s=0.2)  # fmt: skip

    await written(tmp_path / "pid")
    outcome = await bench.manager.outcome(token)

    assert (outcome.kind, outcome.cause) == ("failed", "timeout")


async def test_keeper_ends_the_child_of_a_worker_that_hangs(start: Any, tmp_path: Path) -> None:
    bench = await start(times=times(worker_s=0.5))
    token = bench.manager.submit("test.stubborn", {"path": str(tmp_path / "pid")})
    handler = int(await written(tmp_path / "pid"))

    for slot in bench.slots:
        # What a hung worker does not do, seen from the keeper.
        slot.tend = lambda now: None
    await eventually(lambda: gone(handler), within_s=3)
    outcome = await bench.manager.outcome(token)

    assert (outcome.kind, outcome.cause) == ("stopped", "worker hung")


async def test_blocker_of_a_loop_is_found_and_its_neighbours_are_not_charged(
    start: Any, tmp_path: Path
) -> None:
    bench = await start(mode="async", concurrency=10, times=times(blocked_s=0.6))
    innocent = [bench.manager.submit("test.async_ok", {"seconds": 60}) for _ in range(5)]
    await bench.manager.reported(lambda report: set(innocent) <= set(report.started))

    blocker = bench.manager.submit("test.async_block", {"path": str(tmp_path / "pid")})
    outcome = await bench.manager.outcome(blocker)
    others = await bench.manager.all_outcomes(innocent)

    assert (outcome.kind, outcome.cause) == ("failed", "blocked loop")
    assert "asyncio.to_thread" in outcome.error
    assert {(o.kind, o.cause) for o in others} == {("stopped", "killed with another")}


async def test_time_limit_that_passed_behind_a_blocker_is_charged_to_the_blocker(
    start: Any, tmp_path: Path
) -> None:
    bench = await start(mode="async", concurrency=10)
    innocent = bench.manager.submit("test.async_ok", {"seconds": 60}, timeout_s=2.5, grace_s=0.1)
    await bench.manager.reported(lambda report: innocent in report.started)

    blocker = bench.manager.submit("test.async_block", {"path": str(tmp_path / "pid")})
    first, second = await bench.manager.all_outcomes([innocent, blocker])

    assert (first.kind, first.cause) == ("stopped", "killed with another")
    assert (second.kind, second.cause) == ("failed", "blocked loop")


async def test_worker_of_which_a_part_broke_ends_itself(start: Any) -> None:
    bench = await start()

    async def broken() -> None:
        raise ZeroDivisionError("a part of it broke")

    bench.worker._executor.spawn(broken())

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(asyncio.shield(bench.running), 5)
    bench.running = None
