"""What each figure counts, and how the report was made: the words a reader checks it by."""

from typing import TYPE_CHECKING, Any

from reportlab.platypus import Spacer

from jobs.library.report.headline import UNKNOWN, printed
from jobs.library.report.layout import table, text
from jobs.library.report.sums import LONG_DELAY_MINUTES, ON_TIME_MINUTES, Sums

if TYPE_CHECKING:
    from jobs.library.report.gather import Report

__all__ = ["figure_rows", "method"]

USES = {
    "flights": "All counts, delays, distances and times",
    "airlines": "Names of airlines",
    "airports": "Names of airports",
    "planes": "Manufacturer, type, seats and year of each aircraft",
    "weather": "Visibility, wind and rain by airport and hour",
}


def figure_rows(report: "Report") -> list[tuple[str, str, str, str]]:
    """Return name, value, the value a year earlier and meaning of each headline figure."""
    head, before = report.headline, report.activity.before

    def row(
        name: str, value: float | None, last: float | None, what: str
    ) -> tuple[str, str, str, str]:
        return name, printed(value), "-" if last is None else printed(last), what

    was = before or Sums()

    def then(value: float | None) -> float | None:
        return None if before is None else value

    rows = [
        row("Flights", head.flights, then(was.flights), "Scheduled departures"),
        row("Operated", head.operated, then(was.operated), "Flights that left"),
        row("Cancelled", head.cancelled, then(was.cancelled), "Flights without a departure time"),
        row("Cancelled, %", head.cancelled_pct, then(was.cancelled_pct), "Of scheduled flights"),
        row(
            "Not completed",
            head.not_completed,
            then(was.not_completed),
            "Left, but no arrival delay is recorded: mostly diversions",
        ),
        row(
            "On time, %",
            head.on_time_pct,
            then(was.on_time_pct),
            f"Of completed flights: arrived less than {ON_TIME_MINUTES} minutes late",
        ),
        row(
            "An hour late or more, %",
            head.long_delay_pct,
            then(was.long_delay_pct),
            f"Of completed flights: arrived {LONG_DELAY_MINUTES} minutes late or more",
        ),
        row(
            "Mean departure delay, min",
            head.mean_departure_delay_min,
            then(was.mean_departure_delay),
            "Early departures count as negative",
        ),
        row(
            "Mean arrival delay, min",
            head.mean_arrival_delay_min,
            then(was.mean_arrival_delay),
            "Early arrivals count as negative",
        ),
        row(
            "Median arrival delay, min",
            head.median_arrival_delay_min,
            None,
            "Half of all completed flights arrived with less",
        ),
        row(
            "90th percentile of arrival delay, min",
            head.p90_arrival_delay_min,
            None,
            "Nine in ten completed flights arrived with less",
        ),
        row("Distance, miles", head.distance_miles, then(was.miles), "Operated flights"),
        row("Hours in the air", head.air_hours, then(was.air_hours), "Recorded air time"),
        row("Airports of departure", head.origins, None, "With a scheduled flight"),
        row("Destinations", head.destinations, None, "With a scheduled flight"),
        row("Aircraft", head.aircraft, None, "Registrations that operated a flight"),
    ]
    if report.fleet is not None:
        rows += [
            row("Seats flown", head.seats_flown, None, "Seats of known aircraft on their flights"),
            row(
                "Flights of known aircraft, %",
                head.seats_coverage_pct,
                None,
                "Operated flights whose aircraft is in the planes table",
            ),
        ]
    return rows


def method(report: "Report") -> list[Any]:
    """Return the paragraphs and the table of sources."""
    activity, total = report.activity, report.activity.total
    years = f"{report.year - 1} and {report.year}"
    paragraphs = [
        f"Scope. The flights table was read once: {printed(activity.rows_read)} rows that could "
        f"belong to {years}, all airlines. {printed(total.flights)} of them are flights of "
        f"{report.airline} ({report.carrier}) in {report.year}. Figures of other airlines and of "
        "the year before come from the same pass.",
        "Cancelled flights have no departure time. Completed flights have a departure time and an "
        f"arrival delay; {printed(total.not_completed)} flights left and have none, so they count "
        "as operated but not as completed.",
        f"On time means an arrival less than {ON_TIME_MINUTES} minutes after schedule, the "
        "definition of the US Department of Transportation, here as a share of completed flights. "
        "Delays are in whole minutes, and those in tables are means; early flights count as "
        "negative. The median and the percentile are exact, not estimated.",
        "Distance and seats count operated flights. Hours in the air are the recorded air times, "
        "so a flight without one adds nothing.",
    ]
    if report.fleet is not None:
        paragraphs.append(
            "Aircraft are matched to the planes table by registration. Spellings of one "
            "manufacturer are merged, types are not. Age is the report's year less the year of "
            "manufacture. Seats are those of the aircraft, not passengers."
        )
    if report.weather is not None:
        paragraphs.append(
            "Weather is matched by airport of departure, day and hour of scheduled departure. "
            "Where an hour has several readings the worst counts; wind above 150 mph is taken for "
            "an error of the instrument. A class tells what went together, not what caused what."
        )
    paragraphs.append(
        "All sums are sums of whole numbers, and whatever is listed is sorted, so the same tables "
        f"and settings always give this very file. {UNKNOWN} marks what the data cannot tell."
    )
    rows = [(name, source, USES[name]) for name, source in report.sources]
    return [
        Spacer(1, 4),
        *(text(paragraph) for paragraph in paragraphs),
        text("Sources", "h2"),
        table(
            ("Table", "File or folder", "Used for"),
            rows,
            (18, 34, 48),
            left=3,
        ),
    ]
