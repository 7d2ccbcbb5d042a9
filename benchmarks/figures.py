"""What a measurement says: one figure, with every repeat of it, or why there is none."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Figure", "percentile"]


@dataclass(frozen=True)
class Figure:
    """One cell of a table."""

    #: Which question it answers, like `submit`.
    question: str
    #: Who was measured: `drayman`, or a peer with its settings, like `celery-redis (fsync)`.
    system: str
    #: What was measured, like `backlog drain`; the same words for every system.
    what: str
    #: Like `jobs/s` or `ms`.
    unit: str
    #: One value a repeat; empty where it was not measured.
    values: Sequence[float] = field(default_factory=list)
    #: Why it was not measured, or what to know of it.
    note: str = ""

    @property
    def median(self) -> float:
        """The value to quote. Raises ValueError where nothing was measured."""
        if not self.values:
            raise ValueError(f"{self.system}: {self.what} was not measured: {self.note}")
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest repeat."""
        return min(self.values), max(self.values)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` of all stay below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
