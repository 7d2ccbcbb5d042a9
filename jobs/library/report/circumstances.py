"""The sections on what the flights met with: the fleet, the weather, other airlines.

Rule: every list is cut to what a page can hold, and says so.
"""

from typing import Any

from reportlab.platypus import KeepTogether, Spacer

from jobs.library.report.charts import Bar, Series, bars, columns
from jobs.library.report.fleet import Fleet
from jobs.library.report.gather import Report
from jobs.library.report.headline import printed
from jobs.library.report.layout import (
    CONTENT_WIDTH,
    colour_for,
    table,
    text,
)
from jobs.library.report.section import (
    BARS_SHOWN,
    PERFORMANCE,
    PERFORMANCE_WIDTHS,
    Section,
    performance,
)
from jobs.library.report.sums import add_up
from jobs.library.report.weather import Weather
from jobs.library.report.wording import (
    by_flights,
    count,
    percent,
)

__all__ = ["comparison", "fleet_types", "weather_classes"]

#: Fewer completed flights than this make no rate worth ranking.
RANKED_FLIGHTS = 100
CARRIERS_SHOWN = 18
TYPES_SHOWN = 14


def fleet_types(report: Report, fleet: Fleet) -> Section:
    """Return the section on makers, ages and types of the known aircraft."""
    lead = (
        f"{printed(len(fleet.planes))} of the {printed(fleet.aircraft)} aircraft that flew are in "
        f"the planes table; they operated {percent(fleet.coverage_pct)} of all flights"
    )
    lead += f" and were {printed(fleet.mean_age)} years old on average." if fleet.mean_age else "."
    if not fleet.speaks_for_all:
        lead += " What follows speaks for these aircraft only."

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


def weather_classes(report: Report, weather: Weather) -> Section:
    """Return the section on flights by the weather they left in."""
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
            rows = [(name, *performance(sums)) for name, sums in classes.items()]
            parts: list[Any] = [text(factor, "h2")]
            if chart:
                parts += [bars(CONTENT_WIDTH, chart, 120), Spacer(1, 5)]
            parts.append(table((factor, *PERFORMANCE), rows, (26, *PERFORMANCE_WIDTHS)))
            story.append(KeepTogether(parts))
        return story

    return Section("Weather", lead, content)


def comparison(report: Report) -> Section:
    """Return the section that sets the airline beside the others of the year."""
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
        rows = [(c, report.airline_names.get(c, "-"), *performance(carriers[c])) for c in codes]
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


def _with_own(codes: list[str], own: str, limit: int) -> list[str]:
    """Return the first codes, the airline itself always among them if it is in the list."""
    if own not in codes[:limit] and own in codes:
        return [*codes[: limit - 1], own]
    return codes[:limit]


def _age_classes(ages: list[int]) -> tuple[list[str], list[float | None]]:
    """Return classes of five years up to the oldest aircraft, with how many are in each."""
    top = max(ages) // 5
    names = [f"{5 * n} to {5 * n + 4}" for n in range(top + 1)]
    return names, [float(sum(age // 5 == n for age in ages)) for n in range(top + 1)]
