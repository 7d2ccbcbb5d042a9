"""What a worker was assigned and no child has: a line for each code, and suspects beside them.

Rule 1: a line keeps the order of assignment; what comes back unstarted goes to its front.
Rule 2: where children run many attempts at once, one that must run alone stands in no line: it
waits for a child of its own, and nothing waits behind it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator

from cluster.worker.held import Held

__all__ = ["Backlog", "Line"]


class Line(deque[int]):
    """What waits for one code, in order."""

    def __init__(self) -> None:
        super().__init__()
        #: When it was last fed, or last began to wait.
        self.fed_s = 0.0
        #: Since when no child is there for it; None while one is.
        self.starved_since_s: float | None = None


class Backlog:
    """Every token of `held` that waits here."""

    def __init__(self, held: dict[int, Held], *, suspects_apart: bool) -> None:
        self._held, self._suspects_apart = held, suspects_apart
        #: By code; the line of the cluster's own is always there.
        self.lines: dict[str, Line] = {"": Line()}
        self.suspects: deque[int] = deque()

    def add(self, held: Held) -> None:
        """Let it wait behind the others."""
        assignment = held.assignment
        if assignment.alone and self._suspects_apart:
            self.suspects.append(assignment.token)
        else:
            line = self.lines.get(assignment.code) or self._line(assignment.code)
            line.append(assignment.token)

    def put_back(self, tokens: list[int]) -> None:
        """Put what one child has not started in front of its line again."""
        if not tokens:
            return
        held = self._held
        suspects = [t for t in tokens if self._suspects_apart and held[t].assignment.alone]
        self.suspects.extendleft(reversed(suspects))
        others = [token for token in tokens if token not in suspects] if suspects else tokens
        if others:
            self._line(held[others[0]].assignment.code).extendleft(reversed(others))

    def _line(self, code: str) -> Line:
        """Return the line of a code; one that is empty begins to wait now."""
        line = self.lines.get(code)
        if line is None:
            line = self.lines[code] = Line()
        if not line:
            line.fed_s = time.monotonic()
        return line

    def remove(self, token: int) -> None:
        """Let it wait no longer, if it does."""
        code = self._held[token].assignment.code
        for line in (self.lines.get(code, ()), self.suspects):
            if token in line:
                line.remove(token)  # type: ignore[union-attr]

    def take(self, code: str) -> list[Held]:
        """Take all that waits for one code."""
        waiting = [self._held[token] for token in (*self.lines.get(code, ()), *self.suspects)]
        taken = [held for held in waiting if held.assignment.code == code]
        for held in taken:
            self.remove(held.token)
        return taken

    def first_suspects(self) -> dict[str, int]:
        """Return, for each code, the suspect that is next."""
        firsts: dict[str, int] = {}
        for token in self.suspects:
            firsts.setdefault(self._held[token].assignment.code, token)
        return firsts

    def take_starved(
        self, is_served: Callable[[str], bool], patience_s: float, now: float
    ) -> Iterator[tuple[str, list[int]]]:
        """Take, line by line, what no child was there for all this time."""
        for code, line in self.lines.items():
            if not line or is_served(code):
                line.starved_since_s = None
            elif line.starved_since_s is None:
                line.starved_since_s = now
            elif now - line.starved_since_s > patience_s:
                line.starved_since_s = None
                tokens = list(line)
                line.clear()
                yield code, tokens
