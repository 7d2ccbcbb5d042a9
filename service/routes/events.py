"""What happens, as it happens: server-sent events, and the same over a WebSocket.

Rule 1: an `id:` is the number of a journalled event, so any replica goes on where another stopped;
what has no number (progress) has no id. Rule 2: a stream is an answer like any other until its
first byte: what is wrong is said with a problem. While the manager is away it begins nevertheless,
as a browser does not come again after an error. Rule 3: a client that takes nothing is let go, and
one whose token was revoked meanwhile is told nothing more.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import Field
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Message as Sent
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from cluster.feed import Filter, Message, Told
from cluster.follow import Begin, Watcher
from cluster.views import JobStatus
from jobs.errors import DraymanError, InvalidInput, Unavailable
from service.api import Api, job_id_of
from service.auth import Authenticator, Caller, credentials
from service.bodies import ClientGone
from service.openapi import answers
from service.parameters import AnyTenant, Parameters
from service.problems import RequestError, Unauthorized, problem_response
from service.routes.jobs import label_of, tenant_for
from service.sending import SAFE
from service.showing import encode, job_of

__all__ = ["router"]

log = structlog.get_logger(__name__)

#: How long a stream waits for its first event before it begins with nothing.
BEGIN_S = 2.0
#: Comments go out so often that no proxy between takes the stream for dead.
KEEP_ALIVE_S = 15.0
#: How soon a browser comes again, and how long a write may wait for its reader.
RETRY_MS = 1_000
WRITE_S = 30.0
HEADERS = SAFE | {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    # nginx and others would gather what is sent.
    "X-Accel-Buffering": "no",
}
_HELLO = b"retry: %d\n\n" % RETRY_MS
_KEEP_ALIVE = b":\n\n"
_NUMBER = re.compile(r"[0-9]{1,18}")
#: How a WebSocket is closed: it is over; the token was revoked; try again.
OVER, REVOKED, AGAIN = 1000, 1008, 1013

LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="Go on after this event; browsers send it."),
]
LastEventIdToo = Annotated[
    str | None, Field(description="The same, where headers can't be set.", max_length=64)
]


class JobEvents(Parameters):
    """Query parameters of `GET /v1/jobs/{job_id}/events`."""

    tasks: Annotated[bool, Field(description="Tell of single chunks, too.")] = False
    last_event_id: LastEventIdToo = None


class EventFilter(AnyTenant):
    """Query parameters of `GET /v1/events`."""

    type: Annotated[str | None, Field(description="Of jobs.")] = None
    queue: str | None = None
    status: Annotated[JobStatus | None, Field(description="That the event leaves it in.")] = None
    label: Annotated[str | None, Field(description="`name=value`.")] = None
    last_event_id: LastEventIdToo = None


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["events"], default_response_class=Response)

    async def reading(request: Request) -> _Right:
        return await _right(api, request, request.method)

    reader = Annotated[_Right, Depends(reading)]
    seen = ("unauthorized", "forbidden", "invalid-input", "overloaded", "unavailable")
    stream = answers(
        200, None, *seen, description="Events, until it is over.", media_type="text/event-stream"
    )

    @routes.get(
        "/v1/jobs/{job_id}/events",
        responses=answers(
            200,
            None,
            *seen,
            "not-found",
            description="Events of the job, until its last.",
            media_type="text/event-stream",
        )
        | {204: {"description": "It is over, and the client has every event."}},
    )
    async def job_events(
        right: reader,
        job_id: str,
        query: Annotated[JobEvents, Query()],
        header: LastEventId = None,
    ) -> Response:
        """Follow a job: its state first, then each change, as server-sent events."""
        after = _after(header or query.last_event_id)
        watcher = api.follower.job(job_id_of(job_id), right.caller.sees, after, chunks=query.tasks)
        return await _answer(watcher, right)

    @routes.get("/v1/events", responses=stream)
    async def all_events(
        right: reader,
        query: Annotated[EventFilter, Query()],
        header: LastEventId = None,
    ) -> Response:
        """Follow what happens to jobs, as server-sent events."""
        wanted = Filter(
            tenant_for(right.caller, query.tenant),
            query.type,
            query.queue,
            query.status,
            label_of(query.label),
        )
        after = _after(header or query.last_event_id)
        return await _answer(api.follower.all(wanted, after), right)

    @routes.websocket("/v1/jobs/{job_id}/watch")
    async def watch_job(
        websocket: WebSocket, job_id: str, tasks: bool = False, last_event_id: str | None = None
    ) -> None:
        """Follow a job over a WebSocket: the same messages, one a frame."""
        try:
            # As if it changed something: a WebSocket is not bound by a page's origin.
            right = await _right(api, websocket, "CONNECT")
            after = _after(last_event_id)
            watcher = api.follower.job(job_id_of(job_id), right.caller.sees, after, chunks=tasks)
            await _begun(watcher)
        except (DraymanError, RequestError) as error:
            await websocket.send_denial_response(problem_response(error))
            return
        await _over_websocket(websocket, watcher, right)

    return routes


@dataclass(frozen=True, slots=True)
class _Right:
    """Who watches, and by which token: it may be revoked while the stream goes on."""

    authenticator: Authenticator
    sent: bytes | None
    caller: Caller

    async def is_left(self) -> bool:
        """Whether the token still stands for the same; what can't be known changes nothing."""
        try:
            return await self.authenticator.identify(self.sent) == self.caller
        except Unauthorized:
            return False
        except Unavailable:
            return True


async def _right(api: Api, connection: HTTPConnection, method: str) -> _Right:
    """Return the caller's right to read. Raises Unauthorized, Forbidden or Unavailable."""
    sent = credentials(dict(connection.scope["headers"]), method)
    caller = await api.authenticator.identify(sent)
    caller.need("read")
    return _Right(api.authenticator, sent, caller)


def _after(text: str | None) -> int | None:
    if text is None or text == "":
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidInput("Last-Event-ID", "is the id of no event; begin again without it")
    return int(text)


async def _begun(watcher: Watcher) -> None:
    try:
        await watcher.begun(BEGIN_S)
    except BaseException:
        watcher.close()
        raise


async def _answer(watcher: Watcher, right: _Right) -> Response:
    await _begun(watcher)
    if watcher.is_over and not watcher.has_news:
        watcher.close()
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    return _EventStream(watcher, right)


# --- as server-sent events --------------------------------------------------------------------


class _EventStream(Response):
    """Sends what a watcher gets, until it is over or its client is gone."""

    def __init__(self, watcher: Watcher, right: _Right) -> None:
        # Not the base's: that would say how long it is.
        self._watcher, self._right = watcher, right
        self.status_code, self.background = 200, None
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        watcher = self._watcher
        gone = asyncio.ensure_future(_gone(receive))
        gone.add_done_callback(lambda _: watcher.end())
        try:
            start = {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
            await _sent(send, start)
            await _sent(send, _body(_HELLO))
            async for items in _batches(watcher, self._right):
                if gone.done():
                    return
                await _sent(send, _body(_frames(items)))
            await _sent(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError as error:
            log.info("watcher_dropped", job=watcher.job_id, next="it may come again")
            raise ClientGone from error
        finally:
            watcher.close()
            gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _batches(watcher: Watcher, right: _Right) -> Any:
    """Yield what comes while there is a right to it, and [] where a sign of life is due."""
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                items = await watcher.next()
            if not items:
                return
        except TimeoutError:
            items = []
        if not await right.is_left():
            return
        yield items


async def _sent(send: Callable[[Sent], Awaitable[None]], message: Sent) -> None:
    # A client that reads nothing would hold the connection, and what is in its buffers, for ever.
    async with asyncio.timeout(WRITE_S):
        await send(message)


def _body(data: bytes) -> Sent:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _frames(items: Sequence[Begin | Message | Told]) -> bytes:
    return b"".join(map(_frame, items)) or _KEEP_ALIVE


def _frame(item: Begin | Message | Told) -> bytes:
    if isinstance(item, Message):
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (item.seq, item.type.encode(), item.data)
    if isinstance(item, Begin):
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (item.seq, item.kind.encode(), _data(item))
    return b"event: progress\ndata: %b\n\n" % item.data


def _data(item: Begin | Message | Told) -> bytes:
    """Return a message as one line of JSON."""
    if not isinstance(item, Begin):
        return bytes(item.data)
    data: dict[str, Any] = {"type": item.kind, "seq": item.seq}
    if item.view is not None:
        job = msgspec.Raw(encode(job_of(item.view)))
        data |= {"job_id": item.view.id, "status": item.view.status, "job": job}
    # A result is the handler's own JSON, as it wrote it: it may have line breaks.
    return encode(data).replace(b"\r", b" ").replace(b"\n", b" ")


# --- over a WebSocket -------------------------------------------------------------------------


async def _over_websocket(websocket: WebSocket, watcher: Watcher, right: _Right) -> None:
    gone = asyncio.ensure_future(_hung_up(websocket))
    gone.add_done_callback(lambda _: watcher.end())
    try:
        async with asyncio.timeout(WRITE_S):
            await websocket.accept()
        async for items in _batches(watcher, right):
            for item in items:
                if gone.done():
                    return
                async with asyncio.timeout(WRITE_S):
                    await websocket.send_text(_data(item).decode())
        if not gone.done():
            await websocket.close(await _code(watcher, right))
    except WebSocketDisconnect:
        pass  # it hung up while something was sent
    except TimeoutError:
        log.info("watcher_dropped", job=watcher.job_id, next="it may come again")
    finally:
        watcher.close()
        gone.cancel()


async def _code(watcher: Watcher, right: _Right) -> int:
    if not await right.is_left():
        return REVOKED
    return AGAIN if watcher.is_behind else OVER


async def _hung_up(websocket: WebSocket) -> None:
    # What a client says is of no interest; that it is gone is.
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
