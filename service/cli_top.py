"""`drayman top`: the whole cluster on one screen, again each second.

Rule: a screen that is looked at all day stays up. While Drayman does not answer, it shows what it
knew last, and says so.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli_show import (
    WIDTH,
    JsonFlag,
    age,
    chunks_text,
    connect,
    message_text,
    plain,
    print_json,
    span,
    termination_interrupts,
)
from service.cli_watch import Paces

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from service.client import Client
    from service.client.types import Job, Overview, Queue, Worker

__all__ = ["register"]

EVERY_S = 1.0
#: Jobs that are asked for; of those that run the screen shows as many as fit.
RUNNING_MAX, FAILED_MAX = 50, 5
#: Queues that are shown: the busiest.
QUEUES_MAX = 15
#: Lines of a screen that are no rows: titles, heads and what is between.
FRAME_LINES = 16
#: Characters of an id, from its end, which is what tells ids of one moment apart.
ID_CHARS = 8
BINS_A_MINUTE = 6
GOOD, BAD, ODD = "green", "red", "yellow"


@dataclass(frozen=True, slots=True)
class Frame:
    """What is shown at once."""

    overview: "Overview"
    queues: "list[Queue]"
    #: None: the token may not see them.
    workers: "list[Worker] | None"
    running: "list[Job]"
    failed: "list[Job]"


def top(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show queues, workers, running jobs and failures, again each second, until Ctrl-C."""
    with connect(context) as client:
        if as_json:
            print_json(asdict(_look(client)))
        elif once or not sys.stdout.isatty():
            _print(_look(client))
        else:
            _stay(client)


def register(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command()(top)


def _look(client: "Client") -> Frame:
    return Frame(
        overview=client.overview(),
        queues=client.queues(),
        workers=_workers(client),
        running=list(client.jobs(status="processing", limit=RUNNING_MAX)),
        failed=list(client.jobs(status="failed", limit=FAILED_MAX)),
    )


def _workers(client: "Client") -> "list[Worker] | None":
    from service.client import ApiError

    try:
        return client.workers()
    except ApiError as error:
        if error.kind != "forbidden":
            raise
        return None


def _print(frame: Frame) -> None:
    from rich.console import Console

    # Without a terminal nothing says how wide it is; rich would take 80.
    width = None if sys.stdout.isatty() else WIDTH + 20
    Console(width=width, highlight=False).print(_Screen().drawn(frame, RUNNING_MAX, ""))


def _stay(client: "Client") -> None:
    from rich.console import Console
    from rich.live import Live

    from service.client import ApiError, Unreachable

    console = Console(highlight=False)
    screen, frame, trouble = _Screen(), _look(client), ""
    try:
        with (
            termination_interrupts(),
            # Drawn only when there is something new, whole and in place: nothing flickers.
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                room = console.height - FRAME_LINES - _rows(frame)
                live.update(screen.drawn(frame, max(1, room), trouble), refresh=True)
                time.sleep(EVERY_S)
                try:
                    frame, trouble = _look(client), ""
                except Unreachable as error:
                    trouble = str(error)
                except ApiError as error:
                    if error.status < 500:
                        raise
                    trouble = str(error)
    except KeyboardInterrupt:
        return  # that is how one leaves


def _rows(frame: Frame) -> int:
    """Return how many rows there are beside those of running jobs."""
    pools = {worker["pool"] for worker in frame.workers or ()}
    return min(QUEUES_MAX, len(frame.queues)) + len(pools) + len(frame.failed)


class _Screen:
    """Draws frames; knows from those before how fast jobs go on."""

    def __init__(self) -> None:
        self._paces: dict[str, Paces] = {}

    def drawn(self, frame: Frame, jobs_max: int, trouble: str) -> "RenderableType":
        """Return the frame, with so many jobs at most."""
        from rich.console import Group
        from rich.text import Text

        head = Text(_summed_up(frame), "bold")
        if trouble:
            head.append(f"\n{plain(trouble)}; this is what was seen last", BAD)
        parts: list[RenderableType] = [head, _queues(frame.queues)]
        if frame.workers is not None:
            parts.append(_pools(frame.workers))
        parts.append(self._jobs(frame.running[:jobs_max], len(frame.running)))
        if frame.failed:
            parts.append(_failures(frame.failed))
        return Group(*parts)

    def _jobs(self, jobs: "Sequence[Job]", count: int) -> "Table":
        now = time.monotonic()
        self._paces = {job["id"]: self._paces.get(job["id"], Paces()) for job in jobs}
        more = f", the newest {len(jobs)}" if len(jobs) < count or count == RUNNING_MAX else ""
        table = _table(f"running jobs{more}", "JOB", "TYPE", "QUEUE", "FOR", "PROGRESS", "", "PACE")
        for job in jobs:
            progress = job["progress"] or {"fraction": None, "message": ""}
            told = message_text(progress, job["steps"])
            if not told:
                split = (step for step in job["steps"] if step["chunks"] and step["running"])
                told = "; ".join(map(chunks_text, split))
            _row(
                table,
                job["id"][-ID_CHARS:],
                job["type"],
                job["queue"],
                age(job["started_at"]),
                _bar(progress["fraction"]),
                told,
                self._paces[job["id"]].text(job, now),
            )
        return table


def _summed_up(frame: Frame) -> str:
    workers, recent = frame.overview["workers"], frame.overview["recent"]
    minute = recent["ended"][-BINS_A_MINUTE:]
    completed, failed, _ = (sum(column) for column in zip(*minute, strict=True))
    told = [
        f"workers: {workers['alive']:,}, attempts that run: {workers['running']:,}, "
        f"free slots: {workers['free']:,}",
        f"last minute: {completed:,} completed, {failed:,} failed",
    ]
    if recent["wait_s"]:
        told[1] += f"; waited {_spread(recent['wait_s'])}"
    if recent["run_s"]:
        told[1] += f"; ran {_spread(recent['run_s'])}"
    return "\n".join(told)


def _spread(of: "Mapping[str, float]") -> str:
    return f"{span(of['p50'])} (95%: {span(of['p95'])})"


def _queues(queues: "Sequence[Queue]") -> "Table":
    columns = ("QUEUE", "READY", "PARKED", "LEASED", "LATER", "DEAD", "OLDEST", "RATE", "STARTS IN")
    more = f", the busiest {QUEUES_MAX} of {len(queues)}" if len(queues) > QUEUES_MAX else ""
    table = _table(f"queues{more}", *columns, "")
    busiest = sorted(queues, key=lambda queue: queue["ready"] + queue["leased"], reverse=True)
    chosen = {queue["name"] for queue in busiest[:QUEUES_MAX]}
    for queue in queues:
        if queue["name"] not in chosen:
            continue
        waits = queue["pending_reason"] or ""
        states = [word for word in ("paused", "draining") if queue[word]]
        _row(
            table,
            queue["name"],
            *(f"{queue[column]:,}" for column in ("ready", "parked", "leased")),
            f"{queue['scheduled'] + queue['backing_off']:,}",
            f"{queue['dead']:,}",
            span(queue["oldest_age_s"]) if queue["ready"] else "",
            f"{queue['drain_rate']:.1f}/s",
            "" if queue["eta"] is None else span(queue["eta"]["seconds"]),
            ", ".join([*states, *filter(None, [waits])]),
            style=ODD if states or waits else "",
        )
    return table


def _pools(workers: "Iterable[Worker]") -> "Table":
    table = _table("pools", "POOL", "WORKERS", "RUNNING", "HELD", "FREE", "QUEUES", "")
    pools: dict[str, list[Worker]] = defaultdict(list)
    for worker in workers:
        pools[worker["pool"]].append(worker)
    for pool, members in sorted(pools.items()):
        states = {
            "paused": sum(worker["paused"] for worker in members),
            "draining": sum(worker["draining"] for worker in members),
        }
        told = [f"{count} {state}" for state, count in states.items() if count]
        _row(
            table,
            pool,
            f"{len(members):,}",
            f"{sum(worker['started'] for worker in members):,}",
            f"{sum(worker['held'] for worker in members):,}",
            f"{sum(worker['free'] for worker in members):,}",
            " ".join(sorted({queue for worker in members for queue in worker["queues"]})),
            ", ".join(told),
            style=ODD if told else "",
        )
    return table


def _failures(jobs: "Iterable[Job]") -> "Table":
    table = _table("failed last", "JOB", "TYPE", "AGO", "CAUSE", "ERROR")
    for job in jobs:
        error: Any = job["error"] or {"cause": "", "message": ""}
        message = error["message"].partition("\n")[0]
        when = age(job["finished_at"])
        _row(table, job["id"][-ID_CHARS:], job["type"], when, error["cause"], message, style=BAD)
    return table


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    return table


def _row(table: "Table", *cells: str, style: str = "") -> None:
    from rich.text import Text

    # Text, not str: rich would take `[...]` in it for its own markup.
    table.add_row(*(Text(plain(cell)) for cell in cells), style=style)


def _bar(fraction: float | None, width: int = 10) -> str:
    if fraction is None:
        return ""
    full = round(width * fraction)
    return f"{'█' * full}{'░' * (width - full)} {fraction:4.0%}"
