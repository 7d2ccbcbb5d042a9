"""Puts the other queues on this machine: a virtual environment each, and Debian's servers.

Rule 1: what is installed stands in `pins/`, exactly. Rule 2: an install that was cut short is
repeated, one that ended is not. Rule 3: a server that Debian's package would start is not started.
"""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

__all__ = ["ENVIRONMENTS", "NotInstalled", "environment", "node_modules", "program"]

HERE = Path(__file__).resolve().parent
PINS = HERE / "pins"
ENVIRONMENTS = HERE.parent / ".peers"
INSTALL_S = 900

#: Where Debian keeps servers that are on nobody's PATH.
SERVER_FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/lib/postgresql/*/bin", "/usr/sbin")
#: The package that holds a program.
PACKAGES = {
    "redis-server": "redis-server",
    "rabbitmq-server": "rabbitmq-server",
    "epmd": "rabbitmq-server",
    "postgres": "postgresql",
    "initdb": "postgresql",
}
#: Debian asks this before it starts what it has installed; 101 means no.
POLICY = Path("/usr/sbin/policy-rc.d")

#: Several systems may be started at once, and share an environment.
_installing = threading.Lock()
Installed = TypeVar("Installed", Path, str)


class NotInstalled(Exception):
    """A system or a server cannot be put on this machine."""


def _one_at_a_time(install: Callable[[str], Installed]) -> Callable[[str], Installed]:
    @functools.wraps(install)
    def alone(name: str) -> Installed:
        with _installing:
            return install(name)

    return alone


@_one_at_a_time
def environment(name: str) -> Path:
    """Return the Python of this system's own environment, made first where it is missing."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    pins = PINS / f"{name}.txt"
    if not _is_stamped(folder, pins):
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "-r", str(pins))
        _stamp(folder, pins)
    return python


@_one_at_a_time
def node_modules(name: str) -> Path:
    """Return the folder whose `node_modules` holds this system, for Node.js."""
    folder = ENVIRONMENTS / name
    pins = PINS / f"{name}.txt"
    if not _is_stamped(folder, pins):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        versions = dict(line.split("==") for line in pins.read_text().split())
        package = {"private": True, "type": "module", "dependencies": versions}
        (folder / "package.json").write_text(json.dumps(package))
        # No lock file: it would keep the address of whatever registry this machine uses.
        _run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts",
             cwd=folder)  # fmt: skip
        _stamp(folder, pins)
    return folder


@_one_at_a_time
def program(name: str) -> str:
    """Return the path of a server's program, installed first where it is missing."""
    found = _find(name)
    if found is None:
        _apt_install(PACKAGES[name])
        found = _find(name)
    if found is None:
        raise NotInstalled(f"no program {name} on this machine")
    return found


def _find(name: str) -> str | None:
    # First of all, as Debian's wrapper rabbitmq-server in /usr/sbin insists on its own account.
    folders = [str(path) for each in SERVER_FOLDERS for path in sorted(Path("/").glob(each[1:]))]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))


def _is_stamped(folder: Path, pins: Path) -> bool:
    stamp = folder / ".installed"
    return stamp.is_file() and stamp.read_text() == pins.read_text()


def _stamp(folder: Path, pins: Path) -> None:
    (folder / ".installed").write_text(pins.read_text())


def _apt_install(package: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalled(f"the package {package} is missing, and only root can install it")
    with _nothing_started():
        with contextlib.suppress(NotInstalled):
            _run("apt-get", "update", "-q")
        _run("apt-get", "install", "-q", "-y", "--no-install-recommends", package)


@contextlib.contextmanager
def _nothing_started() -> Iterator[None]:
    # A machine with a policy of its own knows better.
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def _run(*command: str, cwd: Path | None = None) -> None:
    said_as = " ".join([Path(command[0]).name, *command[1:4]])
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=quiet, capture_output=True, text=True, timeout=INSTALL_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{said_as}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotInstalled(f"{said_as}: {said[-1] if said else done.returncode}")
