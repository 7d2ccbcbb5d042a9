"""`table.export`: every row once and in order, whatever the chunks; SQL never in pieces."""

import csv
import datetime as dt
import decimal
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.library.table_export import ExportParams, table_export
from jobs.library.table_import import table_import
from jobs.outcome import Discard
from jobs.testing import Finished, run, run_chunk


def exported(source: Any, **params: Any) -> Finished:
    return run(table_export, {"source": source, **params})


def parquet(path: Path, rows: Any, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.table(rows), path, **options)
    return str(path)


def one_file(finished: Finished) -> bytes:
    assert finished.error is None, finished.error
    (data,) = finished.files.values()
    assert len(data) == finished.result["bytes"]
    return data


def by_duckdb(query: str) -> list[tuple[Any, ...]]:
    return duckdb.connect().execute(query).fetchall()


def test_a_year_of_flights_is_exported_row_by_row(tables: dict[str, str], tmp_path: Path) -> None:
    flights = pq.read_table(tables["flights"])
    path = parquet(tmp_path / "flights.parquet", flights, row_group_size=20_000)
    names = ["carrier", "flight", "dep_time", "time_hour"]

    finished = exported(
        path,
        columns=names,
        where=[
            {"column": "month", "op": "in", "value": [1, 2]},
            {"column": "dep_delay", "op": ">=", "value": 60},
            {"column": "time_hour", "op": "<", "value": "2013-02-15"},
        ],
        rows_per_chunk=50_000,
        format="parquet",
    )

    assert len(finished.chunks) > 5
    assert pq.read_table(io.BytesIO(one_file(finished))).equals(
        pq.read_table(
            path,
            filters=(pa.compute.field("month").isin([1, 2]))
            & (pa.compute.field("dep_delay") >= 60)
            & (pa.compute.field("time_hour") < pa.scalar(dt.datetime(2013, 2, 15, tzinfo=dt.UTC))),
        ).select(names)
    )
    assert (
        finished.result["rows"]
        == by_duckdb(
            f"SELECT count(*) FROM '{path}' WHERE month IN (1, 2) AND dep_delay >= 60"
            " AND epoch(time_hour) < epoch(TIMESTAMP '2013-02-15')"
        )[0][0]
    )


def test_what_is_exported_as_csv_is_imported_as_it_was(
    tables: dict[str, str], tmp_path: Path
) -> None:
    names = ["year", "carrier", "tailnum", "dep_time", "time_hour"]
    kinds = ["int32", "string", "string", "int32", "timestamp(ms, UTC)"]

    finished = exported(tables["flights"], columns=names, gzip=True, rows_per_chunk=100_000)
    back = run(
        table_import,
        {
            "source": "upload:flights.csv.gz",
            "columns": [{"name": n, "type": k} for n, k in zip(names, kinds, strict=True)],
            "text_nulls": True,
            "into": str(tmp_path),
            "chunk_bytes": 4 << 20,
        },
        files={"upload:flights.csv.gz": one_file(finished)},
    )

    assert back.result["rows_written"] == 336_776
    was = pq.read_table(tables["flights"], columns=names)
    assert pq.read_table(tmp_path).cast(was.schema).equals(was)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parquet(tmp_path / "all/k=b/2.parquet", {"n": [3, None], "t": ["x,y", 'say "hi"']})
    parquet(tmp_path / "all/k=a/1.parquet", {"n": [1, 2], "t": ["", None]}, row_group_size=1)
    (tmp_path / "all/_SUCCESS").touch()
    (tmp_path / "all/k=a/.half.parquet").touch()
    return tmp_path / "all"


CSV = 'n,t,k\n1,"",a\n2,,a\n3,"x,y",b\n,"say ""hi""",b\n'


@pytest.mark.parametrize("rows_per_chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("form", ["{0}", "{0}/", "file://{0}", "{0}/*/*.parquet", "{0}/**"])
def test_csv_has_one_header_and_the_files_in_order(
    form: str, rows_per_chunk: int, folder: Path
) -> None:
    finished = exported(form.format(folder), rows_per_chunk=rows_per_chunk)

    assert (
        one_file(finished)
        .decode()
        .replace('"n","t","k"', "n,t,k")
        .replace('"a"', "a")
        .replace('"b"', "b")
        == CSV
    )


def test_gzip_of_parts_is_one_file(folder: Path) -> None:
    plain = exported(str(folder), rows_per_chunk=1)
    packed = exported(str(folder), rows_per_chunk=1, gzip=True)

    assert list(packed.files) == ["export.csv.gz"]
    assert gzip.decompress(one_file(packed)) == one_file(plain)


def test_ndjson_holds_every_type(tmp_path: Path) -> None:
    moment = dt.datetime(2013, 1, 2, 3, 4, 5, 6)
    rows = {
        "i": pa.array([1, None]),
        "f": pa.array([1.5, float("nan")]),
        "s": pa.array(["é\n", ""]),
        "d": pa.array([dt.date(2013, 1, 2), None]),
        "t": pa.array([moment, None], pa.timestamp("us", "UTC")),
        "n": pa.array([1357095845000000006, None], pa.timestamp("ns")),
        "p": pa.array([decimal.Decimal("1.50"), None]),
        "l": pa.array([[1, 2], None]),
        "o": pa.array([{"x": 1}, None]),
        "c": pa.array(["r", "r"]).dictionary_encode(),
    }

    finished = exported(parquet(tmp_path / "x.parquet", rows), format="ndjson")

    first, second = map(json.loads, one_file(finished).splitlines())
    assert first == {
        "i": 1,
        "f": 1.5,
        "s": "é\n",
        "d": "2013-01-02",
        "t": "2013-01-02T03:04:05.000006Z",
        "n": "2013-01-02 03:04:05.000000006",
        "p": "1.50",
        "l": [1, 2],
        "o": {"x": 1},
        "c": "r",
    }
    assert set(second.values()) == {None, "", "r"}


def test_parts_are_files_of_their_own(folder: Path) -> None:
    finished = exported(str(folder), rows_per_chunk=2, parts=True)

    assert finished.result["files"] == [
        "output:job-1/0/export-00000.csv",
        "output:job-1/1/export-00001.csv",
    ]
    parts = [next(iter(chunk.files.values())) for chunk in finished.chunks]
    assert [part.splitlines()[0] for part in parts] == [b'"n","t","k"'] * 2


@pytest.mark.parametrize("format", ["csv", "ndjson", "parquet"])
def test_no_rows_give_a_file_that_can_be_read(format: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", pa.table({"n": pa.array([], pa.int64())}))

    data = one_file(exported(path, format=format))

    if format == "parquet":
        assert pq.read_table(io.BytesIO(data)).schema.names == ["n"]
    else:
        assert data == (b'"n"\n' if format == "csv" else b"")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(-3, 3)), max_size=30),
    st.integers(1, 7),
    st.integers(1, 20),
    st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in", "is null", "is not null"]),
    st.integers(-3, 3),
)
def test_where_keeps_what_sql_would(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[int | None],
    group: int,
    rows_per_chunk: int,
    op: str,
    value: int,
) -> None:
    path = parquet(
        tmp_path_factory.mktemp("where") / "x.parquet",
        {"n": pa.array(values, pa.int32()), "i": range(len(values))},
        row_group_size=group,
    )
    is_null = op.startswith("is")
    told: Any = None if is_null else [value, 0] if "in" in op else value
    right = "" if is_null else f"({value}, 0)" if "in" in op else str(value)

    finished = exported(
        path,
        where=[{"column": "n", "op": op, "value": told}],
        rows_per_chunk=rows_per_chunk,
        format="ndjson",
    )

    kept = [json.loads(line)["i"] for line in one_file(finished).splitlines()]
    query = f"SELECT i FROM '{path}' WHERE n {op} {right} ORDER BY i"
    assert kept == [i for (i,) in by_duckdb(query)]


# --- SQL ----------------------------------------------------------------------------------------


def test_sql_sums_over_all_files_in_one_chunk(tables: dict[str, str], tmp_path: Path) -> None:
    flights = pq.read_table(tables["flights"])
    for n in range(3):
        parquet(tmp_path / f"{n}.parquet", flights.slice(n * 112_259, 112_259))
    query = "SELECT carrier, count(*) AS n, avg(dep_delay) AS d FROM {} GROUP BY 1 ORDER BY 1"

    finished = exported(str(tmp_path), sql=query.format("source"), rows_per_chunk=1)

    assert len(finished.chunks) == 1
    rows = list(csv.reader(io.StringIO(one_file(finished).decode())))[1:]
    expected = by_duckdb(query.format(f"'{tables['flights']}'"))
    assert [(c, int(n)) for c, n, _ in rows] == [(c, n) for c, n, _ in expected]
    assert [float(d) for _, _, d in rows] == pytest.approx([d for _, _, d in expected])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "COPY source TO '/tmp/stolen.csv'",
        "SET enable_external_access = true",
        "ATTACH '/tmp/x.db'",
        "INSTALL httpfs",
        "SELECT 1; SELECT 2",
        "DROP VIEW source",
        "SELEC 1",
        "SELECT nothing FROM source",
        "SELECT n, n FROM source",
        "SELECT [n] AS n FROM source",
    ],
)
def test_sql_that_is_more_than_a_question_about_source_is_refused(sql: str, folder: Path) -> None:
    finished = exported(str(folder), sql=sql)

    assert isinstance(finished.error, Discard)
    assert str(finished.error).startswith(("sql: ", "format: "))


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"columns": ["z"]}, "columns: 'z' is not in the files, which have: n, t, k"),
        ({"where": [{"column": "z", "op": "==", "value": 1}]}, "where: 'z' is not in the files"),
        ({"where": [{"column": "n", "op": "==", "value": "1"}]}, "'n' is int64, and '1' is not"),
        ({"where": [{"column": "n", "op": "==", "value": True}]}, "'n' is int64, and True is not"),
        ({"where": [{"column": "n", "op": "==", "value": 1.5}]}, "'n' is int64, and 1.5 is not"),
        ({"where": [{"column": "t", "op": "==", "value": 1}]}, "'t' is string, and 1 is not"),
    ],
)
def test_query_that_does_not_fit_the_files_is_refused(params: Any, said: str, folder: Path) -> None:
    finished = exported(str(folder), **params)

    assert isinstance(finished.error, Discard)
    assert said in str(finished.error)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"n": ["1"]}, "column 'n' is string in b.parquet and int64 in a.parquet"),
        ({"m": [1]}, "b.parquet lacks column 'n', which a.parquet has"),
        ({"n": [1], "m": [1]}, "b.parquet has column 'm', which a.parquet lacks"),
    ],
)
def test_files_that_are_not_one_table_are_refused(other: Any, said: str, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"n": [1]})
    parquet(tmp_path / "b.parquet", other)

    assert said in str(exported(str(tmp_path)).error)


def test_what_is_no_parquet_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no")

    assert "cannot be read as Parquet" in str(exported(str(tmp_path / "x.parquet")).error)
    assert "no Parquet files at" in str(exported(str(tmp_path / "nothing")).error)
    assert "cannot be read" in str(exported("upload:nothing").error)


def test_file_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    path = parquet(tmp_path / "sales [1].parquet", {"n": [1]})
    parquet(tmp_path / "sales 1.parquet", {"n": [2]})

    assert one_file(exported(path)) == b'"n"\n1\n'
    assert one_file(exported(str(tmp_path / "sales*[1].parquet"))) == b'"n"\n2\n'


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_file_whose_name_is_no_utf8_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", {"n": [1]})
    (tmp_path / "x.parquet").rename(tmp_path / "x\udcff.parquet")

    assert "x\\xff.parquet'); rename it" in str(exported(str(tmp_path)).error)


@pytest.mark.parametrize("sql", [None, "SELECT * FROM source", "SELECT sum(n) AS n FROM source"])
def test_damaged_file_is_named(sql: str | None, tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        parquet(tmp_path / name, {"n": list(range(20_000))}, row_group_size=10_000)
    data = bytearray((tmp_path / "b.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2_000] = bytes(2_000)
    (tmp_path / "b.parquet").write_bytes(data)

    finished = exported(str(tmp_path), sql=sql)

    assert isinstance(finished.error, Discard)
    assert "source: b.parquet cannot be read as Parquet (" in str(finished.error)


def test_file_with_a_damaged_footer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet(path, {"n": [1]})
    data = bytearray(path.read_bytes())
    data[-60:-20] = b"\xff" * 40
    path.write_bytes(data)

    finished = exported(str(path))

    assert isinstance(finished.error, Discard)
    assert "x.parquet cannot be read as Parquet" in str(finished.error)


def test_sql_that_fails_at_a_late_row_is_refused(tmp_path: Path) -> None:
    late = parquet(tmp_path / "x.parquet", {"t": ["1"] * 200_000 + ["late"]})

    finished = exported(late, sql="SELECT CAST(t AS int) AS n FROM source")

    assert isinstance(finished.error, Discard)
    assert "sql: Conversion Error: Could not convert string 'late'" in str(finished.error)


@pytest.mark.parametrize(
    ("names", "said"),
    [(["a", ""], "has no name"), (["ab", "b", "AB"], "'ab' and 'AB' are one to SQL")],
)
def test_columns_that_sql_would_name_otherwise_are_refused(
    names: list[str], said: str, tmp_path: Path
) -> None:
    path = parquet(tmp_path / "x.parquet", {name: [1] for name in names})

    assert said in str(exported(path, sql="SELECT * FROM source").error)
    assert (
        one_file(exported(path)).splitlines()[0] == ",".join(f'"{name}"' for name in names).encode()
    )


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_numbers_that_are_none_are_words_in_csv_and_null_in_ndjson(
    kind: Any, tmp_path: Path
) -> None:
    odd = pa.array([float("nan"), float("inf"), float("-inf"), None], kind)
    path = parquet(tmp_path / "x.parquet", pa.table({"n": odd, "k": [1, 2, 3, 4]}))

    assert one_file(exported(path)) == b'"n","k"\nnan,1\ninf,2\n-inf,3\n,4\n'
    assert [
        json.loads(line) for line in one_file(exported(path, format="ndjson")).splitlines()
    ] == [{"n": None, "k": k} for k in (1, 2, 3, 4)]
    kept = pq.read_table(io.BytesIO(one_file(exported(path, format="parquet"))))
    assert str(kept["n"].to_pylist()) == "[nan, inf, -inf, None]"


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (pa.timestamp("s"), 253_402_300_799, 253_402_300_800),
        (pa.timestamp("us", "UTC"), -62_135_596_800_000_000, -62_135_596_800_000_001),
        (pa.date32(), 2_932_896, 2_932_897),
        (pa.timestamp("ns"), 2**63 - 1, None),
    ],
)
@pytest.mark.parametrize("format", ["csv", "ndjson"])
def test_moment_that_text_cannot_tell_is_refused(
    kind: Any, inside: int, outside: int | None, format: str, tmp_path: Path
) -> None:
    good = parquet(tmp_path / "good.parquet", {"at": pa.array([inside, None, 0], kind)})
    assert one_file(exported(good, format=format)).count(b"\n") >= 3
    if outside is None:
        return
    bad = parquet(tmp_path / "bad.parquet", {"at": pa.array([outside], kind)})

    refused = exported(bad, format=format)

    assert isinstance(refused.error, Discard)
    assert "column 'at' has a moment outside the years 1 to 9999" in str(refused.error)
    assert exported(bad, format="parquet").error is None


@pytest.mark.parametrize(
    "odd",
    [
        pa.array([b"\xff"], pa.binary()),
        pa.array([b"\xff"], pa.binary_view()),
        pa.array([b"\xff" * 16], pa.binary(16)),
        pa.array([[1]], pa.list_view(pa.int8())),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"\xff" * 16], pa.binary(16))),
    ],
)
def test_what_csv_cannot_hold_is_refused(odd: Any, tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"n": odd})

    refused = exported(path)

    assert isinstance(refused.error, Discard)
    assert "which CSV cannot hold" in str(refused.error)
    assert one_file(exported(path, format="ndjson"))
    assert one_file(exported(path, format="parquet"))


@pytest.mark.parametrize(
    "text",
    [
        pa.array(["a", None], pa.string_view()),
        pa.array(["a", None], pa.large_string()),
        pa.array(["a", None]).dictionary_encode(),
    ],
)
def test_text_of_every_kind_is_text(text: Any, tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"t": text, "n": [1, 2]})

    assert one_file(exported(path)) == b'"t","n"\n"a",1\n,2\n'
    assert one_file(exported(path, format="ndjson")) == b'{"t":"a","n":1}\n{"t":null,"n":2}\n'


@pytest.mark.parametrize("format", ["csv", "ndjson", "parquet"])
def test_interval_of_sql_is_refused_with_the_way_out(format: str, tmp_path: Path) -> None:
    moments = pa.array([60, 120], pa.timestamp("s"))
    path = parquet(tmp_path / "x.parquet", {"left": moments})
    sql = "SELECT \"left\" - TIMESTAMP '1970-01-01' AS gone FROM source"

    refused = exported(path, sql=sql, format=format)

    assert "sql: column 'gone' is an interval" in str(refused.error)
    sql = sql.replace("SELECT ", "SELECT epoch(").replace(" AS", ") AS")
    assert one_file(exported(path, sql=sql)) == b'"gone"\n60\n120\n'


def test_list_in_csv_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"n": [1], "l": [[1]]})

    assert "which CSV cannot hold" in str(exported(path).error)
    assert one_file(exported(path, columns=["n"])) == b'"n"\n1\n'


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"sql": "SELECT 1", "columns": ["n"]}, "give sql, or columns and where"),
        ({"columns": ["n", "n"]}, "names one twice"),
        ({"format": "parquet", "gzip": True}, "compressed inside"),
        ({"where": [{"column": "n", "op": "in", "value": 1}]}, "a list of values"),
        ({"where": [{"column": "n", "op": "==", "value": None}]}, "null"),
        ({"where": [{"column": "n", "op": "is null", "value": 1}]}, "takes no value"),
    ],
)
def test_params_that_cannot_be_meant_are_refused(params: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ExportParams.model_validate({"source": "x", **params})


# --- again --------------------------------------------------------------------------------------


def test_uploads_are_read_by_row_group_and_again_alike(folder: Path) -> None:
    data = (folder / "k=a/1.parquet").read_bytes()
    params = {"source": ["upload:x.parquet"], "rows_per_chunk": 1}

    found = [run(table_export, params, files={"upload:x.parquet": data}) for _ in range(2)]

    assert one_file(found[0]) == one_file(found[1]) == b'"n","t"\n1,""\n2,\n'
    assert len(found[0].chunks) == 2


def test_file_that_changes_meanwhile_ends_the_job(folder: Path, tmp_path: Path) -> None:
    from jobs.library.table.parquet import find, plan_of

    path = parquet(tmp_path / "x.parquet", {"n": [1, 2, 3]})
    piece = {"uri": path, "first": 0, "groups": 1, "rows": 2, "file_rows": 2}

    class Disk:
        def may_read(self, path: Path) -> bool:
            return True

    from jobs.context import Files

    plan = plan_of(find(Files(Disk(), tmp_path, "job-1/0"), [path]))  # type: ignore[arg-type]
    finished = run_chunk(
        table_export,
        {"source": path},
        {"index": 0, "plan": "output:plan", "pieces": [piece]},
        files={"output:plan": plan},
    )

    assert "export it again" in str(finished.error)
