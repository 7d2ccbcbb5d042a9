"""Where a worker finds the secrets that handlers ask for by name.

Rule 1: a secret lies in the worker's environment or in a file on its machine, never in a job.
Rule 2: children do not inherit it; they ask, so that the worker knows what to redact.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from jobs.errors import InvalidInput

__all__ = ["read_secret"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIRECTORY = "DRAYMAN_SECRETS_DIR"


def read_secret(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the secret `name`. Raises InvalidInput that says where to put it."""
    if not _NAME.fullmatch(name):
        raise InvalidInput("secret", f"{name!r}: use letters, digits, dots, dashes, underscores")
    variable = "DRAYMAN_SECRET_" + re.sub(r"[.-]", "_", name).upper()
    if variable in environ:
        return environ[variable]
    directory = environ.get(_DIRECTORY)
    if directory:
        try:
            return (Path(directory) / name).read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError):
            pass  # Told below, together with the other place.
    raise InvalidInput(
        "secret",
        f"{name!r} is not set on this worker; set {variable}, "
        f"or write the file {name} in the folder that {_DIRECTORY} names",
    )
