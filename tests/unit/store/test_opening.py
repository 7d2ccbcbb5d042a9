"""Which store a URL opens, and which names every store refuses."""

import pickle
from pathlib import Path

import pytest

from cluster.store.journal import Fenced
from cluster.store.objects import LocalObjects, MemoryObjects, RemoteObjects, open_store, probe
from jobs.errors import InvalidInput


def test_bare_path_and_file_url_open_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    bare = open_store(str(folder))
    bare.put("a", b"x")

    url = open_store(bare.url)

    assert isinstance(url, LocalObjects)
    assert bare.url == url.url == f"file://{tmp_path}/two%20words"
    assert url.get("a") == b"x"


def test_each_memory_store_is_a_new_one() -> None:
    first = open_store("memory://test")
    first.put("a", b"x")

    assert isinstance(first, MemoryObjects)
    assert list(open_store("memory://test").list("")) == []


def test_bucket_url_opens_without_asking_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    objects = open_store("s3://bucket/folder/")

    assert isinstance(objects, RemoteObjects)
    assert objects.url == "s3://bucket/folder"
    assert objects.local_path("a") is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "is empty"),
        ("ftp://host/x", "unknown scheme; use one of file://, s3://"),
        ("file://host/x", "absolute path"),
        ("file://", "absolute path"),
        ("s3://", "name a bucket"),
    ],
)
def test_url_that_names_no_store_is_refused(url: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        open_store(url)


def test_probe_passes_on_disk_and_leaves_nothing(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)

    probe(objects)

    assert list(objects.list("")) == []


def test_probe_refuses_a_store_that_creates_twice() -> None:
    class Overwriting(MemoryObjects):
        """An older S3 look-alike that does not know If-None-Match."""

        def put_if_absent(self, path: str, data: bytes) -> bool:
            self.put(path, data)
            return True

    with pytest.raises(InvalidInput, match="ignores conditional puts"):
        probe(Overwriting())


def test_fenced_survives_pickle() -> None:
    error = Fenced(7, 3)

    again = pickle.loads(pickle.dumps(error))

    assert (again.args, str(again)) == (error.args, str(error))
