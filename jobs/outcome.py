"""What a handler may say besides returning a result.

A handler returns its result, or raises one of these. Any other exception is a failed attempt,
retried within the job's budget.
"""

__all__ = ["Discard", "Retry", "Snooze", "StopRequested"]


class Retry(Exception):
    """This attempt failed; try again, after `after_s` seconds if given (else by the policy)."""

    def __init__(self, reason: str = "", after_s: float | None = None) -> None:
        super().__init__(reason, after_s)
        self.reason, self.after_s = reason, after_s

    def __str__(self) -> str:
        return self.reason or "the handler asked for a retry"


class Discard(Exception):
    """Trying again cannot help: the job fails after this attempt."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Snooze(Exception):
    """Not yet: run again in `delay_s` seconds. Consumes no attempt."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s

    def __str__(self) -> str:
        return f"snoozed for {self.delay_s:g} s"


class StopRequested(BaseException):
    """Raised inside a handler by `Context` calls once a stop was asked for.

    A BaseException, so that a handler's own `except Exception` does not swallow it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"stop requested: {self.reason}"
