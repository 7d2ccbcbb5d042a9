"""`notify.push` against a local push service, and a browser's half that decrypts what it gets."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import http_ece
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02, b64urlencode
from pydantic import ValidationError

from jobs import Discard, Retry
from jobs.errors import InvalidInput
from jobs.library.http.addresses import HTTP_ALLOW_ENV
from jobs.library.notify.event import PUBLIC_URL_ENV
from jobs.library.notify_push import notify_push
from jobs.testing import Finished, run
from tests.support.receiver import Heard, Receiver, Say, receiving

EVENT = {
    "type": "job.failed",
    "timestamp": "2026-11-26T18:00:00.000Z",
    "data": {
        "id": "job-7",
        "type": "report.annual",
        "error": {"message": "no <b>paper</b>", "cause": "error"},
    },
}
AUTH = b"0123456789abcdef"


def plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Browser:
    """Who subscribed: its keys, and what it makes of a message."""

    def __init__(self, endpoint: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        point = self._key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        self.subscription: dict[str, Any] = {
            "endpoint": endpoint,
            "expirationTime": None,
            "keys": {"p256dh": plain(point), "auth": plain(AUTH)},
        }

    def reads(self, heard: Heard) -> Any:
        assert heard.headers["content-encoding"] == "aes128gcm"
        data = http_ece.decrypt(
            heard.body, private_key=self._key, auth_secret=AUTH, version="aes128gcm"
        )
        return json.loads(data)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv(HTTP_ALLOW_ENV, "127.0.0.1/32")
    with receiving() as receiver:
        receiver.answers = [Say(201)]
        yield receiver


@pytest.fixture
def browser(service: Receiver) -> Browser:
    return Browser(f"{service.url}/push/abc")


def _vapid() -> str:
    vapid = Vapid02()
    vapid.generate_keys()
    number = vapid.private_key.private_numbers().private_value
    return f"mailto:ops@example.org {b64urlencode(number.to_bytes(32, 'big'))}"


VAPID = _vapid()


def push(browser: Browser, secret: str | None = VAPID, **params: Any) -> Finished:
    secrets = {} if secret is None else {"push_vapid": secret}
    given = {"subscription": browser.subscription, "event": EVENT} | params
    return run(notify_push, given, secrets=secrets)


def ended(finished: Finished, kind: type[BaseException]) -> str:
    assert isinstance(finished.error, kind), repr(finished.error)
    return str(finished.error)


def test_the_browser_that_subscribed_can_read_it(
    service: Receiver, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PUBLIC_URL_ENV, "https://jobs.example.com")

    assert push(browser).result == {"status": 201}

    [heard] = service.heard
    assert heard.path == "/push/abc"
    assert b"paper" not in heard.body
    assert browser.reads(heard) == {
        "title": "report.annual failed",
        "body": "no <b>paper</b>",
        "type": "job.failed",
        "timestamp": "2026-11-26T18:00:00.000Z",
        "id": "job-7",
        "url": "https://jobs.example.com/jobs/job-7",
    }


def test_another_browser_cannot(service: Receiver, browser: Browser) -> None:
    push(browser)

    with pytest.raises(http_ece.ECEException):
        Browser(service.url).reads(service.heard[0])


def test_the_push_service_can_tell_who_sent_it(service: Receiver, browser: Browser) -> None:
    push(browser)

    authorization = service.heard[0].headers["authorization"]
    assert Vapid02.verify(authorization)
    token = authorization.partition("t=")[2].partition(",")[0].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(token + "=="))
    assert (claims["sub"], claims["aud"]) == ("mailto:ops@example.org", service.url)
    assert int(service.heard[0].headers["ttl"]) > 0


@pytest.mark.parametrize("status", [404, 410])
def test_a_subscription_that_is_gone_ends_it(
    service: Receiver, browser: Browser, status: int
) -> None:
    service.answers = [Say(status)]

    assert "subscribe again" in ended(push(browser), Discard)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_in_trouble_is_asked_again(
    service: Receiver, browser: Browser, status: int
) -> None:
    service.answers = [Say(status, {"Retry-After": "9"})]

    finished = push(browser)

    ended(finished, Retry)
    assert isinstance(finished.error, Retry)
    assert finished.error.after_s == (None if status == 500 else 9.0)


@pytest.mark.parametrize("status", [400, 403, 413, 301])
def test_any_other_refusal_is_final(service: Receiver, browser: Browser, status: int) -> None:
    service.answers = [Say(status, {"Location": service.url})]

    assert f"HTTP {status}" in ended(push(browser), Discard)
    assert len(service.heard) == 1


def test_a_subscription_that_leads_inside_is_refused(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(HTTP_ALLOW_ENV)

    assert HTTP_ALLOW_ENV in ended(push(browser), Discard)


@pytest.mark.parametrize(
    "secret", ["", "mailto:a@example.org", "mailto:a@b.org QQ", "mailto:a@b.org " + "A" * 20]
)
def test_a_vapid_key_that_is_none_says_how_it_is_written(browser: Browser, secret: str) -> None:
    told = ended(push(browser, secret), Discard)

    assert "mailto:ops@example.org" in told
    assert "QQ" not in told


def test_without_a_vapid_key_it_says_which_secret_is_missing(browser: Browser) -> None:
    assert "push_vapid" in ended(push(browser, None), InvalidInput)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"auth": "abc"}, "no push secret"),
        ({"p256dh": "abc"}, "no P-256"),
        ({"p256dh": "ü"}, "pattern"),
        ({"more": "x"}, "Extra inputs"),
    ],
)
def test_keys_that_are_none_are_refused(browser: Browser, keys: dict[str, str], told: str) -> None:
    subscription = browser.subscription | {"keys": browser.subscription["keys"] | keys}

    with pytest.raises(ValidationError, match=told):
        push(browser, subscription=subscription)


def test_a_point_that_is_on_no_curve_is_refused(service: Receiver, browser: Browser) -> None:
    keys = browser.subscription["keys"] | {"p256dh": plain(b"\x04" + b"\x01" * 64)}

    told = ended(push(browser, subscription=browser.subscription | {"keys": keys}), Discard)

    assert "encrypted" in told
    assert service.heard == []


def test_a_long_error_is_cut_to_what_a_service_takes(service: Receiver, browser: Browser) -> None:
    data = EVENT["data"] | {"error": {"message": "ä" * 10_000, "cause": "error"}}  # type: ignore[operator]

    push(browser, event=EVENT | {"data": data})

    assert len(service.heard[0].body) <= 4096
    assert browser.reads(service.heard[0])["body"] == "ä" * 500
