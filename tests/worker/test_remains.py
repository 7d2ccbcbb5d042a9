"""What a killed worker ran has ended before another worker begins it again."""

import asyncio
import os
import select
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.worker.remains import hold, make_scratch, sweep, wait_until_gone


@pytest.fixture
def scratch() -> Iterator[Path]:
    folder = make_scratch("worker-tests-1")
    yield folder
    shutil.rmtree(folder)


def a_keeper_and_its_child(scratch: Path) -> tuple[int, int, int]:
    """Return both pids, and a pipe that is readable once the child is dead."""
    told, tell = os.pipe()
    ends, lives = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        hold(scratch)
        child = os.fork()
        if child == 0:
            select.select([], [], [])
        os.write(tell, str(child).encode())
        select.select([], [], [])
    child = int(os.read(told, 20))
    for fd in (told, tell, lives):
        os.close(fd)
    return keeper, child, ends


async def test_work_of_a_dead_worker_waits_until_its_last_process_is_dead(scratch: Path) -> None:
    keeper, child, ends = a_keeper_and_its_child(scratch)
    waiting = asyncio.ensure_future(wait_until_gone("worker-tests-1"))

    os.kill(keeper, 9)
    await asyncio.to_thread(os.waitpid, keeper, 0)
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done

    os.kill(child, 9)
    await asyncio.wait_for(waiting, 5.0)
    assert os.read(ends, 1) == b""
    os.close(ends)


def test_what_was_left_long_ago_and_is_nobodys_is_removed(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, held = make_scratch("worker-tests-2"), make_scratch("worker-tests-3")
    fd = hold(held)
    for folder in (old, held):
        os.utime(folder, (0, 0))

    sweep()

    assert [folder.exists() for folder in (scratch, old, held)] == [True, False, True]
    os.close(fd)
    held.rmdir()


async def test_of_a_worker_that_was_elsewhere_there_is_nothing_to_wait_for() -> None:
    await asyncio.wait_for(wait_until_gone("worker-elsewhere-1"), 5.0)


async def test_a_process_that_cannot_be_ended_does_not_hold_up_its_work_for_ever(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.worker.remains.GIVE_UP_S", 0.05)
    fd = hold(scratch)

    await asyncio.wait_for(wait_until_gone("worker-tests-1"), 5.0)
    os.close(fd)
