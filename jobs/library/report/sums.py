"""What is counted about any set of flights, and sums of it by key.

Rule 1: every measure is an integer, so sums are exact and their order is free. Rule 2: a rate of
nothing is None, never zero.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["MEASURES", "ON_TIME_MINUTES", "Sums", "Tally", "add_up", "with_measures"]

#: A flight is on time if it arrives less than this late: the US DOT's definition.
ON_TIME_MINUTES = 15
LONG_DELAY_MINUTES = 60
#: Below this many pending rows, folding costs more than the memory it frees.
FOLD_ROWS = 200_000


@dataclass(frozen=True)
class Sums:
    """Counts and totals of a set of flights."""

    #: Scheduled flights.
    flights: int = 0
    #: Of these, the ones that left.
    operated: int = 0
    #: Of these, the ones with a recorded arrival delay; the rest were diverted or not recorded.
    completed: int = 0
    on_time: int = 0
    long_delays: int = 0
    departure_delay_known: int = 0
    departure_delay_minutes: int = 0
    arrival_delay_minutes: int = 0
    #: Of operated flights.
    miles: int = 0
    air_minutes: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, m) + getattr(other, m) for m in MEASURES))

    @property
    def cancelled(self) -> int:
        """Flights that never left."""
        return self.flights - self.operated

    @property
    def not_completed(self) -> int:
        """Flights that left without a recorded arrival delay: diverted, or not recorded."""
        return self.operated - self.completed

    @property
    def cancelled_pct(self) -> float | None:
        """Cancelled flights in percent of scheduled ones."""
        return _percent(self.cancelled, self.flights)

    @property
    def on_time_pct(self) -> float | None:
        """Flights on time in percent of completed ones."""
        return _percent(self.on_time, self.completed)

    @property
    def long_delay_pct(self) -> float | None:
        """Arrivals an hour late or more in percent of completed flights."""
        return _percent(self.long_delays, self.completed)

    @property
    def mean_departure_delay(self) -> float | None:
        """Minutes."""
        known = self.departure_delay_known
        return self.departure_delay_minutes / known if known else None

    @property
    def mean_arrival_delay(self) -> float | None:
        """Minutes; early arrivals count as negative."""
        return self.arrival_delay_minutes / self.completed if self.completed else None

    @property
    def air_hours(self) -> float:
        """Hours in the air."""
        return self.air_minutes / 60


MEASURES = tuple(field.name for field in fields(Sums))


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def add_up(sums: Iterable[Sums]) -> Sums:
    """Return the sum of all."""
    return sum(sums, Sums())


def with_measures(rows: Any) -> Any:
    """Return flights rows with one integer column per measure, ready to be summed."""
    operated = pc.is_valid(rows["dep_time"])
    completed = pc.and_(operated, pc.is_valid(rows["arr_delay"]))
    delay = pc.if_else(completed, rows["arr_delay"], None)
    ones = pa.repeat(1, rows.num_rows)
    columns: dict[str, Any] = {
        "flights": ones,
        "operated": operated,
        "completed": completed,
        "on_time": pc.fill_null(pc.less(delay, ON_TIME_MINUTES), False),
        "long_delays": pc.fill_null(pc.greater_equal(delay, LONG_DELAY_MINUTES), False),
        "departure_delay_known": pc.and_(operated, pc.is_valid(rows["dep_delay"])),
        "departure_delay_minutes": pc.if_else(operated, rows["dep_delay"], 0),
        "arrival_delay_minutes": delay,
        "miles": pc.if_else(operated, rows["distance"], 0),
        "air_minutes": rows["air_time"],
    }
    for name, values in columns.items():
        rows = rows.append_column(name, pc.fill_null(values.cast(pa.int64()), 0))
    return rows


class Tally:
    """Sums per key, fed batch by batch; holds about twice the distinct keys, never the rows."""

    def __init__(self, *keys: str, measures: tuple[str, ...] = MEASURES) -> None:
        self._keys, self._measures = list(keys), measures
        self._parts: list[Any] = []
        self._pending, self._folded = 0, 0

    def add(self, rows: Any) -> None:
        """Add the measures of `rows` to the sums of their keys."""
        part = self._sum(rows)
        self._parts.append(part)
        self._pending += part.num_rows
        if self._pending > max(FOLD_ROWS, self._folded):
            self._fold()

    def _sum(self, rows: Any) -> Any:
        sums = rows.group_by(self._keys, use_threads=False).aggregate(
            [(measure, "sum") for measure in self._measures]
        )
        return sums.select([*self._keys, *(f"{m}_sum" for m in self._measures)]).rename_columns(
            [*self._keys, *self._measures]
        )

    def _fold(self) -> None:
        self._parts = [self._sum(pa.concat_tables(self._parts))]
        self._pending, self._folded = 0, self._parts[0].num_rows

    def table(self) -> Any:
        """Return one row per key without null parts, sorted by key; None if nothing was added."""
        if not self._parts:
            return None
        self._fold()
        table = self._parts[0].drop_null()
        return table.sort_by([(key, "ascending") for key in self._keys])

    def items(self) -> Iterator[tuple[tuple[Any, ...], Mapping[str, int]]]:
        """Yield each key with its sums, sorted by key."""
        table = self.table()
        for row in table.to_pylist() if table is not None else ():
            yield tuple(row[key] for key in self._keys), {m: row[m] for m in self._measures}

    def by_key(self) -> dict[Any, Sums]:
        """Return `Sums` by key, sorted; a key of one column stands for itself."""
        return {key[0] if len(key) == 1 else key: Sums(**sums) for key, sums in self.items()}
