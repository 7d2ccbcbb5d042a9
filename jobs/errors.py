"""Every error Drayman raises on purpose, and what its receiver should do.

    DraymanError
    ├── InvalidInput      INVALID      fix the named field and send again
    ├── NotFound          NOT_FOUND    it does not exist, or is not yours
    ├── Conflict          CONFLICT     the state moved; read it again
    ├── KeyReused         CONFLICT     send a new idempotency key
    ├── LeaseLost         CONFLICT     stop, discard the output, ask for new work
    ├── Overloaded        OVERLOADED   wait `retry_after_s`, then send again
    ├── Unavailable       UNAVAILABLE  retry with backoff; nothing was changed
    └── Corrupt           CORRUPT      stop and look; a machine must not guess

Rule 1: a class exists only where a caller would act differently. Rule 2: arguments go to
`super().__init__` as given, so that an error survives pickle (Ray pickles everything).
Rule 3: HTTP codes live in `service/problems.py`, not here.
"""

from enum import StrEnum
from typing import ClassVar

__all__ = [
    "Conflict",
    "Corrupt",
    "DraymanError",
    "InvalidInput",
    "KeyReused",
    "Kind",
    "LeaseLost",
    "NotFound",
    "Overloaded",
    "Unavailable",
]


class Kind(StrEnum):
    """What the receiver should do, not where it broke."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    CORRUPT = "corrupt"
    INTERNAL = "internal"


class DraymanError(Exception):
    """Root of the tree; never raised itself."""

    kind: ClassVar[Kind] = Kind.INTERNAL


class InvalidInput(DraymanError):
    """A request names something wrong; nothing was changed."""

    kind = Kind.INVALID

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class NotFound(DraymanError):
    """No such thing, or it belongs to another tenant: the two look the same on purpose."""

    kind = Kind.NOT_FOUND

    def __init__(self, what: str, name: str, fix: str = "") -> None:
        super().__init__(what, name, fix)
        self.what, self.name, self.fix = what, name, fix

    def __str__(self) -> str:
        return f"no {self.what} {self.name!r}" + (f"; {self.fix}" if self.fix else "")


class Conflict(DraymanError):
    """The state does not allow this now; nothing was changed."""

    kind = Kind.CONFLICT

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class KeyReused(DraymanError):
    """The idempotency key was used for a different request within its window."""

    kind = Kind.CONFLICT

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"this idempotency key belongs to another request, job {self.job_id}; use a new key"


class LeaseLost(DraymanError):
    """Another worker may hold this task now: stop, discard the output, ask for new work."""

    kind = Kind.CONFLICT

    def __init__(self, token: int) -> None:
        super().__init__(token)
        self.token = token

    def __str__(self) -> str:
        return f"the lease is no longer current. token={self.token}"


class Overloaded(DraymanError):
    """Refused to protect what was already accepted. `scope` is tenant, queue or system.

    `name` is the tenant's or the queue's, `quota` what it may have of `unit`: `jobs` or `bytes`.
    """

    kind = Kind.OVERLOADED

    def __init__(
        self,
        scope: str,
        reason: str,
        retry_after_s: float,
        name: str = "",
        quota: int = 0,
        unit: str = "jobs",
    ) -> None:
        super().__init__(scope, reason, retry_after_s, name, quota, unit)
        self.scope, self.reason, self.retry_after_s = scope, reason, retry_after_s
        self.name, self.quota, self.unit = name, quota, unit

    def __str__(self) -> str:
        return f"{self.reason}; try again in {self.retry_after_s:g} s"


class Unavailable(DraymanError):
    """Something needed does not answer now. Nothing was changed unless `reason` says so."""

    kind = Kind.UNAVAILABLE

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason, retry_after_s)
        self.reason, self.retry_after_s = reason, retry_after_s

    def __str__(self) -> str:
        return f"{self.reason}; try again in {self.retry_after_s:g} s"


class Corrupt(DraymanError):
    """Stored bytes are not what was written. `path` is where to look."""

    kind = Kind.CORRUPT

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
