"""`email.campaign` against a real SMTP server that refuses, puts off, hangs up and goes away."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from jobs import Discard, Retry, Snooze, StopRequested
from jobs.errors import InvalidInput
from jobs.library.email_campaign import PUT_OFF_MAX, ROUNDS_MAX, email_campaign
from jobs.testing import Finished, run, run_chunk
from tests.support.post import Post, posting


@pytest.fixture
def post() -> Iterator[Post]:
    with posting() as post:
        yield post


MAIL = {"subject": "News for {{name|you}}", "text": "Dear {{name|friend}},\n\nnews."}


def people(count: int) -> list[dict[str, Any]]:
    return [{"email": f"p{n}@example.org", "name": f"P{n}"} for n in range(count)]


def campaign(post: Post, **params: Any) -> Finished:
    """Run all of it."""
    files = params.pop("files", {})
    given = {"recipients": people(3), **MAIL, **params}
    if "source" in params:
        del given["recipients"]
    return run(email_campaign, given, secrets={"smtp_url": post.url}, files=files)


def batch(
    post: Post | str, count: int = 4, earlier: Finished | None = None, **params: Any
) -> Finished:
    """Run an attempt of a chunk; after an `earlier` one, the next."""
    how = {name: params.pop(name) for name in ("stop_after", "checkpoint") if name in params}
    if earlier is not None:
        how["checkpoint"] = earlier.checkpoints[-1]
    chunk = {"recipients": [{"to": f"p{n}@example.org", "fields": {}} for n in range(count)]}
    return run_chunk(
        email_campaign,
        {"recipients": people(1), **MAIL, **params},
        chunk,
        secrets={"smtp_url": post if isinstance(post, str) else post.url},
        attempt=1 if earlier is None else 2,
        **how,
    )


def who(post: Post) -> list[str]:
    """Return to whom mails went, in order."""
    return [to for to, _ in ((to[0], mail) for to, mail in post.got)]


def results(finished: Finished) -> dict[str, str]:
    """Return what became of each address."""
    assert finished.error is None, repr(finished.error)
    lines = map(json.loads, finished.files["results.ndjson"].splitlines())
    return {line["email"]: line["status"] for line in lines}


def statuses(finished: Finished) -> list[str]:
    """Return what a chunk says of its recipients."""
    return [status for _, status, _ in finished.result]


def ended(finished: Finished, kind: type[BaseException]) -> str:
    assert isinstance(finished.error, kind), repr(finished.error)
    return str(finished.error)


# --- all goes well --------------------------------------------------------------------------------


def test_each_recipient_gets_a_mail_of_their_own(post: Post) -> None:
    finished = campaign(post)

    assert who(post) == [f"p{n}@example.org" for n in range(3)]
    mail = post.got[1][1]
    assert (mail["To"], mail["Subject"]) == ("p1@example.org", "News for P1")
    assert mail["From"] == "reports@example.org"
    assert mail.get_content().startswith("Dear P1,")
    assert finished.result["sent"] == finished.result["recipients"] == 3
    assert results(finished) == {f"p{n}@example.org": "sent" for n in range(3)}


def test_long_names_and_subjects_arrive_as_they_were(post: Post) -> None:
    subject = "Ihre ist über vom Köln schöne ist Grüße über für Öffnungszeiten und ist für die Köln"

    batch(post, 1, subject=subject, sender_name="Büro für\u2028Öffnungszeiten")

    mail = post.got[0][1]
    assert mail["Subject"] == subject
    assert mail["From"].addresses[0].display_name == "Büro für Öffnungszeiten"


def test_a_chunk_uses_one_connection(post: Post) -> None:
    campaign(post, recipients=people(10), batch=5)

    assert post.sessions == 2


def test_a_server_that_hangs_up_between_mails_is_connected_to_again(post: Post) -> None:
    post.mails_a_session = 2

    assert statuses(batch(post, 5)) == ["sent"] * 5
    assert len(who(post)) == len(set(who(post))) == 5
    assert post.sessions == 3


def test_the_mails_of_one_campaign_differ_by_message_id_and_keep_it(post: Post) -> None:
    batch(post, 2)
    batch(post, 2)

    ids = [mail["Message-ID"] for _, mail in post.got]
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2


def test_unsubscribing_takes_one_click(post: Post) -> None:
    """RFC 8058: both headers, and the address quoted in the link."""
    campaign(
        post,
        recipients=[{"email": "a+b@example.org"}],
        text="Bye: {{unsubscribe}}",
        html="<a href='{{unsubscribe}}'>Bye</a>",
        unsubscribe="https://example.org/out?to={{email}}&list=1",
    )

    mail = post.got[0][1]
    link = "https://example.org/out?to=a%2Bb%40example.org&list=1"
    assert mail["List-Unsubscribe"] == f"<{link}>"
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert isinstance(plain, EmailMessage)
    assert isinstance(html, EmailMessage)
    assert link in plain.get_content()
    assert link.replace("&", "&amp;") in html.get_content()


def test_fields_are_escaped_in_html_and_one_line_in_a_subject(post: Post) -> None:
    campaign(
        post,
        recipients=[{"email": "a@example.org", "name": "<b>\r\nBcc: eve@example.org"}],
        html="<p title='{{name}}'>{{ name }}</p>",
    )

    [(to, mail)] = post.got
    assert to == ["a@example.org"]
    assert mail["Bcc"] is None
    assert mail["Subject"] == "News for <b> Bcc: eve@example.org"
    html = mail.get_body(("html",))
    assert isinstance(html, EmailMessage)
    assert "<b>" not in html.get_content()


# --- the list -------------------------------------------------------------------------------------

CSV = "email,name,age\np0@example.org,Ann,40\np1@example.org,,41\n"
NDJSON = '{"email":"p0@example.org","name":"Ann"}\n\n{"email":"p1@example.org","name":null}\n'


def parquet_of(**columns: Any) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.table(columns), data)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("list.csv", CSV.encode()),
        ("list.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("list.csv", b"\r\n" + CSV.replace("\n", "\r\n").encode()),
        ("list.ndjson", NDJSON.encode()),
        (
            "list.parquet",
            parquet_of(email=["p0@example.org", "p1@example.org"], name=["Ann", None]),
        ),
    ],
)
def test_a_list_may_be_csv_ndjson_or_parquet(post: Post, name: str, data: bytes) -> None:
    finished = campaign(post, source=f"upload:{name}", files={f"upload:{name}": data})

    assert finished.result["sent"] == 2
    assert [mail["Subject"] for _, mail in post.got] == ["News for Ann", "News for you"]


def test_who_is_suppressed_or_twice_on_the_list_is_put_aside_and_told(post: Post) -> None:
    recipients = [*people(3), {"email": "P0@EXAMPLE.org"}]

    finished = campaign(
        post,
        recipients=recipients,
        suppress="upload:out.txt",
        files={"upload:out.txt": b"address\nP1@example.org\n"},
    )

    assert who(post) == ["p0@example.org", "p2@example.org"]
    assert results(finished) == {
        "p0@example.org": "sent",
        "p2@example.org": "sent",
        "p1@example.org": "suppressed",
        "P0@EXAMPLE.org": "repeated",
    }
    counts = {name: finished.result[name] for name in ("sent", "suppressed", "repeated", "bad")}
    assert counts == {"sent": 2, "suppressed": 1, "repeated": 1, "bad": 0}


@pytest.mark.parametrize(
    "lines",
    [
        "Email,since\nP1@Example.org,2020\n",
        '\n"p1@example.org","2020"\r\n',
        "p1@example.org\n\nann@müller.example\n",
    ],
)
def test_whoever_is_on_a_list_of_those_to_suppress_gets_nothing(lines: str, post: Post) -> None:
    files = {"upload:out.txt": lines.encode()}

    campaign(post, suppress="upload:out.txt", files=files)

    assert who(post) == ["p0@example.org", "p2@example.org"]


@pytest.mark.parametrize(
    "lines",
    [
        "p1@example.org;2020\n",
        "p0@example.org\nP One <p1@example.org>\n",
        "address\n'p1@example.org'\n",
        "address\np1@example.org.\n",
        "id,address\n1,p1@example.org\n",
        '"p1@example.org\n',
        "mailto:p1@example.org\n",
    ],
)
def test_nothing_is_sent_while_it_is_unclear_who_is_to_get_nothing(lines: str, post: Post) -> None:
    finished = campaign(post, suppress="upload:out.txt", files={"upload:out.txt": lines.encode()})

    assert ended(finished, Discard).startswith("suppress: ")
    assert post.got == []


BAD = [
    {"email": "no address"},
    {"email": "a@b@c.org", "name": "x"},
    {"name": "nobody"},
    {"email": "long@example.org", "name": "x" * 3_000},
    {"email": "half@example.org", "name": "\ud800"},
]


def test_bad_rows_are_told_with_their_place_and_reason(post: Post) -> None:
    source = "\n".join(json.dumps(row) for row in [*BAD, "no object", *people(2)])

    finished = campaign(
        post, source="upload:a.ndjson", files={"upload:a.ndjson": source.encode()}, bad_max=6
    )

    assert finished.result["bad"] == 6
    lines = [json.loads(line) for line in finished.files["results.ndjson"].splitlines()]
    told = [(line["row"], line["reason"]) for line in lines if line["status"] == "bad"]
    assert told == [
        (1, "is no address"),
        (2, "is no address"),
        (3, "has no 'email'"),
        (4, "field 'name' is over 2000 characters"),
        (5, "holds half of a character"),
        (6, "is no JSON object"),
    ]


@pytest.mark.parametrize("bad_max", [4, 0.5])
def test_with_too_many_bad_rows_nothing_is_sent(post: Post, bad_max: float) -> None:
    told = ended(
        campaign(post, recipients=[*BAD[:4], *BAD[:1], *people(4)], bad_max=bad_max), Discard
    )

    assert "5 of 9 rows are bad (row 1: is no address;" in told
    assert post.got == []


def test_a_row_that_lacks_a_merge_field_is_bad_unless_the_template_says_what_else(
    post: Post,
) -> None:
    finished = campaign(
        post, recipients=[{"email": "a@example.org"}], text="Dear {{name}}", bad_max=1
    )

    assert finished.result["bad"] == 1
    assert "lacks the merge field 'name'" in finished.files["results.ndjson"].decode()


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.csv", b"email\n\xff\xfe\n", "not UTF-8"),
        ("a.parquet", b"email\n", "no Parquet"),
        ("a.csv", b"name\nAnn\n", "has no column 'email', but: 'name'"),
        ("a.csv", b"email;name\r\na@example.org;Ann\r\n", "but: 'email;name'"),
        ("a.csv", b"", "has no column 'email', but: none"),
        ("a.csv", b'email,name\na@example.org,"Ann\nb@example.org,B\n', "line 3 is no CSV"),
        ("a.parquet", parquet_of(name=["Ann"]), "has no column 'email'"),
        (
            "a.parquet",
            parquet_of(email=["a@example.org"], at=pa.array([10**15], pa.timestamp("s"))),
            "holds a value that no mail can tell",
        ),
        ("a.csv", b"email,name\na@example.org\n", "1 cells"),
        ("a.csv", b"email,email\na@example.org,b@example.org\n", "'email' stands twice"),
    ],
)
def test_a_list_that_is_none_sends_nothing_and_says_why(
    post: Post, name: str, data: bytes, told: str
) -> None:
    finished = campaign(post, source=f"upload:{name}", files={f"upload:{name}": data})

    assert told in ended(finished, Discard)
    assert post.got == []


def test_a_list_that_is_not_there_is_named(post: Post) -> None:
    assert "upload:gone.csv" in ended(campaign(post, source="upload:gone.csv"), Discard)


def test_an_empty_list_sends_nothing_and_is_done(post: Post) -> None:
    finished = campaign(post, source="upload:a.csv", files={"upload:a.csv": b"email\n"})

    assert finished.result["recipients"] == 0


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"text": "{{ a b }}"}, "no merge field"),
        ({"text": "{{name}"}, "no merge field"),
        ({"text": "{{unsubscribe}}"}, "unsubscribe: a template names it"),
        ({"source": "a.csv"}, "either source or recipients"),
        ({"subject": "a\nb"}, "pattern"),
        ({"unsubscribe": "javascript:alert(1)"}, "pattern"),
        ({"sender": "Me <me@example.org>"}, "pattern"),
        ({"batch": 201}, "less than or equal to 200"),
        ({"server": "aws_key"}, "pattern"),
    ],
)
def test_params_that_cannot_work_are_refused_by_name(params: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        email_campaign.params_model.model_validate({"recipients": people(1), **MAIL, **params})


# --- servers that refuse and put off --------------------------------------------------------------


def test_who_is_refused_is_told_and_the_others_get_it(post: Post) -> None:
    post.refuses = {"p1@example.org": ["550 no such user"]}

    finished = batch(post)

    assert statuses(finished) == ["sent", "refused", "sent", "sent"]
    assert finished.result[1][2] == "550 no such user"


def test_a_mail_that_is_refused_by_its_content_is_told_too(post: Post) -> None:
    post.answers = ["554 spam", "250 OK"]

    assert statuses(batch(post)) == ["refused", "sent", "sent", "sent"]


def test_who_is_put_off_is_asked_again_later_and_nobody_else(post: Post) -> None:
    post.refuses = {"p1@example.org": ["450 greylisted"]}

    first = batch(post)
    ended(first, Snooze)
    second = batch(post, earlier=first)

    assert statuses(second) == ["sent"] * 4
    assert Counter(who(post)) == Counter({f"p{n}@example.org": 1 for n in range(4)})


def test_a_server_that_puts_off_one_after_the_other_is_left_alone(post: Post) -> None:
    post.answers = ["451 slow down"]

    finished = batch(post, 50)

    ended(finished, Snooze)
    assert finished.checkpoints[-1]["codes"] == "d" * PUT_OFF_MAX + "." * (50 - PUT_OFF_MAX)
    post.answers = ["250 OK"]
    assert statuses(batch(post, 50, finished)) == ["sent"] * 50
    assert len(set(who(post))) == len(who(post)) == 50


def test_a_throttling_server_gets_all_of_it_in_the_end(post: Post) -> None:
    """Two mails, then put off until it is asked again, and so on."""
    post.answers = (["250 OK"] * 2 + ["452 throttled"] * PUT_OFF_MAX) * 9 + ["250 OK"]

    finished = batch(post, 12)
    waits = 0
    while isinstance(finished.error, Snooze):
        waits += 1
        finished = batch(post, 12, finished)

    assert statuses(finished) == ["sent"] * 12
    assert len(set(who(post))) == len(who(post)) == 12
    assert waits > 1


def test_who_is_put_off_for_ever_is_told_in_the_end(post: Post) -> None:
    post.refuses = {"p0@example.org": ["450 full"] * 99}

    waits = []
    finished = batch(post)
    while isinstance(finished.error, Snooze):
        waits.append(finished.error.delay_s)
        finished = batch(post, earlier=finished)

    assert statuses(finished) == ["deferred", "sent", "sent", "sent"]
    assert finished.result[0][2] == "450 full"
    # The first round is none that was in vain.
    assert waits == [30, 30, 90, 270, 810, 1800][:ROUNDS_MAX]


def test_a_server_that_refuses_everyone_stops_the_campaign_and_all_can_be_sent_again(
    post: Post,
) -> None:
    post.answers = ["554 blocked"]

    finished = batch(post, 20)

    assert "554 blocked" in ended(finished, Discard)
    post.answers = ["250 OK"]
    assert statuses(batch(post, 20, finished)) == ["sent"] * 20


def test_a_sender_that_is_refused_ends_it_before_any_mail(post: Post) -> None:
    post.sender_answers = ["550 who are you"]

    assert "who are you" in ended(batch(post), Discard)


# --- lost answers, lost servers, lost workers -----------------------------------------------------


@pytest.mark.parametrize("how", ["drop", "hang"])
def test_a_mail_whose_answer_was_lost_is_told_and_the_others_get_it(how: str, post: Post) -> None:
    post.answers = ["250 OK", how, "250 OK"]
    post.url = post.url.replace("timeout_s=5", "timeout_s=0.1")

    finished = batch(post)

    assert statuses(finished) == ["sent", "unknown", "sent", "sent"]
    assert Counter(who(post))["p1@example.org"] == 1


def test_it_is_sent_again_where_that_was_asked_for(post: Post) -> None:
    post.answers = ["250 OK", "drop", "250 OK"]

    first = batch(post, in_doubt="resend")
    ended(first, Snooze)
    second = batch(post, earlier=first, in_doubt="resend")

    assert statuses(second) == ["sent"] * 4
    assert Counter(who(post)) == Counter(
        {f"p{n}@example.org": 2 if n == 1 else 1 for n in range(4)}
    )


def test_a_server_that_is_away_uses_an_attempt() -> None:
    with posting() as other:
        gone = other.url

    ended(batch(gone), Retry)


def test_a_server_that_goes_away_in_the_middle_uses_none_and_nobody_gets_two(post: Post) -> None:
    with posting() as first:
        first.sender_answers = ["250 OK", "250 OK", "421 going down", "421 going down"]
        begun = batch(first)
        assert who(first) == ["p0@example.org", "p1@example.org"]
        url = first.url
    ended(begun, Snooze)
    ended(batch(url, earlier=begun), Retry)

    assert statuses(batch(post, earlier=begun)) == ["sent"] * 4
    assert who(post) == ["p2@example.org", "p3@example.org"]


@pytest.mark.parametrize("in_doubt", ["skip", "resend"])
def test_an_attempt_killed_at_any_moment_makes_no_mail_come_twice_that_was_confirmed(
    post: Post, in_doubt: str
) -> None:
    """Each record that an attempt left is what the next finds after a kill just then."""
    post.refuses = {"p1@example.org": ["550 no"]}
    whole = batch(post, 5, in_doubt=in_doubt)
    assert len(whole.checkpoints) == 8  # before and after each of four mails

    for record in whole.checkpoints:
        post.got.clear()
        post.refuses = {"p1@example.org": ["550 no"] * 9}
        finished = batch(post, 5, checkpoint=record, in_doubt=in_doubt)

        confirmed = {f"p{n}@example.org" for n, code in enumerate(record["codes"]) if code == "s"}
        assert not confirmed.intersection(who(post))
        doubtful = record["sending"]
        if doubtful is not None:
            again = f"p{doubtful}@example.org" in who(post)
            assert again == (in_doubt == "resend")
        assert finished.error is None or isinstance(finished.error, Snooze)


def test_a_stop_between_the_answer_and_its_record_does_not_lose_the_record(post: Post) -> None:
    for calls in range(1, 40):
        post.got.clear()
        stopped = batch(post, 4, stop_after=calls)
        if stopped.error is None:
            break
        ended(stopped, StopRequested)
        if not stopped.checkpoints:
            continue
        resumed = batch(post, 4, stopped)
        assert len(set(who(post))) == len(who(post)), calls
        assert set(statuses(resumed)) <= {"sent", "unknown"}
    assert stopped.error is None


def test_no_server_named_says_which_secret_is_missing() -> None:
    finished = run(email_campaign, {"recipients": people(1), **MAIL})

    assert "smtp_url" in ended(finished, InvalidInput)


def test_chunks_count_at_the_limit_of_their_server() -> None:
    assert email_campaign.limits == ("mail:{server}",)
