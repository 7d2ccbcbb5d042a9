"""`mail.send`: one mail with attachments, handed to an SMTP server once.

Rule 1: no recipient is sent the mail twice as long as the server's answers arrive. What each
attempt was told is on record (`ctx.once`, a key an attempt) before anything else is done.
Rule 2: where the answer was lost nobody knows whether the mail went; `in_doubt` decides. `skip`:
those recipients are told as `unknown`. `resend`: they are sent it again, with the same Message-ID.
Rule 3: what the server refuses for good is told or discarded, what it refuses for now is tried
again, for those recipients only. Rule 4: this file imports no SMTP client: the registry imports
every job type in every process.
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.context import Context
from jobs.definition import job
from jobs.library.mail.ledger import Ledger
from jobs.outcome import Discard, Retry
from jobs.retry import RetryPolicy

__all__ = ["Address", "Attachment", "MailParams", "send_mail"]

#: More recipients than most servers take in one mail.
RECIPIENTS_MAX = 100

Address = Annotated[
    str,
    Field(
        max_length=254,
        pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?$",
        description="An address without a name, such as me@example.org",
    ),
]


class Attachment(BaseModel):
    """A file to send along."""

    model_config = ConfigDict(extra="forbid")

    uri: Annotated[str, Field(min_length=1, max_length=2048)]
    name: Annotated[
        str | None,
        Field(
            pattern=r"^[^/\\\x00-\x1f\x7f]{1,100}$",
            description="What the reader sees; the last part of the URI if none is given",
        ),
    ] = None
    type: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z]+/[A-Za-z0-9.+-]+$",
            max_length=100,
            description="MIME type; from the name if none is given",
        ),
    ] = None


class MailParams(BaseModel):
    """What to send to whom."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[list[Address], Field(min_length=1)]
    cc: list[Address] = []
    #: Get the mail without being named in it.
    bcc: list[Address] = []
    subject: Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
    text: Annotated[str, Field(max_length=1_000_000)] = ""
    html: Annotated[str | None, Field(max_length=1_000_000)] = None
    figures: Annotated[
        dict[str, str | int | float | None] | None,
        Field(max_length=200, description="Names and values to list below the text"),
    ] = None
    attachments: Annotated[list[Attachment], Field(max_length=20)] = []
    sender: Annotated[
        Address | None, Field(description="Instead of the server's own, the secret's `from`")
    ] = None
    reply_to: Address | None = None
    in_doubt: Annotated[
        Literal["skip", "resend"],
        Field(
            description="Where the server's answer was lost: skip tells those recipients as "
            "unknown, resend sends the mail again with the same Message-ID"
        ),
    ] = "skip"
    server: Annotated[
        str,
        Field(
            pattern=r"^smtp[A-Za-z0-9._-]{0,60}$",
            description="Name of the worker's secret that holds the server's URL: "
            "smtp://user:password@host:port?from=me@example.org&tls=required|auto|none"
            "&timeout_s=60, or smtps://...",
        ),
    ] = "smtp_url"

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.recipients()) > RECIPIENTS_MAX:
            raise ValueError(
                f"to, cc and bcc name over {RECIPIENTS_MAX} recipients; send several mails"
            )
        return self

    def recipients(self) -> list[str]:
        """Return everyone once, in order."""
        return list(dict.fromkeys([*self.to, *self.cc, *self.bcc]))


@job(
    "mail.send",
    queue="io",
    max_attempts=6,
    timeout_s=1800,
    # Servers that put off strangers want to be asked again after some minutes.
    retry=RetryPolicy(base_s=30.0, factor=3.0, max_s=1800.0),
)
def send_mail(ctx: Context, params: MailParams) -> dict[str, Any]:
    """Send one mail, once, and tell what became of it for each recipient."""
    try:
        from jobs.library.mail.message import message_id, message_of
        from jobs.library.mail.server import Conversation, Server, Stopped
    except ImportError as error:
        raise Discard(
            f"mail.send needs aiosmtplib on the worker ({error}); "
            'install it with: pip install "drayman[mail]"'
        ) from error

    server = Server.parse(ctx.secret(params.server), params.server)
    sender = params.sender or server.sender
    if sender is None:
        raise Discard(
            f"sender: none is given; give params.sender, or from=... in the secret "
            f"{params.server!r}"
        )
    resend = params.in_doubt == "resend"
    ledger = _so_far(ctx, params)
    if due := ledger.due(resend):
        ctx.progress(0.1, "Putting the mail together")
        message = message_of(ctx, params, sender)
        ctx.progress(0.3, f"Talking to {server.host}")
        try:
            with Conversation(server, params.server, lambda: ctx.cancelled) as conversation:
                accepted, told = conversation.address(sender, due, len(message))
                if accepted:
                    ctx.progress(0.5, f"Sending to {len(accepted)} of {len(due)} recipients")
                    # Claimed now and not before: until here an attempt that dies has sent nothing.
                    found = ctx.once(
                        _key(ctx.attempt),
                        lambda _: asdict(conversation.send(message, accepted, told)),
                        in_doubt="skip",
                    )
                else:
                    found = asdict(told)
        except Stopped:
            ctx.check()
            raise
        except (Discard, Retry) as error:
            error.reason = f"{error}{ledger.told()}"
            raise
        ledger.take(found)
    return _concluded(ctx, ledger, resend) | {"message_id": message_id(ctx, sender)}


def _so_far(ctx: Context, params: MailParams) -> Ledger:
    """Return what earlier attempts put on record.

    The key of one that never came to send is taken here, so that it cannot do so later either.
    """
    ledger = Ledger(params.recipients())
    for attempt in range(1, ctx.attempt):
        ledger.take(ctx.once(_key(attempt), lambda _: {}, in_doubt="skip"))
    ledger.deferred = {}
    return ledger


def _key(attempt: int) -> str:
    return f"attempt-{attempt}"


def _concluded(ctx: Context, ledger: Ledger, resend: bool) -> dict[str, Any]:
    """Return the result, or raise what ends this attempt otherwise."""
    if ledger.deferred:
        put_off = "; ".join(f"{to}: {reason}" for to, reason in ledger.deferred.items())
        raise Retry(f"put off by the server: {put_off}{ledger.told()}")
    if resend and ledger.unknown:
        raise Retry(f"the server's answer was lost; the mail is to be sent again{ledger.told()}")
    result = ledger.result()
    if not result["sent"] and not result["unknown"]:
        refused = "; ".join(f"{one['to']}: {one['reason']}" for one in result["refused"])
        raise Discard(f"to: the server refuses every recipient: {refused}; correct them")
    ctx.progress(1.0, f"Sent to {len(result['sent'])} of {len(ledger.recipients)} recipients")
    return result
