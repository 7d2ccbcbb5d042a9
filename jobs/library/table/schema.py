"""The columns that params declare, as JSON and as an Arrow schema.

Rule 1: a type is checked when params are, without pyarrow. Rule 2: names are unique, because a
column that stands twice can be meant once only.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["Column", "arrow_schema", "arrow_type", "check_unique"]

_PLAIN = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float32", "float64", "string", "bool", "date",
)  # fmt: skip
_STAMP = re.compile(r"timestamp\((s|ms|us|ns)(?:,\s*(UTC))?\)")
_DECIMAL = re.compile(r"decimal\((\d{1,2}),\s*(\d{1,2})\)")


class Column(BaseModel):
    """One column of a table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=256)]
    type: Annotated[
        str,
        Field(
            description="int8..int64, uint8..uint64, float32, float64, string, bool, date, "
            "timestamp(us) or timestamp(us, UTC) with s, ms, us or ns, decimal(precision,scale)"
        ),
    ]
    nullable: bool = True

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        value = value.strip()
        if value == "timestamp":
            value = "timestamp(us)"
        if value in _PLAIN or _STAMP.fullmatch(value):
            return value
        if found := _DECIMAL.fullmatch(value):
            precision, scale = int(found[1]), int(found[2])
            if 1 <= precision <= 38 and scale <= precision:
                return value
            raise ValueError(
                f"{value} needs a precision from 1 to 38 and a scale no greater than it"
            )
        raise ValueError(
            f"{value!r} is no column type; use one of {', '.join(_PLAIN)}, timestamp(us), "
            "timestamp(us, UTC) or decimal(12,2)"
        )


def check_unique(columns: Sequence[Column]) -> None:
    """Raise ValueError naming a column that is declared twice."""
    seen: set[str] = set()
    for column in columns:
        if column.name in seen:
            raise ValueError(f"column {column.name!r} is declared twice; keep one")
        seen.add(column.name)


def arrow_type(kind: str) -> Any:
    """Return the Arrow type of a checked column type."""
    import pyarrow as pa

    if found := _STAMP.fullmatch(kind):
        return pa.timestamp(found[1], found[2])
    if found := _DECIMAL.fullmatch(kind):
        return pa.decimal128(int(found[1]), int(found[2]))
    if kind == "date":
        return pa.date32()
    return pa.type_for_alias(kind)


def arrow_schema(columns: Sequence[Column]) -> Any:
    """Return the Arrow schema of columns."""
    import pyarrow as pa

    return pa.schema([pa.field(c.name, arrow_type(c.type), c.nullable) for c in columns])
