"""The flights by the weather at their origin in the hour they were due to leave."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from jobs.library.report.sums import MEASURES, Sums, Tally
from jobs.library.report.tables import Table

__all__ = ["FACTORS", "Weather", "read_weather"]

SLOT = ["origin", "month", "day", "hour"]
#: Faster than any wind recorded at an airport: the table has readings of over 1,000 mph.
WIND_MPH_MAX = 150.0

#: For each factor: column, unit, upper bounds of its classes, and the classes' names.
FACTORS: dict[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {
    "Visibility": (
        "visib",
        (1.0, 3.0, 10.0),
        ("Under 1 mile", "1 to 3 miles", "3 to 10 miles", "10 miles and more"),
    ),
    "Wind": (
        "wind_speed",
        (10.0, 20.0, 30.0),
        ("Under 10 mph", "10 to 20 mph", "20 to 30 mph", "30 mph and more"),
    ),
    "Rain and snow": (
        "precip",
        (0.001, 0.05, 0.2),
        ("None", "Under 0.05 in/h", "0.05 to 0.2 in/h", "0.2 in/h and more"),
    ),
}


@dataclass(frozen=True)
class Weather:
    """Sums by factor and class, in the order of `FACTORS`; classes without flights are absent."""

    factors: dict[str, dict[str, Sums]]
    #: Flights whose hour the weather table has.
    matched: int


def read_weather(weather: Table, slots: Any, year: int) -> Weather:
    """Join the airline's hours with the weather; of several readings an hour the worst counts."""
    origins = pc.unique(slots["origin"])
    parts = [
        rows.filter(pc.is_in(rows["origin"], origins))
        for rows in weather.batches(ds.field("year") == year)
    ]
    if not parts:
        return Weather({}, 0)
    readings = (
        pa.concat_tables(parts)
        .group_by(SLOT, use_threads=False)
        .aggregate([("visib", "min"), ("wind_speed", "max"), ("precip", "max")])
        .rename_columns([*SLOT, "visib", "wind_speed", "precip"])
    )
    joined = slots.join(readings, SLOT, join_type="inner", use_threads=False)
    factors = {name: _by_class(joined, *factor) for name, factor in FACTORS.items()}
    return Weather(
        {name: classes for name, classes in factors.items() if classes},
        pc.sum(joined["flights"]).as_py() or 0,
    )


def _by_class(
    joined: Any, column: str, bounds: tuple[float, ...], names: tuple[str, ...]
) -> dict[str, Sums]:
    values = joined[column]
    if column == "wind_speed":
        values = pc.if_else(pc.less_equal(values, WIND_MPH_MAX), values, None)
    number: Any = pa.scalar(0, pa.int64())
    for bound in bounds:
        number = pc.add(number, pc.cast(pc.greater_equal(values, bound), pa.int64()))
    tally = Tally("class")
    tally.add(joined.select(list(MEASURES)).append_column("class", number))
    return {names[n]: sums for n, sums in tally.by_key().items()}
