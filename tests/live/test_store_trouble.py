"""A Drayman on a real bucket (SeaweedFS), whose server is killed under load and comes back."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import gone
from tests.support.live import WAIT_S, LiveDrayman, kill, until
from tests.support.weed import Weed, started

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]

SUBMITTERS, ENOUGH = 4, 20


@pytest.fixture
def weed(tmp_path: Path) -> Iterator[Weed]:
    """A server of this test's own, to kill."""
    folder = tmp_path / "weed"
    folder.mkdir()
    weed = started(folder)
    if isinstance(weed, str):
        pytest.skip(weed)
    try:
        yield weed
    finally:
        weed.kill()


@pytest.fixture
def own(weed: Weed, tmp_path: Path) -> Iterator[LiveDrayman]:
    live = LiveDrayman(tmp_path, options=["--no-dashboard"], bucket=weed)
    try:
        live.up()
        yield live
    finally:
        live.close()


class Load:
    """Jobs submitted one after the other by several clients, until told to stop."""

    def __init__(self, drayman: LiveDrayman, effects: Path) -> None:
        self.acknowledged: list[str] = []
        self._drayman, self._effects = drayman, effects
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(SUBMITTERS)
        self._submitting = [self._pool.submit(self._submit) for _ in range(SUBMITTERS)]

    def _submit(self) -> None:
        with self._drayman.client() as client:
            while not self._over.is_set():
                job = client.submit("live.effect", {"path": str(self._effects)})
                self.acknowledged.append(job["id"])

    def more(self, count: int = ENOUGH) -> None:
        """Wait until so many more are acknowledged."""
        enough = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= enough)

    def end(self) -> None:
        self._over.set()
        for one in self._submitting:
            one.result(WAIT_S)
        self._pool.shutdown()


def answers(drayman: LiveDrayman) -> int:
    """Submit a job that never runs; return the status, without patience."""
    answer = httpx.post(
        f"{drayman.url}/v1/jobs",
        headers={"Authorization": f"Bearer {drayman.said['token']}"},
        json={"type": "live.effect", "params": {"path": "never"}, "delay_s": 3600},
        timeout=30.0,
        trust_env=False,
    )
    assert answer.status_code != 503 or "retry-after" in answer.headers
    return answer.status_code


@pytest.mark.long
def test_nothing_is_lost_on_a_bucket_whose_server_and_whose_manager_are_killed_under_load(
    weed: Weed, own: LiveDrayman, tmp_path: Path
) -> None:
    effects = tmp_path / "effects"
    load = Load(own, effects)
    load.more()

    # The store is gone: nothing durable can be written, and nobody is told otherwise.
    weed.kill()
    until(lambda: answers(own) == 503)
    before = len(load.acknowledged)
    assert answers(own) == 503
    assert len(load.acknowledged) == before
    weed.start()
    load.more()

    # The manager is replaced while the store is gone: the new one waits for it.
    weed.kill()
    manager = own.pid("ray::QueueManager")
    kill(manager)
    until(lambda: gone(manager))
    until(lambda: answers(own) == 503)
    weed.start()
    load.more()
    load.end()

    with own.client() as client:
        ended = [client.wait(job_id, WAIT_S) for job_id in load.acknowledged]
    assert {job["status"] for job in ended} == {"completed"}
    ran = Counter(effects.read_text().split())
    # A submission whose first reply was lost may have been acknowledged as an alias of itself.
    assert {job["result"] for job in ended} <= set(ran)
    # Handlers that ran while the manager died are re-adopted, never run again.
    assert set(ran.values()) == {1}

    doctor = own.run("doctor", "--store", own.store_url)
    assert doctor.returncode == 0, doctor.stdout
