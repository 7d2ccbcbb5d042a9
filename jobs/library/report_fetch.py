"""`report.fetch`: the report's tables as outputs of this job, checked and cut to what is read.

Rule 1: whatever happens to the sources later, the report can be made again from these. Rule 2: the
report made from them is the report made from the sources. Rule 3: as in `report_annual.py`, nothing
large is imported at the top.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from jobs.context import Context
from jobs.definition import job
from jobs.library.report_annual import Airlines, Airports, Flights, Planes, Weather

__all__ = ["FetchParams", "fetch_tables"]


class FetchParams(BaseModel):
    """Where the tables are."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    flights: Flights
    airlines: Airlines | None = None
    airports: Airports | None = None
    planes: Planes | None = None
    weather: Weather | None = None


@job("report.fetch", timeout_s=3600)
def fetch_tables(ctx: Context, params: FetchParams) -> dict[str, Any]:
    """Copy the tables of a report, one Parquet file each, and check them on the way."""
    from jobs.library.report.tables import COLUMNS, Table, open_table, write_parquet

    ctx.progress(0.0, "Opening the tables")
    # All are checked before the first is copied.
    found: dict[str, Table] = {}
    for name in COLUMNS:
        uri = getattr(params, name)
        if uri is not None:
            ctx.check()
            found[name] = open_table(name, uri, ctx.files)
    total = max(1, sum(table.rows for table in found.values()))
    read = 0

    def tick(rows: int) -> None:
        nonlocal read
        read += rows
        ctx.progress(min(1.0, read / total), f"Copied {read:,} rows")

    uris: dict[str, str | None] = dict.fromkeys(COLUMNS)
    rows: dict[str, int | None] = dict.fromkeys(COLUMNS)
    for name, table in found.items():
        with ctx.files.open_output(f"{name}.parquet") as out:
            rows[name] = write_parquet(table, out, tick)
        uris[name] = ctx.files.uri(f"{name}.parquet")
    return {"tables": uris, "rows": rows}
