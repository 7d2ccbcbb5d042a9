"""The segment codec: what goes in comes out, and any damage is noticed."""

import io
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.store.segment import SCHEMA_VERSION, Rows, SegmentHeader, decode, encode
from jobs.errors import Corrupt, InvalidInput

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
_INT32 = st.integers(min_value=-(2**31), max_value=2**31 - 1)
#: Moments as the manager makes them: rounded to the microsecond.
_AT = st.floats(min_value=0, max_value=4e9).map(lambda at: round(at, 6))


@st.composite
def segments(draw: st.DrawFn) -> tuple[SegmentHeader, Rows]:
    count = draw(st.integers(min_value=0, max_value=8))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    first = draw(st.integers(min_value=1, max_value=2**62))
    header = SegmentHeader(
        number=draw(st.integers(min_value=1, max_value=2**62)),
        epoch=draw(st.integers(min_value=1, max_value=2**62)),
        nonce=draw(_TEXT),
        journal_id=draw(_TEXT),
        first_seq=first,
        rows=count,
    )
    rows = Rows(
        seq=list(range(first, first + count)),
        at=column(_AT),
        kind=column(_TEXT),
        job_id=column(_TEXT),
        task_id=column(st.none() | _TEXT),
        attempt=column(st.none() | _INT32),
        token=column(st.none() | _INT64),
        data=column(st.binary(max_size=200)),
    )
    return header, rows


def a_segment(count: int = 3) -> tuple[SegmentHeader, Rows]:
    header = SegmentHeader(
        number=7, epoch=2, nonce="nonce", journal_id="journal", first_seq=40, rows=count
    )
    rows = Rows(
        seq=list(range(40, 40 + count)),
        at=[1_700_000_000.123456] * count,
        kind=["JobSubmitted"] * count,
        job_id=["job"] * count,
        task_id=[None] * count,
        attempt=[1] * count,
        token=[None] * count,
        data=[b'{"a":1}'] * count,
    )
    return header, rows


@given(segments())
@settings(deadline=None)
def test_what_is_encoded_is_decoded(segment: tuple[SegmentHeader, Rows]) -> None:
    assert decode(encode(*segment), "x") == segment


@given(segments())
@settings(deadline=None)
def test_same_segment_has_the_same_bytes(segment: tuple[SegmentHeader, Rows]) -> None:
    assert encode(*segment) == encode(*segment)


_WHOLE = encode(*a_segment())


@given(bit=st.integers(min_value=0, max_value=len(_WHOLE) * 8 - 1))
@settings(max_examples=400, deadline=None)
def test_flipped_bit_anywhere_is_corrupt(bit: int) -> None:
    damaged = bytearray(_WHOLE)
    damaged[bit // 8] ^= 1 << bit % 8

    with pytest.raises(Corrupt, match="journal/7"):
        decode(bytes(damaged), "journal/7")


@pytest.mark.parametrize("at", [0, 3, 4, 40, -1, -4, -5, -8, -9, -80, -150])
def test_flipped_bit_where_formats_are_fragile_is_corrupt(at: int) -> None:
    for bit in range(8):
        damaged = bytearray(_WHOLE)
        damaged[at] ^= 1 << bit

        with pytest.raises(Corrupt):
            decode(bytes(damaged), "x")


@given(length=st.integers(min_value=0, max_value=len(_WHOLE) - 1))
@settings(deadline=None)
def test_truncation_to_any_length_is_corrupt(length: int) -> None:
    with pytest.raises(Corrupt):
        decode(_WHOLE[:length], "x")
    with pytest.raises(Corrupt):
        decode(_WHOLE[-length:] if length else b"", "x")


@given(extra=st.binary(min_size=1, max_size=50))
@settings(deadline=None)
def test_bytes_added_at_either_end_are_corrupt(extra: bytes) -> None:
    for damaged in (_WHOLE + extra, extra + _WHOLE):
        with pytest.raises(Corrupt):
            decode(damaged, "x")


def test_two_halves_of_two_segments_are_corrupt() -> None:
    header, rows = a_segment()
    rows.data[0] = b'{"a":2}'
    other = encode(msgspec.structs.replace(header, nonce="other"), rows)
    half = len(other) // 2

    with pytest.raises(Corrupt):
        decode(_WHOLE[:half] + other[half:], "x")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all", b"\0" * 500])
def test_file_that_is_no_parquet_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(data, "x")


def test_row_that_looks_like_the_checksum_does_not_mislead() -> None:
    header, rows = a_segment()
    rows.data[1] = b"drayman.sha256\x18@" + b"0" * 64

    assert decode(encode(header, rows), "x") == (header, rows)


def test_nonce_that_looks_like_the_checksum_does_not_mislead() -> None:
    header, rows = a_segment()
    header = msgspec.structs.replace(header, nonce="drayman.sha256\x18@" + "0" * 64)

    assert decode(encode(header, rows), "x") == (header, rows)


def test_newer_schema_is_refused_by_naming_both_versions() -> None:
    header, rows = a_segment()
    newer = msgspec.structs.replace(header, schema_version=SCHEMA_VERSION + 1)

    with pytest.raises(Corrupt, match=rf"version {SCHEMA_VERSION + 1}.* up to {SCHEMA_VERSION}"):
        decode(encode(newer, rows), "x")


@pytest.mark.parametrize("change", [{"rows": 4}, {"first_seq": 41}])
def test_header_that_does_not_fit_its_rows_is_refused(change: dict[str, int]) -> None:
    header, rows = a_segment()

    with pytest.raises(InvalidInput, match="rows"):
        encode(msgspec.structs.replace(header, **change), rows)


def test_column_of_another_length_is_refused() -> None:
    header, rows = a_segment()
    rows.token.append(1)

    with pytest.raises(InvalidInput, match="every column"):
        encode(header, rows)


def test_segment_is_plain_parquet_to_other_readers() -> None:
    table = pq.read_table(io.BytesIO(_WHOLE), page_checksum_verification=True)

    assert table["kind"].to_pylist() == ["JobSubmitted"] * 3
    assert table["at"][0].as_py().isoformat() == "2023-11-14T22:13:20.123456+00:00"
