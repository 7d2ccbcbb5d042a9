"""Request headers as values: pure functions, each after the text of its standard.

Rule: a header we must obey (a key) is refused when it can't be read; one that only states a wish
(a preference, a trace, a range) is then ignored.
"""

import re
from typing import NamedTuple

from jobs.errors import InvalidInput
from service.problems import RangeNotSatisfiable

__all__ = ["ByteRange", "byte_range", "idempotency_key", "not_modified", "traceparent", "wait_s"]

KEY_LENGTH_MAX = 255
#: A structured-field string (RFC 8941): printable ASCII in quotes, `\` before `"` and `\`.
_SF_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BARE_KEY = re.compile(r"[!#-\[\]-~]+")
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=[,;]|$)", re.IGNORECASE)
_TRACE = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE)


def idempotency_key(value: str, header: str = "Idempotency-Key") -> str:
    """Return the key, which may be a quoted string as in the draft standard or a bare token.

    Raises InvalidInput naming the header.
    """
    text = value.strip()
    if quoted := _SF_STRING.fullmatch(text):
        key = re.sub(r'\\(["\\])', r"\1", quoted[1])
    elif _BARE_KEY.fullmatch(text):
        key = text
    else:
        raise InvalidInput(header, "use printable ASCII in double quotes, for example a UUID")
    if not 1 <= len(key) <= KEY_LENGTH_MAX:
        raise InvalidInput(header, f"must have 1 to {KEY_LENGTH_MAX} characters, got {len(key)}")
    return key


def wait_s(prefer: str, cap_s: float) -> float | None:
    """Return how long `Prefer` (RFC 7240) asks to wait, at most `cap_s`; None if it does not."""
    found = _WAIT.search(prefer)
    return None if found is None else min(float(found[1]), cap_s)


def traceparent(value: str) -> str | None:
    """Return the W3C trace context if it is valid, else None."""
    found = _TRACE.fullmatch(value.strip())
    if found is None:
        return None
    version, trace_id, parent_id, _, rest = found.groups()
    if version == "ff" or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    if version == "00" and rest:
        return None
    return found[0]


def not_modified(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client's copy is current (RFC 9110, weak comparison)."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag in tags


class ByteRange(NamedTuple):
    """Which bytes of a file to send."""

    start: int
    length: int


def byte_range(value: str | None, if_range: str | None, etag: str, size: int) -> ByteRange | None:
    """Return the one range asked for, or None for the whole file.

    Several ranges, other units, nonsense and a stale `If-Range` mean the whole file (RFC 9110 lets
    a server ignore Range). Raises RangeNotSatisfiable.
    """
    if value is None or (if_range is not None and if_range.strip() != etag):
        return None
    found = _RANGE.fullmatch(value.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    else:
        start, end = max(0, size - int(last)), size - 1
    if start >= size:
        raise RangeNotSatisfiable(size)
    return ByteRange(start, end - start + 1)
