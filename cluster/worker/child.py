"""The child: the process that runs handlers, forked by its keeper, fed and watched by its worker.

Two kinds: `process` runs one handler at a time on the main thread; `async` runs many `async def`
handlers on one event loop, and plain ones on threads beside it.

Rule 1: a second thread reads what the worker sends, so that a stop or a recall is heard while a
handler runs. Rule 2: whether a task starts or goes back is decided by one `waiting.pop`, atomic
under the GIL. Rule 3: an outcome is on the board before the next handler starts, so a crash loses
none. Rule 4: the end of the socket is the end of the process: a child is nothing without a worker.
Rule 5: a handler that is to begin at a moment begins then: all else is done before, and a stop that
comes meanwhile is obeyed at once.
"""

import faulthandler
import importlib
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec
from pydantic import ValidationError

from cluster.protocol import Assignment, Outcome, Submission
from cluster.queue.spec import JobSpec, decode_spec
from cluster.worker.attempt import Attempt, AttemptContext, encode_outcome
from cluster.worker.board import Board
from cluster.worker.memory import resident_bytes
from cluster.worker.pipe import (
    Answer,
    Call,
    ChildConfig,
    Ended,
    Feed,
    Frames,
    LogSpan,
    Moved,
    Ready,
    Recall,
    Stop,
    decode_config,
    decode_to_child,
    encode,
    ended_frame,
    frame,
    until_start_s,
)
from jobs.definition import JobDefinition
from jobs.outcome import Discard, Snooze
from jobs.registry import Registry
from jobs.result import encode_result

if TYPE_CHECKING:
    from cluster.worker.parts import Parts

__all__ = ["Child", "Loop", "main"]

#: Outcomes of shorter tasks may wait for company; a longer one leaves at once.
SHORT_TASK_S = 0.001
#: What waits together leaves after so many, or so long.
OUTCOMES_TOGETHER_MAX = 200
OUTCOMES_TOGETHER_S = 0.003
#: The reading thread gets its turn this soon beside a handler that never lets go by itself.
SWITCH_INTERVAL_S = 0.001
#: A job waits so long for a type that Drayman was started without, and again.
UNKNOWN_TYPE_S = 30.0
_READ_BYTES = 1 << 18
_EXIT_BROKEN = 71


class Loop(Protocol):
    """How a child runs what it is fed."""

    def run(self) -> None:
        """Run handlers for ever. On the main thread."""

    def feed(self, feed: Feed) -> None:
        """Take new assignments. On the reading thread."""

    def stop(self, token: int) -> None:
        """Wake the running attempt `token`: it has to stop. On the reading thread."""

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in a while. On any thread."""

    def write_log(self, attempt: Attempt, text: str) -> None:
        """Append to the attempt's captured output. On any thread."""


def main(data_fd: int, board_fd: int, config: bytes) -> NoReturn:
    """Run this forked process as a child. Returns never."""
    _be_killed_first()
    sys.stdin = open(os.devnull)  # noqa: SIM115 - it lives as long as the process
    sys.stdout, sys.stderr = _Stream(1), _Stream(2)
    faulthandler.enable(file=2)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = decode_config(config)
    sys.path[:] = settings.sys_path
    child = Child(socket.socket(fileno=data_fd), Board(board_fd), settings)
    child.serve()


class _Stream(io.TextIOWrapper):
    """A standard stream that has written each line before a crash can take it."""

    def __init__(self, fd: int) -> None:
        file = open(fd, "wb", closefd=False)  # noqa: SIM115 - it lives as long as the process
        super().__init__(file, errors="backslashreplace", line_buffering=True)
        #: Whether anything was written since this was last set to False.
        self.touched = False

    def write(self, text: str) -> int:
        self.touched = True
        return super().write(text)


def _be_killed_first() -> None:
    """Tell the kernel to take this process, not the worker, when memory runs out."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # No Linux, or not allowed: then the kernel chooses.


@dataclass(frozen=True, slots=True)
class _Type:
    """A job type, resolved once."""

    definition: JobDefinition
    handler: Callable[[Any, Any], Any]
    validate: Callable[[bytes], Any]
    is_async: bool


class _StoreOfChild:
    """The store, opened by the first attempt that needs it."""

    def __init__(self, url: str) -> None:
        from cluster.store.files import Files
        from cluster.store.objects import open_store

        self.objects = open_store(url)
        self.files = Files(self.objects)

    @cached_property
    def lineage(self) -> Any:
        """What the store has of finished chunks."""
        from cluster.history.lineage import Lineage

        return Lineage(self.objects)


class Child:
    """What both kinds share: the socket, the board, job types, the attempts that wait."""

    def __init__(self, data: socket.socket, board: Board, config: ChildConfig) -> None:
        self.board, self.config = board, config
        self.scratch = Path(config.scratch)
        #: Handed over and not started: whoever pops a token decides its fate.
        self.waiting: dict[int, Assignment] = {}
        self.stops: dict[int, str] = {}
        #: What any attempt was told: a module may keep it for the next.
        self.secrets: list[str] = []
        #: Outputs of other tasks that were found whole here.
        self.checked: set[str] = set()
        #: What it held after its first attempt.
        self._first_bytes = 0
        self._data = data
        self._sending = threading.Lock()
        self._calls: dict[int, SimpleQueue[Answer | None]] = {}
        self._numbers = count(1)
        self._types: dict[str, _Type] = {}
        self._registry = Registry()
        self._store: _StoreOfChild | None = None
        self._store_opening = threading.Lock()
        self.loop = self._make_loop()

    def _make_loop(self) -> Loop:
        if self.config.mode == "async":
            from cluster.worker.child_async import AsyncLoop

            return AsyncLoop(self)
        return ProcessLoop(self)

    def serve(self) -> NoReturn:
        """Import the job modules, then run what comes."""
        try:
            self._registry = (
                Registry.over(self.config.code_modules, self.config.job_modules)
                if self.config.code
                else Registry.load(self.config.job_modules)
            )
            self._import_ahead()
        except Exception as error:
            # Any module may raise anything; the worker says so and tries again later.
            self.send(frame(encode(Ready(error=str(error)))))
            os._exit(_EXIT_BROKEN)
        self.send(frame(encode(Ready(code=self._fingerprints()))))
        threading.Thread(target=self._listen, name="drayman-listen", daemon=True).start()
        self.loop.run()
        os._exit(0)

    def _import_ahead(self) -> None:
        """Import what handlers that share a loop would: the first of them would hold up the others.

        Calls that a limit spaced evenly would then come all at once.
        """
        if self.config.mode == "async":
            for definition in self._registry.values():
                for name in definition.imports:
                    importlib.import_module(name)

    def _fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each type's code; those of a bundle go by the bundle's name."""
        from cluster.code import fingerprint

        if self.config.code:
            return {}
        return {name: fingerprint(definition) for name, definition in self._registry.items()}

    # --- talking to the worker ----------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send frames. A worker that is gone ends the process."""
        try:
            with self._sending:
                self._data.sendall(data)
        except OSError:
            os._exit(0)

    def call(self, token: int, op: Any, key: str, value: msgspec.Raw) -> Answer:
        """Ask the worker and wait for its answer; raises the error it answers."""
        box: SimpleQueue[Answer | None] = SimpleQueue()
        number = next(self._numbers)
        self._calls[number] = box
        self.send(frame(encode(Call(number, token, op, key, value))))
        answer = box.get()
        assert answer is not None
        if answer.refused is not None:
            raise answer.refused.exception()
        return answer

    def show(self, moved: Moved) -> None:
        """Send progress."""
        self.send(frame(encode(moved)))

    def weigh(self) -> None:
        """Put on the board by how much this has grown, for a worker that wants to know."""
        if self.config.weighs:
            held = resident_bytes(os.getpid())
            self._first_bytes = self._first_bytes or held
            self.board.weigh(max(0, held - self._first_bytes))

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in a while."""
        self.loop.later(delay_s, action)

    def write_log(self, attempt: Attempt, text: str) -> None:
        """Append to the attempt's captured output."""
        self.loop.write_log(attempt, text)

    def _listen(self) -> None:
        frames = Frames()
        try:
            while data := self._data.recv(_READ_BYTES):
                for body in frames.feed(data):
                    self._take(decode_to_child(body))
        except ConnectionError:
            pass  # The same as the end of the stream: the worker is gone.
        except BaseException:
            faulthandler.dump_traceback(file=2)
            os._exit(_EXIT_BROKEN)
        os._exit(0)

    def _take(self, message: Feed | Recall | Stop | Answer) -> None:
        if isinstance(message, Feed):
            for assignment in message.assignments:
                self.waiting[assignment.token] = assignment
            self.loop.feed(message)
        elif isinstance(message, Recall):
            self._hand_back(message.tokens)
        elif isinstance(message, Stop):
            if not self._hand_back([message.token]):
                self.stops[message.token] = message.reason
                self.loop.stop(message.token)
        elif box := self._calls.pop(message.call, None):
            box.put(message)

    def _hand_back(self, tokens: list[int]) -> bool:
        back = [t for t in tokens if self.waiting.pop(t, None) is not None]
        if back:
            self.send(frame(encode(Ended([Outcome(token, "returned") for token in back]))))
        return bool(back)

    # --- preparing an attempt -----------------------------------------------------------------

    def prepare(self, attempt: Attempt) -> tuple[Callable[[], Any], bool]:
        """Return what runs the attempt, and whether that returns a coroutine.

        Raises Discard for bad input, and Snooze for a type that is not known (any more).
        """
        assignment = attempt.assignment
        spec = decode_spec(assignment.spec)
        kind = self._types.get(spec.type) or self._resolve(spec.type)
        attempt.tenant = spec.tenant
        ctx = AttemptContext(attempt, assignment, spec)
        if bytes(assignment.inputs) != b"null":
            params = partial(self._params, spec)
            validate = partial(_validated, kind.validate)
            parts: Parts = self._parts
            return parts.prepare(attempt, ctx, spec, kind.definition, params, validate)
        model = _validated(kind.validate, self._params(spec))
        return partial(kind.handler, ctx, model), kind.is_async

    @cached_property
    def _parts(self) -> Any:
        # Most children never see a planned job, and this needs pyarrow.
        from cluster.worker.parts import Parts

        return Parts(self.scratch)

    def submission(
        self, attempt: Attempt, type: str, params: Any, options: dict[str, Any]
    ) -> Submission:
        """Return a job that the attempt submits. Raises InvalidInput."""
        from cluster.worker.submitting import submission

        return submission(self._registry, self.store().objects, attempt, type, params, options)

    def store(self) -> _StoreOfChild:
        """Open the store, once."""
        with self._store_opening:
            if self._store is None:
                self._store = _StoreOfChild(self.config.store_url)
            return self._store

    def _params(self, spec: JobSpec) -> bytes:
        if spec.params_ref is None:
            return bytes(spec.params)
        data: bytes = self.store().objects.get(spec.params_ref)
        return data

    def _resolve(self, name: str) -> _Type:
        definition = self._registry.get(name)
        if definition is None:
            known = ", ".join(sorted(self._registry)) or "none"
            told = f"job type {name!r} is not known on this worker; it knows: {known}"
            if self.config.code:
                raise Discard(told)  # a bundle stays what it is
            raise Snooze(UNKNOWN_TYPE_S, f"{told}; start Drayman with the --jobs that has it")
        kind = _Type(
            definition,
            definition.handler,
            definition.params_model.__pydantic_validator__.validate_json,
            definition.is_async,
        )
        self._types[name] = kind
        return kind


class ProcessLoop:
    """One handler at a time, on the main thread."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._board = child.board
        self._feeds: SimpleQueue[Feed] = SimpleQueue()
        self._encode = msgspec.json.Encoder().encode
        assert isinstance(sys.stdout, _Stream)
        assert isinstance(sys.stderr, _Stream)
        self._stdout, self._stderr = sys.stdout, sys.stderr
        #: Outcomes on the board, and since when.
        self._kept = 0
        self._kept_since = 0.0
        #: Where the next attempt's output begins in the capture file.
        self._output_at = 0
        self._running: Attempt | None = None

    def run(self) -> None:
        """Run handlers for ever."""
        feeds = self._feeds
        while True:
            try:
                feed = feeds.get_nowait()
            except Empty:
                self._flush()
                feed = feeds.get()
            if feed.rewound:
                self._output_at = 0
            for assignment in feed.assignments:
                if self._child.waiting.pop(assignment.token, None) is not None:
                    self._attempt(assignment)

    def feed(self, feed: Feed) -> None:
        """Queue them behind what waits."""
        self._feeds.put(feed)

    def stop(self, token: int) -> None:
        """Wake an `async def` handler; a plain one sees the stop in its next context call."""
        attempt = self._running
        if attempt is None or attempt.assignment.token != token or attempt.on_stop is None:
            return
        try:
            attempt.on_stop()
        except RuntimeError:
            pass  # Its loop has just closed: the handler ended by itself.

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` on a thread."""
        timer = threading.Timer(delay_s, action)
        timer.daemon = True
        timer.start()

    def write_log(self, attempt: Attempt, text: str) -> None:
        """Append to the capture file, past any stream the handler replaced."""
        self._stdout.write(text)

    def _attempt(self, assignment: Assignment) -> None:
        began_ns = time.monotonic_ns()
        starts_ns = began_ns + int(until_start_s(assignment) * 1e9)
        self._board.begin(assignment.token, starts_ns, self._output_at)
        attempt = Attempt(self._child, assignment)
        self._running = attempt
        try:
            call, is_async = self._child.prepare(attempt)
            if starts_ns == began_ns or self._comes_to_start(attempt, starts_ns):
                result = call()
                if is_async:
                    result = self._run_async(attempt, result)
                outcome = attempt.succeeded(encode_result(result))
            else:
                outcome = attempt.unstarted()
        except BaseException as error:
            # The one place where anything a handler raises becomes an outcome.
            outcome = attempt.failed(error)
        self._running = None
        self._keep(outcome, (time.monotonic_ns() - began_ns) / 1e9)

    def _comes_to_start(self, attempt: Attempt, starts_ns: int) -> bool:
        """Wait for its moment; False if a stop came before."""
        asked = threading.Event()
        attempt.on_stop = asked.set
        try:
            if attempt.stop_reason() is not None:
                return False
            if asked.wait((starts_ns - time.monotonic_ns()) / 1e9):
                return False
        finally:
            attempt.on_stop = None
        attempt.started_at = time.time()
        return True

    def _run_async(self, attempt: Attempt, coroutine: Any) -> Any:
        import asyncio

        async def stoppable() -> Any:
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()
            assert task is not None
            attempt.on_stop = lambda: loop.call_soon_threadsafe(task.cancel)
            if attempt.stop_reason() is not None:
                task.cancel()
            return await coroutine

        try:
            return asyncio.run(stoppable())
        finally:
            attempt.on_stop = None

    def _keep(self, outcome: Outcome, took_s: float) -> None:
        encoded = encode_outcome(outcome)
        now = outcome.ended_at
        if not self._board.keep(encoded):
            self._flush()
            self._board.keep(encoded)
        if self._kept == 0:
            self._kept_since = now
        self._kept += 1
        if (
            took_s > SHORT_TASK_S
            or self._kept >= OUTCOMES_TOGETHER_MAX
            or now - self._kept_since > OUTCOMES_TOGETHER_S
            or self._stdout.touched
            or self._stderr.touched
        ):
            self._flush(self._printed(outcome.token))

    def _printed(self, token: int) -> bytes:
        """Return the encoded span of what was printed since last asked; empty if nothing was.

        It is asked only here, because a system call costs a quarter of a short task. What a short
        task writes past Python's streams may so be found in the log of the next that flushes.
        """
        for stream in (self._stdout, self._stderr):
            stream.flush()
            stream.touched = False
        start, end = self._output_at, os.lseek(1, 0, os.SEEK_END)
        if start == end:
            return b""
        self._output_at = end
        return self._encode(LogSpan(token, start if start < end else 0, end))

    def _flush(self, span: bytes = b"") -> None:
        if self._kept:
            self._child.weigh()
            self._child.send(ended_frame(self._board.kept(), span))
            self._board.clear()
            self._kept = 0


def _validated(validate: Callable[[bytes], Any], params: bytes) -> Any:
    try:
        return validate(params)
    except ValidationError as error:
        raise Discard(_invalid(error)) from None


def _invalid(error: ValidationError) -> str:
    """Return `params.year: Input should be ...` for the first few problems."""
    problems = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        where = ".".join(str(part) for part in ("params", *item["loc"]))
        problems.append(f"{where}: {item['msg']}")
    return "; ".join(problems)
