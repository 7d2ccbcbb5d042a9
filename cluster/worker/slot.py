"""One slot of a worker: a keeper, the child in it, and the next child when that one dies.

Rule 1: a slot tells of a death once: after the child and everything below it is gone, and after the
last frame it sent was read. Rule 2: it never decides what a death means for an attempt; that is the
executor's. Rule 3: a keeper that dies is replaced like a child, and what it may have left is found
by the mark in its environment. Rule 4: a kill that has not come about after a while is repeated by
the worker itself, and a process that even then does not go is given up: it never runs again.
Rule 5: a child runs the code it was started with and no other; for other code there is a new child.
Rule 6: it tells how worn its child is; when that one is renewed is the executor's to say.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import msgspec
import structlog

from cluster.code import Unpacked
from cluster.protocol import Assignment, Outcome
from cluster.worker.board import Board
from cluster.worker.life import Life, cause_of
from cluster.worker.memory import MIB, held_bytes, oom_kills, resident_bytes
from cluster.worker.pipe import (
    Answer,
    Call,
    ChildConfig,
    Ended,
    Feed,
    Frames,
    Moved,
    Ready,
    Recall,
    Stop,
    decode_from_child,
    encode,
    frame,
    salvage_ended,
)
from cluster.worker.processes import kill_quietly, sweep

__all__ = ["HUNG", "Death", "Patience", "Slot", "SlotConfig", "SlotOwner"]

log = structlog.get_logger("drayman.worker")

#: Environment variable that marks a keeper and everything below it.
MARK = "DRAYMAN_KEEPER"
SECRET_PREFIX = "DRAYMAN_SECRET"
#: Cause of a death that the keeper ordered, because the worker gave no sign of life.
HUNG = "worker hung"
#: That of one that took too long to come up.
NOT_READY = "not ready"
#: A child that does not live long enough to be ready is started again after a growing pause.
RESTART_MIN_S = 0.1
RESTART_MAX_S = 30.0
#: How often a keeper is told that its worker lives.
PULSE_S = 0.5
#: How often what a child started is weighed with it: that means a look at every process there is.
WEIGH_S = 1.0
#: A child with nothing to run that holds this part of its limit is replaced.
BLOATED = 0.5
_CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each sign of being stuck is borne."""

    #: A keeper kills its child after so long without a sign of life from the worker, so that
    #: nothing of a hung worker runs any more when its leases end.
    worker_s: float = 10.5
    #: A kill that did not come about is repeated by other means.
    kill_s: float = 5.0
    #: A new child that is not ready, imports included, is killed and started again.
    ready_s: float = 120.0
    #: A child that does not begin what it was fed is killed; what has not begun goes to the next.
    begin_s: float = 15.0
    #: What no child is there for goes back to the manager.
    backlog_s: float = 10.0
    #: An `async def` handler that blocks the event loop beside others is killed.
    blocked_s: float = 30.0
    #: Work for other code than the children have waits so long before it presses.
    code_s: float = 1.0
    #: A child with code of a bundle and without work makes room after so long.
    code_idle_s: float = 30.0


@dataclass(frozen=True, slots=True)
class SlotConfig:
    """What every child of a worker is started with."""

    mode: Literal["process", "async"]
    concurrency: int
    store_url: str
    job_modules: tuple[str, ...]
    #: A child that holds more, with all it started, is killed; 0 for no limit.
    memory_limit_bytes: int = 0
    patience: Patience = Patience()
    #: A child is renewed after so many attempts; 0 for any number.
    tasks_max: int = 0
    #: It is renewed once it holds so much more than after its first attempt; 0 for any amount.
    growth_bytes_max: int = 0

    @property
    def renews(self) -> bool:
        """Whether a child can be due to be renewed."""
        return bool(self.tasks_max or self.growth_bytes_max)


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended."""

    #: `signal 11`, `exit 3`, `oom`, `worker hung`.
    cause: str
    #: What was on its board: outcomes not yet sent, and the last attempt begun.
    kept: list[Outcome]
    running: int
    started_ns: int
    output_at: int
    #: Its capture file, to be removed by whoever read it.
    output: Path
    #: What more there is to say of the cause.
    told: str = ""
    #: Whether it ever took work.
    was_ready: bool = True


class SlotOwner(Protocol):
    """Who listens to a slot. Called on the event loop."""

    def on_ready(self, slot: "Slot") -> None:
        """Its child takes work."""

    def on_broken(self, slot: "Slot", error: str) -> None:
        """Its child cannot import its job modules, and ends. A new one is on its way."""

    def on_ended(self, slot: "Slot", ended: Ended) -> None:
        """Attempts ended or came back."""

    def on_moved(self, moved: Moved) -> None:
        """An attempt made progress."""

    def on_called(self, slot: "Slot", call: Call) -> None:
        """An attempt waits for an answer."""

    def on_died(self, slot: "Slot", death: Death) -> None:
        """Its child is dead and nothing of it is left. A new one is on its way."""


class Slot:
    """Starts in `start`, ends in `close`; in between there is a child most of the time."""

    def __init__(self, config: SlotConfig, scratch: Path, owner: SlotOwner, *, solo: bool) -> None:
        self.config, self._owner = config, owner
        #: Made for suspects: one attempt at a time, and gone when there are no more.
        self.solo = solo
        #: The bundle that its next child gets; None: what the cluster was started with. The
        #: executor's, and changed under a living child by `change` alone.
        self.unpacked: Unpacked | None = None
        #: Its child is being replaced: by one with other code, or by a fresh one.
        self.changing = False
        #: Its child gets no more attempts, and goes when its last one has ended. The executor's.
        self.retiring = False
        #: How many attempts the living child was given and has not handed back. The executor's.
        self.taken = 0
        #: Tokens in the child, in the order they were handed over. The executor's.
        self.fed: dict[int, None] = {}
        #: Whose end the next death of the child is, if it was ordered. The executor's.
        self.guilty: int | None = None
        #: Nothing else may be fed until it is empty. The executor's.
        self.exclusive = False
        #: A long attempt runs: nothing is to wait behind it. The executor's.
        self.stuck = False
        #: Who still reads captured output. The executor's.
        self.readers: set[asyncio.Task[None]] = set()
        self.is_ready = False
        #: Fingerprint of the code of each type that the child has; none of a bundle's.
        self.types: dict[str, str] = {}
        #: How many children it has had: tells the living one from those before it.
        self.lives = 0
        self.child_pid = 0
        self.keeper_pid = 0
        #: End of the capture file as far as known.
        self.output_bytes = 0
        #: Monotonic moment when the child last began or ended something, or had nothing to do. The
        #: executor's.
        self.moved_s = 0.0
        self._pulsed_s = 0.0
        self._rewound = False
        self._scratch_root = scratch
        self._life: Life | None = None
        self._control: socket.socket | None = None
        self._control_buffer = b""
        self._control_closed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._restart_s = RESTART_MIN_S
        self._mark = ""
        self._scratch = scratch

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start a keeper and its first child; both come up in the background after this."""
        self._mark = uuid.uuid4().hex
        self._scratch = Path(tempfile.mkdtemp(prefix="slot-", dir=self._scratch_root))
        ours, theirs = socket.socketpair()
        try:
            await asyncio.to_thread(
                _launch_keeper,
                theirs,
                self._scratch,
                self._mark,
                self.config.patience.worker_s,
            )
        except BaseException:  # a cancellation, too: nobody else knows of this end yet
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._control, self._control_buffer = ours, b""
        self._control_closed.clear()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear)
        await self._fork()

    async def close(self) -> None:
        """End the child, the keeper and everything below; returns when they are gone."""
        self._closing = True
        self.is_ready = False
        if self._control is not None:
            try:
                self._control.shutdown(socket.SHUT_WR)
                await asyncio.wait_for(self._control_closed.wait(), _CLOSE_S)
            except (OSError, TimeoutError):
                await asyncio.to_thread(sweep, MARK, self._mark)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._drop_control()
        if self._life is not None:
            self._life.close()
            self._life = None
            await asyncio.sleep(0)  # its transport closes the socket in the loop's next turn
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def _fork(self) -> None:
        # Its keeper is ending, or was lost while it paused, and the next one has its own child.
        if self._closing or self._control is None or self._life is not None:
            return
        loop = asyncio.get_running_loop()
        life = Life(self._scratch)
        self._life = life
        self.lives += 1
        self.taken = 0
        self.output_bytes, self._rewound = 0, False
        bundle = self.unpacked
        modules = [] if bundle is None else bundle.modules
        config = ChildConfig(
            self.config.mode,
            self.config.concurrency,
            self.config.store_url,
            [*modules, *(name for name in self.config.job_modules if name not in modules)],
            str(self._scratch),
            sys.path if bundle is None else [str(bundle.path), *sys.path],
            "" if bundle is None else bundle.sha,
            modules,
            self.config.growth_bytes_max > 0,
        )
        line = json.dumps({"fork": msgspec.to_builtins(config)}).encode() + b"\n"
        try:
            socket.send_fds(self._control, [line], life.fds())
        except OSError:
            return  # The keeper is gone; `_hear` reads the end of its socket and replaces it.
        finally:
            life.release_fds()
        await loop.create_unix_connection(lambda: _Data(self, life), sock=life.data)

    def _spawn(self, work: Callable[[], Any]) -> None:
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- orders to the child ------------------------------------------------------------------

    @property
    def code(self) -> str:
        """The hash of its bundle; empty: it has what the cluster was started with."""
        return "" if self.unpacked is None else self.unpacked.sha

    def change(self, unpacked: Unpacked | None) -> None:
        """Replace the child by one with this code. Only while it is ready and holds nothing."""
        self.unpacked, self.changing = unpacked, True
        self.kill()

    def renew(self) -> None:
        """Replace the child by a fresh one. Only while it is ready and holds nothing."""
        log.info(
            "worker.child_renewed",
            pid=self.child_pid,
            attempts=self.taken,
            grown_mb=self._grown_bytes // MIB,
            next="a fresh child is started",
        )
        self.change(self.unpacked)

    @property
    def alive(self) -> bool:
        """Whether there is a child to talk to."""
        return self._life is not None and self._life.transport is not None

    @property
    def output_path(self) -> Path:
        """Where the child's output is captured."""
        assert self._life is not None
        return self._life.output_path

    @property
    def secrets(self) -> list[str]:
        """What the living child was told so far; grows with it."""
        return [] if self._life is None else self._life.secrets

    @property
    def scratch(self) -> Path:
        """The slot's directory."""
        return self._scratch

    @property
    def board(self) -> Board | None:
        """The child's board."""
        return None if self._life is None else self._life.board

    def feed(self, assignments: list[Assignment]) -> None:
        """Hand over attempts to run."""
        rewound, self._rewound = self._rewound, False
        self._send(Feed(assignments, rewound))

    def recall(self, tokens: Iterable[int]) -> None:
        """Ask for those back that have not started."""
        self._send(Recall(list(tokens)))

    def stop(self, token: int, reason: str) -> None:
        """Ask for it back, or ask it to stop."""
        self._send(Stop(token, reason))

    def answer(self, answer: Answer) -> None:
        """Answer a call."""
        self._send(answer)

    def kill(self, cause: str = "", told: str = "") -> None:
        """Kill the child and everything it started; `died` follows, with this cause if given."""
        self.is_ready = False
        life = self._life
        if life is None:
            return
        if cause and not life.cause:
            life.cause, life.told = cause, told
        self._order(kill=True)
        if not life.killed:
            life.killed, life.ends_s = True, time.monotonic()

    def kill_for(self, token: int) -> None:
        """Kill the child to end this attempt; whatever else runs in it is innocent."""
        if self.guilty is None:
            self.guilty = token
            self.kill()

    def tend(self, now: float) -> None:
        """See to it that the child comes up, stays within its memory, and ends when it is to.

        Called many times a second: the keeper takes its silence for a hung worker.
        """
        if now - self._pulsed_s >= min(PULSE_S, self.config.patience.worker_s / 20):
            self._pulsed_s = now
            self._order(pulse=True)
        life = self._life
        if life is None or self._closing:
            return
        patience = self.config.patience
        if life.ends_s:
            if now - life.ends_s > patience.kill_s:
                self._insist(life, now)
        elif self.is_ready:
            self._weigh(life, now)
        elif now - life.born_s > patience.ready_s:
            log.error("worker.child_not_ready", pid=self.child_pid, next="a new child is started")
            self.kill(NOT_READY)

    def _insist(self, life: Life, now: float) -> None:
        log.error("worker.keeper_stuck", keeper=self.keeper_pid, next="it is killed")
        life.ends_s = now
        # Its death is heard of like any other, and everything it left is swept.
        if self.keeper_pid:
            kill_quietly(self.keeper_pid)
        else:
            self._spawn(lambda: asyncio.to_thread(sweep, MARK, self._mark))

    def _weigh(self, life: Life, now: float) -> None:
        if not self.fed:
            return
        limit = self.config.memory_limit_bytes
        held = resident_bytes(self.child_pid)
        if now - life.weighed_s > WEIGH_S:
            life.weighed_s = now
            life.oom_kills = oom_kills()
            if limit:
                held = held_bytes(self.child_pid)
        life.peak_bytes = max(life.peak_bytes, held)
        if limit and held > limit:
            told = f"it held {held // MIB} MiB of memory, and the limit is {limit // MIB} MiB"
            log.warning("worker.memory_limit", pid=self.child_pid, told=told, next="it is killed")
            self.kill("oom", told)

    @property
    def is_bloated(self) -> bool:
        """Whether the child holds so much of its limit that the next attempt could be blamed."""
        limit = self.config.memory_limit_bytes
        return limit > 0 and resident_bytes(self.child_pid) > limit * BLOATED

    @property
    def wear(self) -> float:
        """How much of what the child may do is done; at 1 it is due to be renewed."""
        tasks_max = self.config.tasks_max
        return max(self.growth, self.taken / tasks_max if tasks_max else 0.0)

    @property
    def growth(self) -> float:
        """By which part of what it may grow the child has grown."""
        may = self.config.growth_bytes_max
        return self._grown_bytes / may if may else 0.0

    @property
    def _grown_bytes(self) -> int:
        return self._life.board.grown_bytes() if self._life is not None else 0

    @property
    def running(self) -> int:
        """The token that runs, by the word of the board; 0 for none."""
        board = self.board
        return board.running()[0] if board is not None else 0

    def rewind(self) -> None:
        """Empty the capture file. Only while nothing runs."""
        os.truncate(self.output_path, 0)
        self.output_bytes, self._rewound = 0, True

    def _send(self, message: msgspec.Struct) -> None:
        life = self._life
        if life is not None and life.transport is not None:
            life.transport.write(frame(encode(message)))

    def _order(self, **command: Any) -> None:
        if self._control is None:
            return
        try:
            self._control.send(json.dumps(command).encode() + b"\n")
        except OSError:
            pass  # The keeper is gone; `_hear` reads the end of its socket.

    # --- news from the child ------------------------------------------------------------------

    def received(self, message: Ready | Ended | Moved | Call) -> None:
        """Take one message of the living child."""
        if isinstance(message, Ended):
            self._owner.on_ended(self, message)
        elif isinstance(message, Call):
            self._owner.on_called(self, message)
        elif isinstance(message, Moved):
            self._owner.on_moved(message)
        elif message.error:
            log.error(
                "worker.jobs_broken",
                error=message.error,
                code=self.code,
                next_try_s=self._restart_s,
            )
            if not self._closing:
                self._owner.on_broken(self, message.error)
        elif not self._closing:
            self.is_ready = True
            if self._life is not None:
                self._life.was_ready = True
            self._restart_s = RESTART_MIN_S
            self.types = message.code
            self._owner.on_ready(self)

    def lost(self, life: Life) -> None:
        """Note that the data socket of a life is at its end."""
        life.at_end = True
        life.ends_s = life.ends_s or time.monotonic()
        self._settle()

    # --- news from the keeper -----------------------------------------------------------------

    def _hear(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop_control()
            self._control_closed.set()
            if not self._closing:
                self._spawn(self._replace_keeper)
            return
        *lines, self._control_buffer = (self._control_buffer + data).split(b"\n")
        for line in lines:
            self._told(json.loads(line))

    def _told(self, message: dict[str, int]) -> None:
        if "up" in message:
            self.keeper_pid = message["up"]
        elif "forked" in message:
            self.child_pid = message["forked"]
        elif self._life is not None:
            self._life.status = message["exited"]
            if message.get("hung"):
                self._life.cause = HUNG
            self._settle()

    def _drop_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    async def _replace_keeper(self) -> None:
        log.warning("worker.keeper_lost", keeper=self.keeper_pid, next="a new one is started")
        await asyncio.to_thread(sweep, MARK, self._mark)
        if (life := self._life) is not None:
            life.status = life.status or int(signal.SIGKILL)
            self._settle()
            try:
                await asyncio.wait_for(life.closed.wait(), self.config.patience.kill_s)
            except TimeoutError:
                # Something that cannot be killed now, or was not found, holds the child's socket. A
                # process with SIGKILL pending never runs again, so it is as good as dead.
                log.error("worker.child_unkillable", pid=self.child_pid, next="it is given up")
                life.at_end = True
                self._settle()
        await asyncio.gather(*self.readers, return_exceptions=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
        while not self._closing:
            await self._pause()
            try:
                await self.start()
                break
            except OSError as error:
                log.error("worker.keeper_failed", error=str(error), next_try_s=self._restart_s)

    def _settle(self) -> None:
        """Tell of the death once both sides of it are known."""
        life = self._life
        if life is None or life.status is None or not life.at_end:
            return
        self._life = None
        was_ready, self.is_ready = self.is_ready, False
        cause, told = self._why(life, life.status)
        kept = life.kept()
        running, started_ns, output_at = life.board.running()
        life.close()
        if was_ready or life.killed:
            self._restart_s = RESTART_MIN_S
        if self._closing:
            return
        death = Death(
            cause, kept, running, started_ns, output_at, life.output_path, told, life.was_ready
        )
        self._owner.on_died(self, death)
        # Without a keeper there is none to fork: `_replace_keeper` goes on from here.
        if self._control is not None:
            prompt = was_ready or life.killed
            self._spawn(self._fork if prompt else self._fork_later)

    def _why(self, life: Life, status: int) -> tuple[str, str]:
        """Return the cause of a death, and what more there is to say."""
        cause = life.cause or cause_of(status)
        if cause == "signal 9" and not life.killed and oom_kills() > life.oom_kills:
            told = "the kernel killed it, as the machine or its container ran out of memory"
            return "oom", f"{told}; it was last seen with {life.peak_bytes // MIB} MiB"
        return cause, life.told

    async def _fork_later(self) -> None:
        await self._pause()
        await self._fork()

    async def _pause(self) -> None:
        pause_s, self._restart_s = self._restart_s, min(RESTART_MAX_S, self._restart_s * 2)
        await asyncio.sleep(pause_s)


class _Data(asyncio.Protocol):
    """The worker's end of a child's socket."""

    def __init__(self, slot: Slot, life: Life) -> None:
        self._slot, self._life = slot, life
        self._frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do what asyncio's do, but are not subclasses of them.
        self._life.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            try:
                message = decode_from_child(body)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                ended, whole = salvage_ended(body)
                self._slot.received(ended)
                if not whole:
                    # A handler scribbled on our descriptor: nothing more it says can be trusted.
                    log.error("worker.child_garbled", error=str(error), next="its child is killed")
                    self._slot.kill()
                    return
            else:
                self._slot.received(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._life.transport = None
        self._slot.lost(self._life)


def _launch_keeper(control: socket.socket, scratch: Path, mark: str, patience_s: float) -> None:
    hidden = (SECRET_PREFIX, MARK, "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    env[MARK] = mark
    env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    fd = control.fileno()
    # -P: the working directory is no place to import our own modules from.
    command = [sys.executable, "-P", "-m", "cluster.worker.keeper"]
    command += [str(fd), str(scratch), str(patience_s)]
    with subprocess.Popen(
        command, env=env, pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as launcher:
        launcher.wait()
