"""Jobs that an attempt submits: checked where it runs, accepted with its success.

Rule: what `ctx.submit` accepts, the manager accepts: types, params and options are checked here,
and what only the manager knows (its queues) makes the attempt fail, not the job vanish.
"""

import hashlib
import time
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ValidationError

from cluster.catalog import TypeCard, card_of, limit_keys
from cluster.ids import uuid7_maker
from cluster.planning import Problem, plan_for
from cluster.protocol import Submission
from cluster.queue.spec import NO_PARAMS, JobSpec, decode_spec, encode_spec
from cluster.store.contract import Objects
from cluster.worker.attempt import Attempt
from jobs.errors import InvalidInput
from jobs.registry import Registry
from jobs.result import encode_result

__all__ = ["submission"]

#: Params above it lie in the store.
PARAMS_INLINE_BYTES_MAX = 16 * 1024
DAY_S = 86_400.0

_mint = uuid7_maker()
Moment = Annotated[datetime, Meta(tz=True)]


class _Options(msgspec.Struct, forbid_unknown_fields=True):
    """What `ctx.submit` takes beside type and params; as `POST /v1/jobs`."""

    queue: str | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    delay_s: Annotated[float, Meta(ge=0, le=366 * DAY_S)] | None = None
    run_at: Moment | None = None
    expires_at: Moment | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=366 * DAY_S)] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    labels: dict[str, str] = {}


def submission(
    registry: Registry,
    store: Objects,
    attempt: Attempt,
    type: str,
    params: Any,
    options: dict[str, Any],
) -> Submission:
    """Return the job. Large params are in the store on return. Raises InvalidInput."""
    definition = registry.get(type)
    if definition is None:
        known = ", ".join(sorted(registry)) or "none"
        raise InvalidInput("submit", f"no job type {type!r} is known here; there is {known}")
    try:
        asked = msgspec.convert(options, _Options)
    except msgspec.ValidationError as error:
        raise InvalidInput("submit", f"{type}: {error}") from None
    data = encode_result({} if params is None else params)
    values = _checked(definition.params_model, type, data).model_dump(mode="json")
    plan, problems = plan_for(
        card_of(definition),
        values,
        card_of=lambda name: _card(registry, name),
        problems_of=lambda name, raw: _problems(registry, name, raw),
        values_of=lambda name, raw: _checked(registry[name].params_model, name, raw).model_dump(
            mode="json"
        ),
    )
    if problems:
        where, told = problems[0]
        raise InvalidInput("submit", f"{type}: {where}: {told}")
    mine = decode_spec(attempt.assignment.spec)
    ref = None
    if len(data) > PARAMS_INLINE_BYTES_MAX:
        ref = f"params/{hashlib.sha256(data).hexdigest()}.json"
        store.put(ref, data)
    now = time.time()
    run_at = asked.run_at.timestamp() if asked.run_at is not None else None
    spec = JobSpec(
        type,
        NO_PARAMS if ref is not None else msgspec.Raw(data),
        ref,
        mine.tenant,
        asked.queue or definition.queue,
        asked.priority,
        now + asked.delay_s if asked.delay_s is not None else run_at,
        asked.expires_at.timestamp() if asked.expires_at is not None else None,
        asked.timeout_s or definition.timeout_s,
        definition.grace_s,
        asked.max_attempts or definition.max_attempts,
        definition.retry,
        asked.labels,
        traceparent=attempt.traceparent(),
        code=attempt.assignment.code,
        plan=plan,
        parent=attempt.assignment.job_id,
        limits=limit_keys(definition.limits, values),
        expected_s=definition.expected_s,
        routed=asked.queue is None,
        resumable=definition.resumable,
    )
    return Submission(_mint(), msgspec.Raw(encode_spec(spec)))


def _checked(model: type[BaseModel], kind: str, data: bytes) -> BaseModel:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in ("params", *found["loc"]))
        raise InvalidInput("submit", f"{kind}: {where}: {found['msg']}") from None


def _card(registry: Registry, name: str) -> TypeCard | None:
    definition = registry.get(name)
    return None if definition is None else card_of(definition)


def _problems(registry: Registry, name: str, params: bytes) -> list[Problem]:
    try:
        registry[name].params_model.model_validate_json(params)
    except ValidationError as error:
        return [
            (".".join(str(part) for part in ("params", *found["loc"])), found["msg"])
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    return []
