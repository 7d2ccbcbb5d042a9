"""What is told of a job: made by the manager in the commit of the event, or by whoever tests."""

import os
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from jobs.errors import InvalidInput
from jobs.library.http.place import Place

__all__ = ["PUBLIC_URL_ENV", "SPECIMEN", "Event", "checked_public_url", "job_url"]

#: Where people reach this Drayman: `https://jobs.example.com`.
PUBLIC_URL_ENV = "DRAYMAN_PUBLIC_URL"


class Event(BaseModel):
    """Something that happened, as Standard Webhooks spells it."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$", max_length=100)]
    timestamp: Annotated[str, Field(max_length=40)]
    data: dict[str, JsonValue]


#: Stands for what is not known before it happens.
SPECIMEN: dict[str, Any] = {"type": "job.completed", "timestamp": "", "data": {}}


def checked_public_url(url: str) -> str:
    """Return the URL without a slash at its end; empty if it is. Raises InvalidInput."""
    if not url:
        return ""
    try:
        Place.of(url)
    except ValueError as error:
        raise InvalidInput("public_url", f"{error}; write it as https://jobs.example.com") from None
    if "?" in url or "#" in url:
        raise InvalidInput("public_url", "leave out what begins with ? or #")
    return url.rstrip("/")


def job_url(job_id: str) -> str | None:
    """Return the page of a job; None where nobody said how this Drayman is reached."""
    base = checked_public_url(os.environ.get(PUBLIC_URL_ENV, ""))
    return f"{base}/jobs/{quote(job_id, safe='')}" if base else None
