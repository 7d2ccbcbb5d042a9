"""A schedule: when a job is submitted again and again, as its owner put it.

When it fires next is drawn by the shell (`cluster/cron.py`) and stands in events: rules read no
calendar.
"""

from typing import Literal

import msgspec

__all__ = ["CatchUp", "Schedule", "ScheduleSpec"]

#: What becomes of ticks nobody was there for: none of them, the last one, or all.
CatchUp = Literal["none", "latest", "all"]


class ScheduleSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What its owner said. Moments are epoch seconds."""

    name: str
    tenant: str
    #: Five fields, or six with the second before them.
    cron: str
    timezone: str = "UTC"
    catch_up: CatchUp = "latest"
    #: Each tick is late by a draw of its own below this.
    jitter_s: float = 0.0
    #: `skip`: no job for a tick while the one of an earlier tick is unfinished.
    overlap: Literal["allow", "skip"] = "allow"
    starts_at: float | None = None
    ends_at: float | None = None
    paused: bool = False
    #: The request that each tick submits, as it was given, and the JobSpec that it amounts to.
    request: msgspec.Raw
    job: msgspec.Raw

    @property
    def size(self) -> int:
        """How many bytes of JSON it has."""
        return len(memoryview(self.request)) + len(memoryview(self.job))


class Schedule(msgspec.Struct, eq=False):
    """A schedule and where it is."""

    spec: ScheduleSpec
    #: Number of the event that put it last: ticks found before mean nothing any more.
    generation: int
    #: The next tick, before jitter; None: it never fires again, or is paused.
    next_at: float | None
    last_at: float | None = None
    last_job: str = ""
    #: Ticks that submitted a job, and those that did not.
    fired: int = 0
    skipped: int = 0
