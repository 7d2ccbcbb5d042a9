"""The keeper: a small process that holds one handler child, and leaves nothing behind when it dies.

    ray::Worker  --control socket-->  keeper  --fork-->  child  -->  ffmpeg, ...

Rule 1: when the child is gone, for whatever reason, every process below the keeper is killed before
anyone is told (as their subreaper it inherits those that forked twice or began a session).
Rule 2: the end of the control socket means that the worker is dead, `kill -9` included: kill
everything below, remove the scratch directory, and with the last one what the worker kept for all
of them, exit. Rule 3: it is nobody's direct child, because
Ray kills the direct children of a worker it ends, and a killed keeper could not obey rule 1.
Rule 4: it imports no user code, and Linux lets it start a child in a few milliseconds. Rule 5: the
silence of a worker that lives (stopped, hung) ends its child too, before the manager gives the work
to another.

Commands are lines of JSON: `{"fork": {...}}` comes with three descriptors (data socket, board,
output file); `{"kill": true}`; `{"pulse": true}`, a sign of life. It answers `{"up": pid}`,
`{"forked": pid}`, and `{"exited": wait status, "hung": 0 or 1}`.
"""

import ctypes
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from cluster.worker.processes import descendants
from cluster.worker.remains import hold

__all__ = ["CODE_FOLDER", "main"]

#: Where, beside the scratch directories, a worker keeps the code that its children run.
CODE_FOLDER = "code"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_DESCRIPTORS = 3
_MESSAGE_BYTES_MAX = 1 << 16
#: A process in uninterruptible sleep cannot be killed; the report of the child waits this long.
_SWEEP_S = 5.0
#: How often, in the time a worker may be silent, its silence is looked at.
LOOKS = 20


def main(control_fd: int, scratch: str, patience_s: float) -> NoReturn:
    """Detach from the worker, preload what children share, and serve until the worker is gone."""
    if os.fork():
        os._exit(0)
    os.setsid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    control = socket.socket(fileno=control_fd)
    try:
        held = hold(Path(scratch).parent)
    except FileNotFoundError:
        os._exit(0)  # The worker ended while this came up.
    keeper = _Keeper(control, scratch, patience_s)
    _preload()
    worker_is_gone = False
    try:
        keeper.serve()
        worker_is_gone = True
    finally:
        keeper.end()
        os.close(held)
        if worker_is_gone:
            # Whoever waits for the end of this process's work waits no longer: this may take a
            # while. A keeper that was ended while its worker lives leaves the code alone.
            _remove_code(Path(scratch).parent)
    os._exit(0)


def _remove_code(folder: Path) -> None:
    """Remove the worker's folder, unless another keeper still has its directory there."""
    try:
        if [entry.name for entry in folder.iterdir()] == [CODE_FOLDER]:
            shutil.rmtree(folder / CODE_FOLDER, ignore_errors=True)
            folder.rmdir()
    except OSError:
        pass  # It is gone, or another keeper of this worker sees to it.


def _preload() -> None:
    """Import what every child needs, once: a fork then has it for nothing."""
    import cluster.worker.child
    import jobs.registry

    jobs.registry.announced()
    gc.collect()
    gc.freeze()
    assert cluster.worker.child.__doc__


class _Keeper:
    """At most one child at a time."""

    def __init__(self, control: socket.socket, scratch: str, patience_s: float) -> None:
        self._control, self._scratch = control, scratch
        self._patience_s = patience_s
        #: When the worker last said anything.
        self._heard_s = time.monotonic()
        self._hung = False
        self._pid = os.getpid()
        self._child = 0
        self._buffer = b""
        self._fds: list[int] = []
        self._wake, wake_writer = socket.socketpair()
        self._wake.setblocking(False)
        wake_writer.setblocking(False)
        self._wake_writer = wake_writer
        signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _exit_on_signal)

    def serve(self) -> None:
        """Obey commands until the worker is gone."""
        self._say(up=self._pid)
        look_s = self._patience_s / LOOKS
        while True:
            asked_s = time.monotonic()
            readable, _, _ = select.select([self._control, self._wake], [], [], look_s)
            # A machine that stood still, this process with it, is no fault of the worker.
            self._heard_s += max(0.0, time.monotonic() - asked_s - 2 * look_s)
            if not readable:
                self._look()
            if self._wake in readable:
                _drain(self._wake)
                self._reap()
            if self._control in readable and not self._read():
                return

    def end(self) -> None:
        """Kill everything below, however long it takes, and remove the scratch directory."""
        self._sweep(None)
        scratch = Path(self._scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.parent.rmdir()
        except OSError:
            pass  # Another keeper of this worker still has its directory there.

    def _look(self) -> None:
        """Kill the child of a worker that hangs: its leases are about to end."""
        if self._child and time.monotonic() - self._heard_s > self._patience_s:
            self._hung = True
            _kill(self._child)

    def _read(self) -> bool:
        self._heard_s = time.monotonic()
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES_MAX, _DESCRIPTORS)
        except ConnectionError:
            return False
        self._fds += fds
        self._buffer += data
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            self._obey(json.loads(line))
        return bool(data)

    def _obey(self, command: dict[str, Any]) -> None:
        if "fork" in command:
            fds, self._fds = self._fds[:_DESCRIPTORS], self._fds[_DESCRIPTORS:]
            self._fork(command["fork"], *fds)
        elif "kill" in command and self._child:
            # The child first: what it starts meanwhile is found by the sweep after its death.
            _kill(self._child)

    def _fork(self, config: dict[str, Any], data_fd: int, board_fd: int, output_fd: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_child(config, data_fd, board_fd, output_fd)
        self._child = pid
        for fd in (data_fd, board_fd, output_fd):
            os.close(fd)
        self._say(forked=pid)

    def _become_child(
        self, config: dict[str, Any], data_fd: int, board_fd: int, output_fd: int
    ) -> NoReturn:
        try:
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._pid:
                os._exit(0)  # The keeper died before the death signal was asked for.
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._control.close()
            self._wake.close()
            self._wake_writer.close()
            os.dup2(output_fd, 1)
            os.dup2(output_fd, 2)
            os.close(output_fd)
            from cluster.worker.child import main as child_main

            child_main(data_fd, board_fd, json.dumps(config).encode())
        except BaseException:
            import traceback

            # To the output file, from where the worker quotes it as the cause of the crash.
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(70)

    def _reap(self) -> None:
        """Collect the dead. The child among them: first sweep, then tell."""
        status = self._collect()
        if status is None:
            return
        self._child = 0
        self._sweep(time.monotonic() + _SWEEP_S)
        hung, self._hung = self._hung, False
        self._say(exited=status, hung=int(hung))

    def _collect(self) -> int | None:
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if pid == self._child:
                found = status

    def _sweep(self, give_up_at: float | None) -> None:
        pause_s = 0.001
        while below := descendants(self._pid):
            for pid in below:
                _kill(pid)
            if give_up_at is not None and time.monotonic() > give_up_at:
                return
            time.sleep(pause_s)
            pause_s = min(0.1, pause_s * 2)
            self._collect()
        self._child = 0

    def _say(self, **message: int) -> None:
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # The worker is gone; the next read says so, and the keeper ends.


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # Gone already, or no leader of a group.


def _exit_on_signal(*_: object) -> NoReturn:
    raise SystemExit(0)


def _drain(wake: socket.socket) -> None:
    try:
        while wake.recv(4096):
            pass
    except BlockingIOError:
        pass


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl failed")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
