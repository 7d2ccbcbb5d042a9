"""Puts the floors together for `launch`: the cluster to start, and the application to serve.

Rule 1: nothing here imports Ray at the top: `launch` sets its environment first. Rule 2: a replica
builds everything itself from plain settings, so that any number of them can run anywhere.
"""

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.settings import ClusterSettings, default_pools
from cluster.store.contract import Objects
from cluster.store.objects import open_store
from jobs.registry import Registry
from service.api_settings import ApiSettings
from service.auth import TokenStore
from service.launch import Cluster, Run, Settings
from service.runfile import RunFolder

__all__ = ["DRAIN_GRACE_S", "application", "cluster_settings", "start_cluster", "store_url"]

#: How long running attempts may go on after `up` was told to stop. They are handed back then,
#: uncharged, and run again with the next `up`.
DRAIN_GRACE_S = 5.0
#: One replica answers thousands of requests a second; the bound only has to exceed what its
#: gateway lets wait, which refuses in milliseconds.
ONGOING_MAX = 30_000
ADMIN = "drayman-up"


def store_url(store: str) -> str:
    """Return the store as every process of the cluster can open it: folders become absolute."""
    if urlsplit(store).scheme:
        return store
    return Path(store).expanduser().absolute().as_uri()


def cluster_settings(settings: Settings, cpus: int, gpus: int = 0) -> ClusterSettings:
    """Return what the manager and workers are started with."""
    return ClusterSettings(
        store=store_url(settings.store),
        job_modules=list(settings.jobs),
        pools=default_pools(cpus, gpus),
        python_path=[os.getcwd()],
    )


def start_cluster(run: Run) -> Cluster:
    """Start the manager and its pools on the Ray this process is connected to.

    Raises Unavailable with the reason when the manager does not start.
    """
    import ray

    from cluster import actors

    resources = ray.cluster_resources()
    settings = cluster_settings(
        run.settings, int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    )
    store = open_store(settings.store)
    actors.start_manager(settings)
    return Cluster(
        token=_admin_token(run.settings, store),
        drain=lambda: actors.stop_cluster(DRAIN_GRACE_S),
    )


def application(run: Run) -> Any:
    """Return the Serve application: one deployment that answers all of the API."""
    from ray import serve

    settings = cluster_settings(run.settings, 1)
    return serve.deployment(
        name="Api",
        num_replicas=1,
        max_ongoing_requests=ONGOING_MAX,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=5,
    )(serve.ingress(_builder(settings, run.nonce))(Api)).bind()


class Api:
    """The deployment's class; the application is built in its replica by `_builder`."""


def _builder(settings: ClusterSettings, nonce: str) -> Any:
    def build() -> Any:
        from cluster import actors
        from service.app import create_app

        extend_path(settings.python_path)
        return create_app(
            actors.connect_gateway(actors.manager_handle()),
            Registry.load(settings.job_modules),
            open_store(settings.store),
            ApiSettings(run=nonce),
        )

    return build


def extend_path(folders: list[str]) -> None:
    """Let modules in these folders be imported here."""
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]


def _admin_token(settings: Settings, store: Objects) -> str:
    """Return the admin's token for this store: the last run's, if the store still knows it."""
    tokens = TokenStore(store)
    kept = RunFolder(settings.state).path(settings.port, "token")
    if kept.exists() and tokens.knows(kept.read_text()):
        return kept.read_text()
    token, _ = tokens.create("default", ["admin"], ADMIN)
    return token
