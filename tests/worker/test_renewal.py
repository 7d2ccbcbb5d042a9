"""The process that runs handlers is renewed: after so many attempts, or when it has grown."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.bundle import make_bundle
from cluster.code import CodeStore
from cluster.store.local import LocalObjects
from cluster.worker.memory import MIB
from tests.support.eventually import eventually, gone, written

JOBS = ["tests.support.jobs_for_tests", "tests.worker.flow_jobs"]
SHOP = """\
import os
from jobs import Context, job
from pydantic import BaseModel

class Order(BaseModel):
    pass

@job("shop.pid")
def pid(ctx: Context, params: Order) -> int:
    return os.getpid()
"""


async def pids(bench: Any, result: Any, count: int, type: str = "flow.count", **spec: Any) -> Any:
    """Run so many, one after the other; return the processes they ran in."""
    found = []
    for _ in range(count):
        outcome = await bench.manager.outcome(bench.manager.submit(type, **spec))
        found.append(result(outcome))
    return found


def lengths(found: list[int]) -> list[int]:
    """Return how many came from each process, in order; none may come back."""
    assert len(Counter(found)) == sum(a != b for a, b in zip([0, *found], found, strict=False))
    return list(Counter(found).values())


async def ready_spare(bench: Any) -> int:
    """Wait for the spare child and return its process."""
    children = bench.worker._executor._children
    await eventually(lambda: children.spare is not None and children.spare.is_ready)
    return int(children.spare.child_pid)


def gate(folder: Path, name: str) -> dict[str, str]:
    return {"begun": str(folder / name), "opened": str(folder / "opened")}


# --- after so many attempts -----------------------------------------------------------------------


async def test_child_is_renewed_after_so_many_attempts(start: Any, result: Any) -> None:
    bench = await start(job_modules=JOBS, tasks_max=3)

    assert lengths(await pids(bench, result, 7)) == [3, 3, 1]


async def test_each_attempt_may_have_a_process_of_its_own(start: Any, result: Any) -> None:
    bench = await start(job_modules=JOBS, tasks_max=1)

    tokens = [bench.manager.submit("flow.count") for _ in range(6)]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert len({result(outcome) for outcome in outcomes}) == 6


async def test_without_a_limit_the_child_stays(start: Any, result: Any) -> None:
    bench = await start(job_modules=JOBS)

    assert lengths(await pids(bench, result, 5)) == [5]
    assert bench.worker._executor._children.spare is None


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_of_work_fed_in_batches_nothing_is_lost_and_nothing_runs_twice(
    start: Any, result: Any, tmp_path: Path, concurrency: int
) -> None:
    bench = await start(job_modules=JOBS, tasks_max=100, concurrency=concurrency)
    bench.manager.eager = True
    path = str(tmp_path / "count")

    tokens = [bench.manager.submit("flow.count", {"path": path, "n": n}) for n in range(1000)]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert {outcome.kind for outcome in outcomes} == {"ok"}
    assert sorted(map(int, Path(path).read_text().split())) == list(range(1000))  # noqa: ASYNC240
    counts = Counter(result(outcome) for outcome in outcomes)
    assert max(counts.values()) <= 100


async def test_next_child_is_up_before_it_is_needed(
    start: Any, result: Any, tmp_path: Path
) -> None:
    bench = await start(job_modules=JOBS, tasks_max=1)
    first = bench.manager.submit("flow.gate", gate(tmp_path, "begun"))
    await written(tmp_path / "begun")
    spare = await ready_spare(bench)

    (tmp_path / "opened").touch()
    await bench.manager.outcome(first)

    assert await pids(bench, result, 1) == [spare]


async def test_worn_child_is_gone_before_the_next_begins(
    start: Any, result: Any, tmp_path: Path
) -> None:
    """Two of them might not fit the memory, or the GPU."""
    bench = await start(job_modules=JOBS, tasks_max=1)
    first = bench.manager.submit("test.family", {"path": str(tmp_path / "pids")}, timeout_s=0.5)
    family = [int(pid) for pid in (await written(tmp_path / "pids")).split()]
    await ready_spare(bench)

    await bench.manager.outcome(first)
    second = bench.manager.submit("test.hold", {"path": str(tmp_path / "second")})
    await written(tmp_path / "second")

    assert gone(*family)
    assert second not in bench.manager.outcomes


async def test_log_of_the_last_attempt_is_kept(start: Any) -> None:
    bench = await start(job_modules=JOBS, tasks_max=1)

    tokens = [bench.manager.submit("test.print", {"n": 2}) for _ in range(3)]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert [bench.log(outcome) for outcome in outcomes] == ["line 0\nline 1\n"] * 3


async def test_spare_child_serves_at_once_when_another_crashes(start: Any, result: Any) -> None:
    bench = await start(job_modules=JOBS, tasks_max=4)
    first = await pids(bench, result, 2)
    spare = await ready_spare(bench)

    crashed = await bench.manager.outcome(bench.manager.submit("test.signal", {"n": 9}))
    after = await pids(bench, result, 3)

    assert (crashed.kind, crashed.cause) == ("crashed", "signal 9")
    assert after == [spare] * 3
    assert spare not in first


async def test_kill_of_the_spare_child_harms_nothing(start: Any, result: Any) -> None:
    bench = await start(job_modules=JOBS, tasks_max=2)
    await pids(bench, result, 1)
    spare = await ready_spare(bench)

    os.kill(spare, signal.SIGKILL)

    assert lengths(await pids(bench, result, 5)) == [1, 2, 2]


async def test_end_of_the_worker_is_the_end_of_the_spare_child(start: Any, result: Any) -> None:
    bench = await start(job_modules=JOBS, tasks_max=2)
    await pids(bench, result, 1)
    spare = await ready_spare(bench)
    keeper = bench.worker._executor._children.spare.keeper_pid

    bench.worker.stop()
    await bench.running

    await eventually(lambda: gone(spare, keeper))


async def test_child_with_code_of_a_bundle_is_renewed_with_that_code(
    start: Any, result: Any, tmp_path: Path
) -> None:
    bench = await start(job_modules=JOBS, tasks_max=2)
    sha = shop(tmp_path)

    assert lengths(await pids(bench, result, 5, "shop.pid", code=sha)) == [2, 2, 1]


def shop(tmp_path: Path) -> str:
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "shop.py").write_text(SHOP)
    bundle = make_bundle(["shop"], [str(folder)])
    return CodeStore(LocalObjects(tmp_path / "store")).put(bundle.data)[0]


# --- when it has grown ----------------------------------------------------------------------------


async def test_child_is_renewed_once_it_has_grown_since_its_first_attempt(
    start: Any, result: Any
) -> None:
    bench = await start(job_modules=JOBS, growth_bytes_max=100 * MIB)

    found = []
    for leaks in (60, 60, 60, 0, 0):
        token = bench.manager.submit("flow.count", {"leaks": leaks})
        found.append(result(await bench.manager.outcome(token)))

    assert lengths(found) == [3, 2]


async def test_memory_that_an_attempt_gives_back_is_no_growth(start: Any, result: Any) -> None:
    bench = await start(job_modules=JOBS, growth_bytes_max=100 * MIB)
    first = await pids(bench, result, 1)

    found = []
    for _ in range(3):
        token = bench.manager.submit("flow.use", {"leaks": 200})
        found.append(result(await bench.manager.outcome(token)))

    assert set(found) == set(first)


async def test_what_was_fed_to_a_child_that_grew_runs_in_the_next(
    start: Any, result: Any, tmp_path: Path
) -> None:
    bench = await start(job_modules=JOBS, growth_bytes_max=50 * MIB)
    bench.manager.eager = True
    await bench.manager.all_outcomes([bench.manager.submit("test.noop") for _ in range(500)])
    path = str(tmp_path / "count")

    tokens = [
        bench.manager.submit(
            "flow.count", {"path": path, "n": n, "leaks": 60 * (n == 10), "lasts_s": 0.005}
        )
        for n in range(100)
    ]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert {outcome.kind for outcome in outcomes} == {"ok"}
    assert sorted(map(int, Path(path).read_text().split())) == list(range(100))  # noqa: ASYNC240
    assert result(outcomes[10]) == result(outcomes[0])
    assert await pids(bench, result, 1) != [result(outcomes[10])]


# --- many on one loop -----------------------------------------------------------------------------


async def test_async_child_that_is_due_ends_with_its_last_attempt_while_the_next_one_works(
    start: Any, result: Any, tmp_path: Path
) -> None:
    bench = await start(mode="async", concurrency=10, job_modules=JOBS, tasks_max=2)
    held = [bench.manager.submit("flow.gate", gate(tmp_path, f"begun-{n}")) for n in range(2)]
    for n in range(2):
        await written(tmp_path / f"begun-{n}")
    old = bench.slot.child_pid

    meanwhile = await pids(bench, result, 1)
    alive = not gone(old)
    (tmp_path / "opened").touch()
    outcomes = await bench.manager.all_outcomes(held)

    assert alive
    assert meanwhile != [old]
    assert [result(outcome) for outcome in outcomes] == [old, old]
    await eventually(lambda: gone(old))


async def test_async_children_take_no_more_than_they_may(start: Any, result: Any) -> None:
    bench = await start(mode="async", concurrency=10, job_modules=JOBS, tasks_max=5)
    bench.manager.eager = True

    tokens = [bench.manager.submit("flow.async_leak") for _ in range(20)]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert {outcome.kind for outcome in outcomes} == {"ok"}
    assert max(Counter(result(outcome) for outcome in outcomes).values()) <= 5
    await eventually(lambda: len(bench.slots) == 1)


async def test_async_attempts_share_the_concurrency_of_old_and_new(
    start: Any, tmp_path: Path
) -> None:
    bench = await start(mode="async", concurrency=3, job_modules=JOBS, tasks_max=2)
    bench.manager.eager = True

    tokens = [bench.manager.submit("flow.gate", gate(tmp_path, f"begun-{n}")) for n in range(6)]
    await eventually(lambda: len(list(tmp_path.glob("begun-*"))) == 3)
    running = sum(len(slot.fed) for slot in bench.slots)
    (tmp_path / "opened").touch()
    outcomes = await bench.manager.all_outcomes(tokens)

    assert running == 3
    assert {outcome.kind for outcome in outcomes} == {"ok"}


@pytest.mark.long  # it starts seven interpreters
async def test_many_old_children_at_once_are_enough(start: Any, tmp_path: Path) -> None:
    bench = await start(mode="async", concurrency=20, job_modules=JOBS, tasks_max=1)
    bench.manager.eager = True

    tokens = [bench.manager.submit("flow.gate", gate(tmp_path, f"begun-{n}")) for n in range(7)]
    await eventually(lambda: len(list(tmp_path.glob("begun-*"))) == 5, within_s=20)
    slots = len(bench.slots)
    (tmp_path / "opened").touch()
    outcomes = await bench.manager.all_outcomes(tokens)

    assert slots == 5
    assert {outcome.kind for outcome in outcomes} == {"ok"}


async def test_async_child_that_grew_gets_no_more(start: Any, result: Any) -> None:
    bench = await start(mode="async", concurrency=10, job_modules=JOBS, growth_bytes_max=100 * MIB)

    found = []
    for leaks in (0, 60, 60, 0, 0):
        token = bench.manager.submit("flow.async_leak", {"leaks": leaks})
        found.append(result(await bench.manager.outcome(token)))

    assert lengths(found) == [3, 2]


async def test_crash_of_a_child_on_its_way_out_ends_only_what_it_held(
    start: Any, result: Any, tmp_path: Path
) -> None:
    bench = await start(mode="async", concurrency=10, job_modules=JOBS, tasks_max=2)
    held = [bench.manager.submit("flow.gate", gate(tmp_path, f"begun-{n}")) for n in range(2)]
    for n in range(2):
        await written(tmp_path / f"begun-{n}")
    old = bench.slot.child_pid
    other = bench.manager.submit("flow.gate", gate(tmp_path, "begun-other"))
    await written(tmp_path / "begun-other")

    os.kill(old, signal.SIGKILL)
    outcomes = await bench.manager.all_outcomes(held)
    (tmp_path / "opened").touch()

    assert {(o.kind, o.cause, o.alone) for o in outcomes} == {("crashed", "signal 9", False)}
    assert (await bench.manager.outcome(other)).kind == "ok"
    assert len(await pids(bench, result, 5)) == 5


async def test_suspects_run_alone_in_fresh_children(start: Any, result: Any) -> None:
    bench = await start(mode="async", concurrency=10, job_modules=JOBS, tasks_max=1)

    tokens = [bench.manager.submit("flow.count", alone=True) for _ in range(3)]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert len({result(outcome) for outcome in outcomes}) == 3


async def test_async_child_with_code_of_a_bundle_is_followed_by_another(
    start: Any, result: Any, tmp_path: Path
) -> None:
    bench = await start(mode="async", concurrency=10, job_modules=JOBS, tasks_max=2)
    sha = shop(tmp_path)

    assert lengths(await pids(bench, result, 5, "shop.pid", code=sha)) == [2, 2, 1]


# --- what children inherit ------------------------------------------------------------------------


async def test_what_handlers_may_call_is_told_by_the_environment(
    start: Any, result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAYMAN_HTTP_ALLOW", "127.0.0.1:8123")
    bench = await start(job_modules=JOBS)

    outcome = await bench.manager.outcome(bench.manager.submit("flow.allowed"))

    assert result(outcome) == "127.0.0.1:8123"
