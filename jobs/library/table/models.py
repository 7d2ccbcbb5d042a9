"""The pydantic models that rows may be validated against, by the name job code gave them.

    @table_model("shop.order")
    class Order(BaseModel): ...

Rule 1: params name a model, never a module: a client chooses among what job code registered, and
nothing is imported on its word. Rule 2: a model's columns are fixed when it is registered, so that
every chunk writes the same schema; a field that has no column type is refused there and then.
"""

import datetime as dt
import decimal
import enum
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from jobs.definition import NAME
from jobs.library.table.schema import Column

__all__ = ["TableModel", "keeps_text", "names", "registered", "table_model"]

M = TypeVar("M", bound=type[BaseModel])

_TYPES: Mapping[type, str] = {
    bool: "bool",
    int: "int64",
    float: "float64",
    str: "string",
    dt.date: "date",
    dt.datetime: "timestamp(us, UTC)",
    uuid.UUID: "string",
}


@dataclass(frozen=True)
class TableModel:
    """A registered model, and the columns its rows become, by field name."""

    model: type[BaseModel]
    columns: tuple[Column, ...]


_MODELS: dict[str, TableModel] = {}


def table_model(name: str, *, types: Mapping[str, str] | None = None) -> Callable[[M], M]:
    """Register a pydantic model under `name`, so that `table.import` may be told to use it.

    Args:
        name: What params say: lower-case words joined by dots.
        types: Column types of fields whose annotation does not say them (a Decimal), by field, as
            in a schema of params: `{"price": "decimal(12,2)"}`.

    A datetime becomes UTC, one without a zone is taken as UTC. Raises TypeError or ValueError at
    import, naming what to change.
    """

    def register(model: M) -> M:
        if not NAME.fullmatch(name):
            raise ValueError(f"table model {name!r}: use lower-case words joined by dots")
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"table model {name!r}: decorate a pydantic model, got {model!r}")
        known = _MODELS.get(name)
        home = (model.__module__, model.__qualname__)
        if known and (known.model.__module__, known.model.__qualname__) != home:
            raise ValueError(
                f"table model {name!r} is already {known.model.__module__}."
                f"{known.model.__qualname__}; choose another name"
            )
        told = dict(types or {})
        plain: type[BaseModel] = model
        fields = plain.model_fields
        if unknown := sorted(told.keys() - fields.keys()):
            raise ValueError(f"table model {name!r}: types names no such field: {unknown[0]}")
        columns = tuple(
            _column(name, field, info.annotation, told.get(field)) for field, info in fields.items()
        )
        if not columns:
            raise TypeError(f"table model {name!r}: it has no fields, so no columns")
        _MODELS[name] = TableModel(model, columns)
        return model

    return register


def registered(name: str) -> TableModel | None:
    """Return the model of that name, or None."""
    return _MODELS.get(name)


def names() -> list[str]:
    """Return every registered name, sorted."""
    return sorted(_MODELS)


def keeps_text(annotation: Any) -> bool:
    """Whether a field takes any text as it is, so that a spelling of null may be meant."""
    kept = [arg for arg in typing.get_args(annotation) if arg is not types.NoneType]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return keeps_text(kept[0])
    return annotation is str


def _column(name: str, field: str, annotation: Any, told: str | None) -> Column:
    kind, nullable = _plain(annotation)
    found = told or _TYPES.get(kind)
    if found is None and isinstance(kind, type) and issubclass(kind, enum.Enum):
        found = _TYPES.get(_only({type(member.value) for member in kind}))
    if found is None:
        hint = '"decimal(12,2)"' if kind is decimal.Decimal else '"string"'
        raise TypeError(
            f"table model {name!r}: field {field!r} has no column type; give it one with "
            f"table_model({name!r}, types={{{field!r}: {hint}}})"
        )
    return Column(name=field, type=found, nullable=nullable)


def _plain(annotation: Any) -> tuple[Any, bool]:
    """Return the bare type, and whether None is one of its values."""
    origin = typing.get_origin(annotation)
    args = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _plain(args[0])
    if origin in (typing.Union, types.UnionType):
        kept = [arg for arg in args if arg is not types.NoneType]
        kind, nullable = _plain(kept[0]) if len(kept) == 1 else (None, False)
        return kind, nullable or len(kept) < len(args)
    if origin is typing.Literal:
        return _only({type(value) for value in args if value is not None}), None in args
    return annotation, annotation is Any


def _only(kinds: set[type]) -> Any:
    return next(iter(kinds)) if len(kinds) == 1 else None
