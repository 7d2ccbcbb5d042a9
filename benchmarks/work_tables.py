"""Millions of rows of CSV into Parquet: by Drayman, and by a plain script.

Against a schema beside `pyarrow.csv` with the same types, which reads with all cores; against a
pydantic model beside a loop over `csv.DictReader`. Both read, check and write every row. What it
doesn't show: bad rows, which a plain script would stop at.
"""

import csv
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.asking import Measured
from benchmarks.server import ROOT, Server, clean_environment

__all__ = ["make_tables", "measured"]

TYPES = {
    "id": "int64",
    "price": "float64",
    "quantity": "int32",
    "customer": "string",
    "day": "date",
    "at": "timestamp(us)",
    "paid": "bool",
}
BY_SCHEMA = """
import sys, time
import pyarrow as pa, pyarrow.csv as pc, pyarrow.parquet as pq
types = {"id": pa.int64(), "price": pa.float64(), "quantity": pa.int32(), "customer": pa.string(),
         "day": pa.date32(), "at": pa.timestamp("us"), "paid": pa.bool_()}
for _ in range(2):
    began = time.perf_counter()
    table = pc.read_csv(sys.argv[1], convert_options=pc.ConvertOptions(column_types=types))
    assert not any(column.null_count for column in table.columns)
    pq.write_table(table, sys.argv[2])
    print(time.perf_counter() - began)
"""
BY_MODEL = """
import csv, sys, time
import pyarrow as pa, pyarrow.parquet as pq
from benchmarks.jobs import Sale
began = time.perf_counter()
rows, writer = [], None
def write():
    global writer
    table = pa.Table.from_pylist(rows)
    writer = writer or pq.ParquetWriter(sys.argv[2], table.schema)
    writer.write_table(table)
    rows.clear()
with open(sys.argv[1], newline="") as source:
    for row in csv.DictReader(source):
        rows.append(Sale.model_validate(row).model_dump())
        if len(rows) == 100_000:
            write()
if rows:
    write()
writer.close()
print(time.perf_counter() - began)
"""


def make_tables(folder: Path, rows: int, few: int) -> tuple[Path, Path]:
    """Write a table of so many rows, and one with the first few of them."""
    large, small = folder / "large.csv", folder / "small.csv"
    with large.open("w", newline="") as all_rows, small.open("w", newline="") as some:
        writers = csv.writer(all_rows), csv.writer(some)
        for writer in writers:
            writer.writerow(TYPES)
        for n, row in enumerate(_rows(rows)):
            writers[0].writerow(row)
            if n < few:
                writers[1].writerow(row)
    return large, small


def _rows(count: int) -> Iterator[list[Any]]:
    chance = random.Random(7)
    for n in range(count):
        name = f'customer, "{n % 9973}"' if n % 7 == 0 else f"customer {n % 99991}"
        day = f"20{10 + n % 15}-{1 + n % 12:02}-{1 + n % 28:02}"
        moment = f"{day} {n % 24:02}:{n % 60:02}:{n % 59:02}"
        price = round(chance.random() * 1000, 2)
        yield [n, price, n % 100, name, day, moment, "true" if n % 3 else "false"]


def measured(server: Server, large: Path, small: Path) -> Measured:
    """Import both, both ways."""
    columns = [{"name": n, "type": kind, "nullable": False} for n, kind in TYPES.items()]
    schema_s = _by_script(BY_SCHEMA, large)
    ours_s = _by_drayman(server, {"source": str(large), "columns": columns})
    model_s = _by_script(BY_MODEL, small)
    ours_model_s = _by_drayman(server, {"source": str(small), "model": "bench.sale"})
    return {
        ("table.import by schema, through Drayman", "s"): ours_s,
        ("table.import by schema, pyarrow", "s"): schema_s,
        ("table.import by schema, Drayman beside pyarrow", "%"): 100 * ours_s / schema_s,
        ("table.import by model, through Drayman", "s"): ours_model_s,
        ("table.import by model, a pydantic loop", "s"): model_s,
        ("table.import by model, Drayman beside the loop", "%"): 100 * ours_model_s / model_s,
    }


def _by_script(script: str, source: Path) -> float:
    command = [sys.executable, "-c", script, str(source), str(source.with_suffix(".parquet"))]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def _by_drayman(server: Server, params: dict[str, Any]) -> float:
    began = time.perf_counter()
    with server.api() as api:
        job = api.wait(api.submit("table.import", params)["id"])
    assert job["status"] == "completed", job
    return time.perf_counter() - began
