"""One token in the hands of a worker, and what is made of an end that its child did not tell."""

import asyncio
import time
from typing import Any

import msgspec

from cluster.protocol import NODE_LOST, Assignment, Outcome
from cluster.queue.spec import JobSpec, decode_spec
from cluster.worker.capture import last_lines
from cluster.worker.codes import Verdict
from cluster.worker.slot import Death, Slot
from jobs.redact import redact

__all__ = ["BLOCKED", "Held", "as_ordered", "crashed", "refused"]

ERROR_CHARS_MAX = 4096
#: After so long it is looked whether the import of a job's code is over.
IMPORT_AGAIN_S = 5.0
#: Why an attempt is killed that lets no other on its event loop have a turn.
BLOCKED = "blocked loop"
#: Stops after which a result that came all the same still counts.
_RESULT_COUNTS = frozenset({"timeout", "drain", "promote", NODE_LOST})
#: Stops after which a handler's own word on when it is to run again counts.
_PLANNED = frozenset({"drain", "promote", NODE_LOST})

_BLOCKED_TOLD = (
    "it blocked the event loop that it shares with others: await what waits, and run what computes "
    "in `asyncio.to_thread` or as a plain handler in a queue of a `process` pool"
)


class Held(msgspec.Struct, gc=False):
    """One token. A struct, because one is made for every task there is."""

    assignment: Assignment
    slot: Slot | None = None
    #: Monotonic moment of its start, once known; in an async child it may be ahead.
    started_s: float | None = None
    #: Why it is to stop: a reason of OrderlyStop, or our own `timeout`, BLOCKED, NODE_LOST.
    stop: str | None = None
    kill_at_s: float = 0.0
    #: The manager wants it back if it has not started.
    wanted_back: bool = False
    #: It was asked back from the child.
    recalled: bool = False
    dropped: bool = False
    #: It has ended and its log is on its way, or the rest of its child is being killed.
    ending: Outcome | None = None
    #: Those of every attempt in its child, this one's among them.
    secrets: list[str] = []
    output_at: int = 0
    #: Head of its output, if the capture file had to be cut while it ran.
    beginning: bytes = b""
    #: Checksum of the log last put into the store, and when: one that is cut keeps its length.
    log_crc: int = 0
    logged_s: float = 0.0
    #: One writer of its log at a time, so that the last one wins.
    logging: asyncio.Lock | None = None
    decoded: JobSpec | None = None

    @property
    def token(self) -> int:
        """Its lease."""
        return self.assignment.token

    def spec(self) -> JobSpec:
        """What was asked for. Decoded on first use: most attempts end before anybody asks."""
        if self.decoded is None:
            self.decoded = decode_spec(self.assignment.spec)
        return self.decoded


def as_ordered(held: Held, outcome: Outcome) -> Outcome:
    """Return the outcome of an attempt that was to stop, under the name of who ordered it."""
    stop = held.stop
    assert stop is not None
    if outcome.kind == "ok" and stop in _RESULT_COUNTS:
        return outcome
    if outcome.kind == "returned":
        return outcome if stop in _RESULT_COUNTS else Outcome(held.token, "stopped", cause=stop)
    if stop == "timeout":
        error = f"timed out after {held.spec().timeout_s or 0.0:g} s"
        return _renamed(outcome, "failed", error, "timeout")
    if stop == BLOCKED:
        return _renamed(outcome, "failed", _BLOCKED_TOLD, BLOCKED)
    if outcome.kind in {"discarded", "snoozed"} and stop in _PLANNED:
        return outcome
    return _renamed(outcome, "stopped", "", stop)


def _renamed(outcome: Outcome, kind: Any, error: str, cause: str) -> Outcome:
    return Outcome(
        outcome.token,
        kind,
        outcome.started_at,
        outcome.ended_at,
        error=error,
        cause=cause,
        log=outcome.log,
    )


def crashed(
    held: Held, death: Death, cause: str, printed: bytes, where: str, *, alone: bool
) -> Outcome:
    """Return the outcome of an attempt whose process died, with what it printed last.

    `where` that is kept; `alone`: nothing else ran in the process.
    """
    told = redact(last_lines(printed), held.secrets)
    died = f"its process died: {cause}" + (f" ({death.told})" if death.told else "")
    now = time.time()
    ran_s = time.monotonic() - (held.started_s or time.monotonic())
    return Outcome(
        held.token,
        "crashed",
        now - max(0.0, ran_s),  # it may have died while it waited for its moment
        now,
        error=f"{died}\n{told}".strip()[:ERROR_CHARS_MAX],
        cause=cause,
        alone=alone,
        log=where,
    )


def refused(held: Held, verdict: Verdict) -> Outcome:
    """Return the outcome of an attempt with whose code no child is up."""
    now, told = time.time(), verdict.reason
    if verdict.kind == "snoozed":
        return Outcome(held.token, "snoozed", now, now, error=told, delay_s=IMPORT_AGAIN_S)
    if verdict.kind == "discarded":
        told = f"the job's code cannot run: {told}"
    cause = verdict.cause or verdict.kind
    return Outcome(held.token, verdict.kind, now, now, error=told[:ERROR_CHARS_MAX], cause=cause)
