"""`drayman demo`, as `make demo` runs it where nobody watches."""

import os
import re
from pathlib import Path

import av
import duckdb
import pytest
from pypdf import PdfReader

from service.demo import film_path
from tests.support.live import BIN, ROOT, processes_with, run

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


@pytest.mark.long
def test_the_demo_ends_by_itself_and_leaves_a_report_a_film_and_nothing_else(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"

    done = run(
        [str(BIN / "drayman"), "demo", "--folder", str(tmp_path / "demo")],
        env=os.environ | {"DRAYMAN_HOME": str(home)},
        cwd=ROOT,
        timeout=400,
    )

    assert done.returncode == 0, done
    said = dict(re.findall(r"^(\w+): (.*)$", done.stdout, re.MULTILINE))
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", said["url"])
    assert said["dashboard"].startswith(f"{said['url']}/#token=dray_")
    assert "INFO" not in done.stdout + done.stderr  # what Ray Serve tells of itself
    report = Path(said["report"])
    assert report.parent == tmp_path / "demo"
    words = " ".join(page.extract_text() for page in PdfReader(report).pages).split()
    missing = [figure for figure in figures(tmp_path / "demo" / "tables") if figure not in words]
    assert not missing
    film = Path(said["film"])
    with av.open(str(film / "240p.mp4")) as made, av.open(str(film_path())) as source:
        assert frames(made) == frames(source)
    assert {"480p.mp4", "720p.mp4", "master.m3u8", "poster.jpg"} <= {f.name for f in film.iterdir()}
    assert processes_with(f"DRAYMAN_HOME={home}") == {}


def frames(container: av.container.InputContainer) -> int:
    return sum(1 for _ in container.decode(video=0))


def figures(tables: Path) -> list[str]:
    """Return some headline figures of United's year, by SQL."""
    row = duckdb.execute(
        """
        SELECT count(*), count(dep_time), sum(distance) FILTER (dep_time IS NOT NULL),
            count(DISTINCT dest), count(DISTINCT tailnum) FILTER (dep_time IS NOT NULL)
        FROM read_parquet($flights) WHERE carrier = 'UA' AND year = 2013
        """,
        {"flights": str(tables / "flights.parquet")},
    ).fetchone()
    assert row is not None
    return [f"{int(value):,}" for value in row]
