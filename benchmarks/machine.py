"""Where the figures were measured: without it nobody can compare them."""

import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.server import ROOT

__all__ = ["describe"]

FSYNCS, FSYNC_BYTES = 50, 4096


def describe() -> dict[str, str]:
    """Return what this machine and its software are."""
    return {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "?"),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "ray": version("ray"),
        "pyarrow": version("pyarrow"),
        "drayman": f"{version('drayman')}, commit {_commit()}",
        "fsync of 4 KiB, p50": f"{_fsync_p50_ms():.2f} ms",
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _commit() -> str:
    """Return what was measured; a copy without its history cannot say."""
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _fsync_p50_ms() -> float:
    """Measure on the disk that holds the benchmarks' stores."""
    took = []
    with tempfile.NamedTemporaryFile(prefix="drayman-bench-") as file:
        for _ in range(FSYNCS):
            began = time.perf_counter()
            file.write(bytes(FSYNC_BYTES))
            file.flush()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)
