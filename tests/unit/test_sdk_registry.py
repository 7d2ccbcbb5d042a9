"""How job types are found."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import InvalidInput
from jobs.registry import Registry

MODULE = '''
from pydantic import BaseModel
from jobs import Context, job

class Params(BaseModel):
    n: int = 1

@job("{name}")
def handler(ctx: Context, params: Params) -> int:
    """Count to n.

    Slowly."""
    return params.n
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Write a module that can be imported by its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> str:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        sys.modules.pop(name, None)
        return name

    return write


def test_installed_packages_announce_their_types() -> None:
    registry = Registry.load()

    assert "report.annual" in registry


def test_module_is_scanned_for_its_types(module: Callable[[str, str], str]) -> None:
    name = module("sdk_one", MODULE.format(name="one.count"))

    registry = Registry.load([name], entry_points=False)

    assert list(registry) == ["one.count"]
    assert registry["one.count"].summary == "Count to n."
    assert registry.schema("one.count")["properties"]["n"]["type"] == "integer"


def test_package_without_types_of_its_own_has_those_of_its_modules(
    module: Callable[[str, str], str],
) -> None:
    module("sdk_pack.__init__", "")
    module("sdk_pack.first", MODULE.format(name="pack.first"))
    module("sdk_pack.second", MODULE.format(name="pack.second"))

    registry = Registry.load(["sdk_pack"], entry_points=False)

    assert sorted(registry) == ["pack.first", "pack.second"]


def test_package_that_re_exports_is_taken_at_its_word(module: Callable[[str, str], str]) -> None:
    module("sdk_shop.__init__", "from sdk_shop._impl import handler\n__all__ = ['handler']")
    module("sdk_shop._impl", MODULE.format(name="shop.count"))
    module("sdk_shop.broken", "raise RuntimeError('never imported')")

    assert list(Registry.load(["sdk_shop"], entry_points=False)) == ["shop.count"]


def test_same_definition_found_twice_is_one(module: Callable[[str, str], str]) -> None:
    module("sdk_a", MODULE.format(name="a.count"))
    module("sdk_b", "from sdk_a import handler")

    assert list(Registry.load(["sdk_a", "sdk_b"], entry_points=False)) == ["a.count"]


def test_two_definitions_of_one_name_are_refused(module: Callable[[str, str], str]) -> None:
    module("sdk_c", MODULE.format(name="same.name"))
    module("sdk_d", MODULE.format(name="same.name"))

    with pytest.raises(InvalidInput, match=r"'same.name': sdk_c.handler and sdk_d.handler"):
        Registry.load(["sdk_c", "sdk_d"], entry_points=False)


def test_module_that_cannot_be_imported_is_named(module: Callable[[str, str], str]) -> None:
    module("sdk_broken", "import no_such_thing")

    with pytest.raises(InvalidInput) as caught:
        Registry.load(["sdk_broken"], entry_points=False)

    assert str(caught.value) == (
        "jobs: module 'sdk_broken' cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_thing'"
    )


def test_module_without_types_is_refused(module: Callable[[str, str], str]) -> None:
    module("sdk_empty", "x = 1")

    with pytest.raises(InvalidInput, match="'sdk_empty' holds no job type"):
        Registry.load(["sdk_empty"], entry_points=False)
