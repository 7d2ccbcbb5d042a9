"""`report.annual`: a PDF report of one airline's year.

Rule 1: the same params over the same tables give the same bytes (see `report/__init__.py`).
Rule 2: input that no retry can mend raises `Discard`, which names the table and the fix; a store
that does not answer stays an ordinary error, so the attempt is tried again.
Rule 3: how the flights are divided changes no figure and no byte, only how many tasks read them.
Rule 4: this file imports neither pyarrow nor reportlab at the top: the registry imports every job
type in every process, and the two cost a third of a second.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from jobs.context import Context
from jobs.fan_out import fan_out
from jobs.results import Results

__all__ = [
    "OUTPUT_NAME",
    "Airlines",
    "Airports",
    "FilePart",
    "Flights",
    "PartDone",
    "Planes",
    "ReportParams",
    "Weather",
    "annual_report",
]

OUTPUT_NAME = "report.pdf"
SUMS_NAME = "sums.arrow"


def _table(rows: str, example: str, where: str = "An upload or a URI, as for flights") -> Any:
    """Return what a param that names a table says of it; `report/tables.py` checks its columns."""
    return Field(min_length=1, max_length=2048, description=f"{rows}. {where}", examples=[example])


Flights = Annotated[
    str,
    _table(
        "Scheduled flights, with the columns year, month, day, hour, carrier, tailnum, origin, "
        "dest, dep_time, dep_delay, arr_delay, air_time, distance; delays and air_time in minutes, "
        "distance in miles",
        "upload:flights.parquet",
        "A Parquet or CSV file, a folder or a glob of them: the URI an upload returned, s3://, "
        "gs://, abfs://, or a path or file:// in a folder opened with --data-dir",
    ),
]
Airlines = Annotated[
    str, _table("Names of airlines, with the columns carrier, name", "upload:airlines.csv")
]
Airports = Annotated[
    str, _table("Names of airports, with the columns faa, name", "upload:airports.csv")
]
Planes = Annotated[
    str,
    _table(
        "The fleet, with the columns tailnum, year, manufacturer, model, seats",
        "upload:planes.csv",
    ),
]
Weather = Annotated[
    str,
    _table(
        "The weather of each hour, with the columns origin, year, month, day, hour, wind_speed, "
        "precip, visib",
        "upload:weather.csv",
    ),
]


class ReportParams(BaseModel):
    """Which airline, which year, and where its tables are."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    carrier: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9]{1,8}$",
            description="Airline code as in the flights table",
            examples=["UA"],
        ),
    ]
    year: Annotated[
        int, Field(ge=1900, le=2200, description="The year reported on", examples=[2013])
    ]
    flights: Flights
    #: Each table below adds its section or its names; without it the report leaves them out.
    airlines: Airlines | None = None
    airports: Airports | None = None
    planes: Planes | None = None
    weather: Weather | None = None
    title: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=60,
            description="Heading of the cover",
            examples=["United in 2013"],
        ),
    ] = None
    destinations: Annotated[
        int, Field(ge=1, le=100, description="Rows of the destinations table")
    ] = 20
    #: A larger flights table is read in parts of about so many rows, side by side.
    partition_rows: Annotated[int, Field(ge=1, description="Rows of flights a task reads")] = (
        2_000_000
    )


class FilePart(BaseModel):
    """A file of a table, or some of its row groups."""

    #: Within the table's folder; empty for a table that is one file.
    path: str
    #: Row groups [first, end) of `groups`; all three are None for CSV.
    first: int | None = None
    end: int | None = None
    groups: int | None = None


class PartDone(BaseModel):
    """What a chunk returns beside the file of its sums."""

    rows: int


def _split(ctx: Context, params: ReportParams) -> list[list[FilePart]]:
    """Check all tables and divide the flights; what is one part the join reads itself."""
    from jobs.library.report import check, parts_of

    parts = list(parts_of(check(ctx, params), params.partition_rows))
    return parts if len(parts) > 1 else []


def _join(ctx: Context, params: ReportParams, results: Results[PartDone]) -> dict[str, Any]:
    """Add up the parts and write the report."""
    from jobs.library.report import compose, gather

    report = gather(ctx, params, results, SUMS_NAME)
    data, pages = compose(report, lambda page: ctx.progress(message=f"Writing page {page}"))
    ctx.progress(0.98, "Saving the report")
    ctx.files.write(OUTPUT_NAME, data)
    ctx.progress(1.0, f"Report of {pages} pages is ready")
    return {"file": OUTPUT_NAME, "pages": pages, "headline": report.headline.as_dict()}


@fan_out("report.annual", split=_split, join=_join, timeout_s=3600)
def annual_report(ctx: Context, params: ReportParams, chunk: list[FilePart]) -> PartDone:
    """Write the annual report of one airline as a PDF, from tables of millions of flights."""
    from jobs.library.report import tally

    tallies = tally(ctx, params, chunk)
    with ctx.files.open_output(SUMS_NAME) as out:
        tallies.write(out)
    return PartDone(rows=tallies.rows_read)
