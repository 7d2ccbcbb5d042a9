"""`notify.email`: a mail that says what became of a job, its files attached or named.

Rule 1: it is sent as `mail.send` sends one, by the same code: once for each event and recipient as
long as the server's answers arrive, and where one is lost the recipient is told as `unknown`
rather than sent it twice. Rule 2: files come along while they are small together; what is larger,
or gone, is named, with a link where people can reach this Drayman.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.context import Context
from jobs.definition import job
from jobs.errors import InvalidInput, NotFound
from jobs.library.mail_send import Address, Attachment, MailParams, send_mail
from jobs.library.notify.event import Event
from jobs.library.notify.letter import letter_of
from jobs.retry import RetryPolicy

__all__ = ["EmailParams", "notify_email"]

RECIPIENTS_MAX = 20
#: Of all that is attached: what any server takes, and no mailbox minds.
ATTACHED_BYTES_MAX, ATTACHED_MAX = 5_000_000, 10


class EmailParams(BaseModel):
    """Whom to tell what."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[list[Address], Field(min_length=1, max_length=RECIPIENTS_MAX)]
    attach: Annotated[bool, Field(description="Whether small files of the job come along")] = True
    in_doubt: Annotated[
        Literal["skip", "resend"],
        Field(description="Whether a mail whose answer was lost is sent again; see mail.send"),
    ] = "skip"
    server: Annotated[
        str,
        Field(
            pattern=r"^smtp[A-Za-z0-9._-]{0,60}$",
            description="Name of the worker's secret that holds the server's URL; see mail.send",
        ),
    ] = MailParams.model_fields["server"].default
    event: Event


@job(
    "notify.email",
    queue="io",
    max_attempts=6,
    timeout_s=1800,
    retry=RetryPolicy(base_s=30.0, factor=3.0, max_s=1800.0),
)
def notify_email(ctx: Context, params: EmailParams) -> dict[str, Any]:
    """Mail what became of a job, once."""
    attached = list(_attached(ctx, params.event)) if params.attach else []
    letter = letter_of(params.event, [file.name or "" for file in attached])
    mail = MailParams(
        to=params.to,
        subject=letter.subject,
        text=letter.text,
        html=letter.html,
        attachments=attached,
        in_doubt=params.in_doubt,
        server=params.server,
    )
    sent: dict[str, Any] = send_mail(ctx, mail)
    return sent


def _attached(ctx: Context, event: Event) -> Iterator[Attachment]:
    """Yield the files that come along: the first ones, as far as they are there and small."""
    files, room, count = event.data.get("files"), ATTACHED_BYTES_MAX, 0
    for file in files if isinstance(files, list) else []:
        if not isinstance(file, dict) or count == ATTACHED_MAX:
            continue
        name, uri, size = str(file.get("name")), str(file.get("uri")), file.get("bytes")
        # What the event says decides before anything is fetched.
        if not uri.startswith("output:") or not isinstance(size, int) or size > room:
            continue
        try:
            size = ctx.files.fetch(uri).stat().st_size
        except (InvalidInput, NotFound) as error:
            ctx.log(f"{name} is not attached: {error}")
            continue
        if size <= room and len(name) <= 100:
            room, count = room - size, count + 1
            yield Attachment(uri=uri, name=name)
