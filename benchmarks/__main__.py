"""Ask the questions named on the command line (all of them without any) and print a table.

python -m benchmarks submit latency --repeats 5
python -m benchmarks --quick                      do they all work?
python -m benchmarks --peers --only drayman,rq    beside other systems
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine, plots
from benchmarks.asking import DRAYMAN, Asked
from benchmarks.comparison import comparable
from benchmarks.figures import Figure
from benchmarks.questions import QUESTIONS
from benchmarks.table import HEADER, by_system, row

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print, and keep the raw results."""
    wanted = _arguments()
    # As an exception, so that whatever was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    described = machine.describe()
    print("".join(f"{name}: {value}\n" for name, value in described.items()))
    path = wanted.json or RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    figures: list[Figure] = []
    print(HEADER, flush=True)

    def keep(figure: Figure) -> None:
        figures.append(figure)
        print(row(figure), flush=True)

    try:
        _measure(wanted, keep)
    finally:
        # What was measured before a failure is worth keeping, too.
        _write(path, {"machine": described, "figures": [asdict(figure) for figure in figures]})
    if wanted.peers:
        print(f"\n{by_system(comparable(figures))}")
    if wanted.plots:
        for picture in plots.draw(figures, wanted.plots):
            print(f"plot: {picture}")


def _measure(wanted: argparse.Namespace, keep: Callable[[Figure], None]) -> None:
    asked = Asked(wanted.edge, wanted.repeats, wanted.quick, wanted.idle_minutes * 60)
    if not wanted.only or DRAYMAN in wanted.only:
        for name in wanted.questions or QUESTIONS:
            for figure in QUESTIONS[name](asked):
                keep(figure)
    if wanted.peers:
        from benchmarks import peers

        names = [name for name in wanted.only if name != DRAYMAN]
        if names or not wanted.only:
            peers.measure(
                names or None,
                repeats=asked.repeats,
                quick=asked.quick,
                report=keep,
                # Most take long to notice a death.
                recovery="recovery" in (wanted.questions or QUESTIONS) and not asked.quick,
            )


def _write(path: Path, raw: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw, indent=1))
    print(f"\nraw results: {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("questions", nargs="*", metavar="question", help=f"of {', '.join(QUESTIONS)}")
    add("--edge", choices=["haproxy", "proxy"], default="haproxy")
    add("--repeats", type=int, default=3, help="rounds of each measurement, after a warm-up")
    add("--quick", action="store_true", help="tiny sizes: whether all works, not how fast it is")
    add("--idle-minutes", type=float, default=5.0, help="how long idle costs are watched")
    add("--json", type=Path, help="where raw results go; by default into benchmarks/results")
    add("--plots", type=Path, help="a folder for pictures (SVG)")
    add("--peers", action="store_true", help="measure other systems as well")
    add("--only", type=lambda text: text.split(","), default=[], help="systems, with commas")
    wanted = parser.parse_args()
    if unknown := set(wanted.questions) - set(QUESTIONS):
        parser.error(f"no question {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    return wanted


if __name__ == "__main__":
    main()
