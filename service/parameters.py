"""Query parameters of calls.

Rule: one that a call does not know is refused by name, as an unknown field of a body is: a filter
that was misspelt would be no filter.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AnyTenant", "OwnTenant", "Parameters"]


class Parameters(BaseModel):
    """What a call takes in its query."""

    model_config = ConfigDict(extra="forbid")


class AnyTenant(Parameters):
    """Of a list: whose."""

    tenant: Annotated[str | None, Field(description="For admins: one tenant's.")] = None


class OwnTenant(Parameters):
    """Of one thing by its name: whose."""

    tenant: Annotated[
        str | None, Field(description="For admins: that of another tenant than their own.")
    ] = None
