"""Which addresses params may name: those of the public internet, and what the operator opened.

A worker sits inside: from there, private addresses reach databases, the cloud's metadata with its
credentials, Ray's own ports. Rule: whatever connects to a host that params name asks
`Allowed.refuses` about the very address it is about to connect to.
"""

import ipaddress
import os
from dataclasses import dataclass
from typing import Self

from jobs.errors import InvalidInput

__all__ = ["HTTP_ALLOW_ENV", "Allowed"]

#: Networks that calls may reach besides the public internet, like `10.1.0.0/16,127.0.0.1/32`.
HTTP_ALLOW_ENV = "DRAYMAN_HTTP_ALLOW"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Not public although Python's `is_global`, in one version or another, says so.
_NOT_PUBLIC = [
    ipaddress.IPv4Network(text)
    for text in (
        "192.0.0.0/24",  # for protocols
        "192.88.99.0/24",  # relays of 6to4
        "224.0.0.0/4",  # multicast
        "168.63.129.16/32",  # Azure's own services, on each of its machines
    )
]
#: All of IPv6 that is given out, but for what stands for something else.
_PUBLIC6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC6 = [
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # for protocols, Teredo among them
        "2001:db8::/32",  # for documentation
        "2002::/16",  # 6to4: leads to any IPv4 address
        "3fff::/20",  # for documentation
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Allowed:
    """The networks that an operator opened."""

    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read networks parted by commas. Raises InvalidInput."""
        try:
            return cls(
                tuple(ipaddress.ip_network(one.strip()) for one in text.split(",") if one.strip())
            )
        except ValueError as error:
            raise InvalidInput(
                HTTP_ALLOW_ENV, f"{error}; write networks like 10.1.0.0/16,127.0.0.1/32"
            ) from None

    @classmethod
    def here(cls) -> Self:
        """Return what the operator of this worker opened. Raises InvalidInput."""
        return cls.parse(os.environ.get(HTTP_ALLOW_ENV, ""))

    def refuses(self, text: str) -> bool:
        """Whether `text`, an IP address, is neither public nor opened."""
        address = _meant(ipaddress.ip_address(text.partition("%")[0]))
        if any(address in network for network in self.networks):
            return False
        if isinstance(address, ipaddress.IPv4Address):
            return not address.is_global or any(address in one for one in _NOT_PUBLIC)
        return address not in _PUBLIC6 or any(address in one for one in _NOT_PUBLIC6)


def _meant(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address wraps; any other as it is."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address
