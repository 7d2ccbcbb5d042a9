"""Opening and reading what a URI names, without making a report of it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from jobs import Discard
from jobs.context import Files, Runtime
from jobs.library.report.tables import COLUMNS, open_table, parts_of
from jobs.library.report_annual import FilePart, ReportParams
from jobs.library.report_fetch import FetchParams

Small = Callable[..., str]
JANUARY, FEBRUARY = 27_004, 24_951


class Disk:
    """A runtime that may read everything here and fetches nothing."""

    def may_read(self, path: Path) -> bool:
        return True

    def fetch(self, uri: str, into: Path) -> Path:
        raise AssertionError(f"{uri} should not be fetched")


DISK = Files(cast("Runtime", Disk()), Path(), "job-1/0")


def rows_at(uri: str) -> int:
    return sum(rows.num_rows for rows in open_table("flights", uri, DISK).batches())


@pytest.mark.parametrize("model", [ReportParams, FetchParams])
def test_params_that_name_tables_tell_the_columns_that_are_read(model: type[BaseModel]) -> None:
    properties = model.model_json_schema()["properties"]

    for name, columns in COLUMNS.items():
        assert f"with the columns {', '.join(columns)}" in str(properties[name])


@pytest.fixture
def folder(small: Small, tmp_path: Path) -> Path:
    small("WHERE month = 1", name="all/a.parquet")
    small("WHERE month = 2", name="all/b.parquet")
    (tmp_path / "all" / "_SUCCESS").touch()
    return tmp_path / "all"


@pytest.mark.parametrize("form", ["{0}", "{0}/", "{0}/*.parquet", "{0}/[ab].parquet", "file://{0}"])
def test_folder_reads_all_its_files(form: str, folder: Path) -> None:
    assert rows_at(form.format(folder)) == JANUARY + FEBRUARY


def test_glob_reads_only_what_matches(folder: Path) -> None:
    assert rows_at(f"{folder}/b*") == FEBRUARY


def test_file_may_be_called_like_a_pattern(small: Small) -> None:
    assert rows_at(small("WHERE month = 1", name="flights [1].parquet")) == JANUARY


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_file_whose_name_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "x\udcff.parquet").touch()

    with pytest.raises(Discard, match="name is not UTF-8"):
        rows_at(str(tmp_path))


def test_columns_named_by_folders_are_read(small: Small, tmp_path: Path) -> None:
    small("WHERE month = 1", "* EXCLUDE year", "parts/year=2013/a.parquet")
    small("WHERE month = 1", "* EXCLUDE year", "parts/year=2012/a.parquet")
    table = open_table("flights", str(tmp_path / "parts"), DISK)

    kept = sum(rows.num_rows for rows in table.batches(ds.field("year") == 2012))

    assert (table.rows, kept) == (2 * JANUARY, JANUARY)


def test_ticks_add_up_to_all_rows_even_where_some_are_skipped(folder: Path) -> None:
    table = open_table("flights", str(folder), DISK)
    ticks: list[int] = []

    kept = sum(rows.num_rows for rows in table.batches(ds.field("month") == 2, ticks.append))

    assert kept == FEBRUARY
    assert sum(ticks) == table.rows == JANUARY + FEBRUARY


def test_file_of_one_row_group_is_read_in_small_batches(
    small: Small, tables: dict[str, str]
) -> None:
    path = Path(small())
    pq.write_table(pq.read_table(tables["flights"]), path, row_group_size=1 << 30)

    sizes = [rows.num_rows for rows in open_table("flights", str(path), DISK).batches()]

    assert max(sizes) <= 1 << 17


def test_rows_of_csv_are_estimated_from_its_size(small: Small) -> None:
    table = open_table("flights", small(name="part.csv"), DISK)

    assert table.rows == pytest.approx(JANUARY, rel=0.05)


def test_small_table_is_one_part(folder: Path) -> None:
    parts = list(parts_of(open_table("flights", str(folder), DISK), 1_000_000))

    assert [[file.path for file in part] for part in parts] == [["a.parquet", "b.parquet"]]


@pytest.mark.parametrize("rows_max", [1, 30_000, 60_000, 1_000_000])
def test_parts_are_the_table(rows_max: int, tables: dict[str, str], tmp_path: Path) -> None:
    whole = pq.read_table(tables["flights"])
    for n in range(2):
        half = whole.slice(n * 200_000, 200_000)
        pq.write_table(half, tmp_path / f"{n}.parquet", row_group_size=40_000)

    parts = list(parts_of(open_table("flights", str(tmp_path), DISK), rows_max))

    read = []
    for part in parts:
        table = open_table("flights", str(tmp_path), DISK, part)
        rows = list(table.batches())
        assert sum(batch.num_rows for batch in rows) == table.rows <= max(rows_max, 40_000)
        read += rows
    assert len(parts) == {1: 9, 30_000: 9, 60_000: 8, 1_000_000: 1}[rows_max]
    columns = ["month", "day", "carrier", "tailnum"]
    assert (
        pa.concat_tables(read)
        .select(columns)
        .equals(whole.select(columns).cast(pa.concat_tables(read).select(columns).schema))
    )


def test_each_csv_file_is_a_part_of_its_own(small: Small, tmp_path: Path) -> None:
    small("WHERE month = 1", name="all/a.csv")
    small("WHERE month = 2", name="all/b.csv")

    parts = list(parts_of(open_table("flights", str(tmp_path / "all"), DISK), 30_000))

    assert parts == [[FilePart(path="a.csv")], [FilePart(path="b.csv")]]


def test_part_has_the_columns_named_by_all_folders(small: Small, tmp_path: Path) -> None:
    small("WHERE month = 1", "* EXCLUDE carrier", "parts/carrier=9E/a.parquet")
    small("WHERE month = 2", "* EXCLUDE carrier", "parts/carrier=5/a.parquet")

    part = [FilePart(path="carrier=5/a.parquet")]
    table = open_table("flights", str(tmp_path / "parts"), DISK, part)

    assert {c for rows in table.batches() for c in rows["carrier"].to_pylist()} == {"5"}


def test_part_of_a_file_that_was_replaced_is_refused(folder: Path, small: Small) -> None:
    (part,) = parts_of(open_table("flights", str(folder), DISK), 1_000_000)
    pq.write_table(pq.read_table(folder / "b.parquet"), folder / "b.parquet", row_group_size=999)

    with pytest.raises(Discard, match=r"flights: b.parquet was changed while the job ran; submit"):
        open_table("flights", str(folder), DISK, part)


def test_table_without_rows_is_one_part_of_nothing(small: Small) -> None:
    path = small("WHERE month = 13")
    pq.write_table(pq.read_table(path), path)

    (part,) = parts_of(open_table("flights", path, DISK), 1_000)

    assert open_table("flights", path, DISK, part).rows == 0
