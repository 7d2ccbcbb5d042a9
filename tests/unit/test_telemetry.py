"""Logs: one line an event, as text or JSON, with keys that the documentation lists."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from cluster.telemetry import LOG_ENV, configure_logging
from tests.support.live import ROOT

LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
#: Said of a line by structlog itself; `exc_info` becomes `exception`.
OF_EVERY_LINE = {"event", "level", "timestamp", "exception"}


@pytest.fixture
def as_json() -> Iterator[None]:
    before = structlog.get_config()
    configure_logging({LOG_ENV: "json"})
    yield
    structlog.configure(**before)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def keys_used() -> set[str]:
    """Return the keys of every call of a `log`."""
    found: set[str] = set()
    for folder in ("jobs", "cluster", "service"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(ast.Attribute(ast.Name("log"), level)) if level in LEVELS:
                        found |= {word.arg or "**" for word in node.keywords}
    return found


def keys_documented() -> set[str]:
    page = Path(ROOT, "docs/observability.md").read_text()
    table = page.partition("| key | what it is |")[2].partition("\n\n")[0]
    names = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    return {name for cell in names for name in re.findall(r"`(\w+)`", cell)}


def test_the_documentation_lists_the_keys_that_there_are_and_no_others() -> None:
    assert keys_documented() == (keys_used() - {"exc_info"}) | OF_EVERY_LINE


def test_a_line_is_an_object_with_stable_keys(
    as_json: None, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.get_logger().warning(
        "task_died", job="a", attempt=2, path=Path("x"), cause="ümläut\n"
    )

    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    told = {"job": "a", "attempt": 2, "path": "x", "cause": "ümläut\n"}
    assert line == told | {"event": "task_died", "level": "warning"}


def test_a_trace_shows_code_and_no_values(
    as_json: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(token: str) -> None:
        raise ValueError("no use")

    try:
        fails("sec" + "ret")
    except ValueError:
        structlog.get_logger().exception("request_failed")

    (line,) = lines(capsys)
    assert "ValueError: no use" in line["exception"]
    assert "secret" not in line["exception"]


def test_without_a_wish_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    configure_logging({})
    structlog.get_logger().info("manager_started", epoch=3)
    structlog.configure(**before)

    assert "manager_started" in (out := capsys.readouterr().out)
    assert "epoch=3" in out
