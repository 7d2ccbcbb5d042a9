"""Where webhooks go: an address that a tenant named, and the secrets that sign what goes there."""

import msgspec

__all__ = ["DEFAULT", "Endpoint"]

#: Signs what goes to URLs that jobs name themselves; it has no URL.
DEFAULT = "default"


class Endpoint(msgspec.Struct, frozen=True):
    """One endpoint as a delivery sees it."""

    #: Empty for `default`.
    url: str
    #: `whsec_...`, those in force, newest first: an old one still signs for a while.
    secrets: tuple[str, ...]
    #: Why it gets nothing more; empty while it does.
    disabled: str = ""
