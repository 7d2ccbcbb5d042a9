"""The bytes of whole records as Arrow tables, and the rows that are bad one by one.

Rule 1: there is one reading of a value. Arrow's C++ reader converts whole blocks; only a block that
it refuses is cut down, to the rows and columns at fault, by the same converters. So what a row
becomes never hangs on its neighbours. But whole numbers are decimal: Arrow would take 0x1F, and
0xFFFFFFFFFFFFFFFF for -1. Rule 2: a bad row has the number of its first line, counted
from 1 at the block's start plus `before`, a reason, and its text. Rule 3: text in quotes is no
other value than the same text without.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.library.table.hexadecimal import Hexadecimal
from jobs.library.table.models import keeps_text
from jobs.library.table.records import Splitter, count_lines
from jobs.library.table.schema import Column, arrow_schema, arrow_type
from jobs.library.table.source import reader_of

__all__ = ["Bad", "CsvModelRows", "CsvRows", "Dialect", "JsonModelRows", "JsonRows", "Rows"]

#: A block that Arrow refuses is cut into about so many, again and again.
_CUTS = 16
#: Below this the rows are looked at one by one.
_SMALL_BYTES = 1 << 15
_BATCH_ROWS = 1_000
_SHOWN_CHARS = 80
#: A field may be as long as a record; Python's own limit is 128 KiB.
_FIELD_CHARS_MAX = 1 << 30
_BLANK = re.compile(rb"[\r\n]*")
_BLANK_JSON = re.compile(rb"[ \t\r\n]*")
_INT = re.compile(r"\s*[+-]?[0-9]+\s*")
_REAL = re.compile(r"\s*[+-]?(?:[0-9eE.+-]+|(?i:inf|infinity|nan(?:\(.*\))?))\s*")
_MOMENT = re.compile(r"\s*[0-9TZ:.+ -]+\s*")
#: What is taken for a type, and more: anything else Arrow refuses, which saves asking it, except
#: for hexadecimal, which only this refuses.
_LIKELY = {
    **dict.fromkeys(("int8", "int16", "int32", "int64"), _INT),
    **dict.fromkeys(("uint8", "uint16", "uint32", "uint64"), _INT),
    **dict.fromkeys(("float32", "float64", "decimal"), _REAL),
    **dict.fromkeys(("date", "timestamp"), _MOMENT),
    "bool": re.compile(r"\s*(?i:true|false|0|1)\s*"),
}
_CHANGED = re.compile(r"Column\(/(.+?)\) changed from (.+?) to (\w+) in row")


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that is not imported."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Dialect:
    """How the file is written."""

    encoding: str
    delimiter: str
    quote: str | None
    nulls: tuple[str, ...]
    #: Whether `nulls` mean null in string columns too.
    text_nulls: bool
    timestamp_formats: tuple[str, ...]


class Rows(Protocol):
    """Reads blocks of whole records."""

    schema: Any

    def read(self, data: bytes, before: int, bad: Callable[[Bad], None]) -> Iterator[Any]:
        """Yield Arrow tables of the good rows in order, and hand each other row to `bad`.

        `before` is how many lines of the chunk come before `data`.
        """


class _InMemory:
    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read(self, start: int, length: int) -> bytes:
        return self._data[start : start + length]


class _CsvText:
    """What both readers of CSV need: text, rows with their lines, the text of a bad row."""

    def __init__(self, dialect: Dialect, header: Sequence[str]) -> None:
        self._dialect, self._header = dialect, list(header)

    def _text(self, data: bytes) -> tuple[str, bool]:
        """Return the text, and whether it holds bytes that the encoding has no sign for."""
        try:
            return data.decode(self._dialect.encoding), False
        except UnicodeDecodeError:
            return data.decode(self._dialect.encoding, "surrogateescape"), True

    def _rows(self, text: str) -> Iterator[tuple[int, int, list[str]]]:
        """Yield (first line, last line, fields) of each record that is not blank."""
        csv.field_size_limit(_FIELD_CHARS_MAX)
        reader = reader_of(io.StringIO(text, newline=""), self._dialect.delimiter, self._quote)
        last = 0
        for row in reader:
            first, last = last + 1, reader.line_num
            if row:
                yield first, last, row

    @property
    def _quote(self) -> str | None:
        return self._dialect.quote

    def _ragged(self, row: list[str]) -> str | None:
        if len(row) == len(self._header):
            return None
        return f"it has {len(row)} fields, the header {len(self._header)}"

    def _undecodable(self, name: str, value: str) -> str | None:
        if not _has_escapes(value):
            return None
        return f"column {name!r}: {_shown(value)} is not {self._dialect.encoding}"


def _check_decimals(table: Any) -> None:
    """Raise ArrowInvalid for a decimal of more digits than its type has.

    Arrow's readers count them before they append those that the scale asks for; Parquet would
    then hold another number.
    """
    for column in table.columns:
        if hasattr(column.type, "precision"):
            column.validate(full=True)


#: First line, last line, fields.
_Row = tuple[int, int, list[str]]


class _Lines:
    """The lines of a text, cut only if somebody asks for one."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _cut(self) -> list[str]:
        return list(io.StringIO(self._text, newline=""))

    def __call__(self, first: int, last: int) -> str:
        return _clean("".join(self._cut[first - 1 : last]).rstrip("\r\n"))


class CsvRows(_CsvText):
    """CSV against a declared schema."""

    def __init__(self, dialect: Dialect, header: Sequence[str], columns: Sequence[Column]) -> None:
        import pyarrow as pa
        import pyarrow.csv as pacsv

        super().__init__(dialect, header)
        self.schema = arrow_schema(columns)
        self._columns = list(columns)
        self._required = [c.name for c in columns if not c.nullable]
        self._pa, self._csv = pa, pacsv
        self._parse = pacsv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char=dialect.quote or False,
            newlines_in_values=dialect.quote is not None,
        )
        self._whole_numbers = {c.name: pa.string() for c in columns if _LIKELY.get(c.type) is _INT}
        self._hexadecimal = Hexadecimal(dialect.delimiter, dialect.quote)
        self._one = pacsv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)

    def _convert(self, columns: Sequence[Column]) -> Any:
        told: dict[str, Any] = {}
        if self._dialect.timestamp_formats:
            told["timestamp_parsers"] = [
                self._csv.ISO8601 if one == "ISO8601" else one
                for one in self._dialect.timestamp_formats
            ]
        return self._csv.ConvertOptions(
            column_types={c.name: self._read_as(c) for c in columns},
            include_columns=[c.name for c in columns],
            null_values=list(self._dialect.nulls),
            strings_can_be_null=self._dialect.text_nulls,
            quoted_strings_can_be_null=True,
            **told,
        )

    def _read_as(self, column: Column) -> Any:
        # Arrow heeds the formats for timestamps alone.
        if column.type == "date" and self._dialect.timestamp_formats:
            return self._pa.timestamp("s")
        return arrow_type(column.type)

    def _cast(self, table: Any, columns: Sequence[Column]) -> Any:
        _check_decimals(table)
        if not self._dialect.timestamp_formats:
            return table
        return table.cast(self._pa.schema([(c.name, arrow_type(c.type)) for c in columns]))

    @cached_property
    def _all(self) -> Any:
        return self._convert(self._columns)

    def read(self, data: bytes, before: int, bad: Callable[[Bad], None]) -> Iterator[Any]:
        """Yield the good rows; see `Rows`."""
        if _BLANK.fullmatch(data):
            return
        table = self._quick(data)
        if table is not None:
            yield table
            return
        if len(data) > _SMALL_BYTES:
            quote = self._dialect.quote
            splitter = Splitter(
                _InMemory(data), self._dialect.delimiter.encode(), quote.encode() if quote else None
            )
            start = 0
            ends = list(splitter.ends(0, max(_SMALL_BYTES // 2, len(data) // _CUTS)))
            if len(ends) > 1:
                for end in ends:
                    part = data[start:end]
                    yield from self.read(part, before, bad)
                    before += count_lines(part)
                    start = end
                return
        table = self._slow(data, before, bad)
        if table.num_rows:
            yield table

    def _quick(self, data: bytes) -> Any:
        """Return the table of a block that has no bad row; None for any other."""
        pa = self._pa
        try:
            if self._dialect.encoding != "utf-8":
                data = data.decode(self._dialect.encoding).encode()
            table = self._csv.read_csv(
                pa.BufferReader(data),
                read_options=self._csv.ReadOptions(
                    column_names=self._header, use_threads=False, block_size=len(data) + 1
                ),
                parse_options=self._parse,
                convert_options=self._all,
            )
            table = self._cast(table, self._columns)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            # Which row, and why, is for `_slow` to find.
            return None
        if self._has_hex(data):
            return None
        table = self._whole(table)
        nulls = any(table.column(name).null_count for name in self._required)
        return None if nulls else table

    def _has_hex(self, data: bytes) -> bool:
        """Whether a whole number of the block, which Arrow took, is hexadecimal."""
        if not self._whole_numbers or not self._hexadecimal.may_be_in(data):
            return False
        import pyarrow.compute as pc

        table = self._csv.read_csv(
            self._pa.BufferReader(data),
            read_options=self._csv.ReadOptions(
                column_names=self._header, use_threads=False, block_size=len(data) + 1
            ),
            parse_options=self._parse,
            convert_options=self._csv.ConvertOptions(
                column_types=self._whole_numbers,
                include_columns=list(self._whole_numbers),
                null_values=list(self._dialect.nulls),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
        return any(
            pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py()
            for column in table.columns
        )

    def _whole(self, table: Any) -> Any:
        """Return the table under the schema, which knows what may be null."""
        return self._pa.table(
            [table.column(name) for name in self.schema.names], schema=self.schema
        )

    def _slow(self, data: bytes, before: int, bad: Callable[[Bad], None]) -> Any:
        text, damaged = self._text(data)
        lines = _Lines(text)
        at = [(c, self._header.index(c.name)) for c in self._columns]
        good: list[tuple[int, int, list[str]]] = []
        found: list[Bad] = []
        for first, last, row in self._rows(text):
            reason = self._ragged(row)
            if reason is None and damaged:
                told = (self._undecodable(c.name, row[n]) for c, n in at)
                reason = next(filter(None, told), None)
            if reason is None:
                good.append((first, last, row))
            else:
                found.append(Bad(before + first, reason, lines(first, last)))
        good, table = self._converted(
            good, lambda f, n, why: found.append(Bad(before + f, why, lines(f, n)))
        )
        for name in self._required:
            if table.column(name).null_count:
                null = table.column(name).is_null().to_pylist()
                for (first, last, _), is_null in zip(good, null, strict=True):
                    if is_null:
                        reason = f"column {name!r}: it is null"
                        found.append(Bad(before + first, reason, lines(first, last)))
                good = [row for row, is_null in zip(good, null, strict=True) if not is_null]
                table = table.filter(table.column(name).is_valid())
        for one in sorted(found, key=lambda b: b.line):
            bad(one)
        return self._whole(table)

    def _converted(
        self, rows: list[_Row], found: Callable[[int, int, str], None]
    ) -> tuple[list[_Row], Any]:
        """Return the rows whose values are of their columns' types, and their table."""
        at = [(c, self._header.index(c.name)) for c in self._columns]
        # Asking Arrow costs much for a few values: first put aside what it is known to refuse.
        for column, n in at:
            rows = self._kept(
                column, n, rows, self._unlikely(column, {r[n] for *_, r in rows}), found
            )
        try:
            return rows, self._table(self._columns, [[r[n] for _, n in at] for *_, r in rows])
        except self._pa.ArrowInvalid:
            pass  # Which column, and which of its values, is found next.
        for column, n in at:
            values = list(dict.fromkeys(r[n] for *_, r in rows))
            rows = self._kept(column, n, rows, self._refused(column, values), found)
        return rows, self._table(self._columns, [[r[n] for _, n in at] for *_, r in rows])

    def _kept(
        self,
        column: Column,
        n: int,
        rows: list[_Row],
        wrong: set[str],
        found: Callable[[int, int, str], None],
    ) -> list[_Row]:
        if not wrong:
            return rows
        for first, last, row in rows:
            if row[n] in wrong:
                reason = f"column {column.name!r}: {_shown(row[n])} is not {column.type}"
                found(first, last, reason)
        return [row for row in rows if row[2][n] not in wrong]

    def _unlikely(self, column: Column, values: set[str]) -> set[str]:
        likely = _LIKELY.get(column.type.split("(")[0])
        if likely is None or (likely is _MOMENT and self._dialect.timestamp_formats):
            return set()
        nulls = self._dialect.nulls
        return {v for v in values if not likely.fullmatch(v) and v.strip() not in nulls}

    def _refused(self, column: Column, values: list[str]) -> set[str]:
        """Return those of the values that Arrow does not take for the column's type."""
        wrong: set[str] = set()
        spans = [(0, len(values))] if values else []
        while spans:
            low, high = spans.pop()
            try:
                self._table([column], [[value] for value in values[low:high]])
            except self._pa.ArrowInvalid:
                if high - low == 1:
                    wrong.add(values[low])
                else:
                    middle = (low + high) // 2
                    spans += [(low, middle), (middle, high)]
        return wrong

    @cached_property
    def _options(self) -> dict[str, Any]:
        return {c.name: self._convert([c]) for c in self._columns}

    def _table(self, columns: Sequence[Column], rows: list[list[str]]) -> Any:
        """Convert values as the file's reader would. Raises ArrowInvalid."""
        if not rows:
            return arrow_schema(columns).empty_table()
        text = "".join(['"' + '","'.join([v.replace('"', '""') for v in r]) + '"\n' for r in rows])
        data = text.encode()
        table = self._csv.read_csv(
            self._pa.BufferReader(data),
            read_options=self._csv.ReadOptions(
                column_names=[c.name for c in columns],
                use_threads=False,
                block_size=len(data) + 1,
            ),
            parse_options=self._one,
            convert_options=self._all if len(columns) > 1 else self._options[columns[0].name],
        )
        return self._cast(table, columns)


class JsonRows:
    """NDJSON against a declared schema."""

    def __init__(self, columns: Sequence[Column], others: str) -> None:
        import pyarrow as pa
        import pyarrow.json as pajson

        self.schema = arrow_schema(columns)
        self._columns = list(columns)
        self._required = [c.name for c in columns if not c.nullable]
        self._pa, self._json = pa, pajson
        self._unexpected = "error" if others == "refuse" else "ignore"

    def _arrow(self, data: bytes, columns: Sequence[Column], unexpected: str) -> Any:
        pa = self._pa
        # Arrow reads a JSON number as a date, and a text as none: read the text, and cast it.
        kinds = [pa.string() if c.type == "date" else arrow_type(c.type) for c in columns]
        table = self._json.read_json(
            pa.BufferReader(data),
            read_options=self._json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=self._json.ParseOptions(
                explicit_schema=pa.schema(
                    [(c.name, kind) for c, kind in zip(columns, kinds, strict=True)]
                ),
                unexpected_field_behavior=unexpected,
            ),
        )
        _check_decimals(table)
        wanted = pa.schema([pa.field(c.name, arrow_type(c.type), c.nullable) for c in columns])
        return table.select(wanted.names).cast(pa.schema([(f.name, f.type) for f in wanted]))

    def read(self, data: bytes, before: int, bad: Callable[[Bad], None]) -> Iterator[Any]:
        """Yield the good rows; see `Rows`."""
        if _BLANK_JSON.fullmatch(data):
            return
        numbered = list(enumerate(data.split(b"\n"), before + 1))
        lines = [(n, x) for n, x in numbered if x[:1] == b"{" or not _BLANK_JSON.fullmatch(x)]
        # Arrow takes `null` for a row of nulls, and alone in a block it dies of it.
        odd = [n for n, (_, x) in enumerate(lines) if x[:1] != b"{" and x.lstrip()[:1] != b"{"]
        first = 0
        for place in odd:
            yield from self._some(lines[first:place], bad)
            bad(_bad_line(lines[place], "it is no JSON object"))
            first = place + 1
        yield from self._some(lines[first:], bad)

    def _some(self, lines: list[tuple[int, bytes]], bad: Callable[[Bad], None]) -> Iterator[Any]:
        if not lines:
            return
        pa = self._pa
        try:
            data = b"\n".join([line for _, line in lines]) + b"\n"
            data.decode()
            table = self._arrow(data, self._columns, self._unexpected)
            if table.num_rows != len(lines):
                reason = f"it holds {table.num_rows} objects; write one a line"
            else:
                null = [name for name in self._required if table.column(name).null_count]
                if not null:
                    yield pa.table(table.columns, schema=self.schema)
                    return
                reason = f"column {null[0]!r}: it is null or missing"
        except UnicodeDecodeError:
            reason = "it is not utf-8"
        except pa.ArrowInvalid as error:
            reason = self._why(lines[0][1], str(error)) if len(lines) == 1 else ""
        if len(lines) == 1:
            bad(_bad_line(lines[0], reason))
            return
        middle = len(lines) // 2
        yield from self._some(lines[:middle], bad)
        yield from self._some(lines[middle:], bad)

    def _why(self, line: bytes, told: str) -> str:
        """Return what is wrong with a line, with the column where Arrow's own words lack it."""
        kinds = {column.name: column.type for column in self._columns}
        if (changed := _CHANGED.search(told)) and changed[1] in kinds:
            return f"column {changed[1]!r}: a JSON {changed[3]} is not {kinds[changed[1]]}"
        for column in self._columns:
            try:
                self._arrow(line + b"\n", [column], "ignore")
            except self._pa.ArrowInvalid as error:
                if "JSON parse error" not in str(error):
                    return f"column {column.name!r}: it is not {column.type} ({error})"
        return told.partition("\n")[0]


def _bad_line(numbered: tuple[int, bytes], reason: str) -> Bad:
    number, line = numbered
    return Bad(number, reason, _clean(line.decode("utf-8", "surrogateescape").rstrip("\r")))


class _ModelColumns:
    """Models as Arrow tables."""

    def __init__(self, model: type[BaseModel], columns: Sequence[Column]) -> None:
        import pyarrow as pa

        self.schema = arrow_schema(columns)
        self._columns, self._pa = columns, pa
        self._validator = model.__pydantic_validator__
        self._list = TypeAdapter(list[model])  # type: ignore[valid-type]

    def _table(
        self, models: list[tuple[int, int, BaseModel]], found: Callable[[int, int, str], None]
    ) -> Any:
        """Return the table of (first line, last line, model); what no column holds is `found`."""
        arrays: list[Any] = []
        reasons: dict[int, str] = {}
        for column, field in zip(self._columns, self.schema, strict=True):
            values = [getattr(model, column.name) for _, _, model in models]
            if column.type == "string":
                values = [v if v is None or type(v) is str else _as_text(v) for v in values]
            elif any(hasattr(v, "value") for v in values[:1]):
                values = [getattr(v, "value", v) for v in values]
            try:
                arrays.append(self._pa.array(values, field.type))
                continue
            except (self._pa.ArrowInvalid, self._pa.ArrowTypeError, ValueError, OverflowError):
                pass  # One of them does not fit; which one is found next.
            for place, value in enumerate(values):
                try:
                    self._pa.array([value], field.type)
                except (self._pa.ArrowInvalid, self._pa.ArrowTypeError, ValueError, OverflowError):
                    told = _shown(_clean(str(value)))
                    reasons.setdefault(
                        place, f"column {column.name!r}: {told} does not fit {column.type}"
                    )
                    values[place] = None
            arrays.append(self._pa.array(values, field.type))
        table = self._pa.table(arrays, schema=self.schema)
        if not reasons:
            return table
        for place, reason in reasons.items():
            found(models[place][0], models[place][1], reason)
        keep = [n not in reasons for n in range(len(models))]
        return table.filter(self._pa.array(keep, self._pa.bool_()))


class CsvModelRows(_CsvText, _ModelColumns):
    """CSV against a registered model."""

    def __init__(
        self,
        dialect: Dialect,
        header: Sequence[str],
        model: type[BaseModel],
        columns: Sequence[Column],
    ) -> None:
        _CsvText.__init__(self, dialect, header)
        _ModelColumns.__init__(self, model, columns)
        texts = {
            name
            for field, info in model.model_fields.items()
            if keeps_text(info.annotation)
            for name in keys_of(model, field)
        }
        self._nulls = frozenset(dialect.nulls)
        #: Fields of the header in which a spelling of null means None.
        self._nullable = [name for name in header if dialect.text_nulls or name not in texts]

    def read(self, data: bytes, before: int, bad: Callable[[Bad], None]) -> Iterator[Any]:
        """Yield the good rows; see `Rows`."""
        text, damaged = self._text(data)
        lines = _Lines(text)
        found: list[Bad] = []

        def note(first: int, last: int, reason: str) -> None:
            found.append(Bad(before + first, reason, lines(first, last)))

        batch: list[tuple[int, int, dict[str, Any]]] = []
        tables: list[Any] = []
        header, nulls, nullable = self._header, self._nulls, self._nullable
        for first, last, row in self._rows(text):
            reason = self._ragged(row)
            if reason is None and damaged:
                told = (self._undecodable(n, v) for n, v in zip(header, row, strict=True))
                reason = next(filter(None, told), None)
            if reason is not None:
                note(first, last, reason)
                continue
            record: dict[str, Any] = dict(zip(header, row, strict=True))
            if not nulls.isdisjoint(row):
                for name in nullable:
                    if record[name] in nulls:
                        record[name] = None
            batch.append((first, last, record))
            if len(batch) == _BATCH_ROWS:
                tables.append(self._table(self._validated(batch, note), note))
                batch = []
        if batch:
            tables.append(self._table(self._validated(batch, note), note))
        for one in sorted(found, key=lambda b: b.line):
            bad(one)
        yield from (table for table in tables if table.num_rows)

    def _validated(
        self,
        batch: list[tuple[int, int, dict[str, Any]]],
        found: Callable[[int, int, str], None],
    ) -> list[tuple[int, int, BaseModel]]:
        try:
            models = self._list.validate_python([record for _, _, record in batch])
        except ValidationError:
            pass  # One by one, to tell which.
        else:
            return [(f, n, model) for (f, n, _), model in zip(batch, models, strict=True)]
        good: list[tuple[int, int, BaseModel]] = []
        for first, last, record in batch:
            try:
                good.append((first, last, self._validator.validate_python(record)))
            except ValidationError as error:
                found(first, last, _told(error))
        return good


class JsonModelRows(_ModelColumns):
    """NDJSON against a registered model."""

    def read(self, data: bytes, before: int, bad: Callable[[Bad], None]) -> Iterator[Any]:
        """Yield the good rows; see `Rows`."""
        found: list[Bad] = []
        good: list[tuple[int, int, BaseModel]] = []
        lines = data.split(b"\n")

        def note(first: int, last: int, reason: str) -> None:
            line = lines[first - 1].decode("utf-8", "surrogateescape").rstrip("\r")
            found.append(Bad(before + first, reason, _clean(line)))

        for number, line in enumerate(lines, 1):
            if _BLANK_JSON.fullmatch(line):
                continue
            try:
                good.append((number, number, self._validator.validate_json(line)))
            except ValidationError as error:
                note(number, number, _told(error))
        table = self._table(good, note)
        for one in sorted(found, key=lambda b: b.line):
            bad(one)
        if table.num_rows:
            yield table


def keys_of(model: type[BaseModel], field: str) -> list[str]:
    """Return the names under which rows may bring a field: its own, and its alias."""
    info = model.model_fields[field]
    alias = info.validation_alias or info.alias
    return [field, alias] if isinstance(alias, str) else [field]


def _told(error: ValidationError) -> str:
    # Not the input: it stands in the row's text, and may be long.
    return "; ".join(
        f"column {'.'.join(map(str, one['loc']))!r}: {one['msg']}" if one["loc"] else one["msg"]
        for one in error.errors(include_url=False, include_input=False, include_context=False)[:5]
    )


def _as_text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _has_escapes(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= sign <= "\udcff" for sign in text)


def _clean(text: str) -> str:
    """Return the text with bytes that are no signs spelled out, so that it can be written."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        # A surrogate that JSON spelled out.
        return text.encode("utf-8", "backslashreplace").decode()


def _shown(value: str) -> str:
    cut = value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "..."
    return f"'{_clean(cut)}'"
