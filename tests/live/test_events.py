"""A stream of events through the real edge, over the death of whoever sends it."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.support.eventually import gone
from tests.support.live import WAIT_S, LiveDrayman, kill, until

LAST = {"job.completed", "job.failed", "job.cancelled"}
CHUNKS = 400


class Follower:
    """Follows a path as a browser does: over every end it comes again with the last id it saw."""

    def __init__(self, drayman: LiveDrayman, path: str, after: str = "") -> None:
        self.events: list[dict[str, Any]] = []
        self.streams = 0
        self.is_over = False
        self._url, self._token = f"{drayman.url}{path}", drayman.said["token"]
        self._last = after
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert self.is_over, f"not over after {len(self.events)} events"

    def _follow(self) -> None:
        while not self.is_over:
            headers = {"Authorization": f"Bearer {self._token}"}
            if self._last:
                headers["Last-Event-ID"] = self._last
            try:
                with httpx.stream("GET", self._url, headers=headers, timeout=WAIT_S) as answer:
                    if answer.status_code == 204:
                        self.is_over = True
                    elif answer.status_code == 200:
                        self.streams += 1
                        self._take(answer.iter_lines())
            except httpx.HTTPError:
                time.sleep(0.05)  # a browser waits, too

    def _take(self, lines: Iterator[str]) -> None:
        number, kind, data = "", "", ""
        for line in lines:
            name, _, value = line.partition(": ")
            if name == "id":
                number = value
            elif name == "event":
                kind = value
            elif name == "data":
                data = value
            elif not line and data:
                if number:
                    self._last = number
                    self.events.append(json.loads(data) | {"type": kind, "id": int(number)})
                number, kind, data = "", "", ""


@pytest.mark.live
@pytest.mark.timeout(300)
def test_an_event_comes_through_the_edge_as_it_happens(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    begun, opened = tmp_path / "begun", tmp_path / "opened"
    job_id = client.submit("live.gate", {"begun": str(begun), "opened": str(opened)})["id"]
    following = Follower(drayman, f"/v1/jobs/{job_id}/events")

    until(lambda: following.events)
    until(begun.exists)
    # The job cannot end before what was sent so far has come: nothing between gathers it.
    until(lambda: following.events[-1].get("status") == "processing")
    opened.touch()
    following.join()

    assert following.events[-1]["type"] == "job.completed"
    assert following.events[0]["type"] == "job"
    ids = [event["id"] for event in following.events]
    assert ids == sorted(set(ids))


@pytest.mark.live
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_over_the_deaths_of_replicas_and_of_the_manager_every_event_comes_once_in_order(
    tmp_path: Path,
) -> None:
    live = LiveDrayman(tmp_path, options=["--replicas", "2", "--no-dashboard"])
    try:
        live.up()
        with live.client() as client:
            everything = Follower(live, "/v1/events")
            until(lambda: everything.events)
            large = client.submit("live.many", {"count": CHUNKS, "lasts_s": 0.02})["id"]
            path = f"/v1/jobs/{large}/events?tasks=1"
            following = [Follower(live, path) for _ in range(4)]
            small: list[str] = []
            for victim in ("ray::ServeReplica", "ray::QueueManager", "ray::ServeReplica"):
                small += [client.submit("live.now", {})["id"] for _ in range(20)]
                enough = min(len(one.events) for one in following) + CHUNKS // 4
                until(partial(have, following, enough))
                killed = live.pid(victim)
                kill(killed)
                until(partial(gone, killed))
            for one in following:
                one.join()
            for job_id in small:
                client.wait(job_id, WAIT_S)
            until(lambda: ends(everything.events).keys() >= {large, *small})
            truth = Follower(live, path, after=str(following[0].events[0]["id"]))
            truth.join()
    finally:
        live.close()

    chunks = Counter(e["task_id"] for e in truth.events if e["type"] == "task.succeeded")
    assert [chunks[str(n)] for n in range(CHUNKS)] == [1] * CHUNKS
    for one in following:
        begin, *rest = one.events
        assert begin["type"] == "job"
        assert rest == [event for event in truth.events if event["id"] > begin["id"]]
    assert sum(one.streams for one in [everything, *following]) > 1 + len(following)
    ids = [event["id"] for event in everything.events]
    assert ids == sorted(set(ids))
    assert "reset" not in [event["type"] for event in everything.events[1:]]
    assert ends(everything.events) == Counter([large, *small])


def have(following: list[Follower], enough: int) -> bool:
    return all(len(one.events) >= enough for one in following)


def ends(events: list[dict[str, Any]]) -> Counter[str]:
    """Return how often each job ended."""
    return Counter(event["job_id"] for event in events if event["type"] in LAST)
