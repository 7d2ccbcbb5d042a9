"""Users' code on a running cluster: brought by a Ray job, replaced, found again after a restart."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.test_ray_jobs import RayCli
from tests.support.live import WAIT_S, LiveDrayman, run, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

MODULE = '''\
import os, time
from pathlib import Path
from jobs import Context, Discard, job
from pydantic import BaseModel
from tailor_words import WORD

class Cloth(BaseModel):
    begun: str = ""
    opened: str = ""
    cure: str = ""

@job("tailor.sew")
def sew(ctx: Context, params: Cloth) -> str:
    """Sew, until told that it is enough."""
    if params.begun:
        Path(params.begun).touch()
        while not Path(params.opened).exists():
            ctx.progress(0.5, "sewing")
            time.sleep(0.02)
    if params.cure and not Path(params.cure).exists():
        raise Discard(f"no cure for {WORD}")
    return WORD
'''


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LiveDrayman]:
    """A Drayman that has never heard of tailors."""
    live = LiveDrayman(tmp_path)
    try:
        live.up()
        yield live
    finally:
        live.close()


def version(folder: Path, word: str) -> Path:
    folder.mkdir()
    (folder / "tailor.py").write_text(MODULE)
    (folder / "tailor_words.py").write_text(f"WORD = {word!r}\n")
    return folder


@pytest.mark.long
def test_code_is_brought_replaced_and_found_again(own: LiveDrayman, tmp_path: Path) -> None:
    v1, v2 = version(tmp_path / "v1", "v1"), version(tmp_path / "v2", "v2")
    begun, opened, cure = tmp_path / "begun", tmp_path / "opened", tmp_path / "cure"

    def drayman(folder: Path, *arguments: str) -> str:
        done = run(own.command(*arguments), env=own.environment, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    # A type that the cluster never saw, brought by a Ray job with its folder.
    ray_cli = RayCli(own)
    code, said = ray_cli(
        "submit", "--working-dir", str(v1), "--",
        "drayman", "submit", "--jobs", "tailor", "tailor.sew", "--wait",
    )  # fmt: skip
    assert code == 0, said
    assert '"v1"' in said

    with own.client() as client:
        # Deployed: a long job of the old version, one that fails with it, then the new version.
        first = drayman(v1, "deploy", "tailor")
        held = {"begun": str(begun), "opened": str(opened)}
        long = client.submit("tailor.sew", held)["id"]
        sick = client.submit("tailor.sew", {"cure": str(cure)})["id"]
        assert client.wait(sick, WAIT_S)["error"]["message"] == "no cure for v1"
        until(begun.exists)
        second = drayman(v2, "deploy", "tailor")
        assert first != second
        new = client.submit("tailor.sew", {})["id"]
        assert client.wait(new, WAIT_S)["result"] == "v2"
        assert client.status(long)["status"] == "processing"
        opened.touch()
        assert client.wait(long, WAIT_S)["result"] == "v1"

    # The next week: everything was killed and started again.
    own.kill_everything()
    own.up()

    with own.client() as client:
        cure.touch()
        client.retry(sick)
        assert client.wait(sick, WAIT_S)["result"] == "v1"
        assert client.deployed() == {"tailor.sew": second}
        newest = client.submit("tailor.sew", {})["id"]
        assert client.wait(newest, WAIT_S)["result"] == "v2"
