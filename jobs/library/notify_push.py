"""`notify.push`: a notification on somebody's phone or desktop, by Web Push (RFC 8030).

Rule 1: what is told is encrypted for the browser that subscribed (RFC 8291): its push service sees
who and when, not what. Rule 2: this cluster signs with its own VAPID key (RFC 8292), a secret of
the workers. Rule 3: the subscription's address is somebody's word: the POST goes where webhooks may
go. A subscription that is gone (404, 410) ends the job. Rule 4: this file imports neither HTTP nor
cryptography: the registry imports every job type in every process.
"""

import base64
import json
import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from jobs.context import Context
from jobs.definition import job
from jobs.library.http.place import URL_CHARS_MAX, Place
from jobs.library.notify.event import Event, job_url
from jobs.library.notify.letter import headline
from jobs.outcome import Discard, Retry
from jobs.retry import RetryPolicy

__all__ = ["PushParams", "Pushed", "Subscription", "notify_push"]

#: Name of the worker's secret.
VAPID_SECRET = "push_vapid"
VAPID_FORM = (
    "mailto:ops@example.org, a space, and the private key in base64url, 43 characters, as "
    "`npx web-push generate-vapid-keys` makes it"
)
#: The push service keeps it so long for a device that is off, and the signature counts so long.
TTL_S, VAPID_S = 24 * 3600, 12 * 3600
#: Services take 4,096 bytes, encrypted.
BODY_BYTES_MAX = 3_800
TEXT_CHARS_MAX = 500
_GONE = frozenset({404, 410})
#: Anything else below 500 is a refusal that time does not mend.
_TRANSIENT = frozenset({408, 425, 429})

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+={0,2}$", max_length=200)]


class Keys(BaseModel):
    """What a browser encrypts by."""

    model_config = ConfigDict(extra="forbid")

    p256dh: Key
    auth: Key

    @field_validator("p256dh")
    @classmethod
    def _is_a_point(cls, value: str) -> str:
        if len(_decoded(value)) != 65:
            raise ValueError("is no P-256 public key: 65 bytes in base64url")
        return value

    @field_validator("auth")
    @classmethod
    def _is_a_secret(cls, value: str) -> str:
        if len(_decoded(value)) != 16:
            raise ValueError("is no push secret: 16 bytes in base64url")
        return value


class Subscription(BaseModel):
    """A `PushSubscription` as the browser's `toJSON` gives it."""

    model_config = ConfigDict(extra="forbid")

    endpoint: Annotated[str, Field(max_length=URL_CHARS_MAX)]
    keys: Keys
    expirationTime: float | None = None  # noqa: N815 - the browser's name

    @field_validator("endpoint")
    @classmethod
    def _leads_somewhere(cls, url: str) -> str:
        Place.of(url)
        return url


class PushParams(BaseModel):
    """Whom to tell what."""

    model_config = ConfigDict(extra="forbid")

    subscription: Subscription
    event: Event


class Pushed(TypedDict):
    """The answer."""

    status: int


@job(
    "notify.push",
    queue="io",
    max_attempts=6,
    timeout_s=60.0,
    # What happened hours ago is no news for a phone.
    retry=RetryPolicy(waits_s=(5.0, 60.0, 300.0, 1800.0, 7200.0)),
)
async def notify_push(ctx: Context, params: PushParams) -> Pushed:
    """Tell a browser what happened."""
    try:
        from py_vapid import Vapid02, VapidException
        from pywebpush import WebPusher, WebPushException

        from jobs.library.notify.post import post
    except ImportError as error:
        raise Discard(
            f"notify.push needs pywebpush on the worker ({error}); "
            'install it with: pip install "drayman[notify]"'
        ) from error

    place = Place.of(params.subscription.endpoint)
    contact, _, key = ctx.secret(VAPID_SECRET).strip().partition(" ")
    claims = {
        "sub": contact,
        "aud": f"{place.scheme}://{place.shown}",
        "exp": int(time.time()) + VAPID_S,
    }
    subscription = params.subscription.model_dump(exclude={"expirationTime"})
    try:
        vapid = Vapid02.from_string(private_key=key.strip())
        signed: dict[str, str] = vapid.sign(claims)
    except (VapidException, ValueError, IndexError) as error:
        raise Discard(f"secret {VAPID_SECRET!r} is no usable one; write {VAPID_FORM}") from error
    try:
        body: bytes = WebPusher(subscription).encode(_shown(params.event))["body"]
    except (WebPushException, ValueError) as error:
        raise Discard(f"subscription.keys: nothing can be encrypted by them ({error})") from error
    headers = {
        **signed,
        "Content-Type": "application/octet-stream",
        "Content-Encoding": "aes128gcm",
        "TTL": str(TTL_S),
    }
    answer = await post(params.subscription.endpoint, headers, body)
    told = f"{place.shown}: {answer.told}"
    if answer.status in _GONE:
        raise Discard(f"{told}; the subscription is gone: its browser has to subscribe again")
    if answer.status >= 500 or answer.status in _TRANSIENT:
        raise Retry(told, after_s=answer.later_s)
    if not answer.is_ok:
        raise Discard(told)
    return Pushed(status=answer.status)


def _shown(event: Event) -> bytes:
    """Return what the page's service worker gets: enough to show, and where to look."""
    data = event.data
    error = data.get("error")
    message = str(error.get("message") or "") if isinstance(error, dict) else ""
    shown: dict[str, Any] = {
        "title": headline(event),
        "body": message[:TEXT_CHARS_MAX],
        "type": event.type,
        "timestamp": event.timestamp,
        "id": data.get("id"),
        "url": job_url(str(data["id"])) if "id" in data else None,
    }
    encoded = json.dumps(shown, ensure_ascii=False).encode()
    if len(encoded) > BODY_BYTES_MAX:
        raise Discard(f"event: makes over {BODY_BYTES_MAX:,} bytes; keep names short")
    return encoded


def _decoded(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""
