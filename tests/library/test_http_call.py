"""`http.call` against a real server that answers, refuses, redirects, hangs, lies and hangs up."""

import asyncio
import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.protocol import OrderlyStop, Outcome
from cluster.worker.worker import Worker, WorkerTimes
from jobs import Discard, Retry, Snooze
from jobs.errors import InvalidInput
from jobs.library.http import transport
from jobs.library.http.addresses import HTTP_ALLOW_ENV, Allowed
from jobs.library.http.later import retry_after_s
from jobs.library.http.place import Place
from jobs.library.http_call import PUT_OFF_MAX_S, HttpParams, call_http
from jobs.testing import Finished, run
from tests.support.eventually import eventually
from tests.support.scripted_manager import ScriptedManager


@dataclass
class Say:
    """An answer. A body longer than `length` is written nevertheless; a shorter one breaks off."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    hang: bool = False


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Api:
    """A server in threads; what it does with each request is set by the test."""

    def __init__(self) -> None:
        #: One after the other; the last for all that follow. `drop` hangs up once it has the
        #: request, `hang` says nothing.
        self.answers: list[Say | str] = [Say()]
        self.asked: list[Asked] = []
        self.connections = 0
        self.hung_up = threading.Event()
        self.ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def use_tls(self, folder: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                api.connections += 1
                super().setup()

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    pass  # The other side hung up; that is what some tests are about.

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                api.asked.append(Asked(self.command, self.path, headers, body))
                say = api.answers.pop(0) if len(api.answers) > 1 else api.answers[0]
                if say == "hang":
                    self.wait()
                if not isinstance(say, Say):
                    self.close_connection = True
                    return
                self.send_response_only(say.status)
                length = len(say.body) if say.length is None else say.length
                for name, value in ({"Content-Length": str(length)} | say.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(say.body)
                if say.hang:
                    self.wait()

            def wait(self) -> None:
                """Until the other side hangs up, or the test ends."""
                self.connection.settimeout(0.05)
                while not api.ended.is_set():
                    try:
                        if self.connection.recv(1) == b"":
                            api.hung_up.set()
                            return
                    except TimeoutError:
                        continue

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv(HTTP_ALLOW_ENV, "127.0.0.1/32")
    api = Api()
    yield api
    api.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Names that resolve to these addresses, one list after the other, the last for ever."""
    answers: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **how: Any) -> Any:
        if host not in answers:
            return real(host, port, *args, **how)
        found = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (address, port or 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return answers


def call(url: str, **params: Any) -> Finished:
    how = {
        name: params.pop(name) for name in ("attempt", "checkpoint", "secrets") if name in params
    }
    return run(call_http, {"url": url, **params}, **how)


def ended(finished: Finished, kind: type[BaseException]) -> str:
    assert isinstance(finished.error, kind), repr(finished.error)
    return str(finished.error)


def last(finished: Finished) -> Any:
    return finished.checkpoints[-1] if finished.checkpoints else None


# --- what it asks and tells -----------------------------------------------------------------------


def test_json_is_sent_and_told(api: Api) -> None:
    api.answers = [
        Say(201, {"Content-Type": "application/json", "X-RateLimit-Left": "9"}, b'{"id": 7}')
    ]

    finished = call(f"{api.url}/things?a=b", method="POST", body={"name": "café"})

    assert finished.result["status"] == 201
    assert (finished.result["json"], finished.result["text"]) == ({"id": 7}, None)
    assert finished.result["bytes"] == 9
    assert finished.result["headers"]["x-ratelimit-left"] == "9"
    asked = api.asked[0]
    assert (asked.method, asked.path) == ("POST", "/things?a=b")
    assert json.loads(asked.body) == {"name": "café"}
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["host"] == f"127.0.0.1:{api.port}"


def test_text_is_sent_as_it_is_with_the_headers_given(api: Api) -> None:
    api.answers = [Say(body=b"caf\xe9", headers={"Content-Type": "text/plain; charset=ISO-8859-1"})]

    finished = call(
        api.url, method="PUT", body="<a/>", headers={"content-type": "text/xml", "user-agent": "me"}
    )

    assert finished.result["text"] == "café"
    assert api.asked[0].body == b"<a/>"
    assert api.asked[0].headers["content-type"] == "text/xml"
    assert api.asked[0].headers["user-agent"] == "me"
    assert "idempotency-key" not in api.asked[0].headers


@pytest.mark.parametrize("body", [b"{", b"[1e999]", b"[" * 100_000, b"NaN"])
def test_what_claims_to_be_json_and_is_none_is_a_text(api: Api, body: bytes) -> None:
    api.answers = [Say(headers={"Content-Type": "application/json"}, body=body)]

    assert call(api.url).result["text"] == body.decode()


def test_json_behind_a_byte_order_mark_is_json(api: Api) -> None:
    api.answers = [
        Say(headers={"Content-Type": "application/json"}, body=b"\xef\xbb\xbf" + b'{"a":1}')
    ]

    assert call(api.url).result["json"] == {"a": 1}


def test_what_is_no_text_becomes_a_file(api: Api) -> None:
    api.answers = [Say(headers={"Content-Type": "image/png"}, body=b"\x89PNG\xff")]

    finished = call(api.url)

    assert finished.result["file"] == "output:job-1/task-1/body.png"
    assert finished.files == {"body.png": b"\x89PNG\xff"}
    assert finished.result["text"] is None


def test_a_large_body_becomes_a_file_and_any_body_if_asked(api: Api) -> None:
    large = b"a,b\n" * 400_000
    api.answers = [Say(headers={"Content-Type": "text/csv"}, body=large), Say(body=b"small")]

    first = call(api.url)
    second = call(api.url, save="always")

    assert first.files == {"body.csv": large}
    assert (first.result["text"], first.result["bytes"]) == (None, len(large))
    assert second.files == {"body.bin": b"small"}


def test_gzip_is_read_in_all_its_members(api: Api) -> None:
    body = gzip.compress(b"one ") + gzip.compress(b"two")
    api.answers = [Say(headers={"Content-Encoding": "gzip"}, body=body)]

    assert call(api.url).result["text"] == "one two"
    assert api.asked[0].headers["accept-encoding"] == "gzip"


def test_other_statuses_can_be_expected(api: Api) -> None:
    api.answers = [Say(404, body=b"none")]

    assert call(api.url, expect=[200, 404]).result["status"] == 404
    assert "HTTP 404: none" in ended(call(api.url, expect=[200]), Discard)


# --- later ----------------------------------------------------------------------------------------


def test_retry_after_is_obeyed_to_the_second_and_uses_no_attempt(api: Api) -> None:
    api.answers = [Say(429, {"Retry-After": "17"}), Say(503, {"Retry-After": "0"}), Say()]

    first = call(api.url, method="POST")
    second = call(api.url, method="POST", attempt=2, checkpoint=last(first))
    third = call(api.url, method="POST", attempt=3, checkpoint=last(second))

    assert isinstance(first.error, Snooze)
    assert first.error.delay_s == 17
    assert "HTTP 429" in first.logs
    assert isinstance(second.error, Snooze)
    assert second.error.delay_s == 1
    assert last(second)["put_off_s"] == 18
    assert third.result["status"] == 200
    keys = {asked.headers["idempotency-key"] for asked in api.asked}
    assert len(keys) == 1


def test_a_date_counts_from_the_servers_own_clock(api: Api) -> None:
    now = datetime(2001, 1, 1, tzinfo=UTC)
    then = now + timedelta(seconds=90)
    told = {"Date": format_datetime(now, usegmt=True), "Retry-After": format_datetime(then)}
    api.answers = [Say(503, told)]

    finished = call(api.url)

    assert isinstance(finished.error, Snooze)
    assert finished.error.delay_s == 90


def test_a_date_counts_from_now_where_the_server_tells_no_time() -> None:
    then = datetime.now(UTC) + timedelta(seconds=90)

    waits = retry_after_s({"retry-after": format_datetime(then)})
    past = retry_after_s({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"})

    assert waits is not None
    assert 60 < waits <= 90
    assert past == 0


def test_an_endless_wait_is_cut_to_a_day(api: Api) -> None:
    api.answers = [Say(429, {"Retry-After": "999999999"})]

    finished = call(api.url)

    assert isinstance(finished.error, Snooze)
    assert finished.error.delay_s == 86_400


def test_after_a_day_of_later_each_uses_an_attempt(api: Api) -> None:
    api.answers = [Say(429, {"Retry-After": "60"})]
    so_far = {"out": False, "put_offs": 9, "put_off_s": PUT_OFF_MAX_S}

    finished = call(api.url, checkpoint=so_far)

    assert "put off 9 times before" in ended(finished, Retry)
    assert isinstance(finished.error, Retry)
    assert finished.error.after_s == 60


@pytest.mark.parametrize("told", ["soon", "-5", "Wed, 99 Foo 2026 00:00:00 GMT", "1e9", ""])
def test_what_is_no_time_is_no_later(api: Api, told: str) -> None:
    api.answers = [Say(429, {"Retry-After": told})]

    finished = call(api.url)

    assert isinstance(finished.error, Retry)
    assert finished.error.after_s is None


def test_later_is_obeyed_for_unsafe_calls_too(api: Api) -> None:
    """The API says that it did nothing."""
    api.answers = [Say(429, {"Retry-After": "5"}), Say()]

    first = call(api.url, method="POST", idempotency_header="")
    second = call(api.url, method="POST", idempotency_header="", attempt=2, checkpoint=last(first))

    assert isinstance(first.error, Snooze)
    assert second.result["status"] == 200


# --- what is repeated, and what is not ------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(api: Api, status: int) -> None:
    api.answers = [Say(status, body=b"oh dear")]

    told = ended(call(api.url), Retry)

    assert f"HTTP {status}: oh dear" in told


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 501, 505])
def test_a_refusal_is_final_and_told(api: Api, status: int) -> None:
    api.answers = [Say(status, body=b"no  such\n field" + b"x" * 9000)]

    told = ended(call(api.url, method="POST"), Discard)

    assert f"HTTP {status}: no such field" in told
    assert len(told) < 700


def test_a_refusal_whose_body_does_not_come_is_final_too(api: Api) -> None:
    api.answers = [Say(404, body=b"no", length=9, hang=True)]

    assert ended(call(api.url, timeout_s=20), Discard).endswith("HTTP 404: no")


def test_a_post_whose_answer_is_lost_is_sent_again_with_the_same_key(api: Api) -> None:
    api.answers = ["drop", Say(500), Say()]

    first = call(api.url, method="POST", idempotency_header="X-Request-Key")
    second = call(api.url, method="POST", idempotency_header="X-Request-Key", attempt=2)
    third = call(api.url, method="POST", idempotency_header="X-Request-Key", attempt=3)

    assert "the answer was lost" in ended(first, Retry)
    ended(second, Retry)
    assert third.result["status"] == 200
    assert len({asked.headers["x-request-key"] for asked in api.asked}) == 1
    assert not first.checkpoints


def test_a_key_still_at_work_is_asked_for_again(api: Api) -> None:
    """APIs say 409 to a key whose first call, the one with the lost answer, goes on."""
    api.answers = [Say(409)]

    ended(call(api.url, method="POST", attempt=1), Discard)
    ended(call(api.url, method="POST", attempt=2), Retry)
    ended(call(api.url, method="PUT", attempt=2), Discard)


def test_tasks_have_keys_of_their_own(api: Api) -> None:
    for job_id, task_id in [("a", "0"), ("b", "0"), ("a", "1")]:
        run(call_http, {"url": api.url, "method": "POST"}, job_id=job_id, task_id=task_id)

    assert len({asked.headers["idempotency-key"] for asked in api.asked}) == 3


@pytest.mark.parametrize("answer", ["drop", Say(500), Say(504), Say(body=b"abc", length=9)])
def test_an_unsafe_call_without_a_key_ends_as_unknown_outcome(api: Api, answer: Any) -> None:
    api.answers = [answer]

    finished = call(api.url, method="POST", idempotency_header="")

    assert ended(finished, Discard).startswith("unknown outcome: ")
    assert "idempotency-key" not in api.asked[0].headers


def test_an_unsafe_call_is_not_sent_again_after_the_worker_died(api: Api) -> None:
    how: dict[str, Any] = {"method": "PATCH", "idempotency_header": ""}
    first = call(api.url, **how)

    # As if its success had never been reported.
    second = call(api.url, **how, attempt=2, checkpoint=last(first))

    assert ended(second, Discard).startswith("unknown outcome: an earlier attempt")
    assert len(api.asked) == 1


def test_a_final_refusal_leaves_an_unsafe_call_free_to_be_sent_again(api: Api) -> None:
    how: dict[str, Any] = {"method": "POST", "idempotency_header": ""}
    api.answers = [Say(401), Say()]
    first = call(api.url, **how)
    ended(first, Discard)

    assert call(api.url, **how, attempt=2, checkpoint=last(first)).result["status"] == 200


def test_an_unsafe_call_is_repeated_if_asked_to(api: Api) -> None:
    api.answers = ["drop"]

    finished = call(api.url, method="POST", idempotency_header="", retry_unsafe=True)

    ended(finished, Retry)


def test_a_call_that_never_left_is_repeated_whatever_it_is(api: Api) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]

    first = call(f"http://127.0.0.1:{port}", method="POST", idempotency_header="")
    second = call(api.url, method="POST", idempotency_header="", attempt=2, checkpoint=last(first))

    assert "cannot be reached" in ended(first, Retry)
    assert second.result["status"] == 200


def test_a_name_without_an_address_is_tried_again(api: Api) -> None:
    told = ended(call("http://nowhere.invalid/", method="POST", idempotency_header=""), Retry)

    assert "'nowhere.invalid' has no address" in told


def test_a_slow_server_is_waited_for_no_longer_than_told(api: Api) -> None:
    api.answers = ["hang"]

    safe = call(api.url, timeout_s=0.3)
    unsafe = call(api.url, method="POST", idempotency_header="", timeout_s=0.3)

    assert "no full answer within 0.3 s" in ended(safe, Retry)
    assert ended(unsafe, Discard).startswith("unknown outcome: no full answer within 0.3 s")
    assert api.hung_up.wait(5)


def test_a_body_that_breaks_off_is_asked_for_again(api: Api) -> None:
    whole = gzip.compress(os.urandom(100_000))
    api.answers = [Say(body=b"abc", length=9)]

    ended(call(api.url), Retry)

    api.answers = [Say(headers={"Content-Encoding": "gzip"}, body=whole[:50_000])]
    assert "gzip that breaks off" in ended(call(api.url), Discard)


# --- too much -------------------------------------------------------------------------------------


def test_a_bomb_is_put_down_before_it_fills_memory(api: Api) -> None:
    bomb = gzip.compress(bytes(200 << 20), 1)
    api.answers = [Say(headers={"Content-Encoding": "gzip"}, body=bomb)]
    call(f"{api.url}/first", expect=[204])

    tracemalloc.start()
    finished = call(api.url)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert "it is over 100 MiB" in ended(finished, Discard)
    assert peak < 8 << 20
    assert not finished.files


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "deflate", "nonsense"])
def test_encodings_that_were_not_asked_for_are_refused(api: Api, encoding: str) -> None:
    api.answers = [Say(headers={"Content-Encoding": encoding}, body=b"abc")]

    assert "only gzip was asked for" in ended(call(api.url), Discard)


def test_gzip_that_is_none_is_refused(api: Api) -> None:
    api.answers = [Say(headers={"Content-Encoding": "gzip"}, body=b"plain")]

    assert "it is no gzip" in ended(call(api.url), Discard)


def test_an_endless_header_is_refused(api: Api) -> None:
    api.answers = [Say(headers={"X-Long": "x" * 500_000})]

    ended(call(api.url), Retry)


# --- redirects ------------------------------------------------------------------------------------


def test_a_redirect_is_told_and_followed_only_if_asked(api: Api) -> None:
    api.answers = [Say(302, {"Location": "/there"}), Say(302, {"Location": "/there"}), Say()]

    told = ended(call(api.url), Discard)
    followed = call(api.url, allow_redirects=True)

    assert "it leads to /there" in told
    assert followed.result["status"] == 200
    assert api.asked[-1].path == "/there"


@pytest.mark.parametrize(
    "where",
    [
        "http://10.0.0.1/",
        "http://localhost:1/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://user:pass@127.0.0.1/",
        "http://2130706433/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
    ],
)
def test_a_redirect_goes_no_further_than_a_call(
    api: Api, names: dict[str, list[list[str]]], where: str
) -> None:
    names["localhost"] = [["127.0.0.2"]]
    api.answers = [Say(307, {"Location": where})]

    told = ended(call(api.url, allow_redirects=True), Discard)

    assert told.startswith("url: ")
    assert len(api.asked) == 1


def test_redirects_in_a_circle_end(api: Api) -> None:
    api.answers = [Say(302, {"Location": "/"})]

    assert "over 5 redirects" in ended(call(api.url, allow_redirects=True), Discard)
    assert len(api.asked) == 6


def test_what_a_redirect_follows_counts_as_sent(api: Api) -> None:
    """The POST was taken; that its answer lies where nobody listens does not undo it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    api.answers = [Say(303, {"Location": f"http://127.0.0.1:{port}/"})]

    finished = call(api.url, method="POST", idempotency_header="", allow_redirects=True)

    assert ended(finished, Discard).startswith("unknown outcome: ")


def test_later_behind_a_redirect_does_not_repeat_what_was_taken(api: Api) -> None:
    api.answers = [Say(303, {"Location": "/receipt"}), Say(429, {"Retry-After": "5"})]

    finished = call(api.url, method="POST", idempotency_header="", allow_redirects=True)

    assert ended(finished, Discard).startswith("unknown outcome: ")


# --- secrets --------------------------------------------------------------------------------------


def test_a_secret_goes_to_its_origin_and_is_masked_in_what_comes_back(api: Api) -> None:
    api.answers = [
        Say(
            headers={"Content-Type": "application/json", "X-Request-Id": "for-abcdefgh12"},
            body=b'{"you sent": "abcdefgh12", "all": ["Bearer abcdefgh12"]}',
        ),
        Say(400, body=b"bad token abcdefgh12"),
    ]
    how: dict[str, Any] = {
        "secret_headers": {"Authorization": "http_bank"},
        "secrets": {"http_bank": f"{api.url} Bearer abcdefgh12"},
    }

    finished = call(api.url, **how)
    told = ended(call(api.url, **how), Discard)

    assert api.asked[0].headers["authorization"] == "Bearer abcdefgh12"
    assert "abcdefgh12" not in json.dumps(finished.result) + told
    assert finished.result["json"]["you sent"] == "***"


def test_a_secret_does_not_follow_a_redirect_elsewhere(api: Api) -> None:
    other = Api()
    try:
        api.answers = [Say(307, {"Location": "/here"}), Say(307, {"Location": other.url})]
        call(
            api.url,
            allow_redirects=True,
            secret_headers={"X-Api-Key": "http_bank"},
            secrets={"http_bank": f"{api.url}/ abcdefgh12"},
        )
    finally:
        other.close()

    assert [asked.headers.get("x-api-key") for asked in api.asked] == ["abcdefgh12"] * 2
    assert "x-api-key" not in other.asked[0].headers


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ("https://127.0.0.1 Bearer abc", "is not for the url's origin"),
        ("http://127.0.0.1 Bearer abc", "is not for the url's origin"),
        ("Bearer abc", "write it as the origin"),
        ("http://127.0.0.1/path Bearer", "write it as the origin"),
        ("http://127.0.0.1", "write it as the origin"),
        ("http://127.0.0.1 a\r\nHost: b", "write it as the origin"),
        ("", "write it as the origin"),
    ],
)
def test_a_secret_for_another_or_none_is_not_sent(api: Api, secret: str, told: str) -> None:
    finished = call(api.url, secret_headers={"X-Key": "http_a"}, secrets={"http_a": secret})

    assert told in ended(finished, Discard)
    assert not api.asked


def test_only_secrets_meant_for_calls_can_be_named(api: Api) -> None:
    with pytest.raises(ValidationError, match="secret_headers"):
        HttpParams.model_validate({"url": api.url, "secret_headers": {"X-Key": "smtp_url"}})
    with pytest.raises(InvalidInput, match="http_gone"):
        _ = call(api.url, secret_headers={"X-Key": "http_gone"}).result


# --- params ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"headers": {"X-A": "b\r\nHost: evil"}}, "headers"),
        ({"headers": {"X-A": "b\n"}}, "headers"),
        ({"headers": {"X-A\r\nB": "c"}}, "headers"),
        ({"headers": {"X A": "c"}}, "headers"),
        ({"headers": {"": "c"}}, "headers"),
        ({"headers": {"X-A": " c"}}, "headers"),
        ({"headers": {"X-A": "\u0100"}}, "headers"),
        ({"headers": {"Host": "evil"}}, "headers"),
        ({"headers": {"content-LENGTH": "5"}}, "headers"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "headers"),
        ({"headers": {"Authorization": "Bearer abc"}}, "secret_headers"),
        ({"headers": {"cookie": "a=b"}}, "secret_headers"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "given twice"),
        ({"headers": {"idempotency-key": "1"}}, "given twice"),
        ({"idempotency_header": "a b"}, "idempotency_header"),
        ({"idempotency_header": "Host"}, "host"),
        ({"method": "CONNECT"}, "method"),
        ({"method": "get"}, "method"),
        ({"body": {"a": 1}}, "body"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"timeout_s": "inf"}, "timeout_s"),
        ({"timeout_s": 1e9}, "timeout_s"),
        ({"expect": [99]}, "expect"),
        ({"expect": [1000]}, "expect"),
        ({"save": "never"}, "save"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_params_that_cannot_be_are_refused(params: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=f"(?i){field}"):
        HttpParams.model_validate({"url": "https://api.example.com", **params})


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.example.com", "//api.example.com", "ftp://api.example.com", "http://"),
        *("http:///a", "http://user@host/", "http://u:p@host/", "http://a@b@c/", "http://host:0/"),
        *("http://host:99999/", "http://host:a/", "http://a b/", "http://a/ b", "http://a\\@b/"),
        *("http://a\r\nb/", "http://a/\x00", "http://exa\u0301mple.com/", "http://a..b/"),
        *(
            "http://.../",
            "http://-a.com/",
            "http://a%2eb/",
            "http://[::1/",
            "http://[fe80::1%25a]/",
        ),
        *("http://127.1/", "http://0x7f000001/", "http://017700000001/", "http://1.2.3.04/"),
        *("http://2130706433/", "http://a.0x1/", "http://" + "a" * 64 + ".com/"),
        "http://a/" + "b" * 2048,
    ],
)
def test_urls_that_lead_nowhere_or_here_and_there_are_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        HttpParams.model_validate({"url": url})


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://API.Example.com", "api.example.com"),
        ("https://api.example.com.:443/a?b#c", "api.example.com"),
        ("HTTP://api.example.com:80", "api.example.com"),
        ("http://api.example.com:443", "api.example.com:443"),
        ("https://api.example.com:8443/", "api.example.com:8443"),
        ("https://[2001:DB8:0::1]:8443/", "[2001:db8::1]:8443"),
        ("https://192.0.2.1", "192.0.2.1"),
        ("https://my_service.xn--bcher-kva.example?x", "my_service.xn--bcher-kva.example"),
    ],
)
def test_a_host_has_one_spelling(url: str, host: str) -> None:
    assert HttpParams(url=url).host == host
    assert Place.of(url).shown == host


def test_all_calls_to_a_host_share_a_limit() -> None:
    params = HttpParams(url="https://API.example.com/a")

    assert call_http.limits == ("http:{host}",)
    assert params.model_dump(mode="json", include={"host"}) == {"host": "api.example.com"}
    assert HttpParams.model_validate_json(params.model_dump_json()) == params


# --- where it may go ------------------------------------------------------------------------------

PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1"),
    *("172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200"),
    *("192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "::7f00:1"),
    *("64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2002:7f00:1::", "2002:a00:1::1", "3fff::1"),
    *("5f00::1", "4000::1", "::ffff:0:127.0.0.1"),
]
PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "168.63.129.17", "223.255.255.255"),
    *("2606:4700:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert Allowed().refuses(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not(address: str) -> None:
    assert not Allowed().refuses(address)


def test_the_operator_opens_networks_and_no_more() -> None:
    allowed = Allowed.parse(" 10.1.0.0/16, ::1/128,127.0.0.1 ")

    assert not allowed.refuses("10.1.2.3")
    assert not allowed.refuses("::ffff:10.1.2.3")
    assert not allowed.refuses("127.0.0.1")
    assert not allowed.refuses("::1")
    assert not allowed.refuses("8.8.8.8")
    assert allowed.refuses("10.2.0.1")
    assert allowed.refuses("127.0.0.2")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "all", "10.0.0.0/99", "localhost"])
def test_networks_that_are_none_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match=HTTP_ALLOW_ENV):
        Allowed.parse(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_a_call_inside_is_refused_unless_opened(
    api: Api, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.delenv(HTTP_ALLOW_ENV)

    told = ended(call(f"http://{host}:{api.port}/"), Discard)

    assert f"the operator can open its network with {HTTP_ALLOW_ENV}" in told
    assert api.connections == 0


def test_a_name_with_one_address_inside_is_refused(
    api: Api, names: dict[str, list[list[str]]]
) -> None:
    names["both.example"] = [["127.0.0.1", "10.0.0.1"]]

    told = ended(call(f"http://both.example:{api.port}/"), Discard)

    assert "'both.example' leads to an address that is not public" in told
    assert "10.0.0.1" not in told
    assert api.connections == 0


def test_a_name_that_changes_its_answer_gains_nothing(
    api: Api, names: dict[str, list[list[str]]]
) -> None:
    names["rebinding.example"] = [["127.0.0.1"], ["10.0.0.1"]]

    finished = call(f"http://rebinding.example:{api.port}/")

    assert finished.result["status"] == 200
    assert api.asked[0].headers["host"] == f"rebinding.example:{api.port}"
    # It was asked for once: the other answer is still there.
    assert names["rebinding.example"] == [["10.0.0.1"]]


def test_the_next_address_is_tried_where_the_first_is_silent(
    api: Api, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HTTP_ALLOW_ENV, "127.0.0.0/8")
    names["two.example"] = [["127.0.0.2", "127.0.0.1"]]

    assert call(f"http://two.example:{api.port}/").result["status"] == 200


def test_proxies_and_passwords_of_the_environment_are_not_used(
    api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password abc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    assert call(api.url).result["status"] == 200
    assert "authorization" not in api.asked[0].headers


@pytest.mark.skipif(
    shutil.which("openssl") is None and "CI" not in os.environ,
    reason="makes its certificate by openssl",
)
def test_the_certificate_is_that_of_the_name(
    api: Api,
    names: dict[str, list[list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=api.example"),
            *("-addext", "subjectAltName=DNS:api.example"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    api.use_tls(tmp_path)
    names["api.example"] = names["other.example"] = [["127.0.0.1"]]
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    transport._tls.cache_clear()

    try:
        finished = call(f"https://api.example:{api.port}/")
        other = call(f"https://other.example:{api.port}/", method="POST", idempotency_header="")
    finally:
        transport._tls.cache_clear()

    assert finished.result["status"] == 200
    assert "CERTIFICATE_VERIFY_FAILED" in ended(other, Retry)


# --- on a worker ----------------------------------------------------------------------------------


async def test_a_cancel_ends_the_call_at_once(api: Api, tmp_path: Path) -> None:
    api.answers = [Say(body=b"done"), "hang"]
    manager = ScriptedManager()
    worker = Worker(
        name="w1",
        pool="io",
        queues=["io"],
        concurrency=2,
        mode="async",
        store_url=str(tmp_path / "store"),
        job_modules=[],
        manager=manager,
        times=WorkerTimes(heartbeat_s=0.5),
    )
    running = asyncio.create_task(worker.run())
    outcomes: list[Outcome] = []
    try:
        for _ in range(2):
            params = {"url": api.url, "method": "POST", "idempotency_header": ""}
            outcomes.append(await _outcome(manager, api, params, stop=len(outcomes) == 1))
    finally:
        worker.stop()
        await running

    assert [one.kind for one in outcomes] == ["ok", "stopped"]
    assert await asyncio.to_thread(api.hung_up.wait, 5)


async def _outcome(
    manager: ScriptedManager, api: Api, params: dict[str, Any], *, stop: bool
) -> Outcome:
    token = manager.submit("http.call", params, grace_s=60)
    if stop:
        await eventually(lambda: len(api.asked) == 2, within_s=10)
        manager.stops.append(OrderlyStop(token, "cancel"))
        manager.wake()
    return await manager.outcome(token, within_s=10)
