"""Puts the floors together for `launch`: the cluster to start, and the application to serve.

Rule 1: nothing here imports Ray at the top: `launch` sets its environment first. Rule 2: a replica
builds everything itself from plain settings, so that any number of them can run anywhere.
"""

import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from cluster.code import Deployed
from cluster.config import Config, default_config
from cluster.settings import ClusterSettings, tuned
from cluster.store.contract import Objects
from cluster.store.objects import open_store, probe
from cluster.telemetry import configure_logging
from jobs.errors import InvalidInput, Unavailable
from jobs.library.http.addresses import HTTP_ALLOW_ENV, Allowed
from jobs.library.notify.event import PUBLIC_URL_ENV, checked_public_url
from jobs.registry import Registry
from service.api_settings import ApiSettings
from service.auth import TokenStore
from service.config_file import read_config
from service.edge import confine_replica
from service.launch import Cluster, Run, Settings
from service.runfile import RunFolder, write_private
from service.tracing import traces_url

__all__ = [
    "DRAIN_GRACE_S",
    "application",
    "check_config",
    "check_store",
    "cluster_settings",
    "deployed",
    "start_cluster",
    "starting_config",
    "store_url",
]

#: How long running attempts may go on after `up` was told to stop. They are handed back then,
#: uncharged, and run again with the next `up`.
DRAIN_GRACE_S = 5.0
#: One replica answers thousands of requests a second; the bound only has to exceed what its
#: gateway lets wait, which refuses in milliseconds.
ONGOING_MAX = 30_000
#: Objects that a replica lets gather between two looks for garbage: some milliseconds of it.
REPLICA_YOUNG = 2_000
ADMIN = "drayman-up"
#: Ray puts it on every node.
NODE_LABEL = "ray.io/node-id"


def store_url(store: str) -> str:
    """Return the store as every process of the cluster can open it: folders become absolute."""
    if urlsplit(store).scheme:
        return store
    return Path(store).expanduser().absolute().as_uri()


def starting_config(settings: Settings, cpus: int, gpus: int) -> Config:
    """Return the config to begin with on a cluster of this size: the file's, with the wishes."""
    machine = default_config(cpus, gpus)
    config = machine if settings.config is None else read_config(settings.config, machine)
    return tuned(config, settings.pools)


def cluster_settings(run: Run, config: Config) -> ClusterSettings:
    """Return what the manager and workers are started with."""
    settings = run.settings
    return ClusterSettings(
        store=store_url(settings.store),
        job_modules=list(settings.jobs),
        config=config,
        run=run.nonce,
        cluster_id=_cluster_id(settings),
        take_over=settings.take_over,
        shared_mount=settings.shared_mount,
        free_space_min_mb=settings.free_space_min_mb,
        compact_after_s=settings.compact_after_s,
        retention_days=settings.retention_days,
        python_path=[os.getcwd()],
        data_dirs=_resolved(settings.data_dirs),
        output_dirs=_resolved(settings.output_dirs),
        http_allow=settings.http_allow or os.environ.get(HTTP_ALLOW_ENV, ""),
        public_url=settings.public_url or os.environ.get(PUBLIC_URL_ENV, ""),
        otlp=traces_url(settings.otlp),
    )


def _resolved(folders: Sequence[str]) -> list[str]:
    return [str(Path(folder).expanduser().resolve()) for folder in folders]


def _store_name(settings: Settings) -> str:
    return hashlib.sha256(store_url(settings.store).encode()).hexdigest()[:16]


def _cluster_id(settings: Settings) -> str:
    """Return what names this machine's use of the store, the same after a crash.

    Another machine has another one, so that two do not take the store from each other in turn.
    """
    path = settings.state / "clusters" / _store_name(settings)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, uuid.uuid4().hex.encode())
    return path.read_text()


#: What the store itself says well.
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_store(settings: Settings) -> None:
    """Refuse a store that can't be opened, read or written. InvalidInput or Unavailable says why.

    What lies in it is for the manager to judge.
    """
    try:
        store = open_store(store_url(settings.store))
    except (InvalidInput, Unavailable) as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno in _NO_RIGHT:
            raise
        # Nobody waits for a disk here: what can't be made now is most often a wrong name.
        raise InvalidInput(
            "store",
            f"{settings.store} can't be made: {cause.strerror} ({cause.filename}); "
            "choose another folder",
        ) from error
    probe(store)


def deployed(settings: Settings, types: Iterable[str]) -> dict[str, str]:
    """Return which of these types were deployed to the store, and the hash of what they run.

    Raises Unavailable, or Corrupt.
    """
    current = Deployed(open_store(store_url(settings.store))).current()
    return {name: current[name] for name in sorted(types) if name in current}


def check_config(settings: Settings) -> None:
    """Refuse a config or a wish that is wrong. InvalidInput says what, and what would do."""
    # As if there were a GPU: how many there are is known once Ray runs.
    starting_config(settings, os.cpu_count() or 1, 1)
    Allowed.parse(settings.http_allow)
    checked_public_url(settings.public_url)
    traces_url(settings.otlp)


def start_cluster(run: Run) -> Cluster:
    """Start the manager and its pools on the Ray this process is connected to.

    Raises Unavailable with the reason when the manager does not start.
    """
    import ray

    from cluster.actors.manager import start_manager, stop_cluster

    resources = ray.cluster_resources()
    config = starting_config(
        run.settings, int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    )
    settings = cluster_settings(run, config)
    settings.extend_path()
    Registry.load(settings.job_modules)  # a module that cannot be imported stops `up` here
    store = open_store(settings.store)
    lock = _lock_store(run.settings)
    start_manager(settings)

    def drain() -> None:
        stop_cluster(DRAIN_GRACE_S)
        lock.close()

    return Cluster(token=_admin_token(run.settings, store), drain=drain)


def _lock_store(settings: Settings) -> IO[str]:
    """Keep other Draymans of this user off the store while this process lives."""
    lock = (settings.state / "clusters" / f"{_store_name(settings)}.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InvalidInput(
            "store", f"{settings.store} is in use by a running Drayman; stop it, or use another"
        ) from error
    return lock


def application(run: Run) -> Any:
    """Return the Serve application: one deployment that answers all of the API."""
    import ray
    from ray import serve

    # A replica asks the manager which config is in force.
    settings = cluster_settings(run, default_config(1))
    options: dict[str, Any] = {"num_cpus": 0}
    if settings.needs_one_node:
        options["label_selector"] = {NODE_LABEL: ray.get_runtime_context().get_node_id()}
    return serve.deployment(
        name="Api",
        num_replicas=run.settings.replicas,
        max_ongoing_requests=ONGOING_MAX,
        # Our own metrics count every request; a line of Serve's for each would cost a tenth of it.
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        ray_actor_options=options,
        graceful_shutdown_timeout_s=5,
    )(serve.ingress(_builder(settings, run.nonce))(Api)).bind()


class Api:
    """The deployment's class; the application is built in its replica by `_builder`."""

    def __init__(self) -> None:
        confine_replica()


def _builder(settings: ClusterSettings, nonce: str) -> Any:
    def build() -> Any:
        from cluster.actors.gateway import connect_gateway
        from cluster.actors.port import manager_handle
        from cluster.slim import rarely_collect, take_turns
        from service.app import create_app
        from service.tracing import request_tracer

        configure_logging()
        settings.extend_path()
        store = open_store(settings.store)
        app = create_app(
            connect_gateway(manager_handle(), store),
            Registry.load(settings.job_modules),
            store,
            ApiSettings(run=nonce),
            journal=open_store(settings.journal) if settings.journal else None,
            tracer=request_tracer(settings.otlp) if settings.otlp else None,
        )
        rarely_collect(REPLICA_YOUNG)
        take_turns()
        return app

    return build


def _admin_token(settings: Settings, store: Objects) -> str:
    """Return the admin's token for this store: the last run's, if the store still knows it."""
    tokens = TokenStore(store)
    kept = RunFolder(settings.state).path(settings.port, "token")
    if kept.exists() and tokens.knows(kept.read_text()):
        return kept.read_text()
    token, _ = tokens.create("default", ["admin"], ADMIN)
    return token
