"""A real SMTP server in a thread; what it answers is set by the test."""

import asyncio
import email
import email.policy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

__all__ = ["Post", "posting"]


@dataclass
class Post:
    """An SMTP server."""

    #: Its answers to a mail, one after the other; the last for all that follow. `drop` hangs up
    #: once it has the mail, `hang` says nothing.
    answers: list[str] = field(default_factory=lambda: ["250 OK"])
    #: Its answers to recipients, by address, as above; then `250 OK`.
    refuses: dict[str, list[str]] = field(default_factory=dict)
    #: Its answers to senders, one after the other; then `250 OK`.
    sender_answers: list[str] = field(default_factory=list)
    #: It hangs up after so many mails of one connection.
    mails_a_session: int = 1_000_000
    #: Recipients and mail, of those that it confirmed, or had when it hung up.
    got: list[tuple[list[str], EmailMessage]] = field(default_factory=list)
    #: Called with each recipient, and the port that it is written from, before its mail is
    #: confirmed.
    before: Callable[[str, int], object] = lambda to, port: None
    sessions: int = 0
    url: str = ""

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, server: Any, session: Session, envelope: Envelope, hostname: str, lines: list[str]
    ) -> list[str]:
        self.sessions += 1
        session.host_name = hostname
        server.mails = 0
        return lines

    async def handle_MAIL(  # noqa: N802
        self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if server.mails >= self.mails_a_session:
            server.transport.abort()
            return "421 enough"
        envelope.mail_from = address
        return self.sender_answers.pop(0) if self.sender_answers else "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answers = self.refuses.get(address, [])
        answer = answers.pop(0) if answers else "250 OK"
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(  # noqa: N802
        self, server: Any, session: Any, envelope: Envelope
    ) -> str:
        assert isinstance(envelope.content, bytes)
        assert envelope.content.isascii()  # not every server passes eight bits
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        server.mails += 1
        if answer.startswith("250") or answer in ("drop", "hang"):
            assert isinstance(mail, EmailMessage)
            self.got.append((list(envelope.rcpt_tos), mail))
            self.before(envelope.rcpt_tos[0], session.peer[1])
        if answer == "drop":
            server.transport.abort()
        if answer == "hang":
            await asyncio.Event().wait()
        return answer


@contextmanager
def posting(post: Post | None = None, **options: Any) -> Iterator[Post]:
    """Run a server, with options of aiosmtpd's; it is gone with the test."""
    post = post or Post()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen() -> asyncio.Server:
        return await loop.create_server(
            lambda: SMTP(post, hostname="post.test", loop=loop, **options), "127.0.0.1", 0
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    port: int = server.sockets[0].getsockname()[1]
    post.url = f"smtp://127.0.0.1:{port}?from=reports@example.org&timeout_s=5"

    async def end() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield post
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
