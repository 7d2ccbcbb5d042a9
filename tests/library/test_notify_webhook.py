"""`notify.webhook` against real receivers; the standard's own library verifies what they get."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from cluster.endpoints import Endpoints
from cluster.protocol import Outcome
from cluster.store.objects import open_store
from cluster.worker.worker import Worker, WorkerTimes
from jobs import Discard, Retry
from jobs.endpoint import Endpoint
from jobs.library.http.addresses import HTTP_ALLOW_ENV
from jobs.library.notify import post as posting
from jobs.library.notify.event import PUBLIC_URL_ENV
from jobs.library.notify_webhook import WAITS_S, notify_webhook
from jobs.retry import RetryPolicy
from jobs.testing import Finished, run
from tests.support.receiver import Receiver, Say, receiving
from tests.support.scripted_manager import ScriptedManager

OLD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
EVENT = {
    "type": "job.completed",
    "timestamp": "2026-11-26T18:00:00.000Z",
    "data": {"id": "job-7", "type": "report.annual", "labels": {"team": "<b>größe</b>"}},
}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv(HTTP_ALLOW_ENV, "127.0.0.1/32")
    with receiving() as receiver:
        yield receiver


def tell(
    url: str | None = None,
    *,
    endpoint: str | None = None,
    event: dict[str, Any] = EVENT,
    endpoints: dict[str, Endpoint] | None = None,
    **how: Any,
) -> Finished:
    """Deliver an event; without endpoints of its own to the tenant's `default` one."""
    known = endpoints or {"default": Endpoint("", (NEW,))}
    params: dict[str, Any] = {"event": event}
    params |= {"url": url} if url is not None else {"endpoint": endpoint}
    return run(notify_webhook, params, endpoints=known, **how)


def ended(finished: Finished, kind: type[BaseException]) -> str:
    assert isinstance(finished.error, kind), repr(finished.error)
    return str(finished.error)


def test_the_signature_verifies_with_the_standards_own_library(receiver: Receiver) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)

    finished = tell(f"{receiver.url}/hooks", job_id="0190-x")

    assert finished.result["status"] == 204
    [heard] = receiver.heard
    assert heard.path == "/hooks"
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["webhook-id"] == "msg_0190-x"
    assert int(heard.headers["webhook-timestamp"]) >= int(before.timestamp())
    assert Webhook(NEW).verify(heard.body, heard.headers) == EVENT
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(heard.body.replace(b"job-7", b"job-8"), heard.headers)


def test_every_attempt_has_the_same_id_and_body(receiver: Receiver) -> None:
    receiver.answers = [Say(500), Say(204)]

    ended(tell(receiver.url), Retry)
    tell(receiver.url, attempt=2)

    first, second = receiver.heard
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


def test_while_a_secret_is_replaced_the_old_one_verifies_too(receiver: Receiver) -> None:
    endpoints = {"billing": Endpoint(receiver.url, (NEW, OLD))}

    tell(endpoint="billing", endpoints=endpoints)

    [heard] = receiver.heard
    assert len(heard.headers["webhook-signature"].split(" ")) == 2
    for secret in (NEW, OLD):
        assert Webhook(secret).verify(heard.body, heard.headers) == EVENT


def test_a_body_leads_to_the_job_where_people_can_reach_this_drayman(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PUBLIC_URL_ENV, "https://jobs.example.com/")

    tell(receiver.url)

    data = json.loads(receiver.heard[0].body)["data"]
    assert data["url"] == "https://jobs.example.com/jobs/job-7"


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_success(receiver: Receiver, status: int) -> None:
    receiver.answers = [Say(status, {"Content-Length": "0"} if status != 204 else {})]

    assert tell(receiver.url).result["status"] == status


@pytest.mark.parametrize("status", [400, 401, 404, 409, 500, 503])
def test_everything_else_is_tried_again_and_told(receiver: Receiver, status: int) -> None:
    receiver.answers = [Say(status, body=b"not\nnow <script>")]

    told = ended(tell(receiver.url), Retry)

    assert f"HTTP {status}: not now <script>" in told


def test_an_hour_of_500_is_outlived_by_the_standards_schedule() -> None:
    waits_s = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert list(WAITS_S) == waits_s
    assert (notify_webhook.max_attempts, notify_webhook.retry.waits_s) == (10, WAITS_S)


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 5.0), (2, 300.0), (3, 300.0), (50, 300.0)])
def test_waits_that_are_named_are_kept_but_for_a_tenth(failures: int, wait_s: float) -> None:
    policy = RetryPolicy(waits_s=(5.0, 300.0))

    assert policy.wait_s(failures, 0.0) == pytest.approx(0.9 * wait_s)
    assert policy.wait_s(failures, 0.5) == pytest.approx(wait_s)
    assert policy.wait_s(failures, 0.999) < 1.1 * wait_s
    assert policy.wait_s(failures, 0.5, at_least_s=7.0) == 7.0


def test_a_wait_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"waits_s has -1"):
        RetryPolicy(waits_s=(5.0, -1.0))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_is_honoured(receiver: Receiver, status: int) -> None:
    receiver.answers = [Say(status, {"Retry-After": "17"})]

    finished = tell(receiver.url)

    ended(finished, Retry)
    assert isinstance(finished.error, Retry)
    assert finished.error.after_s == 17.0


@pytest.mark.parametrize(("told", "after_s"), [("0", 1.0), ("999999999", 86_400.0)])
def test_retry_after_has_bounds(receiver: Receiver, told: str, after_s: float) -> None:
    receiver.answers = [Say(503, {"Retry-After": told})]

    finished = tell(receiver.url)

    assert isinstance(finished.error, Retry)
    assert finished.error.after_s == after_s


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.answers = [Say(307, {"Location": f"{receiver.url}/elsewhere"})]

    told = ended(tell(receiver.url), Retry)

    assert "redirects are not followed" in told
    assert len(receiver.heard) == 1


def test_410_disables_the_endpoint_for_good(receiver: Receiver) -> None:
    receiver.answers = [Say(410)]
    endpoints = {"billing": Endpoint(receiver.url, (NEW,))}

    finished = tell(endpoint="billing", endpoints=endpoints)

    assert "HTTP 410" in ended(finished, Discard)
    assert finished.disabled == {"billing": "it answered 410: it wants no more"}


def test_410_from_a_url_of_one_job_disables_nothing(receiver: Receiver) -> None:
    receiver.answers = [Say(410)]

    finished = tell(receiver.url)

    ended(finished, Discard)
    assert finished.disabled == {}


def test_a_disabled_endpoint_is_not_called_and_says_how_to_mend_it(receiver: Receiver) -> None:
    endpoints = {"billing": Endpoint(receiver.url, (NEW,), "it answered 410")}

    told = ended(tell(endpoint="billing", endpoints=endpoints), Discard)

    assert "PUT /v1/endpoints/billing" in told
    assert receiver.heard == []


def test_an_endpoint_that_is_not_there_is_named(receiver: Receiver) -> None:
    told = ended(tell(endpoint="nobody"), Discard)

    assert "no endpoint 'nobody'" in told


# --- receivers that misbehave ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hang", "drop"])
def test_a_receiver_that_says_nothing_is_tried_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(posting, "TIMEOUT_S", 0.3)
    receiver.answers = [how]

    told = ended(tell(receiver.url), Retry)

    assert "no answer within" in told if how == "hang" else "was lost" in told


@pytest.mark.parametrize("status", [200, 500])
def test_of_100_mb_of_answer_next_to_nothing_is_read(receiver: Receiver, status: int) -> None:
    receiver.answers = [Say(status, body=b"x" * 65_536, endless=True)]

    finished = tell(receiver.url)

    assert receiver.written < 20 << 20
    if status == 500:
        assert len(ended(finished, Retry)) < 500


def test_a_success_whose_body_never_comes_is_a_success(receiver: Receiver) -> None:
    receiver.answers = [Say(200, hangs=True)]

    assert tell(receiver.url).result["status"] == 200


def test_nobody_is_there(receiver: Receiver) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        told = ended(tell(f"http://127.0.0.1:{taken.getsockname()[1]}"), Retry)

    assert "cannot be reached" in told


# --- where it may not go --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/",
        "http://localhost:9/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[::1]:9/",
        "http://[::ffff:127.0.0.1]:9/",
    ],
)
def test_private_addresses_are_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.delenv(HTTP_ALLOW_ENV, raising=False)

    told = ended(tell(url), Discard)

    assert HTTP_ALLOW_ENV in told


def test_an_endpoint_that_leads_inside_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HTTP_ALLOW_ENV, raising=False)
    endpoints = {"billing": Endpoint("http://10.0.0.1/", (NEW,))}

    assert HTTP_ALLOW_ENV in ended(tell(endpoint="billing", endpoints=endpoints), Discard)


def test_a_name_that_is_public_when_asked_first_and_private_then_gains_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: it is resolved once, and the address that was checked is connected to."""
    monkeypatch.setenv(HTTP_ALLOW_ENV, "127.0.0.2/32")
    monkeypatch.setattr(posting, "TIMEOUT_S", 5.0)
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **how: Any) -> Any:
        if host != "rebinding.test":
            return real(host, port, *args, **how)
        asked.append(host)
        address = "127.0.0.2" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port = receiver.url.rpartition(":")[2]

    ended(tell(f"http://rebinding.test:{port}/"), Retry)
    assert receiver.heard == []
    assert HTTP_ALLOW_ENV in ended(tell(f"http://rebinding.test:{port}/"), Discard)
    assert receiver.heard == []


# --- params ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({}, "give a url"),
        ({"url": "https://a.example", "endpoint": "a"}, "give a url"),
        ({"endpoint": "default"}, "leads nowhere"),
        ({"endpoint": "../other"}, "pattern"),
        ({"url": "https://user:pw@a.example"}, "leave the user"),
        ({"url": "ftp://a.example"}, "pattern"),
    ],
)
def test_a_target_that_is_none_is_refused(params: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        run(notify_webhook, params | {"event": EVENT})


def test_an_event_that_is_not_thin_is_refused(receiver: Receiver) -> None:
    event = EVENT | {"data": {"text": "é" * 10_000}}

    assert "20,000 bytes" in ended(tell(receiver.url, event=event), Discard)


def test_no_secret_is_in_what_a_delivery_leaves(receiver: Receiver) -> None:
    receiver.answers = [Say(500, body=NEW.encode())]

    finished = tell(receiver.url)

    assert NEW not in finished.logs


# --- on a worker ----------------------------------------------------------------------------------


async def test_a_worker_signs_with_the_tenants_secret_out_of_the_store(
    receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answers = [Say(204), Say(204), Say(410)]
    endpoints = Endpoints(open_store(str(tmp_path / "store")))
    _, secret = await asyncio.to_thread(endpoints.put, "acme", "billing", receiver.url, 0.0)
    manager = ScriptedManager()
    worker = Worker(
        name="w1",
        pool="io",
        queues=["io"],
        concurrency=2,
        mode="async",
        store_url=str(tmp_path / "store"),
        job_modules=[],
        manager=manager,
        times=WorkerTimes(heartbeat_s=0.5),
    )

    async def outcome(**target: str) -> Outcome:
        token = manager.submit("notify.webhook", {**target, "event": EVENT}, tenant="acme")
        return await manager.outcome(token, within_s=20)

    running = asyncio.create_task(worker.run())
    try:
        named = await outcome(endpoint="billing")
        by_url = await outcome(url=receiver.url)
        gone = await outcome(endpoint="billing")
        later = await outcome(endpoint="billing")
        unknown = await outcome(endpoint="nobody")
    finally:
        worker.stop()
        await running

    assert [one.kind for one in (named, by_url)] == ["ok", "ok"]
    first, second, _ = receiver.heard
    assert Webhook(secret).verify(first.body, first.headers) == EVENT
    default = endpoints.delivery("acme", "default", time.time())
    assert Webhook(default.secrets[0]).verify(second.body, second.headers) == EVENT
    assert [one.kind for one in (gone, later, unknown)] == ["discarded"] * 3
    assert endpoints.get("acme", "billing", time.time()).disabled.startswith("it answered 410")
    assert "is disabled" in later.error
    assert "no endpoint 'nobody'" in unknown.error
