"""The client before a Drayman that is full: it waits as told, and no line is sent twice in vain."""

import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.client import ApiError, Client
from tests.cli.conftest import Drayman, Server

JOB = {"type": "greet", "params": {"name": "Ada"}}


class Clock:
    """Stands where the client has its time: sleeping passes it, and lets something happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("core", "drive", "jobs"):
        monkeypatch.setattr(f"service.client.{module}.time", clock)
    return clock


def limit(server: Server, depth_max: int) -> None:
    """Let the tenant `acme` have so many unfinished jobs."""
    with Client(server.url, server.token("ops", "admin")) as admin:
        config, _ = admin.config()
        admin.configure(config | {"tenants": {"acme": {"depth_max": depth_max}}})


def finish(server: Server, count: int) -> None:
    for _ in range(count):
        server.do(server.worker.succeed())


def sent(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """Return the requests that it makes from now on, as they come."""
    seen: list[httpx.Request] = []
    client._http.event_hooks["request"].append(seen.append)
    return seen


def test_it_waits_as_long_as_it_is_told_and_a_little_more(
    server: Server, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(server, 1)
    with Client(server.url, server.token(), patience_s=120) as client:
        client.submit("greet", JOB["params"])
        clock.meanwhile = lambda: finish(server, 1)
        requests = sent(client, monkeypatch)

        job = client.submit("greet", JOB["params"])

    assert job["status"] == "pending"
    assert len(requests) == 2
    [slept_s] = clock.slept
    assert 30 <= slept_s <= 45  # nothing has ended yet: half a minute


def test_those_who_are_told_the_same_do_not_come_back_together(clock: Clock) -> None:
    def full(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "10"})

    random.seed(7)
    for _ in range(20):
        transport = httpx.MockTransport(full)
        with (
            Client("http://127.0.0.1:9", "t", patience_s=20, transport=transport) as client,
            pytest.raises(Exception, match="503"),
        ):
            client.submit("greet")
    first = clock.slept[::2]

    assert len({round(slept_s, 2) for slept_s in first}) > 15
    assert all(10 <= slept_s <= 15 for slept_s in first)


def test_it_gives_up_when_its_own_patience_ends(server: Server, clock: Clock) -> None:
    limit(server, 1)
    with Client(server.url, server.token(), patience_s=5) as client:
        client.submit("greet", JOB["params"])

        with pytest.raises(ApiError) as refused:
            client.submit("greet", JOB["params"])

    assert (refused.value.status, refused.value.kind) == (429, "tenant-overloaded")
    assert sum(clock.slept) == pytest.approx(5)


def test_only_refused_lines_of_a_batch_are_sent_again(
    server: Server, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(server, 10)
    jobs: list[dict[str, Any]] = [JOB | {"labels": {"n": str(n)}} for n in range(24)]
    wrong = {"type": "nope"}
    with Client(server.url, server.token(), patience_s=100) as client:
        clock.meanwhile = lambda: finish(server, 10 if len(clock.slept) == 1 else 7)
        requests = sent(client, monkeypatch)

        results = list(client.submit_many([*jobs[:3], wrong, *jobs[3:]]))

        assert [result["line"] for result in results] == list(range(1, 26))
        assert [r["line"] for r in results if "id" not in r] == [4]
        shown = {job["labels"]["n"]: job["id"] for job in client.jobs()}
    ids = [result["id"] for result in results if "id" in result]
    assert [shown[job["labels"]["n"]] for job in jobs] == ids
    batches = [request.content.split(b"\n") for request in requests if request.method == "POST"]
    assert [sum(map(bool, lines)) for lines in batches] == [25, 14, 4]
    assert len({r.headers["drayman-request-id"] for r in requests if r.method == "POST"}) == 1


def test_patience_begins_anew_with_each_line_that_is_taken(server: Server, clock: Clock) -> None:
    limit(server, 1)
    with Client(server.url, server.token(), patience_s=70) as client:
        clock.meanwhile = lambda: finish(server, 1)

        results = list(client.submit_many([JOB] * 4))

    assert all("id" in result for result in results)
    assert sum(clock.slept) > 70


def test_lines_that_were_never_taken_are_told_with_their_reason(
    server: Server, clock: Clock
) -> None:
    limit(server, 2)
    with Client(server.url, server.token(), patience_s=50) as client:
        results = list(client.submit_many([JOB] * 4))

    assert ["id" in result for result in results] == [True, True, False, False]
    assert {result["problem"]["status"] for result in results[2:]} == {429}
    assert sum(clock.slept) == pytest.approx(50)


def test_the_command_line_waits_for_room(server: Server, connected: Drayman, clock: Clock) -> None:
    limit(server, 1)
    with Client(server.url, server.token()) as client:
        client.submit("greet", JOB["params"])
    clock.meanwhile = lambda: finish(server, 1)

    ran = connected("submit", "greet", "--param", "name=Ada")

    assert ran.code == 0, ran.err
    assert clock.slept
