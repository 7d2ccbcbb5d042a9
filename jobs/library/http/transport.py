"""An httpx transport that connects only where params may lead.

Rule 1: a name is resolved once, every address it has is checked, and the connection goes to a
checked address; a name whose answers change meanwhile (DNS rebinding) gains nothing. Rule 2: the
`Host` header, SNI and the certificate stay those of the name. Rule 3: a proxy of the environment is
not used: it would resolve the name itself.
"""

import asyncio
import socket
import ssl
from functools import cache
from typing import Any

import httpx

from jobs.library.http.addresses import HTTP_ALLOW_ENV, Allowed

__all__ = ["GuardedTransport", "RefusedAddress"]


class RefusedAddress(Exception):
    """The host leads where jobs may not call."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host

    def __str__(self) -> str:
        # Which address it is stays untold: names inside are not for those outside.
        return (
            f"{self.host!r} leads to an address that is not public, and that jobs may not call; "
            f"the operator can open its network with {HTTP_ALLOW_ENV}"
        )


class GuardedTransport(httpx.AsyncBaseTransport):
    """Resolves, checks, then connects, to one address after the other until one answers."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        # No connection is kept: it would be found by its address, and serve another name there.
        self._inner = httpx.AsyncHTTPTransport(
            verify=_tls(), trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request. Raises RefusedAddress, and what httpx raises."""
        host = request.url.raw_host.decode("ascii")
        failed: httpx.TransportError = httpx.ConnectError(f"{host!r} has no address")
        for address in await self._addresses(host, request.url.port):
            direct = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host.rstrip(".")},
            )
            try:
                return await self._inner.handle_async_request(direct)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = error
        raise failed

    async def aclose(self) -> None:
        """Close what is open."""
        await self._inner.aclose()

    async def _addresses(self, host: str, port: int | None) -> list[str]:
        found: list[Any]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"{host!r} has no address: {error}") from error
        addresses = [str(where[0]) for *_, where in found]
        if any(self._allowed.refuses(address) for address in addresses):
            raise RefusedAddress(host)
        return list(dict.fromkeys(addresses))


@cache
def _tls() -> ssl.SSLContext:
    """Return the one context of this process: reading the certificates takes long."""
    return httpx.create_ssl_context()
