"""The aircraft that flew, joined with the planes table."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from jobs.library.report.sums import Sums
from jobs.library.report.tables import Table

__all__ = ["Fleet", "Plane", "read_fleet"]

Key = TypeVar("Key", str, tuple[str, str])

#: Below this the planes table tells of a part of the fleet, not of the airline.
COVERAGE_PCT_MIN = 90.0
#: Longer names are cut, for a cell must fit on a page.
NAME_LETTERS = 40
#: The registry spells some makers in several ways; all others are shown as they are spelt.
MAKERS = {
    "AIRBUS INDUSTRIE": "Airbus",
    "BOMBARDIER INC": "Bombardier",
    "MCDONNELL DOUGLAS": "McDonnell Douglas",
    "MCDONNELL DOUGLAS AIRCRAFT CO": "McDonnell Douglas",
    "MCDONNELL DOUGLAS CORPORATION": "McDonnell Douglas",
}


@dataclass(frozen=True)
class Plane:
    """One aircraft and what it did in the year."""

    tailnum: str
    maker: str
    model: str
    built: int | None
    seats: int
    sums: Sums


@dataclass(frozen=True)
class Fleet:
    """The aircraft found in the planes table, by registration; the others are only counted."""

    planes: tuple[Plane, ...]
    aircraft: int
    operated: int
    year: int

    @property
    def seats_flown(self) -> int:
        """Seats on all operated flights of known aircraft."""
        return sum(plane.seats * plane.sums.operated for plane in self.planes)

    @property
    def operated_known(self) -> int:
        """Operated flights of known aircraft."""
        return sum(plane.sums.operated for plane in self.planes)

    @property
    def coverage_pct(self) -> float | None:
        """Operated flights whose aircraft is known, in percent."""
        return 100 * self.operated_known / self.operated if self.operated else None

    @property
    def speaks_for_all(self) -> bool:
        """Whether so much of the flying is known that a total may stand for the airline."""
        return (self.coverage_pct or 0.0) >= COVERAGE_PCT_MIN

    @property
    def mean_age(self) -> float | None:
        """Years, over aircraft with a known year of manufacture."""
        ages = self.ages()
        return sum(ages) / len(ages) if ages else None

    def ages(self) -> list[int]:
        """Return the known ages in years, in the report's year."""
        return [self.year - p.built for p in self.planes if p.built and p.built <= self.year]

    def by_type(self) -> dict[tuple[str, str], "Fleet"]:
        """Return the fleet split by maker and model, the most flown first."""
        return self._split(lambda plane: (plane.maker, plane.model))

    def by_maker(self) -> dict[str, "Fleet"]:
        """Return the fleet split by maker, the most flown first."""
        return self._split(lambda plane: plane.maker)

    def _split(self, key: Callable[[Plane], Key]) -> dict[Key, "Fleet"]:
        groups: dict[Key, list[Plane]] = defaultdict(list)
        for plane in self.planes:
            groups[key(plane)].append(plane)
        fleets = {
            name: Fleet(tuple(planes), len(planes), sum(p.sums.operated for p in planes), self.year)
            for name, planes in groups.items()
        }
        return dict(sorted(fleets.items(), key=lambda item: (-item[1].operated, item[0])))


def read_fleet(planes: Table, aircraft: dict[str, Sums], operated: int, year: int) -> Fleet:
    """Look up the aircraft that operated; the first row of a registration counts.

    `operated` counts all operated flights, also those without a registration.
    """
    flown = {tail: sums for tail, sums in aircraft.items() if sums.operated}
    wanted = pa.array(flown, pa.string())
    found: dict[str, Plane] = {}
    for rows in planes.batches():
        for row in rows.filter(pc.is_in(rows["tailnum"], wanted)).to_pylist():
            tail = row["tailnum"]
            if tail not in found:
                maker = (row["manufacturer"] or "Unknown")[:NAME_LETTERS]
                found[tail] = Plane(
                    tail,
                    MAKERS.get(maker, maker.title() if maker.isupper() else maker),
                    (row["model"] or "unknown")[:NAME_LETTERS],
                    row["year"],
                    row["seats"] or 0,
                    flown[tail],
                )
    known = tuple(found[tail] for tail in sorted(found))
    return Fleet(known, len(flown), operated, year)
