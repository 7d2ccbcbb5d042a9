"""`mail.send` against a real SMTP server that accepts, refuses, hangs up and hangs."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult
from pydantic import ValidationError

from jobs import Discard, Retry, StopRequested
from jobs.library.mail.server import Server
from jobs.library.mail_send import send_mail
from jobs.testing import Finished, run
from tests.support.post import Post, posting

StartPost = Callable[..., Post]


@pytest.fixture
def start() -> Iterator[StartPost]:
    """Start servers; they are gone with the test."""
    with ExitStack() as servers:
        yield lambda *given, **options: servers.enter_context(posting(*given, **options))


@pytest.fixture
def post(start: StartPost) -> Post:
    return start()


def send(post: Post | str, earlier: Finished | None = None, **params: Any) -> Finished:
    """Run an attempt; after an `earlier` one, the next of the same task."""
    url = post if isinstance(post, str) else post.url
    files = params.pop("files", {})
    script = params.pop("script", {})
    attempt = params.pop("attempt", 1 if earlier is None else 2)
    return run(
        send_mail,
        {"to": ["ann@example.org"], "subject": "Hello", "text": "Good day.", **params},
        secrets={"smtp_url": url},
        files=files,
        attempt=attempt,
        once=earlier.once if earlier else None,
        in_doubt=earlier.in_doubt if earlier else None,
        **script,
    )


def dawdle(server: socket.socket, pause_s: float) -> str:
    """Be the SMTP server of one mail, and think about DATA and about the mail so long each."""
    connection, _ = server.accept()
    with connection, connection.makefile("rwb", buffering=0) as talk:
        talk.write(b"220 slow.test\r\n")
        while not (line := talk.readline()).startswith(b"DATA"):
            assert line[:4] in (b"EHLO", b"MAIL", b"RCPT")
            talk.write(b"250 OK\r\n")
        time.sleep(pause_s)
        talk.write(b"354 go on\r\n")
        while talk.readline() != b".\r\n":
            pass
        time.sleep(pause_s)
        with contextlib.suppress(OSError):  # it waited no longer
            talk.write(b"250 OK\r\n")
    return "a mail"


def put_off(finished: Finished) -> str:
    assert isinstance(finished.error, Retry), finished.error
    return str(finished.error)


def discarded(finished: Finished) -> str:
    assert isinstance(finished.error, Discard), finished.error
    return str(finished.error)


class TestAccepted:
    def test_mail_arrives_as_asked_for(self, post: Post) -> None:
        finished = send(
            post,
            to=["ann@example.org", "bob@example.org"],
            cc=["cid@example.org"],
            bcc=["dan@example.org", "ann@example.org"],
            subject="Bericht für Łódź",
            text="Schöne Grüße.",
            html="<p>Good day.</p>",
            figures={"flights": 58665, "on_time_pct": 77.5, "seats_flown": None},
            attachments=[
                {"uri": "upload:abc", "name": "Übersicht 2013.pdf"},
                {"uri": "output:job-1/join/data.csv"},
            ],
            files={"upload:abc": b"%PDF\r\n\n.\n..", "output:job-1/join/data.csv": b"a,b\n1,2\n"},
            reply_to="eve@example.org",
        )

        everyone = ["ann", "bob", "cid", "dan"]
        assert finished.result["sent"] == [f"{name}@example.org" for name in everyone]
        assert (finished.result["refused"], finished.result["unknown"]) == ([], [])
        ((recipients, mail),) = post.got
        assert recipients == finished.result["sent"]
        assert mail["From"] == "reports@example.org"
        assert mail["To"] == "ann@example.org, bob@example.org"
        assert mail["Cc"] == "cid@example.org"
        assert mail["Bcc"] is None
        assert mail["Subject"] == "Bericht für Łódź"
        assert mail["Reply-To"] == "eve@example.org"
        assert mail["Message-ID"] == finished.result["message_id"]
        text, html = (mail.get_body((kind,)) for kind in ("plain", "html"))
        assert text is not None
        assert html is not None
        assert text.get_content().splitlines() == [
            "Schöne Grüße.",
            "",
            "flights      58,665",
            "on time pct  77.5",
            "seats flown  n/a",
        ]
        assert html.get_content().strip() == "<p>Good day.</p>"
        pdf, csv = mail.iter_attachments()
        assert (pdf.get_filename(), pdf.get_content_type()) == (
            "Übersicht 2013.pdf",
            "application/pdf",
        )
        assert pdf.get_content() == b"%PDF\r\n\n.\n.."
        assert (csv.get_filename(), csv.get_content_type()) == ("data.csv", "text/csv")

    def test_an_attempt_after_the_mail_was_sent_does_not_even_call_the_server(
        self, post: Post
    ) -> None:
        first = send(post)

        again = send(post, first)

        assert again.result == first.result
        assert (len(post.got), post.sessions) == (1, 1)

    def test_an_attempt_that_died_before_its_mail_was_claimed_never_sends_it_later(
        self, post: Post
    ) -> None:
        second = send(post, attempt=2)

        assert second.result["sent"] == ["ann@example.org"]
        assert second.once["attempt-1"] == {}

    @pytest.mark.parametrize(
        "subject",
        [
            "Ä € 😀 " * 20 + ".",
            "Ihre ist über vom Köln schöne ist Grüße über für Öffnungszeiten und ist für die Köln",
            "請求書 の お知らせ です 十一月 " * 4 + ".",
            "plain words " * 20 + ".",
        ],
    )
    def test_long_subject_keeps_every_space(self, subject: str, post: Post) -> None:
        """Python's own folding loses some where a line ends."""
        send(post, subject=subject)

        ((_, mail),) = post.got
        assert mail["Subject"] == subject
        assert max(len(line) for line in mail.as_bytes().splitlines()) <= 78

    def test_ends_of_lines_that_ascii_lacks_are_spaces_in_a_subject(self, post: Post) -> None:
        send(post, subject="one\u2028two\x85three")

        assert post.got[0][1]["Subject"] == "one two three"

    @pytest.mark.parametrize("kind", [None, "message/rfc822", "multipart/mixed"])
    def test_attached_mail_arrives_as_the_file_it_is(self, kind: str | None, post: Post) -> None:
        data = "From: a@b.org\r\nSubject: ü\r\n\r\nHello\r\n".encode()
        attached = {"uri": "upload:old.eml", "type": kind}

        send(post, attachments=[attached], files={"upload:old.eml": data})

        (part,) = post.got[0][1].iter_attachments()
        assert (part.get_filename(), part.get_content()) == ("old.eml", data)

    def test_message_id_is_that_of_the_task(self, post: Post) -> None:
        ids = [send(post, script={"job_id": job}).result["message_id"] for job in ("a", "a", "b")]

        assert ids[0] == ids[1] != ids[2]
        assert ids[0].endswith("@example.org>")


class TestAnswerLost:
    @pytest.mark.parametrize("how", ["drop", "hang"])
    def test_skip_tells_the_recipients_as_unknown(self, how: str, start: StartPost) -> None:
        post = start(Post(answers=[how, "250 OK"]))
        post.url = post.url.replace("timeout_s=5", "timeout_s=0.1")

        first = send(post)
        again = send(post, first)

        assert first.result["unknown"] == ["ann@example.org"]
        assert first.result["sent"] == []
        assert again.result == first.result
        assert len(post.got) == 1

    @pytest.mark.parametrize("how", ["drop", "hang"])
    def test_resend_sends_it_again_with_the_same_message_id(
        self, how: str, start: StartPost
    ) -> None:
        post = start(Post(answers=[how, "250 OK"]))
        post.url = post.url.replace("timeout_s=5", "timeout_s=0.1")

        first = send(post, in_doubt="resend")
        second = send(post, first, in_doubt="resend")
        third = send(post, second, in_doubt="resend", attempt=3)

        assert put_off(first) == (
            "the server's answer was lost; the mail is to be sent again"
            "; in doubt for ann@example.org"
        )
        assert second.result["sent"] == ["ann@example.org"]
        assert third.result == second.result
        assert len(post.got) == 2
        assert len({mail["Message-ID"] for _, mail in post.got}) == 1

    def test_all_that_follows_data_has_one_limit(self) -> None:
        """Ten times `timeout_s`, 1 s here; this server takes 1.6 s, less for each answer."""
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
            slow = pool.submit(dawdle, server, 0.8)
            port = server.getsockname()[1]

            finished = send(f"smtp://127.0.0.1:{port}?from=a@b.org&timeout_s=0.1")

            assert slow.result() == "a mail"
        assert finished.result["unknown"] == ["ann@example.org"]

    def test_killed_between_sending_and_recording_is_in_doubt_too(self, post: Post) -> None:
        killed = Finished(in_doubt={"attempt-1"})

        skipped, resent = send(post, killed), send(post, killed, in_doubt="resend")

        assert skipped.result["unknown"] == ["ann@example.org"]
        assert resent.result["sent"] == ["ann@example.org"]
        assert len(post.got) == 1

    def test_claim_is_made_only_when_the_server_is_ready_for_the_mail(
        self, start: StartPost
    ) -> None:
        post = start(Post(sender_answers=["451 busy"]))

        finished = send(post)

        assert put_off(finished).endswith("will not take the mail (451 busy)")
        assert (finished.once, finished.in_doubt) == ({}, set())


class TestRefused:
    def test_for_now_then_accepted(self, start: StartPost) -> None:
        post = start(Post(answers=["451 try later", "250 OK"]))

        first = send(post)
        second = send(post, first)

        assert put_off(first) == "put off by the server: ann@example.org: 451 try later"
        assert first.in_doubt == set()
        assert second.result["sent"] == ["ann@example.org"]
        assert len(post.got) == 1

    def test_for_good(self, start: StartPost) -> None:
        post = start(Post(answers=["554 looks like spam"]))

        assert discarded(send(post)) == (
            "to: the server refuses every recipient: ann@example.org: 554 looks like spam; "
            "correct them"
        )

    def test_one_recipient_for_good_is_told_and_the_others_get_the_mail(
        self, start: StartPost
    ) -> None:
        post = start(Post(refuses={"bob@example.org": ["550 no such user"]}))

        finished = send(post, to=["ann@example.org", "bob@example.org"])

        assert finished.result["sent"] == ["ann@example.org"]
        assert finished.result["refused"] == [
            {"to": "bob@example.org", "reason": "550 no such user"}
        ]

    def test_one_recipient_for_now_is_asked_again_alone(self, start: StartPost) -> None:
        post = start(Post(refuses={"bob@example.org": ["450 greylisted"]}))
        to = ["ann@example.org", "bob@example.org"]

        first = send(post, to=to)
        second = send(post, first, to=to)

        assert put_off(first) == (
            "put off by the server: bob@example.org: 450 greylisted; "
            "sent already to ann@example.org"
        )
        assert second.result["sent"] == to
        assert [recipients for recipients, _ in post.got] == [[name] for name in to]

    def test_every_recipient_for_good(self, start: StartPost) -> None:
        post = start(Post(refuses={"ann@example.org": ["550 no such user"]}))

        finished = send(post)

        assert "every recipient: ann@example.org: 550 no such user" in discarded(finished)
        assert finished.once == {}

    def test_every_recipient_for_now(self, start: StartPost) -> None:
        post = start(Post(refuses={"ann@example.org": ["450 greylisted"]}))

        first = send(post)

        assert "ann@example.org: 450 greylisted" in put_off(first)
        assert send(post, first).result["sent"] == ["ann@example.org"]

    def test_sender_for_good(self, start: StartPost) -> None:
        post = start(Post(sender_answers=["553 not yours"]))

        assert "will not take the mail (553 not yours); correct the mail" in discarded(send(post))


class TestServer:
    def test_nobody_there(self) -> None:
        reason = put_off(send("smtp://127.0.0.1:1?from=a@example.org"))

        assert reason.startswith("127.0.0.1:1 does not answer (")

    def test_greeting_never_comes(self, start: StartPost) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]

            reason = put_off(send(f"smtp://127.0.0.1:{port}?from=a@b.org&timeout_s=0.1"))

        assert reason.startswith(f"127.0.0.1:{port} does not answer (")

    def test_stop_is_obeyed_while_the_server_is_silent(self, start: StartPost) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]

            finished = send(
                f"smtp://127.0.0.1:{port}?from=a@b.org&timeout_s=600", script={"stop_after": 3}
            )

        assert isinstance(finished.error, StopRequested)
        assert finished.in_doubt == set()

    @pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
    def test_login(self, start: StartPost) -> None:
        def check(server: Any, session: Any, envelope: Any, kind: str, data: Any) -> AuthResult:
            return AuthResult(success=data.password == b"s3cr:t", handled=False)

        post = start(auth_require_tls=False, auth_required=True, authenticator=check)
        good, bad = (
            post.url.replace("//", f"//me:{word}@") + "&tls=none" for word in ("s3cr%3At", "wrong")
        )

        assert send(good).result["sent"] == ["ann@example.org"]
        reason = discarded(send(bad))
        assert "refuses the login (535" in reason
        assert "wrong" not in reason

    def test_password_is_not_sent_without_encryption(self, post: Post) -> None:
        reason = discarded(send(post.url.replace("//", "//me:word@")))

        assert reason.endswith(
            "offers no encryption; use smtps:// or, where the network is trusted, "
            "tls=none in the secret 'smtp_url'"
        )

    @pytest.mark.skipif(
        shutil.which("openssl") is None and "CI" not in os.environ,
        reason="makes its certificate by openssl",
    )
    def test_encryption_is_used_where_offered_and_its_name_checked(
        self, start: StartPost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost"),
            ],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        post = start(tls_context=context, require_starttls=True)

        stranger = put_off(send(post.url))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        other_name = put_off(send(post.url))
        finished = send(post.url.replace("127.0.0.1", "localhost") + "&tls=required")

        assert "does not answer" in stranger
        assert "does not answer" in other_name
        assert finished.result["sent"] == ["ann@example.org"]

    def test_url_is_read(self) -> None:
        plain = Server.parse("smtp://localhost", "smtp_url")
        full = Server.parse("smtps://me%40b:p%2Fw@h:99?from=a@b.org&timeout_s=7", "smtp_url")

        assert (plain.port, plain.tls, plain.user) == (25, "auto", None)
        assert (full.port, full.tls, full.user, full.password) == (99, "implicit", "me@b", "p/w")
        assert (full.sender, full.timeout_s) == ("a@b.org", 7.0)
        assert "p/w" not in repr(full)
        assert Server.parse("smtp://me:p@h", "smtp_url").port == 587

    @pytest.mark.parametrize(
        "url",
        [
            "h:25",
            "http://h",
            "smtp://",
            "smtp://h:many",
            "smtp://me:hunter2@h?tls=maybe",
            "smtps://h?tls=none",
            "smtp://h?colour=red",
            "smtp://h?timeout_s=0",
        ],
    )
    def test_url_that_is_none_is_refused_and_not_repeated(self, url: str) -> None:
        reason = discarded(send(url))

        assert reason.startswith("secret 'smtp_url' is no usable URL; write it as smtp://")
        assert "hunter2" not in reason


class TestAsking:
    def test_missing_attachment(self, post: Post) -> None:
        reason = discarded(send(post, attachments=[{"uri": "upload:gone"}]))

        assert reason == ("attachments.0: no file 'upload:gone'; upload it, or correct the URI")
        assert post.sessions == 0

    def test_attachments_that_are_too_large(self, post: Post) -> None:
        reason = discarded(
            send(post, attachments=[{"uri": "upload:a"}], files={"upload:a": bytes(25_000_001)})
        )

        assert reason == "attachments: over 25 MB; mail a link to them"

    def test_no_sender(self, post: Post) -> None:
        url = post.url.replace("from=reports@example.org&", "")

        assert discarded(send(url)).startswith("sender: none is given; give params.sender, or")
        assert send(url, sender="me@example.org").result["sent"] == ["ann@example.org"]

    @pytest.mark.parametrize(
        "params",
        [
            {"to": []},
            {"to": ["ann"]},
            {"to": ["ann@example.org\r\nBcc: eve@example.org"]},
            {"subject": "a\nBcc: eve@example.org"},
            {"attachments": [{"uri": "upload:a", "name": "../a"}]},
            {"server": "database_password"},
            {"bcc": [f"a{n}@example.org" for n in range(100)]},
            {"colour": "red"},
        ],
    )
    def test_params_are_validated(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            send("smtp://h", **params)
