"""Keeping secrets out of what leaves an attempt.

Rule 1: every spelling a secret takes on its way (as it is, in JSON, in a repr) becomes `***`.
Rule 2: JSON stays JSON: text inside it is redacted, its structure is not.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

__all__ = ["MASK", "holds", "holds_in_json", "redact", "redact_bytes", "redact_json"]

MASK = "***"


def redact(text: str, secrets: Sequence[str]) -> str:
    """Return the text with every secret masked."""
    for spelling in _spellings(secrets):
        text = text.replace(spelling, MASK)
    return text


def redact_bytes(data: bytes, secrets: Sequence[str]) -> bytes:
    """Return captured output with every secret masked."""
    for spelling in _spellings(secrets):
        data = data.replace(spelling.encode(errors="surrogateescape"), MASK.encode())
    return data


def redact_json(data: bytes, secrets: Sequence[str]) -> bytes:
    """Return the JSON document with every secret in its texts masked."""
    if not secrets or _surely_clean(data, secrets):
        return data
    return msgspec.json.encode(_masked(msgspec.json.decode(data), secrets))


def holds(text: str, secrets: Sequence[str]) -> bool:
    """Whether a secret stands in the text."""
    return redact(text, secrets) != text


def holds_in_json(data: bytes, secrets: Sequence[str]) -> bool:
    """Whether a secret stands in a text within the JSON document."""
    if not secrets or _surely_clean(data, secrets):
        return False
    return any(holds(text, secrets) for text in _texts(msgspec.json.decode(data)))


def _surely_clean(data: bytes, secrets: Sequence[str]) -> bool:
    """Whether a search of the bytes is enough: without an escape, text is spelled as it is."""
    if b"\\" in data:
        return False
    return not any(s.encode(errors="surrogateescape") in data for s in _spellings(secrets))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)


def _masked(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, list):
        return [_masked(item, secrets) for item in value]
    if isinstance(value, dict):
        return {redact(key, secrets): _masked(item, secrets) for key, item in value.items()}
    return value


def _spellings(secrets: Sequence[str]) -> list[str]:
    if not secrets:
        return []
    found = set()
    for secret in secrets:
        for text in (secret, secret.strip()):
            found |= {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
            found.add(repr(text)[1:-1])
    # The longest first: one secret may be part of another.
    return sorted(found - {""}, key=len, reverse=True)
