"""The Python in README and docs runs as written.

Every fenced `python` block runs, those of one page in order and in one namespace. A block whose
first line is a comment with a file name is that file: it is written where the next blocks find it.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+)\.py\n")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def pages_with(pattern: re.Pattern[str]) -> list[Path]:
    return [page for page in PAGES if pattern.search(page.read_text())]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder: modules written there can be imported, and are forgotten afterwards."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


@pytest.mark.parametrize("page", pages_with(PYTHON), ids=page_id)
def test_the_python_of_the_page_runs(page: Path, folder: Path) -> None:
    text = page.read_text()
    namespace: dict[str, object] = {"__name__": "__example__"}

    for block in PYTHON.finditer(text):
        if file_name := FILE_NAME.match(block[1]):
            (folder / f"{file_name[1]}.py").write_text(block[1])
            continue
        # Blank lines before the code, so that a traceback names the line of the page.
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


def test_there_is_something_to_run() -> None:
    assert {"learn.md", "testing.md"} <= {page.name for page in pages_with(PYTHON)}
