"""Makes a bundle of modules that lie here: what `drayman deploy` and `submit --jobs` send.

Rule 1: the modules are imported in a process of its own, whose end tells what is wrong with them;
nothing is left of them in this one, so a second version can be bundled after the first. Rule 2: a
bundle is whole: what a module imports from its own folder comes along. Rule 3: hidden files stay at
home; among them are the `.env` files in which secrets lie.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from cluster.code import (
    CODE_BYTES_MAX,
    RESERVED,
    BundleCard,
    check_module,
    pack,
    read_bundle,
)
from jobs.errors import InvalidInput

__all__ = ["Bundle", "make_bundle"]

SKIPPED = frozenset({"__pycache__", "node_modules", "venv"})
_TOLD_CHARS = 2000


class Bundle(msgspec.Struct, frozen=True):
    """A bundle, ready to be stored."""

    sha: str
    data: bytes
    card: BundleCard


class _Found(msgspec.Struct):
    """What the importing process says."""

    card: BundleCard | None = None
    #: Top-level module -> its file, or the folder of the package.
    places: dict[str, str] = {}
    error: str = ""


def make_bundle(modules: Sequence[str], sys_path: Sequence[str] | None = None) -> Bundle:
    """Return the bundle of these modules, found on `sys_path` (else this process's).

    A module without a job type may be among them, for the others to import. The same files give the
    same bundle, hash included. Raises InvalidInput naming the module and what is wrong with it.
    """
    if not modules:
        raise InvalidInput("code", "name at least one module")
    for name in modules:
        check_module(name)
    found = _look(list(modules), list(sys.path if sys_path is None else sys_path))
    if found.card is None:
        raise InvalidInput("code", found.error)
    files: dict[str, tuple[bytes, bool]] = {}
    total = 0
    for name, place in sorted(found.places.items()):
        for path, file in _files(name, Path(place)):
            data = file.read_bytes()
            total += len(data)
            if total > CODE_BYTES_MAX:
                raise InvalidInput(
                    "code",
                    f"the modules hold more than {CODE_BYTES_MAX:,} bytes, {file} among them; "
                    "send data with drayman upload, and put its uri into params",
                )
            files[path] = data, os.access(file, os.X_OK)
    data = pack(found.card, files)
    # What the server would refuse is better said before it is sent.
    return Bundle(hashlib.sha256(data).hexdigest(), data, read_bundle(data))


def _look(modules: list[str], sys_path: list[str]) -> _Found:
    folders = [path or os.getcwd() for path in sys_path]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "found.json"
        # The path comes in when what is Drayman's has been imported: a module `jobs` beside those
        # that are wanted is in nobody's way.
        asked = [str(answer), json.dumps(modules), json.dumps(folders)]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cluster.bundle", *asked],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if not answer.exists():
            told = (done.stdout + done.stderr).strip()[-_TOLD_CHARS:]
            raise InvalidInput(
                "code",
                f"Python ended with {done.returncode} while it imported {', '.join(modules)}"
                + (f": {told}" if told else ""),
            )
        return msgspec.json.decode(answer.read_bytes(), type=_Found)


def _files(name: str, place: Path) -> Iterator[tuple[str, Path]]:
    """Yield each file of a top-level module with its path in the bundle."""
    if place.is_file():
        yield f"{name}.py", place
        return
    for folder, folders, files in os.walk(place):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in SKIPPED)
        inside = Path(folder).relative_to(place).as_posix()
        for linked in (Path(folder) / f for f in folders):
            if linked.is_symlink():
                raise InvalidInput(
                    "code", f"{linked} is a link to a folder; put the folder itself there"
                )
        for file in (Path(folder) / f for f in sorted(files)):
            if file.name.startswith(".") or file.suffix in {".pyc", ".pyo"}:
                continue
            if not file.is_file():
                raise InvalidInput("code", f"{file} is no file that can be read")
            yield (f"{name}/{file.name}" if inside == "." else f"{name}/{inside}/{file.name}"), file


# --- the importing process --------------------------------------------------------------------


def _find(modules: list[str]) -> _Found:
    from cluster.catalog import card_of
    from jobs.registry import Registry

    registry = Registry()
    holding = [name for name in modules if registry._scan(name)]
    if not holding:
        raise InvalidInput(
            "jobs", f"no job type in {', '.join(modules)}; declare one with @job(...)"
        )
    places = {}
    for name in modules:
        top = name.partition(".")[0]
        places[top] = _place(top)
    folders = {str(Path(place).parent) for place in places.values()} - _installed()
    for top in list(sys.modules):
        if "." in top or top in places or top in RESERVED or top == "__main__":
            continue
        place = _place_of(top)
        if place is not None and str(Path(place).parent) in folders:
            places[top] = place
    types = [card_of(registry[name]) for name in sorted(registry)]
    return _Found(BundleCard(holding, types), places)


def _installed() -> set[str]:
    """Return the folders whose modules every machine has by itself."""
    return {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def _place(top: str) -> str:
    importlib.import_module(top)
    place = _place_of(top)
    if place is None:
        raise InvalidInput("jobs", f"module {top!r} is neither one .py file nor one folder")
    return place


def _place_of(top: str) -> str | None:
    module = sys.modules[top]
    folders: list[str] = list(getattr(module, "__path__", None) or ())
    if len(folders) == 1:
        return os.path.realpath(folders[0])
    file: str | None = getattr(module, "__file__", None)
    return os.path.realpath(file) if not folders and file and file.endswith(".py") else None


def _main(answer: str, modules: str, folders: str) -> None:
    import jobs.registry  # noqa: F401 - before a path that may have another `jobs`

    sys.path[:0] = json.loads(folders)
    try:
        found = _find(json.loads(modules))
    except InvalidInput as error:
        found = _Found(error=error.reason)
    Path(answer).write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
