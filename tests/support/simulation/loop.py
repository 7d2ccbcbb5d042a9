"""An event loop without a clock: when nothing can go on, time jumps to the next timer.

Everything runs in it, machine and processes alike. A `Process` is a context that its tasks and
callbacks inherit: killed, none of them runs ever again, whatever it awaited; paused, all wait.
Rule 1: nothing here is random and nothing comes from outside, so the same program runs the same.
Rule 2: tasks and futures hash by their number, so sets of them have one order.
"""

import asyncio
import contextvars
import heapq
import itertools
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Process", "Stalled", "VirtualLoop", "current_process"]

#: A schedule that turns so often at one moment goes round in circles.
TURNS_MAX = 200_000

#: Tasks that would not end; thrown away, they would complain in the middle of something else.
_undying: list[asyncio.Task[Any]] = []

_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar(
    "simulated process", default=None
)


def current_process() -> "Process | None":
    """Return whose code runs now; None for the world outside."""
    return _process.get()


class Stalled(Exception):
    """Nothing can ever happen again, or the same thing happens for ever."""


class _Numbered:
    """Hashes by its number, which is the same in every run."""

    number: int

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimTask(_Numbered, asyncio.Task[Any]):
    """A task in order of its making."""

    __hash__ = _Numbered.__hash__


class SimFuture(_Numbered, asyncio.Future[Any]):
    """A future in order of its making."""

    __hash__ = _Numbered.__hash__


class Process:
    """One process of the simulated machine: `alive`, `paused` or `dead`."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.loop, self.name = loop, name
        self.state = "alive"
        self.context = contextvars.Context()
        self.context.run(_process.set, self)
        #: Called once, when it dies.
        self.on_death: list[Callable[[], None]] = []
        #: Steps it has still to live; None for no limit.
        self.steps_left: int | None = None
        self._waiting: list[events.Handle] = []

    def __repr__(self) -> str:
        return f"<{self.name} {self.state}>"

    @property
    def dead(self) -> bool:
        """Whether it is gone for good."""
        return self.state == "dead"

    def call(self, delay_s: float, function: Callable[..., object], *args: Any) -> None:
        """Call in this process, in a while."""
        if not self.dead:
            self.loop.call_later(delay_s, function, *args, context=self.context)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task in this process."""
        task = self.loop.create_task(coroutine, context=self.context.copy())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.on_error({"message": f"{self.name} failed", "exception": error})

    def kill(self) -> None:
        """End it as SIGKILL does: nothing of it runs again."""
        if self.dead:
            return
        self.state = "dead"
        for handle in self._waiting:
            self.loop.drop(handle)
        self._waiting.clear()
        for tell in self.on_death:
            tell()

    def pause(self) -> None:
        """Stop it as SIGSTOP does."""
        if self.state == "alive":
            self.state = "paused"

    def resume(self) -> None:
        """Let it go on: all that waited for it comes at once, in order."""
        if self.state == "paused":
            self.state = "alive"
            waiting, self._waiting = self._waiting, []
            self.loop.again(waiting)

    def step(self, handle: events.Handle) -> None:
        """Run one callback, if it lives."""
        if self.state == "alive":
            handle._run()
            if self.steps_left is not None:
                self.steps_left -= 1
                if self.steps_left <= 0:
                    self.kill()
        elif self.state == "paused":
            self._waiting.append(handle)
        else:
            self.loop.drop(handle)


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready in order; then the next moment comes."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._numbers = itertools.count(1)
        self._clock_resolution = 1e-9
        self._turns = 0
        #: Kept, so that no dead coroutine is thrown away and runs its `finally` meanwhile.
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_max = 256
        #: Steps of tasks that will never be made, until the burial.
        self._dropped: list[events.Handle] = []
        #: Runs `function` elsewhere than on the loop; set by the world.
        self.offload: Callable[..., Any] | None = None
        #: Told of everything that nobody caught.
        self.on_error: Callable[[dict[str, Any]], None] = lambda context: None
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda loop, context: self.on_error(context))

    def time(self) -> float:
        return self._now

    def create_future(self) -> Any:
        future = SimFuture(loop=self)
        future.number = next(self._numbers)
        return future

    def _make_task(self, loop: Any, coroutine: Any, context: Any = None) -> Any:
        number = next(self._numbers)
        SimTask.number = number  # asyncio puts it into a set before we could give it its own
        task = SimTask(coroutine, loop=loop, name=str(number), context=context)
        task.number = number
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_max:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks_max = 2 * len(self._tasks) + 256
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        assert self.offload is not None
        return self.offload(func, *args)

    def again(self, handles: list[events.Handle]) -> None:
        """Put back callbacks whose turn was deferred."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if ready:
            self._turns += 1
            if self._turns > TURNS_MAX:
                raise Stalled(f"the loop turns without end at {self._now:.6f}")
        elif scheduled:
            self._now = max(self._now, scheduled[0]._when)
            self._turns = 0
        else:
            raise Stalled("nothing is left that could happen")
        now = self._now
        while scheduled and scheduled[0]._when <= now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_process)
            if process is None:
                handle._run()
            else:
                process.step(handle)

    def drop(self, handle: events.Handle) -> None:
        """Forget a callback of a dead process; the steps of its tasks are kept for the burial."""
        if isinstance(getattr(handle._callback, "__self__", None), SimTask):
            self._dropped.append(handle)

    def bury(self) -> None:
        """Cancel every task there is, so that none is thrown away in the middle, and close."""
        ready = self._ready  # type: ignore[attr-defined]
        ready.extend(self._dropped)
        events._set_running_loop(self)
        try:
            for _ in range(50):
                tasks = [task for task in self._tasks if not task.done()]
                if not tasks:
                    break
                for task in tasks:
                    task.cancel()
                for _ in range(TURNS_MAX):
                    if not ready:
                        break
                    self._bury_next(ready.popleft())
        finally:
            events._set_running_loop(None)
        _undying.extend(task for task in self._tasks if not task.done())
        ready.clear()
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()

    def _bury_next(self, handle: events.Handle) -> None:
        owner = type(getattr(handle._callback, "__self__", None))
        ours = owner.__module__.startswith("tests.") and not issubclass(owner, SimTask)
        if not (handle._cancelled or ours):
            handle._run()

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass
