"""The state of things in one small answer."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Ended", "Overview", "Recent", "Spread", "WorkerTotals"]


class WorkerTotals(msgspec.Struct, frozen=True):
    """The workers, summed up."""

    alive: int
    running: Annotated[int, Meta(description="Attempts that run.")]
    free: Annotated[int, Meta(description="Slots with nothing to do.")]
    paused: int
    draining: int


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """How many jobs ended: completed, failed, cancelled."""

    completed: int
    failed: int
    cancelled: int


class Spread(msgspec.Struct, frozen=True):
    """Half of them took no longer than `p50`, and 95 in a hundred no longer than `p95`."""

    p50: float
    p95: float


class Recent(msgspec.Struct, frozen=True):
    """The newest jobs, as far as they ended within the last ten minutes."""

    begin: datetime
    since: Annotated[datetime, Meta(description="What ended before is not all counted.")]
    bin_s: int
    ended: Annotated[list[Ended], Meta(description="In each `bin_s` seconds from `begin` on.")]
    wait_s: Annotated[Spread | None, Meta(description="From when it might start to its start.")]
    run_s: Annotated[Spread | None, Meta(description="From its first start to its end.")]


class Overview(msgspec.Struct, frozen=True):
    """The state of things, beside what `/v1/queues` tells."""

    at: datetime
    workers: WorkerTotals
    recent: Recent
