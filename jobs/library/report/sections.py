"""What the report says: each section's title, its lead sentence, and its charts and tables.

Rule 1: a section whose table was not given, or has nothing to say, is left out. Rule 2: every list
is cut to what a page can hold, and says so.
"""

import calendar
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from reportlab.platypus import KeepTogether, Spacer

from jobs.library.report.charts import Bar, Series, bars, columns, line, year_grid
from jobs.library.report.fleet import Fleet
from jobs.library.report.gather import Report
from jobs.library.report.headline import printed
from jobs.library.report.layout import (
    ALERT,
    CONTENT_WIDTH,
    LIGHT,
    colour_for,
    table,
    text,
)
from jobs.library.report.method import figure_rows, method
from jobs.library.report.sums import LONG_DELAY_MINUTES, Sums, add_up
from jobs.library.report.weather import Weather
from jobs.library.report.wording import (
    MONTHS,
    by_flights,
    count,
    day_name,
    delay,
    hard_days,
    months_sentence,
    percent,
)

__all__ = ["Section", "sections_of"]

#: Fewer completed flights than this make no rate worth ranking.
RANKED_FLIGHTS = 100
BARS_SHOWN = 10
HARD_DAYS = 6
CARRIERS_SHOWN = 24
TYPES_SHOWN = 18
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


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `content` makes its flowables anew for each run."""

    title: str
    lead: str
    content: Callable[[], list[Any]]


def sections_of(report: Report) -> list[Section]:
    """Return the sections that the data can fill, in order."""
    sections = [_figures(report), _months(report), _network(report), _punctuality(report)]
    if report.fleet is not None and report.fleet.planes:
        sections.append(_fleet(report, report.fleet))
    if report.weather is not None and report.weather.factors:
        sections.append(_weather(report, report.weather))
    if len(report.activity.carriers) > 1:
        sections.append(_comparison(report))
    sections.append(
        Section(
            "How these figures were made",
            "Every figure comes from one pass over the tables below; nothing is sampled.",
            lambda: method(report),
        )
    )
    return sections


def _figures(report: Report) -> Section:
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


def _months(report: Report) -> Section:
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
        rows = [(MONTHS[m], *_performance(months[m])) for m in shown if m in months]
        rows.append(("Year", *_performance(activity.total)))
        return [
            text("Flights scheduled", "h2"),
            columns(CONTENT_WIDTH, 145, names, flights),
            text("Share of completed flights that arrived on time", "h2"),
            line(CONTENT_WIDTH, 135, names, on_time, "%"),
            text("Month by month", "h2"),
            table(("Month", *PERFORMANCE), rows, (30, *PERFORMANCE_WIDTHS), total=True),
        ]

    return Section("Month by month", months_sentence(months), content)


def _network(report: Report) -> Section:
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
            (code, report.airport_names.get(code, "-"), *_performance(sums)) for code, sums in top
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
            (code, report.airport_names.get(code, "-"), *_performance(sums))
            for code, sums in origins
        ]
        departures = table(
            ("Code", "Airport", *PERFORMANCE), rows, (8, 36, *PERFORMANCE_WIDTHS), left=2
        )
        return [*story, KeepTogether([text("Airports of departure", "h2"), departures])]

    return Section("Where it flies", lead, content)


def _punctuality(report: Report) -> Section:
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
        rows = [(calendar.day_name[n], *_performance(sums)) for n, sums in weekdays.items()]
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
                (day_name(day), *_performance(sums), printed(sums.long_delays))
                for day, sums in hard
            ]
            story.append(
                KeepTogether(
                    [
                        text("The hardest days", "h2"),
                        table(
                            ("Day", *PERFORMANCE, "An hour late or more"),
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


def _fleet(report: Report, fleet: Fleet) -> Section:
    lead = (
        f"{printed(len(fleet.planes))} of the {printed(fleet.aircraft)} aircraft that flew are in "
        f"the planes table; they operated {percent(fleet.coverage_pct)} of all flights"
    )
    lead += f" and were {printed(fleet.mean_age)} years old on average." if fleet.mean_age else "."

    def content() -> list[Any]:
        makers = list(fleet.by_maker().items())[:BARS_SHOWN]
        chart = [
            Bar(maker, part.operated, f"{printed(part.operated)} flights, {part.aircraft} aircraft")
            for maker, part in makers
        ]
        story: list[Any] = [
            text("Flights by manufacturer", "h2"),
            bars(CONTENT_WIDTH, chart, 120),
        ]
        ages = fleet.ages()
        if ages:
            names, counts = _age_classes(ages)
            story += [
                text("Aircraft by age in years", "h2"),
                columns(CONTENT_WIDTH, 120, names, [Series("", counts)], values=True),
            ]
        types = list(fleet.by_type().items())
        rows = [
            (
                model,
                maker,
                printed(part.aircraft),
                printed(part.mean_age),
                printed(part.operated),
                printed(100 * part.operated / max(1, fleet.operated)),
                printed(part.seats_flown / part.operated, 0),
                printed(add_up(p.sums for p in part.planes).miles),
            )
            for (maker, model), part in types[:TYPES_SHOWN]
        ]
        header = (
            "Type",
            "Manufacturer",
            "Aircraft",
            "Mean age",
            "Flights",
            "% of flights",
            "Seats a flight",
            "Miles flown",
        )
        story += [
            text("Aircraft types", "h2"),
            table(header, rows, (17, 21, 11, 11, 12, 12, 12, 16), left=2),
        ]
        if len(types) > TYPES_SHOWN:
            story.append(
                text(f"The {TYPES_SHOWN} most flown of {len(types)} types are listed.", "note")
            )
        return story

    return Section("Fleet", lead, content)


def _weather(report: Report, weather: Weather) -> Section:
    share = 100 * weather.matched / report.activity.total.flights
    lead = (
        f"Weather at the airport of departure, in the hour of scheduled departure; it is known for "
        f"{percent(share)} of all flights."
    )
    rated = [(n, s.on_time_pct) for n, s in weather.factors.get("Visibility", {}).items()]
    known = [(name.lower(), rate) for name, rate in rated if rate is not None]
    if len(known) > 1:
        (worst, low), (best, high) = known[0], known[-1]
        lead += (
            f" With a visibility of {best}, {percent(high)} of flights arrived on time; "
            f"with {worst}, {percent(low)}."
        )

    def content() -> list[Any]:
        story: list[Any] = []
        for factor, classes in weather.factors.items():
            rated = [(name, sums) for name, sums in classes.items() if sums.on_time_pct is not None]
            chart = [
                Bar(name, sums.on_time_pct or 0.0, f"{percent(sums.on_time_pct)} on time")
                for name, sums in rated
            ]
            rows = [(name, *_performance(sums)) for name, sums in classes.items()]
            parts: list[Any] = [text(factor, "h2")]
            if chart:
                parts += [bars(CONTENT_WIDTH, chart, 120), Spacer(1, 5)]
            parts.append(table((factor, *PERFORMANCE), rows, (26, *PERFORMANCE_WIDTHS)))
            story.append(KeepTogether(parts))
        return story

    return Section("Weather", lead, content)


def _comparison(report: Report) -> Section:
    carriers = report.activity.carriers
    rated = {c: s for c, s in carriers.items() if s.completed >= RANKED_FLIGHTS}
    order = sorted(rated, key=lambda c: (-(rated[c].on_time_pct or 0), c))
    lead = f"{count(len(carriers), 'airline')} flew in {report.year} in the same data."
    if report.carrier in rated:
        place = order.index(report.carrier) + 1
        lead += (
            f" {report.airline} ranks {place} of {len(order)} by flights on time, among those with "
            f"at least {RANKED_FLIGHTS} completed flights."
        )

    def content() -> list[Any]:
        shown = _with_own(order, report.carrier, CARRIERS_SHOWN)
        chart = [
            Bar(
                report.airline_names.get(c, c),
                rated[c].on_time_pct or 0.0,
                percent(rated[c].on_time_pct),
                colour_for(c == report.carrier),
                c == report.carrier,
            )
            for c in shown
        ]
        story: list[Any] = []
        if chart:
            story = [
                text("Flights that arrived on time", "h2"),
                bars(CONTENT_WIDTH, chart, 150, row_height=14),
            ]
        codes = _with_own([c for c, _ in by_flights(carriers)], report.carrier, CARRIERS_SHOWN)
        rows = [(c, report.airline_names.get(c, "-"), *_performance(carriers[c])) for c in codes]
        story += [
            text("Airlines by number of flights", "h2"),
            table(
                ("Code", "Airline", *PERFORMANCE),
                rows,
                (8, 32, *PERFORMANCE_WIDTHS),
                left=2,
                strong=codes.index(report.carrier),
            ),
        ]
        if len(carriers) > len(codes):
            story.append(text(f"{len(codes)} of {len(carriers)} airlines are listed.", "note"))
        return story

    return Section("Among other airlines", lead, content)


#: The figures that every table about a set of flights shows, and the shares of their widths.
PERFORMANCE = (
    "Flights",
    "Cancelled %",
    "On time %",
    "Departure delay, min",
    "Arrival delay, min",
)
PERFORMANCE_WIDTHS = (13, 13, 12, 14, 13)


def _performance(sums: Sums) -> tuple[str, ...]:
    return (
        printed(sums.flights),
        printed(sums.cancelled_pct),
        printed(sums.on_time_pct),
        printed(sums.mean_departure_delay),
        printed(sums.mean_arrival_delay),
    )


def _with_own(codes: list[str], own: str, limit: int) -> list[str]:
    """Return the first codes, the airline itself always among them if it is in the list."""
    if own not in codes[:limit] and own in codes:
        return [*codes[: limit - 1], own]
    return codes[:limit]


def _weekdays(days: dict[date, Sums]) -> dict[int, Sums]:
    groups: dict[int, Sums] = dict.fromkeys(range(7), Sums())
    for day, sums in days.items():
        groups[day.weekday()] += sums
    return {n: sums for n, sums in groups.items() if sums.flights}


def _age_classes(ages: list[int]) -> tuple[list[str], list[float | None]]:
    """Return classes of five years up to the oldest aircraft, with how many are in each."""
    top = max(ages) // 5
    names = [f"{5 * n} to {5 * n + 4}" for n in range(top + 1)]
    return names, [float(sum(age // 5 == n for age in ages)) for n in range(top + 1)]


def _value(groups: dict[int, Sums], key: int, name: str) -> float | None:
    return getattr(groups[key], name) if key in groups else None


def _place(report: Report, code: str) -> str:
    name = report.airport_names.get(code)
    return f"{code}  {name}" if name else code
