"""The processes of a running Drayman by kind, and what they cost.

They are known by the run's nonce in their environment: keepers and their children are nobody's
descendants. What it doesn't show: what a process did after the last look at it, if it ended then.
"""

import contextlib
import os
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.server import Server
from service.runfile import RUN_ENV

__all__ = ["COMPACTION", "KINDS", "MANAGER", "OWN", "UP", "Meter", "kinds_of", "pids_of", "pss_mb"]

MANAGER, COMPACTION, UP = "QueueManager", "compaction", "drayman up"
OTHER = "other Ray"
#: What a command line holds, and what it is then; the first that fits.
KINDS = {
    "ray::QueueManager": MANAGER,
    "ray::Worker": "Worker",
    "ray::_compact": COMPACTION,
    "ray::ServeReplica": "ServeReplica",
    "cluster.worker.keeper": "keeper + child",
    "haproxy": "edge",
    "ray::HAProxy": "edge",
    "ray::Proxy": "edge",
    "ray::ServeController": "ServeController",
    "raylet/raylet": "raylet",
    "gcs_server": "GCS",
}
#: Those that are Drayman's and not Ray's or Serve's.
OWN = (MANAGER, "Worker", "keeper + child", "ServeReplica", COMPACTION, UP)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def kinds_of(server: Server) -> dict[int, str]:
    """Return the kind of every process of the run, by id."""
    needle, found = f"{RUN_ENV}={server.run.nonce}\0".encode(), {server.pid: UP}
    for entry in Path("/proc").iterdir():
        # A process may end between two looks.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and needle in (entry / "environ").read_bytes():
                found.setdefault(int(entry.name), _kind((entry / "cmdline").read_bytes()))
    return found


def _kind(command: bytes) -> str:
    line = command.replace(b"\0", b" ").decode(errors="replace")
    return next((kind for part, kind in KINDS.items() if part in line), OTHER)


def pids_of(server: Server, kind: str) -> list[int]:
    """Return the processes of one kind."""
    return [pid for pid, found in kinds_of(server).items() if found == kind]


def pss_mb(server: Server) -> dict[str, float]:
    """Return the memory of each kind; what processes share is divided among them."""
    held: dict[str, float] = defaultdict(float)
    for pid, kind in kinds_of(server).items():
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            held[kind] += kib * 1024 / 1e6
    return held


@dataclass(slots=True)
class _Seen:
    """One process, as at the first and the last look."""

    kind: str
    cpu_s: tuple[float, float]
    written: tuple[int, int]


class Meter:
    """Watches a run within a `with` block; processes that come and go meanwhile are counted."""

    def __init__(self, server: Server, every_s: float = 0.25) -> None:
        self._server, self._every_s = server, every_s
        self._seen: dict[int, _Seen] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._look(is_first=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def cpu_s(self) -> dict[str, float]:
        """Return the seconds of CPU that each kind took."""
        return self._sum({pid: last - first for pid, (first, last) in self._pairs("cpu_s")})

    def written(self) -> dict[str, float]:
        """Return the bytes that each kind sent to the disk."""
        return self._sum({pid: last - first for pid, (first, last) in self._pairs("written")})

    def _pairs(self, name: str) -> list[tuple[int, tuple[float, float]]]:
        return [(pid, getattr(seen, name)) for pid, seen in self._seen.items()]

    def _sum(self, values: dict[int, float]) -> dict[str, float]:
        total: dict[str, float] = defaultdict(float)
        for pid, value in values.items():
            total[self._seen[pid].kind] += value
        return total

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()

    def _look(self, *, is_first: bool = False) -> None:
        for pid, kind in kinds_of(self._server).items():
            try:
                cpu_s, written = _cpu_s(pid), _written(pid)
            except OSError:
                continue
            # One that began within the block did all its work within it.
            began = (cpu_s, written) if is_first else (0.0, 0)
            seen = self._seen.setdefault(pid, _Seen(kind, (began[0], 0.0), (began[1], 0)))
            # Ray's process takes another title for as long as it runs a task.
            seen.kind = COMPACTION if COMPACTION in (kind, seen.kind) else kind
            seen.cpu_s = seen.cpu_s[0], cpu_s
            seen.written = seen.written[0], written


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _written(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
