"""What the command line says of stores: `doctor --store`, and `up` on one that can't be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.code import Deployed
from cluster.store.identity import open_identity
from cluster.store.journal import Journal
from cluster.store.objects import LocalObjects
from cluster.store.segment import Rows, SegmentHeader
from service.runfile import RunFolder
from tests.cli.conftest import Drayman

#: Port 9 (discard) has no server on any machine that runs tests.
UNREACHABLE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_REGION": "us-east-1",
}


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in UNREACHABLE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def store(tmp_path: Path) -> LocalObjects:
    """A store with one segment."""
    objects = LocalObjects(tmp_path / "store")
    journal_id = open_identity(objects, objects).journal_id
    header = SegmentHeader(number=1, epoch=1, nonce="n", journal_id=journal_id, first_seq=1, rows=1)
    rows = Rows(
        [1], [1.7e9], ["manager_started"], [""], [None], [None], [None],
        [b'{"epoch":1,"cluster_id":"here"}'],
    )  # fmt: skip
    Journal(objects).append(header, rows)
    return objects


def test_doctor_reads_a_store_and_ends_0_if_it_is_whole(
    store: LocalObjects, drayman: Drayman, tmp_path: Path
) -> None:
    ran = drayman("doctor", "--store", str(tmp_path / "store"), "--json")

    assert ran.code == 0, ran.err
    found = {finding["check"]: finding for finding in json.loads(ran.out)}
    segment = found["journal/00000000000000000001.parquet"]
    assert (segment["level"], segment["facts"]["rows"]) == ("ok", 1)
    assert found["owner"]["facts"]["cluster_id"] == "here"


def test_doctor_ends_1_where_a_store_is_damaged(
    store: LocalObjects, drayman: Drayman, tmp_path: Path
) -> None:
    store.put("journal/notes.txt", b"?")

    ran = drayman("doctor", "--store", str(tmp_path / "store"))

    assert ran.code == 1, ran.err
    assert "wrong journal/notes.txt: foreign file" in ran.out


@pytest.mark.parametrize(
    ("store", "code", "reason"),
    [
        ("{tmp}/none", 2, "is no folder"),
        ("ftp://somewhere", 2, "unknown scheme"),
        ("s3://bucket", 1, "cannot list 'journal/'"),
    ],
)
def test_doctor_says_why_it_can_not_read_a_store(
    unreachable: None, drayman: Drayman, tmp_path: Path, store: str, code: int, reason: str
) -> None:
    given = store.replace("{tmp}", str(tmp_path))

    ran = drayman("doctor", "--store", given)

    assert (ran.code, "Traceback" in ran.err) == (code, False), ran
    assert reason in ran.out + ran.err


@pytest.mark.parametrize(
    ("store", "code", "reason"),
    [
        ("{tmp}/file/store", 2, "file/store can't be made: File exists"),
        ("{tmp}/file", 2, "file can't be made: File exists"),
        ("/proc/none/store", 2, "/proc/none/store can't be made: No such file or directory"),
        ("s3://bucket", 1, "cannot create 'store/probe-"),
        ("ftp://somewhere", 2, "unknown scheme"),
    ],
)
def test_up_refuses_a_store_it_can_not_use_before_it_starts_anything(
    unreachable: None, drayman: Drayman, tmp_path: Path, store: str, code: int, reason: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    given = store.replace("{tmp}", str(tmp_path))

    ran = drayman("up", "--store", given)

    assert (ran.code, "Traceback" in ran.err) == (code, False), ran
    assert reason in ran.err


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("mine.py", "name a module, not a file: mine"),
        ("jobs", "'jobs' is Python's or Drayman's own name; rename yours"),
        ("queue", "'queue' is Python's or Drayman's own name; rename yours"),
        ("no such", "'no such' is no name of a module; write it as in import"),
    ],
)
def test_up_refuses_what_is_no_module_of_a_users(
    drayman: Drayman, module: str, reason: str
) -> None:
    ran = drayman("up", "--jobs", module)

    assert (ran.code, reason in ran.err) == (2, True), ran


@pytest.mark.parametrize("hiding", ["jobs.py", "service/__init__.py"])
def test_up_refuses_a_folder_whose_modules_hide_its_own(
    drayman: Drayman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hiding: str
) -> None:
    (tmp_path / hiding).parent.mkdir(exist_ok=True)
    (tmp_path / hiding).write_text("")
    monkeypatch.chdir(tmp_path)

    ran = drayman("up", "--port", "8999")

    assert ran.code == 2, ran
    assert f"{tmp_path / hiding} hides Drayman's own package" in ran.err


def test_up_says_which_types_run_code_that_was_deployed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from jobs import job\nfrom pydantic import BaseModel as Params\n\n"
        "@job('mine.one')\ndef one(ctx, params: Params) -> str: ...\n"
    )
    Deployed(LocalObjects(tmp_path / "store")).deploy("ab" * 32, ["mine.one", "mine.other"])
    up = ("up", "--jobs", "mine", "--store", str(tmp_path / "store"), "--port", "8999")

    # The lock is held, so that it ends before it starts anything.
    with RunFolder(tmp_path / "home").lock(8999):
        ran = subprocess.run(
            [str(Path(sys.executable).parent / "drayman"), *up],
            cwd=tmp_path,
            env=os.environ | {"DRAYMAN_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert ran.returncode == 2, ran
    assert "mine.one runs the code that was deployed (abababababab), not that of" in ran.stderr
    assert "mine.other" not in ran.stderr


@pytest.mark.parametrize("command", [("up", "--port", "8999"), ("down",), ("doctor",)])
def test_a_home_that_can_not_be_made_is_named_by_every_command_that_needs_it(
    drayman: Drayman, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DRAYMAN_HOME", "/proc/none")

    ran = drayman(*command)

    assert ran.code == 2, ran
    assert "DRAYMAN_HOME: the folder /proc/none/" in ran.err


def test_a_demo_says_that_its_folder_can_not_be_made(drayman: Drayman) -> None:
    ran = drayman("demo", "--folder", "/proc/none")

    assert ran.code == 2, ran
    assert "folder: /proc/none/tables can't be made: No such file or directory" in ran.err


def test_sql_prints_rows_as_a_table_json_and_csv(
    store: LocalObjects, drayman: Drayman, tmp_path: Path
) -> None:
    query = "select 'a' as x, 1.5 as y, count(*) as jobs from jobs"
    where = ("--store", str(tmp_path / "store"))

    table = drayman("sql", query, *where)
    as_json = drayman("sql", query, *where, "--json")
    as_csv = drayman("sql", query, *where, "--format", "csv")

    assert (table.code, as_json.code, as_csv.code) == (0, 0, 0), table.err
    assert [line.split() for line in table.out.splitlines()] == [
        ["x", "y", "jobs"],
        ["a", "1.5", "0"],
    ]
    assert json.loads(as_json.out) == [{"x": "a", "y": 1.5, "jobs": 0}]
    assert as_csv.out == "x,y,jobs\na,1.5,0\n"


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        ("1 month", "P1M"),
        ("-1 month", "P-1M"),
        ("14 months 3 days 4 hours 5.5 seconds", "P1Y2M3DT14405.5S"),
        ("1 month -1 day -1 hour", "P1M-1DT-3600S"),
        ("2 years", "P2Y"),
    ],
)
def test_sql_shows_an_interval_with_months_as_what_it_is(
    store: LocalObjects, drayman: Drayman, tmp_path: Path, interval: str, shown: str
) -> None:
    query = f"select interval '{interval}' as one, [interval '{interval}'] as many"
    where = ("--store", str(tmp_path / "store"), "--history-only")

    table = drayman("sql", query, *where)
    as_json = drayman("sql", query, *where, "--json")
    as_csv = drayman("sql", query, *where, "--format", "csv")

    assert table.out.splitlines()[1].split() == [shown, f'["{shown}"]']
    assert json.loads(as_json.out) == [{"one": shown, "many": [shown]}]
    assert as_csv.out == f'one,many\n{shown},"[""{shown}""]"\n'


def test_sql_shows_a_span_between_two_moments_as_before(
    store: LocalObjects, drayman: Drayman, tmp_path: Path
) -> None:
    query = "select timestamp '2026-01-03 02:00' - timestamp '2026-01-01' as x"
    where = ("--store", str(tmp_path / "store"), "--history-only")

    assert "2 days, 2:00:00" in drayman("sql", query, *where).out
    assert json.loads(drayman("sql", query, *where, "--json").out) == [{"x": "P2DT7200S"}]


def test_sql_ends_2_where_the_query_is_wrong(
    store: LocalObjects, drayman: Drayman, tmp_path: Path
) -> None:
    ran = drayman("sql", "select colour from jobs", "--store", str(tmp_path / "store"))

    assert (ran.code, ran.out) == (2, "")
    assert "colour" in ran.err

    twice = drayman("sql", "select 1 a, 2 a", "--store", str(tmp_path / "store"), "--json")

    assert (twice.code, "column 'a' stands twice" in twice.err) == (2, True)


def test_sql_without_a_store_says_how_to_name_one(drayman: Drayman) -> None:
    ran = drayman("sql", "select 1")

    assert ran.code in (2, 3)
    assert "--store" in ran.err
