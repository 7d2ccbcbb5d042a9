"""When a failed attempt is tried again.

Exponential backoff with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015): the wait is uniform in [0, min(max_s, base_s * factor ** (n - 1))].
A policy may name each wait instead, as Standard Webhooks does; these are spread by a tenth.
The random draw comes from the caller, so that the rules stay pure and replayable.
"""

import sys

import msgspec

__all__ = ["DEFAULT_RETRY", "RetryPolicy"]

NUMBER_MAX = sys.float_info.max
#: By how much a wait that is named may be shorter or longer, as a share of it.
SPREAD = 0.1


class RetryPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How long to wait before attempt n + 1. Seconds throughout."""

    base_s: float = 2.0
    factor: float = 2.0
    max_s: float = 600.0
    #: The wait after each failure, the last for all that follow; in place of the backoff.
    waits_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("base_s", 0), ("factor", 1), ("max_s", 0)):
            value = getattr(self, name)
            if not least <= value <= NUMBER_MAX:
                raise ValueError(
                    f"RetryPolicy.{name} is {value!r}; give a finite number, {least} or more"
                )
        for value in self.waits_s:
            if not 0 <= value <= NUMBER_MAX:
                raise ValueError(
                    f"RetryPolicy.waits_s has {value!r}; give finite numbers, 0 or more"
                )

    def wait_s(self, failures: int, draw: float, at_least_s: float | None = None) -> float:
        """Return the wait after the `failures`-th failure; `draw` is uniform in [0, 1).

        `at_least_s` is what the handler asked for (`Retry(after_s=...)`); it is taken as it is.
        """
        if at_least_s is not None:
            return at_least_s
        if self.waits_s:
            wait_s = self.waits_s[min(failures, len(self.waits_s)) - 1]
            return wait_s * (1 - SPREAD + 2 * SPREAD * draw)
        exponent = min(failures - 1, 64)  # beyond 2**64 the cap has long decided
        try:
            ceiling = min(self.max_s, self.base_s * float(self.factor) ** exponent)
        except OverflowError:
            ceiling = self.max_s if self.base_s else 0.0
        return draw * ceiling


#: Of who says nothing. One object: what is the default itself is not written into a job's spec, and
#: so read by nobody; an equal one would be.
DEFAULT_RETRY = RetryPolicy()
