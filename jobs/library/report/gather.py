"""All that the pages need, from the tables: the longest part of the job, and all of its reading.

`check` is for the split, `tally` for a chunk, `gather` for the join.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.context import Context
from jobs.library.report.activity import Activity, Tallies, no_rows
from jobs.library.report.fleet import Fleet, read_fleet
from jobs.library.report.headline import Headline, headline_of
from jobs.library.report.tables import COLUMNS, Table, open_table, shown_name
from jobs.library.report.weather import Weather, read_weather
from jobs.outcome import Discard
from jobs.results import Results

if TYPE_CHECKING:
    from jobs.library.report_annual import FilePart, PartDone, ReportParams

__all__ = ["Report", "check", "gather", "tally"]

#: The share of the join's work that is done once the parts are added up.
ADDED = 0.3
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


def check(ctx: Context, params: "ReportParams") -> Table:
    """Open all tables, so that a bad one is told before the long part; return the flights.

    Raises Discard.
    """
    ctx.progress(0.0, "Opening the tables")
    tables = {name: _opened(ctx, params, name) for name in COLUMNS}
    _airlines(tables["airlines"], params.carrier)
    flights = tables["flights"]
    assert flights is not None
    return flights


def tally(ctx: Context, params: "ReportParams", part: "Sequence[FilePart]") -> Tallies:
    """Read a part of the flights. Raises Discard where it cannot be read."""
    tallies = Tallies(params.carrier, params.year)
    _read(ctx, open_table("flights", params.flights, ctx.files, part), tallies, 1.0)
    return tallies


def _read(ctx: Context, flights: Table, tallies: Tallies, share: float) -> None:
    """Read flights, which are this share of the task's work."""
    read = 0

    def tick(rows: int) -> None:
        nonlocal read
        read += rows
        # The rows of a CSV file are an estimate: it may say more than all before the end.
        done = min(1.0, read / max(1, flights.rows))
        ctx.progress(share * done, f"Read {read:,} rows of flights")

    tallies.read(flights, tick)


def gather(
    ctx: Context, params: "ReportParams", parts: Results["PartDone"], sums_name: str
) -> Report:
    """Add up the parts and look up what belongs to them. Raises Discard if there are no flights.

    Without parts the flights are read here: few are not worth tasks of their own.
    """
    ctx.progress(0.0, "Adding up the flights")
    tallies = Tallies(params.carrier, params.year)
    if not len(parts):
        _read(ctx, open_table("flights", params.flights, ctx.files), tallies, ADDED)
    for n, part in enumerate(parts):
        path = ctx.files.fetch(part.files[sums_name])
        tallies.add(path, part.value.rows)
        if path.is_relative_to(ctx.files.workdir):
            path.unlink()  # a copy; those of all parts together may be large
        ctx.progress(ADDED * (n + 1) / len(parts), f"Added {tallies.rows_read:,} rows of flights")
    activity = tallies.activity()
    if activity is None:
        flights = open_table("flights", params.flights, ctx.files)
        raise no_rows(flights, params.carrier, params.year, lambda _: ctx.check())

    ctx.progress(0.35, "Looking up airports and aircraft")
    others = {name: _opened(ctx, params, name) for name in COLUMNS if name != "flights"}
    airlines = _airlines(others["airlines"], params.carrier)
    airports = _names(others["airports"], "faa")
    fleet = None
    if (planes := others["planes"]) is not None:
        fleet = read_fleet(planes, activity.aircraft, activity.total.operated, params.year)
    weather = None
    if (readings := others["weather"]) is not None:
        ctx.progress(0.45, "Joining the weather")
        weather = read_weather(readings, activity.slots, params.year)
    ctx.progress(0.55, "Laying out the pages")
    sources = {name: getattr(params, name) for name in COLUMNS}
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
        sources=tuple((name, shown_name(uri)) for name, uri in sources.items() if uri is not None),
    )


def _opened(ctx: Context, params: "ReportParams", name: str) -> Table | None:
    uri = getattr(params, name)
    if uri is None:
        return None
    ctx.check()
    return open_table(name, uri, ctx.files)


def _airlines(table: Table | None, carrier: str) -> dict[str, str]:
    names = _names(table, "carrier")
    if names and carrier not in names:
        known = ", ".join(sorted(names)[:40])
        raise Discard(f"airlines: no carrier {carrier!r}; use one of {known}")
    return names


def _names(table: Table | None, key: str) -> dict[str, str]:
    names: dict[str, str] = {}
    if table is not None:
        for rows in table.batches():
            for code, name in zip(rows[key].to_pylist(), rows["name"].to_pylist(), strict=True):
                if code and name:
                    names.setdefault(code, name[:NAME_LETTERS])
    return names
