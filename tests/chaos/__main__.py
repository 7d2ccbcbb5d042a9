"""Play the kill matrix, or the rows named, and print it: `python -m tests.chaos`."""

import argparse
import tempfile
from pathlib import Path

from tests.chaos.matrix import ROWS, Outcome, play

HEADER = """\
| what happens | acknowledged | lost | effects doubled | in doubt | two attempts at once \
| ran again | of these unharmed | refused | work goes on after | slowest ack |
|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> int:
    """Return 1 if anything was lost, doubled, or run again without need."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--save", type=Path, help="write the table to this file, too")
    options = parser.parse_args()
    lines = [HEADER]
    print(HEADER)
    broken = False
    for name in options.rows or ROWS:
        with tempfile.TemporaryDirectory(prefix="drayman-chaos-") as folder:
            outcome = play(name, Path(folder))
        lines.append(told(outcome))
        print(lines[-1], flush=True)
        broken = broken or bool(
            outcome.lost or outcome.doubled or outcome.overlapping or outcome.again_unharmed
        )
    if options.save is not None:
        options.save.write_text("\n".join(lines) + "\n")
    return int(broken)


def told(outcome: Outcome) -> str:
    """Return the outcome as a row of the table."""
    cells = [
        outcome.row,
        f"{outcome.acknowledged:,}",
        outcome.lost,
        outcome.doubled,
        outcome.in_doubt,
        outcome.overlapping,
        outcome.again,
        outcome.again_unharmed,
        outcome.refused,
        f"{outcome.resumed_s:.2f} s",
        f"{outcome.ack_max_s:.2f} s",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
