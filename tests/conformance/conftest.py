"""Three stores for one suite: in memory, on disk, and S3 as SeaweedFS speaks it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.store.objects import LocalObjects, MemoryObjects, Objects, RemoteObjects
from tests.support.weed import Weed, started


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A SeaweedFS server on loopback; skipped where it can't start, except in CI."""
    weed = started(tmp_path_factory.mktemp("weed"))
    if isinstance(weed, str):
        pytest.skip(weed)
    try:
        yield weed
    finally:
        # Nothing in there is worth the ten seconds it takes to stop in good order.
        weed.kill()


@pytest.fixture
def s3_url(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of its own in the bucket, reachable by the usual variables."""
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    return weed.url()


@pytest.fixture(params=["memory", "local", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty store of each kind."""
    match request.param:
        case "memory":
            return MemoryObjects()
        case "local":
            return LocalObjects(tmp_path / "store")
        case _:
            return RemoteObjects(request.getfixturevalue("s3_url"))
