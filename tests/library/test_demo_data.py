"""The demo's tables: all rows, whole numbers as such, the same bytes each time."""

from pathlib import Path

import pyarrow.parquet as pq

from service.demo_data import SCHEMAS, write_flights


def test_tables_keep_their_schemas_and_missing_values_are_null(tables: dict[str, str]) -> None:
    read = {name: pq.read_table(uri) for name, uri in tables.items()}

    assert {name: table.schema for name, table in read.items()} == SCHEMAS
    assert read["flights"].num_rows == 336_776
    assert read["flights"]["dep_time"].null_count == 8_255
    assert read["flights"]["tailnum"].null_count == 2_512


def test_writing_again_gives_the_same_bytes(tables: dict[str, str], tmp_path: Path) -> None:
    again = write_flights(tmp_path)

    assert {n: p.read_bytes() for n, p in again.items()} == {
        n: Path(uri).read_bytes() for n, uri in tables.items()
    }
