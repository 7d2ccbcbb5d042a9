"""The input, as batches of rows: Parquet, NDJSON or `.npz`, told apart by their first bytes.

Rule 1: one pass, from the first row to the last, with a batch in memory. Rule 2: what a file says
of its sizes is checked before it is believed: a small file may claim, or unpack to, anything.
"""

import contextlib
import zipfile
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.context import Files
from jobs.library.model.session import BATCH_BYTES_MAX, ROW_BYTES_MAX, Tensor
from jobs.library.model.source import opened
from jobs.library.model.tensors import Where, as_column, fitted, of_column, shape_for
from jobs.library.table.damage import is_damage
from jobs.outcome import Discard

__all__ = ["Batch", "Rows", "Wanted", "open_rows"]

_LINE_BYTES_MAX = 32 << 20
#: Python's own objects take some times the text they are read from.
_TEXT_BATCH_BYTES_MAX = 8 << 20
#: What an archive may unpack to: numbers seldom shrink to a hundredth, a bomb does.
_UNPACKED_TIMES_MAX, _UNPACKED_BYTES_FREE = 200, 1 << 26
_BLOCK = 1 << 20


@dataclass
class Batch:
    """Some rows: what the model takes by name, and the columns to keep."""

    rows: int
    inputs: dict[str, Any]
    kept: list[Any]


class Rows(Protocol):
    """An open input."""

    def batches(self, size: int) -> Iterator[tuple[Batch, float]]:
        """Yield batches of `size` rows at most, with the share of the input that is then read."""


@dataclass(frozen=True)
class Wanted:
    """Columns to read: those that the model takes, and those to keep."""

    inputs: Sequence[Tensor]
    keep: Sequence[str]
    allow_nan: bool

    @property
    def names(self) -> list[str]:
        """All of them, once."""
        return list(dict.fromkeys([*(tensor.name for tensor in self.inputs), *self.keep]))

    def found_in(self, names: Sequence[str]) -> None:
        """Raise Discard unless each is among `names`, and only once."""
        told = ", ".join(list(names)[:30]) or "none"
        for name in self.names:
            field = "keep" if name in self.keep else "input"
            if name not in names:
                raise Discard(f"{field}: there is no column {name!r}; the columns are {told}")
            if list(names).count(name) > 1:
                raise Discard(f"{field}: column {name!r} is there twice; rename one")

    def of_columns(self, columns: dict[str, Any], where: Where) -> Batch:
        """Return Arrow columns as a batch."""
        rows = len(columns[self.inputs[0].name])
        return Batch(
            rows,
            {
                tensor.name: of_column(columns[tensor.name], tensor, where, self.allow_nan)
                for tensor in self.inputs
            },
            [columns[name] for name in self.keep],
        )


@contextlib.contextmanager
def open_rows(files: Files, uri: str, wanted: Wanted) -> Iterator[Rows]:
    """Open the input. Raises Discard for what cannot be the rows that are wanted."""
    with opened(files, "input", uri) as file:
        head = file.read(64)
        file.seek(0)
        if not head:
            raise Discard("input: the file is empty; give at least one row")
        if head.startswith(b"PAR1"):
            yield _Parquet(file, wanted)
        elif head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            with contextlib.ExitStack() as stack:
                yield _Arrays(file, wanted, stack)
        elif head.removeprefix(BOM_UTF8).lstrip().startswith(b"{"):
            yield _Lines(file, wanted)
        else:
            raise Discard("input: is neither Parquet, nor .npz, nor NDJSON; convert it to one")


class _Parquet:
    def __init__(self, file: BinaryIO, wanted: Wanted) -> None:
        self._wanted = wanted
        with _parquet_errors():
            self._file = pq.ParquetFile(
                pa.PythonFile(file, mode="r"), buffer_size=_BLOCK, pre_buffer=False
            )
        wanted.found_in(self._file.schema_arrow.names)
        self._rows = self._file.metadata.num_rows

    def batches(self, size: int) -> Iterator[tuple[Batch, float]]:
        done = 0
        size = min(size, max(1, BATCH_BYTES_MAX // self._row_bytes()))
        with _parquet_errors():
            for found in self._file.iter_batches(size, columns=self._wanted.names):
                columns = {name: found.column(name) for name in self._wanted.names}
                batch = self._wanted.of_columns(columns, _numbered("row", done))
                done += batch.rows
                yield batch, done / self._rows

    def _row_bytes(self) -> int:
        """Return what a row takes, by the file's own account, in its largest group of rows."""
        names, most = set(self._wanted.names), 1
        metadata = self._file.metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = [group.column(n) for n in range(group.num_columns)]
            size = sum(
                column.total_uncompressed_size
                for column in columns
                if not names.isdisjoint(_prefixes(column.path_in_schema))
            )
            most = max(most, size // max(1, group.num_rows))
        if most > ROW_BYTES_MAX:
            raise Discard(f"input: rows of {most:,} bytes; {ROW_BYTES_MAX:,} at most")
        return most


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[: n + 1]) for n in range(len(parts)))


@contextlib.contextmanager
def _parquet_errors() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if not is_damage(error):
            raise
        line = str(error).partition("\n")[0]
        raise Discard(f"input: cannot be read as Parquet ({line}); write it again") from error


class _Lines:
    def __init__(self, file: BinaryIO, wanted: Wanted) -> None:
        self._file, self._wanted = file, wanted
        self._size = file.seek(0, 2)
        file.seek(0)
        file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
        self._read = 0
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode

    def batches(self, size: int) -> Iterator[tuple[Batch, float]]:
        lines = self._numbered_lines()
        while together := list(self._together(lines, size)):
            numbers = [number for number, _ in together]

            def where(index: int, numbers: list[int] = numbers) -> str:
                return f"line {numbers[index]}"

            columns = {
                name: self._column(name, [row for _, row in together], where)
                for name in self._wanted.names
            }
            yield self._wanted.of_columns(columns, where), self._read / self._size

    def _together(
        self, lines: Iterator[tuple[int, bytes]], size: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        text = 0
        for number, line in islice(lines, size):
            try:
                yield number, self._decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                raise Discard(f"input: line {number} is no JSON object ({error})") from error
            text += len(line)
            if text > _TEXT_BATCH_BYTES_MAX:
                return

    def _column(self, name: str, rows: list[dict[str, Any]], where: Where) -> Any:
        for number, row in enumerate(rows):
            if name not in row:
                has = ", ".join(list(row)[:30])
                raise Discard(f"input: {where(number)} has no {name!r}; it has {has}")
        try:
            return pa.array([row[name] for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise Discard(
                f"input: column {name!r}, {where(0)} to {where(len(rows) - 1)}: values that do not "
                f"go together ({str(error).partition(chr(10))[0][:200]})"
            ) from error

    def _numbered_lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that are not blank, with their numbers."""
        number, rest = 0, b""
        while True:
            block = self._file.read(_BLOCK)
            self._read += len(block)
            lines = (rest + block).split(b"\n")
            rest = lines.pop() if block else b""
            for line in lines:
                number += 1
                if line.strip():
                    yield number, line
            if len(rest) > _LINE_BYTES_MAX:
                raise Discard(
                    f"input: line {number + 1} is over {_LINE_BYTES_MAX >> 20} MiB; use Parquet"
                )
            if not block:
                return


@dataclass
class _Array:
    name: str
    member: Any
    shape: tuple[int, ...]
    dtype: Any

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=object)) * int(self.dtype.itemsize)

    def read(self, rows: int) -> Any:
        """Return the next rows."""
        length = rows * self.row_bytes
        try:
            data = self.member.read(length)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise Discard(
                f"input: array {self.name!r} is broken ({error}); save it again"
            ) from error
        if len(data) < length:
            raise Discard(f"input: array {self.name!r} is cut short; save it again")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


class _Arrays:
    def __init__(self, file: BinaryIO, wanted: Wanted, stack: contextlib.ExitStack) -> None:
        self._wanted = wanted
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
        except zipfile.BadZipFile as error:
            raise Discard(f"input: cannot be read as .npz ({error}); save it again") from error
        members = archive.infolist()
        names = [info.filename.removesuffix(".npy") for info in members]
        wanted.found_in(names)
        self._arrays = {
            name: _array(archive, members[names.index(name)], name, stack) for name in wanted.names
        }
        first, *others = self._arrays.values()
        for other in others:
            if other.shape[0] != first.shape[0]:
                raise Discard(
                    f"input: array {other.name!r} has {other.shape[0]} rows, {first.name!r} has "
                    f"{first.shape[0]}; the first axis is that of the rows"
                )
        for tensor in wanted.inputs:
            _same_shape(self._arrays[tensor.name], tensor)
        self._rows = first.shape[0]

    def batches(self, size: int) -> Iterator[tuple[Batch, float]]:
        row = max(1, sum(array.row_bytes for array in self._arrays.values()))
        size = min(size, max(1, BATCH_BYTES_MAX // row))
        for start in range(0, self._rows, size):
            rows = min(size, self._rows - start)
            read = {name: array.read(rows) for name, array in self._arrays.items()}
            where = _numbered("row", start)
            inputs = {
                tensor.name: fitted(
                    read[tensor.name].reshape(rows, *tensor.row_shape),
                    tensor,
                    where,
                    self._wanted.allow_nan,
                )
                for tensor in self._wanted.inputs
            }
            kept = [as_column(read[name], f"keep: array {name!r}") for name in self._wanted.keep]
            yield Batch(rows, inputs, kept), (start + rows) / self._rows


def _array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, stack: contextlib.ExitStack
) -> _Array:
    if info.file_size > _UNPACKED_TIMES_MAX * info.compress_size + _UNPACKED_BYTES_FREE:
        raise Discard(f"input: array {name!r} unpacks to {info.file_size:,} bytes; use Parquet")
    try:
        member = stack.enter_context(archive.open(info))
        major, _ = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if major == 1 else None
        read = np.lib.format.read_array_header_2_0 if major == 2 else read
        if read is None:
            raise ValueError(f"version {major} of .npy")
        shape, is_fortran, dtype = read(member)
    except (ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise Discard(f"input: {name!r} is no array that can be read ({error})") from error
    if dtype.hasobject:
        # Those are pickled, and unpickling runs code.
        raise Discard(f"input: array {name!r} holds Python objects; save numbers or text")
    if not shape or (is_fortran and len(shape) > 1):
        raise Discard(
            f"input: array {name!r} of the shape {shape} has no rows one after the other; "
            "save it in C order with the rows as its first axis"
        )
    array = _Array(name, member, shape, dtype)
    if array.row_bytes > ROW_BYTES_MAX:
        raise Discard(
            f"input: a row of array {name!r} is {array.row_bytes:,} bytes; "
            f"{ROW_BYTES_MAX:,} at most"
        )
    return array


def _same_shape(array: _Array, tensor: Tensor) -> None:
    wanted = shape_for(tensor, len(array.shape) - 1, f"{array.dtype} of the shape {array.shape}")
    if array.shape[1:] != wanted:
        raise Discard(
            f"input: array {array.name!r} has the shape {array.shape}, the model takes "
            f"(rows, {', '.join(map(str, tensor.row_shape))})"
        )


def _numbered(word: str, before: int) -> Where:
    return lambda index: f"{word} {before + index + 1}"
