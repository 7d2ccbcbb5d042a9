"""All that the pages need, from the tables: the longest part of the job, and all of its I/O."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.context import Context
from jobs.library.report.activity import Activity, read_activity
from jobs.library.report.fleet import Fleet, read_fleet
from jobs.library.report.headline import Headline, headline_of
from jobs.library.report.tables import COLUMNS, Table, open_table
from jobs.library.report.weather import Weather, read_weather
from jobs.outcome import Discard

if TYPE_CHECKING:
    from jobs.library.report_annual import ReportParams

__all__ = ["Report", "gather"]

#: Where in the whole job the pass over the flights begins and ends.
SCAN_FROM, SCAN_TO = 0.05, 0.80
#: Longer names are cut, for a cell must fit on a page.
NAME_LETTERS = 80


@dataclass(frozen=True)
class Report:
    """Everything the report says, before it has pages."""

    carrier: str
    #: The airline's name, or its code where no airlines table was given.
    airline: str
    year: int
    title: str
    headline: Headline
    activity: Activity
    fleet: Fleet | None
    weather: Weather | None
    airline_names: dict[str, str]
    airport_names: dict[str, str]
    destinations_shown: int
    #: Name and source of each table read.
    sources: tuple[tuple[str, str], ...]


def gather(ctx: Context, params: "ReportParams") -> Report:
    """Read the tables. Raises Discard where the input cannot give a report."""
    ctx.progress(0.0, "Opening the tables")
    tables: dict[str, Table] = {}
    for name in COLUMNS:
        uri = getattr(params, name)
        if uri is not None:
            ctx.check()
            tables[name] = open_table(name, uri, ctx.files)
    airlines = _names(tables.get("airlines"), "carrier")
    if airlines and params.carrier not in airlines:
        known = ", ".join(sorted(airlines)[:40])
        raise Discard(f"airlines: no carrier {params.carrier!r}; use one of {known}")

    activity = _scan(ctx, tables["flights"], params)
    ctx.progress(0.82, "Looking up airports and aircraft")
    airports = _names(tables.get("airports"), "faa")
    fleet = None
    if "planes" in tables:
        operated = activity.total.operated
        fleet = read_fleet(tables["planes"], activity.aircraft, operated, params.year)
    weather = None
    if "weather" in tables:
        ctx.progress(0.86, "Joining the weather")
        weather = read_weather(tables["weather"], activity.slots, params.year)
    ctx.progress(0.90, "Laying out the pages")
    return Report(
        carrier=params.carrier,
        airline=airlines.get(params.carrier, params.carrier),
        year=params.year,
        title=params.title or "Annual report of operations",
        headline=headline_of(activity, fleet),
        activity=activity,
        fleet=fleet,
        weather=weather,
        airline_names=airlines,
        airport_names=airports,
        destinations_shown=params.destinations,
        sources=tuple((name, table.shown) for name, table in tables.items()),
    )


def _scan(ctx: Context, flights: Table, params: "ReportParams") -> Activity:
    read = 0

    def tick(rows: int) -> None:
        nonlocal read
        read += rows
        # The rows of a CSV file are an estimate: it may say more than all before the end.
        share = min(1.0, read / max(1, flights.rows))
        fraction = SCAN_FROM + (SCAN_TO - SCAN_FROM) * share
        ctx.progress(fraction, f"Read {read:,} rows of flights")

    return read_activity(flights, params.carrier, params.year, tick)


def _names(table: Table | None, key: str) -> dict[str, str]:
    names: dict[str, str] = {}
    if table is not None:
        for rows in table.batches():
            for code, name in zip(rows[key].to_pylist(), rows["name"].to_pylist(), strict=True):
                if code and name:
                    names.setdefault(code, name[:NAME_LETTERS])
    return names
