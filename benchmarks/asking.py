"""How a question is asked: the same wishes for all of them, and how repeats become figures."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.figures import Figure

__all__ = ["DRAYMAN", "Asked", "Measured", "Question", "gathered"]

DRAYMAN = "drayman"

T = TypeVar("T")
#: What one round measured: values by what was measured and in which unit.
Measured = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Asked:
    """What the command line wishes."""

    edge: str = "haproxy"
    repeats: int = 3
    #: Sizes that show whether a question works; its figures are not to be quoted.
    quick: bool = False
    #: How long an idle Drayman is watched.
    idle_s: float = 300.0

    def size(self, full: T, quick: T) -> T:
        """Return the size to measure with."""
        return quick if self.quick else full

    @property
    def options(self) -> tuple[str, ...]:
        """What `drayman up` is given by every question."""
        return ("--edge", self.edge)


#: Yields its figures as they come.
Question = Callable[[Asked], Iterator[Figure]]


def gathered(
    question: str, rounds: list[Measured], notes: Mapping[str, str] | None = None
) -> list[Figure]:
    """Return a figure for each thing that was measured, with one value a round."""
    notes = notes or {}
    keys = dict.fromkeys(key for measured in rounds for key in measured)
    return [
        Figure(
            question,
            DRAYMAN,
            what,
            unit,
            [measured[what, unit] for measured in rounds if (what, unit) in measured],
            notes.get(what, ""),
        )
        for what, unit in keys
    ]
