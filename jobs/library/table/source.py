"""The file that is imported: opened, its form read, its header matched with the columns.

Rule 1: a file is read by range; of one that is not on this disk, only what is asked for is brought.
Rule 2: compressed bytes have no ranges, so they are unpacked once, into an output that chunks read.
Rule 3: what no retry can mend is a Discard that names the column or the param, and the fix.
"""

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from jobs.context import Context, Files
from jobs.errors import InvalidInput, NotFound
from jobs.library.table.records import Splitter
from jobs.outcome import Discard

__all__ = [
    "NO_VALUE",
    "Source",
    "brought",
    "file_path",
    "open_scratch",
    "open_source",
    "read_header",
    "unpacked",
]

UTF8_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_ZIP = b"PK\x03\x04"
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
#: The folder `year=...` of rows whose year is null, as Hive names it.
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
HEADER_BYTES_MAX = 1 << 24
#: What a packed file may unpack to: a table seldom shrinks to a hundredth, a bomb does.
UNPACKED_TIMES_MAX, UNPACKED_BYTES_FREE = 200, 1 << 26
_BLOCK = 1 << 20
#: Of a name that a message tells: what is no table may be one long name.
_SHOWN_CHARS = 80


@dataclass
class Source:
    """An open file of `size` bytes, read by range."""

    file: BinaryIO
    size: int

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer only at the end."""
        self.file.seek(start)
        data = self.file.read(length)
        while len(data) < length and (more := self.file.read(length - len(data))):
            data += more
        return data


def file_path(uri: str) -> str | None:
    """Return the path that a plain path or a `file:` URI names; None for any other URI."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"}:
            raise Discard(f"{uri} names another machine; write file:///folder/file")
        return unquote(parts.path)
    is_uri = "://" in uri or uri.startswith(("upload:", "output:"))
    return None if is_uri else uri


def brought(files: Files, uri: str) -> Path | None:
    """Return the path on this disk that params name, checked; None for a URI of elsewhere."""
    path = file_path(uri)
    if path is None:
        return None
    try:
        return files.local(path)
    except InvalidInput as error:
        raise Discard(str(error)) from error


@contextlib.contextmanager
def open_source(files: Files, uri: str) -> Iterator[Source]:
    """Open the file at `uri`. Raises Discard if there is none, or none that may be read."""
    path = brought(files, uri)
    try:
        # By its URI, so that lineage names it.
        opened = files.open(uri if path is None else path.as_uri())
    except (NotFound, InvalidInput, FileNotFoundError, IsADirectoryError) as error:
        raise Discard(
            f"source: {uri} cannot be read ({error}); upload the file, or correct the URI"
        ) from error
    with opened as file:
        yield Source(file, file.seek(0, os.SEEK_END))


@contextlib.contextmanager
def open_scratch(path: Path) -> Iterator[Source]:
    """Open a file of this attempt's own."""
    with path.open("rb") as file:
        yield Source(file, path.stat().st_size)


def unpacked(ctx: Context, source: Source, name: str) -> Path | None:
    """Unpack a compressed source into the scratch file `name`; None if it is plain."""
    start = source.read(0, 4)
    codec = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None)
    if codec is None:
        return None
    import pyarrow as pa

    source.file.seek(0)
    path = ctx.files.workdir / name
    stream = pa.CompressedInputStream(pa.PythonFile(source.file, mode="r"), codec)

    def block_of() -> bytes:
        try:
            return bytes(stream.read(_BLOCK))
        except OSError as error:
            raise Discard(
                f"source: the {codec} data is damaged ({error}); send it again"
            ) from error

    with path.open("wb") as output:
        done = 0
        while block := block_of():
            output.write(block)
            done += len(block)
            if done > UNPACKED_BYTES_FREE + UNPACKED_TIMES_MAX * source.size:
                raise Discard(
                    f"source: it unpacks to more than {UNPACKED_TIMES_MAX} times its size; "
                    "if that is right, unpack it before"
                )
            ctx.progress(message=f"Unpacking, {done >> 20} MiB so far")
    return path


def read_start(source: Source, encoding: str) -> int:
    """Return where the text starts, behind a byte order mark."""
    start = source.read(0, 4)
    if start == _ZIP:
        raise Discard(
            "source: the file is a ZIP archive or a workbook; send the table in it as CSV, plain "
            "or packed with gzip"
        )
    start = start[:3]
    if start[:2] in _WIDE_BOMS:
        raise Discard("source: the file is UTF-16; convert it to UTF-8 and import that")
    if start == UTF8_BOM:
        if encoding not in ("utf-8", "ascii"):
            raise Discard(f"encoding: the file says it is UTF-8, params say {encoding}; drop that")
        return len(UTF8_BOM)
    return 0


def read_header(
    source: Source, splitter: Splitter, start: int, encoding: str, delimiter: str, quote: str | None
) -> tuple[list[str], int]:
    """Return the names in the first record that is not blank, and where the next one starts.

    Both are empty or the file's end if there is no such record. Raises Discard for a header that
    cannot be one: not in the encoding, a name twice, longer than 16 MiB.
    """
    while start < source.size:
        end = splitter.end_after(start, start + 1)
        if end - start > HEADER_BYTES_MAX:
            raise Discard(
                f"source: the header is {end - start} bytes long; is its quote closed, and is "
                f"delimiter {delimiter!r} right?"
            )
        data = source.read(start, end - start)
        start = end
        if not data.strip(b"\r\n"):
            continue
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            raise Discard(
                f"encoding: the header is not {encoding} ({error.reason}); name the encoding "
                "the file has"
            ) from error
        names = next(rows_of(text, delimiter, quote))
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise Discard(
                    f"column {name[:_SHOWN_CHARS]!r} stands twice in the header; rename one"
                )
            seen.add(name)
        return names, end
    return [], start


def rows_of(text: str, delimiter: str, quote: str | None) -> Iterator[list[str]]:
    """Yield the records of a text, blank lines left out."""
    lines = io.StringIO(text, newline="")
    return (row for row in reader_of(lines, delimiter, quote) if row)


def reader_of(lines: Iterator[str], delimiter: str, quote: str | None) -> Any:
    """Return Python's own reader of records over lines."""
    if quote is None:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None)
    return csv.reader(lines, delimiter=delimiter, quotechar=quote)


def match_columns(
    header: Sequence[str], wanted: Sequence[tuple[str, bool]], others: str, delimiter: str
) -> None:
    """Raise Discard naming a column of the schema that the header lacks, or one too many.

    `wanted` has (name, required); `others` is "refuse" or "ignore".
    """
    missing = [name for name, required in wanted if required and name not in header]
    if missing:
        told = ", ".join(repr(name[:_SHOWN_CHARS]) for name in header[:20])
        raise Discard(
            f"column {missing[0]!r} is not in the header ({told}); correct columns, the file, or "
            f"delimiter {delimiter!r}"
        )
    extra = [name for name in header if name not in {name for name, _ in wanted}]
    if extra and others == "refuse":
        raise Discard(
            f"column {extra[0][:_SHOWN_CHARS]!r} of the file is not in the schema; add it, or set "
            'other_columns to "ignore"'
        )
