"""What an operator sets, and what is decided by it: limits of queues, of tenants, of shared keys.

Declared only. `admission.py` refuses what is too much for a queue or a tenant, `gates.py` holds
back what a shared key has no room for, and `config.py`, a floor above, is where all of it is read.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["NO_LIMITS", "Limit", "QueueLimits", "Rules", "TenantLimits"]

Positive = Annotated[int, Meta(ge=1)]
PositiveS = Annotated[float, Meta(gt=0, le=366 * 86_400)]


class QueueLimits(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one queue bears."""

    #: Unfinished jobs from outside, and bytes of their specs; more are refused with Overloaded.
    depth_max: Positive = 1_000_000
    bytes_max: Positive = 1 << 30
    #: Work that runs longer goes on in queue `then`, and types known to are sent there at once.
    max_run_s: PositiveS | None = None
    then: str = ""
    #: Where what ran out of memory is tried again, uncharged.
    oom_to: str = ""
    #: Its workers take nothing from outside any more; what is in it is done.
    draining: bool = False


class TenantLimits(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one tenant may take."""

    #: Its share beside other tenants whose work of the same priority waits.
    weight: float = 1.0
    #: Its unfinished jobs in all queues, and bytes of their specs; None: as the queues bear.
    depth_max: Positive | None = None
    bytes_max: Positive | None = None


class Limit(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How much of what shares a key may run, over all queues, tenants and workers."""

    #: Starts a second, evenly spaced but for `burst` at once.
    rate: float | None = None
    burst: Annotated[int, Meta(ge=1, le=100_000)] = 1
    #: Runs at once.
    concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


#: Of tenants that no setting names.
NO_LIMITS = TenantLimits()


class Rules(msgspec.Struct, frozen=True):
    """Settings that decide; the same until an operator changes them."""

    queues: dict[str, QueueLimits]
    #: By tenant; `*` stands for all others.
    tenants: dict[str, TenantLimits] = {}
    #: Of all queues together.
    depth_max: int = 5_000_000
    bytes_max: int = 4 << 30
    #: What waited longer gets one turn in ten whatever its priority.
    ageing_s: float = 60.0
    default_queue: str = "default"
    #: Crashes, OOM kills and lost workers a task may survive.
    recoveries_max: int = 3
    #: Uncharged losses (its worker died beside it, a planned stop) before it is looked at.
    interruptions_max: int = 100
    idempotency_keys_max: int = 10_000_000
