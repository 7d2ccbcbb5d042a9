"""`drayman config`: checking a file, and what is in force."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from service.client import ApiError, Client
from tests.cli.conftest import Drayman, Server


@pytest.fixture
def connected(server: Server, drayman: Drayman, monkeypatch: pytest.MonkeyPatch) -> Drayman:
    """The command line, told of the server, as an admin."""
    monkeypatch.setenv("DRAYMAN_URL", server.url)
    monkeypatch.setenv("DRAYMAN_TOKEN", server.token("ops", "admin"))
    return drayman


def written(folder: Path, text: str) -> str:
    path = folder / "drayman.toml"
    path.write_text(text)
    return str(path)


def shown(connected: Drayman) -> Any:
    return json.loads(connected("config", "show", "--json").out)


# --- without a server -------------------------------------------------------------------------


def test_the_example_is_right(drayman: Drayman, tmp_path: Path) -> None:
    example = drayman("config", "example")

    ran = drayman("config", "check", written(tmp_path, example.out))

    assert (example.code, ran.code) == (0, 0)
    assert "is right: queues fast, slow, large, io; pools cpu, slow, large, io" in ran.out


def test_a_file_that_is_wrong_ends_2_with_all_that_is(drayman: Drayman, tmp_path: Path) -> None:
    path = written(tmp_path, 'depth = 1\n[pools.cpu]\nqueues = ["a"]\nmax = "4"')

    ran = drayman("config", "check", path)

    assert ran.code == 2
    assert "  depth: there is no such setting; did you mean depth_max?\n" in ran.err
    assert "  pools.cpu.max: expected `int`, got `str`\n" in ran.err


@pytest.mark.parametrize("command", [["config", "check"], ["config", "apply"]])
def test_a_file_that_is_not_there_ends_2(
    connected: Drayman, tmp_path: Path, command: list[str]
) -> None:
    ran = connected(*command, str(tmp_path / "none.toml"))

    assert (ran.code, "No such file" in ran.err) == (2, True)


def test_up_refuses_a_file_that_is_wrong_before_it_starts_anything(
    drayman: Drayman, tmp_path: Path
) -> None:
    store = tmp_path / "store"

    ran = drayman(
        "up", "--store", str(store), "--config", written(tmp_path, "[queue.fast]"), "--port", "1"
    )

    assert (ran.code, store.exists()) == (2, False)
    assert "queue: there is no such setting; did you mean queues?" in ran.err


def test_without_a_server_showing_and_applying_end_3(drayman: Drayman, tmp_path: Path) -> None:
    assert drayman("config", "show").code == 3
    assert drayman("config", "apply", written(tmp_path, "")).code == 3


# --- with one ---------------------------------------------------------------------------------


def test_what_is_applied_is_in_force(connected: Drayman, tmp_path: Path) -> None:
    path = written(tmp_path, 'ageing_s = 5\n[limits."http:api.example.com"]\nrate = 10')

    ran = connected("config", "apply", path)

    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [
        '+ limits."http:api.example.com" = { rate = 10.0 }',
        "ageing_s: 60.0 -> 5.0",
    ]
    assert ran.err.startswith("in force, as revision ")
    assert shown(connected)["ageing_s"] == 5.0


def test_applied_again_it_changes_nothing(connected: Drayman, tmp_path: Path) -> None:
    path = written(tmp_path, "ageing_s = 5")
    connected("config", "apply", path)

    ran = connected("config", "apply", path)

    assert (ran.code, ran.out, ran.err) == (0, "", "nothing changes\n")


def test_a_dry_run_changes_nothing(connected: Drayman, tmp_path: Path) -> None:
    before = shown(connected)

    ran = connected("config", "apply", written(tmp_path, "ageing_s = 5"), "--dry-run")

    assert (ran.code, ran.out) == (0, "ageing_s: 60.0 -> 5.0\n")
    assert shown(connected) == before


def test_what_is_shown_can_be_applied(connected: Drayman, tmp_path: Path) -> None:
    connected("config", "apply", written(tmp_path, "ageing_s = 5\n[tenants.acme]\nweight = 3"))
    before = shown(connected)

    for options in ([], ["--all"]):
        text = connected("config", "show", *options).out
        ran = connected("config", "apply", written(tmp_path, text))
        assert (ran.code, ran.err) == (0, "nothing changes\n")

    assert shown(connected) == before
    assert tomllib.loads(text)["pools"] != {}


def test_a_file_without_pools_keeps_those_there_are(connected: Drayman, tmp_path: Path) -> None:
    before = shown(connected)["pools"]

    ran = connected("config", "apply", written(tmp_path, "[queues.night]"), "--json")

    after = json.loads(ran.out)
    assert after["pools"]["cpu"]["queues"] == [*before["cpu"]["queues"], "night"]
    assert after == shown(connected)


def test_a_file_that_is_wrong_is_not_sent(connected: Drayman, tmp_path: Path) -> None:
    before = shown(connected)

    ran = connected("config", "apply", written(tmp_path, "default_queue = 'nowhere'"))

    assert (ran.code, "default_queue: no queue 'nowhere'" in ran.err) == (2, True)
    assert shown(connected) == before


def test_it_takes_an_admin(
    server: Server, connected: Drayman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAYMAN_TOKEN", server.token("acme"))

    assert connected("config", "show").code == 2
    assert connected("config", "apply", written(tmp_path, "")).code == 2


def test_the_client_overwrites_nothing_it_has_not_seen(server: Server) -> None:
    with Client(server.url, server.token("ops", "admin")) as client:
        table, etag = client.config()
        client.configure(table | {"ageing_s": 5.0}, etag)

        with pytest.raises(ApiError, match="read it again") as refused:
            client.configure(table | {"ageing_s": 6.0}, etag)

        assert refused.value.kind == "precondition-failed"
        assert client.configure(table)[0] == table
