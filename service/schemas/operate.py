"""Types and health."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = ["Health", "JobType", "JobTypes", "Ready"]


class JobType(msgspec.Struct, frozen=True):
    """One job type."""

    name: str
    summary: str
    builtin: Annotated[bool, Meta(description="It comes with Drayman; else it is your own.")]
    queue: str
    max_attempts: int
    timeout_s: float | None
    unique_for_s: float | None
    unique_by: list[str]
    expected_s: Annotated[float | None, Meta(description="How long it is said to run.")]
    resumable: Annotated[
        bool, Meta(description="It goes on from its checkpoint when it is stopped and moved.")
    ]
    limits: Annotated[list[str], Meta(description="Keys of limits; `{name}` is a param.")]
    code: Annotated[
        str, Meta(description="Hash of the code that is deployed for it; empty if none is.")
    ]
    params_schema: Annotated[dict[str, Any], Meta(description="JSON Schema of `params`.")]


class JobTypes(msgspec.Struct, frozen=True):
    """The job types this Drayman takes, your own before those that come with it."""

    types: list[JobType]


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(msgspec.Struct, frozen=True):
    """The manager answers too."""

    status: Literal["ready"]
    manager_s: Annotated[float, Meta(description="How long the manager took to answer.")]
