"""One POST to an address that somebody named, and its answer.

Rule 1: it goes to public addresses only, and to those that the operator opened, as `http.call`
does; no redirect is followed. Rule 2: it ends: a receiver that says nothing costs `TIMEOUT_S`, one
that says too much is cut off.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from jobs.library.http.addresses import Allowed
from jobs.library.http.body import ACCEPT_ENCODING, BadBody, blocks
from jobs.library.http.later import retry_after_s
from jobs.library.http.transport import GuardedTransport, RefusedAddress
from jobs.outcome import Discard, Retry

__all__ = ["Answer", "post"]

#: For all of it; Standard Webhooks proposes 15 to 30 s.
TIMEOUT_S, CONNECT_S = 20.0, 10.0
#: Of the body of a refusal, this much is told, if it comes soon; of no other is any read.
EXCERPT_BYTES, EXCERPT_CHARS, EXCERPT_S = 4096, 300, 1.0
#: Answers that may say when to come again, and the bounds of what they say.
_LATER = frozenset({429, 502, 503, 504})
LATER_MIN_S, LATER_MAX_S = 1.0, 86_400.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    #: The beginning of a refusal's body, on one line.
    excerpt: str
    #: When it wants to be asked again, if it says so.
    later_s: float | None

    @property
    def is_ok(self) -> bool:
        """Whether it was taken."""
        return 200 <= self.status < 300

    @property
    def told(self) -> str:
        """It in words."""
        return f"HTTP {self.status}" + (f": {self.excerpt}" if self.excerpt else "")


async def post(url: str, headers: Mapping[str, str], content: bytes) -> Answer:
    """Send it and return the answer, whatever its status.

    Raises Discard where it may not go, and Retry where no answer comes.
    """
    host = httpx.URL(url).host
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(
                transport=GuardedTransport(Allowed.here()),
                trust_env=False,
                timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
            ) as client,
            client.stream(
                "POST",
                url,
                headers={
                    "User-Agent": "drayman",
                    "Accept-Encoding": ACCEPT_ENCODING,
                    "Connection": "close",
                    **headers,
                },
                content=content,
                follow_redirects=False,
            ) as response,
        ):
            return await _answer(response)
    except TimeoutError:
        raise Retry(f"{host} gave no answer within {TIMEOUT_S:g} s") from None
    except (RefusedAddress, httpx.InvalidURL) as error:
        raise Discard(f"url: {error}") from error
    except httpx.TransportError as error:
        told = f"{type(error).__name__}: {error}".rstrip(": ")
        raise Retry(f"{host} cannot be reached, or its answer was lost ({told})") from error


async def _answer(response: httpx.Response) -> Answer:
    if response.is_success:
        return Answer(response.status_code, "", None)
    found = b""
    try:
        async with asyncio.timeout(EXCERPT_S):
            async for block in blocks(response):
                found += block
                if len(found) >= EXCERPT_BYTES:
                    break
    except (BadBody, TimeoutError, httpx.TransportError):
        pass  # The status says what became of it; this only adds to it.
    text = " ".join(found[:EXCERPT_BYTES].decode(errors="replace").split())
    later_s = retry_after_s(response.headers) if response.status_code in _LATER else None
    if later_s is not None:
        later_s = min(max(later_s, LATER_MIN_S), LATER_MAX_S)
    return Answer(response.status_code, text[:EXCERPT_CHARS], later_s)
