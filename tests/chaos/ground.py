"""What a row's Drayman stands on: a folder, a bucket, a small disk, or two nodes."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.live import LiveDrayman
from tests.support.nodes import TwoNodes
from tests.support.weed import Weed, started

__all__ = ["Ground", "MakeGround", "a_bucket", "a_folder", "a_small_disk", "two_nodes"]

JOBS = "tests.chaos.jobs"
DISK_MB = 96


@dataclass(frozen=True, slots=True)
class Ground:
    """A Drayman that is not up yet, and what a row does to that which is under it."""

    drayman: LiveDrayman
    weed: Weed | None = None
    disk: Path | None = None
    nodes: TwoNodes | None = None


#: Makes one in a folder, for `drayman up` with these options, and ends all of it afterwards.
MakeGround = Callable[[Path, Sequence[str]], AbstractContextManager[Ground]]


@contextmanager
def a_folder(folder: Path, options: Sequence[str]) -> Iterator[Ground]:
    """The store is a folder, as by default."""
    drayman = LiveDrayman(folder, jobs=JOBS, options=options)
    try:
        yield Ground(drayman)
    finally:
        drayman.close()


@contextmanager
def a_bucket(folder: Path, options: Sequence[str]) -> Iterator[Ground]:
    """The store is in SeaweedFS."""
    (folder / "weed").mkdir()
    weed = started(folder / "weed")
    if isinstance(weed, str):
        raise SystemExit(weed)
    drayman = LiveDrayman(folder, jobs=JOBS, options=options, bucket=weed)
    try:
        yield Ground(drayman, weed=weed)
    finally:
        drayman.close()
        weed.kill()


@contextmanager
def a_small_disk(folder: Path, options: Sequence[str]) -> Iterator[Ground]:
    """The store is a folder on a file system of its own, which root alone may mount."""
    disk = folder / "disk"
    disk.mkdir()
    size = f"size={DISK_MB}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], check=True)
    try:
        drayman = LiveDrayman(folder, jobs=JOBS, options=[*options, "--free-space-min-mb", "4"])
        drayman.store_url = str(disk / "store")
        try:
            yield Ground(drayman, disk=disk)
        finally:
            drayman.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def two_nodes(folder: Path, options: Sequence[str]) -> Iterator[Ground]:
    """Ray has two nodes, which Drayman joins; the store's folder is on both."""
    home = folder / "home"
    home.mkdir()
    with TwoNodes({"DRAYMAN_HOME": str(home)}) as nodes:
        joining = [*options, "--address", nodes.address, "--shared-mount"]
        drayman = LiveDrayman(folder, jobs=JOBS, options=joining)
        try:
            yield Ground(drayman, nodes=nodes)
        finally:
            drayman.close(nodes.close)
