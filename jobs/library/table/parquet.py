"""Parquet files as one table: found, checked against each other, read by row groups.

Rule 1: the order is that of the sources as told, files within a folder or glob by path, and row
groups within a file, whoever reads them. Rule 2: a column has one type in all files, or there is no
table: Arrow would fill what one file lacks with nulls. Rule 3: what a chunk reads was fixed by the
split; a file that has other rows by then ends the job.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from jobs.buckets import refuse_own
from jobs.context import Files
from jobs.errors import InvalidInput, NotFound
from jobs.library.table.damage import is_damage
from jobs.library.table.piece import Piece
from jobs.library.table.source import NO_VALUE, brought, file_path
from jobs.outcome import Discard

__all__ = ["Found", "dataset_of", "find", "find_damage", "plan_of", "plan_schema"]

_SUFFIXES = (".parquet", ".pq")
_STORES = ("s3", "gs", "gcs")
_WILD = "*?["
FILES_MAX = 100_000
#: A whole number of a folder's name; 007 is a text.
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FORMAT = ds.ParquetFileFormat()
#: Reading through a small buffer keeps memory flat, whatever the size of a row group.
SCAN = ds.ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=1 << 20)


@dataclass(frozen=True)
class Found:
    """The table that sources make."""

    #: Columns of the files, then those that folders name (`year=2013/`).
    schema: Any
    #: Each file, and the rows of its row groups.
    files: list[tuple[str, list[int]]]


def find(files: Files, sources: Sequence[str]) -> Found:
    """Return the table at `sources`: files, folders or globs. Raises Discard naming the fix."""
    uris = [uri for source in sources for uri in _listed(files, source)]
    if len(uris) > FILES_MAX:
        raise Discard(f"source: {len(uris)} files, {FILES_MAX} at most; name fewer")
    found: list[tuple[str, list[int]]] = []
    schema: Any = None
    for uri in uris:
        with _opened(files, uri) as file:
            try:
                fragment = _FORMAT.make_fragment(file)
                physical = fragment.physical_schema
                metadata = fragment.metadata
            except (pa.ArrowInvalid, OSError) as error:
                _blame(uri, error)
                raise
            groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        if schema is None:
            schema = physical.remove_metadata()
        _same(schema, physical, _name(uri), _name(uris[0]))
        found.append((uri, groups))
    folders = _folder_columns(uris)
    twice = [name for name in folders.names if name in schema.names]
    if twice:
        raise Discard(f"source: column {twice[0]!r} is both in the files and in their folders")
    for field in folders:
        schema = schema.append(field)
    return Found(schema, found)


def plan_of(found: Found) -> bytes:
    """Return the schema as `plan_schema` reads it."""
    return bytes(found.schema.serialize())


def plan_schema(data: bytes) -> Any:
    """Return the schema that the split found."""
    return pa.ipc.read_schema(pa.py_buffer(data))


@contextlib.contextmanager
def dataset_of(files: Files, schema: Any, pieces: Sequence[Piece]) -> Iterator[Any]:
    """Open a dataset of exactly these pieces, in order; `find_damage` tells why reading fails."""
    with contextlib.ExitStack() as stack:
        fragments = []
        for piece in pieces:
            try:
                file = stack.enter_context(_opened(files, piece.uri))
                fragment = _FORMAT.make_fragment(
                    file,
                    partition_expression=_told_by_folders(piece.uri, schema),
                    row_groups=range(piece.first, piece.first + piece.groups),
                )
                rows = fragment.metadata.num_rows
            except (pa.ArrowInvalid, IndexError) as error:
                raise _changed(piece.uri) from error
            except OSError as error:
                _blame(piece.uri, error)
                raise
            if rows != piece.file_rows:
                raise _changed(piece.uri)
            fragments.append(fragment)
        yield ds.FileSystemDataset(fragments, schema, _FORMAT, fs.LocalFileSystem())


def find_damage(files: Files, schema: Any, pieces: Sequence[Piece]) -> None:
    """Read the pieces one by one; raise naming the first that cannot be read, if one cannot.

    Arrow tells what is wrong and not in which file, so they are read again to find it.
    """
    for piece in pieces:
        try:
            with dataset_of(files, schema, [piece]) as dataset:
                scanner = dataset.scanner(use_threads=False, fragment_scan_options=SCAN)
                for _ in scanner.to_batches():
                    pass
        except (pa.ArrowInvalid, OSError) as error:
            _blame(piece.uri, error)
            raise


def _blame(uri: str, error: OSError | pa.ArrowInvalid) -> None:
    """Raise what names the file, unless something else is at fault."""
    told = f"source: {_name(uri)} cannot be read as Parquet ({_line(error)})"
    if is_damage(error, in_bucket=uri.partition("://")[0] in _STORES):
        raise Discard(told) from error
    if is_damage(error):
        raise OSError(told) from error


def _changed(uri: str) -> Discard:
    return Discard(f"source: {_name(uri)} changed while it was read; export it again")


def _same(wanted: Any, physical: Any, name: str, first: str) -> None:
    for field in wanted:
        at = physical.get_field_index(field.name)
        if at < 0:
            raise Discard(f"source: {name} lacks column {field.name!r}, which {first} has")
        kind = physical.field(at).type
        if kind != field.type:
            raise Discard(
                f"source: column {field.name!r} is {kind} in {name} and {field.type} in {first}; "
                "export them apart"
            )
    extra = [name for name in physical.names if name not in wanted.names]
    if extra:
        raise Discard(f"source: {name} has column {extra[0]!r}, which {first} lacks")
    if len(set(physical.names)) < len(physical.names):
        raise Discard(f"source: {name} has a column twice")


def _folder_columns(uris: Sequence[str]) -> Any:
    """Return the columns that folders name. Raises Discard unless all files lie in alike ones."""
    told = [_keys(uri) for uri in uris]
    names = [name for name, _ in told[0]]
    for uri, keys in zip(uris, told, strict=True):
        if [name for name, _ in keys] != names:
            raise Discard(
                f"source: {_name(uri)} lies in other folders (key=value) than {_name(uris[0])}; "
                "export them apart"
            )
    fields = []
    for n, name in enumerate(names):
        values = {keys[n][1] for keys in told} - {None}
        is_whole = bool(values) and all(_WHOLE.fullmatch(value or "") for value in values)
        fields.append((name, pa.int64() if is_whole else pa.string()))
    return pa.schema(fields)


def _keys(uri: str) -> list[tuple[str, str | None]]:
    """Return what the folders of a path say: `k=1/` is ("k", "1")."""
    path = urlsplit(uri).path if "://" in uri else uri
    parts = [part.partition("=") for part in path.split("/")[:-1] if "=" in part]
    return [
        (unquote(name), None if value == NO_VALUE else unquote(value)) for name, _, value in parts
    ]


def _told_by_folders(uri: str, schema: Any) -> Any:
    """Return what a file's folders say as an expression; None if they say nothing."""
    whole = None
    for name, value in _keys(uri):
        field = pc.field(name)
        kind = schema.field(name).type
        one = field.is_null() if value is None else field == pa.scalar(value).cast(kind)
        whole = one if whole is None else whole & one
    return whole


def _name(uri: str) -> str:
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2]


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()


@contextlib.contextmanager
def _opened(files: Files, uri: str) -> Iterator[Any]:
    """Open a file for Arrow. Raises Discard if there is none that may be read."""
    path = brought(files, uri)
    try:
        if path is not None:
            with pa.OSFile(str(path)) as file:
                yield file
        elif uri.partition("://")[0] in _STORES:
            refuse_own(uri)
            filesystem, inner = fs.FileSystem.from_uri(uri)
            with filesystem.open_input_file(inner) as file:
                yield file
        else:
            with files.open(uri) as raw:
                yield pa.PythonFile(raw, mode="r")
    except (NotFound, InvalidInput, FileNotFoundError) as error:
        raise Discard(f"source: {_name(uri)} cannot be read ({error})") from error


def _listed(files: Files, source: str) -> list[str]:
    """Return the files that a file, folder or glob names, by path."""
    if source.partition("://")[0] in _STORES:
        parts = urlsplit(source)
        base, pattern = _split_glob(parts.path)
        try:
            refuse_own(source)
        except InvalidInput as error:
            raise Discard(f"source: {error}") from error
        try:
            filesystem, root = fs.FileSystem.from_uri(urlunsplit(parts._replace(path=base)))
        except pa.ArrowInvalid as error:
            raise Discard(f"source: {source.partition('?')[0]} is no URI that works") from error
        tail = root.rstrip("/")

        def told(path: str) -> str:
            return urlunsplit(
                parts._replace(path=parts.path if path == tail else "/" + path.partition("/")[2])
            )

        return [told(path) for path in _walk(filesystem, tail, pattern, source)]
    path = file_path(source)
    if path is None:
        return [source]
    # A file's own name may hold such a sign; then it is no pattern.
    is_there = Path(path).expanduser().exists()
    base, pattern = (path, None) if is_there else _split_glob(path)
    folder = brought(files, base or ".")
    return list(_walk(fs.LocalFileSystem(), str(folder), pattern, source))


def _walk(filesystem: Any, base: str, pattern: str | None, source: str) -> list[str]:
    info = filesystem.get_file_info(base)
    if info.type == fs.FileType.File:
        return [base]
    paths: list[str] = []
    if info.type == fs.FileType.Directory:
        selector = fs.FileSelector(base, recursive=True)
        try:
            paths = sorted(
                one.path
                for one in filesystem.get_file_info(selector)
                if one.type == fs.FileType.File
                and _belongs(one.path[len(base) :].lstrip("/"), pattern)
            )
        except UnicodeDecodeError as error:
            raise Discard(
                f"source: beneath {source.partition('?')[0]} is a file whose name is not UTF-8 "
                f"({error.object!r}); rename it"
            ) from error
    if not paths:
        shown = source.partition("?")[0]
        raise Discard(f"source: no Parquet files at {shown}; correct the path")
    return paths


def _belongs(relative: str, pattern: str | None) -> bool:
    parts = relative.split("/")
    # Writers leave _SUCCESS, lists of what they wrote and half-written files beside their data.
    if any(part.startswith(("_", ".")) for part in parts):
        return False
    if pattern is None:
        return relative.endswith(_SUFFIXES)
    wanted = pattern.split("/")
    if wanted[-1] == "**":
        wanted.append("*")
    return _matches(parts, wanted)


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[n:], wanted[1:]) for n in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _split_glob(path: str) -> tuple[str, str | None]:
    segments = path.split("/")
    for n, segment in enumerate(segments):
        if any(sign in segment for sign in _WILD):
            base = "/".join(segments[:n])
            return base or ("/" if path.startswith("/") else ""), "/".join(segments[n:])
    return path, None
