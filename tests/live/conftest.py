"""One Drayman for all tests that can share one, and one for those that kill everything."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client
from tests.support.live import LIVE_JOBS, LiveDrayman
from tests.support.weed import BUCKET_ENV, started

#: Job types of the Drayman that tests share.
JOBS = f"{LIVE_JOBS},tests.support.flow_jobs"

#: The README promises that a job type in a user's own module is ten lines.
OWN_MODULE = '''\
from jobs import Context, job
from pydantic import BaseModel

class Greeting(BaseModel):
    name: str

@job("greet")
def greet(ctx: Context, params: Greeting) -> dict[str, str]:
    """Say hello."""
    return {"text": f"Hello {params.name}"}
'''


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Live tests go first, in two lines side by side: those that share one Drayman, the others."""
    live = [item for item in items if item.get_closest_marker("live")]
    for item in live:
        shares = "drayman" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("shared" if shares else "own"))
    others = [item for item in items if not item.get_closest_marker("live")]
    # Those that start Draymans of their own take longer, so they go first of all.
    live.sort(key=lambda item: "drayman" in getattr(item, "fixturenames", ()))
    items[:] = [*live, *others]


@pytest.fixture(scope="session", autouse=True)
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With `DRAYMAN_TEST_STORE=s3`, every Drayman keeps its store in a real bucket."""
    if os.environ.get("DRAYMAN_TEST_STORE") != "s3":
        yield
        return
    weed = started(tmp_path_factory.mktemp("weed"))
    if isinstance(weed, str):
        pytest.fail(weed)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**weed.environment, BUCKET_ENV: weed.url()}.items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            weed.kill()


@pytest.fixture(scope="session")
def drayman(bucket: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDrayman]:
    """Runs for the whole session, with Ray's dashboard. Tests kill parts of it, never all."""
    options = ["--compact-after", "5", "--http-allow", "127.0.0.0/8"]
    live = LiveDrayman(tmp_path_factory.mktemp("live"), jobs=JOBS, options=options)
    try:
        live.up()
        yield live
    finally:
        live.close()


@pytest.fixture
def client(drayman: LiveDrayman) -> Iterator[Client]:
    with drayman.client() as client:
        yield client


@pytest.fixture(scope="session")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a module `greetings` in it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "greetings.py").write_text(OWN_MODULE)
    return folder
