"""Where the files of jobs lie, and what may be called a name."""

import hashlib
import os

import pytest

from cluster.store.files import FileInfo, Files, log_path, plain_name
from cluster.store.objects import MemoryObjects
from jobs.errors import InvalidInput, NotFound

BAD_NAMES = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "/a",
    "a\\b",
    "..\\a",
    "a\0b",
    "a\nb",
    "a\x7f",
    "a\x85b",
    "x" * 201,
    "é" * 101,
    "\ud800",
]


@pytest.fixture
def files() -> Files:
    return Files(MemoryObjects())


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"^name: "):
        plain_name(name)


@pytest.mark.parametrize(
    "name", ["report.pdf", "a", "x" * 200, "é" * 100, "two words", "a..b", "~"]
)
def test_plain_name_is_returned_as_it_is(name: str) -> None:
    assert plain_name(name) == name


def test_every_part_of_a_path_that_comes_from_outside_is_checked(files: Files) -> None:
    with pytest.raises(InvalidInput):
        files.result_path("j", "t", 1, "../../journal/x")
    with pytest.raises(InvalidInput, match="tenant"):
        files.upload_path("../other", "x")
    with pytest.raises(InvalidInput, match="job_id"):
        log_path("..", "t", 1)


def test_each_attempt_has_paths_of_its_own(files: Files) -> None:
    assert files.result_path("j", "t", 2, "a.txt") == "results/j/t/2/files/a.txt"
    assert files.checkpoint_path("j", "t", 2, 3) == "results/j/t/2/checkpoints/000003"
    assert log_path("j", "t", 2) == "logs/j/t/2.log"
    assert files.upload_path("acme", "a.txt") == "uploads/acme/a.txt"


def test_writer_counts_and_hashes_what_it_wrote(files: Files) -> None:
    data = os.urandom(100_000)
    path = files.result_path("j", "t", 1, "a.bin")

    with files.open_write(path) as writer:
        writer.write(data[:7])
        writer.write(data[7:])

    assert writer.info == FileInfo("a.bin", len(data), hashlib.sha256(data).hexdigest())
    assert files.size(path) == len(data)
    assert b"".join(files.stream(path)) == data


def test_file_whose_writer_fails_is_not_there(files: Files) -> None:
    path = files.upload_path("acme", "a")
    writer = files.open_write(path)
    writer.write(b"half")

    writer.abort()

    with pytest.raises(NotFound):
        files.size(path)


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, None, b"0123456789"), (4, None, b"456789"), (2, 3, b"234"), (8, 9, b"89"), (20, 1, b"")],
)
def test_range_is_streamed_up_to_the_end(
    files: Files, start: int, length: int | None, expected: bytes
) -> None:
    path = files.upload_path("acme", "digits")
    with files.open_write(path) as writer:
        writer.write(b"0123456789")

    assert b"".join(files.stream(path, start, length)) == expected
    if length is not None:
        assert files.read_range(path, start, length) == expected
