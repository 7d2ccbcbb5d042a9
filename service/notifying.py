"""Whom to tell of a job: what may be asked for, and the jobs that it becomes.

Rule: what tells is a job like any other, checked now by its own type, so that what is wrong with an
address is found at the door and named by its place there.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cluster.catalog import limit_keys
from cluster.queue.spec import JobSpec, Notify
from jobs.errors import InvalidInput
from jobs.library.notify.event import SPECIMEN
from service.catalog import Catalog
from service.problems import FieldError, InvalidRequest

__all__ = ["NotifyRequest", "WebhookTarget", "notify_of", "target_of"]

TARGETS_MAX = 10

#: Which param of its type each way of telling is.
_PARAM = {"webhook": "url", "email": "to", "push": "subscription"}

WebhookTarget = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2048,
        description="A URL, or the name of one of your endpoints (`PUT /v1/endpoints/{name}`).",
    ),
]
Addresses = Annotated[
    str | list[str], Meta(description="An address or up to 20, such as me@example.org.")
]
Event = Literal["started", "completed", "failed", "cancelled"]


class NotifyRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Whom to tell when a job has come so far: one of `webhook`, `email` and `push`."""

    on: Annotated[list[Event], Meta(min_length=1, max_length=4)] = msgspec.field(
        default_factory=lambda: ["completed", "failed"]
    )
    webhook: WebhookTarget | None = None
    email: Addresses | None = None
    push: Annotated[
        dict[str, Any] | None,
        Meta(description="A browser's `PushSubscription`, as its `toJSON` gives it."),
    ] = None


def notify_of(catalog: Catalog, asked: list[NotifyRequest], webhook: str | None) -> list[Notify]:
    """Return the jobs that are to tell of a job. Raises InvalidInput or InvalidRequest."""
    if len(asked) + (webhook is not None) > TARGETS_MAX:
        raise InvalidInput("notify", f"names over {TARGETS_MAX} targets; tell one that tells more")
    found = [_notify(catalog, one, f"notify.{at}") for at, one in enumerate(asked)]
    if webhook is not None:
        found.append(_notify(catalog, NotifyRequest(webhook=webhook), ""))
    return found


def _notify(catalog: Catalog, asked: NotifyRequest, where: str) -> Notify:
    given = {way: value for way in _PARAM if (value := getattr(asked, way)) is not None}
    if len(given) != 1:
        raise InvalidInput(where, "give one of webhook, email and push")
    ((way, value),) = given.items()
    kind, param = f"notify.{way}", _PARAM[way]
    if way == "webhook" and "://" not in value:
        param = "endpoint"
    elif way == "email" and isinstance(value, str):
        value = [value]
    try:
        known = catalog.find(kind, "")
    except InvalidInput as error:
        raise InvalidInput(f"{where}.{way}".lstrip("."), str(error.reason)) from None
    params = {param: value}
    try:
        checked = known.check(msgspec.json.encode(params | {"event": SPECIMEN}))
    except InvalidRequest as error:
        place = f"{where}.{way}".lstrip(".")
        raise InvalidRequest(
            [FieldError(_placed(one.field, param, place), one.reason) for one in error.errors]
        ) from None
    card = known.card
    spec = JobSpec(
        kind,
        msgspec.Raw(msgspec.json.encode(params)),
        queue=card.queue,
        timeout_s=card.timeout_s,
        grace_s=card.grace_s,
        max_attempts=card.max_attempts,
        retry=card.retry,
        limits=limit_keys(card.limits, known.plain(checked, None)),
    )
    # Once each, in their order.
    return Notify(list(dict.fromkeys(asked.on)), spec)


def _placed(field: str, param: str, place: str) -> str:
    """Return where in the request that is which the type calls `params.url`."""
    return place + field.removeprefix("params").removeprefix(f".{param}")


def target_of(notify: Notify) -> tuple[str, str]:
    """Return by which type it tells, and whom, in a word."""
    spec = notify.job
    params: dict[str, Any] = msgspec.json.decode(spec.params)
    if "subscription" in params:
        return spec.type, str(params["subscription"]["endpoint"])
    whom = params.get("url") or params.get("endpoint") or ", ".join(params.get("to", ()))
    return spec.type, str(whom)
