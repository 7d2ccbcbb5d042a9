"""A section of the report, and the columns that all its tables of flights share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.library.report.headline import printed
from jobs.library.report.sums import Sums

__all__ = ["BARS_SHOWN", "PERFORMANCE", "PERFORMANCE_WIDTHS", "Section", "performance"]

BARS_SHOWN = 10
#: The figures that every table about a set of flights shows, and the shares of their widths.
PERFORMANCE = (
    "Flights",
    "Cancelled %",
    "On time %",
    "Departure delay,\u00a0min",
    "Arrival delay,\u00a0min",
)
PERFORMANCE_WIDTHS = (13, 13, 12, 14, 13)


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `content` makes its flowables anew for each run."""

    title: str
    lead: str
    content: Callable[[], list[Any]]


def performance(sums: Sums) -> tuple[str, ...]:
    """Return the figures of `PERFORMANCE` for one set of flights."""
    return (
        printed(sums.flights),
        printed(sums.cancelled_pct),
        printed(sums.on_time_pct),
        printed(sums.mean_departure_delay),
        printed(sums.mean_arrival_delay),
    )
