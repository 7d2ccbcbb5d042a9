"""From the bytes of a request to a JobSpec: what may be asked for, and when two asks are the same.

Rule 1: params are checked by the job type's own model, or by its schema where its code is not here,
and then kept as the caller wrote them; checking changes nothing. Rule 2: unknown fields are
refused, each by name. Rule 3: nothing here waits except for the store, and only when params are too
large to travel inside the job, or to learn of a type that is not known here. Rule 4: which code a
job runs is settled here, once, and stays.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from cluster.catalog import StepCard, TypeCard, limit_keys
from cluster.planning import Problem, plan_for, plan_steps
from cluster.queue.spec import NO_PARAMS, JobSpec, Plan
from cluster.store.contract import Objects
from jobs.definition import PLACEHOLDER
from jobs.errors import InvalidInput
from service.api_settings import ApiSettings
from service.auth import Caller
from service.bodies import not_json
from service.catalog import Catalog, KnownType
from service.headers import idempotency_key, traceparent
from service.notifying import NotifyRequest, WebhookTarget, notify_of
from service.problems import FieldError, InvalidRequest, Malformed, TooLarge

__all__ = [
    "BatchLine",
    "JobRequest",
    "RequestKey",
    "StepRequest",
    "Submissions",
    "WorkflowRequest",
    "decode_as",
]

DAY_S = 24 * 3600.0
#: Ten years: whoever means never leaves `expires_at` out.
EXPIRES_DAYS_MAX = 3653
QUEUE = r"^[a-z][a-z0-9_-]{0,62}$"
TYPE = r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$"

TOO_DEEP = "the JSON is nested too deeply"

T = TypeVar("T", bound=msgspec.Struct)
Seconds = Annotated[float, Meta(gt=0, le=366 * DAY_S)]
Moment = Annotated[datetime, Meta(tz=True)]
LabelName = Annotated[str, Meta(min_length=1, max_length=63, pattern=r"^[^=\s]+$")]
LimitKey = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
LabelValue = Annotated[str, Meta(max_length=255)]


class JobRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What `POST /v1/jobs` takes."""

    type: Annotated[str, Meta(description="Name of a job type; `GET /v1/types` lists them.")]
    params: Annotated[
        msgspec.Raw,
        Meta(
            description="A JSON object for the type's own schema.",
            extra_json_schema={"type": "object"},
        ),
    ] = msgspec.field(default_factory=lambda: NO_PARAMS)
    queue: Annotated[
        str | None, Meta(description="Which queue to wait in; each type has a default.")
    ] = None
    priority: Annotated[int, Meta(ge=-1000, le=1000, description="Higher starts first.")] = 0
    run_at: Annotated[
        Moment | None, Meta(description="Not before this moment (RFC 3339, with time zone).")
    ] = None
    delay_s: Annotated[
        Annotated[float, Meta(ge=0, le=366 * DAY_S)] | None,
        Meta(description="Not before this many seconds from now; instead of `run_at`."),
    ] = None
    timeout_s: Annotated[
        Seconds | None, Meta(description="Stop an attempt that runs longer than this.")
    ] = None
    expires_at: Annotated[
        Moment | None,
        Meta(description="Start no attempt from then on; a job that waits is cancelled."),
    ] = None
    max_attempts: Annotated[
        Annotated[int, Meta(ge=1, le=100)] | None,
        Meta(description="How often to try; each type has a default."),
    ] = None
    labels: Annotated[
        Annotated[dict[LabelName, LabelValue], Meta(max_length=32)],
        Meta(description="Words of your own to find the job by."),
    ] = {}
    queue_timeout_s: Annotated[
        Seconds | None, Meta(description="The same, as so long after it was submitted.")
    ] = None
    grace_s: Annotated[
        Annotated[float, Meta(ge=0, le=DAY_S)] | None,
        Meta(description="How long after a stop was asked for it is killed: the hard limit."),
    ] = None
    expected_s: Annotated[
        Seconds | None,
        Meta(description="How long it will run, about: long work waits in a queue for such."),
    ] = None
    limits: Annotated[
        Annotated[list[LimitKey], Meta(max_length=4)],
        Meta(description="Keys of limits it counts against, beside those of its type."),
    ] = []
    code: Annotated[
        Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] | None,
        Meta(
            description="Run it with the code of this hash, from the answer of `PUT /v1/code`. "
            "Empty: with what the cluster was started with. Left out: with what is deployed."
        ),
    ] = None
    webhook: Annotated[
        WebhookTarget | None, Meta(description="Tell it when the job is done or has failed.")
    ] = None
    notify: Annotated[
        list[NotifyRequest],
        Meta(max_length=10, description="Whom to tell of the job, of what, and how."),
    ] = []


class BatchLine(JobRequest):
    """What one line of `POST /v1/jobs/batch` takes."""

    idempotency_key: Annotated[
        str | None, Meta(description="As the header `Idempotency-Key`, for this line alone.")
    ] = None


class StepRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One step of a posted workflow. What is left out is taken from its type."""

    name: Annotated[str, Meta(description="What other steps call it: a-z, 0-9 and `_`.")]
    type: Annotated[str, Meta(description="Name of a job type that is no workflow itself.")]
    params: Annotated[
        msgspec.Raw,
        Meta(
            description='As for a job; `{"$result": "step.path"}` and `{"$file": "step/name"}` '
            "stand for what other steps made.",
            extra_json_schema={"type": "object"},
        ),
    ] = msgspec.field(default_factory=lambda: NO_PARAMS)
    after: Annotated[
        list[str], Meta(description="Steps to wait for, beside those that params refer to.")
    ] = []
    queue: str | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    timeout_s: Seconds | None = None


class WorkflowRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What `POST /v1/workflows` takes."""

    steps: list[StepRequest]
    name: Annotated[
        str, Meta(pattern=TYPE, max_length=100, description="Shown as the type of the job.")
    ] = "workflow"
    on_failure: Annotated[
        Literal["stop", "continue"],
        Meta(description="Whether steps that do not need a failed one still run."),
    ] = "stop"
    result: Annotated[
        str | None, Meta(description="The step whose result is the job's; the last, if left out.")
    ] = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    run_at: Moment | None = None
    delay_s: Annotated[float, Meta(ge=0, le=366 * DAY_S)] | None = None
    expires_at: Moment | None = None
    labels: Annotated[dict[LabelName, LabelValue], Meta(max_length=32)] = {}
    queue_timeout_s: Seconds | None = None
    code: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] | None = None
    webhook: WebhookTarget | None = None
    notify: Annotated[list[NotifyRequest], Meta(max_length=10)] = []


class RequestKey(msgspec.Struct, frozen=True):
    """How the caller names a request, so that repeating it changes nothing."""

    #: From `Idempotency-Key`. Ranks before a type's own `unique_for_s`.
    given: str | None = None
    #: From `Drayman-Request-Id`: made by a client for its own retries. Ranks after it.
    minted: str | None = None

    @classmethod
    def of(cls, given: bytes | None, minted: bytes | None) -> "RequestKey":
        """Read both headers. Raises InvalidInput."""
        if given is None and minted is None:
            return NO_KEY
        return cls(
            None if given is None else idempotency_key(given.decode("latin-1")),
            None
            if minted is None
            else idempotency_key(minted.decode("latin-1"), "Drayman-Request-Id"),
        )

    def line(self, number: int, own: str | None) -> "RequestKey":
        """Return the key of one line of a batch that as a whole has this key."""
        if own is not None:
            return RequestKey(idempotency_key(own, "idempotency_key"))
        if self is NO_KEY:
            return self
        return RequestKey(
            None if self.given is None else f"{self.given}\n{number}",
            None if self.minted is None else f"{self.minted}\n{number}",
        )


NO_KEY = RequestKey()


class Submissions:
    """Makes job specs out of requests."""

    def __init__(self, catalog: Catalog, store: Objects, settings: ApiSettings) -> None:
        self._catalog = catalog
        self._store = store
        self._settings = settings
        self._decode_job = msgspec.json.Decoder(JobRequest).decode
        self._decode_line = msgspec.json.Decoder(BatchLine).decode
        self._decode_workflow = msgspec.json.Decoder(WorkflowRequest).decode
        self._puts = asyncio.Semaphore(max(1, store.concurrency))

    def decode(self, body: bytes) -> JobRequest:
        """Return the request. Raises Malformed, InvalidInput or InvalidRequest."""
        return decode_as(body, self._decode_job, JobRequest)

    def decode_line(self, line: bytes) -> BatchLine:
        """Return one line of a batch. Raises Malformed, InvalidInput or InvalidRequest."""
        return decode_as(line, self._decode_line, BatchLine)

    def needs(self, request: JobRequest) -> bool:
        """Whether `learn` is to be awaited before `spec`."""
        return self._catalog.needs(request.type, request.code)

    def knows(self, request: JobRequest) -> bool:
        """Whether there is such a type, as far as is known here."""
        return self._catalog.knows(request.type, request.code)

    async def learn(self, requests: Iterable[JobRequest]) -> None:
        """Learn of the types that these ask for, if there are such. Raises Unavailable."""
        await self._catalog.learn({(request.type, request.code) for request in requests})

    def spec(
        self,
        request: JobRequest,
        caller: Caller,
        key: RequestKey,
        now: float,
        trace: bytes | None = None,
    ) -> JobSpec:
        """Return the checked spec; large params are still in it (see `park`).

        Raises InvalidInput, InvalidRequest or TooLarge.
        """
        known = self._catalog.find(request.type, request.code)
        card = known.card
        params = bytes(request.params)
        if len(params) > self._settings.params_bytes_max:
            raise TooLarge(
                f"params may have {self._settings.params_bytes_max:,} bytes, got {len(params):,}; "
                "send larger data with PUT /v1/uploads/{name} and put the uri of the answer "
                "into params"
            )
        checked = known.check(params)
        run_at, expires_at = _moments(request, now)
        identity, fingerprint, window_s = self._identity(
            request, known, caller.tenant, key, params, checked
        )
        plan = None if card.kind == "job" else self._plan(known, checked)
        limits: tuple[str, ...] = ()
        if card.limits or request.limits:
            limits = _limits(request, known, checked)
        # By position: with as many names the call would cost as much as the checks above.
        spec = JobSpec(
            card.name,
            request.params,
            None,
            caller.tenant,
            _queue(request.queue) or card.queue,
            request.priority,
            run_at,
            expires_at,
            request.timeout_s or card.timeout_s,
            card.grace_s if request.grace_s is None else request.grace_s,
            request.max_attempts or card.max_attempts,
            card.retry,
            request.labels,
            identity,
            now + window_s if identity else 0.0,
            fingerprint,
            None if trace is None else traceparent(trace.decode("latin-1")),
            known.code,
            plan,
            None,
            limits,
            card.expected_s if request.expected_s is None else request.expected_s,
            # Of a type's own queue too: who runs long there may be sent on.
            request.queue is None,
            card.resumable,
        )
        if not request.notify and request.webhook is None:
            return spec
        notify = notify_of(self._catalog, request.notify, request.webhook)
        return msgspec.structs.replace(spec, notify=notify)

    def _plan(self, known: KnownType, checked: Any) -> Plan | None:
        def card_of(name: str) -> TypeCard | None:
            try:
                return self._catalog.find(name, known.code).card
            except InvalidInput:
                return self._catalog[name].card if name in self._catalog else None

        def problems_of(name: str, params: bytes) -> list[Problem]:
            return self._problems(name, known.code, params)

        plan, problems = plan_for(
            known.card,
            known.plain(checked, None),
            card_of=card_of,
            problems_of=problems_of,
            values_of=lambda name, params: self._values(name, known.code, params),
        )
        if problems:  # its own declaration is wrong, or does not go with these params
            raise InvalidRequest([FieldError(path, told) for path, told in problems])
        return plan

    def _problems(self, name: str, code: str | None, params: bytes) -> list[Problem]:
        """Return what a type has against params."""
        try:
            self._catalog.find(name, code).check(params)
        except InvalidRequest as error:
            return [(field.field, field.reason) for field in error.errors]
        except InvalidInput as error:
            return [("params", str(error))]
        return []

    def _values(self, name: str, code: str | None, params: bytes) -> dict[str, Any]:
        """Return what a type reads from params that it has nothing against."""
        known = self._catalog.find(name, code)
        return known.plain(known.check(params), None)

    def decode_workflow(self, body: bytes) -> WorkflowRequest:
        """Return the request. Raises Malformed, InvalidInput or InvalidRequest."""
        return decode_as(body, self._decode_workflow, WorkflowRequest)

    async def learn_steps(self, request: WorkflowRequest) -> None:
        """Learn of the types of a workflow's steps, as far as that is due. Raises Unavailable."""
        asked = {(step.type, request.code) for step in request.steps}
        if any(self._catalog.needs(*one) for one in asked):
            await self._catalog.learn(asked)

    def workflow(
        self,
        request: WorkflowRequest,
        caller: Caller,
        key: RequestKey,
        now: float,
        trace: bytes | None = None,
    ) -> JobSpec:
        """Return the checked spec of a workflow that was posted step by step.

        Raises InvalidInput or InvalidRequest, which name the place of what is wrong.
        """
        types = self._catalog.types(request.code)
        # The plan names the step that has no type.
        known = {step.type: types[step.type] for step in request.steps if step.type in types}
        codes = {one.code for one in known.values() if one.code}
        if len(codes) > 1:
            raise InvalidInput("steps", "have types of different deployments; deploy them as one")
        cards = [
            StepCard(
                step.name,
                step.type,
                step.params,
                step.after,
                _queue(step.queue, f"steps.{at}.queue"),
                step.max_attempts,
                step.timeout_s,
            )
            for at, step in enumerate(request.steps)
        ]
        try:
            plan, problems = plan_steps(
                cards,
                params={},
                card_of=lambda name: known[name].card if name in known else None,
                problems_of=lambda name, params: self._problems(name, request.code, params),
                values_of=lambda name, params: self._values(name, request.code, params),
                goes_on=request.on_failure == "continue",
                result=request.result or "",
                known=types,
            )
        except RecursionError:
            raise Malformed(TOO_DEEP) from None
        if problems:
            raise InvalidRequest([FieldError(path, told) for path, told in problems[:50]])
        run_at, expires_at = _moments(request, now)
        name = key.given or key.minted
        same = _canonical(msgspec.json.decode(msgspec.json.encode(request))) if name else ""
        kind = "given" if key.given else "minted"
        return JobSpec(
            request.name,
            tenant=caller.tenant,
            queue=plan.steps[0].queue or "default",
            priority=request.priority,
            run_at=run_at,
            expires_at=expires_at,
            labels=request.labels,
            key=_hash(kind, caller.tenant, name) if name else None,
            key_expires_at=now + self._settings.key_window_s if name else 0.0,
            fingerprint=_hash("workflow", same) if name else "",
            traceparent=None if trace is None else traceparent(trace.decode("latin-1")),
            code=next(iter(codes), ""),
            plan=plan,
            notify=notify_of(self._catalog, request.notify, request.webhook),
        )

    def is_large(self, spec: JobSpec) -> bool:
        """Return whether the params are too large to travel inside the job."""
        return len(memoryview(spec.params)) > self._settings.params_inline_bytes_max

    async def park(self, spec: JobSpec) -> JobSpec:
        """Return the spec with large params moved into the store, durably. Raises Unavailable."""
        if not self.is_large(spec):
            return spec
        params = bytes(spec.params)
        # Named by content, so that a repeated request writes the same object again.
        path = f"params/{hashlib.sha256(params).hexdigest()}.json"
        async with self._puts:
            await asyncio.to_thread(self._store.put, path, params)
        return msgspec.structs.replace(spec, params=NO_PARAMS, params_ref=path)

    def _identity(
        self,
        request: JobRequest,
        known: KnownType,
        tenant: str,
        key: RequestKey,
        params: bytes,
        checked: Any,
    ) -> tuple[str | None, str, float]:
        """Return the key, the fingerprint and the window; the first of three sources decides."""
        card = known.card
        if key is NO_KEY and card.unique_for_s is None:
            return None, "", 0.0
        if key.given is None and card.unique_for_s is not None:
            what = _canonical(known.plain(checked, set(card.unique_by) or None))
            hashed = _hash("unique", tenant, card.name, what)
            return hashed, hashed, card.unique_for_s
        name = key.given or key.minted
        if name is None:
            return None, "", 0.0
        kind = "given" if key.given else "minted"
        try:
            same = _same(request, params)
        except msgspec.DecodeError as error:
            raise InvalidInput("params", f"are not JSON that can be compared: {error}") from None
        fingerprint = _hash("request", _canonical(same))
        return _hash(kind, tenant, name), fingerprint, self._settings.key_window_s


def decode_as(body: bytes, decode: Callable[[bytes], T], model: type[T]) -> T:
    """Return the request that `decode` makes of the body; errors name the fields of `model`.

    Raises Malformed, InvalidInput or InvalidRequest.
    """
    try:
        if not body.isascii():
            body.decode()
        return decode(body)
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except msgspec.ValidationError as error:
        raise _named(error, body, model) from None
    except msgspec.DecodeError as error:
        raise not_json(body, error) from None
    except RecursionError:
        raise Malformed(TOO_DEEP) from None


_AT = re.compile(r"^(?P<reason>.*?)(?: - at (?:`key` in )?`(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `([^`]*)`(?: - at `\$\.?(.*)`)?")


def _named(error: msgspec.ValidationError, body: bytes, model: type[msgspec.Struct]) -> Exception:
    """Return the error with the field it is about; msgspec puts that into its text."""
    fields = {field.encode_name for field in msgspec.structs.fields(model)}
    try:
        whole = msgspec.json.decode(body)
    except msgspec.DecodeError as worse:  # further on, where the other was not looking any more
        return not_json(body, worse)
    except RecursionError:
        return Malformed(TOO_DEEP)
    if not isinstance(whole, dict):
        least = next(f.encode_name for f in msgspec.structs.fields(model) if f.required)
        return InvalidInput("body", f"must be a JSON object with at least the field {least!r}")
    if unknown := [name for name in whole if name not in fields]:
        reason = f"no such field; there are {', '.join(sorted(fields))}"
        return InvalidRequest([FieldError(name[:100], reason) for name in unknown[:20]])
    if missing := _MISSING.match(str(error)):
        return InvalidInput(_place(f"{missing[2] or ''}.{missing[1]}"), "is required")
    found = _AT.match(str(error))
    assert found is not None  # the pattern matches any text
    path = _place((found["path"] or "$").removeprefix("$"))
    return InvalidInput(path or "body", found["reason"][0].lower() + found["reason"][1:])


def _place(path: str) -> str:
    """Return a path as msgspec tells it (`.steps[0].type`) as all others are: `steps.0.type`."""
    return re.sub(r"\[(\d+)\]", r".\1", path).lstrip(".")


def _queue(name: str | None, field: str = "queue") -> str | None:
    if name is not None and not re.fullmatch(QUEUE, name):
        raise InvalidInput(field, "use 1 to 63 of a-z, 0-9, '-', '_', led by a letter")
    return name


def _limits(request: JobRequest, known: KnownType, checked: Any) -> tuple[str, ...]:
    """Return the keys of the type with params filled in, and those that were asked for."""
    names = {name for key in known.card.limits for name in PLACEHOLDER.findall(key)}
    keys = limit_keys(known.card.limits, known.plain(checked, names) if names else {})
    return tuple(dict.fromkeys([*keys, *request.limits]))


def _moments(
    request: JobRequest | WorkflowRequest, now: float
) -> tuple[float | None, float | None]:
    """Return `run_at` and `expires_at` as epoch seconds."""
    wait_s = request.queue_timeout_s
    if request.run_at is None and request.delay_s is None and request.expires_at is None:
        return None, None if wait_s is None else now + wait_s
    run_at: float | None = None
    if request.delay_s is not None:
        if request.run_at is not None:
            raise InvalidInput("delay_s", "give run_at or delay_s, not both")
        run_at = now + request.delay_s
    elif request.run_at is not None:
        run_at = max(0.0, request.run_at.timestamp())  # the past is the past
        if run_at > now + 366 * DAY_S:
            raise InvalidInput("run_at", "lies more than 366 days ahead")
    if wait_s is not None and request.expires_at is not None:
        raise InvalidInput("queue_timeout_s", "give expires_at or queue_timeout_s, not both")
    if wait_s is not None:
        return run_at, max(now, run_at or 0.0) + wait_s
    if request.expires_at is None:
        return run_at, None
    expires_at = request.expires_at.timestamp()
    if expires_at <= now:
        raise InvalidInput("expires_at", "is in the past; the job could never start")
    if expires_at > now + EXPIRES_DAYS_MAX * DAY_S:
        raise InvalidInput("expires_at", f"lies over {EXPIRES_DAYS_MAX} days ahead; leave it out")
    if run_at is not None and expires_at <= run_at:
        raise InvalidInput("expires_at", "is not after the moment the job may start")
    return run_at, expires_at


def _same(request: JobRequest, params: bytes) -> list[Any]:
    """Return what makes two requests the same: as asked for, before defaults are filled in."""
    return [
        request.type,
        _comparable(params),
        request.queue,
        request.priority,
        request.run_at,
        request.delay_s,
        request.timeout_s,
        request.expires_at,
        request.max_attempts,
        request.labels,
        # Only where it was asked for: what was the same before there was this field still is.
        *([] if request.code is None else [request.code]),
        *(
            [name, value]
            for name in ("queue_timeout_s", "grace_s", "expected_s", "limits", "webhook", "notify")
            if (value := getattr(request, name)) not in (None, [])
        ),
    ]


def _number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() else number  # 1.0 and 1 are one number in JSON


_comparable = msgspec.json.Decoder(float_hook=_number).decode


def _canonical(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _hash(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:  # each with its length, so that no two lists of parts look the same
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
