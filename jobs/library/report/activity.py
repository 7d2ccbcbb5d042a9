"""One pass over the flights: all that the report says about them, in integers.

The year before is read along, for comparison, and so are the other airlines of the year. Rule: the
flights may be read in any parts and these added up in any order; every figure stays the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from jobs.library.report.sums import Sums, Tally, add_up, with_measures
from jobs.library.report.tables import Table
from jobs.outcome import Discard

__all__ = ["Activity", "Histogram", "Tallies", "no_rows"]

COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


class Histogram:
    """How many flights had each whole number of minutes; quantiles of it are exact."""

    def __init__(self, counts: dict[int, int]) -> None:
        self._counts = dict(sorted(counts.items()))
        self.total = sum(counts.values())

    def between(self, low: int | None, high: int | None) -> int:
        """Return how many lie in [low, high); None is no bound."""
        return sum(
            n
            for minutes, n in self._counts.items()
            if (low is None or minutes >= low) and (high is None or minutes < high)
        )

    def quantile(self, numerator: int, denominator: int) -> float | None:
        """Return the quantile, interpolated between neighbours as SQL's `quantile_cont` does."""
        if not self.total:
            return None
        index, rest = divmod((self.total - 1) * numerator, denominator)
        low = self._at(index)
        return low + (self._at(min(index + 1, self.total - 1)) - low) * rest / denominator

    def _at(self, index: int) -> int:
        for minutes, n in self._counts.items():
            if index < n:
                return minutes
            index -= n
        raise IndexError(index)


@dataclass(frozen=True)
class Activity:
    """One airline's year, summed by all the keys that the report shows."""

    total: Sums
    months: dict[int, Sums]
    #: Days that the calendar knows; a row with 31 February counts in its month only.
    days: dict[date, Sums]
    hours: dict[int, Sums]
    origins: dict[str, Sums]
    destinations: dict[str, Sums]
    aircraft: dict[str, Sums]
    arrival_delays: Histogram
    #: Sums by origin, month, day and hour, as an Arrow table: the key that weather has.
    slots: Any
    #: The same airline a year earlier; empty if the table has nothing of it.
    months_before: dict[int, Sums]
    #: Every airline of the year, this one included.
    carriers: dict[str, Sums]
    rows_read: int

    @property
    def before(self) -> Sums | None:
        """The whole year before, or None if the table has nothing of it."""
        return add_up(self.months_before.values()) if self.months_before else None


class Tallies:
    """The sums of some part of the flights, for one airline's year; those of parts add up."""

    def __init__(self, carrier: str, year: int) -> None:
        self._carrier, self._year = carrier, year
        self.own_months, self.carriers = Tally("year", "month"), Tally("year", "carrier")
        self.slots = Tally("origin", "month", "day", "hour")
        self.destinations, self.aircraft = Tally("dest"), Tally("tailnum")
        self.delays = Tally("arr_delay", measures=("completed",))
        self.rows_read = 0

    def read(self, flights: Table, tick: Callable[[int], None]) -> None:
        """Read the flights once and add them; `tick` gets the rows of each batch."""
        years = (ds.field("year") >= self._year - 1) & (ds.field("year") <= self._year)

        def count(rows: int) -> None:
            self.rows_read += rows
            tick(rows)

        for rows in flights.batches(years, count):
            measured = with_measures(rows)
            self.carriers.add(measured)
            own = measured.filter(pc.equal(measured["carrier"], self._carrier))
            if not own.num_rows:
                continue
            self.own_months.add(own)
            own = own.filter(pc.equal(own["year"], self._year))
            for tally in (self.slots, self.destinations, self.aircraft):
                tally.add(own)
            self.delays.add(own.filter(pc.equal(own["completed"], 1)))

    def write(self, out: BinaryIO) -> None:
        """Write the sums as one Arrow IPC stream a tally, one after the other."""
        for tally in self._all():
            table = tally.table()
            if table is None:
                table = pa.table({})
            with pa.ipc.new_stream(out, table.schema, options=COMPRESSED) as stream:
                stream.write_table(table)

    def add(self, path: Path, rows_read: int) -> None:
        """Add the sums that another part wrote to the file at `path`."""
        with pa.OSFile(str(path)) as source:
            for tally in self._all():
                table = pa.ipc.open_stream(source).read_all()
                if table.num_rows:
                    tally.add(table)
        self.rows_read += rows_read

    def _all(self) -> tuple[Tally, ...]:
        return (
            self.own_months,
            self.carriers,
            self.slots,
            self.destinations,
            self.aircraft,
            self.delays,
        )

    def activity(self) -> Activity | None:
        """Return the airline's year, or None if there is none."""
        year, months = self._year, self.own_months.by_key()
        if not any(key[0] == year for key in months):
            return None
        hourly, carriers = self.slots.table(), self.carriers.by_key()
        delays = self.delays.items()
        return Activity(
            total=carriers[year, self._carrier],
            months={month: sums for (y, month), sums in months.items() if y == year},
            days=_days(hourly, year),
            hours=_regroup(hourly, "hour"),
            origins=_regroup(hourly, "origin"),
            destinations=self.destinations.by_key(),
            aircraft=self.aircraft.by_key(),
            arrival_delays=Histogram({key[0]: sums["completed"] for key, sums in delays}),
            slots=hourly,
            months_before={month: sums for (y, month), sums in months.items() if y == year - 1},
            carriers={code: sums for (y, code), sums in carriers.items() if y == year},
            rows_read=self.rows_read,
        )


def _regroup(table: Any, *keys: str) -> dict[Any, Sums]:
    tally = Tally(*keys)
    tally.add(table)
    return tally.by_key()


def _days(table: Any, year: int) -> dict[date, Sums]:
    days = {}
    for (month, day), sums in _regroup(table, "month", "day").items():
        try:
            days[date(year, month, day)] = sums
        except ValueError:  # not in the calendar; see Activity.days
            continue
    return days


def no_rows(flights: Table, carrier: str, year: int, tick: Callable[[int], None]) -> Discard:
    """Say what the table does hold; a second pass, paid only by those who asked for nothing."""
    years: set[int] = set()
    codes: set[str] = set()
    for rows in flights.batches(None, lambda _: tick(0)):
        codes.update(pc.unique(rows["carrier"]).drop_null().to_pylist())
        own = rows.filter(pc.equal(rows["carrier"], carrier))
        years.update(pc.unique(own["year"]).drop_null().to_pylist())
    if not codes:
        return Discard(f"flights: {flights.shown} has no rows; give a table with flights")
    if carrier not in codes:
        known = ", ".join(sorted(codes)[:40])
        return Discard(f"flights: no flights of carrier {carrier!r}; use one of {known}")
    if year in years:
        return Discard(f"flights: those of {carrier} in {year} have no month; fill the column")
    known = ", ".join(str(y) for y in sorted(years))
    return Discard(f"flights: no flights of {carrier} in {year}; use one of the years {known}")
