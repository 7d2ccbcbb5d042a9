"""`notify.webhook`: tells somebody's server what happened, as Standard Webhooks has it.

Rule 1: the body is the same on every attempt, and so is `webhook-id`; timestamp and signatures are
the attempt's. Rule 2: any 2xx is success and nothing else is; no redirect is followed. 410 disables
the endpoint, and later deliveries to it end at once. Rule 3: a secret comes from the tenant's
endpoint and stands in no job: who names a URL is signed for with the tenant's `default`.
Rule 4: this file imports no HTTP client: the registry imports every job type in every process.
"""

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator, model_validator
from typing_extensions import TypedDict

from jobs.context import Context
from jobs.definition import job
from jobs.endpoint import DEFAULT, Endpoint
from jobs.errors import NotFound
from jobs.library.http.place import URL_CHARS_MAX, Place
from jobs.library.notify.event import Event, job_url
from jobs.outcome import Discard, Retry
from jobs.retry import RetryPolicy

if TYPE_CHECKING:
    from jobs.library.notify.post import Answer

__all__ = ["Delivered", "WebhookParams", "notify_webhook"]

#: The standard asks for thin ones.
BODY_BYTES_MAX = 20_000
MINUTE_S, HOUR_S = 60.0, 3600.0
#: As the standard proposes: three days in all.
WAITS_S = (
    5.0,
    5 * MINUTE_S,
    30 * MINUTE_S,
    *(hours * HOUR_S for hours in (2.0, 5.0, 10.0, 14.0, 20.0, 24.0)),
)
GONE = 410


class WebhookParams(BaseModel):
    """Whom to tell what."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[
        str | None, Field(max_length=URL_CHARS_MAX, pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://")
    ] = None
    endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
            description="Name of one of the tenant's endpoints, instead of a url",
        ),
    ] = None
    event: Event

    @model_validator(mode="before")
    @classmethod
    def _without_target(cls, data: Any) -> Any:
        """Read back what was dumped: `target` stands in there."""
        if isinstance(data, dict) and "target" in data:
            return {name: value for name, value in data.items() if name != "target"}
        return data

    @field_validator("url")
    @classmethod
    def _leads_somewhere(cls, url: str | None) -> str | None:
        if url is not None:
            Place.of(url)
        return url

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.url is None) == (self.endpoint is None):
            raise ValueError("give a url, or the name of an endpoint")
        if self.endpoint == DEFAULT:
            raise ValueError(f"endpoint: {DEFAULT!r} leads nowhere; it signs what goes to a url")
        return self

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way
    @property
    def target(self) -> str:
        """What limits count by: the host, or the endpoint's name."""
        return Place.of(self.url).shown if self.url is not None else self.endpoint or ""


class Delivered(TypedDict):
    """The answer."""

    status: int
    elapsed_s: float


@job(
    "notify.webhook",
    queue="io",
    max_attempts=1 + len(WAITS_S),
    timeout_s=60.0,
    retry=RetryPolicy(waits_s=WAITS_S),
    limits=("webhook:{target}",),
)
async def notify_webhook(ctx: Context, params: WebhookParams) -> Delivered:
    """Tell a server what happened, signed; a server that is away is tried for three days."""
    try:
        from standardwebhooks import Webhook

        from jobs.library.notify.post import post
    except ImportError as error:
        raise Discard(
            f"notify.webhook needs standardwebhooks on the worker ({error}); "
            'install it with: pip install "drayman[notify]"'
        ) from error

    body = _body(params.event)
    name = params.endpoint or DEFAULT
    try:
        endpoint: Endpoint = await asyncio.to_thread(ctx.endpoint, name)
    except NotFound as error:
        raise Discard(f"endpoint: {error}; put it with PUT /v1/endpoints/{name}") from error
    if endpoint.disabled:
        raise Discard(
            f"endpoint {name} is disabled ({endpoint.disabled}); "
            f"put it again with PUT /v1/endpoints/{name}, then retry this job"
        )
    url = params.url or endpoint.url
    message_id, now = f"msg_{ctx.job_id}", datetime.now(UTC)
    signatures = [Webhook(one).sign(message_id, now, body) for one in endpoint.secrets]
    headers = {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
    if ctx.traceparent is not None:
        headers["traceparent"] = ctx.traceparent
    began = time.monotonic()
    answer = await post(url, headers, body.encode())
    elapsed_s = round(time.monotonic() - began, 3)
    ctx.log(f"{params.target}: HTTP {answer.status} after {elapsed_s} s")
    if not answer.is_ok:
        await _refused(ctx, params, answer)
    return Delivered(status=answer.status, elapsed_s=elapsed_s)


def _body(event: Event) -> str:
    """Return what is sent: made of the params alone, so it is the same each time."""
    told = event.model_dump(mode="json")
    link = job_url(str(event.data["id"])) if "id" in event.data else None
    if link is not None:
        told["data"]["url"] = link
    body = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    if len(body.encode()) > BODY_BYTES_MAX:
        raise Discard(f"event: over {BODY_BYTES_MAX:,} bytes; tell where to ask for more instead")
    return body


async def _refused(ctx: Context, params: WebhookParams, answer: "Answer") -> None:
    told = f"{params.target}: {answer.told}"
    if answer.status == GONE:
        if params.endpoint is not None:
            reason = f"it answered {GONE}: it wants no more"
            await asyncio.to_thread(ctx.disable_endpoint, params.endpoint, reason)
        raise Discard(told)
    if 300 <= answer.status < 400:
        told += "; redirects are not followed: name where it leads to"
    raise Retry(told, after_s=answer.later_s)
