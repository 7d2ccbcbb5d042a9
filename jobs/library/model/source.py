"""Where a model or an input is: in an installed package, on this disk, or in a store.

Rule 1: a package is found, never imported: params name it. Rule 2: a path reaches the folders that
the operator opened, and a package its own `.onnx` files.
"""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from jobs.context import Context, Files
from jobs.errors import InvalidInput, NotFound
from jobs.library.table.source import file_path
from jobs.outcome import Discard

__all__ = ["model_bytes", "opened"]

_PACKAGE = "package:"
#: What protobuf, and so a model in one file, can hold.
MODEL_BYTES_MAX = (1 << 31) - 1
_BLOCK = 1 << 22


def model_bytes(ctx: Context, uri: str) -> tuple[bytes, str]:
    """Return the model's file and the sha256 of it. Raises Discard if there is none to be had."""
    blocks, digest = [], hashlib.sha256()
    with _packaged(uri) if uri.startswith(_PACKAGE) else opened(ctx.files, "model", uri) as file:
        size = file.seek(0, os.SEEK_END)
        if size > MODEL_BYTES_MAX:
            raise Discard(f"model: {size:,} bytes; {MODEL_BYTES_MAX:,} at most, use a smaller one")
        file.seek(0)
        while block := file.read(_BLOCK):
            ctx.check()
            digest.update(block)
            blocks.append(block)
    return b"".join(blocks), digest.hexdigest()


@contextlib.contextmanager
def opened(files: Files, field: str, uri: str) -> Iterator[BinaryIO]:
    """Open the file that the param `field` names. Raises Discard if there is none to be read."""
    try:
        path = file_path(uri)
        # By its URI, so that lineage names it.
        file = files.open(uri if path is None else files.local(path).as_uri())
    except (NotFound, InvalidInput, FileNotFoundError, IsADirectoryError) as error:
        raise Discard(
            f"{field}: {uri} cannot be read ({error}); upload the file, or correct it"
        ) from error
    with file:
        yield file


def _packaged(uri: str) -> BinaryIO:
    package, _, inner = uri.removeprefix(_PACKAGE).partition("/")
    path = PurePosixPath(inner)
    if not package.isidentifier() or path.is_absolute() or ".." in path.parts:
        raise Discard(f"model: {uri} is no file of a package; write package:NAME/folder/file.onnx")
    if path.suffix != ".onnx":
        raise Discard(f"model: {uri} is no .onnx file; only those are read from packages")
    try:
        # Of a name without dots, this looks and imports nothing.
        found = importlib.util.find_spec(package)
    except ValueError:  # a module of this process that came from no file
        found = None
    if found is None:
        raise Discard(f"model: package {package!r} is not installed on this worker; install it")
    for folder in found.submodule_search_locations or ():
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return (Path(folder) / path).open("rb")
    raise Discard(f"model: package {package!r} has no file {inner!r}; correct it")
