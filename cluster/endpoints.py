"""Webhook endpoints of tenants, in the store: where they lead, what signs, and what is disabled.

    endpoints/<tenant>/<name>/endpoint.json           the URL
    endpoints/<tenant>/<name>/secrets/<ms>-<id>.json  a secret; the newest counts, older ones for
                                                      `OVERLAP_S` after they were replaced
    endpoints/<tenant>/<name>/disabled.json           why it gets nothing more

Rule 1: secrets are records of their own that never change, so two who rotate at once both have
theirs. Rule 2: a secret is in the store and on its way to a signature, never in a job, a log or a
result. Rule 3: nothing here is kept in memory: what was put holds for the next delivery.
"""

import base64
import re
import secrets
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from cluster.store.contract import Objects
from jobs.endpoint import DEFAULT, Endpoint
from jobs.errors import Conflict, InvalidInput, NotFound

__all__ = ["NAME", "EndpointRecord", "Endpoints"]

T = TypeVar("T")

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
PREFIX = "endpoints/"
#: How long a secret that was replaced still signs.
OVERLAP_S = 24 * 3600.0
#: Secrets in force at once: each is a signature in every delivery.
SECRETS_MAX = 5
#: Standard Webhooks asks for 24 to 64 bytes.
SECRET_BYTES = 32
#: The first secret of `default` has this name, so that of any number who need it one makes it.
FIRST = "0-first"


class EndpointRecord(msgspec.Struct, frozen=True):
    """One endpoint as its owner sees it."""

    name: str
    url: str
    #: Epoch seconds: of the endpoint, and of each secret in force, newest first.
    created_at: float
    secrets_at: list[float]
    disabled: str = ""
    disabled_at: float = 0.0


class _Place(msgspec.Struct, frozen=True):
    url: str
    created_at: float


class _Secret(msgspec.Struct, frozen=True):
    value: str
    created_at: float


class _Disabled(msgspec.Struct, frozen=True):
    reason: str
    at: float


class Endpoints:
    """The endpoints of every tenant. Blocking: call it from a thread."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    # --- their owners -------------------------------------------------------------------------

    def put(self, tenant: str, name: str, url: str, now: float) -> tuple[EndpointRecord, str]:
        """Make an endpoint, or let one lead elsewhere; it is not disabled any more.

        The secret of a new one is returned and can't be read again; of another it is empty.
        """
        folder = _folder(tenant, name)
        if bool(url) == (name == DEFAULT):
            told = "leave it out: it signs what goes to URLs that jobs name"
            raise InvalidInput("url", told if url else "is required")
        known = self._read(f"{folder}endpoint.json", _Place)
        made = ""
        if known is None or known.url != url:
            created_at = now if known is None else known.created_at
            self._put(f"{folder}endpoint.json", _Place(url, created_at))
        self._objects.delete([f"{folder}disabled.json"])
        if not self._secrets(folder, now):
            made = self._add_secret(folder, now)
        return self.get(tenant, name, now), made

    def get(self, tenant: str, name: str, now: float) -> EndpointRecord:
        """Return an endpoint. Raises NotFound."""
        folder = _folder(tenant, name)
        place = self._read(f"{folder}endpoint.json", _Place)
        found = self._secrets(folder, now)
        if place is None and not (name == DEFAULT and found):
            raise NotFound("endpoint", name)
        disabled = self._read(f"{folder}disabled.json", _Disabled) or _Disabled("", 0.0)
        return EndpointRecord(
            name,
            place.url if place is not None else "",
            place.created_at if place is not None else found[-1].created_at,
            [one.created_at for one in found],
            disabled.reason,
            disabled.at,
        )

    def of(self, tenant: str, now: float) -> list[EndpointRecord]:
        """Return a tenant's endpoints by name."""
        found = []
        for name in self._names(tenant):
            try:
                found.append(self.get(tenant, name, now))
            except NotFound:  # deleted between the listing and here
                continue
        return found

    def rotate(self, tenant: str, name: str, now: float) -> str:
        """Make a new secret and return it; the old ones still sign for a day.

        Raises NotFound, and Conflict for one too many in a day.
        """
        record = self.get(tenant, name, now)
        if len(record.secrets_at) >= SECRETS_MAX:
            raise Conflict(
                f"endpoint {name} was rotated {SECRETS_MAX - 1} times within a day; wait, or "
                "delete it and put it again, which ends every secret at once"
            )
        folder = _folder(tenant, name)
        made = self._add_secret(folder, now)
        self._objects.delete(self._expired(folder, now))
        return made

    def delete(self, tenant: str, name: str) -> None:
        """Forget an endpoint and its secrets. Raises NotFound."""
        folder = _folder(tenant, name)
        paths = [info.path for info in self._objects.list(folder)]
        if not paths:
            raise NotFound("endpoint", name)
        # The address last: a deletion that was cut off is found again, and repeated.
        self._objects.delete(sorted(paths, key=lambda path: path.endswith("/endpoint.json")))

    # --- deliveries ---------------------------------------------------------------------------

    def delivery(self, tenant: str, name: str, now: float) -> Endpoint:
        """Return the endpoint with its secrets; `default` is made if need be. Raises NotFound."""
        folder = _folder(tenant, name)
        if name == DEFAULT and not self._secrets(folder, now):
            self._objects.put_if_absent(
                f"{folder}secrets/{FIRST}.json", _encode(_Secret(_new_secret(), now))
            )
        record = self.get(tenant, name, now)
        values = tuple(one.value for one in self._secrets(folder, now))
        return Endpoint(record.url, values, record.disabled)

    def disable(self, tenant: str, name: str, reason: str, now: float) -> None:
        """Note that the endpoint is to get nothing more until it is put again."""
        self._put(f"{_folder(tenant, name)}disabled.json", _Disabled(reason[:500], now))

    # --- records ------------------------------------------------------------------------------

    def _names(self, tenant: str) -> list[str]:
        start = f"{PREFIX}{tenant}/"
        paths = (info.path.removeprefix(start) for info in self._objects.list(start))
        return sorted({path.partition("/")[0] for path in paths})

    def _secrets(self, folder: str, now: float) -> list[_Secret]:
        """Return the secrets in force, newest first."""
        found = [secret for _, secret in self._all_secrets(folder)]
        return [
            one
            for place, one in enumerate(found)
            if place == 0 or now < found[place - 1].created_at + OVERLAP_S
        ]

    def _expired(self, folder: str, now: float) -> list[str]:
        found = list(self._all_secrets(folder))
        kept = len(self._secrets(folder, now))
        return [path for path, _ in found[kept:]]

    def _all_secrets(self, folder: str) -> Iterator[tuple[str, _Secret]]:
        found = []
        for info in self._objects.list(f"{folder}secrets/"):
            secret = self._read(info.path, _Secret)
            if secret is not None:
                found.append((info.path, secret))
        yield from sorted(found, key=lambda one: (one[1].created_at, one[0]), reverse=True)

    def _add_secret(self, folder: str, now: float) -> str:
        value = _new_secret()
        path = f"{folder}secrets/{int(now * 1000):015d}-{secrets.token_hex(4)}.json"
        self._put(path, _Secret(value, now))
        return value

    def _read(self, path: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(self._objects.get(path), type=kind)
        except NotFound:
            return None

    def _put(self, path: str, record: msgspec.Struct) -> None:
        self._objects.put(path, _encode(record))


_encode = msgspec.json.encode


def _folder(tenant: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise InvalidInput("name", "use 1 to 63 of a-z, 0-9, '-', '_', led by none of - _")
    return f"{PREFIX}{tenant}/{name}/"


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
