"""`drayman.toml`: its text becomes a Config, and a Config such a text.

Rule 1: all that is wrong is told at once, each with its place, and with what was meant if that is
near. Rule 2: a file is whole: what it leaves out has its default, whatever was in force. Only if it
has no pools at all, it takes those it is given, and `cpu` of them serves the queues that no other
does. Rule 3: the API gives and takes the same tables as JSON.
"""

import difflib
import json
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from cluster.config import Config, PoolSettings, place
from jobs.errors import InvalidInput

__all__ = [
    "BYTES_MAX",
    "Problem",
    "Table",
    "changes",
    "config_of",
    "read_config",
    "table_of",
    "toml_of",
]

Table = dict[str, Any]
#: Where something is wrong, and why.
Problem = tuple[str, str]

#: A config goes into the journal as one event, and to every replica.
BYTES_MAX = 1 << 20
#: Beyond it not every JSON reader keeps a number whole.
NUMBER_MAX = 1 << 53
#: Nobody mends more of them at once.
PROBLEMS_MAX = 50
#: Serves what no other pool does, if a file says nothing of pools.
CATCH_ALL = "cpu"
_INDEX = re.compile(r"\$\[(\d+)\]")


def read_config(path: Path, machine: Config) -> Config:
    """Return what the file says; without pools it gets those of `machine`.

    Raises InvalidInput that lists all that is wrong.
    """
    config, problems = config_of(_read_toml(path), machine)
    if config is not None:
        return config
    listed = [f"{at}: {reason}" for at, reason in problems]
    raise InvalidInput("config", "\n  ".join([f"{path} is wrong", *listed]))


def _read_toml(path: Path) -> Table:
    try:
        if path.stat().st_size > BYTES_MAX:
            raise InvalidInput("config", f"{path} has more than {BYTES_MAX:,} bytes")
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise InvalidInput("config", f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of bytes, of TOML, of a number too long
        raise InvalidInput("config", f"{path} is not TOML: {error}") from None


def config_of(table: object, machine: Config | None = None) -> tuple[Config | None, list[Problem]]:
    """Return the Config that a table of tables says, or None and all that is wrong with it.

    If it has no pools, those of `machine` are taken.
    """
    reader = _Reader()
    if machine is not None and isinstance(table, dict) and "pools" not in table:
        pools = table_of(machine)["pools"]
        config = reader.struct(Config, table | {"pools": pools}, ())
        config = config and _with_all_served(config)
    else:
        config = reader.struct(Config, table, ())
    if config is None:
        return None, reader.problems
    problems = list(islice(config.problems(), PROBLEMS_MAX))
    return (None, problems) if problems else (config.checked(), [])


def _with_all_served(config: Config) -> Config:
    pool = config.pool(CATCH_ALL)
    if pool is None:
        return config
    served = {queue for pool in config.pools.values() for queue in pool.queues}
    more = [queue for queue in config.queues if queue not in served]
    pool = msgspec.structs.replace(pool, queues=[*pool.queues, *more])
    return msgspec.structs.replace(config, pools=config.pools | {CATCH_ALL: pool})


class _Reader:
    """Makes structs of tables, and gathers what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        #: How many there are; not all of very many are told.
        self._count = 0

    def struct(self, kind: type[msgspec.Struct], table: object, at: tuple[str, ...]) -> Any:
        """Return the struct; None if anything in it is wrong."""
        if not isinstance(table, dict):
            return self._wrong(at, f"is a table of settings, not {_shown(table)}")
        count = self._count
        fields = {field.name: field for field in _fields(kind)}
        for key in table:
            if key not in fields:
                self._wrong((*at, key), self._unknown(key, fields))
        found = {
            name: self._value(field.type, table[name], (*at, name))
            for name, field in fields.items()
            if name in table
        }
        for name, field in fields.items():
            if field.required and name not in table:
                self._wrong((*at, name), "is missing")
        return kind(**found) if self._count == count else None

    def _value(self, kind: Any, value: object, at: tuple[str, ...]) -> Any:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.struct(kind, value, at)
        if typing.get_origin(kind) is dict:
            if not isinstance(value, dict):
                return self._wrong(at, f"is a table, not {_shown(value)}")
            _, of = typing.get_args(kind)
            return {key: self._value(of, each, (*at, key)) for key, each in value.items()}
        try:
            found = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            return self._wrong(*_located(at, value, kind, error))
        if isinstance(found, int) and found > NUMBER_MAX:
            return self._wrong(at, f"is too large; use {NUMBER_MAX:,} at most")
        return found

    def _wrong(self, at: tuple[str, ...], reason: str) -> None:
        self._count += 1
        if self._count <= PROBLEMS_MAX:
            self.problems.append((place(*at) or "config", reason))

    def _unknown(self, key: str, known: Mapping[str, object]) -> str:
        # Looking for what is near takes its time: not of a million keys.
        near = difflib.get_close_matches(key, known, 1) if self._count < PROBLEMS_MAX else []
        if near:
            return f"there is no such setting; did you mean {near[0]}?"
        return f"there is no such setting; there are: {', '.join(known)}"


def _fields(kind: type[msgspec.Struct]) -> list[msgspec.structs.FieldInfo]:
    """Return what can be set; the name of a pool is that of its table."""
    hidden = "name" if kind is PoolSettings else ""
    return [field for field in msgspec.structs.fields(kind) if field.name != hidden]


def _located(
    at: tuple[str, ...], value: object, kind: Any, error: msgspec.ValidationError
) -> tuple[tuple[str, ...], str]:
    """Return where in the value the error is, and what would do."""
    text, _, where = str(error).partition(" - at ")
    if inside := _INDEX.search(where):
        assert isinstance(value, list)
        at, value = (*at, inside[1]), value[int(inside[1])]
    if typing.get_origin(kind) is typing.Literal:
        text = f"use one of: {', '.join(typing.get_args(kind))}"
    text = text[:1].lower() + text[1:]
    return at, text if ", got" in text else f"{text}, got {_shown(value)}"


def _shown(value: object) -> str:
    """Return a value as a person would write it, cut short."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else f"{text[:100]}..."


# --- and back ---------------------------------------------------------------------------------


def table_of(config: msgspec.Struct, *, everything: bool = False) -> Table:
    """Return the settings as tables: those that differ from their defaults, or `everything`."""
    return {
        field.name: _plain(getattr(config, field.name), everything)
        for field in _fields(type(config))
        if everything or field.required or getattr(config, field.name) != _default(field)
    }


def _plain(value: Any, everything: bool) -> Any:
    if isinstance(value, msgspec.Struct):
        return table_of(value, everything=everything)
    if isinstance(value, dict):
        return {key: _plain(each, everything) for key, each in value.items()}
    return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory()  # only those that have either are asked


def toml_of(config: Config, *, everything: bool = False) -> str:
    """Return the text of a `drayman.toml` that says the same.

    TOML has no null: settings that are unlimited are left out, as everywhere.
    """
    return tomli_w.dumps(_without_null(table_of(config, everything=everything)))


def _without_null(table: Table) -> Table:
    return {
        key: _without_null(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def changes(old: Config, new: Config) -> list[str]:
    """Return what changes from one to the other, a line each."""
    was, becomes = table_of(old, everything=True), table_of(new, everything=True)
    return list(_differences(was, becomes, table_of(new), ()))


def _differences(old: Table, new: Table, own: Table, at: tuple[str, ...]) -> Iterator[str]:
    """`own`: of the new ones those that differ from their defaults."""
    for key in old | new:
        here = place(*at, key)
        if key not in new:
            yield f"- {here}"
        elif key not in old:
            yield f"+ {here} = {_inline(own[key])}"
        elif isinstance(new[key], dict) and isinstance(old[key], dict):
            yield from _differences(old[key], new[key], own.get(key, {}), (*at, key))
        elif old[key] != new[key]:
            yield f"{here}: {_inline(old[key])} -> {_inline(new[key])}"


def _inline(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        pairs = ", ".join(f"{place(key)} = {_inline(each)}" for key, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value, ensure_ascii=False)
