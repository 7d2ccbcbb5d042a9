"""Where mail is handed in, and one conversation with that server.

Rule 1: a failure says whether the mail may have gone: before DATA it has not, after an answer to
DATA the answer tells, and only a lost answer leaves it open. Rule 2: a password goes over an
unencrypted connection only where the operator wrote `tls=none`. Rule 3: no message repeats the URL.
"""

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import aiosmtplib
from aiosmtplib import SMTPException, SMTPRecipientRefused, SMTPResponseException

from jobs.library.mail.ledger import Round
from jobs.outcome import Discard, Retry

__all__ = ["Conversation", "Server", "Stopped"]

T = TypeVar("T")

TIMEOUT_S = 60.0
#: RFC 5321, 4.5.3.2.6 asks for ten minutes: giving up earlier is what makes mails come twice.
DATA_PATIENCE = 10
#: How often a wait for the server looks whether the attempt should stop.
LOOK_EVERY_S = 0.2
#: How long the answer to a mail that is under way is still waited for after a stop.
STOP_PATIENCE_S = 5.0
#: Of what a server says.
WORDS_MAX = 160

FORM = "smtp://user:password@host:port?from=me@example.org&tls=required, or smtps://..."


@dataclass(frozen=True)
class Server:
    """An SMTP server and how to talk to it."""

    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)
    #: `implicit` from the first byte, `required` by STARTTLS, `auto` where it is offered.
    tls: Literal["implicit", "required", "auto", "none"]
    sender: str | None
    #: Of each answer; all that follows DATA may take ten times as long.
    timeout_s: float

    @property
    def shown(self) -> str:
        """Its name for messages."""
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str, secret: str) -> Self:
        """Return the server that the secret named `secret` tells. Raises Discard."""
        try:
            parts = urlsplit(url.strip())
            port = parts.port
            options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
            timeout_s = float(options.pop("timeout_s", TIMEOUT_S))
        except ValueError:
            raise Discard(f"secret {secret!r} is no usable URL; write it as {FORM}") from None
        sender = options.pop("from", None)
        user = unquote(parts.username) if parts.username else None
        implicit = parts.scheme == "smtps"
        tls = options.pop("tls", "implicit" if implicit else "required" if user else "auto")
        if (
            parts.scheme not in ("smtp", "smtps")
            or not parts.hostname
            or options
            or not 0 < timeout_s <= TIMEOUT_S * 10
            or (tls != "implicit" if implicit else tls not in ("required", "auto", "none"))
        ):
            raise Discard(f"secret {secret!r} is no usable URL; write it as {FORM}")
        password = unquote(parts.password) if parts.password else None
        default_port = 465 if implicit else 587 if user else 25
        return cls(
            parts.hostname,
            port or default_port,
            user,
            password,
            tls,  # type: ignore[arg-type]  # checked above
            sender,
            timeout_s,
        )


class Conversation:
    """One connection, from greeting to good-bye, driven step by step from plain code.

    For several mails it is kept; one that the server gave up meanwhile is made again.
    """

    def __init__(self, server: Server, secret: str, stopped: Callable[[], bool]) -> None:
        self._server, self._secret, self._stopped = server, secret, stopped
        self._runner = asyncio.Runner()
        self._client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            timeout=server.timeout_s,
            use_tls=server.tls == "implicit",
            start_tls=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self._leave())
        finally:
            self._runner.close()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._client.is_connected

    def address(self, sender: str, recipients: Sequence[str], size: int) -> tuple[list[str], Round]:
        """Say who writes to whom; return who is accepted, and what was said of the others.

        No mail has gone when it returns, or raises Discard, Retry or Stopped.
        """
        try:
            return self._runner.run(self._heed(self._address(sender, recipients, size), 0.0))
        except SMTPResponseException as error:
            if error.code == 421:
                self._client.close()  # as the server is about to do
            raise self._refusal(error, "will not take the mail") from error
        except (OSError, SMTPException) as error:
            # aiosmtplib's own timeouts and lost connections are OSErrors too.
            self._client.close()
            raise Retry(f"{self._server.shown} does not answer ({_words(error)})") from error

    def send(self, message: bytes, accepted: Sequence[str], told: Round) -> Round:
        """Hand over the mail for those accepted; return `told` with what became of them.

        Raises nothing for what the server does: a refusal and a lost answer are in the round. A
        connection lost at the word DATA counts as a lost answer, though nothing may have gone.
        """
        try:
            self._runner.run(self._heed(self._hand_over(message), STOP_PATIENCE_S))
        except SMTPResponseException as error:
            if error.code >= 500:
                told.refused.update(dict.fromkeys(accepted, _words(error)))
            elif error.code >= 400:
                told.deferred.update(dict.fromkeys(accepted, _words(error)))
            else:  # no answer that SMTP knows
                told.unknown.extend(accepted)
        except (OSError, SMTPException, Stopped):
            told.unknown.extend(accepted)
            # A late answer would be taken for that to what is said next.
            self._client.close()
        else:
            told.sent.extend(accepted)
        return told

    async def _address(
        self, sender: str, recipients: Sequence[str], size: int
    ) -> tuple[list[str], Round]:
        client = self._client
        if not await self._is_ready():
            await self._open()
        options = [f"SIZE={size}"] if client.supports_extension("size") else []
        await client.mail(sender, options=options)
        accepted, told = [], Round()
        for recipient in recipients:
            try:
                await client.rcpt(recipient)
                accepted.append(recipient)
            except SMTPRecipientRefused as error:
                if error.code == 421:  # the server is about to hang up
                    raise
                refusals = told.refused if error.code >= 500 else told.deferred
                refusals[recipient] = _words(error)
        return accepted, told

    async def _hand_over(self, message: bytes) -> None:
        # aiosmtplib counts each of the two answers alone.
        patience_s = DATA_PATIENCE * self._server.timeout_s
        async with asyncio.timeout(patience_s):
            await self._client.data(message, timeout=patience_s)

    async def _is_ready(self) -> bool:
        """Whether the connection is there and takes another mail."""
        if not self._client.is_connected:
            return False
        try:
            await self._client.rset()
        except (OSError, SMTPException):
            self._client.close()  # No mail was under way: a new connection does as well.
            return False
        return True

    async def _open(self) -> None:
        client, server = self._client, self._server
        await client.connect()
        await client.ehlo()
        if server.tls in ("required", "auto"):
            if client.supports_extension("starttls"):
                await client.starttls()
                await client.ehlo()
            elif server.tls == "required":
                raise Discard(
                    f"{server.shown} offers no encryption; use smtps:// or, where the network "
                    f"is trusted, tls=none in the secret {self._secret!r}"
                )
        if server.user is not None:
            await self._log_in(server.user, server.password or "")

    async def _log_in(self, user: str, password: str) -> None:
        try:
            await self._client.login(user, password)
        except SMTPResponseException as error:
            raise self._refusal(error, "refuses the login") from error
        except SMTPException as error:
            if isinstance(error, OSError):
                raise
            raise Discard(
                f"{self._server.shown} knows no login; leave user and password out of the secret "
                f"{self._secret!r}, or name the server that does"
            ) from error

    def _refusal(self, error: SMTPResponseException, what: str) -> Discard | Retry:
        reason = f"{self._server.shown} {what} ({_words(error)})"
        if error.code >= 500:
            return Discard(f"{reason}; correct the mail or the secret {self._secret!r}")
        return Retry(reason)

    async def _heed(self, work: Coroutine[Any, Any, T], patience_s: float) -> T:
        """Await the work, but not for longer than `patience_s` once a stop was asked for."""
        task = asyncio.ensure_future(work)
        waited = 0.0
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_EVERY_S)
            if not task.done() and self._stopped():
                if waited >= patience_s:
                    task.cancel()
                    await asyncio.wait({task})
                    raise Stopped
                waited += LOOK_EVERY_S
        return task.result()

    async def _leave(self) -> None:
        try:
            if self._client.is_connected and not self._stopped():
                await self._client.quit(timeout=min(5.0, self._server.timeout_s))
        except (OSError, SMTPException):
            pass  # Whatever it says to a good-bye, the mail's fate was sealed before.
        finally:
            self._client.close()
            # One turn of the loop, for the socket to be closed.
            await asyncio.sleep(0)


class Stopped(Exception):
    """A stop was asked for while the server was waited for."""


def _words(error: BaseException) -> str:
    """Return what the server said, or what went wrong, on one line."""
    if isinstance(error, SMTPResponseException):
        text = f"{error.code} {error.message}"
    elif isinstance(error, ssl.SSLError):
        text = error.reason or "TLS fails"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.encode("utf-8", "replace").decode().split())[:WORDS_MAX]
