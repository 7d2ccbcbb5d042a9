"""Figures as pictures: medians as bars, with the lowest and the highest repeat as whiskers.

Needs the extra `bench`; without it a line says so, and nothing is drawn.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from benchmarks.asking import DRAYMAN
from benchmarks.comparison import comparable
from benchmarks.figures import Figure
from benchmarks.table import number

__all__ = ["draw"]

#: Beyond this the smallest bar would not be seen.
LOG_FROM = 50.0
BAR_IN, WIDTH_IN = 0.35, 9.0


def draw(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Write a picture for each question and unit, and for each thing that several were asked."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed (pip install 'drayman[bench]')")
        return []
    matplotlib.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    measured = [figure for figure in figures if figure.values]
    return [_bars(title, found, folder) for title, found in _pictures(measured).items()]


def _pictures(figures: list[Figure]) -> dict[str, list[Figure]]:
    """Return what stands in one picture, by its title."""
    pictures: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.system == DRAYMAN:
            pictures[f"{figure.question}, {figure.unit}"].append(figure)
    by_what: dict[str, list[Figure]] = defaultdict(list)
    for figure in comparable(figures):
        by_what[f"{figure.question}: {figure.what}, {figure.unit}"].append(figure)
    return pictures | {title: found for title, found in by_what.items() if len(found) > 1}


def _bars(title: str, figures: list[Figure], folder: Path) -> Path:
    import matplotlib.pyplot as plt

    of_systems = len({figure.system for figure in figures}) > 1
    names = [figure.system if of_systems else figure.what for figure in figures]
    medians = [figure.median for figure in figures]
    lows = [figure.median - figure.spread[0] for figure in figures]
    highs = [figure.spread[1] - figure.median for figure in figures]
    chart, axes = plt.subplots(figsize=(WIDTH_IN, 1 + BAR_IN * len(figures)))
    bars = axes.barh(names, medians, xerr=[lows, highs], color="#4878a8", capsize=3)
    axes.bar_label(bars, labels=[number(median) for median in medians], padding=4, fontsize=8)
    positive = [median for median in medians if median > 0]
    if positive and max(positive) / min(positive) > LOG_FROM:
        axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_title(title)
    axes.margins(x=0.15)
    path = folder / f"{_file_name(title)}.svg"
    chart.savefig(path, bbox_inches="tight")
    plt.close(chart)
    return path


def _file_name(title: str) -> str:
    plain = title.lower().replace("%", "percent").replace("µ", "u")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
