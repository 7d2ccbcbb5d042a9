"""Ask the questions named on the command line (all of them without any) and print a table."""

import argparse

from benchmarks.server import running
from benchmarks.speed import QUESTIONS


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[[], *QUESTIONS], help="which to ask")
    parser.add_argument("--edge", choices=["haproxy", "proxy"], default="haproxy")
    options = parser.parse_args()
    with running("--edge", options.edge) as server:
        print(f"| question ({options.edge}) | measured |\n|---|---|")
        for name in options.questions or QUESTIONS:
            for what, figure in QUESTIONS[name](server).items():
                print(f"| {what} | {figure:,.1f} |", flush=True)


if __name__ == "__main__":
    main()
