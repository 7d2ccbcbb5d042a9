"""What holds for the whole tree: exports, errors that cross processes, the core's ban."""

import importlib
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cluster
import jobs
import service
from jobs import errors
from jobs.errors import DraymanError

ROOT = Path(__file__).parents[2]
SCRIPTS = {"service.haproxy_wrapper"}  # runs isolated, as a program; nobody imports from it


def modules() -> list[str]:
    return [
        info.name
        for package in (jobs, cluster, service)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if info.name not in SCRIPTS
    ]


def every_error(cls: type[DraymanError] = DraymanError) -> list[type[DraymanError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in every_error(sub))]


@pytest.mark.parametrize("name", modules())
def test_a_module_exports_only_what_it_has(name: str) -> None:
    module = importlib.import_module(name)

    assert [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)] == []


ARGUMENTS = {
    "InvalidInput": ("queue", "no such queue"),
    "NotFound": ("job", "x"),
    "Conflict": ("it moved",),
    "KeyReused": ("job-1",),
    "LeaseLost": (7,),
    "Overloaded": ("queue", "full", 2.5),
    "Unavailable": ("away", 2.0),
    "Corrupt": ("journal/1", "a flipped bit"),
}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_an_error_survives_pickle_with_its_text(name: str) -> None:
    error = getattr(errors, name)(*ARGUMENTS[name])

    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), copy.args, str(copy)) == (type(error), error.args, str(error))


def test_every_error_that_travels_is_listed_above() -> None:
    assert {e.__name__ for e in every_error() if e.__module__ == "jobs.errors"} == {
        "DraymanError",
        *ARGUMENTS,
    }


@pytest.mark.parametrize("line", ["import time", "import ray", "import asyncio", "import random"])
def test_the_ban_on_clocks_and_io_fires_in_the_core_and_only_there(line: str) -> None:
    def complaints(path: str) -> int:
        command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "-"]
        return subprocess.run(
            [*command, "--stdin-filename", path],
            input=f"{line}\n",
            text=True,
            cwd=ROOT,
            capture_output=True,
            check=False,
        ).returncode

    assert complaints("cluster/queue/clock.py") == 1
    assert complaints("cluster/clock.py") == 0


def test_imports_go_downward_only() -> None:
    lint = Path(sys.executable).with_name("lint-imports")

    checked = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout
