"""What a mail about a job says, plain and as HTML.

Rule: whatever a job says of itself (its type, labels, errors, names of files) is text: it is
escaped in HTML, and a line of its own at most in a subject.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from jobs.library.notify.event import Event, job_url

__all__ = ["Letter", "headline", "letter_of"]

SUBJECT_CHARS_MAX = 200
#: Of an error, and of a result.
EXCERPT_CHARS_MAX = 2_000
_SAYS = {
    "job.started": "has started",
    "job.completed": "is done",
    "job.failed": "failed",
    "job.cancelled": "was cancelled",
}
_STYLE = "font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;max-width:42em"
_PRE = "font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap;background:#f4f4f4;padding:.8em"


@dataclass(frozen=True)
class Letter:
    """A mail without its recipients."""

    subject: str
    text: str
    html: str


def headline(event: Event) -> str:
    """Return one line that says what happened."""
    what = str(event.data.get("type") or "a job")
    says = _SAYS.get(event.type, event.type)
    return " ".join(f"{what} {says}".split())[:SUBJECT_CHARS_MAX]


def letter_of(event: Event, attached: Sequence[str]) -> Letter:
    """Return what a mail says of the event; `attached` are the names of the files that come along.

    Other files are listed, with links where people can reach this Drayman.
    """
    data = event.data
    link = job_url(str(data["id"])) if "id" in data else None
    rows = _facts(data)
    error = data.get("error")
    excerpt = str(error.get("message") or "") if isinstance(error, dict) else ""
    if data.get("result") is not None:
        excerpt = json.dumps(data["result"], ensure_ascii=False, indent=2)
    excerpt = excerpt[:EXCERPT_CHARS_MAX]
    left = [name for name in _files(data) if name not in attached]
    return Letter(
        headline(event),
        _text(event, rows, excerpt, attached, left, link),
        _html(event, rows, excerpt, attached, left, link),
    )


def _facts(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is known, as names and values."""
    error = data.get("error")
    cause = error.get("cause") if isinstance(error, dict) else None
    found = [
        ("Job", data.get("id")),
        ("Type", data.get("type")),
        ("Status", data.get("status")),
        ("Cause", cause),
        ("Reason", data.get("reason")),
        ("Attempts", data.get("attempts")),
        ("Submitted", data.get("submitted_at")),
        ("Started", data.get("started_at")),
        ("Finished", data.get("finished_at")),
    ]
    labels = data.get("labels")
    found += list(labels.items()) if isinstance(labels, dict) else []
    return [(name, " ".join(str(value).split())) for name, value in found if value is not None]


def _files(data: dict[str, Any]) -> list[str]:
    files = data.get("files")
    return [str(file["name"]) for file in files] if isinstance(files, list) else []


def _text(
    event: Event,
    rows: list[tuple[str, str]],
    excerpt: str,
    attached: Sequence[str],
    left: list[str],
    link: str | None,
) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    parts = [headline(event), "\n".join(f"{name:<{width}}  {value}" for name, value in rows)]
    if excerpt:
        parts.append(excerpt)
    if attached:
        parts.append("\n".join(["Attached:", *(f"  {name}" for name in attached)]))
    if left:
        parts.append("\n".join(["Files:", *(f"  {_named(name, link)}" for name in left)]))
    if link is not None:
        parts.append(link)
    return "\n\n".join(parts) + "\n"


def _named(name: str, link: str | None) -> str:
    return name if link is None else f"{name}  {_file_url(link, name)}"


def _file_url(link: str, name: str) -> str:
    base, _, job_id = link.rpartition("/jobs/")
    return f"{base}/v1/jobs/{job_id}/files/{quote(name, safe='')}"


def _html(
    event: Event,
    rows: list[tuple[str, str]],
    excerpt: str,
    attached: Sequence[str],
    left: list[str],
    link: str | None,
) -> str:
    parts = [f"<h1 style='font-size:1.2em'>{escape(headline(event))}</h1>"]
    cells = "".join(
        f"<tr><th style='text-align:left;padding-right:1em'>{escape(name)}</th>"
        f"<td>{escape(value)}</td></tr>"
        for name, value in rows
    )
    parts.append(f"<table>{cells}</table>")
    if excerpt:
        parts.append(f"<pre style='{_PRE}'>{escape(excerpt)}</pre>")
    if attached:
        parts.append(f"<p>Attached: {escape(', '.join(attached))}</p>")
    if left:
        parts.append(f"<p>Files: {', '.join(_anchor(name, link) for name in left)}</p>")
    if link is not None:
        parts.append(f"<p><a href='{escape(link)}'>Look at the job</a></p>")
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html><head><meta charset='utf-8'>"
        f"<title>{escape(headline(event))}</title></head>\n"
        f"<body style='{_STYLE}'>\n{body}\n</body></html>\n"
    )


def _anchor(name: str, link: str | None) -> str:
    if link is None:
        return escape(name)
    return f"<a href='{escape(_file_url(link, name))}'>{escape(name)}</a>"
