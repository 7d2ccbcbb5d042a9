"""One request and its answer, redirects included.

Rule 1: whoever asks learns whether anything of the request was sent before it failed. Rule 2: a
secret goes to the origin it was given for and nowhere else, and stands in nothing that is told.
Rule 3: the answer is read as it streams, into room that is on disk from 1 MiB on.
"""

import asyncio
import json
import mimetypes
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self

import httpx
import msgspec

from jobs.context import Context
from jobs.library.http.addresses import Allowed
from jobs.library.http.body import ACCEPT_ENCODING, BadBody, blocks, text_of
from jobs.library.http.place import Place
from jobs.library.http.transport import GuardedTransport, RefusedAddress
from jobs.outcome import Discard
from jobs.redact import redact, redact_json
from jobs.result import encode_result

if TYPE_CHECKING:
    from jobs.library.http_call import HttpParams

__all__ = ["Answer", "Exchange", "LostAnswer"]

CONNECT_S = 10.0
REDIRECTS_MAX = 5
#: A larger body becomes a file; a still larger one is refused.
INLINE_BYTES_MAX = 1 << 20
BODY_BYTES_MAX = 100 << 20
#: Of the body of a refusal, this much is told, if it comes soon.
EXCERPT_BYTES, EXCERPT_CHARS, EXCERPT_S = 4096, 500, 1.0
HEADER_CHARS_MAX = 1000
#: Headers that the result tells, and beginnings of such.
_TELLING = {
    *("content-type", "content-language", "content-disposition", "date", "etag", "last-modified"),
    *("link", "location", "request-id", "retry-after", "x-request-id"),
}
_TELLING_BEGIN = ("ratelimit", "x-ratelimit")


class LostAnswer(Exception):
    """No answer, or not all of it."""

    def __init__(self, reason: str, is_sent: bool) -> None:
        super().__init__(reason, is_sent)
        self.reason, self.is_sent = reason, is_sent

    def __str__(self) -> str:
        return self.reason


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: httpx.Headers
    is_expected: bool
    #: Whether it answers another request than the first.
    is_redirected: bool
    #: Masks the secrets that were sent, should the API repeat them.
    _mask: Callable[[str], str]
    _secrets: list[str]
    #: Of the body in the room; of a refusal there is only `excerpt`.
    size: int = 0
    excerpt: str = ""

    @property
    def location(self) -> str:
        """Where a redirect that was not followed leads."""
        where = self.headers.get("location", "") if 300 <= self.status < 400 else ""
        return self._mask(where)[:EXCERPT_CHARS]

    def telling_headers(self) -> dict[str, str]:
        """Return the headers that a result tells."""
        return {
            name: self._mask(value)[:HEADER_CHARS_MAX]
            for name, value in self.headers.items()
            if name in _TELLING or name.startswith(_TELLING_BEGIN)
        }

    def content(self, room: IO[bytes]) -> tuple[Any, str | None]:
        """Return the body as JSON if it is that, and as text; the text is None if it is none."""
        if self.size > INLINE_BYTES_MAX:
            return None, None
        room.seek(0)
        body = room.read()
        kind, _, parameters = self.headers.get("content-type", "").lower().partition(";")
        _, _, charset = parameters.partition("charset=")
        text = text_of(body, charset.partition(";")[0].strip(" \"'"))
        if text is None:
            return None, None
        kind = kind.strip()
        if kind == "application/json" or kind.endswith("+json"):
            try:
                data = msgspec.json.decode(redact_json(text.encode(), self._secrets))
                encode_result(data)
                return data, text
            except (msgspec.MsgspecError, RecursionError, TypeError):
                pass  # Not JSON, whatever it says, or more than a result can be: a text, then.
        return None, self._mask(text)

    def keep(self, ctx: Context, room: IO[bytes]) -> str:
        """Keep the body as an output file, as it came; return its URI. Blocks."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        name = "body" + (mimetypes.guess_extension(kind) or ".bin")
        room.seek(0)
        with ctx.files.open_output(name) as output:
            shutil.copyfileobj(room, output, 1 << 20)
        return ctx.files.uri(name)


@dataclass
class Exchange:
    """A call that is ready to go."""

    params: "HttpParams"
    origin: Place
    headers: httpx.Headers
    #: Those of `headers` that are for `origin` only.
    private: list[str]
    content: bytes | None
    secrets: list[str]
    allowed: Allowed
    scratch: str
    is_sent: bool = field(default=False, init=False)

    @classmethod
    def prepare(cls, ctx: Context, params: "HttpParams", key: str) -> Self:
        """Gather what is needed. Blocks. Raises Discard, and InvalidInput for a missing secret."""
        origin = Place.of(params.url)
        private: dict[str, str] = {}
        secrets: list[str] = []
        for header, name in params.secret_headers.items():
            private[header] = value = _value(ctx.secret(name), name, origin)
            # An API that repeats a token does so without the word before it.
            secrets += [value, value.rpartition(" ")[2]]
        headers = httpx.Headers({"User-Agent": "drayman"})
        if ctx.traceparent is not None:
            headers["traceparent"] = ctx.traceparent
        headers.update(params.headers)
        content = None
        if isinstance(params.body, str):
            content = params.body.encode()
        elif params.body is not None:
            content = json.dumps(params.body, ensure_ascii=False, separators=(",", ":")).encode()
            headers.setdefault("Content-Type", "application/json")
        if params.is_keyed:
            headers[params.idempotency_header] = key
        headers.update({"Accept-Encoding": ACCEPT_ENCODING, "Connection": "close"})
        headers.update(private)
        scratch = str(ctx.files.workdir)
        return cls(
            params, origin, headers, list(private), content, secrets, Allowed.here(), scratch
        )

    def room(self) -> IO[bytes]:
        """Return room for the answer's body."""
        return tempfile.SpooledTemporaryFile(INLINE_BYTES_MAX, dir=self.scratch)

    async def run(self, room: IO[bytes]) -> Answer:
        """Call, and read the answer into the room. Raises LostAnswer and Discard."""
        try:
            async with asyncio.timeout(self.params.timeout_s):
                return await self._run(room)
        except TimeoutError:
            reason = f"no full answer within {self.params.timeout_s:g} s (timeout_s)"
            raise LostAnswer(reason, self.is_sent) from None
        except (RefusedAddress, httpx.InvalidURL) as error:
            raise Discard(f"url: {error}") from error
        except httpx.TransportError as error:
            told = self._mask(f"{type(error).__name__}: {error}".rstrip(": "))
            what = "the answer was lost" if self.is_sent else "it cannot be reached"
            raise LostAnswer(f"{what} ({told})", self.is_sent) from error

    async def _run(self, room: IO[bytes]) -> Answer:
        limits = httpx.Timeout(self.params.timeout_s, connect=CONNECT_S)
        async with httpx.AsyncClient(
            transport=GuardedTransport(self.allowed), trust_env=False, timeout=limits
        ) as client:
            request: httpx.Request | None = client.build_request(
                self.params.method,
                self.params.url,
                headers=self.headers,
                content=self.content,
                extensions={"trace": self._trace},
            )
            for hop in range(1 + REDIRECTS_MAX):
                assert request is not None
                response = await client.send(request, stream=True)
                try:
                    request = self._next(request, response)
                    if request is None:
                        return await self._answer(response, room, hop > 0)
                finally:
                    await response.aclose()
        raise Discard(f"url: over {REDIRECTS_MAX} redirects; name where they lead to")

    async def _trace(self, event: str, info: dict[str, Any]) -> None:
        # Never unset: what a redirect follows has been done.
        if event.endswith("send_request_headers.started"):
            self.is_sent = True

    def _next(self, request: httpx.Request, response: httpx.Response) -> httpx.Request | None:
        """Return the request that a redirect asks for, if it is to be followed."""
        following = response.next_request
        if not self.params.allow_redirects or following is None:
            return None
        if self._is_expected(response.status_code) and self.params.expect:
            return None
        try:
            place = Place.of(str(following.url))
        except ValueError as error:
            raise Discard(f"url: it redirects to where no call can go: {error}") from None
        if (request.url.scheme, place.scheme) == ("https", "http"):
            raise Discard("url: it redirects from https to http; name where it leads to")
        if place != self.origin:
            for header in self.private:
                following.headers.pop(header, None)
        return following

    async def _answer(
        self, response: httpx.Response, room: IO[bytes], is_redirected: bool
    ) -> Answer:
        status = response.status_code
        answer = Answer(
            status,
            response.headers,
            self._is_expected(status),
            is_redirected,
            self._mask,
            self.secrets,
        )
        if not answer.is_expected:
            answer.excerpt = await self._excerpt(response)
            return answer
        try:
            async for block in blocks(response):
                answer.size += len(block)
                if answer.size > BODY_BYTES_MAX:
                    raise BadBody(f"it is over {BODY_BYTES_MAX >> 20} MiB")
                room.write(block)
        except BadBody as error:
            raise Discard(
                f"HTTP {status}, but its body cannot be taken: {error}; the API has done it"
            ) from error
        return answer

    async def _excerpt(self, response: httpx.Response) -> str:
        found = b""
        try:
            async with asyncio.timeout(EXCERPT_S):
                async for block in blocks(response):
                    found += block
                    if len(found) >= EXCERPT_BYTES:
                        break
        except (BadBody, TimeoutError, httpx.TransportError):
            pass  # The status says what happened; this only adds to it.
        text = " ".join(found[:EXCERPT_BYTES].decode(errors="replace").split())
        return self._mask(text)[:EXCERPT_CHARS]

    def _is_expected(self, status: int) -> bool:
        return status in self.params.expect if self.params.expect else 200 <= status < 300

    def _mask(self, text: str) -> str:
        return redact(text, self.secrets)


def _value(secret: str, name: str, origin: Place) -> str:
    """Return the header's value that the secret holds. Raises Discard if it is for another."""
    given, _, value = secret.strip().partition(" ")
    value = value.strip()
    try:
        if given.rstrip("/").count("/") != 2 or not (value.isascii() and value.isprintable()):
            raise ValueError
        place = Place.of(given)
    except ValueError:
        place = None
    if place is None or not value:
        raise Discard(
            f"secret {name!r} is no usable one; write it as the origin it is for, a space, and "
            "the header's value: https://api.example.com Bearer abc"
        )
    if place != origin:
        raise Discard(f"secret_headers: the secret {name!r} is not for the url's origin")
    return value
