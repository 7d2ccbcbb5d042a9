"""What became of each recipient, over all attempts to send one mail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Ledger", "Round"]


@dataclass
class Round:
    """What one attempt learned: recipients, and for two of the kinds what the server said."""

    sent: list[str] = field(default_factory=list)
    #: Refused for good.
    refused: dict[str, str] = field(default_factory=dict)
    #: Refused for now.
    deferred: dict[str, str] = field(default_factory=dict)
    #: The mail was handed over and the answer was lost.
    unknown: list[str] = field(default_factory=list)


class Ledger:
    """The recipients by what is known of them; later rounds know better."""

    def __init__(self, recipients: Sequence[str]) -> None:
        self.recipients = list(recipients)
        self.sent: set[str] = set()
        self.refused: dict[str, str] = {}
        self.unknown: set[str] = set()
        #: Of the last round only: they are asked again in the next.
        self.deferred: dict[str, str] = {}

    def take(self, found: Mapping[str, Any] | None) -> None:
        """Add what an attempt put on record: a `Round` as data, or None if it died before."""
        if found is None:
            self.unknown.update(self._open())
            return
        told = Round(**found)
        self.sent.update(told.sent)
        self.refused.update(told.refused)
        self.unknown.update(told.unknown)
        self.unknown -= self.sent | self.refused.keys()
        self.deferred = told.deferred

    def due(self, resend: bool) -> list[str]:
        """Return who is to get the mail; those in doubt only with `resend`."""
        return [to for to in self._open() if resend or to not in self.unknown]

    def _open(self) -> list[str]:
        return [to for to in self.recipients if to not in self.sent and to not in self.refused]

    def result(self) -> dict[str, Any]:
        """Return recipients by what became of them, in their order."""
        everyone = self.recipients
        return {
            "sent": [to for to in everyone if to in self.sent],
            "refused": [
                {"to": to, "reason": self.refused[to]} for to in everyone if to in self.refused
            ],
            "unknown": [to for to in everyone if to in self.unknown],
        }

    def told(self) -> str:
        """Return who has, or may have, the mail, for the end of a message; empty if nobody."""
        parts = []
        for words, some in (("sent already to", self.sent), ("in doubt for", self.unknown)):
            if some:
                names = ", ".join(to for to in self.recipients if to in some)
                parts.append(f"; {words} {names}")
        return "".join(parts)
