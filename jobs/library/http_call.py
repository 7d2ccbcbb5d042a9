"""`http.call`: one call to somebody's API.

Rule 1: all calls to one host count against the limit `http:HOST`, whoever makes them; what the
operator set for it holds for the cluster. Rule 2: "later" (`Retry-After`) is obeyed and uses no
attempt, for a day in all; from then on each time is an attempt, so that it ends.
Rule 3: a call is repeated only where that does no harm: the method is idempotent, or it carries a
key that the API knows it by, or nothing of it was sent, or the API refused it for now. Where the
answer to any other is lost, by a broken connection or with the worker, the job fails as `unknown
outcome`. Rule 4: it goes to public addresses only, and to those that the operator opened.
Rule 5: this file imports no HTTP client: the registry imports every job type in every process.
"""

import asyncio
import time
import uuid
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    computed_field,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from jobs.context import Context
from jobs.definition import job
from jobs.library.http.later import retry_after_s
from jobs.library.http.place import URL_CHARS_MAX, Place
from jobs.outcome import Discard, Retry, Snooze
from jobs.retry import RetryPolicy

if TYPE_CHECKING:
    from jobs.library.http.exchange import Answer

__all__ = ["Called", "HttpParams", "call_http"]

#: Made by the call itself, or meant for the connection and not for the API.
_OURS = {
    *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive"),
    *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
}
#: What they hold is a secret; params are no place for one.
_SECRET = {"api-key", "authorization", "cookie", "x-api-key", "x-auth-token"}
#: Repeating these is what their definition allows (RFC 9110, 9.2.2).
_IDEMPOTENT = {"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"}
#: Answers that may be others next time.
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_LATER = {429, 503}
#: Bounds of one wait that an API asks for, and of all together.
LATER_MIN_S, LATER_MAX_S = 1.0, 86_400.0
PUT_OFF_MAX_S, PUT_OFFS_MAX = 86_400.0, 1_000
#: Keys of calls are UUIDs made of this and the task: APIs differ in what else they take.
_KEYS = uuid.UUID("5f0c8a8e-6f0b-4a5e-9a53-1f9d1d1c7d0b")

HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$")]
HeaderValue = Annotated[
    str, Field(pattern=r"^([\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?)?$", max_length=8192)
]
SecretName = Annotated[str, Field(pattern=r"^http[A-Za-z0-9._-]{0,60}$")]
Status = Annotated[int, Field(ge=200, le=599)]


class HttpParams(BaseModel):
    """What to ask whom, and what to make of the answer."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(max_length=URL_CHARS_MAX, pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://")]
    method: Literal["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH"] = "GET"
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=50)] = {}
    secret_headers: Annotated[
        dict[HeaderName, SecretName],
        Field(
            max_length=10,
            description="Headers whose values are secrets: the name of the worker's secret, which "
            "holds the origin it is for, a space, and the value: "
            "https://api.example.com Bearer abc",
        ),
    ] = {}
    body: Annotated[
        JsonValue, Field(description="A text is sent as it is, anything else as JSON")
    ] = None
    #: For all of it: connecting, sending, waiting, and the body of the answer.
    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 30.0
    expect: Annotated[
        list[Status], Field(max_length=50, description="Statuses of success; else any 2xx")
    ] = []
    idempotency_header: Annotated[
        HeaderName | Literal[""],
        Field(
            description="Sent with POST and PATCH: a key that is the same on every attempt, by "
            "which the API knows that it did this already; empty for an API that knows none"
        ),
    ] = "Idempotency-Key"
    retry_unsafe: Annotated[
        bool, Field(description="Repeat the call even where the API may do it twice")
    ] = False
    save: Annotated[
        Literal["large", "always"],
        Field(description="Which bodies become an output file: over 1 MiB or no text, or every"),
    ] = "large"
    allow_redirects: bool = False

    @model_validator(mode="before")
    @classmethod
    def _without_host(cls, data: Any) -> Any:
        """Read back what was dumped: `host` stands in there."""
        if isinstance(data, dict) and "host" in data:
            return {name: value for name, value in data.items() if name != "host"}
        return data

    @field_validator("url")
    @classmethod
    def _leads_somewhere(cls, url: str) -> str:
        Place.of(url)
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [name.lower() for name in (*self.headers, *self.secret_headers)]
        if self.idempotency_header:
            names.append(self.idempotency_header.lower())
        if ours := _OURS.intersection(names):
            raise ValueError(f"headers: {min(ours)} is not for you to set; leave it out")
        if secret := _SECRET.intersection(name.lower() for name in self.headers):
            raise ValueError(
                f"headers: {min(secret)} is a secret, and params are read by others; "
                "name the worker's secret in secret_headers"
            )
        if len(set(names)) < len(names):
            twice = min(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"headers: {twice} is given twice, in headers, secret_headers or "
                "idempotency_header; leave one out"
            )
        if self.body is not None and self.method in ("GET", "HEAD", "TRACE"):
            raise ValueError(f"body: {self.method} has none; leave it out, or use another method")
        return self

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way
    @property
    def host(self) -> str:
        """Where it goes, in one spelling: the host, and the port if it is an unusual one."""
        return Place.of(self.url).shown

    @property
    def is_keyed(self) -> bool:
        """Whether it carries a key that the API knows it by."""
        return self.method not in _IDEMPOTENT and self.idempotency_header != ""

    @property
    def is_repeatable(self) -> bool:
        """Whether doing it twice does no harm."""
        return self.method in _IDEMPOTENT or self.is_keyed or self.retry_unsafe


class Called(TypedDict):
    """The answer. Its body is in one of `json`, `text` and `file`."""

    status: int
    #: Those that tell about the body and about limits; no cookies.
    headers: dict[str, str]
    json: Any
    text: str | None
    file: str | None
    bytes: int
    elapsed_s: float


@job(
    "http.call",
    queue="io",
    max_attempts=6,
    timeout_s=3900,
    retry=RetryPolicy(base_s=2.0, factor=3.0, max_s=600.0),
    limits=("http:{host}",),
    imports=("jobs.library.http.ready",),
)
async def call_http(ctx: Context, params: HttpParams) -> Called:
    """Call an HTTP API once, within its limits."""
    from jobs.library.http.exchange import Exchange, LostAnswer

    notes = _Notes(ctx, params)
    exchange = await asyncio.to_thread(Exchange.prepare, ctx, params, _key(ctx))
    ctx.progress(None, f"Calling {params.host}")
    await notes.before_sending()
    began = time.monotonic()
    with exchange.room() as room:
        try:
            answer = await exchange.run(room)
        except LostAnswer as lost:
            if lost.is_sent and not params.is_repeatable:
                raise _unknown(params, str(lost)) from lost
            await notes.nothing_done()
            raise Retry(f"{params.method} {params.host}: {lost}") from lost
        except Discard:
            if not exchange.is_sent:
                await notes.nothing_done()
            raise
        elapsed_s = round(time.monotonic() - began, 3)
        ctx.log(f"{params.method} {params.host}: HTTP {answer.status} after {elapsed_s} s")
        if not answer.is_expected:
            await _refused(params, answer, notes)
        return await _called(ctx, params, answer, room, elapsed_s)


async def _refused(params: HttpParams, answer: "Answer", notes: "_Notes") -> NoReturn:
    """Raise what ends an attempt whose answer is no success."""
    told = f"{params.method} {params.host}: HTTP {answer.status}"
    if answer.excerpt:
        told += f": {answer.excerpt}"
    # Behind a redirect it speaks of that one's request; the one before it was taken.
    is_undone = params.is_repeatable or not answer.is_redirected
    after_s = retry_after_s(answer.headers)
    if answer.status in _LATER and after_s is not None and is_undone:
        await notes.put_off(told, min(max(after_s, LATER_MIN_S), LATER_MAX_S))
    # Told of a call with this key that is still at work: one of an earlier attempt.
    is_at_work = answer.status == 409 and params.is_keyed and notes.is_repeat
    if answer.status not in _TRANSIENT and not is_at_work:
        if answer.location:
            told += f"; it leads to {answer.location}: name that, or set allow_redirects"
        await notes.nothing_done()
        raise Discard(told)
    if not params.is_repeatable:
        raise _unknown(params, told)
    raise Retry(told)


def _unknown(params: HttpParams, told: str) -> Discard:
    return Discard(
        f"unknown outcome: {told}. The API may have done it. Look there before you submit it "
        f"again; {params.method} is repeated only with an idempotency_header that the API knows, "
        "or with retry_unsafe"
    )


async def _called(
    ctx: Context, params: HttpParams, answer: "Answer", room: IO[bytes], elapsed_s: float
) -> Called:
    data = text = file = None
    if params.save == "large":
        data, text = answer.content(room)
    if text is None:
        file = await asyncio.to_thread(answer.keep, ctx, room)
    elif data is not None:
        text = None
    return Called(
        status=answer.status,
        headers=answer.telling_headers(),
        json=data,
        text=text,
        file=file,
        bytes=answer.size,
        elapsed_s=elapsed_s,
    )


def _key(ctx: Context) -> str:
    """Return the same key on every attempt; steps of a workflow share the job, not the task."""
    return str(uuid.uuid5(_KEYS, f"{ctx.job_id}:{ctx.task_id}"))


class _Notes:
    """What attempts leave for later ones: whether a call is out, and how long it was put off."""

    def __init__(self, ctx: Context, params: HttpParams) -> None:
        self._ctx, self._params = ctx, params
        self.is_repeat = ctx.attempt > 1
        found = ctx.resumed_from or {}
        self._is_out: bool = found.get("out", False)
        self._put_offs: int = found.get("put_offs", 0)
        self._put_off_s: float = found.get("put_off_s", 0.0)

    async def before_sending(self) -> None:
        """Note durably that a call is about to go out which must not go out twice."""
        if self._params.is_repeatable:
            return
        if self._is_out:
            raise _unknown(
                self._params,
                f"an earlier attempt ended while it waited for the answer of {self._params.host}",
            )
        self._is_out = True
        await self._save()

    async def nothing_done(self) -> None:
        """Note that the API did nothing, so that it may be asked again."""
        if self._is_out:
            self._is_out = False
            await self._save()

    async def put_off(self, told: str, after_s: float) -> NoReturn:
        """Raise what lets the task wait as the API asks."""
        self._is_out = False
        if self._put_off_s >= PUT_OFF_MAX_S or self._put_offs >= PUT_OFFS_MAX:
            await self._save()
            raise Retry(
                f"{told}; it was put off {self._put_offs} times before, for "
                f"{self._put_off_s:g} s in all",
                after_s=after_s,
            )
        self._put_offs += 1
        self._put_off_s += after_s
        await self._save()
        self._ctx.log(f"{told}; it is to be asked again in {after_s:g} s")
        raise Snooze(after_s)

    async def _save(self) -> None:
        noted = {"out": self._is_out, "put_offs": self._put_offs, "put_off_s": self._put_off_s}
        await asyncio.to_thread(self._ctx.checkpoint, noted)
