"""A whole Drayman, with jobs running, listens on loopback alone."""

import ipaddress
import re
import shutil
from pathlib import Path

import pytest

from service.client import Client
from tests.support.live import WAIT_S, LiveDrayman, run, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

LISTENER = re.compile(r"^LISTEN +\d+ +\d+ +(?P<where>\S+):(?P<port>\d+) .*", re.MULTILINE)


def test_nothing_of_it_listens_beyond_loopback(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    if shutil.which("ss") is None:
        pytest.skip("ss is missing: apt-get install iproute2")
    begun, opened = tmp_path / "begun", tmp_path / "opened"
    job = client.submit("live.gate", {"begun": str(begun), "opened": str(opened)})
    until(begun.exists)

    listing = run(["ss", "-H", "-ltnp"]).stdout
    processes = drayman.processes()
    opened.touch()
    client.wait(job["id"], WAIT_S)

    ours = [
        (found["where"], int(found["port"]))
        for found in LISTENER.finditer(listing)
        if processes.keys() & {int(pid) for pid in re.findall(r"pid=(\d+)", found[0])}
    ]
    assert ("127.0.0.1", drayman.port) in ours
    assert [found for found in ours if not is_loopback(found[0])] == []


def is_loopback(where: str) -> bool:
    address = where.strip("[]").removeprefix("::ffff:")
    return address != "*" and ipaddress.ip_address(address).is_loopback
