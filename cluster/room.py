"""Something bounded that tenants share where no setting says how: places in intake, bytes read.

Rule: a tenant may hold up to `GREED` times what is left over. So one alone has four fifths of it,
several that want all have equal parts, and whoever comes next finds some (the dynamic thresholds of
Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998).
"""

from typing import Literal

from jobs.errors import Overloaded

__all__ = ["Room"]

GREED = 4


class Room:
    """So much of one thing."""

    def __init__(
        self, what: str, most: int, unit: Literal["jobs", "bytes"], retry_after_s: float
    ) -> None:
        self._what, self._most, self._unit = what, most, unit
        self._retry_after_s = retry_after_s
        self._taken = 0
        #: Those that hold some.
        self._of: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """How much is held."""
        return self._taken

    def take(self, tenant: str, amount: int) -> None:
        """Hold so much more. Raises Overloaded, and holds nothing, where that is too much."""
        own, left = self._of.get(tenant, 0) + amount, self._most - self._taken
        if amount > left:
            told = f"{self._what}: {self._most:,} {self._unit} are all there is"
            raise Overloaded("system", told, self._retry_after_s)
        if own > GREED * left:
            told = f"{self._what}: tenant {tenant!r} has its share of {self._unit}"
            raise Overloaded("tenant", told, self._retry_after_s, tenant)
        self._of[tenant] = own
        self._taken += amount

    def give(self, tenant: str, amount: int) -> None:
        """Hold so much less."""
        self._taken -= amount
        left = self._of[tenant] - amount
        if left:
            self._of[tenant] = left
        else:
            del self._of[tenant]
