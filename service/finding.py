"""One thing that `drayman doctor` looked at."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    check: str
    level: Level
    text: str
    #: The numbers in it, for programs.
    facts: dict[str, Any] = field(default_factory=dict)
