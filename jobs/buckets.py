"""Buckets that params may name: any but where Drayman keeps its own.

Workers have the credentials of the store, which holds what every tenant uploaded and every job
made. Rule: whatever opens a bucket that params name asks `refuse_own` before. It refuses what lies
in the store and the folders above it, of which a pattern or a listing would reach into the store.
"""

import os
import posixpath
from urllib.parse import unquote, urlsplit

from jobs.errors import InvalidInput

__all__ = ["OWN_URLS_ENV", "refuse_own"]

#: Carries the URLs of store and journal from a worker to its children, one a line.
OWN_URLS_ENV = "DRAYMAN_OWN_URLS"
#: Schemes of one kind of bucket.
_KIND = {"gcs": "gs", "abfs": "az", "abfss": "az", "azure": "az", "s3a": "s3"}


def refuse_own(uri: str) -> None:
    """Raise InvalidInput for a bucket's URI that leads into Drayman's store or journal."""
    named = _place(uri)
    for own in os.environ.get(OWN_URLS_ENV, "").split("\n"):
        both = zip(_place(own), named, strict=False)
        if "://" in own and all(mine == theirs for mine, theirs in both):
            raise InvalidInput(
                "uri",
                f"{uri.partition('?')[0][:200]!r} leads into Drayman's own store; name data by "
                "upload: or output:, or a folder beside the store",
            )


def _place(uri: str) -> list[str]:
    """Return kind, bucket, then the folders down to the first pattern."""
    parts = urlsplit(uri)
    path = posixpath.normpath("/" + unquote(parts.path)).strip("/")
    folders = [part for part in path.split("/") if part]
    first = next((n for n, part in enumerate(folders) if set(part) & set("*?[{")), len(folders))
    bucket = parts.netloc.rpartition("@")[2].partition(":")[0].lower()
    return [_KIND.get(parts.scheme, parts.scheme), bucket, *folders[:first]]
