"""What an attempt may leave for later ones to find: data of a bounded size with no secret in it.

Rule 1: what is refused here was not kept, and the message names the call and the way out. Rule 2: a
worker and `jobs.testing` ask here alike, so that a test meets what production would.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from jobs.errors import InvalidInput
from jobs.redact import holds, holds_in_json
from jobs.result import encode_result

__all__ = ["checkpoint_json", "effect_json", "once_key", "output_name", "strict_json", "telling"]

CHECKPOINT_BYTES_MAX = 64 * 1024
ONCE_BYTES_MAX = 64 * 1024
#: A shorter secret is masked wherever it stands, but only in the attempt that asked for it is it
#: a reason to refuse: a word as short as a user's name stands in much that is not secret.
TELLING_CHARS_MIN = 8

_HOLDS_SECRET = "holds a secret, and would be kept where others can read it; leave the secret out"
_check = msgspec.json.Decoder(msgspec.Raw).decode


def checkpoint_json(value: Any, secrets: Sequence[str]) -> bytes:
    """Return a checkpoint as JSON. Raises InvalidInput or TypeError."""
    data = strict_json(encode_result(value))
    if len(data) > CHECKPOINT_BYTES_MAX:
        raise InvalidInput(
            "checkpoint",
            f"is {len(data)} bytes of JSON, {CHECKPOINT_BYTES_MAX} at most; "
            "keep the data in an output file and save its name",
        )
    _refuse_secret("checkpoint", "the value", holds_in_json(data, secrets))
    return data


def effect_json(value: Any, secrets: Sequence[str]) -> bytes:
    """Return what `once` is to record as JSON. Raises InvalidInput or TypeError."""
    data = strict_json(encode_result(value))
    if len(data) > ONCE_BYTES_MAX:
        raise InvalidInput(
            "once",
            f"the value is {len(data)} bytes of JSON, {ONCE_BYTES_MAX} at most; "
            "keep the data in an output file and return its name",
        )
    _refuse_secret("once", "the value", holds_in_json(data, secrets))
    return data


def once_key(key: str, secrets: Sequence[str]) -> str:
    """Return the key of an effect. Raises InvalidInput."""
    if not isinstance(key, str):
        raise InvalidInput("once", f"the key is a {type(key).__name__}; give a text")
    _refuse_secret("once", "the key", holds(key, secrets))
    return key


def output_name(name: str, secrets: Sequence[str]) -> str:
    """Return the name of an output. Raises InvalidInput."""
    _refuse_secret("files", "the name of an output", holds(str(name), secrets))
    return name


def telling(secrets: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Return those of the secrets a process knows that this attempt may leave nowhere."""
    return [s for s in secrets if len(s) >= TELLING_CHARS_MIN or s in asked]


def strict_json(data: bytes) -> bytes:
    """Return the document on one line. Raises TypeError if others could not read it."""
    try:
        data.decode()
        if b"\n" in data:
            return msgspec.json.format(data, indent=-1)
        _check(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TypeError(
            f"the result is not valid JSON ({error}); NaN and Infinity have no place in it: "
            "return null or a text instead"
        ) from None
    return data


def _refuse_secret(call: str, what: str, is_told: bool) -> None:
    if is_told:
        raise InvalidInput(call, f"{what} {_HOLDS_SECRET}")
