"""Redis, RabbitMQ and PostgreSQL as Debian packages them, each on loopback in a folder of its own.

Rule 1: never the machine's own service, nor its data. Rule 2: settings are the package's
defaults, but for where it listens and what its name says. Rule 3: ended by process id.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.install import program
from benchmarks.peers.processes import (
    LOOPBACK,
    Failed,
    accepts,
    end,
    free_port,
    start,
    wait_until,
)

__all__ = ["BROKERS", "Broker"]

READY_S = 90.0
FSYNC = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass(frozen=True)
class Broker:
    """Where a running broker answers."""

    url: str = ""
    pids: list[int] = field(default_factory=list)
    #: Empties it, while no one is connected.
    clear: Callable[[], None] = lambda: None


@contextlib.contextmanager
def _redis(folder: Path, *options: str) -> Iterator[Broker]:
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", LOOPBACK,
               "--dir", str(folder), *options]  # fmt: skip
    server = start(command, log=folder / "log", cwd=folder, env={})
    try:
        wait_until(lambda: accepts(port), READY_S, "redis-server", server)
        yield Broker(f"redis://{LOOPBACK}:{port}", [server.pid], lambda: _flush(port))
    finally:
        end(server)


def _flush(port: int) -> None:
    with socket.create_connection((LOOPBACK, port), 60) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        if not (answer := connection.recv(100)).startswith(b"+OK"):
            raise Failed(f"FLUSHALL: {answer!r}")


@contextlib.contextmanager
def _rabbitmq(folder: Path) -> Iterator[Broker]:
    port, names = free_port(), free_port()
    (folder / "plugins").write_text("[].\n")
    env = {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": "peers@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(names),
    }
    # Else the server would start one that outlives it.
    epmd = start([program("epmd"), "-address", LOOPBACK, "-port", str(names)],
                 log=folder / "log", cwd=folder, env=env)  # fmt: skip
    try:
        wait_until(lambda: accepts(names), READY_S, "epmd", epmd)
        server = start([program("rabbitmq-server")], log=folder / "log", cwd=folder, env=env)
        try:
            wait_until(lambda: accepts(port), READY_S, "rabbitmq-server", server)
            # Its adapter purges the queue: a start of rabbitmqctl takes two seconds of a core.
            yield Broker(f"amqp://guest:guest@{LOOPBACK}:{port}//", [server.pid])
        finally:
            end(server)
    finally:
        end(epmd)


@contextlib.contextmanager
def _postgresql(folder: Path) -> Iterator[Broker]:
    port = free_port()
    # PostgreSQL refuses to run as root; Debian's package brings an account for it.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user, user)
    data, log = folder / "data", folder / "log"
    initdb = [program("initdb"), "-D", str(data), "-U", "postgres", "-A", "trust"]
    if start(initdb, log=log, cwd=folder, env={}, user=user).wait(READY_S):
        raise Failed("initdb failed")
    command = [program("postgres"), "-D", str(data), "-p", str(port), "-k", str(folder),
               "-c", f"listen_addresses={LOOPBACK}"]  # fmt: skip
    server = start(command, log=log, cwd=folder, env={}, user=user)
    try:
        wait_until(lambda: _psql(port, "select 1"), READY_S, "postgres", server)
        clear = ("drop database if exists peers with (force)", "create database peers")
        url = f"postgresql://postgres@{LOOPBACK}:{port}/peers"
        yield Broker(url, [server.pid], lambda: _must(_psql(port, *clear), "create database"))
    finally:
        # Killed, it would leave its shared memory behind; asked, it goes at once without clients.
        end(server, politely_s=READY_S)


def _psql(port: int, *statements: str) -> bool:
    words = [word for statement in statements for word in ("-c", statement)]
    command = ["psql", "-X", "-q", "-h", LOOPBACK, "-p", str(port), "-U", "postgres", *words]
    return subprocess.run(command, capture_output=True, timeout=READY_S).returncode == 0


def _must(succeeded: bool, what: str) -> None:
    if not succeeded:
        raise Failed(f"{what} failed")


@contextlib.contextmanager
def _none(folder: Path) -> Iterator[Broker]:
    yield Broker()


BROKERS: dict[str, Callable[[Path], AbstractContextManager[Broker]]] = {
    "redis": _redis,
    "redis-fsync": lambda folder: _redis(folder, *FSYNC),
    "rabbitmq": _rabbitmq,
    "postgresql": _postgresql,
    "none": _none,
}
