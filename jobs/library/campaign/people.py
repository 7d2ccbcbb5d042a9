"""The list of recipients, read once: who is mailed, and who is not and why.

Rule 1: nobody is on the list twice: an address counts by its lower case. Rule 2: what is wrong with
a row is told with its place; nothing is guessed.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from jobs.library.campaign.template import Fields
from jobs.outcome import Discard

__all__ = ["ADDRESS", "Row", "problem_of", "read_addresses", "read_rows"]

ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
#: Also those that nothing is sent to, such as those with letters beyond ASCII.
LIKE_AN_ADDRESS = re.compile(r"(?!')[^\s@,;:<>\"]+@[^\s@,;:<>\"]+(?<![.'])")
ADDRESS_CHARS_MAX = 254
#: Of one merge field.
FIELD_CHARS_MAX = 2_000
#: Of one line of a list; csv reads whole ones into memory.
LINE_CHARS_MAX = 1 << 20

Format = Literal["csv", "ndjson", "parquet"]
#: Place in the list from 1, and the row; or why it is none.
Row = tuple[int, Fields | str]


def format_of(name: str) -> Format:
    """Return what a file is by its name."""
    name = name.partition("?")[0].lower()
    if name.endswith(".parquet"):
        return "parquet"
    return "ndjson" if name.endswith((".ndjson", ".jsonl")) else "csv"


def read_rows(file: BinaryIO, form: Format, column: str) -> Iterator[Row]:
    """Yield the rows. Raises Discard for a file that is not of this form, or lacks the column."""
    if form == "parquet":
        yield from _parquet(file, column)
    else:
        # Marks of byte order are no part of the first column's name.
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            yield from _csv(lines, column) if form == "csv" else _ndjson(lines)
        except UnicodeDecodeError as error:
            raise Discard(f"source: is not UTF-8 ({error.reason}); save it as that") from error


def _csv(lines: Iterable[str], column: str) -> Iterator[Row]:
    csv.field_size_limit(LINE_CHARS_MAX)
    # Strict, for else a quote that is never closed swallows everybody after it.
    reader = csv.reader(lines, strict=True)
    try:
        yield from _records(reader, column)
    except csv.Error as error:
        raise Discard(
            f"source: line {reader.line_num} is no CSV ({error}); correct it, or say its format"
        ) from error


def _records(reader: Any, column: str) -> Iterator[Row]:
    header = [name.strip() for name in next(filter(None, reader), [])]
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise Discard(f"source: column {twice!r} stands twice in the header; rename one")
    _check_column(column, header, "or its commas")
    place = 0
    for cells in reader:
        if not cells:
            continue
        place += 1
        if len(cells) != len(header):
            yield place, f"has {len(cells)} cells, and the header {len(header)}"
        else:
            yield place, dict(zip(header, cells, strict=True))


def _ndjson(lines: Iterable[str]) -> Iterator[Row]:
    place = 0
    for line in lines:
        if not line.strip():
            continue
        place += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield place, _plain(row) if isinstance(row, dict) else "is no JSON object"


def _check_column(column: str, names: Sequence[str], or_else: str) -> None:
    if column not in names:
        told = ", ".join(repr(name[:60]) for name in names[:20]) or "none"
        raise Discard(
            f"source: it has no column {column!r}, but: {told}; correct params.column, the file, "
            f"{or_else}"
        )


def _parquet(file: BinaryIO, column: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    from jobs.library.table.damage import is_damage

    try:
        table = pyarrow.parquet.ParquetFile(file)
        _check_column(column, table.schema_arrow.names, "or say its format")
        place = 0
        for batch in table.iter_batches(batch_size=10_000):
            for row in batch.to_pylist():
                place += 1
                yield place, _plain(row)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise
        raise Discard(f"source: is no Parquet file ({error}); say its format") from error
    except (OverflowError, ValueError) as error:
        raise Discard(
            f"source: holds a value that no mail can tell ({error}); leave it out"
        ) from error


def _plain(row: Mapping[str, Any]) -> Fields | str:
    found = {}
    for name, value in row.items():
        if value is None:
            continue
        if isinstance(value, (dict, list, bytes)):
            return f"field {name[:60]!r} is no text and no number"
        found[name] = value if isinstance(value, str) else str(value)
    return found


def problem_of(fields: Fields, column: str, needed: Iterable[str]) -> str:
    """Return why nobody can be mailed by this row; empty if somebody can."""
    address = fields.get(column, "").strip()
    if not address:
        return f"has no {column!r}"
    if len(address) > ADDRESS_CHARS_MAX or not ADDRESS.fullmatch(address):
        return "is no address"
    for name in needed:
        if not fields.get(name):
            return f"lacks the merge field {name!r}"
    if any(not _is_unicode(value) for value in fields.values()):
        return "holds half of a character"
    long = [name for name, value in fields.items() if len(value) > FIELD_CHARS_MAX]
    return f"field {long[0][:60]!r} is over {FIELD_CHARS_MAX} characters" if long else ""


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return True


def read_addresses(path: Path) -> set[str]:
    """Return the addresses of a list of those who want no mail: the first cell of each line.

    Raises Discard for a line that has none there, except the first: whoever is not understood here
    would get a mail.
    """
    found: set[str] = set()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in filter(None, reader):
                first = cells[0].strip()
                if LIKE_AN_ADDRESS.fullmatch(first):
                    found.add(first.lower())
                elif first and (found or "@" in first or reader.line_num > 1):
                    raise Discard(
                        f"suppress: line {reader.line_num} begins with {first[:60]!r}, which is no "
                        "address; write one a line, or first in a line of CSV"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise Discard(
            f"suppress: is no list of addresses, one a line, in UTF-8 ({error})"
        ) from error
    return found
