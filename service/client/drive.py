"""Who takes the steps of `service.client.core`: in a thread, or in an event loop.

Rule: a call is written once. `call` and `stream` make of its steps a method of either client: one
that returns or iterates, or one to be awaited or iterated with `async for`.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import httpx

from service.client.core import Effect, Item, Items, Open, Pause, Read, Send, Steps

__all__ = ["AsyncDriver", "SyncDriver", "call", "stream"]

P = ParamSpec("P")
T = TypeVar("T")


class SyncDriver:
    """Takes steps in the thread that calls."""

    _http: httpx.Client

    def _run(self, steps: Steps[T]) -> T:
        [result] = self._iterate(_as_item(steps))
        return result

    def _iterate(self, steps: Items[T]) -> Iterator[T]:
        with _Doing(self._http) as doing:
            try:
                effect = next(steps)
                while True:
                    done: Any = None
                    try:
                        if isinstance(effect, Item):
                            yield effect.value
                        else:
                            done = doing(effect)
                    except httpx.TransportError as error:
                        effect = steps.throw(error)
                    else:
                        effect = steps.send(done)
            except StopIteration:
                return
            finally:
                steps.close()


class AsyncDriver:
    """Takes steps in the event loop that awaits."""

    _http: httpx.AsyncClient

    async def _run(self, steps: Steps[T]) -> T:
        [result] = [one async for one in self._iterate(_as_item(steps))]
        return result

    async def _iterate(self, steps: Items[T]) -> AsyncIterator[T]:
        async with _DoingAsync(self._http) as doing:
            try:
                effect = next(steps)
                while True:
                    done: Any = None
                    try:
                        if isinstance(effect, Item):
                            yield effect.value
                        else:
                            done = await doing(effect)
                    except httpx.TransportError as error:
                        effect = steps.throw(error)
                    else:
                        effect = steps.send(done)
            except StopIteration:
                return
            finally:
                steps.close()


def _as_item(steps: Steps[T]) -> Items[T]:
    yield Item((yield from steps))


class _Doing:
    """Does what one call asks for, and closes the stream it opened last."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._blocks: Iterator[bytes] = iter(())
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Doing":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, effect: Effect) -> Any:
        match effect:
            case Send(method, path, content, more):
                body = content() if callable(content) else content
                return self._http.request(method, path, content=body, **more)
            case Open(path, more):
                self._open.close()
                answer = self._http.send(self._http.build_request("GET", path, **more), stream=True)
                self._open.callback(answer.close)
                if not answer.is_success:
                    answer.read()
                self._blocks = answer.iter_bytes()
                return answer
            case Read():
                return next(self._blocks, None)
            case Pause(seconds):
                return time.sleep(seconds)


class _DoingAsync:
    """The same, in an event loop."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._blocks: AsyncIterator[bytes]
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "_DoingAsync":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def __call__(self, effect: Effect) -> Any:
        match effect:
            case Send(method, path, content, more):
                body = _blocks(content()) if callable(content) else content
                return await self._http.request(method, path, content=body, **more)
            case Open(path, more):
                await self._open.aclose()
                answer = await self._http.send(
                    self._http.build_request("GET", path, **more), stream=True
                )
                self._open.push_async_callback(answer.aclose)
                if not answer.is_success:
                    await answer.aread()
                self._blocks = answer.aiter_bytes()
                return answer
            case Read():
                return await anext(self._blocks, None)
            case Pause(seconds):
                return await asyncio.sleep(seconds)


async def _blocks(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    # They come from a file, which the loop must not wait for.
    while block := await asyncio.to_thread(next, blocks, b""):
        yield block


class call(Generic[P, T]):  # noqa: N801 - a decorator
    """Make of steps that return something a method of both clients."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: None, kind: type) -> Callable[Concatenate[Any, P], Steps[T]]: ...
    @overload
    def __get__(self, client: SyncDriver, kind: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncDriver, kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, kind: type) -> Any:
        if client is None:
            return self._steps
        return _bound(self._steps, client, client._run)


class stream(Generic[P, T]):  # noqa: N801 - a decorator
    """Make of steps that hand over items a method of both clients, which iterates them."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Items[T]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: None, kind: type) -> Callable[Concatenate[Any, P], Items[T]]: ...
    @overload
    def __get__(self, client: SyncDriver, kind: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, client: AsyncDriver, kind: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, client: Any, kind: type) -> Any:
        if client is None:
            return self._steps
        return _bound(self._steps, client, client._iterate)


def _bound(steps: Callable[..., Any], client: Any, drive: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(steps)
    def bound(*args: Any, **named: Any) -> Any:
        return drive(steps(client, *args, **named))

    return bound
