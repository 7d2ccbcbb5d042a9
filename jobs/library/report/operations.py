"""The sections on the flights themselves: figures, months, places, punctuality.

Rule: every list is cut to what a page can hold, and says so.
"""

from datetime import date
from typing import Any

from reportlab.platypus import KeepTogether, Spacer

from jobs.library.report.charts import Bar, Series, bars, columns, line, year_grid
from jobs.library.report.gather import Report
from jobs.library.report.headline import printed
from jobs.library.report.layout import (
    ALERT,
    CONTENT_WIDTH,
    LIGHT,
    table,
    text,
)
from jobs.library.report.method import figure_rows
from jobs.library.report.section import (
    BARS_SHOWN,
    PERFORMANCE,
    PERFORMANCE_WIDTHS,
    Section,
    performance,
)
from jobs.library.report.sums import LONG_DELAY_MINUTES, Sums, add_up
from jobs.library.report.wording import (
    MONTHS,
    WEEKDAYS,
    by_flights,
    count,
    day_name,
    delay,
    hard_days,
    months_sentence,
    percent,
)

__all__ = ["figures", "months", "network", "punctuality"]

HARD_DAYS = 6
ORIGINS_SHOWN = 12
#: Hours of the day with fewer flights are left out of the chart.
HOUR_FLIGHTS = 10
DELAY_CLASSES: tuple[tuple[str, int | None, int | None], ...] = (
    ("> 30 early", None, -30),
    ("15 to 30 early", -30, -15),
    ("0 to 15 early", -15, 0),
    ("0 to 15 late", 0, 15),
    ("15 to 30 late", 15, 30),
    ("30 to 60 late", 30, 60),
    ("1 to 2 h late", 60, 120),
    ("> 2 h late", 120, None),
)


def figures(report: Report) -> Section:
    """Return the section with every headline figure, and the year day by day."""
    before = report.activity.before
    lead = f"The headline figures of {report.year}, each with what it counts."
    if before is not None:
        lead = f"The headline figures of {report.year} beside those of {report.year - 1}."

    def content() -> list[Any]:
        rows = [["Figure", str(report.year), str(report.year - 1), "What it counts"]]
        rows += [list(row) for row in figure_rows(report)]
        widths = [32, 14, 14, 48]
        if before is None:
            rows, widths = [[*row[:2], row[3]] for row in rows], [34, 16, 56]
        story: list[Any] = [Spacer(1, 6), table(rows[0], rows[1:], widths, last_is_text=True)]
        rates = {day: sums.on_time_pct for day, sums in report.activity.days.items()}
        return [
            *story,
            KeepTogether(
                [
                    text("Flights on time, day by day", "h2"),
                    year_grid(CONTENT_WIDTH, report.year, rates),
                ]
            ),
        ]

    return Section("The year in figures", lead, content)


def months(report: Report) -> Section:
    """Return the section on the months."""
    activity = report.activity
    months, before = activity.months, activity.months_before
    shown = [m for m in range(1, 13) if m in months or m in before]
    names = [MONTHS[m][:3] for m in shown]

    def content() -> list[Any]:
        flights = [Series(str(report.year), [_value(months, m, "flights") for m in shown])]
        on_time = [Series(str(report.year), [_value(months, m, "on_time_pct") for m in shown])]
        if before:
            last = str(report.year - 1)
            flights.insert(0, Series(last, [_value(before, m, "flights") for m in shown], LIGHT))
            on_time.insert(
                0, Series(last, [_value(before, m, "on_time_pct") for m in shown], LIGHT)
            )
        rows = [(MONTHS[m], *performance(months[m])) for m in shown if m in months]
        rows.append(("Year", *performance(activity.total)))
        return [
            text("Flights scheduled", "h2"),
            columns(CONTENT_WIDTH, 145, names, flights),
            text("Share of completed flights that arrived on time", "h2"),
            line(CONTENT_WIDTH, 135, names, on_time, "%"),
            text("Month by month", "h2"),
            table(("Month", *PERFORMANCE), rows, (30, *PERFORMANCE_WIDTHS), total=True),
        ]

    return Section("Month by month", months_sentence(months), content)


def network(report: Report) -> Section:
    """Return the section on destinations and airports of departure."""
    activity = report.activity
    ranked = by_flights(activity.destinations)
    top = ranked[: report.destinations_shown]
    share = 100 * sum(s.flights for _, s in ranked[:5]) / activity.total.flights
    lead = f"{report.airline} served {count(len(ranked), 'destination')} from "
    lead += f"{count(len(activity.origins), 'airport')}."
    if len(ranked) > 5:
        lead += f" The five largest took {percent(share)} of its flights."

    def content() -> list[Any]:
        story: list[Any] = []
        if len(ranked) > 1:
            chart = [
                Bar(_place(report, code), sums.flights, printed(sums.flights))
                for code, sums in ranked[:BARS_SHOWN]
            ]
            story = [
                text("Flights to the largest destinations", "h2"),
                bars(CONTENT_WIDTH, chart, 170),
            ]
        rows = [
            (code, report.airport_names.get(code, "-"), *performance(sums)) for code, sums in top
        ]
        story += [
            text("Destinations", "h2"),
            table(("Code", "Airport", *PERFORMANCE), rows, (8, 36, *PERFORMANCE_WIDTHS), left=2),
        ]
        if len(ranked) > len(top):
            rest = add_up(sums for _, sums in ranked[len(top) :])
            story.append(
                text(
                    f"Another {count(len(ranked) - len(top), 'destination')} with "
                    f"{printed(rest.flights)} flights together are not listed.",
                    "note",
                )
            )
        origins = by_flights(activity.origins)[:ORIGINS_SHOWN]
        rows = [
            (code, report.airport_names.get(code, "-"), *performance(sums))
            for code, sums in origins
        ]
        departures = table(
            ("Code", "Airport", *PERFORMANCE), rows, (8, 36, *PERFORMANCE_WIDTHS), left=2
        )
        return [*story, KeepTogether([text("Airports of departure", "h2"), departures])]

    return Section("Where it flies", lead, content)


def punctuality(report: Report) -> Section:
    """Return the section on delays by hour, size, weekday, and the worst days."""
    activity, head = report.activity, report.headline
    delays = activity.arrival_delays
    lead = (
        f"Half of all completed flights arrived {delay(head.median_arrival_delay_min)} or better, "
        f"nine in ten {delay(head.p90_arrival_delay_min)} or better. "
        f"{percent(head.long_delay_pct)} arrived an hour late or more."
    )

    def content() -> list[Any]:
        hours = [h for h, s in activity.hours.items() if s.flights >= HOUR_FLIGHTS]
        story: list[Any] = []
        if len(hours) > 1:
            means = [activity.hours[h].mean_departure_delay for h in hours]
            story += [
                text("Mean departure delay by hour of scheduled departure, in minutes", "h2"),
                columns(
                    CONTENT_WIDTH,
                    120,
                    [f"{h:02d}" for h in hours],
                    [Series("", means)],
                    values=True,
                ),
            ]
        if delays.total:
            shares = [
                100 * delays.between(low, high) / delays.total for _, low, high in DELAY_CLASSES
            ]
            names = [name for name, _, _ in DELAY_CLASSES]
            late = [None if n < 4 else v for n, v in enumerate(shares)]
            early = [v if n < 4 else None for n, v in enumerate(shares)]
            story += [
                text("Completed flights by arrival delay in minutes", "h2"),
                columns(
                    CONTENT_WIDTH,
                    125,
                    names,
                    [Series("On time", early), Series("Late", late, ALERT)],
                    "%",
                    in_place=True,
                    values=True,
                ),
            ]
        weekdays = _weekdays(activity.days)
        rows = [(WEEKDAYS[n], *performance(sums)) for n, sums in weekdays.items()]
        story += [
            KeepTogether(
                [
                    text("By day of the week", "h2"),
                    table(("Day", *PERFORMANCE), rows, (30, *PERFORMANCE_WIDTHS)),
                ]
            )
        ]
        hard = hard_days(activity.days)[:HARD_DAYS]
        if hard:
            rows = [
                (day_name(day), *performance(sums), printed(sums.long_delays)) for day, sums in hard
            ]
            story.append(
                KeepTogether(
                    [
                        text("The hardest days", "h2"),
                        table(
                            ("Day", *PERFORMANCE, "An hour late or\u00a0more"),
                            rows,
                            (24, *PERFORMANCE_WIDTHS, 14),
                        ),
                        text(
                            "Ranked by flights cancelled or at least "
                            f"{LONG_DELAY_MINUTES} minutes late.",
                            "note",
                        ),
                    ]
                )
            )
        return story

    return Section("Punctuality", lead, content)


def _weekdays(days: dict[date, Sums]) -> dict[int, Sums]:
    groups: dict[int, Sums] = dict.fromkeys(range(7), Sums())
    for day, sums in days.items():
        groups[day.weekday()] += sums
    return {n: sums for n, sums in groups.items() if sums.flights}


def _value(groups: dict[int, Sums], key: int, name: str) -> float | None:
    return getattr(groups[key], name) if key in groups else None


def _place(report: Report, code: str) -> str:
    name = report.airport_names.get(code)
    return f"{code} · {name}" if name else code
