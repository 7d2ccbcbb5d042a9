"""What both clients do, without doing it: steps that ask for what is to be done.

A call is a generator. It yields a `Send`, an `Open`, a `Read` or a `Pause`, and is given what came
of it; `Item` hands something to whoever iterates. Rule 1: nothing here sends or sleeps; who drives
the steps does (`service.client.drive`). Rule 2: a call that failed on the way is repeated only when
repeating it changes nothing.
"""

import contextlib
import json
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from jobs.errors import InvalidInput

__all__ = [
    "SPREAD",
    "ApiError",
    "Core",
    "Effect",
    "Item",
    "Items",
    "Open",
    "Pause",
    "Read",
    "Send",
    "Steps",
    "Tries",
    "Unreachable",
    "is_later",
    "json_body",
    "keys",
    "refusal",
    "retry_after_s",
    "wait_s",
]

T = TypeVar("T")

#: Of an answer that says "later": too many requests, or nothing there to take it.
LATER = frozenset({429, 502, 503, 504})
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 3.0
#: Whoever is told to wait waits up to this part longer, so that not all come back at once.
SPREAD = 0.5


class ApiError(Exception):
    """The API refused; `problem` is its problem details (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(status, problem)
        self.status, self.problem = status, problem

    @property
    def kind(self) -> str:
        """The stable name of the problem: `not-found`, `invalid-input`, ..."""
        return str(self.problem.get("type", "")).rpartition("/")[2]

    def __str__(self) -> str:
        errors = self.problem.get("errors")
        if errors:
            return "; ".join(f"{e['field']}: {e['reason']}" for e in errors)
        return self.problem.get("detail") or self.problem.get("title") or f"HTTP {self.status}"


class Unreachable(Exception):
    """The API did not answer, or said "later" until patience ended."""


# --- what steps ask for -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; answered with the response, read whole. TransportError comes back."""

    method: str
    path: str
    #: The body; what makes one anew for each try, where it is an iterator.
    content: bytes | Callable[[], Iterator[bytes]] | None = None
    #: What else httpx takes: `params`, `headers`.
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Open:
    """Begin to GET; answered with the response, of which only a refusal is read.

    It stands for what `Read` reads; the one before it is closed.
    """

    path: str
    more: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Read:
    """Answered with the next bytes, or None at the end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """Hand this over before going on."""

    value: T


Effect = Send | Open | Read | Pause
#: Steps that return something, and those that hand over many.
Steps = Generator[Effect, Any, T]
Items = Generator[Effect | Item[T], Any, None]


class Core:
    """What every call needs: where to, how patiently, and how to repeat it."""

    url: str
    patience_s: float

    def _json(self, method: str, path: str, **request: Any) -> Steps[Any]:
        answer = yield from self._call(method, path, **request)
        return answer.json()

    def _part(self, part: str, method: str, path: str, **request: Any) -> Steps[Any]:
        answer = yield from self._json(method, path, **request)
        return answer[part]

    def _pages(self, path: str, filters: Mapping[str, Any], items: str, at_once: int) -> Items[Any]:
        query = {name: value for name, value in filters.items() if value is not None}
        left = query.pop("limit", None)
        while left is None or left > 0:
            asked = query | {"limit": min(left or at_once, at_once)}
            page = yield from self._json("GET", path, params=asked)
            for one in page[items][:left]:
                yield Item(one)
            left = None if left is None else left - len(page[items])
            if page["next_after"] is None:
                return
            query["after"] = page["next_after"]

    def _call(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool | None = None,
        content: bytes | Callable[[], Iterator[bytes]] | None = None,
        tries: "Tries | None" = None,
        **request: Any,
    ) -> Steps[httpx.Response]:
        """Send a request until it is answered for good. Raises ApiError or Unreachable."""
        repeatable = method in ("GET", "PUT") if repeatable is None else repeatable
        tries = tries or Tries(self.patience_s)
        if (value := request.pop("json", None)) is not None:
            content = json_body(value)
            request["headers"] = {"Content-Type": "application/json"} | request.get("headers", {})
        for last in tries:
            asked_s: float | None = None
            try:
                answer: httpx.Response = yield Send(method, path, content, request)
            except httpx.TransportError as error:
                # Refused before it was sent, it can be sent again whatever it is.
                if last or not (repeatable or isinstance(error, httpx.ConnectError)):
                    raise self.unreachable(error) from error
            else:
                if answer.is_success:
                    return answer
                if last or not is_later(answer, repeatable):
                    raise refusal(answer)
                asked_s = retry_after_s(answer)
            yield tries.pause(asked_s)
        raise AssertionError("the last try returns or raises")

    def unreachable(self, error: httpx.TransportError) -> Unreachable:
        """Return what is said when patience ended."""
        return Unreachable(f"{self.url} does not answer: {error}")


def json_body(value: Any) -> bytes:
    """Return the value as JSON. Raises InvalidInput where it cannot be written as such."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        reason = "NaN and infinity are no JSON; leave them out, or send null or a text"
    except (TypeError, RecursionError) as error:
        reason = f"cannot be written as JSON: {error}"
    raise InvalidInput("body", reason)


class Tries:
    """Tries of one call, with jitter between them, until patience ends."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.renew()

    def renew(self) -> None:
        """Have patience anew, and begin with short waits."""
        self._backoff_s = BACKOFF_FIRST_S
        self.extend()

    def extend(self) -> None:
        """Have patience anew."""
        self._deadline = time.monotonic() + self._patience_s

    def __iter__(self) -> Iterator[bool]:
        """Yield whether this try is the last, unless patience is renewed by it."""
        while True:
            yield time.monotonic() >= self._deadline

    def pause(self, asked_s: float | None = None) -> Pause:
        """Return the wait before the next try: what the server asked, and up to `SPREAD` longer."""
        seconds = random.uniform(0, self._backoff_s)
        self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2)
        if asked_s is not None and asked_s > 0:
            seconds = asked_s * random.uniform(1, 1 + SPREAD)
        return Pause(min(seconds, max(0.0, self._deadline - time.monotonic())))


# --- reading answers --------------------------------------------------------------------------


def keys(given: str | None) -> dict[str, str]:
    """Return the header that makes repeating a submission safe. Raises InvalidInput."""
    if given is not None:
        if not (given.isascii() and given.isprintable()):
            raise InvalidInput("key", "it travels in a header: use ASCII that prints")
        escaped = given.replace("\\", r"\\").replace('"', r"\"")
        return {"Idempotency-Key": f'"{escaped}"'}
    # Not Idempotency-Key: that would override a job type's own `unique_for_s`.
    return {"Drayman-Request-Id": uuid.uuid4().hex}


def is_later(answer: httpx.Response, repeatable: bool) -> bool:
    """Return whether to try again: the API says so, or an edge before it failed."""
    if answer.status_code == 429:
        return True  # refused before anything was done
    if not repeatable:
        return False
    is_ours = answer.headers.get("content-type", "").startswith("application/problem+json")
    return answer.status_code in LATER or (answer.status_code == 500 and not is_ours)


def wait_s(answer: Mapping[str, Any]) -> float | None:
    """Return how long to wait before a line of a batch is sent again; None if it is not to be."""
    problem = answer.get("problem")
    if problem is None or problem["status"] not in LATER:
        return None
    return max(1.0, float(problem.get("retry_after_s", 0.0)))


def retry_after_s(answer: httpx.Response) -> float | None:
    """Return how long the server asks to wait."""
    with contextlib.suppress(ValueError):  # a date: the backoff will do
        return max(0.0, float(answer.headers.get("retry-after", "")))
    return None


def refusal(answer: httpx.Response) -> Exception:
    """Return the error that an answer is."""
    with contextlib.suppress(ValueError):
        problem = answer.json()
        if isinstance(problem, dict):
            return ApiError(answer.status_code, problem)
    if answer.status_code >= 500:
        return Unreachable(f"{answer.url} answered HTTP {answer.status_code} without a reason")
    return ApiError(answer.status_code, {"title": f"HTTP {answer.status_code}"})
