"""Starts other people's programs, knows what they cost, and ends them by their ids."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

__all__ = [
    "Failed",
    "accepts",
    "cpu_s",
    "descendants",
    "end",
    "free_port",
    "last_line",
    "pss_mb",
    "start",
    "wait_until",
]

LOOPBACK = "127.0.0.1"
#: What of this process's environment others need.
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


class Failed(Exception):
    """A program did not do what it was started for."""


def start(
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    env: Mapping[str, str],
    user: str | None = None,
    **pipes: int,
) -> "subprocess.Popen[str]":
    """Start a program in a session of its own, its output appended to `log`."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    with log.open("a") as output:
        return subprocess.Popen(
            command, cwd=cwd, env={**kept, **env}, user=user, group=user, text=True,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, **pipes},
        )  # fmt: skip


def descendants(pids: Iterable[int]) -> list[psutil.Process]:
    """Return these processes and all that they started, as far as they live."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(pid)
            found |= {process.pid: process for process in [root, *root.children(recursive=True)]}
    return list(found.values())


def end(*processes: "subprocess.Popen[str]", politely_s: float = 0.0) -> None:
    """End each with all that it started: by SIGTERM where it is given time, then by SIGKILL."""
    trees = [(process, descendants([process.pid])) for process in processes]
    if politely_s:
        for process, _ in trees:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + politely_s
        for process, _ in trees:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    for process, tree in trees:
        # psutil compares start times: an id that was given to another process is spared.
        for member in [*tree, *_session(process.pid)]:
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.kill()
        process.wait()


def _session(pid: int) -> Iterator[psutil.Process]:
    # What was forked while the tree was being looked at; no one else can have this session's id.
    for member in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(member.pid) == pid:
                yield member


def cpu_s(pids: Iterable[int]) -> float:
    """Return user and system seconds of these trees, with those of members that have ended."""
    total = 0.0
    for process in descendants(pids):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def pss_mb(pids: Iterable[int]) -> float:
    """Return the memory of these trees, shared pages counted once, MB."""
    total = 0
    for process in descendants(pids):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 1e6


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Tell whether someone listens on this port of loopback."""
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
    except OSError:
        return False
    return True


def wait_until(
    holds: Callable[[], bool], within_s: float, what: str, *needed: "subprocess.Popen[str]"
) -> None:
    """Wait for something to hold; raise Failed if it does not, or if a process ends meanwhile."""
    for _ in _moments(within_s):
        if holds():
            return
        if any(process.poll() is not None for process in needed):
            raise Failed(f"{what}: a process ended early")
    raise Failed(f"{what}: not within {within_s:g} s")


def last_line(log: Path) -> str:
    """Return what a program said last, for the note of a figure that is missing."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")[:160]


def _moments(within_s: float) -> Iterator[None]:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
