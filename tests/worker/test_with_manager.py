"""Manager and workers together: who is charged, what goes back, and what a late word changes."""

import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from cluster.store.memory import MemoryObjects
from tests.support.eventually import eventually, gone, written
from tests.support.pool import pool


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects("memory://")


def params(**fields: object) -> bytes:
    return msgspec.json.encode(fields)


async def test_poison_in_a_prefetched_batch_is_charged_alone(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    async with pool(objects, tmp_path) as one:
        await one.start("w1")
        warm = [await one.submit("test.noop") for _ in range(50)]
        await one.ended(*warm)
        count, ran = str(tmp_path / "count"), tmp_path / "count"
        jobs = [await one.submit("test.count", params(path=count, n=n)) for n in range(30)]
        poison = await one.submit("test.signal", params(n=9))
        jobs += [await one.submit("test.count", params(path=count, n=n)) for n in range(30, 60)]

        states = await one.ended(*jobs, poison)

        assert states == ["succeeded"] * 60 + ["dead"]
        assert one.past(poison) == [("crashed", "signal 9")] * 4
        assert all(one.past(job) == [] for job in jobs)
        assert sorted(map(int, ran.read_text().split())) == list(range(60))


async def test_poison_among_many_on_a_loop_is_found_and_charged_alone(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    async with pool(objects, tmp_path, mode="async", concurrency=20) as one:
        await one.start("w1")
        jobs = [await one.submit("test.async_ok", params(seconds=0.3)) for _ in range(3)]
        poison = await one.submit("test.async_signal", params(n=11))

        states = await one.ended(*jobs, poison)

        assert states == ["succeeded"] * 3 + ["dead"]
        assert one.past(poison) == [("interrupted", "signal 11"), *[("crashed", "signal 11")] * 4]
        assert {one.task(job).recoveries for job in jobs} == {0}
        assert {one.task(job).failures for job in jobs} == {0}


async def test_eater_of_memory_is_a_dead_letter_that_says_so(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    async with pool(objects, tmp_path) as one:
        await one.start("w1", memory_limit_bytes=200 << 20)

        eater = await one.submit("test.eat", params(path=str(tmp_path / "pid"), n=300))
        states = await one.ended(eater)

        assert states == ["dead"]
        assert one.past(eater) == [("crashed", "oom")] * 4
        last = (one.task(eater).past or [])[-1]
        assert "the limit is 200 MiB" in last.error


async def test_drained_worker_hands_back_and_the_next_resumes_after_the_checkpoint(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    async with pool(objects, tmp_path) as one:
        first = await one.start("w1")
        steps = tmp_path / "steps"
        job = await one.submit("test.steps", params(path=str(steps), n=6))
        behind = await one.submit("test.noop")
        await eventually(lambda: steps.exists() and steps.read_text().count("\n") == 7)

        await asyncio.wait_for(first.drain(2.0), 5)
        charged = (one.task(job).failures, one.task(job).recoveries)
        handed_back = one.past(job)
        await one.start("w2")
        states = await one.ended(job, behind)

        assert handed_back == [("interrupted", "drain")]
        assert charged == (0, 0)
        assert states == ["succeeded"] * 2
        assert one.past(behind) == []
        assert steps.read_text().split() == [str(n) for n in range(10)]


async def test_stubborn_handler_is_killed_within_the_grace_of_a_drain_and_not_charged(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    async with pool(objects, tmp_path) as one:
        worker = await one.start("w1")
        job = await one.submit("test.stubborn", params(path=str(tmp_path / "pid")))
        handler = int(await written(tmp_path / "pid"))

        began = time.monotonic()
        await worker.drain(1.0)

        assert time.monotonic() - began < 10
        assert gone(handler)
        assert one.past(job) == [("interrupted", "drain")]
        assert (one.task(job).failures, one.task(job).recoveries) == (0, 0)


async def test_manager_that_drains_has_handlers_stopped_within_its_grace(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    async with pool(objects, tmp_path) as one:
        await one.start("w1")
        job = await one.submit("test.steps", params(path=str(tmp_path / "steps"), n=3))
        await eventually((tmp_path / "steps").exists)

        await asyncio.wait_for(one.now.manager.drain(2.0), 10)

        assert one.past(job) == [("interrupted", "drain")]
        assert one.task(job).checkpoint != b""
        assert one.task(job).state.value == "ready"


async def test_worker_whose_node_is_lost_hands_back_at_once(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    async with pool(objects, tmp_path) as one:
        worker = await one.start("w1")
        job = await one.submit("test.stubborn", params(path=str(tmp_path / "pid")))
        handler = int(await written(tmp_path / "pid"))

        worker.leave(0.0, "node lost")
        await eventually(lambda: one.past(job), within_s=5)

        assert one.past(job) == [("interrupted", "node lost")]
        assert gone(handler)


async def test_late_word_of_a_worker_that_was_given_up_changes_nothing(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    async with pool(objects, tmp_path, heartbeat_timeout_s=3.0) as one:
        first = await one.start("w1")
        pid = tmp_path / "pid"
        job = await one.submit("test.stop_self", params(path=str(pid)))
        child = int(await written(pid))
        await eventually(lambda: one.session("w1").started)

        # To the manager, a worker that hangs: nothing arrives. Its keeper is kept quiet for it.
        talk, first._manager = first._manager, _Away()
        one.now.manager._attendance.lose("w1", "lease lost")
        await one.start("w2")
        states = await one.ended(job)
        with_second = one.task(job).attempt
        first._manager = talk
        os.kill(child, signal.SIGCONT)
        await eventually(lambda: gone(child), within_s=5)

        assert states == ["succeeded"]
        assert (with_second, one.task(job).attempt) == (2, 2)
        assert one.past(job) == [("crashed", "lease lost")]


class _Away:
    async def exchange(self, report: bytes) -> bytes:
        raise ConnectionError("away")

    async def record(self, record: bytes) -> bytes:
        raise ConnectionError("away")
