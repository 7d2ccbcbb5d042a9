"""A handler's result as JSON: what it may be, and what is said when it may not.

Rule 1: whatever msgspec or pydantic can write is a result (numbers, text, lists, dicts, dates,
dataclasses, models, ...). Rule 2: anything else fails the attempt, and the message names the type.
"""

from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

__all__ = ["encode_result"]


def encode_result(value: Any) -> bytes:
    """Return `value` as JSON. Raises TypeError, saying what to return, if it is not data."""
    if value is None:
        return b"null"
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TypeError(
            f"the result cannot be written as JSON ({_reason(error)}); "
            "return numbers, text, lists, dicts or a pydantic model"
        ) from error


def _as_data(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return msgspec.Raw(value.model_dump_json().encode())
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise TypeError(f"it holds a {type(value).__name__}") from error


def _reason(error: Exception) -> str:
    is_deep = isinstance(error, RecursionError)
    return "it contains itself, or is nested too deep" if is_deep else str(error)


_encode = msgspec.json.Encoder(enc_hook=_as_data).encode
