"""A table of the report: what a URI names, checked, and read as a stream of clean batches.

Rule 1: every file is checked (format, columns, types) before the first row is read, because Arrow
fills a column that one file of many lacks with nulls, and a report made of those is silently wrong.
Rule 2: the reader holds a few batches, whatever the size of files and row groups.
Rule 3: messages name the table, the file and the fix, and never show credentials.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from jobs.buckets import refuse_own
from jobs.context import Files
from jobs.errors import InvalidInput, NotFound
from jobs.library.report_annual import FilePart
from jobs.library.table.damage import is_damage
from jobs.outcome import Discard

__all__ = ["COLUMNS", "Kind", "Table", "open_table", "parts_of", "shown_name", "write_parquet"]

#: `whole` must be integers; `rounded` becomes integers; `number` stays a float.
Kind = Literal["whole", "rounded", "number", "text"]

#: The columns the report reads; any others are left alone.
COLUMNS: Mapping[str, Mapping[str, Kind]] = {
    "flights": {
        "year": "whole",
        "month": "whole",
        "day": "whole",
        "hour": "whole",
        "carrier": "text",
        "tailnum": "text",
        "origin": "text",
        "dest": "text",
        "dep_time": "rounded",
        "dep_delay": "rounded",
        "arr_delay": "rounded",
        "air_time": "rounded",
        "distance": "rounded",
    },
    "airlines": {"carrier": "text", "name": "text"},
    "airports": {"faa": "text", "name": "text"},
    "planes": {
        "tailnum": "text",
        "year": "rounded",
        "manufacturer": "text",
        "model": "text",
        "seats": "rounded",
    },
    "weather": {
        "origin": "text",
        "year": "whole",
        "month": "whole",
        "day": "whole",
        "hour": "whole",
        "wind_speed": "number",
        "precip": "number",
        "visib": "number",
    },
}

SUFFIXES = (".parquet", ".pq", ".csv")
STORES = ("s3", "gs", "gcs", "abfs", "abfss")
NULLS = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
BATCH_ROWS = 1 << 17
SAMPLE_BYTES = 1 << 16
#: Reading columns through a small buffer, instead of row group by row group, is what keeps memory
#: flat when somebody wrote one row group of twenty million rows.
PARQUET_SCAN = ds.ParquetFragmentScanOptions(
    use_buffered_stream=True, buffer_size=1 << 20, pre_buffer=False
)


#: Files of one part at most, so that a part's description stays short.
PART_FILES_MAX = 500


@dataclass(frozen=True)
class Table:
    """One checked table. `rows` is exact for Parquet and an estimate for CSV."""

    name: str
    #: What the reader is told about where the rows came from.
    shown: str
    dataset: Any
    rows: int
    #: What is read, in file order: whole files, or row groups of them.
    fragments: tuple[Any, ...]
    #: The folder that the paths of its parts are in, or the file.
    base: str
    #: The rows of each CSV file; empty for Parquet, which says them itself.
    estimates: tuple[int, ...] = ()

    def batches(
        self, keep: Any = None, tick: Callable[[int], None] = lambda rows: None
    ) -> Iterator[Any]:
        """Yield the rows that match the expression `keep`, cleaned, as Arrow tables in file order.

        `tick` gets the number of rows of each batch read, before the filter; parts of Parquet
        files whose statistics rule a match out are skipped and ticked at once.
        """
        columns = COLUMNS[self.name]
        for fragment in self.fragments:
            try:
                for batch in self._scan(fragment, keep, tick):
                    yield pa.table(
                        {name: _clean(batch.column(name), kind) for name, kind in columns.items()}
                    )
            except (pa.ArrowInvalid, OSError) as error:
                if not is_damage(error, in_bucket=_is_bucket(fragment.filesystem)):
                    raise
                raise _bad(
                    self.name,
                    f"{_base(fragment.path)} cannot be read ({_first_line(error)})",
                    "correct the file",
                ) from error

    def _scan(self, fragment: Any, keep: Any, tick: Callable[[int], None]) -> Iterator[Any]:
        schema = _whole_schema(fragment, self.dataset.schema)
        options = None
        if isinstance(fragment, ds.ParquetFileFragment):
            options = PARQUET_SCAN
            if keep is not None:
                before = sum(group.num_rows for group in fragment.row_groups)
                fragment = fragment.subset(filter=keep, schema=schema)
                kept = sum(group.num_rows for group in fragment.row_groups)
                tick(before - kept)
                if not kept:
                    return
        for batch in fragment.to_batches(
            schema=schema,
            columns=list(COLUMNS[self.name]),
            batch_size=BATCH_ROWS,
            batch_readahead=2,
            fragment_readahead=1,
            fragment_scan_options=options,
        ):
            tick(batch.num_rows)
            rows = batch if keep is None else batch.filter(keep)
            if rows.num_rows:
                yield rows


def open_table(name: str, uri: str, files: Files, only: Sequence[FilePart] | None = None) -> Table:
    """Return the table `name` found at `uri`; `files` makes other URIs (`upload:`...) local.

    With `only` the rest is neither checked nor read. Raises Discard, naming the fix, if nothing is
    there, it is neither Parquet nor CSV, a column is missing or of the wrong type, or a part is not
    what it was.
    """
    shown = _without_secrets(uri)
    filesystem, base, pattern = _locate(name, uri, shown, files)
    paths = _list(name, filesystem, base, pattern, shown)
    parquet = _is_parquet(name, filesystem, paths[0])
    form = ds.ParquetFileFormat() if parquet else _csv_format(name)
    try:
        # Of all files, also for a part: types of columns named by folders depend on all names.
        dataset = ds.dataset(paths, filesystem=filesystem, format=form, partitioning="hive")
        fragments = tuple(dataset.get_fragments())
        if only is not None:
            fragments = tuple(_selected(name, fragments, base, only))
        for fragment in fragments:
            _check_columns(name, fragment, _whole_schema(fragment, dataset.schema))
    except (pa.ArrowInvalid, OSError) as error:
        if not is_damage(error, in_bucket=_is_bucket(filesystem)):
            raise
        kind = "Parquet" if parquet else "CSV"
        raise _bad(
            name,
            f"{_base(shown)} cannot be read as {kind} ({_first_line(error)})",
            "correct the file",
        ) from error
    if parquet:
        rows = sum(group.num_rows for fragment in fragments for group in fragment.row_groups)
        return Table(name, _base(shown), dataset, rows, fragments, base)
    estimates = tuple(_estimate_rows(filesystem, fragment.path) for fragment in fragments)
    return Table(name, _base(shown), dataset, sum(estimates), fragments, base, estimates)


def parts_of(table: Table, rows_max: int) -> Iterator[list[FilePart]]:
    """Yield parts of about `rows_max` rows, in file order; together they are the table.

    A row group and a CSV file stay whole, however large. A table of fewer rows, or of none, is
    one part.
    """
    part: list[FilePart] = []
    rows = 0
    for piece, size in _pieces(table):
        last = part[-1] if part else None
        if part and (rows + size > rows_max or (len(part) == PART_FILES_MAX)):
            yield part
            part, rows, last = [], 0, None
        if last is not None and last.path == piece.path:
            part[-1] = last.model_copy(update={"end": piece.end})
        else:
            part.append(piece)
        rows += size
    yield part


def write_parquet(table: Table, out: BinaryIO, tick: Callable[[int], None]) -> int:
    """Write the columns that the report reads, cleaned, in file order; return the rows."""
    types = {"text": pa.string(), "number": pa.float64()}
    schema = pa.schema([(c, types.get(k, pa.int64())) for c, k in COLUMNS[table.name].items()])
    rows = 0
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in table.batches(None, tick):
            writer.write_table(batch)
            rows += batch.num_rows
    return rows


def _pieces(table: Table) -> Iterator[tuple[FilePart, int]]:
    """Yield the smallest parts, with their rows."""
    for n, fragment in enumerate(table.fragments):
        path = fragment.path[len(table.base) :].lstrip("/")
        if table.estimates:
            yield FilePart(path=path), table.estimates[n]
            continue
        groups = fragment.row_groups
        for at, group in enumerate(groups):
            yield FilePart(path=path, first=at, end=at + 1, groups=len(groups)), group.num_rows


def _selected(
    name: str, fragments: Sequence[Any], base: str, only: Sequence[FilePart]
) -> Iterator[Any]:
    by_path = {fragment.path[len(base) :].lstrip("/"): fragment for fragment in fragments}
    for part in only:
        fragment = by_path.get(part.path)
        if fragment is None or (part.groups is not None and fragment.num_row_groups != part.groups):
            raise _bad(
                name,
                f"{_base(part.path or base)} was changed while the job ran",
                "submit it again once the table is complete",
            )
        if part.first is None or part.end is None or (part.first, part.end) == (0, part.groups):
            yield fragment
        else:
            yield fragment.subset(row_group_ids=list(range(part.first, part.end)))


def _locate(name: str, uri: str, shown: str, files: Files) -> tuple[Any, str, str | None]:
    """Return the file system, the path in it up to the first wildcard, and the pattern after it."""
    parts = urlsplit(uri)
    if parts.scheme in STORES:
        path, pattern = _split_glob(parts.path)
        base = urlunsplit(parts._replace(path=path))
        try:
            refuse_own(base)
        except InvalidInput as error:
            raise _bad(name, f"{shown} may not be read ({error})", "correct the URI") from error
        try:
            filesystem, root = fs.FileSystem.from_uri(base)
        except pa.ArrowInvalid as error:
            raise _bad(
                name, f"{shown} is not a usable URI ({_first_line(error)})", "correct it"
            ) from error
        return filesystem, root.rstrip("/"), pattern
    if parts.scheme == "file":
        path, pattern = _split_path(unquote(parts.path))
    elif "://" in uri or uri.startswith(("upload:", "output:")):
        return fs.LocalFileSystem(), str(_brought(name, uri, shown, files.fetch)), None
    else:
        path, pattern = _split_path(uri)
    return fs.LocalFileSystem(), str(_brought(name, path or ".", shown, files.local)), pattern


def _brought(name: str, uri: str, shown: str, bring: Callable[[str], Path]) -> Path:
    try:
        return bring(uri)
    except (NotFound, InvalidInput, FileNotFoundError) as error:
        raise _bad(
            name, f"{shown} cannot be fetched ({error})", "upload it, or correct the URI"
        ) from error


def _split_path(path: str) -> tuple[str, str | None]:
    # A file's own name may hold a wildcard's sign; then it is no pattern.
    return (path, None) if Path(path).expanduser().exists() else _split_glob(path)


def _split_glob(path: str) -> tuple[str, str | None]:
    segments = path.split("/")
    for n, segment in enumerate(segments):
        if any(sign in segment for sign in "*?["):
            return "/".join(segments[:n]) or ("/" if path.startswith("/") else ""), "/".join(
                segments[n:]
            )
    return path, None


def _list(name: str, filesystem: Any, base: str, pattern: str | None, shown: str) -> list[str]:
    found = filesystem.get_file_info(base)
    if found.type == fs.FileType.NotFound:
        raise _bad(name, f"there is nothing at {shown}", f"correct the URI in params.{name}")
    if found.type == fs.FileType.File:
        return [base]
    try:
        paths = sorted(
            info.path
            for info in filesystem.get_file_info(fs.FileSelector(base, recursive=True))
            if info.type == fs.FileType.File
            and _belongs(info.path[len(base) :].lstrip("/"), pattern)
        )
    except UnicodeDecodeError as error:
        raise _bad(
            name,
            f"beneath {shown} is a file whose name is not UTF-8 ({error.object!r})",
            "rename it",
        ) from error
    if not paths:
        raise _bad(
            name,
            f"no {' or '.join(SUFFIXES)} files at {shown}",
            f"correct the URI in params.{name}",
        )
    return paths


def _belongs(relative: str, pattern: str | None) -> bool:
    # Writers leave _SUCCESS, _metadata and .crc files beside their data.
    if any(segment.startswith(("_", ".")) for segment in relative.split("/")):
        return False
    if pattern is None:
        return relative.lower().endswith(SUFFIXES)
    return fnmatchcase(relative, pattern)


def _is_parquet(name: str, filesystem: Any, path: str) -> bool:
    """Tell Parquet from CSV by content: names lie, and uploads may have none."""
    with filesystem.open_input_file(path) as file:
        sample = file.read(SAMPLE_BYTES)
    if sample.startswith(b"PAR1"):
        return True
    if not sample:
        raise _bad(name, f"{_base(path)} is empty", "give a Parquet or CSV file with rows")
    # A cut multi-byte character at the end of the sample is not an error of the file.
    text = sample.decode("utf-8", errors="ignore")
    if (
        b"\0" in sample
        or len(sample) - len(text.encode()) > 3
        or path.endswith((".parquet", ".pq"))
    ):
        raise _bad(
            name,
            f"{_base(path)} is neither Parquet nor CSV",
            "give a Parquet file, or CSV in UTF-8 with commas and a header line",
        )
    return False


def _csv_format(name: str) -> Any:
    types = {"whole": pa.int64(), "rounded": pa.float64(), "number": pa.float64()}
    return ds.CsvFileFormat(
        convert_options=pacsv.ConvertOptions(
            column_types={c: types.get(k, pa.string()) for c, k in COLUMNS[name].items()},
            null_values=NULLS,
            strings_can_be_null=True,
        )
    )


def _whole_schema(fragment: Any, common: Any) -> Any:
    """Return the file's own schema plus the columns that its folder names (`year=2013/`) give."""
    schema = fragment.physical_schema
    for key in ds.get_partition_keys(fragment.partition_expression):
        if key not in schema.names:
            schema = schema.append(common.field(key))
    return schema


def _check_columns(name: str, fragment: Any, schema: Any) -> None:
    wanted = COLUMNS[name]
    where = _base(fragment.path)
    missing = [column for column in wanted if column not in schema.names]
    if missing:
        one = len(missing) == 1
        raise _bad(
            name,
            f"{where} has no column{'' if one else 's'} {', '.join(missing)}",
            f"add {'it' if one else 'them'}; found {', '.join(schema.names[:24])}",
        )
    for column, kind in wanted.items():
        found = schema.field(column).type
        if not _fits(found, kind):
            need = "text" if kind == "text" else "numbers"
            raise _bad(
                name,
                f"column {column} of {where} holds {found}, not {need}",
                f"write it as {need}",
            )


def _fits(found: Any, kind: Kind) -> bool:
    types = pa.types
    if types.is_null(found):
        return True
    if kind == "text":
        value = found.value_type if types.is_dictionary(found) else found
        return bool(
            types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
        )
    return bool(types.is_integer(found) or types.is_floating(found) or types.is_decimal(found))


def _clean(column: Any, kind: Kind) -> Any:
    if kind == "text":
        text = column.cast(pa.string())
        return pc.if_else(pc.equal(text, ""), None, text)
    if pa.types.is_integer(column.type) and kind != "number":
        return column.cast(pa.int64())
    numbers = column.cast(pa.float64())
    numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
    if kind == "number":
        return numbers
    return (numbers if kind == "whole" else pc.round(numbers)).cast(pa.int64())


def _estimate_rows(filesystem: Any, path: str) -> int:
    with filesystem.open_input_file(path) as file:
        sample = file.read(SAMPLE_BYTES)
        size: int = file.size()
    lines = int(sample.count(b"\n"))
    return max(1, size * lines // max(1, len(sample)))


def shown_name(uri: str) -> str:
    """Return what the report tells of where a table came from: the last part, no credentials."""
    return _base(_without_secrets(uri))


def _without_secrets(uri: str) -> str:
    """Drop `user:password@` and the query, where credentials hide, from a URI with a host."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _is_bucket(filesystem: Any) -> bool:
    return not isinstance(filesystem, fs.LocalFileSystem)


def _base(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _first_line(error: BaseException) -> str:
    """Return what is wrong: Arrow puts the cause last, after the names of all it went through."""
    return str(error).partition("\n")[0].rpartition("Invalid: ")[2][:200]


def _bad(table: str, problem: str, fix: str) -> Discard:
    return Discard(f"{table}: {problem}; {fix}")
