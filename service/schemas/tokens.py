"""Tokens, and whose the one at hand is."""

from datetime import datetime

import msgspec

from service.auth import Scope

__all__ = ["NewToken", "Session", "Token", "TokenRequest", "Tokens"]


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /v1/tokens` takes."""

    tenant: str
    scopes: list[Scope]
    name: str = ""


class Token(msgspec.Struct, frozen=True):
    """A token as a list shows it."""

    id: str
    tenant: str
    scopes: list[Scope]
    name: str
    created_at: datetime


class NewToken(msgspec.Struct, frozen=True):
    """A token at its birth: the only time its text is shown."""

    token: str
    id: str
    tenant: str
    scopes: list[Scope]
    name: str
    created_at: datetime


class Tokens(msgspec.Struct, frozen=True):
    """Every token."""

    tokens: list[Token]


class Session(msgspec.Struct, frozen=True):
    """Whose token it is, and what it may do."""

    tenant: str
    scopes: list[str]
