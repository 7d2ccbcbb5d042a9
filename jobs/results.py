"""What the chunks of a fan-out returned, as its join gets it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

__all__ = ["ChunkFailure", "ChunkResult", "Results"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChunkResult(Generic[T]):
    """One chunk that succeeded."""

    #: Its place in the split, from 0.
    index: int
    #: What `run` returned, as the annotation of the join's `results` says: `Results[int]`.
    value: T
    #: URIs of the files it kept, by name; `ctx.files.fetch` takes them.
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChunkFailure:
    """One chunk that exhausted its attempts, within what the type tolerates."""

    index: int
    error: str


class Results(Generic[T]):
    """The chunks' results in the order of the split.

    Each walk over it reads them anew, a page at a time: a million fit in little memory.
    """

    def __init__(
        self,
        source: Iterable[ChunkResult[T]],
        count: int,
        failed: Sequence[ChunkFailure] = (),
    ) -> None:
        self._source, self._count = source, count
        #: Chunks that have no result, by index. Empty unless the type declares `tolerate`.
        self.failed = tuple(failed)

    def __iter__(self) -> Iterator[ChunkResult[T]]:
        return iter(self._source)

    def __len__(self) -> int:
        """Return how many chunks succeeded."""
        return self._count

    def values(self) -> Iterator[T]:
        """Yield what each chunk returned."""
        for result in self:
            yield result.value


def item_type(annotation: Any) -> Any:
    """Return `int` of `Results[int]`; Any for what says nothing."""
    args = getattr(annotation, "__args__", ())
    return args[0] if args else Any
