"""The client: what it repeats, what it never repeats, and the keys it makes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from jobs.errors import InvalidInput
from service.client import ApiError, Client, Unreachable, key_for
from tests.cli.conftest import Server

Answer = Callable[[httpx.Request], httpx.Response]


def scripted(*answers: Answer, patience_s: float = 5.0) -> tuple[Client, list[httpx.Request]]:
    """Return a client whose requests meet these answers in turn, and the requests it made."""
    seen: list[httpx.Request] = []
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return left.pop(0)(request)

    client = Client(
        "http://127.0.0.1:9", "t", patience_s=patience_s, transport=httpx.MockTransport(handle)
    )
    return client, seen


def breaks(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset", request=request)


def refuses_connection(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


def says(status: int, retry_after: str = "0") -> Answer:
    problem = {"type": "/problems/x", "title": "x", "status": status}
    headers = {"Retry-After": retry_after, "Content-Type": "application/problem+json"}
    return lambda request: httpx.Response(status, json=problem, headers=headers)


def accepts(request: httpx.Request) -> httpx.Response:
    return httpx.Response(202, json={"id": "job-1", "status": "pending"})


@pytest.mark.parametrize("trouble", [breaks, refuses_connection, says(503), says(429)])
def test_submission_is_repeated_with_the_same_key(trouble: Answer) -> None:
    client, seen = scripted(trouble, accepts)

    job = client.submit("greet", {"name": "Ada"})

    assert job["id"] == "job-1"
    assert len({request.headers["drayman-request-id"] for request in seen}) == 1
    assert len(seen) == 2


def test_given_key_is_sent_as_it_is() -> None:
    client, seen = scripted(accepts)

    client.submit("greet", key='say "hi"')

    assert seen[0].headers["idempotency-key"] == r'"say \"hi\""'
    assert "drayman-request-id" not in seen[0].headers


def test_500_of_an_edge_is_repeated_and_one_of_ours_is_not() -> None:
    edge, _ = scripted(lambda request: httpx.Response(500), accepts)
    ours, seen = scripted(says(500), accepts)

    assert edge.submit("greet")["id"] == "job-1"
    with pytest.raises(ApiError):
        ours.submit("greet")
    assert len(seen) == 1


def test_action_that_may_have_happened_is_not_repeated() -> None:
    client, seen = scripted(breaks, accepts)

    with pytest.raises(Unreachable):
        client.retry("job-1")

    assert len(seen) == 1


def test_action_that_was_never_sent_is_repeated() -> None:
    client, seen = scripted(refuses_connection, accepts)

    client.retry("job-1")

    assert len(seen) == 2


def test_refusal_is_an_error_with_its_problem() -> None:
    client, _ = scripted(says(404))

    with pytest.raises(ApiError) as refused:
        client.status("job-1")

    assert (refused.value.status, refused.value.kind) == (404, "x")


def test_patience_ends() -> None:
    client, seen = scripted(*[refuses_connection] * 1000, patience_s=0.05)

    with pytest.raises(Unreachable):
        client.status("job-1")

    assert len(seen) > 1


def test_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    sha256 = hashlib.sha256(data).hexdigest()

    class Torn(httpx.SyncByteStream):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield data[:1000]
            raise httpx.ReadError("connection reset")

    def torn(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Torn())

    def rest(request: httpx.Request) -> httpx.Response:
        assert request.headers["range"] == "bytes=1000-"
        assert request.headers["if-range"] == f'"{sha256}"'
        return httpx.Response(206, content=data[1000:])

    client, _ = scripted(torn, rest)

    path = client.download({"name": "../a.bin", "href": "/f", "sha256": sha256}, tmp_path)

    assert path == tmp_path / "a.bin"
    assert path.read_bytes() == data


def test_damaged_download_leaves_nothing(tmp_path: Path) -> None:
    client, _ = scripted(lambda request: httpx.Response(200, content=b"other"))

    with pytest.raises(Unreachable):
        client.download({"name": "a.bin", "href": "/f", "sha256": "0" * 64}, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_key_is_the_same_within_a_window_only() -> None:
    first = key_for("ada", "report", 60, now=120.0)

    assert key_for("ada", "report", 60, now=179.9) == first
    assert key_for("ada", "report", 60, now=180.0) != first
    assert key_for("bob", "report", 60, now=120.0) != first
    assert key_for("ada", "export", 60, now=120.0) != first


def test_many_jobs_and_all_pages(server: Server) -> None:
    with Client(server.url, server.token()) as client:
        jobs = [{"type": "greet", "params": {"name": str(n)}} for n in range(120)]

        results = list(client.submit_many([*jobs, {"type": "nope"}]))

        assert [result["line"] for result in results] == list(range(1, 122))
        assert results[-1]["problem"]["status"] == 422
        assert len(list(client.jobs())) == 120
        assert len(list(client.jobs(limit=7))) == 7


def test_many_jobs_travel_in_batches_that_fit(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client.jobs.BATCH_BYTES", 500)
    with Client(server.url, server.token()) as client:
        jobs = [{"type": "greet", "params": {"name": "x" * 150}} for _ in range(20)]
        jobs[7] = {"type": "greet", "params": {"name": "x" * 900}}

        results = list(client.submit_many([*jobs, {"type": "nope"}]))

        assert [result["line"] for result in results] == list(range(1, 22))
        assert [at for at, result in enumerate(results) if "id" not in result] == [20]


def test_what_cannot_be_sent_is_refused_by_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with Client(server.url, server.token()) as client:
        with pytest.raises(InvalidInput, match="body: NaN and infinity"):
            client.submit("greet", {"name": float("nan")})
        with pytest.raises(InvalidInput, match=r"body: .*set"):
            list(client.submit_many([{"type": "greet", "params": {1, 2}}]))
        with pytest.raises(InvalidInput, match="key: it travels in a header"):
            client.submit("greet", {"name": "Ada"}, key="Zoë")
        assert client.upload(str(tmp_path / "a.txt"))["bytes"] == 1


def test_wait_returns_the_finished_job_or_times_out(server: Server) -> None:
    with Client(server.url, server.token()) as client:
        job = client.submit("greet", {"name": "Ada"})
        with pytest.raises(TimeoutError):
            client.wait(job["id"], timeout_s=0)
        server.soon(server.worker.succeed("hello"))

        done = client.wait(job["id"], timeout_s=20)

        assert (done["status"], client.result(job["id"])) == ("completed", "hello")
