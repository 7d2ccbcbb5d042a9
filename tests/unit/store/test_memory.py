"""The store in memory loses in a crash what a disk would lose, and no more."""

import pytest

from cluster.store.objects import MemoryObjects
from jobs.errors import NotFound


def test_crash_drops_what_was_not_synced() -> None:
    objects = MemoryObjects()
    objects.put_if_absent("created", b"1")
    objects.put("durable", b"1")
    objects.put("volatile", b"1", durable=False)
    objects.put("replaced", b"old")
    objects.put("replaced", b"new", durable=False)

    objects.crash()

    assert [info.path for info in objects.list("")] == ["created", "durable", "replaced"]
    assert objects.get("replaced") == b"old"
    with pytest.raises(NotFound):
        objects.get("volatile")


def test_crash_does_not_bring_back_the_deleted() -> None:
    objects = MemoryObjects()
    objects.put("a", b"1")
    objects.delete(["a"])

    objects.crash()

    assert list(objects.list("")) == []


def test_name_reported_as_taken_survives_a_crash() -> None:
    objects = MemoryObjects()
    objects.put("a", b"volatile", durable=False)
    assert not objects.put_if_absent("a", b"other")

    objects.crash()

    assert objects.get("a") == b"volatile"


def test_stream_cut_short_by_a_crash_never_was() -> None:
    objects = MemoryObjects()
    writer = objects.open_write("a")
    writer.write(b"half")

    objects.crash()

    assert list(objects.list("")) == []
