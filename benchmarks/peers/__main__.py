"""Measure the peers named on the command line (all of them without any) and print a table."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.peers import measure, names

#: So many characters of a note fit into a cell; a longer one stands below the tables.
SHORT_NOTE = 30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("names", nargs="*", help="; ".join(names()))
    parser.add_argument("--quick", action="store_true", help="windows of a second, not of four")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recovery", action="store_true", help="kill workers too (minutes more)")
    parser.add_argument("--json", type=Path, help="write every figure with its repeats here")
    options = parser.parse_args()
    figures = measure(
        options.names or None,
        repeats=options.repeats,
        quick=options.quick,
        report=_tell,
        recovery=options.recovery,
    )
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))


def _tell(figure: Figure) -> None:
    print(
        f"{figure.system}: {figure.what}: {_cell(figure)} {figure.note}",
        file=sys.stderr,
        flush=True,
    )


def table(figures: list[Figure]) -> str:
    """Return a Markdown table a question, a row a system, with the notes below."""
    parts = []
    for question in dict.fromkeys(figure.question for figure in figures):
        asked = [figure for figure in figures if figure.question == question]
        whats = list(dict.fromkeys(f"{figure.what}, {figure.unit}" for figure in asked))
        parts += [f"\n### {question}\n", _row("system", *whats), _row(*["---"] * (len(whats) + 1))]
        for system in dict.fromkeys(figure.system for figure in asked):
            found = {f"{f.what}, {f.unit}": _cell(f) for f in asked if f.system == system}
            parts.append(_row(system, *(found.get(what, "") for what in whats)))
    notes = dict.fromkeys(
        f"- {figure.system}: {figure.note}"
        for figure in figures
        if figure.note and _cell(figure) != figure.note
    )
    return "\n".join([*parts, "", *notes])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(figure: Figure) -> str:
    if not figure.values:
        return figure.note if len(figure.note) <= SHORT_NOTE else "-"
    digits = 0 if figure.median >= 100 else 1 if figure.median >= 10 else 2
    said = f"{figure.median:,.{digits}f}"
    if len(figure.values) > 1:
        low, high = figure.spread
        said += f" ({low:,.{digits}f}-{high:,.{digits}f})"
    return said


if __name__ == "__main__":
    main()
