"""Workflows, tasks and lineage on the command line and in the client, against a real server."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from cluster.protocol import FileInfo, InputInfo, Output
from jobs.context import Context
from jobs.definition import JobDefinition
from jobs.fan_out import fan_out
from jobs.registry import Registry
from jobs.results import Results
from jobs.workflow import workflow
from service.client import ApiError, Client
from tests.cli.conftest import Drayman, Ran, Server
from tests.support import api as support
from tests.support.api import file_in


class Pages(BaseModel):
    """Params of the types below."""

    count: int = 3


def split(ctx: Context, params: Pages) -> list[int]:
    return list(range(params.count))


def bind(ctx: Context, params: Pages, results: Results[int]) -> int:
    return len(results)


@fan_out("test.print", split=split, join=bind, max_attempts=2)
def print_page(ctx: Context, params: Pages, chunk: int) -> int:
    """Print a page."""
    return chunk


BOOK = workflow("test.book", Pages)
_printed = BOOK.step("print", print_page)
BOOK.step("read", "greet", {"name": "Ada"}, after=[_printed])
TYPES: list[JobDefinition] = [print_page, BOOK]

PAGE = b"once upon a time" * 100


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that knows the types of this file too."""
    monkeypatch.setattr(support, "Registry", lambda found: Registry([*found, *TYPES]))
    server = Server()
    server.start()
    yield server
    server.stop()


def end(server: Server, output: Output, kind: str = "ok", **how: Any) -> None:
    """Take the next attempt and end it with all that a worker tells of it."""

    async def attempt() -> None:
        worker = server.worker
        raw = msgspec.Raw(msgspec.json.encode(output))
        await worker._end(await worker.take(), kind, output=raw, **how)

    server.do(attempt())


def split_into(server: Server, chunks: int) -> None:
    """Take the split of a fan-out and end it with so many chunks."""
    manifest = file_in(server.api.store, "chunks.parquet", b"the chunks", "")
    end(server, Output(chunks=chunks, manifest=manifest, chunks_sha256="c"))


def chunk_done(server: Server, index: int) -> None:
    """Take the next chunk; it read an upload and kept a page."""
    kept = file_in(server.api.store, "page.txt", PAGE, "text/plain")
    read = InputInfo("upload:pages.txt", "5" * 64, 99)
    end(server, Output(msgspec.Raw(b"%d" % index), files=[kept], inputs=[read], params="f" * 16))


def submitted(connected: Drayman, *what: str) -> str:
    ran = connected(*what)
    assert ran.code == 0, ran.err
    return ran.out.strip()


def steps_file(folder: Path, body: Any) -> str:
    path = folder / "steps.json"
    path.write_text(json.dumps(body))
    return str(path)


TWO = [
    {"name": "first", "type": "greet", "params": {"name": "Ada"}},
    {"name": "then", "type": "greet", "params": {"name": {"$result": "first"}}},
]

# --- workflow ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["object", "list", "stdin"])
def test_a_workflow_is_submitted_from_a_file_or_stdin(
    connected: Drayman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    body: Any = TWO if how == "list" else {"steps": TWO, "labels": {"team": "ads"}}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(body)))
    where = "-" if how == "stdin" else steps_file(tmp_path, body)

    job_id = submitted(connected, "workflow", where)

    shown = json.loads(connected("status", job_id, "--json").out)
    assert [step["name"] for step in shown["steps"]] == ["first", "then"]
    assert shown["labels"] == ({} if how == "list" else {"team": "ads"})


def test_a_workflow_that_is_waited_for_shows_its_steps(
    server: Server, connected: Drayman, tmp_path: Path
) -> None:
    async def both() -> None:
        await server.worker.succeed("Ada")
        await server.worker.succeed("hello Ada")

    submitted(connected, "workflow", steps_file(tmp_path, TWO), "--key", "w1")
    server.soon(both())

    ran = connected("workflow", steps_file(tmp_path, TWO), "--key", "w1", "--wait")

    assert ran.code == 0, ran.err
    assert "step first  succeeded (greet)" in ran.out
    assert '"hello Ada"' in ran.out


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"name": "x"}, "steps"),
        ({"steps": {}}, "steps"),
        ([1], "steps"),
        ({"steps": TWO, "key": "k"}, "--key"),
    ],
)
def test_a_file_that_is_no_workflow_ends_2(
    connected: Drayman, tmp_path: Path, body: Any, told: str
) -> None:
    ran = connected("workflow", steps_file(tmp_path, body))

    assert (ran.code, told in ran.err) == (2, True)


def test_a_workflow_that_cannot_be_read_ends_2(connected: Drayman, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")

    for name in ("bad.json", "binary.json", "none.json"):
        assert connected("workflow", str(tmp_path / name)).code == 2


def test_a_refused_workflow_names_the_place(connected: Drayman, tmp_path: Path) -> None:
    steps = [{"name": "a", "type": "nope"}, {"name": "b", "type": "greet", "after": ["c"]}]

    ran = connected("workflow", steps_file(tmp_path, {"steps": steps}))

    assert (ran.code, "steps.1.after.0" in ran.err) == (2, True)


# --- steps and progress -----------------------------------------------------------------------


def test_status_shows_steps_and_chunks(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected, "submit", "test.book")
    split_into(server, 3)
    chunk_done(server, 0)
    end(server, Output(), "discarded", error="no ink")

    ran = connected("status", job_id)

    assert "step print  failed (test.print, 1 of 3 chunks, 1 failed)" in ran.out
    assert "step read   not started (greet, after print)" in ran.out
    assert "of all its tasks" in ran.out


def test_status_of_a_fan_out_shows_its_chunks(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected, "submit", "test.print")
    split_into(server, 3)
    chunk_done(server, 0)

    ran = connected("status", job_id)

    assert "processing (33% 1 of 3 chunks)" in ran.out
    assert "fan-out    running (test.print, 1 of 3 chunks)" in ran.out


def test_watch_on_a_terminal_has_a_bar_for_each_step_that_runs(
    server: Server, connected: Drayman
) -> None:
    job_id = submitted(connected, "submit", "test.book")
    split_into(server, 3)
    chunk_done(server, 0)
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "watch", job_id],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(theirs)
        shown = read_until(ours, b"1 of 3 chunks", b"running", b"print")
        connected("cancel", job_id)
        assert process.wait(20) == 1
    os.close(ours)

    assert shown.count(b"1 of 3 chunks") >= 2  # in the bar of the job, and in that of its step


def read_until(terminal: int, *words: bytes) -> bytes:
    """Read a terminal until all the words were on it; return what was."""
    said = b""
    while not all(word in said for word in words):
        said += os.read(terminal, 65536)
    return said


# --- tasks ------------------------------------------------------------------------------------


@pytest.fixture
def printed(server: Server, connected: Drayman) -> str:
    """A fan-out of 30 chunks: 25 done, one of them at the second try, one failed for good."""
    job_id = submitted(connected, "submit", "test.print")
    split_into(server, 30)
    chunk_done(server, 0)
    end(server, Output(), "failed", error="no paper", cause="error", delay_s=0.0)
    for index in range(2, 25):
        chunk_done(server, index)
    return job_id


def test_tasks_come_in_a_table_a_page_at_a_time(connected: Drayman, printed: str) -> None:
    first = connected("tasks", printed, "--limit", "4")
    rest = connected("tasks", printed, "--after", "4")

    assert [line.split()[0] for line in first.out.splitlines()] == ["TASK", "split", "0", "1", "2"]
    assert f"drayman tasks {printed} --after 4" in first.err
    assert [line.split()[0] for line in rest.out.splitlines()[1:]] == [
        *map(str, range(3, 30)),
        *(["join"] if "join" in rest.out else []),
    ]
    assert rest.err == ""


def test_only_failed_tasks_are_listed_if_asked(connected: Drayman, printed: str) -> None:
    ran = connected("tasks", printed, "--failed", "--json")

    [task] = json.loads(ran.out)
    assert (task["task_id"], task["error"]) == ("1", "no paper")
    assert "no paper" in connected("tasks", printed, "--failed").out


def test_tasks_of_a_job_that_is_not_there_end_2(connected: Drayman) -> None:
    for command in ("tasks", "lineage"):
        assert connected(command, "nope").code == 2


def test_what_a_failed_job_left_is_told_in_a_persons_words(
    server: Server, connected: Drayman
) -> None:
    job_id = submitted(connected, "submit", "test.book")
    split_into(server, 1)
    end(server, Output(), "discarded", error="no ink")

    table = {line.split("  ")[0]: line for line in connected("tasks", job_id).out.splitlines()}
    tree = lines(connected("lineage", job_id))

    assert "failed" in table["print.0"]
    assert "not started" in table["read"]
    assert any(line.startswith("print.0  failed  ") for line in tree)
    assert any(line.startswith("read  not started (greet, after print)") for line in tree)


def test_files_of_tasks_are_downloaded_by_their_uris(
    connected: Drayman, printed: str, tmp_path: Path
) -> None:
    uris = [f"output:{printed}/{index}/page.txt" for index in (0, 2)]
    one = connected("download", uris[0], "--to", str(tmp_path / "one"))
    both = connected("download", *uris, "--to", str(tmp_path / "both"))
    missing = connected("download", f"output:{printed}/0/other.txt", "--to", str(tmp_path / "no"))
    nowhere = connected("download", uris[0], "--to", "/proc/none")

    assert one.out.splitlines() == [str(tmp_path / "one" / "page.txt")]
    assert (tmp_path / "one" / "page.txt").read_bytes() == PAGE
    folders = [tmp_path / "both" / printed / task for task in "02"]
    assert both.out.splitlines() == [str(folder / "page.txt") for folder in folders]
    assert missing.code == 2
    assert (nowhere.code, nowhere.out) == (2, "")
    assert "can't save in /proc/none: No such file or directory" in nowhere.err


@pytest.mark.parametrize("uri", ["upload:a.txt", "output:job/0", "output:../0/a", "output:j/../a"])
def test_what_names_no_file_of_a_task_is_not_downloaded(drayman: Drayman, uri: str) -> None:
    ran = drayman("download", uri)

    assert (ran.code, "output:JOB/TASK/NAME" in ran.err) == (2, True)


# --- lineage ----------------------------------------------------------------------------------


def lines(ran: Ran) -> list[str]:
    """The lines of a tree without its branches."""
    assert ran.code == 0, ran.err
    return [line.lstrip("│├└─ ") for line in ran.out.splitlines()]


def test_lineage_folds_chunks_and_shows_those_that_stand_out(
    connected: Drayman, printed: str
) -> None:
    tree = lines(connected("lineage", printed))

    assert tree[0].startswith(f"{printed}  test.print  processing  24 of 30 chunks")
    tasks = [line.split()[0] for line in tree if "  attempt" in line or " attempt" in line]
    assert tasks == ["split", "1"]
    assert "error: no paper" in tree
    [count] = [line for line in tree if "more chunks" in line]
    assert count.startswith("29 more chunks: 24 succeeded, 5 ")
    assert "kept page.txt" not in " ".join(tree)


def test_lineage_shows_everything_if_asked(connected: Drayman, printed: str) -> None:
    tree = lines(connected("lineage", printed, "--all"))

    assert sum(line.startswith("kept page.txt  1,600 bytes  ") for line in tree) == 24
    assert sum(line == "from upload:pages.txt  99 bytes  555555555555" for line in tree) == 24
    assert not any("more chunks" in line for line in tree)


def test_lineage_names_the_task_that_made_an_input(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected, "submit", "test.print")
    split_into(server, 1)
    chunk_done(server, 0)
    inputs = [
        InputInfo(f"output:{job_id}/0/page.txt", "a" * 64, len(PAGE), 2),
        InputInfo("output:other-job/join/all.txt", "b" * 64, 5, 1),
        InputInfo("s3://bucket/big.parquet", "", 10_000_000),
    ]
    book = FileInfo("book.txt", "results/book", 7, "d" * 64)
    output = Output(msgspec.Raw(b'{"pages":1}'), files=[book], inputs=inputs, params="e" * 16)
    end(server, output)

    tree = lines(connected("lineage", job_id))

    join = next(n for n, line in enumerate(tree) if line.startswith("join  succeeded"))
    assert "1 attempt" in tree[join]
    assert "on scripted" in tree[join]
    assert "params eeeeeeeeeeee" in tree[join]
    assert tree[join + 1 :] == [
        "from 0 (attempt 2): page.txt  1,600 bytes  aaaaaaaaaaaa",
        "from job other-job, join (attempt 1): all.txt  5 bytes  bbbbbbbbbbbb",
        "from s3://bucket/big.parquet  10,000,000 bytes",
        "kept book.txt  7 bytes  dddddddddddd",
        'returned {"pages": 1}',
    ]


def test_lineage_of_a_workflow_has_its_steps_as_branches(
    server: Server, connected: Drayman
) -> None:
    job_id = submitted(connected, "submit", "test.book")
    split_into(server, 1)
    chunk_done(server, 0)

    tree = lines(connected("lineage", job_id))

    heads = [line for line in tree if line.startswith(("print ", "read  "))]
    assert heads[0] == "print  running (test.print, 1 of 1 chunks)"
    assert heads[1] == "read  waiting (greet, after print)"
    assert any(line.startswith("print.0  succeeded  1 attempt") for line in tree)


def test_lineage_of_a_plain_job_is_one_task(server: Server, connected: Drayman) -> None:
    job_id = submitted(connected, "submit", "greet", "--param", "name=[b]Ada[/b]")
    server.do(server.worker.succeed("hello [b]Ada[/b]"))

    tree = lines(connected("lineage", job_id))

    assert len(tree) == 3
    assert tree[1].startswith("0  succeeded  1 attempt")
    assert tree[2] == 'returned "hello [b]Ada[/b]"'


def test_lineage_as_json_is_every_task(connected: Drayman, printed: str) -> None:
    tasks = json.loads(connected("lineage", printed, "--json").out)

    assert [task["task_id"] for task in tasks][:31] == ["split", *map(str, range(30))]


# --- the client -------------------------------------------------------------------------------


def test_the_client_walks_tasks_and_saves_their_files(
    server: Server,
    connected: Drayman,
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.client.jobs.TASKS_PAGE", 7)
    with Client(server.url, server.token()) as client:
        everything = list(client.tasks(printed))
        some = list(client.tasks(printed, after=3, limit=9))
        saved = client.task_file(printed, "0", "page.txt", tmp_path / "by name")
        same = client.download(everything[1]["files"][0], tmp_path / "by record")
        with pytest.raises(ApiError) as refused:
            client.task_file(printed, "0", "other.txt", tmp_path)

    assert [task["task_id"] for task in everything][:31] == ["split", *map(str, range(30))]
    assert [task["task_id"] for task in some] == [str(n) for n in range(2, 11)]
    assert saved.read_bytes() == same.read_bytes() == PAGE
    assert refused.value.kind == "not-found"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by name", "by record"]


def test_the_client_submits_a_workflow_once_for_a_key(server: Server) -> None:
    with Client(server.url, server.token()) as client:
        first = client.workflow(TWO, key="w1", name="test.two")
        again = client.workflow(TWO, key="w1", name="test.two")
        other = client.workflow(TWO)

    assert first["id"] == again["id"] != other["id"]
    assert first["type"] == "test.two"
