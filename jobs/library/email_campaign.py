"""`email.campaign`: one mail to each of many recipients.

The split reads and checks the whole list, each chunk mails its recipients over one connection, the
join writes who got it. Every attempt of a chunk is a start at the limit `mail:SERVER`.

Rule 1: before the first mail leaves the list is checked as a whole: bad addresses, missing merge
fields, suppressed and repeated ones are put aside, each with its reason. Rule 2: what the server
confirmed is on record before the next mail is begun, and no retry sends it again. Where its answer
was lost, `in_doubt` decides, as for `mail.send`. Rule 3: who is put off is asked again later, which
uses no attempt; a server that puts off one after the other is left alone for a while.
Rule 4: this file imports no SMTP client: the registry imports every job type in every process.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.context import Context
from jobs.errors import InvalidInput, NotFound
from jobs.fan_out import fan_out
from jobs.library.campaign.people import Row, format_of, problem_of, read_addresses, read_rows
from jobs.library.campaign.template import (
    Fields,
    fields_of,
    filled,
    in_html,
    in_subject,
    in_text,
    in_url,
)
from jobs.library.mail.headers import POLICY
from jobs.library.mail_send import Address, MailParams
from jobs.library.table.source import open_source
from jobs.outcome import Discard, Retry, Snooze
from jobs.results import Results
from jobs.retry import RetryPolicy

if TYPE_CHECKING:
    from jobs.library.mail.ledger import Round
    from jobs.library.mail.server import Conversation

__all__ = ["CampaignParams", "email_campaign"]

RECIPIENTS_MAX, INLINE_MAX = 1_000_000, 1_000
#: A record of every one of them fits into a checkpoint.
BATCH_MAX = 200
REASON_CHARS_MAX = 100
#: So many put off one after the other mean the server, not the mailboxes.
PUT_OFF_MAX = 5
#: How often those who are put off are asked, and the waits between.
ROUNDS_MAX, ROUND_S, ROUND_FACTOR, ROUND_MAX_S = 6, 30.0, 3.0, 1800.0
#: After a server that had taken mails went away.
PAUSE_S = 30.0
#: A chunk of so many of whom each is refused: it is the mail, or the sender, that is refused.
ALL_REFUSED_MIN = 10
REJECTED, RESULTS = "rejected.ndjson", "results.ndjson"
REASONS_SHOWN = 3

#: What is known of a recipient, a letter each in the record of a chunk.
OPEN, SENT, REFUSED, DEFERRED, UNKNOWN = ".", "s", "r", "d", "u"
_STATUS = {SENT: "sent", REFUSED: "refused", DEFERRED: "deferred", UNKNOWN: "unknown"}


class CampaignParams(BaseModel):
    """What to send to whom."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=2048,
            description="The list: CSV with a header, NDJSON or Parquet; the URI an upload "
            "returned, an output: URI, s3://, or a path or file:// in a folder opened with "
            "--data-dir",
        ),
    ] = None
    recipients: Annotated[
        list[dict[str, str | int | float | bool | None]] | None,
        Field(min_length=1, max_length=INLINE_MAX, description="A short list, instead"),
    ] = None
    format: Annotated[
        Literal["csv", "ndjson", "parquet"] | None,
        Field(description="Default: by the name of source, else CSV"),
    ] = None
    column: Annotated[str, Field(max_length=63, description="Which field is the address")] = "email"
    subject: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
    text: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200_000,
            description="With merge fields: {{name}}, or {{name|friend}} for who has none",
        ),
    ]
    html: Annotated[str | None, Field(max_length=500_000)] = None
    sender: Annotated[
        Address | None, Field(description="Instead of the server's own, the secret's `from`")
    ] = None
    sender_name: Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    reply_to: Address | None = None
    unsubscribe: Annotated[
        str | None,
        Field(
            max_length=2048,
            pattern=r"^https?://[\x21-\x7e]+$",
            description="Where one click ends it (RFC 8058), with merge fields: "
            "https://example.org/unsubscribe?to={{email}}; in the text it is {{unsubscribe}}",
        ),
    ] = None
    suppress: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=2048,
            description="A file of addresses that get nothing, one a line",
        ),
    ] = None
    bad_max: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)],
        Field(description="Bad rows put aside before nothing is sent: a count, or a share as 0.01"),
    ] = 0.01
    batch: Annotated[
        int,
        Field(
            ge=1,
            le=BATCH_MAX,
            description="Mails of one connection, and of one start at the limit `mail:SERVER`",
        ),
    ] = 50
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.source is None) == (self.recipients is None):
            raise ValueError("give either source or recipients")
        for name in ("subject", "text", "html", "unsubscribe"):
            try:
                fields_of(getattr(self, name) or "")
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if self.unsubscribe is None and "unsubscribe" in self.fields():
            raise ValueError("unsubscribe: a template names it; give its URL")
        return self

    def fields(self) -> dict[str, bool]:
        """Return every merge field, and whether a row may lack it."""
        found: dict[str, bool] = {}
        for template in (self.subject, self.text, self.html, self.unsubscribe):
            for name, optional in fields_of(template or "").items():
                found[name] = found.get(name, True) and optional
        return found


class Recipient(BaseModel):
    """One of the list who is mailed."""

    to: str
    #: Only those that the templates name.
    fields: dict[str, str] = {}


class CampaignChunk(BaseModel):
    """The recipients of one connection."""

    recipients: list[Recipient]


#: Of each recipient of a chunk: address, status, reason.
Told = list[tuple[str, str, str]]


class Aside(BaseModel):
    """Who of a list gets nothing, counted."""

    bad: int = 0
    suppressed: int = 0
    repeated: int = 0


class Campaign(BaseModel):
    """What became of it."""

    recipients: int
    sent: int
    refused: int
    deferred: int
    unknown: int
    bad: int
    suppressed: int
    repeated: int
    #: One line a recipient, and one each row that was put aside.
    results: str


# --- the list ---------------------------------------------------------------------------------


def find_recipients(ctx: Context, params: CampaignParams) -> list[CampaignChunk]:
    """Return the list in chunks; who gets nothing is in an output file, with the reason."""
    fields = params.fields()
    kept = [name for name in fields if name != "unsubscribe"]
    needed = [name for name in kept if not fields[name]]
    unwanted = _suppressed(ctx, params)
    people: list[Recipient] = []
    seen: set[str] = set()
    aside, total, reasons = Aside(), 0, []
    with ctx.files.open_output(REJECTED) as rejected:
        for place, row in _rows(ctx, params):
            total = place
            if not place % 1_000:
                ctx.progress(None, f"{place:,} rows checked")
            problem = row if isinstance(row, str) else problem_of(row, params.column, needed)
            address = "" if isinstance(row, str) else row.get(params.column, "").strip()
            if problem:
                aside.bad += 1
                reasons.append(f"row {place}: {problem}")
                del reasons[REASONS_SHOWN:]
                status = "bad"
            elif address.lower() in unwanted:
                aside.suppressed += 1
                status = "suppressed"
            elif address.lower() in seen:
                aside.repeated += 1
                status = "repeated"
            else:
                assert not isinstance(row, str)
                seen.add(address.lower())
                merged = {name: row[name] for name in kept if row.get(name)}
                people.append(Recipient(to=address, fields=merged))
                if len(people) > RECIPIENTS_MAX:
                    raise Discard(f"source: over {RECIPIENTS_MAX:,} recipients; make it several")
                continue
            rejected.write(_line(address, status, problem, row=place))
    allowed = params.bad_max if isinstance(params.bad_max, int) else params.bad_max * total
    if aside.bad > allowed:
        told = "; ".join(reasons)
        raise Discard(
            f"{aside.bad:,} of {total:,} rows are bad ({told}), and bad_max allows {allowed:g}; "
            "nothing was sent: mend the list"
        )
    ctx.files.write("aside.json", aside.model_dump_json().encode())
    size = params.batch
    return [CampaignChunk(recipients=people[at : at + size]) for at in range(0, len(people), size)]


def _rows(ctx: Context, params: CampaignParams) -> Iterator[Row]:
    if params.recipients is not None:
        for place, row in enumerate(params.recipients, 1):
            yield place, {name: str(value) for name, value in row.items() if value is not None}
        return
    assert params.source is not None
    with open_source(ctx.files, params.source) as source:
        source.file.seek(0)
        form = params.format or format_of(params.source)
        yield from read_rows(source.file, form, params.column)


def _suppressed(ctx: Context, params: CampaignParams) -> set[str]:
    if params.suppress is None:
        return set()
    try:
        return read_addresses(ctx.files.fetch(params.suppress))
    except (NotFound, InvalidInput) as error:
        raise Discard(f"suppress: {error}; upload the file, or correct the URI") from error


def _line(address: str, status: str, reason: str, **more: Any) -> bytes:
    told = {"email": address, "status": status, "reason": reason, **more}
    return json.dumps(told, ensure_ascii=False).encode() + b"\n"


# --- one chunk --------------------------------------------------------------------------------


@dataclass
class Record:
    """What is known of a chunk's recipients over all attempts; a checkpoint holds it."""

    #: A letter each.
    codes: str
    #: Who is being sent to, and nobody knows yet whether that went.
    sending: int | None = None
    #: Of some, why; by place.
    reasons: dict[str, str] = field(default_factory=dict)
    #: How often those who were put off were asked.
    rounds: int = 0

    def set(self, at: int, code: str, reason: str = "") -> None:
        """Note what became of one."""
        self.codes = self.codes[:at] + code + self.codes[at + 1 :]
        self.reasons.pop(str(at), None)
        if reason:
            self.reasons[str(at)] = reason[:REASON_CHARS_MAX]

    def due(self) -> list[int]:
        """Return the places of those who are still to be sent to."""
        return [at for at, code in enumerate(self.codes) if code in (OPEN, DEFERRED)]


def send_batch(ctx: Context, params: CampaignParams, chunk: CampaignChunk) -> Told:
    """Mail a chunk's recipients, each once, over one connection."""
    try:
        from jobs.library.mail.server import Conversation, Server, Stopped
    except ImportError as error:
        raise Discard(
            f"email.campaign needs aiosmtplib on the worker ({error}); "
            'install it with: pip install "drayman[mail]"'
        ) from error

    server = Server.parse(ctx.secret(params.server), params.server)
    sender = params.sender or server.sender
    if sender is None:
        raise Discard(
            f"sender: none is given; give params.sender, or from=... in the secret "
            f"{params.server!r}"
        )
    people = chunk.recipients
    found = ctx.resumed_from
    record = Record(OPEN * len(people)) if found is None else Record(**found)
    mailing = _Mailing(ctx, params, sender, record)
    mailing.settle_doubt()
    try:
        with Conversation(server, params.server, lambda: ctx.cancelled) as conversation:
            mailing.run(conversation, people)
    except Stopped:
        ctx.check()
        raise
    except Retry as error:
        mailing.save()
        if mailing.sent:  # it got further, so this was no failed attempt; and it ends
            ctx.log(f"{error}; it is to be asked again in {PAUSE_S:g} s")
            raise Snooze(PAUSE_S) from error
        raise
    mailing.conclude()
    return [
        (one.to, _STATUS[code], record.reasons.get(str(at), ""))
        for at, (one, code) in enumerate(zip(people, record.codes, strict=True))
    ]


class _Mailing:
    """One attempt of a chunk."""

    def __init__(self, ctx: Context, params: CampaignParams, sender: str, record: Record) -> None:
        self._ctx, self._params, self._sender, self._record = ctx, params, sender, record
        #: In this attempt.
        self.sent = 0
        #: Of these, on the connection there is.
        self._here = 0

    def settle_doubt(self) -> None:
        """Decide on whom an earlier attempt was sending to when it died."""
        at, self._record.sending = self._record.sending, None
        if at is not None:
            self._lost(at, "an attempt ended while it waited for the server's answer")

    def _lost(self, at: int, reason: str) -> None:
        resend = self._params.in_doubt == "resend"
        self._record.set(at, DEFERRED if resend else UNKNOWN, reason)

    def run(self, conversation: "Conversation", people: Sequence[Recipient]) -> None:
        """Send to all who are due, until the server puts off one after the other."""
        put_off = 0
        for done, at in enumerate(self._record.due()):
            self._ctx.progress(done / len(people), f"{done:,} of {len(people):,} recipients")
            one = people[at]
            message = letter(self._ctx, self._params, self._sender, one)
            accepted, told = self._addressed(conversation, one.to, len(message))
            if accepted:
                # Claimed now and not before: until here nothing has gone.
                self._record.sending = at
                self.save()
                told = conversation.send(message, accepted, told)
                self._record.sending = None
            put_off = put_off + 1 if told.deferred else 0
            if told.sent:
                self._record.set(at, SENT)
                self.sent += 1
                self._here += 1
            elif told.unknown:
                self._lost(at, "the server's answer was lost")
            elif told.refused:
                self._record.set(at, REFUSED, told.refused[one.to])
            else:
                self._record.set(at, DEFERRED, told.deferred[one.to])
            if accepted:
                self.save(stopping=True)
            if put_off == PUT_OFF_MAX:
                return

    def _addressed(
        self, conversation: "Conversation", to: str, size: int
    ) -> tuple[list[str], "Round"]:
        """Say who is written to; many servers take so many mails a connection and hang up."""
        try:
            return conversation.address(self._sender, [to], size)
        except Retry:
            if conversation.is_open or not self._here:
                raise
            self._here = 0
            return conversation.address(self._sender, [to], size)

    def save(self, *, stopping: bool = False) -> None:
        """Put the record where the next attempt finds it."""
        self._ctx.checkpoint(vars(self._record), stopping=stopping)

    def conclude(self) -> None:
        """Return if the chunk is done, or raise what lets it go on later, or ends it."""
        record = self._record
        if record.due() and record.rounds < ROUNDS_MAX - 1:
            wait_s = min(ROUND_MAX_S, ROUND_S * ROUND_FACTOR**record.rounds)
            # A round in which somebody got it is none that was in vain.
            record.rounds += not self.sent
            self.save()
            self._ctx.log(f"{len(record.due())} are put off, and asked again in {wait_s:g} s")
            raise Snooze(wait_s)
        for at in record.due():  # whom no round came to
            record.set(at, DEFERRED, record.reasons.get(str(at), "the server takes no mail now"))
        if len(record.codes) >= ALL_REFUSED_MIN and set(record.codes) == {REFUSED}:
            reason = record.reasons["0"]
            # Nobody has it: once the cause is mended, all may be asked again.
            self._record.codes = OPEN * len(record.codes)
            self.save()
            raise Discard(
                f"the server refuses every recipient of this chunk, as the first: {reason}; "
                "mend what it says of the mail or the sender, then retry the job"
            )


def letter(ctx: Context, params: CampaignParams, sender: str, one: Recipient) -> bytes:
    """Return the mail to one recipient; the same Message-ID each time."""
    fields: Fields = {**one.fields, params.column: one.to}
    mail = EmailMessage(policy=POLICY)
    name = in_subject(params.sender_name).replace("\\", "\\\\").replace('"', '\\"')
    mail["From"] = f'"{name}" <{sender}>' if name else sender
    mail["To"] = one.to
    if params.reply_to is not None:
        mail["Reply-To"] = params.reply_to
    mail["Subject"] = in_subject(filled(params.subject, fields, in_subject))
    mail["Date"] = formatdate()
    digest = hashlib.sha256(f"{ctx.job_id}:{one.to.lower()}".encode()).hexdigest()
    mail["Message-ID"] = f"<{digest[:32]}@{sender.rpartition('@')[2]}>"
    if params.unsubscribe is not None:
        link = filled(params.unsubscribe, fields, in_url)
        mail["List-Unsubscribe"] = f"<{link}>"
        mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        fields = {**fields, "unsubscribe": link}
    mail.set_content(filled(params.text, fields, in_text))
    if params.html is not None:
        mail.add_alternative(filled(params.html, fields, in_html), subtype="html")
    return mail.as_bytes()


# --- who got it -------------------------------------------------------------------------------


def tell(ctx: Context, params: CampaignParams, results: Results[Told]) -> Campaign:
    """Write a line each recipient, and one each row that was put aside."""
    split = f"output:{ctx.job_id}/{ctx.task_id.removesuffix('join')}split"
    aside = Aside.model_validate_json(ctx.files.fetch(f"{split}/aside.json").read_bytes())
    counts = dict.fromkeys(_STATUS.values(), 0)
    with ctx.files.open_output(RESULTS) as output:
        for chunk in results.values():
            for address, status, reason in chunk:
                counts[status] += 1
                output.write(_line(address, status, reason))
        with ctx.files.fetch(f"{split}/{REJECTED}").open("rb") as rejected:
            while block := rejected.read(1 << 20):
                output.write(block)
    return Campaign(
        recipients=sum(counts.values()),
        **counts,
        **aside.model_dump(),
        results=ctx.files.uri(RESULTS),
    )


email_campaign = fan_out(
    "email.campaign",
    split=find_recipients,
    join=tell,
    queue="io",
    max_attempts=6,
    timeout_s=3 * 3600.0,
    at_once=100,
    retry=RetryPolicy(base_s=30.0, factor=3.0, max_s=1800.0),
    limits=("mail:{server}",),
)(send_batch)
