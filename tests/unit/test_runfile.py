"""What a run records, and that clearing up ends its own processes and no others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from jobs.errors import InvalidInput
from service.runfile import (
    RUN_ENV,
    ProcessRecord,
    RunFile,
    RunFolder,
    end_processes,
    find_descendants,
    identify,
    is_alive,
    read_pids,
)
from service.target import NoTarget, find_target

FOREVER = [sys.executable, "-c", "print('up', flush=True); input()"]
DEAF = [
    sys.executable,
    "-c",
    "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); input()",
]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    yield from spawned(FOREVER)


@pytest.fixture
def deaf_child() -> Iterator[subprocess.Popen[str]]:
    yield from spawned(DEAF)


def spawned(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {RUN_ENV: f"nonce-of-{os.getpid()}"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def record_of(pid: int) -> ProcessRecord:
    record = identify(pid, "child")
    assert record is not None
    return record


def a_run(port: int = 8000, **changes: object) -> RunFile:
    run = RunFile(
        nonce="n1",
        url=f"http://127.0.0.1:{port}",
        host="127.0.0.1",
        port=port,
        edge="proxy",
        store="file:///s",
        driver=record_of(os.getpid()),
        started_at="2026-01-01T00:00:00.000+00:00",
    )
    return msgspec.structs.replace(run, **changes)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path)
    run = a_run(processes=[record_of(os.getpid())])

    runs.write(run)

    assert runs.read(8000) == run
    assert runs.all() == [run]


def test_run_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path / "state")

    runs.write(a_run())

    assert runs.path(8000).stat().st_mode & 0o777 == 0o600
    assert runs.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nonce": 1}'])
def test_a_broken_run_file_reads_as_no_run(tmp_path: Path, text: str) -> None:
    runs = RunFolder(tmp_path)
    runs.path(8000).write_text(text)

    assert runs.read(8000) is None


def test_removing_a_run_removes_its_folder_and_keeps_its_token(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path)
    folder, token = tmp_path / "session", tmp_path / "run" / "8000.token"
    folder.mkdir()
    token.touch()
    run = a_run(folder=str(folder), token_path=str(token))
    runs.write(run)

    runs.remove(run)

    assert not folder.exists()
    assert token.exists()
    assert runs.all() == []


def test_a_second_run_on_the_port_is_refused_with_the_url_of_the_first(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path)
    runs.write(a_run())
    held = runs.lock(8000)

    with held, pytest.raises(InvalidInput, match=r"http://127\.0\.0\.1:8000"):
        runs.lock(8000)


def test_the_lock_is_free_once_its_holder_is_gone(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path)
    with runs.lock(8000):
        assert runs.is_locked(8000)

    assert not runs.is_locked(8000)


def test_a_process_that_ended_is_not_alive(child: subprocess.Popen[str]) -> None:
    record = record_of(child.pid)
    assert is_alive(record)

    child.kill()
    child.wait()

    assert not is_alive(record)


def test_a_zombie_is_not_alive(child: subprocess.Popen[str]) -> None:
    record = record_of(child.pid)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not is_alive(record)


def test_a_reused_process_id_is_never_signalled(child: subprocess.Popen[str]) -> None:
    now = record_of(child.pid)
    earlier = msgspec.structs.replace(now, started=now.started - 1)
    other_boot = msgspec.structs.replace(now, boot="another")

    ended = end_processes([earlier, other_boot])

    assert ended == 0
    assert is_alive(now)


def test_a_process_deaf_to_sigterm_is_killed(deaf_child: subprocess.Popen[str]) -> None:
    record = record_of(deaf_child.pid)

    ended = end_processes([record], grace_s=0.1)

    assert ended == 1
    assert not is_alive(record)


def test_unrecorded_processes_are_found_by_the_nonce_they_inherited(
    child: subprocess.Popen[str],
) -> None:
    found = find_descendants(f"nonce-of-{os.getpid()}")

    assert [process.pid for process in found] == [child.pid]
    assert find_descendants("another") == []
    assert find_descendants("") == []


def test_pids_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    path.write_text('{"pid": 7, "started": 70}\n{"pid": 8, "started": 80}\n')

    records = read_pids(path, "haproxy")

    assert [(r.what, r.pid, r.started) for r in records] == [("haproxy", 7, 70), ("haproxy", 8, 80)]
    assert read_pids(tmp_path / "none", "haproxy") == []


def test_who_asks_for_one_that_is_starting_is_told_so(tmp_path: Path) -> None:
    url, home = "http://127.0.0.1:8123", {"DRAYMAN_HOME": str(tmp_path)}
    record = {"ready": False, "url": url, "driver": {"pid": os.getpid()}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "8123.json").write_text(json.dumps(record))

    with pytest.raises(NoTarget, match=f"the Drayman at {url} is starting"):
        find_target(url, environment=home)
    with pytest.raises(NoTarget, match="no Drayman of yours runs at"):
        find_target("http://127.0.0.1:8124", environment=home)
