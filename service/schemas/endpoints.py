"""Where a tenant's webhooks go."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Endpoint", "EndpointList", "EndpointRequest", "NewEndpoint"]


class EndpointRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `PUT /v1/endpoints/{name}` takes."""

    url: Annotated[
        str,
        Meta(max_length=2048, description="Where webhooks go. Of `default`: leave it out."),
    ] = ""


class Endpoint(msgspec.Struct, frozen=True):
    """Where webhooks of a tenant go, by a name of its own."""

    name: str
    url: Annotated[str, Meta(description="Empty for `default`, which signs for any other URL.")]
    created_at: datetime
    secrets: Annotated[
        list[datetime], Meta(description="When each secret in force was made, newest first.")
    ]
    disabled: Annotated[
        str | None, Meta(description="Why it gets nothing more; put it again to let it.")
    ]
    disabled_at: datetime | None


class NewEndpoint(msgspec.Struct, frozen=True):
    """An endpoint, and a secret at its birth: the only time that its text is shown."""

    secret: Annotated[str, Meta(description="`whsec_...`, as Standard Webhooks has it.")]
    endpoint: Endpoint


class EndpointList(msgspec.Struct, frozen=True):
    """A tenant's endpoints by name."""

    endpoints: list[Endpoint]
