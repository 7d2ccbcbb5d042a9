"""What the store on disk does in which order, and when the disk fails."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.store.objects import LocalObjects, probe
from jobs.errors import InvalidInput, Unavailable


class Disk:
    """An fsync that keeps a diary, and fails when told to."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.descriptors: list[int] = []
        self._fails: Callable[[str], bool] = lambda path: False

    def fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if self._fails(path):
            raise OSError(errno.EIO, "the disk gave up")
        os.fsync(descriptor)
        self.synced.append(path)

    def fail_once_for(self, matches: Callable[[str], bool]) -> None:
        def fails(path: str) -> bool:
            if not matches(path):
                return False
            self._fails = lambda path: False
            return True

        self._fails = fails


def is_temporary(path: str) -> bool:
    return Path(path).name.startswith(".tmp-")


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def objects(tmp_path: Path, disk: Disk) -> LocalObjects:
    objects = LocalObjects(tmp_path / "store", fsync=disk.fsync)
    objects.put("a/warm", b"")
    disk.synced.clear()
    return objects


def everything(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in tmp_path.rglob("*") if p.is_file())


def write_stream(objects: LocalObjects, path: str, data: bytes) -> None:
    with objects.open_write(path) as writer:
        writer.write(data)


WRITES: list[Callable[[LocalObjects], object]] = [
    lambda objects: objects.put_if_absent("a/b", b"bytes"),
    lambda objects: objects.put("a/b", b"bytes"),
    lambda objects: write_stream(objects, "a/b", b"bytes"),
]


@pytest.mark.parametrize("write", WRITES)
def test_file_is_synced_before_its_folder(
    objects: LocalObjects, disk: Disk, tmp_path: Path, write: Callable[[LocalObjects], object]
) -> None:
    write(objects)

    file, folder = disk.synced
    assert is_temporary(file)
    assert Path(file).parent == Path(folder) == tmp_path / "store/a"


@pytest.mark.parametrize("write", WRITES)
def test_failed_sync_of_the_file_leaves_nothing_and_the_retry_is_a_new_file(
    objects: LocalObjects, disk: Disk, tmp_path: Path, write: Callable[[LocalObjects], object]
) -> None:
    failed: list[str] = []

    def first_temporary(path: str) -> bool:
        if is_temporary(path):
            failed.append(path)
        return is_temporary(path)

    disk.fail_once_for(first_temporary)

    with pytest.raises(Unavailable, match="the disk gave up"):
        write(objects)
    after_failure = everything(tmp_path)
    write(objects)

    assert after_failure == ["warm"]
    assert objects.get("a/b") == b"bytes"
    assert disk.synced[0] != failed[0]


def test_create_whose_folder_sync_failed_is_linked_anew_by_the_retry(
    objects: LocalObjects, disk: Disk, tmp_path: Path
) -> None:
    """The entry may be lost although a second fsync of the folder would report success."""
    folder = str(tmp_path / "store/a")
    disk.fail_once_for(lambda path: path == folder)
    with pytest.raises(Unavailable, match="the disk gave up"):
        objects.put_if_absent("a/b", b"bytes")
    inode = (tmp_path / "store/a/b").stat().st_ino
    disk.synced.clear()

    created = objects.put_if_absent("a/b", b"bytes")

    assert not created
    assert (tmp_path / "store/a/b").stat().st_ino != inode
    assert [is_temporary(path) for path in disk.synced] == [True, False]


def test_doubtful_object_is_never_replaced_by_other_bytes(
    objects: LocalObjects, disk: Disk, tmp_path: Path
) -> None:
    folder = str(tmp_path / "store/a")
    disk.fail_once_for(lambda path: path == folder)
    with pytest.raises(Unavailable):
        objects.put_if_absent("a/b", b"bytes")

    assert not objects.put_if_absent("a/b", b"other")
    assert objects.get("a/b") == b"bytes"


def test_name_that_is_taken_is_made_durable_before_we_say_so(
    objects: LocalObjects, disk: Disk, tmp_path: Path
) -> None:
    """Whoever created it may not have synced the folder yet, and the caller will build on it."""
    (tmp_path / "store/a/b").write_bytes(b"theirs")

    created = objects.put_if_absent("a/b", b"ours")

    assert not created
    assert disk.synced[-1] == str(tmp_path / "store/a")


def test_new_folder_is_synced_in_each_parent_before_what_is_in_it(
    objects: LocalObjects, disk: Disk, tmp_path: Path
) -> None:
    objects.put_if_absent("x/y/z", b"")

    store = tmp_path / "store"
    assert disk.synced[:2] == [str(store), str(store / "x")]
    assert is_temporary(disk.synced[2])
    assert disk.synced[3] == str(store / "x/y")


def test_new_folder_whose_entry_was_not_synced_is_made_anew_by_the_retry(
    objects: LocalObjects, disk: Disk, tmp_path: Path
) -> None:
    disk.fail_once_for(lambda path: path == str(tmp_path / "store"))
    with pytest.raises(Unavailable, match="the disk gave up"):
        objects.put_if_absent("x/1", b"")
    after_failure = (tmp_path / "store/x").exists()

    objects.put_if_absent("x/1", b"")

    assert not after_failure
    assert disk.synced[0] == str(tmp_path / "store")


def test_folder_someone_else_made_is_synced_at_its_first_use(
    objects: LocalObjects, disk: Disk, tmp_path: Path
) -> None:
    (tmp_path / "store/new").mkdir()

    objects.put("new/1", b"")
    first, disk.synced = disk.synced, []
    objects.put("new/2", b"")

    assert first[0] == str(tmp_path / "store")
    assert len(disk.synced) == 2


def test_root_is_made_with_its_parents_durably(tmp_path: Path, disk: Disk) -> None:
    LocalObjects(tmp_path / "deep/er", fsync=disk.fsync)

    assert disk.synced == [str(tmp_path), str(tmp_path / "deep")]


def test_volatile_put_syncs_nothing(objects: LocalObjects, disk: Disk) -> None:
    objects.put("a/b", b"", durable=False)

    assert disk.synced == []


def test_deletion_is_durable(objects: LocalObjects, disk: Disk, tmp_path: Path) -> None:
    objects.put("a/1", b"")
    objects.put("a/2", b"")
    disk.synced.clear()

    objects.delete(["a/1", "a/2", "a/never"])

    assert disk.synced == [str(tmp_path / "store/a")]


def test_deletion_removes_the_empty_folders_it_leaves_but_none_at_the_top(
    objects: LocalObjects, tmp_path: Path
) -> None:
    objects.put("results/j1/t/1/files/x", b"")
    objects.put("results/j2/t/1/files/x", b"")

    objects.delete(["results/j1/t/1/files/x"])
    objects.delete(["results/j2/t/1/files/x"])

    assert list((tmp_path / "store/results").iterdir()) == []
    objects.put("results/j1/t/1/files/x", b"again")
    assert objects.get("results/j1/t/1/files/x") == b"again"


def test_folder_removed_behind_our_back_is_made_again(
    objects: LocalObjects, tmp_path: Path
) -> None:
    (tmp_path / "store/a/warm").unlink()
    (tmp_path / "store/a").rmdir()

    objects.put_if_absent("a/b", b"x")

    assert objects.get("a/b") == b"x"


def test_old_leftovers_are_removed_at_open_and_by_listing_and_young_ones_hidden(
    objects: LocalObjects, tmp_path: Path
) -> None:
    folder = tmp_path / "store/a"
    for name in (".tmp-old", ".tmp-young"):
        (folder / name).write_bytes(b"half")
    os.utime(folder / ".tmp-old", (0, 0))

    LocalObjects(tmp_path / "store")

    assert everything(tmp_path) == [".tmp-young", "warm"]
    os.utime(folder / ".tmp-young", (0, 0))
    assert [info.path for info in objects.list("")] == ["a/warm"]
    assert everything(tmp_path) == ["warm"]


def test_nested_listing_is_in_the_order_of_whole_keys(objects: LocalObjects) -> None:
    keys = ["a-b", "a.b", "a/warm", "a/x/1", "a/x-1", "a0", "b/c/d/e"]
    for key in keys:
        objects.put(key, b"", durable=False)

    for start in ["", *keys, "a/", "a/x/", "a/x", "zz"]:
        listed = [info.path for info in objects.list("", start)]
        assert listed == sorted(key for key in keys if key > start)


def test_object_cannot_be_a_folder_too(objects: LocalObjects) -> None:
    for write in (objects.put_if_absent, objects.put):
        with pytest.raises(InvalidInput, match="both an object and a folder"):
            write("a/warm/below", b"")
    with pytest.raises(InvalidInput, match="both an object and a folder"):
        objects.put("a", b"")


def test_full_disk_is_unavailable_and_leaves_nothing(tmp_path: Path, disk: Disk) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    LocalObjects(tmp_path / "store").put("a/warm", b"")
    objects = LocalObjects(tmp_path / "store", fsync=full)

    with pytest.raises(Unavailable, match="No space left"):
        objects.put_if_absent("a/b", b"x")

    assert everything(tmp_path) == ["warm"]


def test_file_system_without_hard_links_is_refused_by_name(
    objects: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", link)

    with pytest.raises(InvalidInput, match="without hard links"):
        objects.put_if_absent("a/b", b"")
    assert everything(tmp_path) == ["warm"]


def test_local_path_is_where_the_bytes_are(objects: LocalObjects) -> None:
    objects.put("a/b", b"bytes")

    path = objects.local_path("a/b")

    assert path is not None
    assert path.read_bytes() == b"bytes"


def test_folder_that_was_taken_away_is_not_made_again(
    objects: LocalObjects, tmp_path: Path
) -> None:
    """Unmounted: what is written in its place would be hidden when it is mounted again."""
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").mkdir()

    with pytest.raises(Unavailable, match="is gone; mount it again"):
        objects.put_if_absent("a/b", b"")

    (tmp_path / "store").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert objects.put_if_absent("a/b", b"")


def test_store_opened_to_read_changes_nothing(tmp_path: Path, objects: LocalObjects) -> None:
    leftover = tmp_path / "store/a/.tmp-1-dead"
    leftover.touch()
    os.utime(leftover, (0, 0))

    reading = LocalObjects(tmp_path / "store", read_only=True)

    assert [info.path for info in reading.list("")] == ["a/warm"]
    assert leftover.exists()
    for write in WRITES:
        with pytest.raises(InvalidInput, match="read only"):
            write(reading)
    with pytest.raises(InvalidInput, match="read only"):
        reading.delete(["a/warm"])
    with pytest.raises(InvalidInput, match="is no folder"):
        LocalObjects(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


def test_folder_without_the_right_to_write_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a refusal of the system: the tests may run as root, whom no mode keeps out."""
    store = LocalObjects(tmp_path / "store")
    real = os.open

    def refused(path: os.PathLike[str] | str, flags: int, *more: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refused)

    with pytest.raises(InvalidInput, match="can't be written: Read-only file system"):
        probe(store)


def test_a_file_opened_ahead_is_used_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path / "store")
    objects.get_ready("journal/")
    objects.get_ready("journal/")
    assert list(objects.list("")) == []

    created = [objects.put_if_absent(f"journal/{name}", name.encode()) for name in "aab"]

    assert created == [True, False, True]
    assert [objects.get(f"journal/{name}") for name in "ab"] == [b"a", b"b"]
    assert sorted(os.listdir(tmp_path / "store" / "journal")) == ["a", "b"]


def test_a_file_opened_ahead_does_not_take_a_name_that_is_taken(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path / "store")
    objects.put_if_absent("journal/a", b"first")
    objects.get_ready("journal/")

    assert not objects.put_if_absent("journal/a", b"second")

    assert objects.get("journal/a") == b"first"
    assert os.listdir(tmp_path / "store" / "journal") == ["a"]


def test_a_file_opened_ahead_in_a_folder_that_is_gone_is_not_used(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path / "store")
    objects.get_ready("journal/")
    shutil.rmtree(tmp_path / "store" / "journal")

    assert objects.put_if_absent("journal/a", b"a")

    assert objects.get("journal/a") == b"a"


def test_a_file_opened_ahead_whose_fsync_fails_is_not_used_again(
    tmp_path: Path,
) -> None:
    told: list[int] = []

    def fails_once(descriptor: int) -> None:
        if len(told) == 1 and not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            told.append(descriptor)
            raise OSError(errno.EIO, "the disk")
        os.fsync(descriptor)

    objects = LocalObjects(tmp_path / "store", fsync=fails_once)
    objects.get_ready("journal/")
    told.append(0)

    with pytest.raises(Unavailable):
        objects.put_if_absent("journal/a", b"a")

    assert objects.put_if_absent("journal/a", b"a")
    assert os.listdir(tmp_path / "store" / "journal") == ["a"]
