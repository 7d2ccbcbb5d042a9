"""Is this machine fit for Drayman, and is what runs here well?

Rule 1: it changes nothing. Rule 2: each finding says what to do about it, if there is anything.
"""

import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path

import psutil

from jobs.errors import DraymanError
from jobs.registry import Registry
from service.diagnosis import diagnose, replicas
from service.edge import haproxy_binary
from service.finding import Finding, Level
from service.runfile import RunFile, RunFolder, find_descendants, is_alive, state_dir

__all__ = ["Finding", "examine"]

GIB = 1 << 30
#: Ray and its workers hold some hundred files and sockets each.
FILES_MIN = 4096
MEMORY_MIN_BYTES, DISK_MIN_BYTES = 2 * GIB, 2 * GIB
#: Ray's object store lies there; it falls back to /tmp, slowly, where there is too little.
SHM_MIN_BYTES = 256 * 1024 * 1024


def examine(state: Path | None = None) -> list[Finding]:
    """Look at everything; return what was found, in order."""
    folder = state or state_dir()
    checks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        _edge,
        _limits,
        lambda: _disk(folder),
        _job_types,
        lambda: _runs(RunFolder(folder)),
    ]
    return [finding for check in checks for finding in check()]


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
    for package in ("ray", "pyarrow", "obstore"):
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            yield Finding(package, "wrong", "is not installed; run `make setup`")


def _edge() -> Iterator[Finding]:
    binary = haproxy_binary()
    if binary is None:
        text = "proxy only, some hundred requests a second; HAProxy (thousands) needs Linux"
        yield Finding("edge", "note", text)
    else:
        yield Finding("edge", "ok", f"haproxy at {binary}; its listeners are confined to loopback")


def _limits() -> Iterator[Finding]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < FILES_MIN:
        yield Finding("open files", "wrong", f"limit is {files}; run `ulimit -n {FILES_MIN}` first")
    else:
        yield Finding("open files", "ok", f"limit is {files}")
    memory = psutil.virtual_memory().available
    level: Level = "ok" if memory >= MEMORY_MIN_BYTES else "note"
    yield Finding("memory", level, f"{memory / GIB:.1f} GiB available; Ray itself takes about 1")
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        level = "ok" if free >= SHM_MIN_BYTES else "note"
        yield Finding("shared memory", level, f"{free / GIB:.1f} GiB free in {shm}")


def _disk(folder: Path) -> Iterator[Finding]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding("state", "wrong", f"{folder} can't be written; set DRAYMAN_HOME to another")
        return
    free = shutil.disk_usage(there).free
    level: Level = "ok" if free >= DISK_MIN_BYTES else "wrong"
    yield Finding("disk", level, f"{free / GIB:.1f} GiB free for {folder}")


def _job_types() -> Iterator[Finding]:
    try:
        names = sorted(Registry.load())
    except DraymanError as error:
        yield Finding("job types", "wrong", str(error))
    else:
        yield Finding("job types", "ok", ", ".join(names) or "none installed; use --jobs")


def _runs(runs: RunFolder) -> Iterator[Finding]:
    recorded = runs.all()
    if not recorded:
        yield Finding("running", "ok", "no Drayman runs here")
    for run in recorded:
        name = f"port {run.port}"
        if not is_alive(run.driver):
            text = f"died; `drayman down --port {run.port}` clears up, and so does the next `up`"
            yield Finding(name, "note", text)
            continue
        yield Finding(name, "ok", f"{run.url}, edge {run.edge}, store {run.store}")
        yield from _listeners(name, run)
        if run.ready:
            yield from diagnose(name, run.url, Path(run.token_path).read_text().strip(), run.store)
            if run.dashboard_url:
                token = run.ray_token_path and Path(run.ray_token_path).read_text().strip()
                yield from replicas(run.dashboard_url, token)
        else:
            yield Finding(f"{name} answers", "note", "it is starting")


def _listeners(name: str, run: RunFile) -> Iterator[Finding]:
    """Tell which sockets of the run can be reached from other machines."""
    pids = {p.pid for p in [run.driver, *run.processes, *find_descendants(run.nonce)]}
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        yield Finding(f"{name} listeners", "note", "can't be seen without more rights")
        return
    opened = sorted(
        {
            c.laddr.port
            for c in connections
            if c.status == psutil.CONN_LISTEN and c.pid in pids and not _is_loopback(c.laddr.ip)
        }
    )
    meant = [] if _is_loopback(run.host) else [run.port]
    strangers = [port for port in opened if port not in meant]
    if strangers:
        ports = ", ".join(map(str, strangers))
        text = f"{ports} can be reached from other machines; close them with a firewall"
        yield Finding(f"{name} listeners", "wrong", text)
    else:
        where = f"only the API, on {run.host}:{run.port}," if meant else "nothing"
        text = f"{where} can be reached from other machines"
        yield Finding(f"{name} listeners", "ok", text)


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return socket.gethostbyname(host).startswith("127.")
    # Ray's sockets are `::ffff:127.0.0.1`, which Python does not call loopback before 3.13.
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
