"""Processes as Linux tells of them: those below another, those that carry a mark.

Rule: nothing here raises; a process that has just gone, or is not ours, is left out.
"""

import os
import signal
import time
from pathlib import Path

__all__ = ["descendants", "kill_quietly", "sweep"]

_SWEEP_S = 5.0


def descendants(root: int) -> list[int]:
    """Return every living process below `root`, zombies left out.

    Empty where there is no /proc: there the process group of the child is all that is known.
    """
    children: dict[int, list[int]] = {}
    zombies = set()
    for pid, parent, state in _processes():
        children.setdefault(parent, []).append(pid)
        if state == "Z":
            zombies.add(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        queue += below
        found += below
    return [pid for pid in found if pid not in zombies]


def _processes() -> list[tuple[int, int, str]]:
    try:
        names = os.listdir("/proc")
    except FileNotFoundError:
        return []
    stats = ((int(name), _stat(int(name))) for name in names if name.isdigit())
    return [(pid, int(fields[1]), fields[0]) for pid, fields in stats if fields]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    # The name before it is in parentheses and may hold anything, more parentheses included.
    return text.rpartition(")")[2].split()


def sweep(variable: str, mark: str) -> None:
    """Kill whatever still carries the mark in its environment."""
    needle = f"{variable}={mark}".encode()
    give_up_at = time.monotonic() + _SWEEP_S
    while (marked := _marked(needle)) and time.monotonic() < give_up_at:
        for pid in marked:
            kill_quietly(pid)
        time.sleep(0.01)


def kill_quietly(pid: int) -> None:
    """Kill a process, if it is there and ours."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # Gone already, or it gave itself to another user.


def _marked(needle: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass  # Gone meanwhile, or not ours.
    return found
