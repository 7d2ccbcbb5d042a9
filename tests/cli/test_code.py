"""`drayman deploy` and `drayman submit --jobs`, against a real server."""

import json
import shutil
from pathlib import Path

import pytest

from cluster.queue.spec import decode_spec
from tests.cli.conftest import Drayman, Server
from tests.support.bundles import shop

PARAMS = ["--param", "cents=5"]


def code_of_next(server: Server) -> str:
    return decode_spec(server.do(server.worker.take()).spec).code


@pytest.fixture
def admin(server: Server, drayman: Drayman) -> Drayman:
    """The command line, as an admin."""
    token = server.token("ops", "admin")
    return lambda *arguments: drayman("--url", server.url, "--token", token, *arguments)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module `shop` in it."""
    shop(tmp_path, "v1")
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_submit_brings_its_module_along(server: Server, admin: Drayman, here: Path) -> None:
    ran = admin("submit", "--jobs", "shop", "shop.invoice", *PARAMS)

    assert ran.code == 0, ran.err
    assert code_of_next(server) == shop(here, "v1").sha
    assert admin("deploy").out == ""  # it is for this job alone


def test_deploy_replaces_and_withdraws(server: Server, admin: Drayman, here: Path) -> None:
    first = admin("deploy", "shop")
    admin("submit", "shop.invoice", *PARAMS)
    second_sha = shop(here, "v2").sha
    second = admin("deploy", "shop", "--json")
    admin("submit", "shop.invoice", *PARAMS)
    shown = json.loads(admin("deploy", "--json").out)
    withdrawn = admin("deploy", "--withdraw", "shop.invoice")
    gone = admin("submit", "shop.invoice", *PARAMS)

    assert first.err == f"shop.invoice runs {first.out[:12]}\n"
    assert json.loads(second.out) == {"code": second_sha, "types": ["shop.invoice"]}
    assert shown == {"shop.invoice": second_sha}
    assert [code_of_next(server) for _ in range(2)] == [first.out.strip(), second_sha]
    assert (withdrawn.code, withdrawn.out) == (0, "")
    assert withdrawn.err == "shop.invoice is gone: the cluster was not started with it\n"
    assert gone.code == 2
    assert "no job type 'shop.invoice'" in gone.err
    assert "drayman submit --jobs MODULE" in gone.err


def test_withdrawing_a_type_gives_it_back_to_the_cluster(admin: Drayman) -> None:
    ran = admin("deploy", "--withdraw", "greet")

    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "greet runs what the cluster was started with\n"


def test_withdrawing_what_there_never_was_is_refused(admin: Drayman) -> None:
    ran = admin("deploy", "--withdraw", "gret")

    assert (ran.code, "there is no type gret" in ran.err) == (2, True)


def test_whoever_may_submit_may_run_code_that_an_admin_sent(
    server: Server, admin: Drayman, connected: Drayman, here: Path
) -> None:
    refused = connected("submit", "--jobs", "shop", "shop.invoice", *PARAMS)
    admin("submit", "--jobs", "shop", "shop.invoice", *PARAMS)
    taken = connected("submit", "--jobs", "shop", "shop.invoice", *PARAMS)

    assert (refused.code, taken.code) == (2, 0)
    assert "'admin'" in refused.err


def test_a_module_that_is_wrong_is_named_and_nothing_is_sent(admin: Drayman, here: Path) -> None:
    (here / "shop.py").write_text("import no_such_thing\n")

    ran = admin("submit", "--jobs", "shop", "shop.invoice", *PARAMS)

    assert ran.code == 2
    assert "module 'shop' cannot be imported" in ran.err
    assert "no_such_thing" in ran.err


def test_deploying_and_withdrawing_at_once_is_refused(admin: Drayman, here: Path) -> None:
    assert admin("deploy", "shop", "--withdraw", "shop.invoice").code == 2
