"""One segment of the journal: the events of one group commit, as a Parquet file.

Rule 1: `decode(encode(header, rows)) == (header, rows)`, moments to the microsecond.
Rule 2: any flipped bit and any truncation is `Corrupt`; half of a commit is never returned.
Rule 3: the file is plain Parquet, so that any reader can query it; what is ours (the header and
the checksum) lies in the footer's metadata. Rule 4: a newer schema is refused, never guessed at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.store.sealed import seal, verify
from jobs.errors import Corrupt, InvalidInput

__all__ = ["SCHEMA_VERSION", "Rows", "SegmentHeader", "decode", "encode"]

#: The columns and the header's fields as this code writes them.
SCHEMA_VERSION = 1

_HEADER_KEY = b"drayman.segment"

_COLUMNS = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("job_id", pa.string(), nullable=False),
        pa.field("task_id", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field("token", pa.int64()),
        pa.field("data", pa.binary(), nullable=False),
    ]
)


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Who wrote a segment, and which events it holds."""

    #: The segment's place in the journal, from 1, without gaps.
    number: int
    #: Which claim of the journal wrote it; a later manager has a higher one.
    epoch: int
    #: Tells this write from any other of the same number.
    nonce: str
    journal_id: str
    #: Event number of the first row; the others follow without gaps.
    first_seq: int
    rows: int
    schema_version: int = SCHEMA_VERSION


class _Version(msgspec.Struct):
    """All that may be read of a header before its version is known."""

    schema_version: int


@dataclass(slots=True)
class Rows:
    """Events as columns of equal length."""

    #: Event numbers, contiguous.
    seq: list[int] = field(default_factory=list)
    #: Epoch seconds, already rounded to the microsecond.
    at: list[float] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    job_id: list[str] = field(default_factory=list)
    task_id: list[str | None] = field(default_factory=list)
    attempt: list[int | None] = field(default_factory=list)
    token: list[int | None] = field(default_factory=list)
    #: JSON, as bytes.
    data: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seq)

    @property
    def event_columns(self) -> tuple[Sequence[Any], ...]:
        """What makes an event, apart from its number and moment."""
        return self.kind, self.job_id, self.task_id, self.attempt, self.token, self.data


def encode(header: SegmentHeader, rows: Rows) -> bytes:
    """Return the file; the same header and rows always give the same bytes."""
    _check(header, rows)
    batch = pa.record_batch(_arrays(rows), schema=_COLUMNS)
    # Uncompressed, without statistics, and a dictionary for `kind` only: at a thousand rows that
    # halves the time of a commit, and compaction rewrites the rows soon after.
    data = seal(
        batch,
        _HEADER_KEY,
        msgspec.json.encode(header),
        compression="none",
        use_dictionary=["kind"],
        write_statistics=False,
    )
    return bytes(data)


def decode(data: bytes, path: str) -> tuple[SegmentHeader, Rows]:
    """Return what was encoded; Corrupt, naming `path`, if these are not those bytes."""
    verify(data, path)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        written = file.metadata.metadata[_HEADER_KEY]
        _refuse_newer(msgspec.json.decode(written, type=_Version).schema_version, path)
        header = msgspec.json.decode(written, type=SegmentHeader)
        table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise Corrupt(path, f"is no journal segment: {error}") from error
    if not table.schema.equals(_COLUMNS):
        raise Corrupt(path, f"has the columns of no known version: {table.schema.names}")
    rows = _rows(table)
    try:
        _check(header, rows)
    except InvalidInput as error:
        raise Corrupt(path, f"its header does not fit its rows: {error}") from error
    return header, rows


def _refuse_newer(version: int, path: str) -> None:
    if version > SCHEMA_VERSION:
        raise Corrupt(
            path,
            f"has schema version {version}, this Drayman reads up to {SCHEMA_VERSION}; start the "
            "newer version",
        )


def _arrays(rows: Rows) -> list[pa.Array]:
    # The events of one command happened at one moment.
    micros = {at: round(at * 1_000_000) for at in set(rows.at)}
    columns: list[Sequence[object]] = [
        rows.seq,
        [micros[at] for at in rows.at],
        rows.kind,
        rows.job_id,
        rows.task_id,
        rows.attempt,
        rows.token,
        rows.data,
    ]
    return [pa.array(column, type=f.type) for column, f in zip(columns, _COLUMNS, strict=True)]


def _rows(table: pa.Table) -> Rows:
    # As integers: Arrow makes a datetime of each timestamp, a hundred times slower.
    micros = pc.cast(table["at"], pa.int64()).to_pylist()
    return Rows(
        seq=table["seq"].to_pylist(),
        at=[micro / 1_000_000 for micro in micros],
        kind=table["kind"].to_pylist(),
        job_id=table["job_id"].to_pylist(),
        task_id=table["task_id"].to_pylist(),
        attempt=table["attempt"].to_pylist(),
        token=table["token"].to_pylist(),
        data=table["data"].to_pylist(),
    )


def _check(header: SegmentHeader, rows: Rows) -> None:
    count = header.rows
    columns = (rows.seq, rows.at, rows.kind, rows.job_id, rows.task_id, rows.attempt, rows.token)
    if len(rows.data) != count or any(len(column) != count for column in columns):
        raise InvalidInput("rows", f"every column must hold the header's {count} values")
    if rows.seq != list(range(header.first_seq, header.first_seq + count)):
        raise InvalidInput("rows.seq", f"must count up from the header's {header.first_seq}")
