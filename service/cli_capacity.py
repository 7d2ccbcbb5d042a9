"""The command that plans: how many workers and nodes a load needs, and how long its jobs wait.

Rule: it asks nobody. It is arithmetic on what is given, so nothing need be running.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli_show import EXIT_USAGE, complain, note, print_json, seconds, span

if TYPE_CHECKING:
    from cluster.capacity import Burst, Capacity, Peak

__all__ = ["register"]

#: What a wait is compared with where nobody says: the run time, but no less than this.
WAIT_MIN_S = 1.0
#: Seconds in the units a rate may have.
PER = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86_400}


def plan(
    rate: Annotated[str, typer.Option(help="Jobs that come, like 12/s, 700/min or 40000/h.")],
    run: Annotated[str, typer.Option("--seconds", help="How long one runs on average; 90, 5m.")],
    spread: Annotated[
        float,
        typer.Option(help="Standard deviation of run times by their mean; 0: all alike."),
    ] = 1.0,
    wait: Annotated[
        str | None,
        typer.Option(help="Jobs are to start within so long; by default the run time, at least 1."),
    ] = None,
    within: Annotated[float, typer.Option(help="The share of jobs that are to.")] = 0.95,
    busy: Annotated[
        float, typer.Option(help="At most this share of the slots is busy on average.")
    ] = 0.9,
    workers: Annotated[
        int | None, typer.Option(help="What these make of it, instead of how many are needed.")
    ] = None,
    at_once: Annotated[int, typer.Option(help="Slots: handlers at once in one worker.")] = 1,
    cpus: Annotated[float, typer.Option(help="CPUs one worker takes.")] = 1.0,
    node_cpus: Annotated[float, typer.Option(help="CPUs a node has for workers.")] = 8.0,
    memory_gb: Annotated[float | None, typer.Option(help="Memory one worker takes.")] = None,
    node_memory_gb: Annotated[
        float | None, typer.Option(help="Memory a node has for workers.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option(help="So many at once on top: when are they done?")
    ] = None,
    peak: Annotated[
        float | None, typer.Option(help="So many times the rate: how long does the line get?")
    ] = None,
    peak_s: Annotated[str, typer.Option(help="How long that peak lasts.")] = "1h",
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Answer how many workers and nodes a load needs, and how long its jobs will wait."""
    from cluster.capacity import Goal, Load, Workers, capacity
    from jobs.errors import InvalidInput

    run_s = seconds(run)
    wait_s = max(run_s, WAIT_MIN_S) if wait is None else seconds(wait)
    lasts_s = seconds(peak_s)
    try:
        load = Load(_a_second(rate), run_s, spread)
        shape = Workers(at_once, cpus, node_cpus, memory_gb, node_memory_gb)
        found = capacity(load, shape, Goal(wait_s, within, busy), workers)
        of_burst = None if burst is None else found.burst(burst)
        of_peak = None if peak is None else found.peak(peak, lasts_s)
    except InvalidInput as error:
        complain(f"--{error.field.replace('_', '-')}: {error.reason}")
        raise typer.Exit(EXIT_USAGE) from None
    notes = list(_notes(found, of_burst, of_peak))
    if as_json:
        print_json(_plain(found, of_burst, of_peak) | {"notes": notes})
        return
    rows = list(_rows(found, of_burst, of_peak))
    width = max(len(name) for name, _ in rows)
    for name, told in rows:
        typer.echo(f"{name.ljust(width)}  {told}".rstrip())
    for text in notes:
        note(f"note: {text}")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(plan)


def _a_second(text: str) -> float:
    """Return a rate a second: `12/s`, `700/min`, `40000/h`, `12`. Raises BadParameter."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(?:/\s*(s|min|h|d))?", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no rate; write for example 12/s, 700/min or 40000/h")
    return float(found[1]) / PER[found[2] or ""]


# --- showing ----------------------------------------------------------------------------------


def _rows(
    found: "Capacity", burst: "Burst | None", peak: "Peak | None"
) -> Iterator[tuple[str, str]]:
    waits, goal, shape = found.waits, found.goal, found.shape
    slots = "" if shape.at_once == 1 else f" of {shape.at_once:,} slots"
    yield "workers", f"{found.workers:,}{slots}"
    yield "nodes", f"{found.nodes:,}, each for {_workers(shape.per_node)}"
    yield "busy", f"{found.utilisation:.1%} of the slots on average"
    p95_s = waits.percentile_s(0.95)
    yield "wait", f"{_span(waits.mean_s)} on average, 95% within {_span(p95_s)}"
    yield "", f"{_share(waits.share_within(goal.wait_s))} within {_span(goal.wait_s)}"
    yield (
        "in line",
        f"{_count(found.backlog)} on average, beside {_count(found.load.busy)} that run",
    )
    if burst is not None:
        done = f"{_count(burst.jobs)} at once are done after {_span(burst.done_s)}"
        yield "burst", f"{done}; the line is gone after {_span(burst.gone_s)}"
    if peak is not None:
        when = f"{peak.times:g} times the rate for {_span(peak.lasts_s)}"
        yield "peak", f"{when}: {peak.utilisation:.0%} of what these workers can do"
        waiting = f"{_count(peak.backlog)} in line, waiting for {_span(peak.wait_s)}"
        yield "", f"{waiting}; gone {_span(peak.gone_s)} after it"
        yield "", f"{_workers(peak.workers)} would be enough for it"


def _plain(found: "Capacity", burst: "Burst | None", peak: "Peak | None") -> dict[str, Any]:
    from dataclasses import asdict

    from cluster.capacity import OWN_S, START_S

    load, waits, goal = found.load, found.waits, found.goal
    return {
        "rate": load.rate,
        "run_s": load.run_s,
        "spread": load.spread,
        "workers": found.workers,
        "slots": found.slots,
        "nodes": found.nodes,
        "workers_per_node": found.shape.per_node,
        "utilisation": found.utilisation,
        "busy_slots": load.busy,
        "wait_mean_s": waits.mean_s,
        "wait_p95_s": waits.percentile_s(0.95),
        "wait_goal_s": goal.wait_s,
        "share_within_goal": waits.share_within(goal.wait_s),
        "backlog": found.backlog,
        "own_s": OWN_S,
        "start_s": START_S,
        "burst": None if burst is None else asdict(burst),
        "peak": None if peak is None else asdict(peak),
    }


def _notes(found: "Capacity", burst: "Burst | None", peak: "Peak | None") -> Iterator[str]:
    """Yield what the figures do not show."""
    from cluster.capacity import MANAGER_RATE, OWN_S, START_S
    from cluster.queue.rules import QueueLimits

    own = f"{OWN_S * 1000:g} ms of Drayman's own a job, and {START_S * 1000:g} ms until it starts"
    yield f"counted in: {own}"
    rate = found.load.rate * (1 if peak is None else peak.times)
    if rate > MANAGER_RATE:
        yield (
            f"one manager feeds some {MANAGER_RATE:,} jobs/s to workers of one slot, more to "
            "wider ones; see docs/sharding.md"
        )
    most = max(found.backlog, burst.jobs if burst else 0, peak.backlog if peak else 0)
    if most > (depth_max := QueueLimits().depth_max):
        yield f"a queue takes {depth_max:,} jobs by default and refuses more (depth_max)"


def _workers(count: int) -> str:
    return f"{count:,} worker{'' if count == 1 else 's'}"


def _count(number: float) -> str:
    """Return a number of jobs, with a digit after the point if they are few."""
    return f"{number:,.0f} jobs" if number >= 10 or number == int(number) else f"{number:.1f} jobs"


def _share(share: float) -> str:
    """Return a share that is told as all of them only if it is."""
    return "more than 99.99%" if 0.9999 < share < 1 else f"{share:.2%}"


def _span(passed_s: float) -> str:
    return f"{passed_s * 1000:.0f} ms" if passed_s < 1 else span(passed_s)
