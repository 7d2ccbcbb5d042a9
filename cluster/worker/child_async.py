"""Many attempts at once in one child: `async def` handlers on a loop, plain ones on threads.

Rule 1: a stop cancels the attempt's asyncio task; a plain handler sees it in its next context call.
Rule 2: what an attempt prints goes to a file of its own, found by a context variable that follows
it through tasks, `asyncio.to_thread` and its handler thread. Rule 3: the loop stamps the board
while it turns, so the worker can tell that a handler blocks it.

A blocking context call (`checkpoint`, `once`, `secret`) made on the loop stalls its neighbours for
a round trip to the manager: `await asyncio.to_thread(ctx.checkpoint, value)` does not.
"""

import asyncio
import contextvars
import io
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from cluster.protocol import Assignment, Outcome
from cluster.worker.attempt import RESULT_BYTES_INLINE_MAX, Attempt, encode_outcome
from cluster.worker.board import Board
from cluster.worker.pipe import Feed, LogSpan, ended_frame, until_start_s
from jobs.result import encode_result

if TYPE_CHECKING:
    from cluster.worker.child import Child

__all__ = ["AsyncLoop", "output_path"]

PULSE_S = 0.1
#: An attempt's own output file is cut to its head and tail when it grows beyond this.
OUTPUT_BYTES_MAX = 16 << 20
OUTPUT_KEPT_BYTES = 1 << 20

_current: contextvars.ContextVar[Attempt | None] = contextvars.ContextVar("attempt", default=None)


def output_path(scratch: Path, token: int) -> Path:
    """Return where the output of one attempt is captured."""
    return scratch / f"{token}.out"


class AsyncLoop:
    """Everything it was fed, at once: the worker feeds no more than may run."""

    def __init__(self, child: "Child") -> None:
        self._child = child
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(child.config.concurrency, "drayman-handler")
        self._tasks: dict[int, asyncio.Task[None]] = {}
        #: Attempts of plain handlers: cancelling their task would not stop their thread.
        self._on_thread: set[int] = set()
        self._encode = msgspec.json.Encoder().encode
        self._spans: list[bytes] = []
        self._flushing = False
        sys.stdout = _Routed(sys.stdout, self)
        sys.stderr = _Routed(sys.stderr, self)

    def run(self) -> None:
        """Turn the loop for ever."""
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._pulse)
        self._loop.run_forever()

    def feed(self, feed: Feed) -> None:
        """Start them all."""
        self._loop.call_soon_threadsafe(self._start, feed.assignments)

    def stop(self, token: int) -> None:
        """Cancel the attempt's task, unless it is a plain handler on a thread."""
        self._loop.call_soon_threadsafe(self._cancel, token)

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` on the loop."""
        self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, action)

    def write_log(self, attempt: Attempt, text: str) -> None:
        """Append to the attempt's own file, made by its first line."""
        file = attempt.output_file
        if file is None:
            if attempt.ended:
                return  # Something it left behind still prints; its log is closed.
            path = output_path(self._child.scratch, attempt.assignment.token)
            file = attempt.output_file = _Output(path)
        file.write(text)

    def _pulse(self) -> None:
        self._child.board.pulse(time.monotonic_ns())
        self._loop.call_later(PULSE_S, self._pulse)

    def _start(self, assignments: list[Assignment]) -> None:
        for assignment in assignments:
            if self._child.waiting.pop(assignment.token, None) is not None:
                task = self._loop.create_task(self._attempt(assignment))
                self._tasks[assignment.token] = task

    def _cancel(self, token: int) -> None:
        task = self._tasks.get(token)
        if task is not None and token not in self._on_thread:
            task.cancel()

    async def _attempt(self, assignment: Assignment) -> None:
        attempt = Attempt(self._child, assignment)
        _current.set(attempt)
        try:
            outcome = await self._run(attempt)
        except BaseException as error:
            # The one place where anything a handler raises becomes an outcome.
            outcome = attempt.failed(error)
        self._tasks.pop(assignment.token, None)
        self._keep(attempt, outcome)

    async def _run(self, attempt: Attempt) -> Outcome:
        token = attempt.assignment.token
        loop = self._loop
        call, is_async = self._child.prepare(attempt)
        if attempt.stop_reason() is not None:
            raise asyncio.CancelledError
        if wait_s := until_start_s(attempt.assignment):
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                return attempt.unstarted()
            attempt.started_at = time.time()
        if is_async:
            result = await _in_turns(self._child.board, token, call())
        else:
            context = contextvars.copy_context()
            self._on_thread.add(token)
            try:
                result = await loop.run_in_executor(self._threads, lambda: context.run(call))
            finally:
                self._on_thread.discard(token)
        data = encode_result(result)
        if len(data) <= RESULT_BYTES_INLINE_MAX:
            return attempt.succeeded(data)
        return await asyncio.shield(loop.run_in_executor(None, attempt.succeeded, data))

    def _keep(self, attempt: Attempt, outcome: Outcome) -> None:
        encoded = encode_outcome(outcome)
        if not self._child.board.keep(encoded):
            self._flush()
            self._child.board.keep(encoded)
        if attempt.output_file is not None:
            end = attempt.output_file.close()
            self._spans.append(self._encode(LogSpan(outcome.token, 0, end)))
        if not self._flushing:
            # Whatever else ends in this turn of the loop goes with it.
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        kept = self._child.board.kept()
        if kept:
            self._child.weigh()
            self._child.send(ended_frame(kept, b",".join(self._spans)))
            self._child.board.clear()
            self._spans.clear()


@types.coroutine
def _in_turns(
    board: Board, token: int, handler: Coroutine[Any, Any, Any]
) -> Generator[Any, Any, Any]:
    """Drive a handler, with its name on the board whenever it has the turn.

    If the loop then stands still, the worker knows whose fault it is.
    """
    error: BaseException | None = None
    while True:
        board.enter(token)
        try:
            waits_for = handler.send(None) if error is None else handler.throw(error)
        except StopIteration as stop:
            return stop.value
        finally:
            board.enter(0)
        try:
            yield waits_for
            error = None
        except BaseException as raised:
            # Whatever it is, cancellation included, is the handler's to deal with.
            error = raised


class _Output:
    """What one attempt prints; head and tail of it if it prints without end."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._bytes = 0

    def write(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        with self._lock:
            if self._fd < 0:
                return  # Closed: something the attempt left behind still prints.
            os.write(self._fd, data)
            self._bytes += len(data)
            if self._bytes > OUTPUT_BYTES_MAX:
                self._cut()

    def close(self) -> int:
        """Close the file and return its length."""
        with self._lock:
            fd, self._fd = self._fd, -1
            os.close(fd)
            return self._bytes

    def _cut(self) -> None:
        half = OUTPUT_KEPT_BYTES // 2
        tail = os.pread(self._fd, half, self._bytes - half)
        os.ftruncate(self._fd, half)
        os.write(self._fd, b"\n... cut: the attempt printed too much ...\n" + tail)
        self._bytes = os.lseek(self._fd, 0, os.SEEK_END)


class _Routed(io.TextIOBase):
    """Standard output that follows the attempt that prints."""

    def __init__(self, fallback: TextIO, loop: AsyncLoop) -> None:
        self._fallback, self._loop = fallback, loop

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        attempt = _current.get()
        if attempt is None:
            return self._fallback.write(text)
        self._loop.write_log(attempt, text)
        return len(text)

    def flush(self) -> None:
        self._fallback.flush()

    def fileno(self) -> int:
        return self._fallback.fileno()

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return self._fallback.encoding
