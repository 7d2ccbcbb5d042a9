"""What every store of objects does, whichever one it is."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest

from cluster.store.objects import Objects, probe
from jobs.errors import InvalidInput, NotFound

BAD_PATHS = [
    "",
    "/absolute",
    "a//b",
    "a/",
    "../escape",
    "a/../b",
    "a/./b",
    "line\nbreak",
    "nul\0",
    "a/.tmp-1",
    "x" * 256,
    "/".join(["x" * 200] * 6),
    "\ud800",
]


def paths(objects: Objects, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.path for info in objects.list(prefix, start_after)]


def test_what_was_created_is_read_back(objects: Objects) -> None:
    created = objects.put_if_absent("a/b.txt", b"bytes")

    assert created
    assert objects.get("a/b.txt") == b"bytes"
    assert objects.size("a/b.txt") == 5


def test_second_create_is_refused_and_changes_nothing(objects: Objects) -> None:
    objects.put_if_absent("a", b"first")

    created = objects.put_if_absent("a", b"second")

    assert not created
    assert objects.get("a") == b"first"


@pytest.mark.parametrize("round_number", range(5))
def test_of_eight_who_race_to_create_exactly_one_wins(objects: Objects, round_number: int) -> None:
    barrier = Barrier(8)

    def race(racer: int) -> bool:
        barrier.wait()
        return objects.put_if_absent("race/prize", b"%d" % racer)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))

    assert won.count(True) == 1
    assert objects.get("race/prize") == b"%d" % won.index(True)


def test_put_replaces_and_a_create_after_it_is_refused(objects: Objects) -> None:
    objects.put("a", b"one")
    objects.put("a", b"two", durable=False)

    assert objects.get("a") == b"two"
    assert not objects.put_if_absent("a", b"three")


def test_empty_object_is_an_object(objects: Objects) -> None:
    assert objects.put_if_absent("empty", b"")
    assert objects.get("empty") == b""
    assert objects.size("empty") == 0
    assert paths(objects) == ["empty"]


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 4, b"0123"), (3, 3, b"345"), (8, 10, b"89"), (10, 1, b""), (99, 5, b""), (2, 0, b"")],
)
def test_range_ends_where_the_object_ends(
    objects: Objects, start: int, length: int, expected: bytes
) -> None:
    objects.put("a", b"0123456789")

    assert objects.get_range("a", start, length) == expected


def test_negative_range_is_refused(objects: Objects) -> None:
    with pytest.raises(InvalidInput, match="range"):
        objects.get_range("a", -1, 5)


def test_missing_object_is_not_found_by_every_reader(objects: Objects) -> None:
    for read in (objects.get, objects.size, objects.open_read):
        with pytest.raises(NotFound, match="no object 'none/such'"):
            read("none/such")
    with pytest.raises(NotFound):
        objects.get_range("none/such", 0, 1)


def test_folder_is_no_object(objects: Objects) -> None:
    objects.put("folder/a", b"")

    for read in (objects.get, objects.size, objects.open_read):
        with pytest.raises(NotFound):
            read("folder")


def test_listing_is_in_order_and_tells_size_and_time(objects: Objects) -> None:
    for number in (3, 1, 10, 2):
        objects.put(f"flat/{number:03}", b"x" * number)

    infos = list(objects.list("flat/"))

    assert [info.path for info in infos] == ["flat/001", "flat/002", "flat/003", "flat/010"]
    assert [info.bytes for info in infos] == [1, 2, 3, 10]
    assert all(abs(datetime.now(UTC) - info.modified_at) < timedelta(minutes=1) for info in infos)


def test_listing_resumes_after_a_name_that_may_be_gone(objects: Objects) -> None:
    for name in ("a", "b", "d"):
        objects.put(f"flat/{name}", b"")

    assert paths(objects, "flat/", "flat/b") == ["flat/d"]
    assert paths(objects, "flat/", "flat/c") == ["flat/d"]
    assert paths(objects, "flat/", "flat/d") == []


def test_listing_of_a_folder_leaves_its_namesakes_out(objects: Objects) -> None:
    for path in ("job/1", "job/2/x", "jobs/1", "job-1"):
        objects.put(path, b"")

    assert sorted(paths(objects, "job/")) == ["job/1", "job/2/x"]
    assert paths(objects, "absent/") == []


def test_prefix_that_is_no_folder_is_refused(objects: Objects) -> None:
    with pytest.raises(InvalidInput, match="end it with '/'"):
        list(objects.list("job"))


def test_listing_of_many_is_whole(objects: Objects) -> None:
    names = [f"many/{number:05}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: objects.put(name, b"", durable=False), names))

    assert paths(objects, "many/") == names


def test_deleted_is_gone_and_deleting_twice_is_no_error(objects: Objects) -> None:
    for path in ("d/a", "d/b", "d/e/c"):
        objects.put(path, b"")

    objects.delete(["d/a", "d/e/c", "d/never"])
    objects.delete(["d/a"])

    assert paths(objects, "d/") == ["d/b"]
    assert objects.put_if_absent("d/e/c", b"again")


@pytest.mark.parametrize("bad", BAD_PATHS)
def test_bad_path_is_refused_by_everything_that_takes_one(objects: Objects, bad: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: objects.put_if_absent(bad, b""),
        lambda: objects.put(bad, b""),
        lambda: objects.get(bad),
        lambda: objects.get_range(bad, 0, 1),
        lambda: objects.size(bad),
        lambda: objects.delete([bad]),
        lambda: objects.open_read(bad),
        lambda: objects.open_write(bad),
        lambda: objects.local_path(bad),
    ]

    for call in calls:
        with pytest.raises(InvalidInput):
            call()


@pytest.mark.parametrize(
    "path", ["é/ü.txt", "with space", "50%25", "q?a#b&c=d", "~tilde+plus", "日本"]
)
def test_unusual_names_come_back_as_they_were(objects: Objects, path: str) -> None:
    objects.put(f"odd/{path}", b"x")

    assert objects.get(f"odd/{path}") == b"x"
    assert paths(objects, "odd/") == [f"odd/{path}"]


def test_stream_appears_only_when_closed(objects: Objects) -> None:
    writer = objects.open_write("s/big")
    writer.write(b"one ")
    writer.write(b"two")
    before = paths(objects)

    writer.close()
    writer.close()

    assert before == []
    assert objects.get("s/big") == b"one two"


def write_and_fail(objects: Objects, path: str) -> None:
    with objects.open_write(path) as writer:
        writer.write(b"half")
        raise RuntimeError("the handler failed")


def test_stream_that_fails_leaves_nothing(objects: Objects) -> None:
    objects.put("s/old", b"old")

    for path in ("s/new", "s/old"):
        with pytest.raises(RuntimeError, match="the handler failed"):
            write_and_fail(objects, path)

    assert paths(objects) == ["s/old"]
    assert objects.get("s/old") == b"old"


def test_aborted_stream_cannot_be_closed_into_being(objects: Objects) -> None:
    writer = objects.open_write("s/new")
    writer.write(b"half")

    writer.abort()
    writer.close()

    assert paths(objects) == []


def test_large_stream_goes_through_and_can_be_read_in_pieces(objects: Objects) -> None:
    chunk = bytes(range(256)) * 4096
    with objects.open_write("s/large") as writer:
        for _ in range(12):
            writer.write(chunk)

    with objects.open_read("s/large") as file:
        head = file.read(10)
        file.seek(-5, 2)
        tail = file.read()
        file.seek(1024 * 1024 - 2)
        middle = file.read(4)

    assert objects.size("s/large") == 12 * len(chunk)
    assert (head, tail, middle) == (chunk[:10], chunk[-5:], chunk[-2:] + chunk[:2])


def test_store_that_honours_conditional_puts_passes_the_probe_and_stays_clean(
    objects: Objects,
) -> None:
    probe(objects)

    assert paths(objects) == []
