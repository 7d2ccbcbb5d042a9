"""`notify.email` against a real SMTP server: what is in the mail, and that there is one."""

from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import pytest
from pydantic import ValidationError

from jobs import Discard, Retry
from jobs.library.notify.event import PUBLIC_URL_ENV
from jobs.library.notify_email import notify_email
from jobs.testing import Finished, run
from tests.support.post import Post, posting

NASTY = "<script>alert('x')</script>"


@pytest.fixture
def post() -> Iterator[Post]:
    with posting() as post:
        yield post


def an_event(name: str = "job.completed", **data: Any) -> dict[str, Any]:
    return {
        "type": name,
        "timestamp": "2026-11-26T18:00:00.000Z",
        "data": {
            "id": "0190-7",
            "type": "report.annual",
            "status": name.partition(".")[2],
            "labels": {"team": "finance"},
            "attempts": 2,
            "submitted_at": "2026-11-26T17:00:00.000Z",
            "started_at": None,
            "finished_at": "2026-11-26T18:00:00.000Z",
            "error": None,
            "reason": None,
            "result": None,
            "files": [],
            **data,
        },
    }


def a_file(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "bytes": size, "uri": f"output:0190-7/0/{name}"}


def tell(post: Post, event: dict[str, Any], **params: Any) -> Finished:
    how = {name: params.pop(name) for name in ("files", "once", "attempt") if name in params}
    return run(
        notify_email,
        {"to": ["ann@example.org"], "event": event, **params},
        secrets={"smtp_url": post.url},
        **how,
    )


def parts(mail: EmailMessage) -> tuple[str, str]:
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert html is not None
    return plain.get_content().replace("\r\n", "\n"), html.get_content()


def test_a_job_that_is_done_is_told_plain_and_as_html(post: Post) -> None:
    finished = tell(post, an_event(result={"pages": 3}))

    assert finished.result["sent"] == ["ann@example.org"]
    [(_, mail)] = post.got
    assert mail["Subject"] == "report.annual is done"
    assert mail["From"] == "reports@example.org"
    plain, html = parts(mail)
    assert "Job        0190-7" in plain
    assert "team       finance" in plain
    assert '"pages": 3' in plain
    assert "<td>0190-7</td>" in html


def test_a_job_that_failed_is_told_with_its_error(post: Post) -> None:
    error = {"message": "no paper in the printer", "cause": "discarded"}

    tell(post, an_event("job.failed", error=error))

    [(_, mail)] = post.got
    assert mail["Subject"] == "report.annual failed"
    for part in parts(mail):
        assert "no paper in the printer" in part
        assert "discarded" in part


@pytest.mark.parametrize("where", ["type", "reason"])
def test_what_a_job_says_of_itself_is_text_and_nothing_more(post: Post, where: str) -> None:
    data: dict[str, Any] = {
        where: NASTY,
        "labels": {NASTY: NASTY},
        "error": {"message": NASTY, "cause": NASTY},
        "files": [a_file("a.txt", 1) | {"name": NASTY, "uri": "output:0190-7/0/gone"}],
    }

    tell(post, an_event("job.failed", **data))

    [(_, mail)] = post.got
    plain, html = parts(mail)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert NASTY in plain


def test_a_line_break_in_a_type_makes_no_header(post: Post) -> None:
    tell(post, an_event(type="a\r\nBcc: eve@example.org"))

    [(to, mail)] = post.got
    assert to == ["ann@example.org"]
    assert mail["Bcc"] is None
    assert mail["Subject"] == "a Bcc: eve@example.org is done"


def test_small_files_come_along_and_large_ones_are_named(post: Post) -> None:
    files = [a_file("report.pdf", 4), a_file("video.mp4", 900_000_000)]

    tell(post, an_event(files=files), files={"output:0190-7/0/report.pdf": b"%PDF"})

    [(_, mail)] = post.got
    [attached] = mail.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == ("report.pdf", b"%PDF")
    plain, _ = parts(mail)
    assert "Attached:\n  report.pdf" in plain
    assert "Files:\n  video.mp4" in plain


def test_a_file_that_is_gone_is_named_and_the_mail_goes(post: Post) -> None:
    finished = tell(post, an_event(files=[a_file("report.pdf", 4)]))

    assert finished.error is None
    assert "Files:\n  report.pdf" in parts(post.got[0][1])[0]
    assert "report.pdf is not attached" in finished.logs


def test_files_stay_home_where_they_are_not_wanted(post: Post) -> None:
    files = {"output:0190-7/0/report.pdf": b"%PDF"}

    tell(post, an_event(files=[a_file("report.pdf", 4)]), files=files, attach=False)

    assert list(post.got[0][1].iter_attachments()) == []


def test_only_outputs_are_attached_whatever_an_event_names(post: Post) -> None:
    file = {"name": "passwd", "bytes": 10, "uri": "file:///etc/passwd"}

    tell(post, an_event(files=[file]), files={"file:///etc/passwd": b"root"})

    assert list(post.got[0][1].iter_attachments()) == []


def test_links_lead_to_where_people_reach_this_drayman(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PUBLIC_URL_ENV, "https://jobs.example.com/drayman/")

    tell(post, an_event(files=[a_file("a b.pdf", 900_000_000)]))

    plain, html = parts(post.got[0][1])
    assert "https://jobs.example.com/drayman/jobs/0190-7" in plain
    link = "https://jobs.example.com/drayman/v1/jobs/0190-7/files/a%20b.pdf"
    assert link in plain
    assert f"<a href='{link}'>" in html


def test_a_mail_whose_answer_was_lost_is_not_sent_again(post: Post) -> None:
    post.answers = ["drop"]

    first = tell(post, an_event())
    second = tell(post, an_event(), attempt=2, once=first.once)

    assert first.result["unknown"] == second.result["unknown"] == ["ann@example.org"]
    assert len(post.got) == 1


def test_a_server_that_puts_off_is_asked_again(post: Post) -> None:
    post.answers = ["451 later"]

    assert isinstance(tell(post, an_event()).error, Retry)


def test_a_server_that_refuses_everyone_ends_it(post: Post) -> None:
    post.refuses = {"ann@example.org": ["550 unknown"]}

    assert isinstance(tell(post, an_event()).error, Discard)


def test_an_address_that_is_none_is_refused_by_its_place(post: Post) -> None:
    with pytest.raises(ValidationError, match=r"to\.0"):
        tell(post, an_event(), to=["ann at example.org"])


def test_data_of_any_shape_is_shown_as_far_as_it_is_known(post: Post) -> None:
    odd = {
        "type": "endpoint.test",
        "timestamp": "",
        "data": {"error": "x", "files": 7, "labels": 3},
    }

    tell(post, odd)

    assert post.got[0][1]["Subject"] == "a job endpoint.test"
