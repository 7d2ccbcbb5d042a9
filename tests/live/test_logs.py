"""What an attempt prints is seen while it still runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.client import Client
from tests.support.live import LiveDrayman

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


def test_a_line_is_seen_before_the_handler_ends(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    opened = tmp_path / "opened"
    job = client.submit("live.spoken", {"begun": str(tmp_path / "begun"), "opened": str(opened)})
    command = [sys.executable, "-m", "service.cli", "logs", job["id"], "-f"]
    told = {"DRAYMAN_URL": drayman.url, "DRAYMAN_TOKEN": drayman.said["token"]}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | told
    ) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            status = client.status(job["id"])["status"]
            opened.touch()
            rest = process.stdout.read()
        finally:
            opened.touch()
            process.terminate()

    assert (first, status) == ("it begins\n", "processing")
    assert (rest, process.returncode) == ("it ends\n", 0)
