"""Where a URL leads: scheme, host and port, each spelled in one way only.

Rule: one host has one spelling, since limits are counted by it. What clients read differently
(user info, backslashes, numbers that are addresses to some) is refused, not guessed at.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

__all__ = ["URL_CHARS_MAX", "Place"]

URL_CHARS_MAX = 2048
_URL = re.compile(r"(https?)://([^/?#]*)[^\x00-\x20\x7f\\]*", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Place:
    """An origin, in the sense of browsers."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """Return where `url` leads. Raises ValueError that says what to change."""
        found = _URL.fullmatch(url)
        if found is None or len(url) > URL_CHARS_MAX:
            raise ValueError(
                f"write it as http:// or https://, {URL_CHARS_MAX} characters at most, without "
                "spaces, backslashes and control characters"
            )
        if "@" in found[2]:
            raise ValueError("leave the user and the password out; name a secret instead")
        authority = _AUTHORITY.fullmatch(found[2].lower())
        if authority is None:
            raise ValueError(
                "the host is no name and no address in ASCII, or the port is none; "
                "write other letters as xn--"
            )
        scheme = found[1].lower()
        port = int(authority[2]) if authority[2] else _PORTS[scheme]
        if not 1 <= port <= 65_535:
            raise ValueError("the port is 1 to 65535")
        return cls(scheme, _host(authority[1]), port)

    @property
    def shown(self) -> str:
        """The host, with the port if it is not the scheme's own."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"


def _host(text: str) -> str:
    try:
        if text.startswith("["):
            return f"[{ipaddress.IPv6Address(text[1:-1])}]"
        labels = text.removesuffix(".").split(".")
        # Resolvers take 127.1, 0x7f000001 and 017700000001 for addresses as well.
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
            return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError("the host is no IP address as it is commonly written") from None
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("the host is no name that there can be")
    return ".".join(labels)
