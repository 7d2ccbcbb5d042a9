"""The repository keeps its own promises: commands, pins, links, records."""

import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
HOUSE_FILES = [
    "Makefile",
    "constraints.txt",
    "pyproject.toml",
    ".ci/run",
    ".pre-commit-config.yaml",
]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|`|-- +)drayman ([a-z][^`\n]*)", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors a reader of the rendered page can jump to."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    bare = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in bare}


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_make_target_explains_itself() -> None:
    explained = set(re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE))

    assert explained == TARGETS


def test_every_make_target_is_phony_so_that_no_file_hides_it() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)

    assert phony is not None
    assert set(phony[1].split()) == TARGETS


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()

    odd = [x for x in lines if not re.fullmatch(r"#.*|[a-z0-9-]+==[A-Za-z0-9.!+]+", x)]

    assert odd == []


def test_everything_the_project_needs_is_pinned() -> None:
    """After a change of dependencies: `make pins`."""
    needed: dict[str, Any] = runpy.run_path(str(ROOT / "tools/pins.py"))["needed"]()

    assert set(needed) <= set(pins())


@pytest.mark.parametrize("name", HOUSE_FILES)
def test_no_house_file_says_where_packages_come_from(name: str) -> None:
    text = (ROOT / name).read_text()

    assert re.findall(r"https?://|index-url|find-links|trusted-host", text) == []


def test_hooks_use_the_tools_of_the_repository() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())

    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    assert all(h["entry"].startswith(".venv/bin/") for h in config["repos"][0]["hooks"])


def test_the_licence_is_the_one_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["license"] == "Apache-2.0"
    assert (
        "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    )


def test_the_changelog_knows_the_version_or_what_comes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sections = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert sections[0] in {"Unreleased", project["version"]}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_make_command_in_the_docs_exists(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE))

    assert named <= TARGETS


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_drayman_command_in_the_docs_exists(page: Path) -> None:
    from service.cli import app

    known: Any = typer.main.get_command(app)
    wrong = []
    for line in COMMAND.findall(page.read_text().replace("\\\n", " ")):
        command, *words = known, *shlex.split(line, comments=True)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {
            name for param in command.params for name in (*param.opts, *param.secondary_opts)
        }
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        if command is known or hasattr(command, "commands") or not used <= options:
            wrong.append(line)

    assert wrong == []


def test_every_page_of_the_docs_is_on_the_map() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(prose(ROOT / "docs/index.md"))}
    pages = {str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.md")}

    assert pages - {"index.md"} <= linked


def test_decisions_are_numbered_without_gaps_and_complete() -> None:
    records = sorted(ROOT.glob("docs/decisions/*.md"))
    wanted = ["Context", "Decision", "Rejected", "Consequences", "How we would know it was wrong"]

    assert [record.name[:4] for record in records] == [
        f"{number:04d}" for number in range(1, len(records) + 1)
    ]
    for record in records:
        assert re.findall(r"^## (.*)$", record.read_text(), re.MULTILINE) == wanted, record.name
