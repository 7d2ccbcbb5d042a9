"""The headline figures: what the job returns, and the very text the PDF shows for each.

Rule 1: a figure is printed by `printed` and nowhere else, so that the page and the job's result
cannot differ. Rule 2: what cannot be known (no planes table, nothing completed) is None.
"""

from dataclasses import asdict, dataclass

from jobs.library.report.activity import Activity
from jobs.library.report.fleet import Fleet

__all__ = ["UNKNOWN", "Headline", "headline_of", "printed"]

UNKNOWN = "n/a"


@dataclass(frozen=True)
class Headline:
    """Figures of the year. Rates are percent and means minutes, both to one decimal."""

    flights: int
    operated: int
    cancelled: int
    cancelled_pct: float | None
    #: Left, but without a recorded arrival delay: diverted, or not recorded.
    not_completed: int
    on_time_pct: float | None
    long_delay_pct: float | None
    mean_departure_delay_min: float | None
    mean_arrival_delay_min: float | None
    median_arrival_delay_min: float | None
    p90_arrival_delay_min: float | None
    distance_miles: int
    air_hours: float
    origins: int
    destinations: int
    #: Distinct registrations among operated flights.
    aircraft: int
    #: Seats on operated flights whose aircraft the planes table has; None without that table.
    seats_flown: int | None
    seats_coverage_pct: float | None

    def as_dict(self) -> dict[str, int | float | None]:
        """Return the figures by name."""
        return asdict(self)


def headline_of(activity: Activity, fleet: Fleet | None) -> Headline:
    """Return the headline figures of the year."""
    total = activity.total
    delays = activity.arrival_delays
    return Headline(
        flights=total.flights,
        operated=total.operated,
        cancelled=total.cancelled,
        cancelled_pct=_rounded(total.cancelled_pct),
        not_completed=total.not_completed,
        on_time_pct=_rounded(total.on_time_pct),
        long_delay_pct=_rounded(total.long_delay_pct),
        mean_departure_delay_min=_rounded(total.mean_departure_delay),
        mean_arrival_delay_min=_rounded(total.mean_arrival_delay),
        median_arrival_delay_min=_rounded(delays.quantile(1, 2)),
        p90_arrival_delay_min=_rounded(delays.quantile(9, 10)),
        distance_miles=total.miles,
        air_hours=round(total.air_hours, 1),
        origins=len(activity.origins),
        destinations=len(activity.destinations),
        aircraft=sum(1 for sums in activity.aircraft.values() if sums.operated),
        seats_flown=fleet.seats_flown if fleet else None,
        seats_coverage_pct=_rounded(fleet.coverage_pct) if fleet else None,
    )


def printed(value: float | None, decimals: int = 1) -> str:
    """Return a figure as the report prints it: `58,665`, `77.4`, `n/a`."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
