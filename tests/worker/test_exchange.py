"""The exchange: what a worker reports, and what lost calls and other managers do to it."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.protocol import OrderlyStop, Orders, Report
from cluster.worker.worker import WorkerTimes
from tests.support.eventually import eventually, written
from tests.support.scripted_manager import ManagerAway


async def test_report_tells_who_and_how_much(start: Any) -> None:
    bench = await start(concurrency=2, node="n1")

    report = await bench.manager.reported(lambda report: report.free == 2)

    assert (report.worker, report.pool, report.queues) == ("w1", "cpu", ["default"])
    assert report.node == "n1"
    assert report.pid > 0
    assert not report.held


async def test_heartbeats_come_while_nothing_happens(start: Any) -> None:
    bench = await start(times=WorkerTimes(heartbeat_s=0.1))
    before = len(bench.manager.reports)

    await eventually(lambda: len(bench.manager.reports) >= before + 5, within_s=3)

    numbers = [report.number for report in bench.manager.reports]
    assert numbers == sorted(set(numbers))


async def test_outcome_does_not_wait_for_a_parked_report(start: Any) -> None:
    bench = await start(times=WorkerTimes(heartbeat_s=60))
    bench.manager.park_s = 60

    outcome = await bench.manager.outcome(bench.manager.submit("test.noop"), within_s=5)

    assert outcome.kind == "ok"


async def test_running_task_is_reported_as_started(start: Any, tmp_path: Path) -> None:
    bench = await start(times=WorkerTimes(heartbeat_s=60))
    token = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")})

    report = await bench.manager.reported(lambda report: token in report.started, within_s=5)

    assert report.free == 0


async def test_long_tasks_are_not_hoarded(start: Any) -> None:
    bench = await start()
    tokens = [bench.manager.submit("test.sleep", {"seconds": 0.1}) for _ in range(4)]

    await bench.manager.all_outcomes(tokens)

    # One ahead at first, when nothing is known; none once it is.
    assert all(len(report.held) <= 2 for report in bench.manager.reports)
    assert bench.manager.reports[-1].prefetch == 0


async def test_short_tasks_are_fetched_ahead(start: Any) -> None:
    bench = await start()

    await bench.manager.all_outcomes([bench.manager.submit("test.noop") for _ in range(2000)])

    assert max(report.free + report.prefetch for report in bench.manager.reports) > 100


async def test_outcomes_are_kept_until_a_reply_confirms_them(start: Any) -> None:
    bench = await start()
    failures = iter(range(3))

    def lose_reply(report: Report, orders: Orders) -> None:
        if report.outcomes and next(failures, None) is not None:
            raise ManagerAway("the reply is lost")

    bench.manager.after = lose_reply
    token = bench.manager.submit("test.noop")
    await bench.manager.reported(lambda report: not report.held and token in bench.manager.outcomes)

    assert bench.manager.repeated[token] == 4


async def test_nothing_runs_twice_or_gets_lost_when_calls_fail(start: Any, tmp_path: Path) -> None:
    """Every third report and every fourth reply is lost; what was leased is leased again."""
    bench = await start(concurrency=2)
    manager = bench.manager
    calls = Counter[str]()

    def lose_report(report: Report) -> None:
        calls["report"] += 1
        if calls["report"] % 3 == 0:
            raise ManagerAway("the report is lost")
        for token in manager.leased:
            if token not in report.held and token not in manager.outcomes:
                manager.resend(token)

    def lose_reply(report: Report, orders: Orders) -> None:
        calls["reply"] += 1
        if calls["reply"] % 4 == 0:
            raise ManagerAway("the reply is lost")

    manager.before, manager.after = lose_report, lose_reply
    path = tmp_path / "count"
    tokens = [manager.submit("test.count", {"path": str(path), "n": n}) for n in range(300)]
    await manager.all_outcomes(tokens, within_s=25)

    ran = Counter(map(int, path.read_text().split()))
    assert ran == Counter(range(300))


async def test_token_that_is_leased_again_starts_once(start: Any, tmp_path: Path) -> None:
    bench = await start()
    path = tmp_path / "count"
    token = bench.manager.submit("test.count", {"path": str(path), "n": 1})
    assignment = None

    def keep(report: Report, orders: Orders) -> None:
        nonlocal assignment
        assignment = next((a for a in orders.assignments if a.token == token), assignment)

    bench.manager.after = keep
    await bench.manager.outcome(token)
    await bench.manager.reported(lambda report: not report.held)
    assert assignment is not None
    bench.manager.leased[token] = assignment
    bench.manager.resend(token)
    await bench.manager.outcome(bench.manager.submit("test.noop"))

    assert path.read_text() == "1\n"


async def test_work_goes_on_while_the_manager_is_away(start: Any, tmp_path: Path) -> None:
    bench = await start()
    bench.manager.eager = True
    path = tmp_path / "count"
    tokens = [bench.manager.submit("test.sleep", {"seconds": 0.3})]
    tokens += [bench.manager.submit("test.count", {"path": str(path), "n": n}) for n in range(10)]
    await eventually(lambda: tokens[-1] in bench.manager.leased)

    bench.manager.away = True
    bench.manager.wake()
    await eventually(lambda: path.exists() and len(path.read_text().split()) == 10)
    bench.manager.away = False
    outcomes = await bench.manager.all_outcomes(tokens)

    assert {outcome.kind for outcome in outcomes} == {"ok"}


async def test_orders_of_an_older_epoch_are_refused(start: Any, tmp_path: Path) -> None:
    bench = await start()
    bench.manager.epoch = 5
    await bench.manager.outcome(bench.manager.submit("test.noop"))
    await bench.manager.reported(lambda report: report.epoch == 5)

    bench.manager.epoch = 4
    path = tmp_path / "count"
    bench.manager.submit("test.count", {"path": str(path), "n": 1})
    before = len(bench.manager.reports)
    await eventually(lambda: len(bench.manager.reports) >= before + 3)

    assert bench.manager.reports[-1].held == []
    assert bench.manager.reports[-1].epoch == 5
    assert not path.exists()


async def test_idle_worker_without_a_manager_ends_itself(start: Any) -> None:
    bench = await start(times=WorkerTimes(heartbeat_s=0.2, orphan_s=0.5))

    bench.manager.away = True
    bench.manager.wake()
    await asyncio.wait_for(bench.running, 5)

    assert bench.running.done()


async def test_busy_worker_without_a_manager_goes_on(start: Any, tmp_path: Path) -> None:
    bench = await start(times=WorkerTimes(heartbeat_s=0.2, orphan_s=0.3))
    token = bench.manager.submit("test.sleep", {"seconds": 1.0})
    await bench.manager.reported(lambda report: token in report.started)

    bench.manager.away = True
    bench.manager.wake()
    await eventually(lambda: token in bench.worker._executor.ended, within_s=3)
    bench.manager.away = False

    assert (await bench.manager.outcome(token)).kind == "ok"


async def test_log_of_a_running_attempt_can_be_read(start: Any, tmp_path: Path) -> None:
    bench = await start()
    token = bench.manager.submit("test.print_and_hold", {"path": str(tmp_path / "pid")})
    await written(tmp_path / "pid")
    log = bench.store / f"logs/job-{token}/task-{token}/1.log"

    await eventually(log.exists, within_s=5)

    assert log.read_text() == "already told\n"


@pytest.mark.parametrize("alone", [False, True])
async def test_suspect_runs_with_nothing_else_in_its_child(start: Any, alone: bool) -> None:
    bench = await start()
    bench.manager.eager = True
    tokens = [bench.manager.submit("test.noop") for _ in range(20)]
    suspect = bench.manager.submit("test.signal", {"n": 9}, alone=alone)
    tokens += [bench.manager.submit("test.noop") for _ in range(20)]

    outcomes = await bench.manager.all_outcomes(tokens)

    assert {outcome.kind for outcome in outcomes} == {"ok"}
    assert (await bench.manager.outcome(suspect)).kind == "crashed"


async def test_attempt_that_prints_without_end_does_not_fill_the_disk(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.worker.watch.CAPTURE_BYTES_MAX", 2 << 20)
    bench = await start()
    token = bench.manager.submit("test.print_without_end", {"path": str(tmp_path / "n")})
    await written(tmp_path / "n")

    bench.manager.stops.append(OrderlyStop(token, "cancel"))
    bench.manager.wake()
    outcome = await bench.manager.outcome(token)

    assert bench.log(outcome).startswith("line 0 ")
    assert "\n... cut here ...\n" in bench.log(outcome)
