"""Clients for the HTTP API, for web applications, scripts and Ray jobs: `docs/client.md`.

    with Client() as drayman:
        job = drayman.submit("report.annual", {"year": 2013}, key=key_for(user, "report", 3600))
        job = drayman.wait(job["id"])

Rule 1: they answer in the API's own JSON (`docs/http.md`), as plain dicts. Rule 2: a call that
failed on the way is repeated only when repeating it changes nothing: every submission carries a
key, given or made here. Rule 3: they import neither Ray nor anything of the server.

To be read in this order: `core` (how a call is made and repeated), `drive` (in a thread, or in an
event loop), `events`, `jobs`, `operate`, `types`.
"""

import hashlib
import json
import time
from types import TracebackType
from typing import Any, Self

import httpx

from service.client.core import ApiError, Unreachable
from service.client.drive import AsyncDriver, SyncDriver
from service.client.jobs import JobCalls
from service.client.operate import OperatorCalls
from service.client.types import Event, File, Job, Json
from service.target import NoTarget, Target, find_target

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Event",
    "File",
    "Job",
    "Json",
    "NoTarget",
    "Unreachable",
    "key_for",
]


class Client(SyncDriver, JobCalls, OperatorCalls):
    """Talks to one Drayman. Use as a context manager, or call `close`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = 30.0,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Find the Drayman (see `service.target`); raises NoTarget if there is none to be found.

        `patience_s`: how long to repeat a call that may be repeated.
        """
        target = find_target(url, token)
        self.url, self.patience_s = target.url, patience_s
        self._http = httpx.Client(**_how(target, timeout_s), transport=transport)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(AsyncDriver, JobCalls, OperatorCalls):
    """The same for an event loop: await what `Client` returns, `async for` what it iterates.

    Use as an asynchronous context manager, or await `aclose`.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = 30.0,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Find the Drayman, as `Client` does."""
        target = find_target(url, token)
        self.url, self.patience_s = target.url, patience_s
        self._http = httpx.AsyncClient(**_how(target, timeout_s), transport=transport)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def key_for(user: str, action: str, window_s: float, *, now: float | None = None) -> str:
    """Return an idempotency key that is the same for this user and action within a window.

    Windows are fixed slices of time: two clicks either side of a boundary are two jobs. A job type
    with `unique_for_s` has no such boundary.
    """
    slice_number = int((time.time() if now is None else now) // window_s)
    text = json.dumps([user, action, window_s, slice_number])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _how(target: Target, timeout_s: float) -> dict[str, Any]:
    return {
        "base_url": target.url,
        "headers": {"Authorization": f"Bearer {target.token}", "User-Agent": "drayman"},
        "timeout": timeout_s,
        # A proxy from the environment must not see tokens meant for this machine.
        "trust_env": httpx.URL(target.url).host not in ("127.0.0.1", "localhost", "::1"),
    }
