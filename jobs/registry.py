"""How job types are found: packages that announce them, and modules named by the operator.

Rule 1: a module's types are the `JobDefinition`s in its namespace and its `__all__`; a package that
has none there has those of the modules directly in it. Rule 2: one name, one definition: a second
one is an error that names both. Rule 3: a module that cannot be imported stops the start with its
name and the reason; half a registry is worse than none.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Self

from jobs.definition import JobDefinition
from jobs.errors import InvalidInput

__all__ = ["GROUP", "Registry", "announced"]

#: The entry-point group by which an installed package announces modules with job types.
GROUP = "drayman.jobs"


@cache
def announced() -> tuple[str, ...]:
    """Return the modules that installed packages announce. Reads metadata, imports nothing."""
    return tuple(sorted({point.value for point in entry_points(group=GROUP)}))


class Registry(Mapping[str, JobDefinition]):
    """Every job type known here, by name."""

    def __init__(self, definitions: Iterable[JobDefinition] = ()) -> None:
        self._definitions: dict[str, JobDefinition] = {}
        self._homes: dict[str, str] = {}
        for definition in definitions:
            self.add(definition)

    @classmethod
    def load(cls, modules: Sequence[str] = (), entry_points: bool = True) -> Self:
        """Import the modules, and those that installed packages announce; collect their types.

        Raises InvalidInput naming the module that cannot be imported, that holds no job type
        although it was asked for by name, or the name that two definitions claim.
        """
        registry = cls()
        for name in announced() if entry_points else ():
            registry._scan(name)
        for name in modules:
            if not registry._scan(name):
                raise InvalidInput(
                    "jobs", f"module {name!r} holds no job type; declare one with @job(...)"
                )
        return registry

    @classmethod
    def over(cls, first: Sequence[str], modules: Sequence[str]) -> Self:
        """Import `first` and collect its types, then those of the rest whose names are still free.

        The rest are `modules` and what installed packages announce. One of them that cannot be
        imported is left out: it may import what one of `first` stands in for. Raises InvalidInput
        as `load` does, for `first` alone.
        """
        registry = cls.load(first, entry_points=False)
        rest = cls()
        for name in (*announced(), *(name for name in modules if name not in first)):
            try:
                rest._scan(name)
            except InvalidInput as error:
                sys.stderr.write(f"left out: {error.reason}\n")
        for name in rest:
            if name not in registry:
                registry.add(rest[name])
        return registry

    def add(self, definition: JobDefinition) -> None:
        """Add one type; the same definition twice is no error, another of its name is."""
        known = self._definitions.setdefault(definition.name, definition)
        home = definition.home
        if known is not definition:
            raise InvalidInput(
                "jobs",
                f"two job types are named {definition.name!r}: "
                f"{self._homes[definition.name]} and {home}; rename one",
            )
        self._homes[definition.name] = home

    def schema(self, name: str) -> dict[str, Any]:
        """Return the JSON Schema of the type's params. Raises KeyError for an unknown name."""
        return self._definitions[name].params_model.model_json_schema()

    def __getitem__(self, name: str) -> JobDefinition:
        return self._definitions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._definitions)

    def __len__(self) -> int:
        return len(self._definitions)

    def _scan(self, name: str) -> int:
        module = _import(name)
        found = self._take(module)
        if found == 0:
            found = sum(self._take(_import(submodule)) for submodule in _submodules(module))
        return found

    def _take(self, module: ModuleType) -> int:
        names = {*vars(module), *getattr(module, "__all__", ())}
        values = [getattr(module, name, None) for name in sorted(names)]
        definitions = [value for value in values if isinstance(value, JobDefinition)]
        for definition in definitions:
            self.add(definition)
        return len(definitions)


def _submodules(module: ModuleType) -> list[str]:
    """Return the names of the modules directly in a package; none for a plain module."""
    return [
        f"{module.__name__}.{info.name}"
        for info in pkgutil.iter_modules(getattr(module, "__path__", ()))
        if not info.ispkg and not info.name.startswith("_")
    ]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        # Whatever a user's module raises at import, the operator needs its name beside it.
        raise InvalidInput(
            "jobs", f"module {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
