"""A Parquet file that tells whether it is whole: a SHA-256 over every byte stands in its footer.

Rule 1: the same rows and the same metadata give the same bytes. Rule 2: `verify` refuses any
flipped bit and any truncation. Rule 3: the file is plain Parquet for every other reader.
"""

import hashlib
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import Corrupt

__all__ = ["locate", "seal", "verify"]

_CHECKSUM_KEY = b"drayman.sha256"
_CHECKSUM_CHARS = 64
_BLANK = b"0" * _CHECKSUM_CHARS
#: What precedes the checksum in the footer: its key, then Thrift's compact form of "field 2 of this
#: struct, a string of 64 bytes".
_CHECKSUM_MARK = _CHECKSUM_KEY + bytes([0x18, _CHECKSUM_CHARS])
_MAGIC = b"PAR1"
#: After the footer: its length and the magic.
_TAIL = struct.Struct("<I4s")


def seal(table: Any, key: bytes, header: bytes, **options: Any) -> bytearray:
    """Return the table as a Parquet file with `header` under `key` in its metadata.

    `options` are those of `pyarrow.parquet.ParquetWriter`.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, write_page_checksum=True, store_schema=False, **options
    ) as writer:
        writer.write(table)
        writer.add_key_value_metadata({key: header, _CHECKSUM_KEY: _BLANK})
    data = bytearray(sink.getvalue())
    at = _checksum_at(data)
    data[at : at + _CHECKSUM_CHARS] = hashlib.sha256(data).hexdigest().encode()
    return data


def verify(data: bytes, path: str) -> None:
    """Compare the checksum over every byte, with its own place blanked, to the one stored.

    Raises Corrupt, naming `path`.
    """
    try:
        at = _checksum_at(data)
    except ValueError as error:
        raise Corrupt(path, str(error)) from error
    digest = hashlib.sha256(memoryview(data)[:at])
    digest.update(_BLANK)
    digest.update(memoryview(data)[at + _CHECKSUM_CHARS :])
    if data[at : at + _CHECKSUM_CHARS] != digest.hexdigest().encode():
        raise Corrupt(path, "its bytes do not match its checksum; restore it from a copy")


def locate(data: bytes) -> str:
    """Return which part of a sealed file is damaged, by the checksums of its pages.

    Empty where it is whole, or is cut so short that nothing can be told.
    """
    try:
        verify(data, "")
    except Corrupt:
        try:
            _checksum_at(data)
        except ValueError:
            return ""
    else:
        return ""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        damaged = [
            chunk for number in range(file.num_row_groups) for chunk in _damaged(file, number)
        ]
    except (pa.ArrowException, OSError):
        return "in its footer"
    return f"in {', '.join(damaged)}" if damaged else "in its footer, or between its pages"


def _damaged(file: Any, number: int) -> Iterator[str]:
    group = file.metadata.row_group(number)
    for at in range(group.num_columns):
        chunk = group.column(at)
        try:
            file.read_row_group(number, columns=[chunk.path_in_schema])
        except (pa.ArrowException, OSError):
            starts = [chunk.data_page_offset, chunk.dictionary_page_offset]
            first = min(start for start in starts if start is not None)
            last = first + chunk.total_compressed_size - 1
            yield f"column {chunk.path_in_schema}, bytes {first} to {last}"


def _checksum_at(data: bytes | bytearray) -> int:
    """Return where the checksum's characters begin; ValueError if this is no sealed file."""
    if len(data) < _TAIL.size:
        raise ValueError(f"is cut short, to {len(data)} bytes")
    footer_bytes, magic = _TAIL.unpack_from(data, len(data) - _TAIL.size)
    if magic != _MAGIC:
        raise ValueError("is cut short or no Parquet file: it does not end in PAR1")
    # Searched in the footer only, since a row may hold any bytes, these too.
    end = len(data) - _TAIL.size
    found = data.rfind(_CHECKSUM_MARK, max(0, end - footer_bytes), end)
    at = found + len(_CHECKSUM_MARK)
    if found < 0 or at + _CHECKSUM_CHARS > end:
        raise ValueError("holds no checksum: Drayman did not write it")
    return at
