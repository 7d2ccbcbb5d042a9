"""The mail as bytes.

Rule: its Message-ID is the same on every attempt of a task, so that whoever gets it twice can tell.
"""

import hashlib
import mimetypes
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from jobs.context import Context
from jobs.errors import InvalidInput, NotFound
from jobs.library.mail.headers import POLICY
from jobs.outcome import Discard

if TYPE_CHECKING:
    from jobs.library.mail_send import MailParams

__all__ = ["ATTACHED_BYTES_MAX", "message_id", "message_of"]

#: Of all attachments together; base64 adds a third, and few servers take more than 35 MB.
ATTACHED_BYTES_MAX = 25_000_000


def message_id(ctx: Context, sender: str) -> str:
    """Return the Message-ID of this task's mail."""
    digest = hashlib.sha256(f"{ctx.job_id}:{ctx.task_id}".encode()).hexdigest()
    return f"<{digest[:32]}@{sender.rpartition('@')[2]}>"


def message_of(ctx: Context, params: "MailParams", sender: str) -> bytes:
    """Return the mail. Raises Discard for an attachment that is not there, and for too much."""
    mail = EmailMessage(policy=POLICY)
    mail["From"] = sender
    mail["To"] = ", ".join(params.to)
    if params.cc:
        mail["Cc"] = ", ".join(params.cc)
    if params.reply_to is not None:
        mail["Reply-To"] = params.reply_to
    # Unicode has ends of lines of its own, which come along when a text is pasted.
    mail["Subject"] = " ".join(params.subject.splitlines())
    mail["Date"] = formatdate()
    mail["Message-ID"] = message_id(ctx, sender)
    text = params.text
    if params.figures:
        text = f"{text}\n\n{_listed(params.figures)}\n".lstrip("\n")
    mail.set_content(text)
    if params.html is not None:
        mail.add_alternative(params.html, subtype="html")
    total = 0
    for n, attachment in enumerate(params.attachments):
        ctx.check()
        name = attachment.name or _name_of(attachment.uri) or f"attachment-{n + 1}"
        try:
            path = ctx.files.fetch(attachment.uri)
        except (InvalidInput, NotFound) as error:
            raise Discard(f"attachments.{n}: {error}; upload it, or correct the URI") from error
        total += path.stat().st_size
        if total > ATTACHED_BYTES_MAX:
            raise Discard(
                f"attachments: over {ATTACHED_BYTES_MAX // 1_000_000} MB; mail a link to them"
            )
        kind = attachment.type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        main, _, sub = kind.partition("/")
        if main in ("message", "multipart"):
            # A mail as a part of a mail may not be encoded, and ours may not be left as it is.
            main, sub = "application", "octet-stream"
        mail.add_attachment(path.read_bytes(), maintype=main, subtype=sub, filename=name)
    return mail.as_bytes()


def _name_of(uri: str) -> str:
    return unquote(urlsplit(uri).path.rpartition("/")[2])[:100]


def _listed(figures: Mapping[str, str | int | float | None]) -> str:
    """Return the figures as lines of name and value, aligned."""
    names = {name: name.replace("_", " ") for name in figures}
    width = max(len(name) for name in names.values())
    return "\n".join(f"{names[name]:<{width}}  {_shown(value)}" for name, value in figures.items())


def _shown(value: str | int | float | None) -> str:
    if value is None:
        return "n/a"
    return value if isinstance(value, str) else f"{value:,}"
