"""Schedules, and what puts one."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["Schedule", "ScheduleRequest", "Schedules"]


class ScheduleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `PUT /v1/schedules/{name}` takes."""

    cron: Annotated[
        str,
        Meta(
            description="Minute, hour, day of month, month, day of week; maybe the second before "
            "them. Or `@daily` and the like."
        ),
    ]
    job: Annotated[
        msgspec.Raw,
        Meta(
            description="What each tick submits, as `POST /v1/jobs` takes it: all but `run_at`, "
            "`delay_s` and `expires_at`.",
            extra_json_schema={"$ref": "#/components/schemas/JobRequest"},
        ),
    ]
    timezone: Annotated[str, Meta(description="An IANA name: `Europe/Berlin`.")] = "UTC"
    catch_up: Annotated[
        Literal["none", "latest", "all"],
        Meta(description="Which ticks are made up for that came while nothing could fire them."),
    ] = "latest"
    jitter_s: Annotated[
        Annotated[float, Meta(ge=0, le=86_400)],
        Meta(description="Each job is late by an amount of its own, from 0 to this."),
    ] = 0.0
    overlap: Annotated[
        Literal["allow", "skip"],
        Meta(description="`skip`: no job while that of an earlier tick is unfinished."),
    ] = "allow"
    starts_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None, Meta(description="No tick before this moment.")
    ] = None
    ends_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None, Meta(description="No tick after this moment.")
    ] = None
    paused: Annotated[bool, Meta(description="Keep it, but fire nothing.")] = False


class Schedule(msgspec.Struct, frozen=True):
    """A job that is submitted again and again."""

    name: str
    tenant: str
    cron: str
    timezone: str
    catch_up: Literal["none", "latest", "all"]
    jitter_s: float
    overlap: Literal["allow", "skip"]
    starts_at: datetime | None
    ends_at: datetime | None
    paused: bool
    job: Annotated[
        msgspec.Raw,
        Meta(
            description="What each tick submits.",
            extra_json_schema={"$ref": "#/components/schemas/JobRequest"},
        ),
    ]
    next: Annotated[
        list[datetime],
        Meta(description="The next ticks, before jitter. Empty: it is paused, or over."),
    ]
    last_at: Annotated[datetime | None, Meta(description="The last tick.")]
    last_job: Annotated[str | None, Meta(description="The job it submitted last.")]
    fired: Annotated[int, Meta(description="Ticks that submitted a job.")]
    skipped: Annotated[int, Meta(description="Ticks that did not.")]


class Schedules(msgspec.Struct, frozen=True):
    """Schedules by tenant and name, each with its next tick."""

    schedules: list[Schedule]
    next_after: Annotated[str | None, Meta(description="Cursor of the next page; null: the last.")]
