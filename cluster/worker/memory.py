"""How much memory a child and what it started hold, and whether the kernel killed for it.

Rule 1: nothing here raises: what cannot be read (no Linux, a process just gone) is 0. Rule 2: the
kernel's count of kills is this container's own where there is one, because the machine's may count
those of a neighbour.
"""

import os
from pathlib import Path

from cluster.worker.processes import descendants

__all__ = ["MIB", "held_bytes", "oom_kills", "resident_bytes"]

MIB = 1 << 20

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = Path("/sys/fs/cgroup")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of one process."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def held_bytes(pid: int) -> int:
    """Return the resident memory of a process and all below it. Looks at every process there is."""
    return resident_bytes(pid) + sum(resident_bytes(below) for below in descendants(pid))


def oom_kills(
    cgroups: Path = _CGROUPS,
    own: Path = Path("/proc/self/cgroup"),
    machine: Path = Path("/proc/vmstat"),
) -> int:
    """Return how many processes the kernel has killed here for memory; 0 if unknown."""
    for path in _counters(cgroups, own):
        found = _count(path)
        if found is not None:
            return found
    return _count(machine) or 0


def _counters(cgroups: Path, own: Path) -> list[Path]:
    """Return where this process's control group may count, most exact first."""
    found: list[Path] = []
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if not controllers:
            found.append(cgroups / inside / "memory.events")
        elif "memory" in controllers.split(","):
            folder = cgroups / "memory"
            found += [folder / inside / "memory.oom_control", folder / "memory.oom_control"]
    return found


def _count(path: Path) -> int | None:
    for line in _text(path).splitlines():
        name, _, number = line.partition(" ")
        if name == "oom_kill":
            return int(number)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
