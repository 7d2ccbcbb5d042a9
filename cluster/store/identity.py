"""Which journal belongs to which store, so that an absent journal is never taken for a new one.

Two objects say it: `journal-identity.json` beside the journal, written first, and
`store/identity.json` in the store, written second. Rule 1: once the store names a journal, only
that journal will do; an empty one in its place is refused, whatever the reason. Rule 2: a start
that died between the two writes, or before one was synced, is completed by the next. Rule 3: both
are durable before the first segment, so a segment without them is a mistake in the settings.
"""

import uuid
from collections.abc import Callable

import msgspec

from cluster.store.contract import Objects
from jobs.errors import Corrupt, InvalidInput, NotFound, Unavailable

__all__ = ["Identity", "known_identity", "open_identity", "read_identities", "require_identity"]

_STORE_PATH = "store/identity.json"
_JOURNAL_PATH = "journal-identity.json"
_JOURNAL_PREFIX = "journal/"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The pair of a store and its journal."""

    store_id: str
    journal_id: str
    #: Where the journal was when the pair was made: for the reader of an error, never compared,
    #: since a journal may be moved.
    journal_url: str
    schema_version: int = 1


def open_identity(
    store: Objects, journal: Objects, *, new_id: Callable[[], str] = lambda: uuid.uuid4().hex
) -> Identity:
    """Return the identity of this pair, making it if both are new.

    InvalidInput: the two do not belong together, or one of them is not what it was.
    """
    beside = _keep(journal, _JOURNAL_PATH)
    known = _keep(store, _STORE_PATH)
    if known is not None:
        return _same(store, journal, known, beside)
    if next(journal.list(_JOURNAL_PREFIX), None) is not None:
        raise InvalidInput(
            "store",
            f"the journal at {journal.url} has segments, but the store at {store.url} is not the "
            "one it was written for; set `store` to that one",
        )
    if beside is None:
        made = Identity(store_id=new_id(), journal_id=new_id(), journal_url=journal.url)
        beside = _create(journal, _JOURNAL_PATH, made)
    # Another manager may have paired the store with another journal in the meantime.
    return _same(store, journal, _create(store, _STORE_PATH, beside), beside)


def known_identity(store: Objects, journal: Objects) -> Identity:
    """Return the identity of a pair that is in use. Changes nothing.

    Unavailable: the store has none. InvalidInput: the two do not belong together.
    """
    require_identity(store)
    known, beside = read_identities(store, journal)
    assert known is not None
    return _same(store, journal, known, beside)


def require_identity(store: Objects) -> None:
    """Raise Unavailable where the store has no identity: one that was in use is gone."""
    if _read(store, _STORE_PATH) is None:
        raise Unavailable(f"{store.url} is empty now, though it was in use; mount or restore it")


def read_identities(store: Objects, journal: Objects) -> tuple[Identity | None, Identity | None]:
    """Return what the store says and what stands beside the journal. Changes nothing."""
    return _read(store, _STORE_PATH), _read(journal, _JOURNAL_PATH)


def _same(store: Objects, journal: Objects, known: Identity, beside: Identity | None) -> Identity:
    if beside is None:
        raise InvalidInput(
            "journal",
            f"{journal.url} is empty, but the store at {store.url} has a journal, written at "
            f"{known.journal_url}; mount or set that one (a new journal would forget its jobs)",
        )
    if beside != known:
        raise InvalidInput(
            "journal",
            f"{journal.url} is journal {beside.journal_id}, but the store at {store.url} belongs "
            f"to journal {known.journal_id}, written at {known.journal_url}; set that one",
        )
    return known


def _read(objects: Objects, path: str) -> Identity | None:
    try:
        data = objects.get(path)
    except NotFound:
        return None
    try:
        return msgspec.json.decode(data, type=Identity)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{objects.url}/{path}", f"is no identity: {error}") from error


def _keep(objects: Objects, path: str) -> Identity | None:
    """Return the identity, durable: who wrote it may have died before that."""
    found = _read(objects, path)
    return None if found is None else _create(objects, path, found)


def _create(objects: Objects, path: str, identity: Identity) -> Identity:
    """Write the identity, or return the one that was there first."""
    objects.put_if_absent(path, msgspec.json.encode(identity))
    found = _read(objects, path)
    if found is None:
        raise Corrupt(f"{objects.url}/{path}", "was written and then was gone; who deletes here?")
    return found
