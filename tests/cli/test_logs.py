"""`logs -f` while attempts run."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.protocol import Assignment
from service.cli_watch import SEEN_CHARS, _new_in
from tests.cli.conftest import Drayman, Server
from tests.cli.test_watch import TWO, following, output, submitted

DONE = output(result=msgspec.Raw(b"1"))


def so_far(server: Server, of: Assignment, text: str) -> str:
    """Store what an attempt printed until now, as its worker does."""
    path = f"logs/{of.job_id}/{of.task_id}/{of.attempt}.log"
    server.api.store.put(path, text.encode())
    return path


def taken(server: Server) -> Assignment:
    """Take the next attempt as soon as there is one."""

    async def attempt() -> Assignment:
        async with asyncio.timeout(15):
            while True:
                with contextlib.suppress(ValueError):  # none was ready in time
                    return await server.worker.take()

    found: Assignment = server.do(attempt())
    return found


def end(server: Server, of: Assignment, kind: str, **how: Any) -> None:
    server.do(server.worker._end(of, kind, **how))


def test_what_a_running_attempt_prints_comes_line_by_line_and_once(
    server: Server, connected: Drayman
) -> None:
    job_id = submitted(connected, "greet", "--param", "name=Ada", "--max-attempts", "2")
    first = taken(server)
    log = so_far(server, first, "one\n")
    with following("logs", job_id, "-f") as process:
        lines = [process.stdout.readline()]
        so_far(server, first, "one\ntwo\n")
        lines.append(process.stdout.readline())
        end(server, first, "failed", error="jam", cause="error", delay_s=0.0, log=log)
        second = taken(server)
        so_far(server, second, "three\n")
        lines.append(process.stdout.readline())
        so_far(server, second, "three\nfour")
        end(server, second, "ok", output=DONE, log=log.replace("1.log", "2.log"))
        rest = process.stdout.read()

    assert lines == ["one\n", "two\n", "three\n"]
    assert (rest, process.returncode) == ("four", 0)


def test_a_task_that_runs_is_named_before_its_lines(
    server: Server, connected: Drayman, tmp_path: Path
) -> None:
    (tmp_path / "steps.json").write_text(json.dumps(TWO))
    job_id = connected("workflow", str(tmp_path / "steps.json")).out.strip()
    one = taken(server)
    so_far(server, one, "a\n")
    with following("logs", job_id, "-f") as process:
        lines = [process.stdout.readline()]
        log = so_far(server, one, "a\nb\n")
        end(server, one, "ok", output=DONE, log=log)
        two = taken(server)
        so_far(server, two, "c\n")
        lines += [process.stdout.readline(), process.stdout.readline()]
        connected("cancel", job_id)
        end(server, two, "stopped", cause="cancel")
        rest = process.stdout.read()

    assert lines == ["[one] a\n", "[one] b\n", "[two] c\n"]
    assert (rest, process.returncode) == ("", 0)


def test_without_follow_it_is_what_there_is_now(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected)
    attempt = taken(server)
    before = connected("logs", job_id)
    so_far(server, attempt, "half\n")

    now = connected("logs", job_id)

    assert (before.out, now.out) == ("", "half\n")


HEAD, TAIL = "head\n" * 1000, "".join(f"{number}\n" for number in range(SEEN_CHARS))


@pytest.mark.parametrize(
    ("before", "log", "new"),
    [
        ("", "a\n", "a\n"),
        ("a\n", "a\n", ""),
        ("a\n", "a\nb\n", "b\n"),
        ("key: s3cret\n" + TAIL, "key: ***\n" + TAIL + "b\n", "b\n"),
        (HEAD + TAIL, HEAD + "... 9 bytes left out ...\n" + TAIL[99:] + "b\n", "b\n"),
        (
            HEAD + TAIL,
            HEAD + "... 9 bytes left out ...\nmuch later\n",
            "... 9 bytes left out ...\nmuch later\n",
        ),
    ],
    ids=["first", "same", "more", "masked later", "cut", "cut far behind"],
)
def test_only_what_is_new_in_a_log_is_printed(before: str, log: str, new: str) -> None:
    assert _new_in(log, before) == new
