"""From the bytes of a request to a JobSpec: what may be asked for, and when two asks are the same.

Rule 1: params are checked by the job type's own model and then kept as the caller wrote them;
checking changes nothing. Rule 2: unknown fields are refused, each by name. Rule 3: nothing here
waits except for the store, and only when params are too large to travel inside the job.
"""

import asyncio
import difflib
import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ValidationError

from cluster.queue.spec import NO_PARAMS, JobSpec
from cluster.store.contract import Objects
from jobs.definition import JobDefinition
from jobs.errors import InvalidInput
from service.api_settings import ApiSettings
from service.auth import Caller
from service.headers import idempotency_key, traceparent
from service.problems import FieldError, InvalidRequest, Malformed, TooLarge

__all__ = ["BatchLine", "JobRequest", "RequestKey", "Submissions"]

DAY_S = 24 * 3600.0
#: Ten years: whoever means never leaves `expires_at` out.
EXPIRES_DAYS_MAX = 3653
QUEUE = r"^[a-z][a-z0-9_-]{0,62}$"

T = TypeVar("T", bound=msgspec.Struct)
Seconds = Annotated[float, Meta(gt=0, le=366 * DAY_S)]
Moment = Annotated[datetime, Meta(tz=True)]
LabelName = Annotated[str, Meta(min_length=1, max_length=63, pattern=r"^[^=\s]+$")]
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
        Moment | None, Meta(description="Cancel the job if it has not started by this moment.")
    ] = None
    max_attempts: Annotated[
        Annotated[int, Meta(ge=1, le=100)] | None,
        Meta(description="How often to try; each type has a default."),
    ] = None
    labels: Annotated[
        Annotated[dict[LabelName, LabelValue], Meta(max_length=32)],
        Meta(description="Words of your own to find the job by."),
    ] = {}


class BatchLine(JobRequest):
    """What one line of `POST /v1/jobs/batch` takes."""

    idempotency_key: Annotated[
        str | None, Meta(description="As the header `Idempotency-Key`, for this line alone.")
    ] = None


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

    def __init__(
        self, types: Mapping[str, JobDefinition], store: Objects, settings: ApiSettings
    ) -> None:
        self._types = types
        self._store = store
        self._settings = settings
        self._decode_job = msgspec.json.Decoder(JobRequest).decode
        self._decode_line = msgspec.json.Decoder(BatchLine).decode
        self._puts = asyncio.Semaphore(max(1, store.concurrency))

    def decode(self, body: bytes) -> JobRequest:
        """Return the request. Raises Malformed, InvalidInput or InvalidRequest."""
        return _decode(body, self._decode_job, JobRequest)

    def decode_line(self, line: bytes) -> BatchLine:
        """Return one line of a batch. Raises Malformed, InvalidInput or InvalidRequest."""
        return _decode(line, self._decode_line, BatchLine)

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
        definition = self._definition(request.type)
        params = bytes(request.params)
        if len(params) > self._settings.params_bytes_max:
            raise TooLarge(
                f"params may have {self._settings.params_bytes_max:,} bytes, got {len(params):,}; "
                "send larger data with PUT /v1/uploads/{name} and put the uri of the answer "
                "into params"
            )
        checked = _check_params(definition, params)
        run_at, expires_at = _moments(request, now)
        identity, fingerprint, window_s = self._identity(
            request, definition, caller.tenant, key, params, checked
        )
        # By position: with as many names the call would cost as much as the checks above.
        return JobSpec(
            definition.name,
            request.params,
            None,
            caller.tenant,
            _queue(request.queue) or definition.queue,
            request.priority,
            run_at,
            expires_at,
            request.timeout_s or definition.timeout_s,
            definition.grace_s,
            request.max_attempts or definition.max_attempts,
            definition.retry,
            request.labels,
            identity,
            now + window_s if identity else 0.0,
            fingerprint,
            None if trace is None else traceparent(trace.decode("latin-1")),
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

    def _definition(self, name: str) -> JobDefinition:
        definition = self._types.get(name)
        if definition is None:
            near = difflib.get_close_matches(name, self._types, n=3) or sorted(self._types)[:10]
            raise InvalidInput(
                "type", f"no job type {name[:100]!r} here; there is {', '.join(near) or 'none'}"
            )
        return definition

    def _identity(
        self,
        request: JobRequest,
        definition: JobDefinition,
        tenant: str,
        key: RequestKey,
        params: bytes,
        checked: BaseModel,
    ) -> tuple[str | None, str, float]:
        """Return the key, the fingerprint and the window; the first of three sources decides."""
        if key is NO_KEY and definition.unique_for_s is None:
            return None, "", 0.0
        if key.given is None and definition.unique_for_s is not None:
            by = set(definition.unique_by) or None
            what = _canonical(checked.model_dump(mode="json", include=by))
            hashed = _hash("unique", tenant, definition.name, what)
            return hashed, hashed, definition.unique_for_s
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


def _decode(body: bytes, decode: Callable[[bytes], T], model: type[T]) -> T:
    try:
        if not body.isascii():
            body.decode()
        return decode(body)
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except msgspec.ValidationError as error:
        raise _named(error, body, model) from None
    except msgspec.DecodeError as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise Malformed("the JSON is nested too deeply") from None


_AT = re.compile(r"^(?P<reason>.*?)(?: - at (?:`key` in )?`(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")


def _named(error: msgspec.ValidationError, body: bytes, model: type[msgspec.Struct]) -> Exception:
    """Return the error with the field it is about; msgspec puts that into its text."""
    fields = {field.encode_name for field in msgspec.structs.fields(model)}
    try:
        whole = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):  # it is wrong in more than one way
        return Malformed(f"the body is not right, nor is it JSON: {error}")
    if not isinstance(whole, dict):
        return InvalidInput("body", "must be a JSON object with at least the field 'type'")
    if unknown := [name for name in whole if name not in fields]:
        reason = f"no such field; there are {', '.join(sorted(fields))}"
        return InvalidRequest([FieldError(name[:100], reason) for name in unknown[:20]])
    if missing := _MISSING.match(str(error)):
        return InvalidInput(missing[1], "is required")
    found = _AT.match(str(error))
    assert found is not None  # the pattern matches any text
    path = (found["path"] or "$").removeprefix("$").lstrip(".")
    return InvalidInput(path or "body", found["reason"][0].lower() + found["reason"][1:])


def _check_params(definition: JobDefinition, params: bytes) -> BaseModel:
    try:
        checked: BaseModel = definition.params_model.__pydantic_validator__.validate_json(params)
        return checked
    except ValidationError as error:
        raise InvalidRequest(
            [
                FieldError(".".join(["params", *map(str, found["loc"])]), found["msg"])
                for found in error.errors(include_url=False, include_input=False)[:50]
            ]
        ) from None


def _queue(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(QUEUE, name):
        raise InvalidInput("queue", "use 1 to 63 of a-z, 0-9, '-', '_', led by a letter")
    return name


def _moments(request: JobRequest, now: float) -> tuple[float | None, float | None]:
    """Return `run_at` and `expires_at` as epoch seconds."""
    if request.run_at is None and request.delay_s is None and request.expires_at is None:
        return None, None
    run_at: float | None = None
    if request.delay_s is not None:
        if request.run_at is not None:
            raise InvalidInput("delay_s", "give run_at or delay_s, not both")
        run_at = now + request.delay_s
    elif request.run_at is not None:
        run_at = max(0.0, request.run_at.timestamp())  # the past is the past
        if run_at > now + 366 * DAY_S:
            raise InvalidInput("run_at", "lies more than 366 days ahead")
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
        msgspec.json.decode(params),
        request.queue,
        request.priority,
        request.run_at,
        request.delay_s,
        request.timeout_s,
        request.expires_at,
        request.max_attempts,
        request.labels,
    ]


def _canonical(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _hash(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:  # each with its length, so that no two lists of parts look the same
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
