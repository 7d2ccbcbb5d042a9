"""What the manager refused a moment ago: a flood of the same is turned away without asking it.

Rule 1: a refusal speaks for the next submission only where nothing but time could change it: the
same tenant, or the same queue asked for in the same way, and no fewer bytes where bytes were short.
Rule 2: some are asked all the same, so that what was accepted before is answered by its key even
when all is full. Rule 3: it is forgotten so soon that what is full stays nearly full.
"""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from cluster.queue.spec import JobSpec
from jobs.errors import Overloaded

__all__ = ["Refusals"]

#: In each second so many are asked, and refused, before the next ones are not.
ASKED, WITHIN_S = 20, 1.0
#: How long they are not asked: a part of what the refused ones are told to wait. A twentieth of
#: what is full ends in that time (see `pressure`), so one in a hundred while none is asked.
PART, HOLD_MAX_S = 0.2, 0.25
#: After that one is asked, and for so long, or until it is accepted, no other.
PROBE_S = 0.05
SCOPES = ("tenant", "queue", "system")
#: Reasons known at once.
KNOWN_MAX = 10_000

Key: TypeAlias = tuple[str | float | None, ...]


class _Full(msgspec.Struct, gc=False):
    """A limit that was met."""

    since: float
    #: Refusals since then.
    count: int = 0
    #: None is asked before this moment.
    until: float = 0.0
    #: Of which size on.
    size: int = 0
    error: tuple[object, ...] = ()


class Refusals:
    """The memory of one gateway."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._full: dict[Key, _Full] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to ask of."""
        return bool(self._full)

    def note(self, spec: JobSpec, size: int, error: Overloaded) -> None:
        """Remember that the manager refused a job whose spec takes `size` bytes."""
        if not (error.name or error.quota):
            return  # no limit that others would meet as well
        now, key = self._monotonic(), _key(error.scope, spec)
        full = self._full.get(key)
        if full is None or now - full.since >= WITHIN_S:
            if len(self._full) >= KNOWN_MAX:
                self._forget(now)
            # A flood that goes on is known from its first refusal in the next second.
            goes_on = full is not None and full.count > ASKED and now - full.since < 2 * WITHIN_S
            full = self._full[key] = _Full(now, ASKED if goes_on else 0)
        full.count += 1
        if full.count > ASKED:
            full.until = now + min(HOLD_MAX_S, PART * error.retry_after_s)
            full.size = size if error.unit == "bytes" else 0
            full.error = error.args

    def ask(self, spec: JobSpec) -> list[_Full]:
        """Return the floods in which this one is asked of; others wait for what it is told."""
        until = self._monotonic() + PROBE_S
        found = [
            full
            for scope in SCOPES
            if (full := self._full.get(_key(scope, spec))) is not None and full.count > ASKED
        ]
        for full in found:
            full.until = until
        return found

    def of_tenant(self, tenant: str) -> Overloaded | None:
        """Return why whatever the tenant submits is refused now, if it is."""
        return self._held(("tenant", tenant), 0) or self._held(("system",), 0)

    def of(self, spec: JobSpec, size: int) -> Overloaded | None:
        """Return why a job whose spec takes `size` bytes is refused now, if it is."""
        return next((e for s in SCOPES if (e := self._held(_key(s, spec), size))), None)

    def _held(self, key: Key, size: int) -> Overloaded | None:
        full = self._full.get(key)
        if full is None or size < full.size or self._monotonic() >= full.until:
            return None
        # A new one each time: raised again, one and the same would gather traces without end.
        return Overloaded(*full.error)  # type: ignore[arg-type]

    def _forget(self, now: float) -> None:
        """Forget what is over, or else everything: the manager knows."""
        kept = {key: full for key, full in self._full.items() if now - full.since < WITHIN_S}
        self._full = kept if len(kept) < KNOWN_MAX else {}


def _key(scope: str, spec: JobSpec) -> Key:
    if scope == "tenant":
        return scope, spec.tenant
    if scope == "queue":
        # Who named no queue may be sent elsewhere, by what is known of the type.
        way = (spec.type, spec.expected_s) if spec.routed else ()
        return scope, spec.queue, *way
    return (scope,)
