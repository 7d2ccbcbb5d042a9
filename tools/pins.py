"""Writes constraints.txt: exact pins of everything that `pip install -e .[dev]` brought here.

Rule 1: only what the project needs, directly or through something else, is pinned. Rule 2: names
and versions only: where packages come from is the business of whoever installs them.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = "drayman"
#: What `make setup` installs, and what only plots of benchmarks need.
EXTRAS, MORE = frozenset({"dev", "demo"}), frozenset({"bench"})
PATH = Path(__file__).resolve().parent.parent / "constraints.txt"
HEADER = """\
# Exact versions that `make setup` installs. Written by `make pins` after pyproject.toml changed.
"""


def needed(extras: frozenset[str] = EXTRAS) -> dict[str, str]:
    """Return the version of every installed package that the project needs, by name."""
    found: dict[str, str] = {}
    missing: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(PROJECT, extras)]
    while todo:
        wanted = todo.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        name, wanted_extras = wanted
        try:
            package = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        found[name] = package.version
        for line in package.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in {"", *wanted_extras}):
                todo.append((canonical(requirement.name), frozenset(requirement.extras)))
    if missing:
        raise LookupError(f"not installed: {', '.join(sorted(missing))}; run `make setup` first")
    del found[PROJECT]
    return dict(sorted(found.items()))


def canonical(name: str) -> str:
    """Return a package's name as the packaging standards compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Write the pins."""
    pins = needed(EXTRAS | MORE)  # for the latter: pip install -c constraints.txt -e .[bench]
    PATH.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in pins.items()))


if __name__ == "__main__":
    main()
