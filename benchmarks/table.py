"""Figures as Markdown: one row each, or one row a system where several were measured."""

from collections import defaultdict
from collections.abc import Iterable

from benchmarks.asking import DRAYMAN
from benchmarks.figures import Figure

__all__ = ["HEADER", "by_system", "number", "row"]

HEADER = "| question | what | median | unit | spread | notes |\n|---|---|---:|---|---|---|"


def number(value: float) -> str:
    """Return the value with as many digits as mean something."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    text = f"{value:,.{digits}f}"
    return "0" if value == 0 else text


def row(figure: Figure) -> str:
    """Return the figure's line of the long table."""
    median, spread = "-", ""
    if figure.values:
        median = number(figure.median)
    if len(figure.values) > 1:
        spread = " - ".join(number(value) for value in figure.spread)
    what = figure.what if figure.system == DRAYMAN else f"{figure.system}: {figure.what}"
    cells = [figure.question, what, median, figure.unit, spread, figure.note]
    return f"| {' | '.join(cells)} |"


def by_system(figures: Iterable[Figure]) -> str:
    """Return one table a question, with systems as rows, of what several systems were asked."""
    figures = list(figures)
    systems: dict[tuple[str, str], set[str]] = defaultdict(set)
    for figure in figures:
        systems[figure.question, figure.what].add(figure.system)
    shared = [key for key, names in systems.items() if len(names) > 1]
    questions = dict.fromkeys(question for question, _ in shared)
    return "\n\n".join(
        _table([what for asked, what in shared if asked == question], question, figures)
        for question in questions
    )


def _table(whats: list[str], question: str, figures: list[Figure]) -> str:
    cells = {(f.system, f.what): f for f in figures if f.question == question}
    units = {what: next(f.unit for f in cells.values() if f.what == what) for what in whats}
    head = ["system", *(f"{what}, {units[what]}" for what in whats)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(whats)]
    for system in dict.fromkeys(system for system, _ in cells):
        found = [_cell(cells.get((system, what))) for what in whats]
        if any(found):
            lines.append(f"| {' | '.join([system, *found])} |")
    return f"### {question}\n\n" + "\n".join(lines)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return number(figure.median) if figure.values else f"- ({figure.note})"
