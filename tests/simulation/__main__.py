"""Run many schedules, or one again: `python -m tests.simulation --seeds 5000`, `--seed 42`."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context

from tests.support.simulation.simulation import SHORT, Plan, Result, simulate


def main() -> int:
    """Return 1 if a promise was broken; its seed and trace are printed then."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules to run")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one only, and print its trace")
    parser.add_argument("--short", action="store_true", help="the short ones that CI runs")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    plan = SHORT if options.short else Plan()
    if options.seed is not None:
        return _one(options.seed, plan)
    return _many(plan, range(options.first, options.first + options.seeds), options.processes)


def _one(seed: int, plan: Plan) -> int:
    result = simulate(seed, plan, keep_trace=True)
    print(*result.trace, sep="\n")
    _tell(result)
    return 1 if result.violations else 0


def _many(plan: Plan, seeds: range, processes: int) -> int:
    began_at, counts, broken, virtual_s = time.monotonic(), Counter[str](), [], 0.0
    for done, result in enumerate(_results(plan, seeds, processes), 1):
        counts.update(result.counts)
        virtual_s += result.virtual_s
        if result.violations:
            broken.append(result.seed)
            if len(broken) == 1:
                print(*result.trace, sep="\n")
            _tell(result)
        if sys.stderr.isatty():
            print(f"\r{done}/{len(seeds)}", end="", file=sys.stderr, flush=True)
    took_s = time.monotonic() - began_at
    print(f"{len(seeds)} schedules, {virtual_s / 3600:.1f} h of their time, in {took_s:.0f} s")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
    print(f"broken: {len(broken)} {sorted(broken)[:20]}" if broken else "every promise was kept")
    return 1 if broken else 0


def _results(plan: Plan, seeds: range, processes: int) -> Iterator[Result]:
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(partial(simulate, plan=plan), seeds, chunksize=8)


def _tell(result: Result) -> None:
    for promise in result.violations:
        print(f"seed {result.seed}: {promise}")
    if result.violations:
        print(f"again: python -m tests.simulation --seed {result.seed}")


if __name__ == "__main__":
    sys.exit(main())
