"""`table.export`: rows of Parquet files as CSV, NDJSON or Parquet, in one file or in parts.

Rule 1: a query of `columns` and `where` looks at one row at a time, so it runs in chunks of row
groups and gives the rows in the order of the sources. `sql` may look at any rows (sums, joins,
ORDER BY), so it runs as one chunk: never in pieces, which would give wrong sums.
Rule 2: the same files and params give the same bytes, whatever the chunks' order of running.
Rule 3: SQL sees the view `source` and nothing else: no files, no network, no settings.
Rule 4: what a format cannot hold (a list in CSV) is refused before the first row is read. But
NaN and the infinities, which JSON has no words for, are null in NDJSON.
"""

import contextlib
import datetime as dt
import gzip
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from jobs.context import Context
from jobs.fan_out import fan_out
from jobs.library.table.piece import Piece
from jobs.outcome import Discard
from jobs.results import Results

__all__ = ["Condition", "ExportChunk", "ExportParams", "Exported", "table_export"]

BATCH_ROWS = 1 << 16
CHUNKS_MAX = 100_000
SQL_MEMORY = "2GB"
#: What DuckDB says, before Arrow's own words, where the files cannot be read.
_SOURCE_FAILED = "registered as 'source' failed"
_PLAN = "plan.schema"
_SUFFIX = {"csv": ".csv", "ndjson": ".ndjson", "parquet": ".parquet"}
_BLOCK = 1 << 20
#: The years 1 to 9999, in days since 1970; and a day in the units that reach beyond them.
FIRST_DAY, DAYS_END = -719_162, 2_932_897
_PER_DAY = {
    "date32[day]": 1,
    "date64[ms]": 86_400_000,
    "s": 86_400,
    "ms": 86_400_000,
    "us": 86_400_000_000,
}

Text = Annotated[str, Field(min_length=1, max_length=2048)]


class Condition(BaseModel):
    """What a row must meet. As in SQL, a null meets nothing but `is null`."""

    model_config = ConfigDict(extra="forbid")

    column: Annotated[str, Field(min_length=1, max_length=256)]
    op: Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "is null", "is not null"]
    value: Annotated[
        JsonValue,
        Field(description="A value, a list of them for `in`; dates, times and decimals as text"),
    ] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        is_list = isinstance(self.value, list)
        if self.op in ("is null", "is not null"):
            if self.value is not None:
                raise ValueError(f"{self.op!r} takes no value")
        elif is_list != (self.op in ("in", "not in")):
            raise ValueError(f"{self.op!r} takes {'one value' if is_list else 'a list of values'}")
        values = self.value if isinstance(self.value, list) else [self.value]
        if self.op not in ("is null", "is not null") and any(
            one is None or isinstance(one, list | dict) for one in values
        ):
            raise ValueError("value is null or nested; compare with text, numbers or booleans")
        return self


class ExportParams(BaseModel):
    """Which rows of which files, and how they are written."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[
        Text | Annotated[list[Text], Field(min_length=1, max_length=10_000)],
        Field(
            description="Parquet files, folders or globs, in the order wanted: URIs that uploads "
            "returned, output: URIs, s3://, gs://, or paths or file:// in folders opened with "
            "--data-dir"
        ),
    ]
    columns: Annotated[
        list[str] | None, Field(min_length=1, max_length=5_000, description="Default: all")
    ] = None
    where: Annotated[
        list[Condition], Field(max_length=100, description="All of these must be met")
    ] = []
    sql: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=100_000,
            description="One SELECT over the view `source`, by DuckDB, in one chunk; use columns "
            "and where for rows as they are, which run in many",
        ),
    ] = None
    format: Literal["csv", "ndjson", "parquet"] = "csv"
    gzip: Annotated[bool, Field(description="For CSV and NDJSON")] = False
    delimiter: Annotated[
        str, Field(min_length=1, max_length=1, pattern=r"^[\x20-\x21\x23-\x7e\t]$")
    ] = ","
    header: bool = True
    parts: Annotated[
        bool, Field(description="Keep one file a chunk instead of one file of all")
    ] = False
    rows_per_chunk: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1_000_000
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "export"
    compression: Literal["snappy", "zstd", "gzip", "none"] = "snappy"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sql is not None and (self.columns is not None or self.where):
            raise ValueError("give sql, or columns and where, not both")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names one twice")
        if self.gzip and self.format == "parquet":
            raise ValueError('gzip: a Parquet file is compressed inside; set compression to "gzip"')
        return self

    @property
    def suffix(self) -> str:
        """How output files end."""
        return _SUFFIX[self.format] + (".gz" if self.gzip else "")


class ExportChunk(BaseModel):
    """Row groups that follow each other."""

    index: int
    #: Output of the split that holds the schema.
    plan: str
    #: Read in this order.
    pieces: list[Piece]


class Exported(BaseModel):
    """What a chunk wrote."""

    rows: int
    bytes: int


def find_pieces(ctx: Context, params: ExportParams) -> Iterator[ExportChunk]:
    """Yield runs of row groups of about `rows_per_chunk` rows."""
    from jobs.library.table.parquet import find, plan_of

    sources = [params.source] if isinstance(params.source, str) else params.source
    found = find(ctx.files, sources)
    if params.sql is None:
        names = params.columns or found.schema.names
        for name in names:
            if name not in found.schema.names:
                told = ", ".join(found.schema.names[:50])
                raise Discard(f"columns: {name!r} is not in the files, which have: {told}")
        _check_types(params, [found.schema.field(name) for name in names])
        _expression(params, found.schema)
    else:
        _statement(params.sql)
        _check_names(found.schema.names)
    plan = ctx.files.write(_PLAN, plan_of(found))
    index, rows = 0, 0
    pieces: list[Piece] = []
    for uri, groups in found.files:
        for n, count in enumerate(groups):
            if params.sql is None and pieces and rows + count > params.rows_per_chunk:
                yield ExportChunk(index=index, plan=plan, pieces=pieces)
                index, rows, pieces = index + 1, 0, []
                if index >= CHUNKS_MAX:
                    raise Discard(f"rows_per_chunk: more than {CHUNKS_MAX} chunks; raise it")
            last = pieces[-1] if pieces else None
            if last is not None and last.uri == uri:
                last.groups += 1
                last.rows += count
            else:
                pieces.append(Piece(uri=uri, first=n, groups=1, rows=count, file_rows=sum(groups)))
            rows += count
    # Also if there are no rows at all: somebody has to write the header, or the schema.
    yield ExportChunk(index=index, plan=plan, pieces=pieces)


def export_chunk(ctx: Context, params: ExportParams, chunk: ExportChunk) -> Exported:
    """Export rows of Parquet files as CSV, NDJSON or Parquet."""
    import pyarrow as pa

    from jobs.library.table.parquet import find_damage, plan_schema

    with ctx.files.open(chunk.plan) as file:
        schema = plan_schema(file.read())
    pieces = chunk.pieces
    total = sum(piece.rows for piece in pieces) or 1
    done = 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows
        ctx.progress(min(1.0, done / total), f"Wrote {done} rows")

    try:
        return _exported(ctx, params, chunk, schema, tick)
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) is None:  # not a full disk
            find_damage(ctx.files, schema, pieces)
        raise


def _exported(
    ctx: Context, params: ExportParams, chunk: ExportChunk, schema: Any, tick: Callable[[int], None]
) -> Exported:
    import pyarrow as pa

    from jobs.library.table.parquet import SCAN, dataset_of

    with dataset_of(ctx.files, schema, chunk.pieces) as dataset:
        if params.sql is not None:
            with _query(ctx, params.sql, dataset) as reader:
                _check_types(params, reader.schema)
                return _written(ctx, params, chunk.index, reader.schema, reader, tick)
        names = params.columns or schema.names
        scanner = dataset.scanner(
            columns=names,
            filter=_expression(params, schema),
            batch_size=BATCH_ROWS,
            use_threads=False,
            batch_readahead=2,
            fragment_readahead=1,
            fragment_scan_options=SCAN,
        )
        kept = pa.schema([schema.field(name) for name in names])
        return _written(ctx, params, chunk.index, kept, scanner.to_batches(), tick)


def finish(ctx: Context, params: ExportParams, results: Results[Exported]) -> dict[str, Any]:
    """Put the parts together in order, or list them."""
    rows = sum(done.rows for done in results.values())
    if params.parts:
        names = [next(iter(result.files.values())) for result in results]
        size = sum(done.bytes for done in results.values())
        ctx.progress(1.0, f"Exported {rows} rows in {len(names)} files")
        return {"rows": rows, "bytes": size, "files": names}
    name = params.name + params.suffix
    parts = [next(iter(result.files.values())) for result in results]
    with ctx.files.open_output(name) as output:
        counted = _Counted(output)
        if params.format == "parquet":
            _join_parquet(ctx, params, parts, counted)
        else:
            for n, uri in enumerate(parts):
                with ctx.files.open(uri) as part:
                    while block := part.read(_BLOCK):
                        counted.write(block)
                ctx.progress((n + 1) / len(parts), f"Joined {n + 1} parts")
    ctx.progress(1.0, f"Exported {rows} rows")
    return {"rows": rows, "bytes": counted.bytes, "files": [ctx.files.uri(name)]}


table_export = fan_out("table.export", split=find_pieces, join=finish, timeout_s=3600)(export_chunk)


# --- what to read ---------------------------------------------------------------------------------


def _expression(params: ExportParams, schema: Any) -> Any:
    """Return `where` as an Arrow expression, None if there is none. Raises Discard."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = None
    for one in params.where:
        if one.column not in schema.names:
            told = ", ".join(schema.names[:50])
            raise Discard(f"where: {one.column!r} is not in the files, which have: {told}")
        kind = schema.field(one.column).type
        field = pc.field(one.column)
        values = one.value if isinstance(one.value, list) else [one.value]
        try:
            told_values = [_scalar(value, kind) for value in values]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueError):
            raise Discard(
                f"where: column {one.column!r} is {kind}, and {one.value!r} is not"
            ) from None
        if one.op == "is null":
            part = field.is_null()
        elif one.op == "is not null":
            part = field.is_valid()
        elif one.op in ("in", "not in"):
            among = pa.array([value.as_py() for value in told_values], kind)
            part = field.isin(among)
            part = part if one.op == "in" else ~part & field.is_valid()
        else:
            part = _COMPARE[one.op](field, told_values[0])
        whole = part if whole is None else whole & part
    return whole


def _scalar(value: Any, kind: Any) -> Any:
    import pyarrow as pa

    if value is None:
        return pa.scalar(None, kind)
    # True is no number here, though it is one to Python, nor is 1 a text.
    if isinstance(value, bool) != pa.types.is_boolean(kind):
        raise ValueError("bool")
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if isinstance(value, str):
        is_parsed = pa.types.is_temporal(kind) or pa.types.is_decimal(kind)
        if not (is_text or is_parsed):
            raise ValueError("text")
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            moment = dt.datetime.fromisoformat(value)
            return pa.scalar(moment.replace(tzinfo=moment.tzinfo or dt.UTC), kind)
    elif is_text or pa.types.is_temporal(kind):
        raise ValueError("number")
    return pa.scalar(value).cast(kind)


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _check_types(params: ExportParams, fields: Iterable[Any]) -> None:
    """Raise Discard naming a column that the format cannot hold, or one that stands twice."""
    import pyarrow as pa

    seen: set[str] = set()
    for field in fields:
        if field.name in seen:
            raise Discard(f"sql: column {field.name!r} stands twice; give one another name")
        seen.add(field.name)
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_interval(kind):
            raise Discard(
                f"sql: column {field.name!r} is an interval, which no format has; make it a "
                "number, as epoch() does"
            )
        if params.format == "csv" and not _fits_csv(kind):
            raise Discard(
                f"format: column {field.name!r} is {field.type}, which CSV cannot hold; leave it "
                "out, or choose ndjson or parquet"
            )


def _fits_csv(kind: Any) -> bool:
    import pyarrow.types as pt

    kinds = (
        pt.is_null, pt.is_boolean, pt.is_integer, pt.is_floating, pt.is_decimal, pt.is_temporal,
        pt.is_string, pt.is_large_string, pt.is_string_view,
    )  # fmt: skip
    return any(is_kind(kind) for is_kind in kinds)


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise Discard(
            'sql: DuckDB is not installed on this worker; pip install "drayman[sql]", or use '
            "columns and where"
        ) from error
    return duckdb


def _statement(sql: str) -> None:
    """Raise Discard unless this is one SELECT."""
    duckdb = _duckdb()
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise Discard(f"sql: {_line(error)}") from error
    kinds = [one.type for one in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        raise Discard("sql: give one SELECT over the view `source`, and nothing else")


def _check_names(names: Iterable[str]) -> None:
    """Raise Discard for columns that SQL would know by other names than theirs."""
    hint = "use columns and where, or name it otherwise in the files"
    known: dict[str, str] = {}
    for name in names:
        if not name:
            raise Discard(f"sql: a column of the files has no name, which SQL cannot tell; {hint}")
        if (other := known.setdefault(name.lower(), name)) != name:
            raise Discard(f"sql: columns {other!r} and {name!r} are one to SQL; {hint}")


@contextlib.contextmanager
def _query(ctx: Context, sql: str, dataset: Any) -> Iterator[Any]:
    """Run SQL over `source`; yields a reader of batches."""
    import pyarrow as pa

    duckdb = _duckdb()
    _statement(sql)
    spill = ctx.files.workdir / "spill"
    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
            # One thread gives one order, also where the query asks for none.
            "threads": "1",
            "memory_limit": SQL_MEMORY,
            "temp_directory": str(spill),
            "lock_configuration": "true",
        },
    )
    try:
        connection.register("source", dataset)
        yield connection.sql(sql).to_arrow_reader(BATCH_ROWS)
    except (duckdb.Error, pa.ArrowInvalid, OSError) as error:
        # Once the first rows are out, Arrow tells of DuckDB's errors.
        if getattr(error, "errno", None) is not None:
            raise
        if _SOURCE_FAILED in str(error):
            raise OSError(_line(error)) from error
        raise Discard(f"sql: {_line(error)}") from error
    finally:
        connection.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


# --- how it is written ----------------------------------------------------------------------------


class _Counted(io.RawIOBase):
    """Counts what is written to an output."""

    def __init__(self, output: BinaryIO) -> None:
        super().__init__()
        self._output = output
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        block = bytes(data)
        self._output.write(block)
        self.bytes += len(block)
        return len(block)


def _written(
    ctx: Context,
    params: ExportParams,
    index: int,
    schema: Any,
    batches: Iterable[Any],
    tick: Callable[[int], None],
) -> Exported:
    rows = 0
    name = f"{params.name}-{index:05d}{params.suffix}"
    write = {"csv": _write_csv, "ndjson": _write_ndjson, "parquet": _write_parquet}[params.format]
    with ctx.files.open_output(name) as output:
        counted = _Counted(output)
        with contextlib.ExitStack() as stack:
            sink: Any = counted
            if params.gzip:
                # Members one after the other are one gzip file; no name, no time: same bytes.
                sink = stack.enter_context(gzip.GzipFile("", "wb", 6, counted, mtime=0))
            has_header = params.header and (index == 0 or params.parts)
            add = stack.enter_context(write(params, schema, sink, has_header))
            for batch in batches:
                if batch.num_rows:
                    add(batch)
                    rows += batch.num_rows
                    tick(batch.num_rows)
    return Exported(rows=rows, bytes=counted.bytes)


@contextlib.contextmanager
def _write_csv(
    params: ExportParams, schema: Any, sink: Any, has_header: bool
) -> Iterator[Callable[[Any], None]]:
    import pyarrow.csv as pacsv

    plain = _plain_schema(schema)
    options = pacsv.WriteOptions(include_header=has_header, delimiter=params.delimiter)
    with pacsv.CSVWriter(sink, plain, write_options=options) as writer:

        def add(batch: Any) -> None:
            _check_moments(batch)
            writer.write_batch(batch.cast(plain))

        yield add


@contextlib.contextmanager
def _write_ndjson(
    params: ExportParams, schema: Any, sink: Any, has_header: bool
) -> Iterator[Callable[[Any], None]]:
    import msgspec
    import pyarrow as pa

    plain = _plain_schema(schema)
    # Python's times end at microseconds; nanoseconds are written as text.
    fields = [f.with_type(pa.string()) if _is_fine(f.type) else f for f in plain]
    told = pa.schema(fields)
    encode = msgspec.json.Encoder().encode_lines

    def add(batch: Any) -> None:
        _check_moments(batch)
        sink.write(encode(batch.cast(told).to_pylist()))

    yield add


def _check_moments(batch: Any) -> None:
    """Raise Discard naming a column with a moment that text cannot tell."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for field, column in zip(batch.schema, batch.columns, strict=True):
        kind = field.type
        is_time = pa.types.is_timestamp(kind)
        if not (is_time or pa.types.is_date(kind)):
            continue
        day = _PER_DAY.get(kind.unit if is_time else str(kind))
        if day is None:
            continue
        found = pc.min_max(column.cast(pa.int32() if day == 1 else pa.int64()))
        first, last = found["min"].as_py(), found["max"].as_py()
        if first is not None and not FIRST_DAY * day <= first <= last < DAYS_END * day:
            raise Discard(
                f"format: column {field.name!r} has a moment outside the years 1 to 9999, which "
                "text cannot tell; leave its row out, or choose parquet"
            )


def _is_fine(kind: Any) -> bool:
    import pyarrow as pa

    is_time = pa.types.is_timestamp(kind) or pa.types.is_time64(kind)
    return bool(is_time and kind.unit == "ns")


def _plain_schema(schema: Any) -> Any:
    """Return the schema with dictionaries spelled out, and views as what they look at."""
    import pyarrow as pa

    def plain(kind: Any) -> Any:
        if pa.types.is_dictionary(kind):
            return kind.value_type
        return pa.large_string() if pa.types.is_string_view(kind) else kind

    return pa.schema([f.with_type(plain(f.type)) for f in schema])


@contextlib.contextmanager
def _write_parquet(
    params: ExportParams, schema: Any, sink: Any, has_header: bool
) -> Iterator[Callable[[Any], None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[Any] = []
    count = 0
    with pq.ParquetWriter(sink, schema, compression=params.compression) as writer:

        def flush() -> None:
            nonlocal count
            if held:
                writer.write_table(pa.Table.from_batches(held, schema))
                held.clear()
                count = 0

        def add(batch: Any) -> None:
            nonlocal count
            held.append(batch)
            count += batch.num_rows
            if count >= 16 * BATCH_ROWS:
                flush()

        yield add
        flush()


def _join_parquet(ctx: Context, params: ExportParams, parts: list[str], sink: Any) -> None:
    """Write the row groups of the parts, in order, as one file."""
    import pyarrow.parquet as pq

    writer = None
    with contextlib.ExitStack() as stack:
        for n, uri in enumerate(parts):
            with ctx.files.open(uri) as file:
                part = pq.ParquetFile(file)
                if writer is None:
                    writer = stack.enter_context(
                        pq.ParquetWriter(sink, part.schema_arrow, compression=params.compression)
                    )
                for group in range(part.num_row_groups):
                    writer.write_table(part.read_row_group(group, use_threads=False))
            ctx.progress((n + 1) / len(parts), f"Joined {n + 1} parts")
