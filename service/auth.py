"""Who is asking, and what they may do.

A token is `dray_` and 32 random bytes. The store keeps its SHA-256 only, one object a token, under
`tokens/`. Records never change: revoking one deletes it.

Rule 1: a token belongs to one tenant and has scopes; `admin` implies the others and sees every
tenant. Rule 2: a revoked token is refused within `STALE_S`, also by a process that was idle.
Rule 3: unknown tokens cost the store at most one listing a `REFRESH_S`, however many are tried.
Rule 4: a browser sends its token in a cookie by itself, also for pages of others: it counts only
where the browser, or else the `Origin`, says that the page is ours.
"""

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

import msgspec
import structlog

from cluster.store.contract import Objects
from jobs.errors import InvalidInput, NotFound, Unavailable
from service.problems import Forbidden, Unauthorized

__all__ = [
    "SCOPES",
    "TENANT",
    "Authenticator",
    "Caller",
    "Scope",
    "TokenRecord",
    "TokenStore",
    "check_origin",
    "cookie_name",
    "credentials",
]

log = structlog.get_logger(__name__)

Scope = Literal["submit", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

#: Tenants become folder names in the store.
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
TOKEN = re.compile(rb"dray_[A-Za-z0-9_-]{43}")
PREFIX = "tokens/"
NAME_LENGTH_MAX = 100
#: How many characters of the hash name a token to people.
ID_LENGTH = 12

#: Methods that change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD"})

#: Between two readings of the store at least this long.
REFRESH_S = 0.5
#: A reading older than this is renewed in the background ...
AGED_S = 2.0
#: ... and one older than this is not trusted: the request waits for a new one.
STALE_S = 5.0
#: While the store is down, tokens known before go on working this long.
GRACE_S = 900.0


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a token."""

    tenant: str
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """Whether the caller may do everything, for every tenant."""
        return "admin" in self.scopes

    @property
    def sees(self) -> str | None:
        """The tenant whose jobs the caller may see; None for all."""
        return None if self.is_admin else self.tenant

    def need(self, *scopes: Scope) -> None:
        """Raise Forbidden unless the caller has one of the scopes."""
        if not self.is_admin and self.scopes.isdisjoint(scopes):
            raise Forbidden(f"this token lacks the scope {' or '.join(map(repr, scopes))}")


class TokenRecord(msgspec.Struct, frozen=True):
    """What the store keeps of a token."""

    tenant: str
    scopes: list[Scope]
    created_at: datetime
    name: str = ""
    #: First characters of the hash; how a person names the token. Filled in when read.
    id: str = ""


class TokenStore:
    """The tokens in the store. Blocking: call it from a thread."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def create(self, tenant: str, scopes: list[Scope], name: str = "") -> tuple[str, TokenRecord]:
        """Make a token durable and return it with its record; it can't be read again.

        Raises InvalidInput.
        """
        if not TENANT.fullmatch(tenant):
            raise InvalidInput("tenant", "use 1 to 63 of a-z, 0-9, '-', '_', led by none of - _")
        wrong = [scope for scope in scopes if scope not in SCOPES]
        if wrong or not scopes:
            raise InvalidInput("scopes", f"choose from {', '.join(SCOPES)}; got {scopes}")
        if len(name) > NAME_LENGTH_MAX or not name.isprintable():
            raise InvalidInput("name", f"use at most {NAME_LENGTH_MAX} printable characters")
        token = f"dray_{secrets.token_urlsafe(32)}"
        digest = _digest(token.encode())
        record = TokenRecord(
            tenant, sorted(set(scopes)), datetime.now(UTC), name, digest[:ID_LENGTH]
        )
        self._objects.put(_path(digest), msgspec.json.encode(record))
        return token, record

    def read(self, known: dict[str, TokenRecord]) -> dict[str, TokenRecord]:
        """Return every token by its hash, fetching only records that `known` has not."""
        found: dict[str, TokenRecord] = {}
        for info in self._objects.list(PREFIX):
            digest = info.path.removeprefix(PREFIX).removesuffix(".json")
            try:
                found[digest] = known.get(digest) or self._record(info.path)
            except NotFound:  # revoked between the listing and here
                continue
            except msgspec.MsgspecError as error:
                # One damaged record must not lock everybody out.
                log.error("token_record_unreadable", path=info.path, reason=str(error))
        return found

    def knows(self, token: str) -> bool:
        """Whether this token was created here and not revoked."""
        try:
            return bool(self._objects.size(_path(_digest(token.encode()))))
        except NotFound:
            return False

    def revoke(self, token_id: str) -> TokenRecord:
        """Delete the token named by the first characters of its hash (at least 8); durable.

        Raises NotFound, or InvalidInput if the characters fit several.
        """
        if not re.fullmatch(r"[0-9a-f]{8,64}", token_id):
            raise InvalidInput("id", "give at least 8 hexadecimal characters, as `list` shows them")
        fits = {d: r for d, r in self.read({}).items() if d.startswith(token_id)}
        if not fits:
            raise NotFound("token", token_id)
        if len(fits) > 1:
            raise InvalidInput("id", f"fits {len(fits)} tokens; give more characters")
        (digest, record), *_ = fits.items()
        self._objects.delete([_path(digest)])
        return record

    def _record(self, path: str) -> TokenRecord:
        return msgspec.json.decode(self._objects.get(path), type=TokenRecord)


class Authenticator:
    """Tells callers from their `Authorization` header, from memory whenever it can."""

    def __init__(self, tokens: TokenStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._records: dict[str, TokenRecord] = {}
        self._callers: dict[str, Caller] = {}
        #: The same by header, for those seen since the last reading: a hash a request costs much.
        self._known: dict[bytes | None, Caller] = {}
        self._read_at = -1e9
        self._tried_at = -1e9
        self._failure: Unavailable | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def identify(self, authorization: bytes | None) -> Caller:
        """Return who holds the token. Raises Unauthorized; Unavailable if it can't be known."""
        age_s = self._clock() - self._read_at
        if age_s < AGED_S and (known := self._known.get(authorization)) is not None:
            return known
        digest = _digest(_bearer(authorization))
        caller = self._callers.get(digest)
        if caller is not None and age_s < STALE_S:
            if age_s > AGED_S:
                self._start_refresh()
            else:
                self._known[authorization] = caller
            return caller
        await self._refresh()
        caller = self._callers.get(digest)
        if self._failure is not None and (
            caller is None or self._clock() - self._read_at > GRACE_S
        ):
            raise self._failure
        if caller is None:
            raise Unauthorized("this token is not known; it may have been revoked")
        return caller

    async def _refresh(self) -> None:
        # Shielded: a client that goes away must not cancel the reading that others wait for.
        await asyncio.shield(self._start_refresh())

    def _start_refresh(self) -> "asyncio.Task[None]":
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._read())
        return self._refreshing

    async def _read(self) -> None:
        # A floor between readings: guessing tokens must not become load on the store.
        await asyncio.sleep(max(0.0, self._tried_at + REFRESH_S - self._clock()))
        self._tried_at = started_at = self._clock()
        try:
            self._records = await asyncio.to_thread(self._tokens.read, self._records)
        except Unavailable as error:
            log.warning("tokens_unreadable", reason=str(error), next="tokens known before go on")
            self._failure = error
            return
        self._failure, self._read_at = None, started_at
        self._known = {}
        self._callers = {
            digest: Caller(record.tenant, frozenset(record.scopes))
            for digest, record in self._records.items()
        }


def credentials(headers: Mapping[bytes, bytes], method: str) -> bytes | None:
    """Return what tells the caller: the `Authorization` header, or else the dashboard's cookie.

    `method` is anything but GET and HEAD for what may change something, a WebSocket too. Raises
    Forbidden where a page of another origin made the browser send the cookie.
    """
    authorization = headers.get(b"authorization")
    if authorization is not None or b"cookie" not in headers:
        return authorization
    wanted = cookie_name(headers.get(b"host", b""))
    for part in headers[b"cookie"].split(b";"):
        name, _, token = part.strip().partition(b"=")
        if name == wanted:
            check_origin(headers, method)
            return b"Bearer " + token
    return None


def cookie_name(host: bytes) -> bytes:
    """Return the name of the cookie with the token; `host` is the header."""
    # Cookies know no ports: two Draymans on one machine would take each other's.
    _, _, port = host.rpartition(b":")
    return b"drayman_" + port if port.isdigit() else b"drayman"


def check_origin(headers: Mapping[bytes, bytes], method: str) -> None:
    """Raise Forbidden if a page of another origin made the browser send this."""
    site = headers.get(b"sec-fetch-site")
    is_safe = method in SAFE_METHODS
    if site is not None:
        # `none`: a person typed the address.
        is_ours = site == b"same-origin" or (is_safe and site == b"none")
    else:
        # Not told over plain HTTP beyond loopback, or by an old browser. What only reads needs no
        # more: SameSite keeps the cookie away, and no other page can read the answer.
        _, _, origin = headers.get(b"origin", b"").partition(b"://")
        is_ours = is_safe or bool(origin and origin == headers.get(b"host"))
    if not is_ours:
        raise Forbidden("the cookie of the dashboard is not for pages of other sites")


def _bearer(authorization: bytes | None) -> bytes:
    if authorization is None:
        raise Unauthorized("send the header 'Authorization: Bearer <token>'")
    scheme, _, token = authorization.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not TOKEN.fullmatch(token):
        raise Unauthorized(
            "the Authorization header holds no Drayman token; send 'Bearer dray_...'"
        )
    return token


def _digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


def _path(digest: str) -> str:
    return f"{PREFIX}{digest}.json"
