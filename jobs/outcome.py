"""What a handler may say besides returning a result.

A handler returns its result, or raises one of these. Any other exception is a failed attempt,
retried within the job's budget.

Rule 1: a wait that is no wait (negative, endless, no number) is refused where it is made, so that
the traceback names the line. Rule 2: a reason may be anything; its text is what is told.
"""

import math
from datetime import timedelta
from typing import Any

__all__ = ["DELAY_MAX_S", "Discard", "Retry", "Snooze", "StopRequested", "seconds"]

#: Longer waits are cut to this: a year and a day.
DELAY_MAX_S = 366 * 86_400.0


def seconds(field: str, value: Any) -> float:
    """Return a wait in seconds, from a number or a timedelta. Raises ValueError naming `field`."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        found = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    except OverflowError:
        found = DELAY_MAX_S if value > 0 else math.nan
    if not (math.isfinite(found) and found >= 0):
        raise ValueError(
            f"{field} is {value!r}; give a number of seconds, 0 or more, or a timedelta"
        )
    return min(found, DELAY_MAX_S)


class Retry(Exception):
    """This attempt failed; try again, after `after_s` seconds if given (else by the policy)."""

    def __init__(self, reason: object = "", after_s: float | timedelta | None = None) -> None:
        super().__init__(reason, after_s)
        self.reason = reason
        self.after_s = None if after_s is None else seconds("Retry.after_s", after_s)

    def __str__(self) -> str:
        return str(self.reason) or "the handler asked for a retry"


class Discard(Exception):
    """Trying again cannot help: the job fails after this attempt."""

    def __init__(self, reason: object) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.reason)


class Snooze(Exception):
    """Not yet: run again in `delay_s` seconds. Consumes no attempt.

    `reason` is shown with the job while it waits.
    """

    def __init__(self, delay_s: float | timedelta, reason: str = "") -> None:
        super().__init__(delay_s, reason)
        self.delay_s = seconds("Snooze.delay_s", delay_s)
        self.reason = reason

    def __str__(self) -> str:
        return f"snoozed for {self.delay_s:g} s" + (f": {self.reason}" if self.reason else "")


class StopRequested(BaseException):
    """Raised inside a handler by `Context` calls once a stop was asked for.

    A BaseException, so that a handler's own `except Exception` does not swallow it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"stop requested: {self.reason}"
