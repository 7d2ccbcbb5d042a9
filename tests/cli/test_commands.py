"""The command line against a real server: what it prints, and what it ends with."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Drayman, Server
from tests.support.api import file_in


def submitted(connected: Drayman, *more: str) -> str:
    ran = connected("submit", "greet", "--param", "name=Ada", *more)
    assert ran.code == 0, ran.err
    return ran.out.strip()


def test_submit_prints_the_id(connected: Drayman) -> None:
    job_id = submitted(connected, "--label", "team=ads", "--priority", "3", "--delay", "1h")

    shown = json.loads(connected("status", job_id, "--json").out)

    assert (shown["id"], shown["status"]) == (job_id, "scheduled")
    assert (shown["labels"], shown["priority"]) == ({"team": "ads"}, 3)


@pytest.mark.parametrize("how", ["inline", "file", "pairs"])
def test_params_come_in_three_ways(
    server: Server, connected: Drayman, tmp_path: Path, how: str
) -> None:
    params = {"name": "Ada", "times": 2}
    (tmp_path / "params.json").write_text(json.dumps(params))
    given = {
        "inline": ["--params", json.dumps(params)],
        "file": ["--params", f"@{tmp_path}/params.json"],
        "pairs": ["--param", "name=Ada", "--param", "times=2"],
    }[how]

    ran = connected("submit", "greet", *given)

    assert ran.code == 0, ran.err
    spec = json.loads(bytes(server.do(server.worker.take()).spec))
    assert spec["params"] == params


def test_same_key_prints_the_same_id(connected: Drayman) -> None:
    assert submitted(connected, "--key", "k 1") == submitted(connected, "--key", "k 1")


def test_wait_ends_0_when_the_job_completes(server: Server, connected: Drayman) -> None:
    server.soon(server.worker.succeed("hello Ada"))

    ran = connected("submit", "greet", "--param", "name=Ada", "--wait")

    assert ran.code == 0, ran.err
    assert "completed" in ran.out
    assert '"hello Ada"' in ran.out


def test_wait_ends_1_when_the_job_fails(server: Server, connected: Drayman) -> None:
    server.soon(server.worker.fail("the printer is on fire"))

    ran = connected("submit", "greet", "--param", "name=Ada", "--wait", "--json")

    assert ran.code == 1
    assert json.loads(ran.out)["error"]["message"] == "the printer is on fire"


def test_watch_tells_the_progress(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected)
    assignment = server.do(server.worker.take())
    finish = threading.Timer(1.2, lambda: server.do(server.worker.obey_stop(assignment)))
    connected("cancel", job_id)
    finish.start()

    ran = connected("watch", job_id)

    finish.join()
    assert ran.code == 1
    assert "50% half way" in ran.err
    assert "cancelled" in ran.out


def test_result_saves_files(server: Server, connected: Drayman, tmp_path: Path) -> None:
    job_id = submitted(connected)
    info = file_in(server.api.store, "report.pdf", b"%PDF" * 1000, "application/pdf")
    server.do(server.worker.succeed({"pages": 1}, files=[info]))

    ran = connected("result", job_id, "--files", str(tmp_path / "out"))

    assert (ran.code, json.loads(ran.out)) == (0, {"pages": 1})
    assert (tmp_path / "out" / "report.pdf").read_bytes() == b"%PDF" * 1000
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.pdf"]

    nowhere = connected("result", job_id, "--files", "/proc/none")

    assert nowhere.code == 2
    assert "can't save in /proc/none: No such file or directory" in nowhere.err


def test_result_of_a_failed_job_ends_1_and_of_an_unfinished_one_2(
    server: Server, connected: Drayman
) -> None:
    failed = submitted(connected)
    server.do(server.worker.fail("no"))
    pending = submitted(connected)

    assert connected("result", failed).code == 1
    assert connected("result", pending).code == 2


def test_list_cancel_retry_dead_letters_redrive_logs(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected)
    server.api.store.put("logs/1.log", b"line 1\n")
    server.do(server.worker.fail("the printer is on fire", log="logs/1.log"))

    assert job_id in connected("list", "--status", "failed").out
    assert connected("logs", job_id).out == "line 1\n"
    assert "on fire" in connected("dead-letters").out
    assert connected("redrive", job_id).out == "redriven: 1\n"
    assert connected("retry", job_id).code == 2
    assert connected("cancel", job_id).out == "cancelled\n"
    assert [j["id"] for j in json.loads(connected("list", "--json").out)] == [job_id]


def test_redrive_asks_which(connected: Drayman) -> None:
    ran = connected("redrive")

    assert (ran.code, "--all" in ran.err) == (2, True)


def test_upload_prints_the_uri(server: Server, connected: Drayman, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x" * 3_000_000)

    ran = connected("upload", str(tmp_path / "a.csv"), "--name", "b.csv")

    assert (ran.code, ran.out) == (0, "upload:b.csv\n")
    assert server.api.store.size("uploads/acme/b.csv") == 3_000_000


def test_tokens_queues_workers_types(
    server: Server, connected: Drayman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAYMAN_TOKEN", server.token("ops", "admin"))

    made = connected("token", "create", "--tenant", "globex", "--scope", "read", "--name", "ci")
    listed = json.loads(connected("token", "list", "--json").out)
    [token_id] = [t["id"] for t in listed if t["name"] == "ci"]

    assert made.out.startswith("dray_")
    assert connected("token", "revoke", token_id).code == 0
    assert connected("token", "revoke", token_id).code == 2
    assert "paused" in connected("queues", "--pause", "default").out
    assert "paused" not in connected("queues", "--resume", "default").out
    assert connected("workers").code == 0
    listed = connected("types").out
    assert "YOUR OWN TYPE" in listed
    assert "name [times] [note]" in listed


def test_refusals_end_2_and_name_the_field(connected: Drayman) -> None:
    wrong = connected("submit", "greet", "--param", "name=7", "--param", "shout=true")

    assert wrong.code == 2
    assert "params.name" in wrong.err
    assert "params.shout" in wrong.err
    assert connected("status", "nope").code == 2
    assert connected("submit", "greet", "--params", "{").code == 2
    assert connected("submit", "greet", "--delay", "soon").code == 2
    for number in ("NaN", "[1e999]"):
        ran = connected("submit", "greet", "--param", f"name={number}")
        assert (ran.code, "NaN and infinity" in ran.err) == (2, True)
    assert connected("no-such-command").code == 2


def test_a_file_that_is_no_text_is_refused(connected: Drayman, tmp_path: Path) -> None:
    (tmp_path / "params").write_bytes(b"\xff\xfe{}")

    ran = connected("submit", "greet", "--params", f"@{tmp_path}/params")

    assert (ran.code, "decode" in ran.err) == (2, True)


def test_refusal_with_json_is_the_problem(connected: Drayman) -> None:
    ran = connected("status", "nope", "--json")

    assert json.loads(ran.err)["type"] == "/problems/not-found"


def test_wrong_token_ends_2(
    server: Server, drayman: Drayman, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = drayman("--url", server.url, "--token", "dray_" + "x" * 43, "list")

    assert (ran.code, "token" in ran.err) == (2, True)


def test_nothing_to_talk_to_ends_3(drayman: Drayman) -> None:
    ran = drayman("list")

    assert (ran.code, "drayman up" in ran.err) == (3, True)


@pytest.mark.parametrize(
    ("url", "token", "named"),
    [
        ("http://[::1", "x", "http://HOST:PORT"),
        ("127.0.0.1:8000", "x", "http://HOST:PORT"),
        ("http://127.0.0.1:1", "\u00fc", "token"),
    ],
)
def test_what_is_no_url_or_no_token_ends_3(
    drayman: Drayman, url: str, token: str, named: str
) -> None:
    ran = drayman("--url", url, "--token", token, "list")

    assert (ran.code, named in ran.err) == (3, True)


def test_nobody_there_ends_3(drayman: Drayman, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli_show.PATIENCE_S", 0.2)

    ran = drayman("--url", "http://127.0.0.1:1", "--token", "x", "list")

    assert (ran.code, "does not answer" in ran.err) == (3, True)


def test_run_file_of_up_is_found(server: Server, drayman: Drayman, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "run"
    folder.mkdir(parents=True)
    (folder / "1234.token").write_text(server.token())
    run = {
        "url": server.url,
        "ready": True,
        "driver": {"pid": os.getpid()},
        "token_path": str(folder / "1234.token"),
    }
    (folder / "1234.json").write_text(json.dumps(run))

    assert drayman("list").code == 0
    (folder / "1234.json").write_text(json.dumps(run | {"driver": {"pid": 2**22 + 1}}))
    assert drayman("list").code == 3


@pytest.mark.parametrize("cancels", [True, False])
def test_interrupted_wait_cancels_only_if_asked(
    server: Server, connected: Drayman, cancels: bool
) -> None:
    """In a process of its own, ended as `ray job stop` ends it: by SIGTERM."""
    more = ["--cancel-on-interrupt"] if cancels else []
    command = [sys.executable, "-m", "service.cli", "submit", "greet", "--param", "name=Ada"]
    with subprocess.Popen(
        [*command, "--wait", *more], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        job_id = process.stderr.readline().strip()
        assert "pending" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.stderr.read()

    shown = json.loads(connected("status", job_id, "--json").out)
    assert process.returncode == 130
    assert shown["status"] == ("cancelled" if cancels else "pending")


def test_commands_start_light() -> None:
    """What costs tenths of seconds to import is not imported for a plain command."""
    heavy = ("ray", "pyarrow", "pydantic", "fastapi", "httpx", "rich", "msgspec", "jobs")
    script = (
        f"import sys; import service.cli;print([name for name in {heavy!r} if name in sys.modules])"
    )

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(("out", "code"), [("/dev/full", 2), ("&-", 0)])
def test_output_that_nobody_can_take_gives_no_traceback(out: str, code: int) -> None:
    command = f"{sys.executable} -m service.cli --help >{out}"

    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert (ran.returncode, "Traceback" in ran.stderr) == (code, False)
