"""`table.import`: what is imported is what Python's csv reads, whatever bytes and chunks."""

import csv
import datetime as dt
import decimal
import enum
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from jobs.library.table import table_model
from jobs.library.table.hexadecimal import Hexadecimal
from jobs.library.table.place import open_place, publish
from jobs.library.table.records import Splitter
from jobs.library.table.schema import arrow_type
from jobs.library.table_export import table_export
from jobs.library.table_import import ImportParams, table_import
from jobs.outcome import Discard, StopRequested
from jobs.testing import Finished, run, run_chunk
from tests.support.weed import Weed, started

Row = dict[str, Any]
SOURCE = "upload:rows.csv"
FLIGHTS = [
    ("year", "int32"), ("month", "int32"), ("day", "int32"), ("dep_time", "int32"),
    ("carrier", "string"), ("flight", "int32"), ("tailnum", "string"), ("origin", "string"),
    ("dest", "string"), ("air_time", "int32"), ("distance", "int32"),
    ("time_hour", "timestamp(ms, UTC)"),
]  # fmt: skip


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@table_model("test.order", types={"price": "decimal(10,2)"})
class Order(BaseModel):
    id: int
    price: decimal.Decimal = Field(ge=0)
    color: Color | None = None
    at: dt.datetime | None = None


@table_model("test.price", types={"price": "decimal(4,2)"})
class Price(BaseModel):
    price: decimal.Decimal


@table_model("test.flight")
class Flight(BaseModel):
    year: int
    month: int
    day: int
    dep_time: int | None
    carrier: str = Field(pattern="^[A-Z0-9]{2}$")
    tailnum: str | None


def columns(*told: str) -> list[Row]:
    """`columns("a int64", "b string!")`: the sign means that null is refused."""
    split = [one.split(" ", 1) for one in told]
    return [
        {"name": name, "type": kind.rstrip("!"), "nullable": not kind.endswith("!")}
        for name, kind in split
    ]


def imported(data: bytes, *told: str, source: str = SOURCE, **params: Any) -> Finished:
    params = {"bad_rows_max": 1.0, **params}
    if told:
        params["columns"] = columns(*told)
    return run(table_import, {"source": source, **params}, files={source: data})


def rows_of(finished: Finished) -> list[Row]:
    assert finished.result is not None
    return [
        row
        for chunk in finished.chunks
        for name, data in chunk.files.items()
        if name.endswith(".parquet")
        for row in pq.read_table(io.BytesIO(data)).to_pylist()
    ]


def aside(finished: Finished) -> list[tuple[int, str, str]]:
    assert finished.result is not None
    lines = finished.files.get("quarantine.ndjson", b"").decode().splitlines()
    return [(one["line"], one["reason"], one["text"]) for one in map(json.loads, lines)]


def by_csv(text: str, width: int) -> tuple[list[list[str]], list[int]]:
    """The rows of the right width, and the first lines of all others, as Python's csv reads them.

    A last record whose quote is never closed is one of the others.
    """
    closed = list(csv.reader(io.StringIO(text + "\nX", newline="")))[-1:] == [["X"]]
    reader = csv.reader(io.StringIO(text, newline=""))
    found: list[tuple[int, list[str]]] = []
    before = 0
    for row in reader:
        if row:
            found.append((before + 1, row))
        before = reader.line_num
    good = [row for _, row in found if len(row) == width]
    bad = [line for line, row in found if len(row) != width]
    if not closed:
        line, row = found[-1]
        if len(row) == width:
            good.pop()
            bad.append(line)
    return good, bad


class Bytes:
    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read(self, start: int, length: int) -> bytes:
        return self._data[start : start + length]


def ends_by_csv(text: str) -> list[int]:
    used = 0
    lines = io.StringIO(text, newline="")

    def counted() -> Any:
        nonlocal used
        for line in lines:
            used += len(line)
            yield line

    return [used for _ in csv.reader(counted())]


CSV_TEXT = st.text(alphabet='ab",\n\r', max_size=60)


# --- where records end --------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(CSV_TEXT, st.integers(1, 9))
def test_ends_of_records_are_those_of_the_csv_module(text: str, window: int) -> None:
    ends = ends_by_csv(text)
    splitter = Splitter(Bytes(text.encode()), window=window)

    for near in range(1, len(text) + 1):
        assert splitter.end_after(0, near) == min(
            (end for end in ends if end >= near), default=len(text)
        )


@settings(max_examples=120, deadline=None)
@given(CSV_TEXT, st.integers(1, 70))
def test_rows_and_lines_are_those_of_the_csv_module(text: str, chunk_bytes: int) -> None:
    good, bad = by_csv("a,b\n" + text, 2)

    finished = imported(b"a,b\n" + text.encode(), "a string", "b string", chunk_bytes=chunk_bytes)

    assert [list(row.values()) for row in rows_of(finished)] == good[1:]
    assert [line for line, _, _ in aside(finished)] == bad


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1", "-7", "x", "", " 4 ", "99999999999999999999", "1.5"]),
            st.sampled_from(["t", 'say "hi"', "two\nlines", "a,b", "", "é", "r\r\ns"]),
            st.sampled_from(["2013-01-31", "2013-02-30", "", "soon"]),
        ),
        max_size=40,
    ),
    st.integers(1, 400),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_row_becomes_the_same_whatever_its_neighbours(
    rows: list[tuple[str, str, str]], chunk_bytes: int, end: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("n", "t", "d"), *rows])
    told = ("n int64", "t string", "d date!")

    def alone(row: tuple[str, str, str]) -> list[Row]:
        one = io.StringIO(newline="")
        csv.writer(one).writerows([("n", "t", "d"), row])
        return rows_of(imported(one.getvalue().encode(), *told))

    known = {row: alone(row) for row in set(rows)}
    finished = imported(text.getvalue().encode(), *told, chunk_bytes=chunk_bytes)

    assert rows_of(finished) == [one for row in rows for one in known[row]]
    line, lines = 2, []
    for row in rows:
        lines += [] if known[row] else [line]
        line += 1 + ("\n" in row[1])
    assert [one for one, _, _ in aside(finished)] == lines


def test_quote_written_long_before_decides(tmp_path: Path) -> None:
    # Every line of the field looks like the end of a record, for a megabyte.
    field = '","\n' * 250_000
    data = ('a,b\n"' + field.replace('"', '""') + '",1\nx,2\n').encode()

    finished = imported(data, "a string", "b int64", chunk_bytes=10_000)

    assert [(len(row["a"]), row["b"]) for row in rows_of(finished)] == [(len(field), 1), (1, 2)]


def test_stray_quotes_in_plain_fields_quote_nothing() -> None:
    data = b'size,b\n5" pipe,1\n6" pipe,2\n"7"" pipe",3\n'

    finished = imported(data, "size string", "b int64", chunk_bytes=8)

    assert [row["size"] for row in rows_of(finished)] == ['5" pipe', '6" pipe', '7" pipe']


def test_field_of_fifty_megabytes_is_imported() -> None:
    data = b'a,b\n1,"' + b"x\n" * (25 << 20) + b'"\n2,y\n'

    finished = imported(data, "a int64", "b string", chunk_bytes=1 << 20)

    assert [(row["a"], len(row["b"])) for row in rows_of(finished)] == [(1, 50 << 20), (2, 1)]


def test_quote_never_closed_puts_one_record_aside_not_the_rows_before() -> None:
    data = b'a,b\n1,x\n2,"never\n' + b"3,y\n" * 10

    finished = imported(data, "a int64", "b string", chunk_bytes=12)

    assert [row["a"] for row in rows_of(finished)] == [1]
    assert [(line, reason) for line, reason, _ in aside(finished)] == [
        (3, "its quote is never closed; the file ends inside the field")
    ]


# --- what a row may be --------------------------------------------------------------------------


def test_bad_rows_are_told_by_line_and_reason() -> None:
    data = (
        b'n,t,d\r\n1,x,2013-01-01\r\n\r\nz,"two\nlines",2013-01-02\r\n3,y,2013-02-30\r\n'
        b"4,a,b,c\r\n5,\xff,2013-01-01\r\n6,ok,2013-01-03"
    )

    finished = imported(data, "n int64", "t string", "d date")

    assert [row["n"] for row in rows_of(finished)] == [1, 6]
    assert aside(finished) == [
        (4, "column 'n': 'z' is not int64", 'z,"two\nlines",2013-01-02'),
        (6, "column 'd': '2013-02-30' is not date", "3,y,2013-02-30"),
        (7, "it has 4 fields, the header 3", "4,a,b,c"),
        (8, "column 't': '\\xff' is not utf-8", "5,\\xff,2013-01-01"),
    ]
    summary = {key: finished.result[key] for key in ("rows_read", "rows_written")}
    assert summary == {"rows_read": 6, "rows_written": 2}


def test_each_type_is_converted() -> None:
    data = b"a,b,c,d,e,f,g\n1,1.5,x,true,2013-01-02,2013-01-02 03:04:05.000006,12.50\n,,,,,,\n"

    finished = imported(
        data,
        "a int64",
        "b float64",
        "c string",
        "d bool",
        "e date",
        "f timestamp(us)",
        "g decimal(10,2)",
    )

    assert [list(row.values()) for row in rows_of(finished)] == [
        [
            1,
            1.5,
            "x",
            True,
            dt.date(2013, 1, 2),
            dt.datetime(2013, 1, 2, 3, 4, 5, 6),
            decimal.Decimal("12.50"),
        ],
        [None, None, "", None, None, None, None],
    ]


KINDS = ["int64", "uint8", "float64", "decimal(10,2)", "date", "timestamp(us)", "bool"]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.text(alphabet="0189eE.+-xaTtZ:/ infrues_", max_size=8), min_size=1, max_size=8),
)
def test_value_is_refused_only_if_arrow_refuses_it_alone(kind: str, values: list[str]) -> None:
    """Or if it is a whole number in hexadecimal."""

    def is_taken(value: str) -> bool:
        if "int" in kind and "x" in value:
            return False
        convert = pacsv.ConvertOptions(column_types={"a": arrow_type(kind)}, null_values=[])
        options = pacsv.ReadOptions(column_names=["a"])
        data = pa.BufferReader(f'"{value}"\n'.encode())
        try:
            pacsv.read_csv(data, read_options=options, convert_options=convert)
        except pa.ArrowInvalid:
            return False
        return True

    data = "a\n" + "".join(f'"{value}"\n' for value in values)

    finished = imported(data.encode(), f"a {kind}", nulls=[])

    assert [line for line, _, _ in aside(finished)] == [
        n for n, value in enumerate(values, 2) if not is_taken(value)
    ]


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        ("int16", ["7", "-7", "007", " 7\t"], ["+7", "7.0", "7e3", "7_000", "0x7", "-0x7", " "]),
        ("uint64", ["7", " 7"], ["-7", "0xFFFFFFFFFFFFFFFF", " 0X7 "]),
        ("float64", ["7", "+7", ".5", "5.", "1e3", " 7 ", "inf", "-Infinity", "NaN"], ["0x7"]),
        ("decimal(4,2)", ["7", "+7.25", "1e1", " 7 "], ["7.255", "100", "inf", "0x7"]),
        ("bool", ["true", "FALSE", "0", "1"], ["yes", "t", " true", "2"]),
        ("date", ["2013-01-31", " 2013-01-31 "], ["2013-1-31", "31.01.2013", "2013-02-30"]),
        (
            "timestamp(ms)",
            ["2013-01-31", "2013-01-31 15:04", "2013-01-31T15:04:05", "2013-01-31 15:04:05.678"],
            [" 2013-01-31", "2013-01-31T15:04:05Z", "2013-01-31 15:04:05.6789", "1359644645"],
        ),
        (
            "timestamp(s, UTC)",
            ["2013-01-31T15:04:05Z", "2013-01-31 15:04+01:00"],
            ["2013-01-31T15:04:05", "2013-01-31 15:04 UTC"],
        ),
    ],
)
def test_what_a_value_may_look_like(kind: str, taken: list[str], refused: list[str]) -> None:
    """As the documentation says; each alone too, so that it hangs on no neighbour."""
    quoted = [f'"{value}"' for value in [*taken, *refused]]

    together = imported("\n".join(["a", *quoted, ""]).encode(), f"a {kind}")
    alone = [imported(f"a\n{value}\n".encode(), f"a {kind}") for value in quoted]

    assert [text for *_, text in aside(together)] == quoted[len(taken) :]
    assert [finished.result["rows_written"] for finished in alone] == [
        1 if n < len(taken) else 0 for n in range(len(quoted))
    ]


@pytest.mark.parametrize("data", [b"0x1F", b"0xFFFFFFFFFFFFFFFF", b" 0X1 ", b'"0"x1F', b'"0x"1'])
@pytest.mark.parametrize("others", [b"", b"1\n", b"1\n0x1,2\n"])
def test_hexadecimal_is_refused_in_a_column_of_whole_numbers(data: bytes, others: bytes) -> None:
    rows = imported(b"a\n" + others + data + b"\n", "a int64")

    assert aside(rows)[-1][2] == data.decode()
    assert [row["a"] for row in rows_of(rows)] == [1] * bool(others)


@pytest.mark.parametrize("field", [b"0x1F", b'"0"X1F'])
@pytest.mark.parametrize("before", [0, 1, 2, *range((1 << 16) - 6, (1 << 16) + 3)])
def test_hexadecimal_is_found_wherever_it_begins(field: bytes, before: int) -> None:
    look = Hexadecimal(",", '"').may_be_in

    assert look(b"\n" * before + field + b"\n")
    assert not look(b"\n" * before + field.lower().replace(b"x", b"y") + b"\n")


def test_hexadecimal_is_text_in_a_column_of_text_and_null_where_that_is_told() -> None:
    finished = imported(b"a,b\n0x1F,1\n0x2,0xff\n", "a string", "b int64", nulls=["", "0xff"])

    assert rows_of(finished) == [{"a": "0x1F", "b": 1}, {"a": "0x2", "b": None}]


@pytest.mark.parametrize("source", [SOURCE, "upload:rows.ndjson"])
@pytest.mark.parametrize("model", [False, True])
def test_decimal_with_too_many_digits_is_refused(source: str, model: bool) -> None:
    """Arrow takes 999 for decimal(4,2), and Parquet gives -311.72 back."""
    values = ["99.99", "999", "-9999", "1"]
    is_csv = source == SOURCE
    lines = ["price", *values] if is_csv else [json.dumps({"price": value}) for value in values]
    told = {"model": "test.price"} if model else {"columns": columns("price decimal(4,2)")}

    finished = imported("\n".join(lines).encode(), source=source, **told)

    assert [str(row["price"]) for row in rows_of(finished)] == ["99.99", "1.00"]
    assert [line - is_csv for line, *_ in aside(finished)] == [2, 3]


@pytest.mark.parametrize("kind", ["timestamp(s)", "timestamp(s, UTC)"])
def test_times_of_ndjson_become_utc_by_the_zone_they_have(kind: str) -> None:
    texts = ["2013-01-31 15:04", "2013-01-31T15:04:00Z", "2013-01-31T16:04:00+01:00"]
    data = "".join(json.dumps({"a": text}) + "\n" for text in texts)

    finished = imported(data.encode(), f"a {kind}", source="upload:rows.ndjson")

    assert {str(row["a"])[:19] for row in rows_of(finished)} == {"2013-01-31 15:04:00"}
    assert aside(finished) == []


def test_iso_may_be_one_of_the_formats() -> None:
    data = b"a\n31.12.2013 10:00\n2013-12-31T10:00:00\n"

    finished = imported(data, "a timestamp(s)", timestamp_formats=["%d.%m.%Y %H:%M", "ISO8601"])

    assert rows_of(finished) == [{"a": dt.datetime(2013, 12, 31, 10)}] * 2


def test_dates_are_read_in_the_formats_told() -> None:
    data = b"a,b\n31.12.2013,31.12.2013\n2013-12-31,31.12.2013\n"

    finished = imported(data, "a date", "b timestamp(us)", timestamp_formats=["%d.%m.%Y"])

    assert rows_of(finished) == [{"a": dt.date(2013, 12, 31), "b": dt.datetime(2013, 12, 31)}]
    assert aside(finished)[0][:2] == (3, "column 'a': '2013-12-31' is not date")


def test_spellings_of_null_are_null_and_refused_where_null_is() -> None:
    data = b'a,b\nNA,"NA"\n1,x\n'

    nullable = imported(data, "a int64", "b string", nulls=["NA"], text_nulls=True)
    refused = imported(data, "a int64!", "b string", nulls=["NA"])

    assert rows_of(nullable)[0] == {"a": None, "b": None}
    assert [reason for _, reason, _ in aside(refused)] == ["column 'a': it is null"]


@pytest.mark.parametrize(
    ("data", "params", "expected"),
    [
        (b"\xef\xbb\xbfa;b\n1;x\n", {"delimiter": ";"}, [{"a": 1, "b": "x"}]),
        (b"1,x\n", {"header": False}, [{"a": 1, "b": "x"}]),
        (b"b,a\nx,1\n", {}, [{"a": 1, "b": "x"}]),
        ("a,b\n1,é€\n".encode("cp1252"), {"encoding": "cp1252"}, [{"a": 1, "b": "é€"}]),
        (b"a,b\n1,'x,y'\n", {"quote": "'"}, [{"a": 1, "b": "x,y"}]),
        (b'a,b\n1,"x\n2,y"\n', {"quote": None}, [{"a": 1, "b": '"x'}, {"a": 2, "b": 'y"'}]),
        (b"a,b\n", {}, []),
        (b"a,b", {}, []),
        (b"", {"header": False}, []),
        (b"a,b,c\n1,x,\xff\n", {"other_columns": "ignore"}, [{"a": 1, "b": "x"}]),
        (gzip.compress(b"a,b\n1,x\n2,y\n", mtime=0), {}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    ],
)
def test_other_forms_of_csv(data: bytes, params: Row, expected: list[Row]) -> None:
    finished = imported(data, "a int64", "b string", chunk_bytes=4, **params)

    assert rows_of(finished) == expected
    assert finished.result["rows_quarantined"] == 0


def test_file_that_unpacks_to_far_more_than_a_table_would_is_refused() -> None:
    finished = imported(gzip.compress(b"a\n" * (50 << 20)), "a string")

    assert "unpack it before" in str(finished.error)


def test_bytes_that_the_encoding_lacks_are_put_aside() -> None:
    finished = imported(b"a\nx\n\x81\n\x80\n", "a string", encoding="cp1252")

    assert rows_of(finished) == [{"a": "x"}, {"a": "€"}]
    assert aside(finished)[0][:2] == (3, "column 'a': '\\x81' is not cp1252")


@pytest.mark.parametrize(
    ("data", "params", "said"),
    [
        (b"", {}, "not even a header"),
        (b"a\n1\n", {}, "column 'b' is not in the header ('a')"),
        (b"a,b,c\n", {}, "column 'c' of the file is not in the schema"),
        (b"a,b,a\n", {}, "column 'a' stands twice in the header"),
        (b"a,\xff\n", {}, "encoding: the header is not utf-8"),
        ("a,b\n1,x\n".encode("utf-16"), {}, "convert it to UTF-8"),
        (b"\x1f\x8b\x08\x00broken", {}, "the gzip data is damaged"),
        (b"PK\x03\x04\x14\x00", {}, "a ZIP archive or a workbook"),
        (b"x" * 100_000 + b"\n", {}, "is not in the header ('" + "x" * 80 + "')"),
    ],
)
def test_mistake_of_the_whole_file_ends_the_job(data: bytes, params: Row, said: str) -> None:
    finished = imported(data, "a int64", "b string", **params)

    assert isinstance(finished.error, Discard)
    assert said in str(finished.error)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "either columns or model"),
        ({"columns": columns("a int65")}, "no column type"),
        ({"columns": columns("a decimal(50,2)")}, "precision"),
        ({"columns": columns("a int64", "a string")}, "declared twice"),
        ({"columns": columns("a int64", "b string"), "partition_by": ["c"]}, "not among columns"),
        ({"columns": columns("a int64"), "delimiter": '"'}, "same sign"),
    ],
)
def test_params_that_cannot_be_meant_are_refused(params: Row, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ImportParams.model_validate({"source": SOURCE, **params})


def test_more_bad_rows_than_allowed_fail_the_job_with_the_first_of_them() -> None:
    data = b"a\n" + b"1\n" * 97 + b"x\n" + b"2\n" * 2

    allowed = imported(data, "a int64", bad_rows_max=0.01, chunk_bytes=20)
    by_share = imported(data, "a int64", bad_rows_max=0.009, chunk_bytes=20)
    by_count = imported(data, "a int64", bad_rows_max=0, chunk_bytes=20)

    assert allowed.result["rows_quarantined"] == 1
    for finished in (by_share, by_count):
        assert isinstance(finished.error, Discard)
        assert "line 99: column 'a': 'x' is not int64" in str(finished.error)


# --- NDJSON -------------------------------------------------------------------------------------


def test_ndjson_rows_and_bad_lines() -> None:
    data = (
        b'{"a": 1, "d": "2013-01-02", "p": 1.25}\n\n{"a": "x"}\r\n{"a": 2, "z": 1}\n'
        b'{"a": 3} {"a": 4}\nnot json\n{"a": 5,\r"d": null}\n{"d": "2013-02-30", "a": 1}\n'
        b'{"d": "2013-01-01"}\n{"a": 6, "d": "\xff"}\n[1]\n{"a": 7}'
    )

    found = [
        imported(
            data,
            "a int64!",
            "d date",
            "p decimal(10,2)",
            source="upload:rows.ndjson",
            chunk_bytes=size,
        )
        for size in (1, 30, 1_000)
    ]

    for finished in found:
        assert rows_of(finished) == [
            {"a": 1, "d": dt.date(2013, 1, 2), "p": decimal.Decimal("1.25")},
            {"a": 5, "d": None, "p": None},
            {"a": 7, "d": None, "p": None},
        ]
        assert [line for line, _, _ in aside(finished)] == [3, 4, 5, 6, 8, 9, 10, 11]
    reasons = [reason for _, reason, _ in aside(found[0])]
    assert reasons[0] == "column 'a': a JSON string is not int64"
    assert reasons[2] == "it holds 2 objects; write one a line"
    assert reasons[5:7] == ["column 'a': it is null or missing", "it is not utf-8"]


@pytest.mark.parametrize("size", [1, 1_000])
def test_a_line_of_ndjson_that_is_no_object_is_set_aside(size: int) -> None:
    data = b'null\n{"a": 1}\nnull\n {"a": 2}\n "a"\nnull null\n{"a": "x"}\n7\n'

    finished = imported(data, "a int64", source="upload:rows.ndjson", chunk_bytes=size)

    assert rows_of(finished) == [{"a": 1}, {"a": 2}]
    told = [(line, reason) for line, reason, _ in aside(finished)]
    assert [line for line, _ in told] == [1, 3, 5, 6, 7, 8]
    assert {reason for line, reason in told if line != 7} == {"it is no JSON object"}


# --- models -------------------------------------------------------------------------------------


def test_rows_are_validated_by_a_registered_model() -> None:
    data = (
        b"id,price,color,at\n1,2.50,red,2013-01-02T03:04:05+01:00\n2,-1,,\nx,1,,\n"
        b"3,1,green,\n4,9999999999,,\n99999999999999999999,1,,\n5,1,,\n"
    )

    finished = imported(data, model="test.order", chunk_bytes=40)

    assert rows_of(finished) == [
        {
            "id": 1,
            "price": decimal.Decimal("2.50"),
            "color": "red",
            "at": dt.datetime(2013, 1, 2, 2, 4, 5, tzinfo=dt.UTC),
        },
        {"id": 5, "price": decimal.Decimal("1.00"), "color": None, "at": None},
    ]
    told = aside(finished)
    assert [line for line, _, _ in told] == [3, 4, 5, 6, 7]
    assert told[0][1] == "column 'price': Input should be greater than or equal to 0"
    assert told[3][1] == "column 'price': '9999999999' does not fit decimal(10,2)"


def test_ndjson_is_validated_by_a_registered_model() -> None:
    data = b'{"id": 1, "price": "2.5"}\n{"id": 2}\noops\n{"id": 3, "price": 1}\n'

    finished = imported(data, model="test.order", source="upload:x.jsonl", chunk_bytes=5)

    assert [row["id"] for row in rows_of(finished)] == [1, 3]
    assert [line for line, _, _ in aside(finished)] == [2, 3]


def test_only_models_that_job_code_named_may_be_used() -> None:
    finished = imported(b"a\n", model="os.path:join")

    assert isinstance(finished.error, Discard)
    assert "is not registered" in str(finished.error)


def test_model_with_a_field_no_column_holds_is_refused_when_registered() -> None:
    class Odd(BaseModel):
        price: decimal.Decimal

    with pytest.raises(TypeError, match=r"types=\{'price': \"decimal\(12,2\)\"\}"):
        table_model("test.odd")(Odd)
    with pytest.raises(ValueError, match="already"):
        table_model("test.order")(Odd)


def test_header_is_matched_with_the_model() -> None:
    missing = imported(b"id\n1\n", model="test.order")
    extra = imported(b"id,price,size\n1,1,1\n", model="test.order")

    assert "column 'price' is not in the header" in str(missing.error)
    assert "column 'size' of the file is not in the schema" in str(extra.error)


# --- real data ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def flights_csv(tables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("csv") / "flights.csv"
    table = pq.read_table(tables["flights"], columns=[name for name, _ in FLIGHTS])
    pacsv.write_csv(table, path)
    return path


def test_a_year_of_flights_is_imported_as_it_was(
    flights_csv: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    told = [f"{name} {kind}" for name, kind in FLIGHTS]

    finished = imported(
        b"",
        *told,
        source=str(flights_csv),
        text_nulls=True,
        bad_rows_max=0,
        chunk_bytes=5 << 20,
        into=str(tmp_path / "into"),
        partition_by=["month"],
    )

    assert finished.result["rows_written"] == 336_776
    assert len(finished.chunks) > 3
    names = ", ".join(name for name, _ in FLIGHTS)
    into = f"read_parquet('{tmp_path}/into/*/*.parquet', hive_partitioning=true)"
    was = f"read_parquet('{tables['flights']}')"
    connection = duckdb.connect()
    for one, other in ((into, was), (was, into)):
        assert connection.execute(
            f"SELECT count(*) FROM (SELECT {names} FROM {one}"
            f" EXCEPT ALL SELECT {names} FROM {other})"
        ).fetchone() == (0,)


def test_flights_are_validated_by_a_model(small: Callable[..., str]) -> None:
    path = small("WHERE month = 1 AND day < 8", ", ".join(Flight.model_fields), "january.csv")
    lines = Path(path).read_bytes().splitlines(keepends=True)
    lines[1_000] = b"2013,1,1,517,united,N14228\n"
    Path(path).write_bytes(b"".join(lines))

    finished = imported(b"", model="test.flight", source=path, chunk_bytes=50_000, text_nulls=True)

    with open(path, newline="") as file:
        plain = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    expected = [
        Flight.model_validate(row).model_dump() for row in plain if row["carrier"] != "united"
    ]
    assert rows_of(finished) == expected
    assert [line for line, _, _ in aside(finished)] == [1_001]


# --- once ---------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    data = b"a,k\n" + b"".join(b"%d,%d\n" % (n, n % 3) for n in range(100))
    into = tmp_path / "into"

    def again(size: int) -> dict[str, bytes]:
        finished = imported(
            data,
            "a int64",
            "k int64",
            into=into.as_uri(),
            partition_by=["k"],
            name="sales",
            chunk_bytes=size,
        )
        assert finished.error is None
        return tree(into)

    first, same, coarser = again(100), again(100), again(1_000)

    assert first == same
    assert sorted(coarser) == ["_sales.import.json"] + [
        f"k={n}/sales-00000.parquet" for n in range(3)
    ]


def test_publishing_cut_short_leaves_no_duplicates(tmp_path: Path) -> None:
    disk = open_place(_files(tmp_path), str(tmp_path / "into"))

    def broken() -> bytes:
        raise OSError("the machine died")

    def names(*numbers: int) -> list[tuple[str, Callable[[], bytes]]]:
        return [(f"x-{n:05d}.parquet", lambda: b"new") for n in numbers]

    publish(disk, "x", [(n, lambda: b"old") for n, _ in names(*range(9))], {}, lambda done: None)
    with pytest.raises(OSError, match="died"):
        publish(disk, "x", [*names(0, 1, 2, 3), ("x-00004.parquet", broken)], {}, lambda d: None)
    publish(disk, "x", names(0, 1), {}, lambda done: None)

    found = tree(tmp_path / "into")
    assert {n: d for n, d in found.items() if n.endswith("parquet")} == {
        "x-00000.parquet": b"new",
        "x-00001.parquet": b"new",
    }


def test_foreign_names_in_the_list_of_an_import_are_left_alone(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    (tmp_path / "x-00001.parquet").write_bytes(b"precious")
    (into / "other.parquet").write_bytes(b"precious")
    listed = {"files": ["../x-00001.parquet", "other.parquet", "k=/../../x-00001.parquet"]}
    (into / "_x.import.json").write_text(json.dumps(listed))

    publish(open_place(_files(tmp_path), str(into)), "x", [], {}, lambda done: None)

    assert (tmp_path / "x-00001.parquet").read_bytes() == b"precious"
    assert (into / "other.parquet").read_bytes() == b"precious"


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    server = started(tmp_path_factory.mktemp("weed"))
    if isinstance(server, str):
        pytest.skip(server)
    yield server
    server.kill()


def test_bucket_holds_one_import_and_is_exported_in_order(
    weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    into = weed.url()
    data = b"a,k\n" + b"".join(b"%d,%d\n" % (n, n % 2) for n in range(100))

    def again(size: int) -> Finished:
        told = {"into": into, "name": "sales", "partition_by": ["k"], "chunk_bytes": size}
        return imported(data, "a int64", "k int64", **told)

    fine, coarse = again(100), again(1_000)
    back = run(table_export, {"source": f"{into}/*/*.parquet", "format": "ndjson"})

    assert fine.result["file_count"] > coarse.result["file_count"] == 2
    assert coarse.result["files"] == [f"{into}/k={n}/sales-00000.parquet" for n in range(2)]
    rows = [json.loads(line) for line in back.files["export.ndjson"].splitlines()] or back.result
    assert rows == [{"a": n, "k": n % 2} for n in [*range(0, 100, 2), *range(1, 100, 2)]]


def test_stopped_chunk_leaves_nothing_and_runs_again_alike() -> None:
    data = b"a\n" + b"1\n" * 50
    params = {"source": SOURCE, "columns": columns("a int64")}
    chunk = {"index": 0, "start": 2, "end": len(data), "size": len(data)}

    stopped = run_chunk(table_import, params, chunk, files={SOURCE: data}, stop_after=0)
    once, twice = (run_chunk(table_import, params, chunk, files={SOURCE: data}) for _ in "12")

    assert isinstance(stopped.error, StopRequested)
    assert not stopped.files
    assert once.files == twice.files != {}


def test_source_that_changes_meanwhile_ends_the_job() -> None:
    params = {"source": SOURCE, "columns": columns("a int64")}
    chunk = {"index": 0, "start": 2, "end": 4, "size": 4}

    finished = run_chunk(table_import, params, chunk, files={SOURCE: b"a\n1\n2\n"})

    assert "import it again" in str(finished.error)


def test_partitions_that_are_null_or_odd_have_names_of_their_own(tmp_path: Path) -> None:
    data = 'a,k\n1,x/y\n2,\n3,"é=1"\n4,..\n'.encode()

    finished = imported(
        data,
        "a int64",
        "k string",
        into=str(tmp_path),
        partition_by=["k"],
        text_nulls=True,
    )

    assert finished.result["file_count"] == 4
    read = pq.read_table(str(tmp_path), partitioning="hive").to_pylist()
    assert [row["k"] for row in sorted(read, key=lambda row: row["a"])] == [
        "x/y",
        None,
        "é=1",
        "..",
    ]


def _files(workdir: Path) -> Any:
    from jobs.context import Files

    class Disk:
        def may_read(self, path: Path) -> bool:
            return path.is_relative_to(workdir)

        def may_write(self, path: Path) -> bool:
            return path.is_relative_to(workdir)

    return Files(Disk(), workdir, "job-1/0")  # type: ignore[arg-type]


def test_into_outside_the_opened_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Discard, match="outside the folders"):
        open_place(_files(tmp_path / "opened"), str(tmp_path / "elsewhere"))


def test_result_lists_files_that_others_can_fetch() -> None:
    finished = imported(b"a\n1\n2\n", "a int64", chunk_bytes=2)

    assert finished.result["files"] == [
        "output:job-1/0/part-00000.parquet",
        "output:job-1/1/part-00001.parquet",
    ]
    manifest = json.loads(finished.files["manifest.json"])
    assert [file["rows"] for file in manifest["files"]] == [1, 1]
    sizes = [len(chunk.files[f"part-0000{n}.parquet"]) for n, chunk in enumerate(finished.chunks)]
    assert sum(sizes) == finished.result["bytes"] == manifest["bytes"]
    assert pa.types.is_int64(
        pq.read_schema(io.BytesIO(finished.chunks[0].files["part-00000.parquet"])).field("a").type
    )
    assert os.path.basename(finished.result["files"][0]) in finished.chunks[0].files
