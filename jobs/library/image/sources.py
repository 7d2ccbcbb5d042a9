"""Which photos a list of sources names: URIs as they are, folders and globs looked up.

Rule: the order is that of the list, and within a folder that of the names: the same folder gives
the same numbers.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import BaseModel

from jobs.context import Files
from jobs.errors import InvalidInput
from jobs.outcome import Discard

__all__ = ["PHOTOS_MAX", "Photo", "bring", "photos_of", "shown"]

PHOTOS_MAX = 100_000
#: What a folder's photos are called; a file named by itself may be called anything.
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp"])


class Photo(BaseModel):
    """One photo of the set."""

    #: Its place in the set, from 0.
    index: int
    #: A URI to fetch, or a path on the worker's disk.
    source: str
    #: Of its file; None where only fetching would tell.
    size: int | None = None


def photos_of(sources: Sequence[str], files: Files) -> Iterator[Photo]:
    """Yield the photos. Raises Discard for a source that names none, and for too many."""
    index = 0
    for source in sources:
        for found, size in _expanded(source, files):
            if index == PHOTOS_MAX:
                raise Discard(
                    f"sources: more than {PHOTOS_MAX:,} photos; submit them as several jobs"
                )
            yield Photo(index=index, source=found, size=size)
            index += 1


def bring(photo: Photo, files: Files) -> Path:
    """Return where the photo lies on this machine. Raises InvalidInput or NotFound."""
    path = _local_path(photo.source)
    return files.fetch(photo.source) if path is None else files.local(path)


def shown(source: str) -> str:
    """Drop `user:password@` and the query, where credentials hide, from a URI with a host."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _expanded(source: str, files: Files) -> Iterator[tuple[str, int | None]]:
    path = _local_path(source)
    if path is None:
        yield source, None
        return
    segments = path.split("/")
    first = next((n for n, s in enumerate(segments) if any(c in s for c in "*?[")), None)
    # A file's own name may hold such a sign; then it is no pattern.
    if first is not None and not Path(path).expanduser().exists():
        folder, pattern = "/".join(segments[:first]) or "/", "/".join(segments[first:])
        if not path.startswith("/") and first == 0:
            folder = "."
        yield from _listed(source, _allowed(folder, files).glob(pattern), files)
        return
    local = _allowed(path, files)
    if local.is_dir():
        yield from _listed(source, local.iterdir(), files, SUFFIXES)
        return
    # A file that is not there is a bad photo, like one that cannot be read: told by its chunk.
    yield source, local.stat().st_size if local.is_file() else None


def _listed(
    source: str, found: Iterator[Path], files: Files, suffixes: frozenset[str] | None = None
) -> Iterator[tuple[str, int]]:
    paths = sorted(
        path
        for path in found
        if path.is_file()
        and not path.name.startswith(".")
        and (suffixes is None or path.suffix.lower() in suffixes)
    )
    if not paths:
        raise Discard(f"sources: no photos at {shown(source)}; correct it")
    for path in paths:
        _check_name(path)
        # Each by itself: a link in an opened folder may lead out of it.
        yield str(path), _allowed(str(path), files).stat().st_size


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise Discard(
            f"sources: the name of {os.fsencode(path)!r} is not UTF-8; rename that file"
        ) from error


def _allowed(path: str, files: Files) -> Path:
    try:
        return files.local(path)
    except InvalidInput as error:
        raise Discard(f"sources: {error.reason}") from error


def _local_path(source: str) -> str | None:
    """Return the path that a plain path or a `file:` URI is, None for other URIs."""
    parts = urlsplit(source)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return unquote(parts.path)
    if "://" in source or source.startswith(("upload:", "output:")):
        return None
    return source
