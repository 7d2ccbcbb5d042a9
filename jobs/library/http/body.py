"""The body of an answer: decoded as it streams, and never more of it than is wanted.

Rule: the decoder is asked for a block at a time, so that a few compressed bytes that stand for
gigabytes cost no more memory than one block.
"""

import zlib
from collections.abc import AsyncIterator, Iterator

import httpx

__all__ = ["ACCEPT_ENCODING", "BadBody", "blocks", "text_of"]

#: What `blocks` can decode.
ACCEPT_ENCODING = "gzip"
BLOCK_BYTES = 64 * 1024
_CHARSETS = {"utf-8", "ascii", "iso-8859-1", "windows-1252", "us-ascii", "latin-1"}


class BadBody(Exception):
    """The body is not what its headers say."""


async def blocks(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the decoded body in blocks. Raises BadBody, and what httpx raises."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        async for raw in response.aiter_raw():
            yield raw
    elif encoding in ("gzip", "x-gzip"):
        gunzip = _Gunzip()
        async for raw in response.aiter_raw():
            for block in gunzip.feed(raw):
                yield block
        gunzip.end()
    else:
        raise BadBody(f"its Content-Encoding is {encoding[:50]!r}, and only gzip was asked for")


class _Gunzip:
    def __init__(self) -> None:
        self._member = _member()
        self._is_within = False

    def feed(self, raw: bytes) -> Iterator[bytes]:
        """Yield what `raw` stands for, in blocks."""
        while raw:
            if self._member.eof:
                self._member = _member()
            self._is_within = True
            try:
                block = self._member.decompress(raw, BLOCK_BYTES)
            except zlib.error as error:
                raise BadBody(f"it is no gzip ({error})") from None
            raw = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if block:
                yield block

    def end(self) -> None:
        """Raise BadBody if something is missing."""
        if self._is_within and not self._member.eof:
            raise BadBody("it is gzip that breaks off")


def _member() -> "zlib._Decompress":
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def text_of(data: bytes, charset: str | None) -> str | None:
    """Return the text that `data` is, without a byte order mark, or None."""
    charset = (charset or "utf-8").lower()
    if charset not in _CHARSETS:
        return None
    try:
        return data.decode("utf-8-sig" if charset == "utf-8" else charset)
    except UnicodeDecodeError:
        return None
