"""`watch`, `logs -f` and `top` against a real server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from cluster.protocol import Output
from jobs.context import Context
from jobs.definition import JobDefinition
from jobs.fan_out import fan_out
from jobs.registry import Registry
from jobs.results import Results
from service.cli_show import plain
from service.cli_watch import Pace
from tests.cli.conftest import Drayman, Server
from tests.support import api as support
from tests.support.api import file_in

NASTY = "\x1b]0;owned\x07\x1b[2J<b>[red]\u202etxt"


class Pages(BaseModel):
    """Params of the type below."""

    count: int = 3


def split(ctx: Context, params: Pages) -> list[int]:
    return list(range(params.count))


def bind(ctx: Context, params: Pages, results: Results[int]) -> int:
    return len(results)


@fan_out("test.print", split=split, join=bind, max_attempts=2)
def print_page(ctx: Context, params: Pages, chunk: int) -> int:
    """Print a page."""
    return chunk


TYPES: list[JobDefinition] = [print_page]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that knows the type of this file too."""
    monkeypatch.setattr(support, "Registry", lambda found: Registry([*found, *TYPES]))
    server = Server()
    server.start()
    yield server
    server.stop()


def submitted(connected: Drayman, *what: str) -> str:
    ran = connected("submit", *(what or ("greet", "--param", "name=Ada")))
    assert ran.code == 0, ran.err
    return ran.out.strip()


def printed(server: Server, kind: str, log: str, **how: Any) -> None:
    """Take the next attempt and end it; it printed something."""

    async def attempt() -> None:
        worker = server.worker
        assignment = await worker.take()
        path = f"logs/{assignment.job_id}/{assignment.task_id}/{assignment.attempt}.log"
        server.api.store.put(path, log.encode())
        await worker._end(assignment, kind, log=path, **how)

    server.do(attempt())


def output(**what: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(Output(**what)))


def split_into(server: Server, chunks: int) -> None:
    manifest = file_in(server.api.store, "chunks.parquet", b"the chunks", "")
    done = output(chunks=chunks, manifest=manifest, chunks_sha256="c")
    printed(server, "ok", f"{chunks} chunks\n", output=done)


@contextmanager
def following(*what: str) -> Iterator[Any]:
    """Run a command beside the test, in a process of its own, until it ends by itself."""
    command = [sys.executable, "-m", "service.cli", *what]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding="utf-8") as process:
        try:
            yield process
            process.wait(20)
        finally:
            process.kill()  # else a test that fails waits for it


# --- watch ------------------------------------------------------------------------------------


def test_several_jobs_are_watched_at_once_and_end_in_a_table(
    server: Server, connected: Drayman
) -> None:
    first, second = submitted(connected), submitted(connected)

    async def both() -> None:
        await server.worker.succeed("hello")
        await server.worker.fail("the printer is on fire")

    server.soon(both())

    ran = connected("watch", first, second, first)

    assert ran.code == 1
    rows = {line.split()[0]: line for line in ran.out.splitlines() if line[:2] == first[:2]}
    assert rows.keys() >= {first, second}
    assert "completed" in rows[first]
    assert "the printer is on fire" in rows[second]


def test_one_that_completes_ends_0_with_its_result(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected)
    server.do(server.worker.succeed("hello Ada"))

    ran = connected("watch", job_id)

    assert (ran.code, '"hello Ada"' in ran.out) == (0, True)


def test_json_is_the_events_one_a_line(server: Server, connected: Drayman) -> None:
    with following("watch", submitted(connected), "--json") as process:
        first = process.stdout.readline()
        server.do(server.worker.succeed("hello"))
        rest = process.stdout.readlines()

    events = [json.loads(line) for line in (first, *rest)]
    numbers = [event["seq"] for event in events if event["type"] != "progress"]
    assert process.returncode == 0
    assert (events[0]["type"], events[-1]["type"]) == ("job", "job.completed")
    assert numbers == sorted(set(numbers))


def test_a_failed_attempt_is_told_while_it_goes_on(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected, "greet", "--param", "name=Ada", "--max-attempts", "2")
    with following("watch", job_id) as process:
        first = process.stderr.readline()
        printed(server, "failed", "", error="no paper", cause="error", delay_s=0.0)
        server.do(server.worker.fail("no ink"))
        rest = process.stderr.read()

    assert process.returncode == 1
    assert first.startswith(f"{job_id}  pending (position 0")
    assert f"{job_id}  attempt 1 failed: no paper\n" in rest


def test_a_job_that_is_not_there_ends_2_beside_one_that_is(connected: Drayman) -> None:
    assert connected("watch", submitted(connected), "nope").code == 2


def test_more_than_fifty_are_refused(connected: Drayman) -> None:
    ran = connected("watch", *map(str, range(51)))

    assert (ran.code, "at most 50" in ran.err) == (2, True)


def test_bars_have_chunks_rate_and_name_and_obey_no_job(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected, "test.print")
    other = submitted(connected)
    split_into(server, 3)
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "watch", job_id, other],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "140"},
    ) as process:
        os.close(theirs)
        shown = read_until(ours, b"0 of 3 chunks", f"test.print {job_id[-8:]}".encode(), b"greet")
        connected("cancel", job_id)
        connected("cancel", other)
        assert process.wait(20) == 1
    os.close(ours)
    assert b"pending" in shown


def read_until(terminal: int, *words: bytes) -> bytes:
    """Read a terminal until all the words were on it; return what was."""
    said = b""
    while not all(word in said for word in words):
        said += os.read(terminal, 65536)
    return said


def test_pace_is_what_went_on_lately() -> None:
    pace = Pace()
    assert (pace.rate, pace.left_s(10)) == (0.0, None)

    for second in range(60):
        pace.note(second, 0 if second < 30 else (second - 30) * 2)

    assert pace.rate == pytest.approx(2, rel=0.05)
    assert pace.left_s(78) == pytest.approx(10, rel=0.05)
    pace.note(60, 0)  # it was begun anew
    assert (pace.rate, pace.left_s(10)) == (0.0, None)


# --- what comes from jobs ---------------------------------------------------------------------


def test_what_a_terminal_would_obey_is_only_shown() -> None:
    assert plain("a\tb\nc") == "a\tb\nc"
    assert plain(NASTY) == "␛]0;owned␇␛[2J<b>[red]\ufffdtxt"
    assert plain("\x9b\x7f\r") == "\ufffd␡␍"


def test_an_error_with_control_characters_obeys_nobody(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected)
    server.do(server.worker.fail(NASTY))

    said = [connected(*what) for what in (("watch", job_id), ("status", job_id), ("top", "--once"))]
    said.append(connected("dead-letters"))

    for ran in said:
        own = "".join(line for line in ran.out.splitlines(keepends=True) if "[warn" not in line)
        assert "␛]0;owned" in own
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", own + ran.err)


# --- logs -------------------------------------------------------------------------------------


def test_logs_are_followed_over_attempts_each_once(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected, "greet", "--param", "name=Ada", "--max-attempts", "2")
    printed(server, "failed", "first\n", error="no paper", cause="error", delay_s=0.0)
    with following("logs", job_id, "-f") as process:
        first = process.stdout.readline()
        printed(server, "ok", f"second {NASTY}\n", output=output(result=msgspec.Raw(b"1")))
        rest = process.stdout.read()

    assert (process.returncode, first) == (0, "first\n")
    assert rest == f"second {NASTY}\n"  # a pipe gets it as it was


TWO = {
    "steps": [
        {"name": "one", "type": "greet", "params": {"name": "Ada"}, "max_attempts": 2},
        {"name": "two", "type": "greet", "params": {"name": "Bob"}, "after": ["one"]},
    ]
}


def test_lines_of_a_workflow_are_labelled_with_their_task(
    server: Server, connected: Drayman, tmp_path: Path
) -> None:
    (tmp_path / "steps.json").write_text(json.dumps(TWO))
    job_id = connected("workflow", str(tmp_path / "steps.json")).out.strip()
    done = output(result=msgspec.Raw(b"1"))
    printed(server, "failed", "jam\n", error="jam", cause="error", delay_s=0.0)
    with following("logs", job_id, "-f") as process:
        first = process.stdout.readline()
        printed(server, "ok", "a\nb", output=done)
        printed(server, "ok", "c\n", output=done)
        rest = process.stdout.read().splitlines()
    after = connected("logs", job_id, "-f", "--task", "two")

    assert (process.returncode, first) == (0, "[one] jam\n")
    assert rest == ["[one attempt 2] a", "[one attempt 2] b", "[two] c"]
    assert after.out == "[two] c\n"
    assert connected("logs", job_id, "--task", "two").out == "c\n"


def test_why_a_chunk_failed_is_in_the_log_as_it_fails(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected, "test.print")
    split_into(server, 2)
    with following("logs", job_id, "-f") as process:
        first = process.stdout.readline()
        printed(server, "failed", "jam\n", error="jam", cause="error", delay_s=60.0)
        second = process.stdout.readline()
        connected("cancel", job_id)
        rest = process.stdout.read()

    assert (first, second, rest) == ("[split] 2 chunks\n", "[0] jam\n", "")
    assert process.returncode == 0


def test_a_log_is_followed_or_json(connected: Drayman) -> None:
    assert connected("logs", "x", "-f", "--json").code == 2


# --- top --------------------------------------------------------------------------------------


def test_top_shows_queues_pools_jobs_and_failures(server: Server, connected: Drayman) -> None:
    failed = submitted(connected)
    server.do(server.worker.fail("on fire"))
    running = submitted(connected, "test.print")
    split_into(server, 3)
    later = submitted(connected, "greet", "--param", "name=Bob", "--delay", "1h")

    ran = connected("--token", server.token("ops", "admin"), "top", "--once")

    assert ran.code == 0, ran.err
    assert re.search(r"^default +3 +0 +0 +1 +1 ", ran.out, re.MULTILINE)
    assert re.search(r"^cpu +1 +0 ", ran.out, re.MULTILINE)
    assert re.search(rf"{running[-8:]} +test.print .* 0 of 3 chunks", ran.out)
    assert re.search(rf"{failed[-8:]} +greet .*error +on fire", ran.out)
    assert later[-8:] not in ran.out


def test_top_as_json_is_what_the_api_says(connected: Drayman) -> None:
    shown = json.loads(connected("top", "--json").out)

    assert shown.keys() == {"overview", "queues", "workers", "running", "failed"}
    assert shown["workers"] is None  # for admins


def test_top_on_a_terminal_is_drawn_again_until_it_is_interrupted(connected: Drayman) -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "top"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    ) as process:
        os.close(theirs)
        read_until(ours, b"running jobs")
        read_until(ours, b"running jobs")
        process.terminate()
        while b"\x1b[?1049l" not in (left := os.read(ours, 65536)):  # the screen it came from
            assert left
        assert process.wait(20) == 0
    os.close(ours)
