"""A disk that fails or fills up, under the real manager and the real store on disk."""

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from cluster.queue.spec import JobSpec
from cluster.store.local import LocalObjects
from jobs.errors import Unavailable
from tests.support.cluster import Life, life
from tests.support.eventually import eventually

SPEC = JobSpec(type="noop")
GIB = 1 << 30


class Disk(LocalObjects):
    """A disk with as much room as a test says, and an fsync that fails as it says."""

    def __init__(self, root: Path) -> None:
        self.free = 100 * GIB
        #: While it is set, fsyncs of the journal fail with `error`.
        self.failing = threading.Event()
        self.error = errno.ENOSPC
        #: What was fsynced without success.
        self.failed: list[str] = []
        super().__init__(root, fsync=self._sync)

    def _sync(self, descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if self.failing.is_set() and "/journal" in name:
            self.failed.append(name)
            raise OSError(self.error, os.strerror(self.error))
        os.fsync(descriptor)

    def free_bytes(self) -> int | None:
        return self.free


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "store")


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


def is_full(now: Life) -> bool:
    try:
        now.manager._space.check()
    except Unavailable:
        return True
    return False


async def test_new_work_is_refused_while_the_disk_is_nearly_full_and_the_rest_goes_on(
    disk: Disk,
) -> None:
    async with life(disk) as now:
        accepted = await now.gateway.submit(SPEC)
        disk.free = GIB - 1
        await eventually(lambda: is_full(now))

        with pytest.raises(Unavailable, match="nearly full: 1023 MiB free, 1024 MiB are kept"):
            await now.gateway.submit(SPEC)
        orders = await now.take()
        await now.finish(orders.assignments[0].token)

        assert (await now.gateway.job(accepted.job_id, None)).status == "completed"
        disk.free = GIB
        await eventually(lambda: not is_full(now))
        await now.gateway.submit(SPEC)


async def test_room_for_two_snapshots_is_kept(disk: Disk) -> None:
    disk.free = 5_999_999
    async with life(disk, free_space_min_mb=1) as now:
        await now.gateway.submit(SPEC)

        disk.put("snapshots/00000000000000000001.parquet", b"x" * 3_000_000)

        await eventually(lambda: is_full(now))
        disk.free += 1
        await eventually(lambda: not is_full(now))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
async def test_a_disk_that_fails_loses_nothing_and_is_written_again_when_it_can_be(
    disk: Disk, error: int, tmp_path: Path
) -> None:
    async with life(disk) as now:
        first = await now.gateway.submit(SPEC)
        disk.error = error
        disk.failing.set()
        waiting = asyncio.create_task(now.gateway.submit(SPEC))
        await eventually(lambda: len(disk.failed) >= 3)

        assert not waiting.done()
        assert not now.fatal

        disk.failing.clear()
        second = await waiting
        assert {first.job_id, second.job_id} == set(now.state.jobs)

    # After a failed fsync each try is a new file: the old one's pages may be gone for good.
    assert len(set(disk.failed)) == len(disk.failed)
    assert not leftovers(tmp_path)
    async with life(LocalObjects(tmp_path / "store")) as later:
        assert {first.job_id, second.job_id} == set(later.state.jobs)
