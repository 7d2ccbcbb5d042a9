"""Compaction as a Ray task."""

import os
import time

import msgspec
import ray

from cluster.actors.placement import placement
from cluster.compaction import CompactionPlan, compact
from cluster.settings import ClusterSettings
from cluster.slim import keep_garbage, without_pandas
from cluster.store.objects import open_store
from cluster.telemetry import configure_logging

__all__ = ["RayCompactor"]

COMPACTOR_NICENESS = 10


def _compact(settings: bytes, plan: bytes) -> bytes:
    """Fold the journal, in a process of its own that steps back for everything else."""
    os.nice(COMPACTOR_NICENESS)
    keep_garbage()
    without_pandas()
    configure_logging()
    cluster = msgspec.json.decode(settings, type=ClusterSettings)
    store = open_store(cluster.store)
    journal = open_store(cluster.journal) if cluster.journal else store
    decoded = msgspec.json.decode(plan, type=CompactionPlan)
    return msgspec.json.encode(compact(store, journal, decoded, now=time.time()))


class RayCompactor:
    """Compaction as a Ray task."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = msgspec.json.encode(settings)
        # A process that ran one exits with it: it has grown by the whole state.
        task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_compact)
        self._task = task.options(**placement(settings, "DEFAULT"))

    async def compact(self, plan: bytes) -> bytes:
        """Carry out an encoded CompactionPlan; return an encoded CompactionDone."""
        reply: bytes = await self._task.remote(self._settings, plan)
        return reply
