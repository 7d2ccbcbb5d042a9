"""`drayman up` beside another one, and what it refuses to start with."""

import subprocess
from pathlib import Path

import pytest

from service.client import Client
from service.edge import free_port
from tests.support.live import LiveDrayman

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


@pytest.mark.long
def test_a_second_one_on_the_same_store_is_refused(drayman: LiveDrayman, client: Client) -> None:
    before = lasting(drayman)

    refused = drayman.run(
        *("up", "--port", str(free_port()), "--store", drayman.store_url, "--no-dashboard")
    )

    assert refused.returncode == 2, refused
    assert f"{drayman.store_url} is in use by a running Drayman" in refused.stderr
    assert client.types()
    assert before <= lasting(drayman)


def lasting(drayman: LiveDrayman) -> set[int]:
    """Return its processes but for those that Ray starts and ends for tasks, compaction's too."""
    passing = ("ray::IDLE", "ray::compact", "ray::_compact")
    return {pid for pid, line in drayman.processes().items() if not line.startswith(passing)}


def test_a_second_one_on_the_same_port_is_refused(drayman: LiveDrayman, tmp_path: Path) -> None:
    refused = drayman.run("up", "--port", str(drayman.port), "--store", str(tmp_path))

    assert refused.returncode == 2, refused
    assert f"a Drayman already runs on {drayman.port} at {drayman.url}" in refused.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nosuchmodule", None),
        ("broken", "import no_such_thing\n"),
        ("strange", "from jobs import job\n\n@job('bad name')\ndef f(ctx, params): ...\n"),
    ],
)
def test_job_types_that_cannot_be_imported_stop_it(
    drayman: LiveDrayman, tmp_path: Path, name: str, text: str | None
) -> None:
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)

    refused = subprocess.run(
        drayman.command("up", "--port", str(free_port()), "--jobs", name),
        cwd=tmp_path,
        env=drayman.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert refused.returncode == 2, refused
    assert name in refused.stderr
    assert "Traceback" not in refused.stderr
