"""What the commands share: how to reach the API, and how to show what it answers."""

import contextlib
import itertools
import json
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # importing the client costs more than most commands do
    from service.client import AsyncClient, Client, Json

__all__ = [
    "EXIT_DONE",
    "EXIT_FAILED",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "JobId",
    "JsonFlag",
    "Settings",
    "age",
    "chunks_text",
    "complain",
    "connect",
    "connect_async",
    "eta_text",
    "exit_code",
    "message_text",
    "note",
    "plain",
    "print_json",
    "print_json_list",
    "print_table",
    "saving",
    "seconds",
    "show_job",
    "span",
    "state_text",
    "status_text",
    "step_text",
    "termination_interrupts",
]

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE = 0, 1, 2, 3

#: A command that a person waits for gives up soon; one that waits for a job outlasts a restart.
PATIENCE_S, PATIENCE_WAITING_S = 4.0, 120.0

#: Columns of a table that goes to no terminal, and what is between two of them.
WIDTH, GAP = 100, "  "

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the API's own JSON.")]


@dataclass(frozen=True, slots=True)
class Settings:
    """What was given before the command's name."""

    url: str | None
    token: str | None


def connect(context: typer.Context, *, waits: bool = False) -> "Client":
    """Return a client for the Drayman that was named, or that runs here."""
    from service.client import Client

    settings: Settings = context.obj
    patience_s = PATIENCE_WAITING_S if waits else PATIENCE_S
    return Client(settings.url, settings.token, patience_s=patience_s)


def connect_async(context: typer.Context) -> "AsyncClient":
    """Return a client that waits for several jobs at once."""
    from service.client import AsyncClient

    settings: Settings = context.obj
    return AsyncClient(settings.url, settings.token, patience_s=PATIENCE_WAITING_S)


# --- texts ------------------------------------------------------------------------------------


#: What a terminal would obey, or show in another order than it is: controls and directions.
_UNFIT = (
    {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: "\u2421"}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")
)


def plain(text: str) -> str:
    """Return a text that came from a job, such that a terminal only shows it."""
    return text.translate(_UNFIT)


def note(text: str) -> None:
    """Tell the person something that is not the answer."""
    typer.echo(plain(text), err=True)


def complain(text: str, problem: Any = None) -> None:
    """Say why it did not work; with `--json` on the line, as the problem itself."""
    if problem is not None and "--json" in sys.argv:
        typer.echo(json.dumps(problem), err=True)
    else:
        typer.echo(f"drayman: {plain(text)}", err=True)


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """End the command where files can't be written into the folder, saying why."""
    try:
        yield
    except OSError as error:
        complain(f"can't save in {folder}: {error.strerror or error}; choose another folder")
        raise typer.Exit(EXIT_USAGE) from None


def print_json(value: Any) -> None:
    """Print the answer as JSON: indented for a person, on one line for a program."""
    indent = 2 if sys.stdout.isatty() else None
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False))


def print_json_list(values: Iterable[Any]) -> None:
    """Print an answer of many as `print_json` would, as they come."""
    typer.echo("[", nl=False)
    for number, value in enumerate(values):
        typer.echo(",\n" if number else "", nl=False)
        typer.echo(json.dumps(value, ensure_ascii=False), nl=False)
    typer.echo("]")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[Any]], nothing: str) -> None:
    """Print aligned columns, or `nothing` if there are no rows. Empty columns are left out.

    Texts that make it wider than the terminal, or than `WIDTH` where there is none, go on in lines
    below. A word, such as an id, is never parted.
    """
    if not rows:
        note(nothing)
        return
    texts = [["" if cell is None else plain(str(cell)) for cell in row] for row in rows]
    cells = [list(titles), *texts]
    columns = [column for column in zip(*cells, strict=True) if any(column)]
    widths = _fitted(columns)
    for row in zip(*columns, strict=True):
        wrapped = [
            textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
            for cell, width in zip(row, widths, strict=True)
        ]
        for parts in itertools.zip_longest(*wrapped, fillvalue=""):
            line = GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True))
            typer.echo(line.rstrip())


def _fitted(columns: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column; the widest are made narrower until all fit in a line."""
    widths = [max(map(len, column)) for column in columns]
    least = [max(map(len, " ".join(column).split()), default=1) for column in columns]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    over = sum(widths) + len(GAP) * (len(widths) - 1) - room
    for _ in range(over):
        wide = [(width, at) for at, width in enumerate(widths) if width > least[at]]
        if not wide:
            break
        widths[max(wide)[1]] -= 1
    return widths


def age(moment: str | None) -> str:
    """Return how long ago, in one unit."""
    if moment is None:
        return ""
    passed = datetime.now(UTC) - datetime.fromisoformat(moment)
    return span(passed.total_seconds())


def span(passed_s: float) -> str:
    """Return a duration in one unit."""
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if passed_s >= 2 * unit_s:
            return f"{passed_s / unit_s:.0f} {unit}"
    return f"{passed_s:.0f} s" if passed_s >= 10 else f"{passed_s:.1f} s"


def eta_text(eta: "Json") -> str:
    """Return when something is expected to start."""
    sure = f"{eta['confidence']:.0%} sure"
    return f"{span(eta['seconds'])}, {span(eta['low'])} to {span(eta['high'])}: {sure}"


def seconds(text: str) -> float:
    """Return a duration: `90`, `90s`, `5m`, `2h`, `1d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration; write for example 90, 5m, 2h or 1d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


# --- jobs -------------------------------------------------------------------------------------


def exit_code(job: "Json") -> int:
    """Return what the command ends with for a job that ended."""
    return EXIT_DONE if job["status"] == "completed" else EXIT_FAILED


def show_job(job: "Json") -> None:
    """Print one job for a person."""
    rows: list[tuple[str, Any]] = [
        ("id", job["id"]),
        ("type", job["type"]),
        ("status", status_text(job)),
        ("queue", job["queue"]),
        ("attempts", _attempts(job)),
    ]
    if job["recoveries"]:
        rows.append(("recoveries", job["recoveries"]))
    rows += [
        (name.removesuffix("_at"), f"{job[name]} ({age(job[name])} ago)")
        for name in ("submitted_at", "started_at", "finished_at")
        if job[name]
    ]
    rows += [
        (name, job[name])
        for name in ("run_at", "next_attempt_at", "expires_at")
        if job[name] and not job["finished_at"]
    ]
    rows += [(f"label {name}", value) for name, value in job["labels"].items()]
    rows += [
        ("tells", f"{one['to']} when {', '.join(one['on'])} ({one['type']})")
        for one in job["notify"]
    ]
    if job["parent"]:
        rows.append(("submitted by", job["parent"]))
    if job["schedule"]:
        rows.append(("schedule", f"{job['schedule']}, tick {job['scheduled_for']}"))
    for step in job["steps"]:
        told = step_text(step, ended=job["finished_at"] is not None)
        rows.append((f"step {step['name']}" if step["name"] else "fan-out", told))
    if job["error"]:
        rows.append(("error", f"{job['error']['message']} ({job['error']['cause']})"))
    if job["status"] == "completed" and job["result"] is not None:
        rows.append(("result", _short(json.dumps(job["result"], ensure_ascii=False))))
    rows += [("file", f"{file['name']} ({file['bytes']:,} bytes)") for file in job["files"]]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(plain(f"{name.ljust(width)}  {value}"))


def _attempts(job: "Json") -> str:
    if job["steps"]:  # the limit is each task's
        return f"{job['attempts']:,} of all its tasks"
    attempts, most = job["attempts"], job["max_attempts"]
    # A redrive counts anew, but numbers go on.
    return f"{attempts} of {most}" if attempts <= most else str(attempts)


def step_text(step: "Json", *, ended: bool) -> str:
    """Return where a step is, with its chunks if it has been split; `ended`: its job has."""
    more = [step["type"]]
    if step["chunks"] is not None:
        more.append(chunks_text(step))
    if step["needs"]:
        more.append(f"after {', '.join(step['needs'])}")
    return f"{state_text(step['state'], ended=ended)} ({', '.join(more)})"


def state_text(state: str, *, ended: bool) -> str:
    """Return a step's or task's state for a person, who need not know the machine's words."""
    if state == "waiting" and ended:
        return "not started"  # nor will it be
    return "failed" if state == "dead" else state


def chunks_text(step: "Json") -> str:
    """Return how many of a step's chunks are where."""
    more = [f"{step[name]:,} {name}" for name in ("running", "failed") if step[name]]
    return ", ".join([f"{step['done']:,} of {step['chunks']:,} chunks", *more])


def _short(text: str) -> str:
    return text if len(text) <= 500 else f"{text[:500]} ... (`drayman result` shows all)"


def status_text(job: "Json") -> str:
    """Return a job's status with what there is to say about it."""
    more: list[str] = []
    if job["stopping"]:
        more.append(f"stopping: {job['stopping']}")
    if job["reason"]:
        more.append(job["reason"])
    if job["progress"] and job["status"] == "processing":
        more.append(_progress(job["progress"], job["steps"]))
    if job["queue_position"] is not None:
        more.append(f"position {job['queue_position']:,}")
    if job["eta"] is not None:
        more.append(f"starts in {eta_text(job['eta'])}")
    if job["pending_reason"]:
        more.append(job["pending_reason"])
    return f"{job['status']} ({', '.join(filter(None, more))})" if any(more) else job["status"]


def _progress(progress: "Json", steps: "Iterable[Json]") -> str:
    fraction = progress["fraction"]
    told = ["" if fraction is None else f"{fraction:.0%}", message_text(progress, steps)]
    return " ".join(filter(None, told))


def message_text(progress: "Json", steps: "Iterable[Json]") -> str:
    """Return what a running job says of its progress, and how many of its tasks failed."""
    failed = sum(step["failed"] for step in steps)
    return ", ".join(filter(None, [progress["message"], f"{failed:,} failed" if failed else ""]))


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let SIGTERM (how `ray job stop` begins) raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
