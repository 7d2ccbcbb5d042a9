"""Processes die: children, keepers, the worker itself. Nothing is left, nothing runs twice."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.protocol import Recorded, decode_record, encode
from cluster.worker.life import cause_of
from tests.support.eventually import eventually, gone, written
from tests.support.scripted_manager import ScriptedManager


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
async def test_crash_names_the_signal_and_quotes_the_last_lines(start: Any, number: int) -> None:
    bench = await start()

    outcome = await bench.manager.outcome(bench.manager.submit("test.signal", {"n": int(number)}))

    assert (outcome.kind, outcome.cause, outcome.alone) == ("crashed", f"signal {number}", True)
    assert "about to die" in outcome.error
    assert "Fatal Python error" not in outcome.error
    assert "about to die" in bench.log(outcome)


async def test_hard_exit_is_a_crash_with_its_code(start: Any) -> None:
    bench = await start()

    outcome = await bench.manager.outcome(bench.manager.submit("test.exit", {"n": 3}))

    assert (outcome.kind, outcome.cause) == ("crashed", "exit 3")


async def test_next_child_starts_at_once_and_work_goes_on(start: Any, result: Any) -> None:
    bench = await start()

    tokens = []
    for n in range(3):
        tokens.append(bench.manager.submit("test.signal", {"n": 9}))
        tokens.append(bench.manager.submit("test.ok", {"value": n}))
    outcomes = await bench.manager.all_outcomes(tokens)

    assert [outcome.kind for outcome in outcomes] == ["crashed", "ok"] * 3


async def test_only_the_task_that_ran_is_blamed_in_a_batch(start: Any, tmp_path: Path) -> None:
    bench = await start()
    bench.manager.eager = True
    path = str(tmp_path / "count")
    warm = [bench.manager.submit("test.noop") for _ in range(500)]
    await bench.manager.all_outcomes(warm)

    before = [bench.manager.submit("test.count", {"path": path, "n": n}) for n in range(50)]
    poison = bench.manager.submit("test.signal", {"n": 9})
    after = [bench.manager.submit("test.count", {"path": path, "n": n}) for n in range(50, 100)]
    outcomes = await bench.manager.all_outcomes([*before, *after])

    assert {outcome.kind for outcome in outcomes} == {"ok"}
    assert (await bench.manager.outcome(poison)).kind == "crashed"
    ran = (tmp_path / "count").read_text().split()
    assert sorted(map(int, ran)) == list(range(100))


async def test_kill_of_the_child_takes_its_grandchildren_with_it(
    start: Any, tmp_path: Path
) -> None:
    bench = await start()
    token = bench.manager.submit("test.family", {"path": str(tmp_path / "pids")})
    pids = [int(pid) for pid in (await written(tmp_path / "pids")).split()]

    os.kill(pids[0], signal.SIGKILL)
    await eventually(lambda: gone(*pids), within_s=5)
    outcome = await bench.manager.outcome(token, within_s=5)

    assert (outcome.kind, outcome.cause) == ("crashed", "signal 9")


async def test_kill_of_the_keeper_takes_everything_with_it(
    start: Any, tmp_path: Path, result: Any
) -> None:
    bench = await start()
    token = bench.manager.submit("test.family", {"path": str(tmp_path / "pids")})
    pids = [int(pid) for pid in (await written(tmp_path / "pids")).split()]

    os.kill(bench.slot.keeper_pid, signal.SIGKILL)
    await eventually(lambda: gone(*pids), within_s=5)
    outcome = await bench.manager.outcome(token)
    again = await bench.manager.outcome(bench.manager.submit("test.ok", {"value": 1}))

    assert outcome.kind == "crashed"
    assert result(again) == 1


async def test_kill_of_keeper_and_child_at_once_is_survived(start: Any, result: Any) -> None:
    bench = await start()

    os.kill(bench.slot.child_pid, signal.SIGKILL)
    os.kill(bench.slot.keeper_pid, signal.SIGKILL)
    outcome = await bench.manager.outcome(bench.manager.submit("test.ok", {"value": 1}))

    assert result(outcome) == 1


WORKER = """
import asyncio, sys
from tests.support.scripted_manager import ScriptedManager
from cluster.worker.worker import Worker

async def main(store, pids):
    manager = ScriptedManager()
    worker = Worker("w", "cpu", ["default"], 2, "process", store,
                    ["tests.support.jobs_for_tests"], manager)
    manager.submit("test.family", {"path": pids + "-1"})
    manager.submit("test.family", {"path": pids + "-2"})
    await worker.run()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("with_child", [False, True])
async def test_kill_of_the_worker_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_child: bool
) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(tmp_path / "store"), str(tmp_path / "pids"),
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    texts = [await written(tmp_path / f"pids-{n}") for n in (1, 2)]
    pids = [int(pid) for text in texts for pid in text.split()]
    assert len(pids) == 8

    worker.kill()
    if with_child:
        os.kill(pids[0], signal.SIGKILL)
    await eventually(lambda: gone(*pids), within_s=5)
    await worker.wait()

    await eventually(lambda: not list(tmp_path.glob("drayman-worker-*")), within_s=5)


async def test_capture_files_do_not_pile_up(start: Any) -> None:
    bench = await start()

    tokens = [bench.manager.submit("test.signal", {"n": 9}) for _ in range(3)]
    await bench.manager.all_outcomes(tokens)

    await eventually(lambda: len(list(bench.slot.scratch.glob("output-*"))) == 1)


async def test_worker_with_broken_job_modules_takes_no_work(start: Any, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await start(job_modules=["no.such.module"])


def test_cause_is_named_from_the_wait_status() -> None:
    assert cause_of(11) == "signal 11"
    assert cause_of(3 << 8) == "exit 3"


class SlowRecords(ScriptedManager):
    """Answers the first record only when the second has come, and lets that one wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.second = asyncio.Event(), asyncio.Event()

    async def record(self, data: bytes) -> bytes:
        self.records.append(decode_record(data))
        if len(self.records) == 1:
            self.asked.set()
            await self.second.wait()
            return encode(Recorded("done", msgspec.Raw(b'"of the dead"')))
        self.second.set()
        for _ in range(20):  # the first answer is on its way before this one
            await asyncio.sleep(0)
        return encode(Recorded())


async def test_answer_for_a_dead_child_never_reaches_the_next(start: Any, result: Any) -> None:
    bench = await start(manager=SlowRecords())
    dead = bench.manager.submit("test.once")
    await bench.manager.asked.wait()
    os.kill(bench.slot.child_pid, signal.SIGKILL)
    await bench.manager.outcome(dead)

    outcome = await bench.manager.outcome(bench.manager.submit("test.once"))

    assert "of the dead" not in str(result(outcome))
