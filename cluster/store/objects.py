"""A store from its URL, and the test every store must pass before it is trusted.

The contract lives in `contract.py`; this is the door the other rooms come in by.
"""

import errno
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.store.contract import ObjectInfo, Objects, ObjectWriter, check_path
from cluster.store.local import LocalObjects
from cluster.store.memory import MemoryObjects
from cluster.store.remote import SCHEMES, RemoteObjects
from jobs.errors import InvalidInput, Unavailable

__all__ = [
    "PROBE_PREFIX",
    "LocalObjects",
    "MemoryObjects",
    "ObjectInfo",
    "ObjectWriter",
    "Objects",
    "RemoteObjects",
    "check_path",
    "open_store",
    "probe",
]

#: A probe that was killed leaves its object behind.
PROBE_PREFIX = "store/probe-"
_READ_ONLY = {errno.EACCES, errno.EROFS, errno.EPERM}


def open_store(url: str, *, read_only: bool = False) -> Objects:
    """Open the store a `store` or `journal` setting names.

    Takes a folder or `file:///folder`, `s3://bucket/folder`, `gs://...`, `az://...`, and
    `memory://` (a new, empty one each time). Buckets find their endpoint and credentials in the
    usual variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`). With `read_only` a folder must be there, and
    nothing in it is changed; a bucket is what its credentials make it.
    """
    parts = urlsplit(url)
    if "://" not in url:
        if not url:
            raise InvalidInput("store", "is empty; give a folder or a URL such as s3://bucket/path")
        return LocalObjects(Path(url).expanduser(), read_only=read_only)
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path:
            raise InvalidInput("store", f"{url!r}: write file:// and an absolute path")
        return LocalObjects(unquote(parts.path), read_only=read_only)
    if parts.scheme == "memory":
        return MemoryObjects(url)
    if parts.scheme in SCHEMES:
        if not parts.netloc:
            raise InvalidInput("store", f"{url!r}: name a bucket, {parts.scheme}://bucket/folder")
        return RemoteObjects(url)
    known = ", ".join(f"{scheme}://" for scheme in ("file", *SCHEMES, "memory"))
    raise InvalidInput("store", f"{url!r} has an unknown scheme; use one of {known}")


def probe(objects: Objects) -> None:
    """Create one object twice; InvalidInput if the store lets the second one pass, or takes none.

    A store that ignores conditional puts (some proxies and older S3 look-alikes) would let two
    managers overwrite each other's acknowledged commits.
    """
    path = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    try:
        first = objects.put_if_absent(path, b"first")
    except Unavailable as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _READ_ONLY:
            raise InvalidInput(
                "store",
                f"{objects.url} can't be written: {cause.strerror}; give its user the right to "
                "write there, or choose another",
            ) from error
        raise
    second = objects.put_if_absent(path, b"second")
    kept = objects.get(path)
    if not first or second or kept != b"first":
        raise InvalidInput(
            "store",
            f"{objects.url} ignores conditional puts (If-None-Match), so two managers could "
            "overwrite each other; use a store that honours them",
        )
    objects.delete([path])
