"""Drayman's own Ray: one machine, loopback only, token required.

Rule 1: its settings are environment variables that Ray reads when imported, so nothing may import
Ray before `start`. Rule 2: it dies with the thread that started it (the kernel sees to it), and
says so within a second if one of its own processes dies first. Rule 3: that is not the main thread,
for which Ray would have a signal handler of its own.
"""

import functools
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.settings import NAMESPACE
from service.edge import LOOPBACK, free_port
from service.runfile import ProcessRecord, identify, write_private

__all__ = [
    "Head",
    "environment",
    "expect_deaths",
    "leave_out_deaths",
    "make_folder",
    "require_ray_not_imported",
]

OBJECT_STORE_BYTES = 200_000_000
#: Ray puts sockets 65 characters below the folder, and a socket's path may have 107.
FOLDER_LENGTH_MAX = 40

#: Ray exports what the processes it starts should know, and these must not leak into them.
FOREIGN_ENV = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS")
#: Processes Ray cannot do without; the others are restarted or only observe.
VITAL = ("gcs_server", "raylet")
#: How Ray begins to tell of each process that ended, also of a worker that was drained or renewed.
DEATH_NOTE = "A worker died or was killed while executing a task"
#: How Ray begins to tell that it was started beside the main thread.
HANDLER_NOTE = "SIGTERM handler is not set"


def make_folder() -> Path:
    """Make the run's own temporary folder, short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="drayman-"))
    if len(str(folder)) <= FOLDER_LENGTH_MAX:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="drayman-", dir="/tmp"))


def environment(token_file: Path) -> dict[str, str]:
    """Return what must stand in the environment before Ray is imported. Makes the token."""
    if not token_file.exists():
        write_private(token_file, secrets.token_hex(32).encode())
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Ray binds to loopback what belongs to a node at 127.0.0.1, but gives a node that
        # address only where it has no clusters, which is what this says.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray runs workers at nice 15; ours include the queue and the way in.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else a driver under `uv run` makes a new environment for each worker.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        # Ray jobs run what the shell finds: `drayman` and `python` are to be these.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "DASHBOARD_METRIC_PORT": str(free_port()),
        "AUTOSCALER_METRIC_PORT": str(free_port()),
        # A process title must not overwrite the environment, by which `runfile` knows ours.
        "SPT_NOENV": "1",
    }


def require_ray_not_imported() -> None:
    """Raise RuntimeError where it is too late for settings to reach Ray."""
    if "ray" in sys.modules:
        raise RuntimeError("ray was imported before it was started: its settings would be ignored")


@dataclass(frozen=True, slots=True)
class Head:
    """Ray as this process started it, or joined it."""

    address: str
    dashboard_url: str
    processes: list[ProcessRecord]

    @classmethod
    def start(cls, folder: Path, with_dashboard: bool) -> "Head":
        """Start Ray in this process's care. Blocks some seconds."""
        import ray
        from ray._private.utils import write_ray_address

        _leave_out_handlers()
        with _lean_ray_parameters():
            context = ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=with_dashboard,
                dashboard_host=LOOPBACK,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="warning",
                _node_ip_address=LOOPBACK,
                _temp_dir=str(folder),
            )
        address = context.address_info["gcs_address"]
        # Ray jobs look here for their Ray; without it they may find another one's.
        write_ray_address(address, str(folder))
        return cls(
            address=address,
            dashboard_url=f"http://{context.dashboard_url}" if context.dashboard_url else "",
            processes=_ray_processes(),
        )

    @classmethod
    def join(cls, address: str) -> "Head":
        """Connect to a running Ray; this machine must be one of its nodes."""
        import ray

        _leave_out_handlers()
        context = ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="warning"
        )
        url = context.dashboard_url
        return cls(context.address_info["gcs_address"], f"http://{url}" if url else "", [])

    def vital_processes(self) -> list[ProcessRecord]:
        """Return the processes without which this Ray is dead."""
        return [process for process in self.processes if process.what in VITAL]


def forget_foreign_settings() -> None:
    """Drop settings of another Ray from the environment: they would win over our own."""
    for name in FOREIGN_ENV:
        os.environ.pop(name, None)


@contextmanager
def _lean_ray_parameters() -> Iterator[None]:
    """Give `ray.init` what only `ray start` has options for.

    No autoscaler on one machine (its process would take 2 s of two cores), no log monitor (we echo
    nothing), and a free port for the agent that starts Ray jobs: two Rays on one machine want the
    same one, and the later one's `ray job submit` would not work.
    """
    from ray._private import parameter

    plain: Any = parameter.RayParams
    parameter.RayParams = functools.partial(
        plain, no_monitor=True, include_log_monitor=False, dashboard_agent_listen_port=0
    )
    try:
        yield
    finally:
        parameter.RayParams = plain


def expect_deaths() -> None:
    """Let Ray not tell any more of processes that died, as if of crashes: now we end them."""
    from ray._private import worker

    worker.print_to_stdstream = lambda data, ignore_prefix=False: None


def leave_out_deaths() -> None:
    """Show what Ray tells the driver, but not of workers that ended: the manager sees to these."""
    from ray._private import worker

    show = worker.print_to_stdstream

    def show_others(data: dict[str, Any], ignore_prefix: bool) -> None:
        if not any(line.startswith(DEATH_NOTE) for line in data["lines"]):
            show(data, ignore_prefix)

    worker.print_to_stdstream = show_others


def _leave_out_handlers() -> None:
    """Let Ray not warn that the main thread's signal handler stays as it is: it is ours."""
    logger = logging.getLogger("ray._private.worker")
    logger.addFilter(lambda record: not record.getMessage().startswith(HANDLER_NOTE))


def _ray_processes() -> list[ProcessRecord]:
    import ray

    records = [
        identify(info.process.pid, kind)
        for kind, infos in ray._private.worker._global_node.all_processes.items()
        for info in infos
    ]
    return [record for record in records if record is not None]
