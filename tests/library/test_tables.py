"""Opening and reading what a URI names, without making a report of it."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.context import Files, Runtime
from jobs.library.report.tables import open_table

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
