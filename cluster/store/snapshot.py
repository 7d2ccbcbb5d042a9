"""Snapshots in the store: `snapshots/<20 digits>.parquet`, named after the last segment they cover.

Rule 1: a snapshot is written whole, or not at all, and never changed: whoever folds the same
segments writes the same rows. Rule 2: a damaged, newer or foreign one is `Corrupt`, never passed
over: what it covers may be deleted already.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.store.contract import Objects
from cluster.store.sealed import seal, verify
from jobs.errors import Corrupt

__all__ = ["SnapshotHeader", "Snapshots"]

_DIGITS: Final = 20
_PREFIX: Final = "snapshots/"
_NAME = re.compile(rf"{_PREFIX}(\d{{{_DIGITS}}})\.parquet")
_HEADER_KEY = b"drayman.snapshot"
_COLUMNS = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
    ]
)
#: Rows turned into Arrow's and back at a time: what bounds the memory above the file's own bytes.
_CHUNK_ROWS = 50_000


class SnapshotHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot covers."""

    #: The last segment folded into it, and that segment's last event.
    last: int
    seq: int
    journal_id: str
    #: How its rows are to be read.
    version: int


class Snapshots:
    """The snapshots beside one journal."""

    def __init__(self, objects: Objects, journal_id: str, version: int) -> None:
        self._objects, self._journal_id, self._version = objects, journal_id, version

    def path(self, last: int) -> str:
        """Return the name of the snapshot that covers segments up to `last`."""
        return f"{_PREFIX}{last:0{_DIGITS}d}.parquet"

    def numbers(self) -> list[int]:
        """Return what the snapshots there are cover, lowest first. Corrupt for a foreign file."""
        found = []
        for info in self._objects.list(_PREFIX):
            match = _NAME.fullmatch(info.path)
            if match is None:
                raise Corrupt(info.path, "is no snapshot; move it out of the folder")
            found.append(int(match[1]))
        return found

    def newest_bytes(self) -> int:
        """Return the size of the newest one; 0 if there is none."""
        return max(
            ((info.path, info.bytes) for info in self._objects.list(_PREFIX)), default=("", 0)
        )[1]

    def write(self, last: int, seq: int, rows: Iterable[tuple[str, str, bytes]]) -> int:
        """Write a snapshot, unless it is there; return its size."""
        header = SnapshotHeader(
            last=last, seq=seq, journal_id=self._journal_id, version=self._version
        )
        table = pa.Table.from_batches(list(_batches(rows)), _COLUMNS)
        data = seal(
            table,
            _HEADER_KEY,
            msgspec.json.encode(header),
            compression="zstd",
            use_dictionary=["kind"],
            write_statistics=False,
        )
        self._objects.put_if_absent(self.path(last), bytes(data))
        return len(data)

    def read(self, last: int) -> tuple[SnapshotHeader, Iterator[tuple[str, str, bytes]]]:
        """Return a snapshot's header and rows; Corrupt if it is not what was written."""
        path = self.path(last)
        data = self._objects.get(path)
        verify(data, path)
        file = pq.ParquetFile(pa.BufferReader(data))
        try:
            written = file.metadata.metadata[_HEADER_KEY]
            header = msgspec.json.decode(written, type=SnapshotHeader)
        except (KeyError, msgspec.MsgspecError) as error:
            raise Corrupt(path, f"is no snapshot: {error}") from error
        if header.version > self._version:
            raise Corrupt(
                path,
                f"has version {header.version}, this Drayman reads up to {self._version}; start "
                "the newer version",
            )
        if header.last != last:
            raise Corrupt(path, f"covers segments up to {header.last}; put it under its name")
        if header.journal_id != self._journal_id:
            raise Corrupt(path, f"belongs to journal {header.journal_id}, not {self._journal_id}")
        return header, _rows(file)

    def delete_before(self, last: int) -> None:
        """Delete those that cover less than `last`."""
        self._objects.delete([self.path(n) for n in self.numbers() if n < last])


def _batches(rows: Iterable[tuple[str, str, bytes]]) -> Iterator[pa.RecordBatch]:
    chunk: list[tuple[str, str, bytes]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK_ROWS:
            yield _batch(chunk)
            chunk = []
    if chunk:
        yield _batch(chunk)


def _batch(chunk: list[tuple[str, str, bytes]]) -> pa.RecordBatch:
    columns = zip(*chunk, strict=True)
    arrays = [
        pa.array(column, type=field.type) for column, field in zip(columns, _COLUMNS, strict=True)
    ]
    return pa.record_batch(arrays, schema=_COLUMNS)


def _rows(file: pq.ParquetFile) -> Iterator[tuple[str, str, bytes]]:
    for batch in file.iter_batches(_CHUNK_ROWS):
        columns = [batch.column(name).to_pylist() for name in _COLUMNS.names]
        yield from zip(*columns, strict=True)
