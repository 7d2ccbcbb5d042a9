"""A stop with the reason `promote`: the attempt goes on elsewhere from what it saved."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.protocol import OrderlyStop
from tests.support.eventually import eventually, gone, written


def promote(bench: Any, token: int) -> None:
    bench.manager.stops.append(OrderlyStop(token, "promote"))
    bench.manager.wake()


async def test_promoted_attempt_stops_and_the_next_one_goes_on_from_its_checkpoint(
    start: Any, tmp_path: Path, result: Any
) -> None:
    bench = await start()
    path = tmp_path / "steps"
    params = {"path": str(path), "n": 3}
    token = bench.manager.submit("test.steps", params, grace_s=60)
    await eventually(lambda: len(bench.manager.records) == 4)

    promote(bench, token)
    outcome = await bench.manager.outcome(token, within_s=3)
    saved = bench.manager.records[-1]
    again = bench.manager.submit("test.steps", params, checkpoint=saved.value)

    assert (outcome.kind, outcome.cause, outcome.error) == ("stopped", "promote", "")
    assert (saved.op, saved.token, msgspec.json.decode(saved.value)) == ("checkpoint", token, 4)
    assert result(await bench.manager.outcome(again)) == [4, 5, 6, 7, 8, 9]
    assert path.read_text().split() == [str(step) for step in range(10)]


async def test_promoted_attempt_that_does_not_listen_is_killed_after_its_grace(
    start: Any, tmp_path: Path
) -> None:
    bench = await start()
    token = bench.manager.submit("test.stubborn", {"path": str(tmp_path / "pid")}, grace_s=0.2)
    pid = int(await written(tmp_path / "pid"))

    promote(bench, token)
    outcome = await bench.manager.outcome(token, within_s=3)

    assert (outcome.kind, outcome.cause) == ("stopped", "promote")
    assert gone(pid)


@pytest.mark.parametrize("type", ["test.async_hold", "test.async_stubborn"])
async def test_async_handler_is_promoted_like_any_other(
    start: Any, tmp_path: Path, type: str
) -> None:
    bench = await start(mode="async", concurrency=10)
    token = bench.manager.submit(type, {"path": str(tmp_path / "pid")}, grace_s=0.2)
    await written(tmp_path / "pid")

    promote(bench, token)
    outcome = await bench.manager.outcome(token, within_s=3)

    assert (outcome.kind, outcome.cause) == ("stopped", "promote")


async def test_result_that_comes_before_the_stop_is_obeyed_counts(
    start: Any, tmp_path: Path, result: Any
) -> None:
    bench = await start()
    token = bench.manager.submit("test.finish_when_stopped", {"path": str(tmp_path / "pid")})
    await written(tmp_path / "pid")

    promote(bench, token)

    assert result(await bench.manager.outcome(token)) == "finished all the same"


async def test_attempt_that_had_not_begun_is_given_back(start: Any, tmp_path: Path) -> None:
    bench = await start()
    bench.manager.eager = True
    running = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")})
    waiting = bench.manager.submit("test.count", {"path": str(tmp_path / "count")})
    await written(tmp_path / "pid")
    await bench.manager.reported(lambda report: waiting in report.held)

    promote(bench, waiting)

    assert (await bench.manager.outcome(waiting)).kind == "returned"
    assert running not in bench.manager.outcomes
