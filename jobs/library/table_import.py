"""`table.import`: a large CSV or NDJSON file, checked row by row, as Parquet.

The split finds true record boundaries near equal byte ranges, each chunk reads its range and
writes Parquet, the join adds up, joins what was put aside, and publishes.

Rule 1: a row is either written once or in the quarantine once, with its line in the file and the
reason; a running attempt's files are nobody's until the attempt succeeds, and `into` is written by
the join alone, after every check. Rule 2: chunks, names and bytes follow from the source and the
params, so running again changes nothing. Rule 3: memory is a chunk and the table made of it; a
record longer than 64 MiB is put aside unread. Rule 4: a mistake that is the whole file's (a
missing column, a wrong encoding of the header) ends the job at once and names the fix.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote as url_quote

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.context import Context
from jobs.fan_out import fan_out
from jobs.library.table.models import TableModel, names, registered
from jobs.library.table.records import Splitter, count_lines
from jobs.library.table.schema import Column, check_unique
from jobs.library.table.source import (
    NO_VALUE,
    Source,
    file_path,
    match_columns,
    open_scratch,
    open_source,
    read_header,
    read_start,
    unpacked,
)
from jobs.outcome import Discard
from jobs.results import ChunkResult, Results

__all__ = ["ImportChunk", "ImportParams", "Imported", "table_import"]

CHUNKS_MAX = 100_000
RECORD_BYTES_MAX = 64 << 20
PARTITIONS_MAX = 1_000
#: Arrow converts blocks of this size fastest: they fit the processor's cache.
BLOCK_BYTES = 2 << 20
FILES_SHOWN_MAX = 1_000
QUARANTINE = "quarantine.ndjson"
MANIFEST = "manifest.json"
#: A longer bad row is cut in the quarantine.
_TEXT_CHARS_MAX = 64 << 10
_REASONS_SHOWN = 3
#: Lines before a chunk are counted, for the message of a job that fails, up to here.
_COUNTED_BYTES_MAX = 4 << 30

Sign = Annotated[str, Field(min_length=1, max_length=1, pattern=r"^[\x20-\x7e\t]$")]


class ImportParams(BaseModel):
    """What to import, what its rows must be, and where they go."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            description="A CSV or NDJSON file, plain or packed with gzip, zstd or bzip2: the URI "
            "an upload returned, an output: URI, s3://, or a path or file:// in a folder opened "
            "with --data-dir",
        ),
    ]
    format: Annotated[
        Literal["csv", "ndjson"] | None,
        Field(description="Default: by the name, .ndjson, .jsonl and .json lines being NDJSON"),
    ] = None
    columns: Annotated[
        list[Column] | None,
        Field(min_length=1, max_length=5_000, description="The schema; or give `model`"),
    ] = None
    model: Annotated[
        str | None,
        Field(max_length=200, description="A pydantic model that job code named: @table_model"),
    ] = None
    other_columns: Annotated[
        Literal["refuse", "ignore"],
        Field(description="What to do about a column of the file that the schema lacks"),
    ] = "refuse"
    delimiter: Sign = ","
    quote: Annotated[Sign | None, Field(description="null: quotes are ordinary text")] = '"'
    header: Annotated[
        bool, Field(description="Whether the first record names the columns; else schema order")
    ] = True
    encoding: Literal[
        "utf-8", "latin-1", "iso-8859-2", "iso-8859-15", "cp1250", "cp1251", "cp1252"
    ] = "utf-8"
    nulls: Annotated[
        list[Annotated[str, Field(max_length=100)]],
        Field(
            max_length=50,
            description="Texts that mean null in CSV, quoted or not; a model gets None for them",
        ),
    ] = [""]
    text_nulls: Annotated[
        bool, Field(description="Whether `nulls` mean null in string columns and str fields too")
    ] = False
    timestamp_formats: Annotated[
        list[Annotated[str, Field(min_length=2, max_length=60)]],
        Field(max_length=10, description="strptime formats of CSV dates and times, or ISO8601"),
    ] = []
    partition_by: Annotated[
        list[str], Field(max_length=4, description="Columns whose values become folders")
    ] = []
    into: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=2048,
            description="Folder to publish in: s3://, gs://, or a path or file:// in a folder "
            "opened with --data-dir."
            " Default: the Parquet files are outputs of the job",
        ),
    ] = None
    name: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
            description="Files in `into` begin with it; importing again under the same name "
            "replaces what the earlier import wrote there. Default: made of `source`",
        ),
    ] = None
    bad_rows_max: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)],
        Field(description="Bad rows put aside before the job fails: a count, or a share as 0.01"),
    ] = 0
    chunk_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 64 << 20
    compression: Literal["snappy", "zstd", "gzip", "none"] = "snappy"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.columns is None) == (self.model is None):
            raise ValueError("give either columns or model")
        if self.columns is not None:
            check_unique(self.columns)
        if self.quote == self.delimiter:
            raise ValueError("quote and delimiter are the same sign")
        if not self.is_csv and self.encoding != "utf-8":
            raise ValueError("encoding: NDJSON is utf-8")
        if len(set(self.partition_by)) < len(self.partition_by):
            raise ValueError("partition_by names a column twice")
        for name in self.partition_by if self.columns else []:
            if name not in {c.name for c in self.columns or ()}:
                raise ValueError(f"partition_by: {name!r} is not among columns")
            if len(self.columns or ()) == len(self.partition_by):
                raise ValueError("partition_by: leave a column that is not a folder")
        return self

    @property
    def is_csv(self) -> bool:
        """Whether the source is CSV, told or by its name."""
        if self.format is not None:
            return self.format == "csv"
        name = re.sub(r"\.(gz|zst|bz2)$", "", self.source.partition("?")[0].lower())
        return not name.endswith((".ndjson", ".jsonl", ".json"))

    @property
    def file_stem(self) -> str:
        """How files in `into` begin."""
        if self.name is not None:
            return self.name
        path = file_path(self.source) or self.source.partition("?")[0]
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(path).name.partition(".")[0])
        mark = hashlib.sha256(self.source.encode()).hexdigest()[:10]
        return f"{plain.strip('-_')[:60] or 'part'}-{mark}"


class ImportChunk(BaseModel):
    """A range of bytes that begins and ends with a record."""

    index: int
    start: int
    end: int
    #: Size of the source; another one later means it was replaced.
    size: int
    #: Where the unpacked bytes are, if the source was compressed.
    source: str | None = None
    #: Why the last record must not be read.
    last: Literal["", "long", "unclosed"] = ""


class ImportedFile(BaseModel):
    """A Parquet file that a chunk wrote."""

    name: str
    #: `year=2013/month=1/`, or nothing.
    folder: str
    rows: int
    bytes: int


class Imported(BaseModel):
    """What became of a chunk."""

    rows: int
    bad: int
    lines: int
    files: list[ImportedFile]
    #: The first few bad rows: line within the chunk (of the first: within the file), reason.
    reasons: list[tuple[int, str]]


@dataclass(frozen=True)
class Layout:
    """Where the rows start, and what the fields of each are called."""

    header: list[str]
    start: int
    #: Lines before `start`.
    lines: int


def find_chunks(ctx: Context, params: ImportParams) -> Iterator[ImportChunk]:
    """Yield ranges of whole records of about `chunk_bytes`."""
    _columns(params)
    if params.into is not None:
        from jobs.library.table.place import open_place

        open_place(ctx.files, params.into)
    with open_source(ctx.files, params.source) as source:
        path = unpacked(ctx, source, "unpacked")
        if path is None:
            yield from _chunks(ctx, params, source, None)
    if path is not None:
        moved = ctx.files.save(path)
        with open_scratch(path) as source:
            yield from _chunks(ctx, params, source, moved)


def _chunks(
    ctx: Context, params: ImportParams, source: Source, moved: str | None
) -> Iterator[ImportChunk]:
    splitter = _splitter(params, source)
    layout = _layout(params, source, splitter)
    if (source.size - layout.start) / params.chunk_bytes > CHUNKS_MAX:
        raise Discard(
            f"chunk_bytes: {params.chunk_bytes} makes more than {CHUNKS_MAX} chunks of "
            f"{source.size} bytes; raise it"
        )
    start = layout.start
    for index, end in enumerate(splitter.ends(layout.start, params.chunk_bytes)):
        last: Literal["", "long", "unclosed"] = ""
        if end == source.size and splitter.unclosed(start):
            last = "unclosed"
        elif end - start > params.chunk_bytes + RECORD_BYTES_MAX:
            last = "long"
        yield ImportChunk(
            index=index, start=start, end=end, size=source.size, source=moved, last=last
        )
        ctx.progress(end / source.size, f"Found {index + 1} chunks")
        start = end


def import_chunk(ctx: Context, params: ImportParams, chunk: ImportChunk) -> Imported:
    """Import a large CSV or NDJSON file as Parquet, bad rows put aside with their reasons."""
    import pyarrow as pa

    from jobs.library.table.rows import Bad

    _columns(params)
    bad: list[tuple[int, str]] = []
    count = 0
    aside = ctx.files.workdir / QUARANTINE
    with (
        open_source(ctx.files, chunk.source or params.source) as source,
        aside.open("w", encoding="utf-8") as quarantine,
    ):
        if source.size != chunk.size:
            raise Discard(
                f"source: it had {chunk.size} bytes when the import began and has {source.size} "
                "now; import it again"
            )
        splitter = _splitter(params, source)
        layout = _layout(params, source, splitter)
        rows = _rows(params, layout)

        def put_aside(one: Bad) -> None:
            nonlocal count
            count += 1
            if len(bad) < _REASONS_SHOWN:
                bad.append((one.line, one.reason))
            told = {"line": one.line, "reason": one.reason, "text": one.text[:_TEXT_CHARS_MAX]}
            quarantine.write(json.dumps(told, ensure_ascii=False) + "\n")
            if isinstance(params.bad_rows_max, int) and count > params.bad_rows_max:
                raise Discard(_too_many(params, _before(source, chunk, params), bad))

        end = chunk.end if not chunk.last else splitter.last_start(chunk.start, chunk.end)
        tables: list[Any] = []
        # The first chunk counts the header's lines as its own: those after it need not know.
        lines = layout.lines if chunk.index == 0 else 0
        done = 0
        for data in _blocks(params, source, chunk.start, end):
            tables += rows.read(data, lines, put_aside)
            lines += _lines_in(params, data)
            done += len(data)
            ctx.progress(0.9 * done / (chunk.end - chunk.start), "Reading rows")
        if end < chunk.end:
            told = {
                "unclosed": "its quote is never closed; the file ends inside the field",
                "long": f"it is longer than {RECORD_BYTES_MAX} bytes; is a quote missing?",
            }[chunk.last]
            text = source.read(end, _TEXT_CHARS_MAX).decode(params.encoding, "backslashreplace")
            put_aside(Bad(lines + 1, told, text))
            lines += _lines_between(params, source, end, chunk.end)
    table = pa.concat_tables(tables) if tables else None
    written = 0 if table is None else table.num_rows
    files = [] if table is None else list(_write(ctx, params, chunk.index, table))
    if count:
        ctx.files.save(aside, QUARANTINE)
    return Imported(rows=written, bad=count, lines=lines, files=files, reasons=bad)


def finish(ctx: Context, params: ImportParams, results: Results[Imported]) -> dict[str, Any]:
    """Add up, write the quarantine and the manifest, publish in `into`."""
    written = bad = size = 0
    reasons: list[tuple[int, str]] = []
    before = 0
    files: list[dict[str, Any]] = []
    starts: list[int] = []
    for result in results:
        done = result.value
        if len(reasons) < _REASONS_SHOWN:
            told = [(before + line, reason) for line, reason in done.reasons]
            reasons += told[: _REASONS_SHOWN - len(reasons)]
        starts.append(before)
        before += done.lines
        written += done.rows
        bad += done.bad
        for file in done.files:
            size += file.bytes
            target = f"{file.folder}{params.file_stem}-{result.index:05d}.parquet"
            files.append(
                {
                    "uri": result.files[file.name],
                    "name": target,
                    "rows": file.rows,
                    "bytes": file.bytes,
                }
            )
    most = params.bad_rows_max
    if bad > (most * (written + bad) if isinstance(most, float) else most):
        raise Discard(_too_many(params, 0, reasons, bad, written + bad))
    if bad:
        with ctx.files.open_output(QUARANTINE) as output:
            for result, start in zip(results, starts, strict=True):
                output.writelines(_renumbered(ctx, result, start))
    summary = {
        "rows_read": written + bad,
        "rows_written": written,
        "rows_quarantined": bad,
        "bytes": size,
    }
    if params.into is not None:
        _publish(ctx, params, files, summary)
    manifest = {**summary, "files": files}
    ctx.files.write(MANIFEST, json.dumps(manifest, indent=1).encode())
    ctx.progress(1.0, f"Imported {written} rows, put {bad} aside")
    return {
        **summary,
        "files": [file["uri"] for file in files[:FILES_SHOWN_MAX]],
        "file_count": len(files),
        "quarantine": QUARANTINE if bad else None,
        "manifest": MANIFEST,
    }


table_import = fan_out("table.import", split=find_chunks, join=finish, timeout_s=3600)(import_chunk)


def _columns(params: ImportParams) -> tuple[list[Column], TableModel | None]:
    """Return the columns to write, and the registered model if params name one."""
    if params.columns is not None:
        return params.columns, None
    found = registered(params.model or "")
    if found is None:
        known = ", ".join(names()) or "none so far"
        raise Discard(
            f"model: {params.model!r} is not registered; job code names models with "
            f"@table_model({params.model!r}). Registered: {known}"
        )
    columns = list(found.columns)
    for name in params.partition_by:
        if name not in {c.name for c in columns} or len(columns) == len(params.partition_by):
            raise Discard(f"partition_by: {name!r} is no field that can be a folder")
    return columns, found


def _splitter(params: ImportParams, source: Any) -> Splitter:
    quote = params.quote.encode() if params.quote else None
    return Splitter(source, params.delimiter.encode(), quote, json=not params.is_csv)


def _layout(params: ImportParams, source: Source, splitter: Splitter) -> Layout:
    from jobs.library.table.rows import keys_of

    start = read_start(source, params.encoding)
    columns, model = _columns(params)
    if not params.is_csv:
        return Layout([], start, 0)
    if not params.header:
        return Layout([c.name for c in columns], start, 0)
    header, after = read_header(
        source, splitter, start, params.encoding, params.delimiter, params.quote
    )
    if not header:
        raise Discard("source: the file is empty, it has not even a header; set header to false")
    if model is None:
        wanted = [(c.name, True) for c in columns]
        match_columns(header, wanted, params.other_columns, params.delimiter)
    else:
        wanted = []
        for field, info in model.model.model_fields.items():
            keys = keys_of(model.model, field)
            is_plain = info.validation_alias is None or isinstance(info.validation_alias, str)
            found = any(key in header for key in keys)
            wanted += [(key, False) for key in keys]
            wanted.append((keys[-1], info.is_required() and is_plain and not found))
        match_columns(header, wanted, params.other_columns, params.delimiter)
    return Layout(header, after, _lines_between(params, source, 0, after))


def _rows(params: ImportParams, layout: Layout) -> Any:
    from jobs.library.table.rows import CsvModelRows, CsvRows, Dialect, JsonModelRows, JsonRows

    columns, model = _columns(params)
    if not params.is_csv:
        if model is None:
            return JsonRows(columns, params.other_columns)
        return JsonModelRows(model.model, columns)
    dialect = Dialect(
        params.encoding,
        params.delimiter,
        params.quote,
        tuple(params.nulls),
        params.text_nulls,
        tuple(params.timestamp_formats),
    )
    if model is None:
        return CsvRows(dialect, layout.header, columns)
    return CsvModelRows(dialect, layout.header, model.model, columns)


def _blocks(params: ImportParams, source: Source, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from `start` to `end` in pieces of whole records."""
    if start == end:
        return
    whole = _Held(source.read(start, end - start))
    low = 0
    for high in _splitter(params, whole).ends(0, BLOCK_BYTES):
        yield whole.read(low, high - low)
        low = high


class _Held:
    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read(self, start: int, length: int) -> bytes:
        return self._data[start : start + length]


def _lines_in(params: ImportParams, data: bytes) -> int:
    return count_lines(data) if params.is_csv else data.count(b"\n")


def _lines_between(params: ImportParams, source: Source, start: int, end: int) -> int:
    lines = 0
    while start < end:
        data = source.read(start, min(8 << 20, end - start))
        if data.endswith(b"\r") and start + len(data) < end:
            data += source.read(start + len(data), 1)
        lines += _lines_in(params, data)
        start += len(data)
    return lines


def _before(source: Source, chunk: ImportChunk, params: ImportParams) -> int | None:
    """Return how many lines come before the chunk, for a message; None if that takes too long."""
    if chunk.index == 0:
        return 0
    if chunk.start > _COUNTED_BYTES_MAX:
        return None
    return _lines_between(params, source, 0, chunk.start)


def _too_many(
    params: ImportParams,
    before: int | None,
    bad: Iterable[tuple[int, str]],
    count: int | None = None,
    of: int | None = None,
) -> str:
    where = "line" if before is not None else "line (within a late part of the file)"
    told = "; ".join(f"{where} {(before or 0) + line}: {reason}" for line, reason in bad)
    much = "more" if count is None else f"{count} of {of} rows are bad, more"
    return (
        f"{much} than bad_rows_max={params.bad_rows_max} allows. {told}. "
        "Correct the file, or raise bad_rows_max to put such rows aside"
    )


def _renumbered(ctx: Context, result: ChunkResult[Imported], before: int) -> Iterator[bytes]:
    if not result.value.bad:
        return
    with ctx.files.open(result.files[QUARANTINE]) as file:
        for line in file:
            one = json.loads(line)
            one["line"] += before
            yield json.dumps(one, ensure_ascii=False).encode() + b"\n"


def _publish(
    ctx: Context, params: ImportParams, files: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    from jobs.library.table.place import open_place, publish

    place = open_place(ctx.files, params.into or "")

    def getter(uri: str) -> Callable[[], bytes]:
        def get() -> bytes:
            with ctx.files.open(uri) as file:
                return file.read()

        return get

    publish(
        place,
        params.file_stem,
        [(file["name"], getter(file["uri"])) for file in files],
        summary,
        lambda done: ctx.progress(done / max(1, len(files)), f"Published {done} files"),
    )
    for file in files:
        file["uri"] = place.uri(file["name"])


def _write(ctx: Context, params: ImportParams, index: int, table: Any) -> Iterator[ImportedFile]:
    for folder, part in _partitions(params, table):
        name = folder.replace("/", "__") + f"part-{index:05d}.parquet"
        if len(name) > 240:
            raise Discard(f"partition_by: {folder[:80]}... is too long for a file's name")
        yield ImportedFile(
            name=name, folder=folder, rows=part.num_rows, bytes=_parquet(ctx, params, name, part)
        )


def _parquet(ctx: Context, params: ImportParams, name: str, table: Any) -> int:
    import pyarrow.parquet as pq

    path = ctx.files.workdir / name
    pq.write_table(table, path, compression=params.compression)
    size = path.stat().st_size
    ctx.files.save(path, name)
    path.unlink()
    return size


def _partitions(params: ImportParams, table: Any) -> Iterator[tuple[str, Any]]:
    """Yield (`year=2013/`, its rows in order), by first appearance."""
    if not params.partition_by:
        yield "", table
        return
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = params.partition_by
    numbered = table.select(keys).append_column("", pa.array(range(table.num_rows), pa.int64()))
    groups = numbered.group_by(keys, use_threads=False).aggregate([("", "list")])
    if groups.num_rows > PARTITIONS_MAX:
        raise Discard(
            f"partition_by: {groups.num_rows} folders in one chunk, {PARTITIONS_MAX} at most; "
            "choose a column with fewer values"
        )
    rest = table.drop_columns(keys)
    texts = [
        [
            NO_VALUE if value is None else url_quote(value, safe="")
            for value in pc.cast(groups.column(key), pa.string()).to_pylist()
        ]
        for key in keys
    ]
    places = groups.column("_list").combine_chunks()
    for n in range(groups.num_rows):
        folder = "".join(
            f"{url_quote(k, safe='')}={t[n]}/" for k, t in zip(keys, texts, strict=True)
        )
        yield folder, rest.take(places[n].values)
