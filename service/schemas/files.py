"""Output files, and data that was uploaded."""

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["File", "FileList", "Upload"]


class File(msgspec.Struct, frozen=True):
    """One output file."""

    name: str
    bytes: int
    sha256: str
    media_type: str
    href: str
    #: Held for later tasks of the job alone: `href` answers 409.
    ephemeral: Annotated[
        bool, Meta(description="Kept only for other tasks of its job: it cannot be downloaded.")
    ]


class FileList(msgspec.Struct, frozen=True):
    """The output files of a job."""

    files: list[File]


class Upload(msgspec.Struct, frozen=True):
    """Data to name in params."""

    uri: Annotated[str, Meta(description="Put this into params.")]
    bytes: int
    sha256: str
