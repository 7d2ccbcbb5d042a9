"""Cancel, time limits and drain: cooperatively first, by force after the grace."""

from pathlib import Path
from typing import Any

from cluster.protocol import OrderlyStop
from tests.support.eventually import eventually, gone, written


def cancel(bench: Any, token: int, reason: str = "cancel") -> None:
    bench.manager.stops.append(OrderlyStop(token, reason))
    bench.manager.wake()


async def test_cooperative_handler_stops_within_its_grace(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")}, grace_s=60)
    pid = int(await written(tmp_path / "pid"))

    cancel(bench, token)
    outcome = await bench.manager.outcome(token, within_s=3)

    assert (outcome.kind, outcome.cause) == ("stopped", "cancel")
    assert gone(pid)


async def test_stubborn_handler_is_killed_after_its_grace(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.stubborn", {"path": str(tmp_path / "pid")}, grace_s=0.2)
    pid = int(await written(tmp_path / "pid"))

    cancel(bench, token)
    outcome = await bench.manager.outcome(token, within_s=3)

    assert (outcome.kind, outcome.cause) == ("stopped", "cancel")
    assert gone(pid)


async def test_handler_that_holds_the_gil_is_killed_too(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.gil", {"path": str(tmp_path / "pid")}, grace_s=0.2)
    await written(tmp_path / "pid")

    cancel(bench, token)
    outcome = await bench.manager.outcome(token, within_s=3)

    assert outcome.kind == "stopped"


async def test_heartbeats_go_on_while_a_handler_holds_the_gil(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.gil", {"path": str(tmp_path / "pid")})
    await bench.manager.reported(lambda report: token in report.started)
    before = len(bench.manager.reports)

    await eventually(lambda: len(bench.manager.reports) >= before + 3, within_s=5)

    assert bench.manager.reports[-1].held == [token]


async def test_stopped_attempt_leaves_no_process_behind(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.family", {"path": str(tmp_path / "pids")}, grace_s=60)
    pids = [int(pid) for pid in (await written(tmp_path / "pids")).split()]
    assert len(pids) == 4

    cancel(bench, token)
    await bench.manager.outcome(token, within_s=3)

    assert gone(*pids)


async def test_cancel_before_the_start_never_starts(start: Any, tmp_path: Path) -> None:
    bench = await start(manager=None)
    bench.manager.eager = True
    running = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")})
    waiting = bench.manager.submit("test.count", {"path": str(tmp_path / "count")})
    await written(tmp_path / "pid")
    await bench.manager.reported(lambda report: waiting in report.held)

    cancel(bench, waiting)
    outcome = await bench.manager.outcome(waiting)
    cancel(bench, running)
    await bench.manager.outcome(running)

    assert (outcome.kind, outcome.cause, outcome.started_at) == ("stopped", "cancel", 0.0)
    assert not (tmp_path / "count").exists()


async def test_cancelled_attempt_that_finishes_all_the_same_is_stopped(
    start: Any, tmp_path: Path
) -> None:
    bench = await start()
    token = bench.manager.submit("test.finish_when_stopped", {"path": str(tmp_path / "pid")})
    await written(tmp_path / "pid")

    cancel(bench, token)

    assert (await bench.manager.outcome(token)).kind == "stopped"


async def test_time_limit_stops_a_cooperative_handler(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")}, timeout_s=0.3)

    outcome = await bench.manager.outcome(token, within_s=3)

    assert (outcome.kind, outcome.cause) == ("failed", "timeout")
    assert outcome.error == "timed out after 0.3 s"


async def test_time_limit_kills_a_stubborn_handler_after_its_grace(
    start: Any, tmp_path: Path
) -> None:
    bench = await start()
    token = bench.manager.submit(
        "test.stubborn", {"path": str(tmp_path / "pid")}, timeout_s=0.2, grace_s=0.2
    )

    outcome = await bench.manager.outcome(token, within_s=3)

    assert (outcome.kind, outcome.cause) == ("failed", "timeout")


async def test_result_that_comes_within_the_grace_of_a_time_limit_counts(
    start: Any, tmp_path: Path, result: Any
) -> None:
    bench = await start()
    token = bench.manager.submit(
        "test.finish_when_stopped", {"path": str(tmp_path / "pid")}, timeout_s=0.2
    )

    assert result(await bench.manager.outcome(token)) == "finished all the same"


async def test_dropped_attempt_is_killed_and_nothing_more_is_said(
    start: Any, tmp_path: Path
) -> None:
    bench = await start()
    token = bench.manager.submit("test.stubborn", {"path": str(tmp_path / "pid")}, grace_s=60)
    pid = int(await written(tmp_path / "pid"))

    bench.manager.drop.append(token)
    bench.manager.wake()
    await bench.manager.reported(lambda report: not report.held)

    assert token not in bench.manager.outcomes
    await eventually(lambda: gone(pid), within_s=5)


async def test_drain_finishes_what_runs_and_hands_back_the_rest(
    start: Any, tmp_path: Path, result: Any
) -> None:
    bench = await start()
    bench.manager.eager = True
    running = bench.manager.submit("test.sleep", {"seconds": 0.5})
    await bench.manager.reported(lambda report: running in report.started)
    waiting = bench.manager.submit("test.count", {"path": str(tmp_path / "count")})
    await bench.manager.reported(lambda report: waiting in report.held)

    bench.manager.drain = True
    bench.manager.wake()
    await bench.running

    assert result(bench.manager.outcomes[running]) == "slept"
    assert bench.manager.outcomes[waiting].kind == "returned"
    assert bench.manager.reports[-1].draining


async def test_drain_stops_what_outlasts_its_grace(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")})
    await written(tmp_path / "pid")

    await bench.worker.drain(0.1)
    await bench.running

    outcome = bench.manager.outcomes[token]
    assert (outcome.kind, outcome.cause) == ("stopped", "drain")


async def test_recalled_tokens_come_back_and_the_running_one_goes_on(
    start: Any, tmp_path: Path
) -> None:
    bench = await start()
    bench.manager.eager = True
    running = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")})
    waiting = [
        bench.manager.submit("test.count", {"path": str(tmp_path / "count")}) for _ in range(5)
    ]
    await written(tmp_path / "pid")
    await bench.manager.reported(lambda report: set(waiting) <= set(report.held))

    bench.manager.recall = [running, *waiting]
    bench.manager.wake()
    outcomes = await bench.manager.all_outcomes(waiting)

    assert {outcome.kind for outcome in outcomes} == {"returned"}
    assert not (tmp_path / "count").exists()
    assert running not in bench.manager.outcomes


async def test_tasks_behind_a_long_one_in_a_child_can_be_recalled(
    start: Any, tmp_path: Path
) -> None:
    bench = await start()
    quick = [bench.manager.submit("test.noop") for _ in range(500)]
    await bench.manager.all_outcomes(quick)
    bench.manager.eager = True
    long = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")})
    behind = [
        bench.manager.submit("test.count", {"path": str(tmp_path / "count")}) for _ in range(20)
    ]
    await written(tmp_path / "pid")

    bench.manager.recall = behind
    bench.manager.wake()
    outcomes = await bench.manager.all_outcomes(behind, within_s=3)

    assert {outcome.kind for outcome in outcomes} == {"returned"}
    assert long not in bench.manager.outcomes
