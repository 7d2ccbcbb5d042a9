"""Users' code, and which of it is deployed."""

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Code", "DeployRequest", "Deployment", "Deployments"]


class Code(msgspec.Struct, frozen=True):
    """Modules that are kept, to run job types with."""

    code: Annotated[str, Meta(description="Their hash: put it into `code` of a job.")]
    modules: list[str]
    types: Annotated[list[str], Meta(description="The job types in them.")]


class DeployRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /v1/code/deploy` takes."""

    code: Annotated[
        Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")],
        Meta(
            description="Its hash. Empty: give `types` back to what the cluster was started with."
        ),
    ]
    types: Annotated[
        Annotated[list[str], Meta(max_length=1000)] | None,
        Meta(description="Only these of its types."),
    ] = None


class Deployment(msgspec.Struct, frozen=True):
    """What new jobs of these types run from now on."""

    code: str
    types: list[str]


class Deployments(msgspec.Struct, frozen=True):
    """Which code is deployed."""

    types: Annotated[dict[str, str], Meta(description="Job type -> hash of its code.")]
