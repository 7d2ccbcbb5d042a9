"""How the bucket's store takes the answers of a bucket in trouble.

The other end is a real HTTP server on loopback that answers by script; a real S3 is in
`tests/conformance`.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.store.journal import Journal
from cluster.store.objects import RemoteObjects, probe
from cluster.store.segment import Rows, SegmentHeader
from jobs.errors import Corrupt, InvalidInput, Unavailable

OK = (200, "")
SLOW_DOWN = (503, "SlowDown")
CONFLICT = (409, "ConditionalRequestConflict")
EXISTS = (412, "PreconditionFailed")
FORBIDDEN = (403, "InvalidAccessKeyId")
NO_BUCKET = (404, "NoSuchBucket")
#: The request is carried out, and the line goes dead before the answer.
STORED_BUT_SILENT = (0, "")


class ScriptedBucket(ThreadingHTTPServer):
    """Answers by script; when that ends, or before, as an S3 of one flat dict would."""

    daemon_threads = True

    def __init__(self, *, conditional: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: deque[tuple[int, str]] = deque()
        self.repeats: tuple[int, str] | None = None
        self.pages: list[str] = []
        self.conditional = conditional
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []

    def next_answer(self) -> tuple[int, str] | None:
        return self.script.popleft() if self.script else self.repeats


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedBucket

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append("PUT")
        answer = self.server.next_answer()
        if answer is not None and answer not in (OK, STORED_BUT_SILENT):
            self._answer(*answer)
            return
        conditional = "If-None-Match" in self.headers and self.server.conditional
        if conditional and self.path in self.server.stored:
            self._answer(*EXISTS)
            return
        self.server.stored[self.path] = body
        if answer == STORED_BUT_SILENT:
            self.close_connection = True
        else:
            self._answer(200, "")

    def do_GET(self) -> None:
        self.server.requests.append("GET")
        if answer := self.server.next_answer():
            self._answer(*answer)
        elif "list-type" in self.path:
            self._send(200, self.server.pages.pop(0).encode())
        elif self.path in self.server.stored:
            self._send(200, self.server.stored[self.path])
        else:
            self._answer(404, "NoSuchKey")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(200, b"<DeleteResult></DeleteResult>")

    def _answer(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code></Error>" if code else ""
        self._send(status, body.encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"etag"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedBucket]:
    server = ScriptedBucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def objects(bucket: ScriptedBucket, pauses: list[float]) -> RemoteObjects:
    return RemoteObjects("s3://bucket/folder/", sleep=pauses.append)


def test_busy_bucket_is_asked_again(bucket: ScriptedBucket, objects: RemoteObjects) -> None:
    bucket.script.extend([SLOW_DOWN, SLOW_DOWN])

    assert objects.put_if_absent("a", b"x")
    assert bucket.stored == {"/bucket/folder/a": b"x"}


def test_bucket_that_stays_busy_is_unavailable_with_its_reason(
    bucket: ScriptedBucket, objects: RemoteObjects, pauses: list[float]
) -> None:
    bucket.repeats = SLOW_DOWN

    with pytest.raises(Unavailable, match=r"create 'a' in s3://bucket/folder: .*503.*SlowDown"):
        objects.put_if_absent("a", b"x")

    assert len(pauses) == 3
    assert 0.05 <= pauses[0] <= 0.15
    assert 0.2 <= pauses[2] <= 0.6


def test_conditional_conflict_is_asked_again_not_taken_for_exists(
    bucket: ScriptedBucket, objects: RemoteObjects
) -> None:
    bucket.script.extend([CONFLICT, CONFLICT])

    assert objects.put_if_absent("a", b"x")


def test_lasting_conditional_conflict_is_unavailable_not_exists(
    bucket: ScriptedBucket, objects: RemoteObjects
) -> None:
    bucket.repeats = CONFLICT

    with pytest.raises(Unavailable, match="409"):
        objects.put_if_absent("a", b"x")


def test_commit_whose_answer_was_lost_is_settled_as_ours(
    bucket: ScriptedBucket, objects: RemoteObjects
) -> None:
    bucket.script.append(STORED_BUT_SILENT)
    header = SegmentHeader(number=1, epoch=1, nonce="n", journal_id="j", first_seq=1, rows=1)
    rows = Rows([1], [0.5], ["K"], ["j"], [None], [None], [None], [b"{}"])

    Journal(objects).append(header, rows)

    assert bucket.requests == ["PUT", "PUT", "GET"]


def test_refused_credentials_name_the_settings_at_once(
    bucket: ScriptedBucket, objects: RemoteObjects, pauses: list[float]
) -> None:
    bucket.repeats = FORBIDDEN

    calls: list[Callable[[], object]] = [
        lambda: objects.put("a", b""),
        lambda: list(objects.list("")),
    ]

    for call in calls:
        with pytest.raises(Unavailable, match=r"InvalidAccessKeyId.*check AWS_ACCESS_KEY_ID"):
            call()
    assert pauses == []


def test_missing_bucket_is_the_settings_fault(
    bucket: ScriptedBucket, objects: RemoteObjects
) -> None:
    bucket.repeats = NO_BUCKET

    calls: list[Callable[[], object]] = [
        lambda: objects.put_if_absent("a", b""),
        lambda: objects.get("a"),
        lambda: list(objects.list("")),
    ]

    for call in calls:
        with pytest.raises(InvalidInput, match="no such bucket; create it first"):
            call()


def test_listing_that_fails_half_way_is_not_taken_for_the_end(
    bucket: ScriptedBucket, objects: RemoteObjects
) -> None:
    keys = "".join(
        f"<Contents><Key>folder/{n}</Key><Size>0</Size><ETag>e</ETag>"
        "<LastModified>2024-01-01T00:00:00Z</LastModified></Contents>"
        for n in range(1000)
    )
    bucket.pages.append(
        f"<ListBucketResult>{keys}<IsTruncated>true</IsTruncated>"
        "<NextContinuationToken>more</NextContinuationToken></ListBucketResult>"
    )
    listing = objects.list("")
    next(listing)
    bucket.repeats = SLOW_DOWN

    with pytest.raises(Unavailable, match="cannot list"):
        list(listing)


def test_store_that_ignores_conditions_is_refused_by_the_probe(
    bucket: ScriptedBucket, objects: RemoteObjects
) -> None:
    bucket.conditional = False

    with pytest.raises(InvalidInput, match="ignores conditional puts"):
        probe(objects)


def test_damaged_segment_in_a_bucket_is_corrupt(
    bucket: ScriptedBucket, objects: RemoteObjects
) -> None:
    journal = Journal(objects)
    bucket.stored["/bucket/folder/" + journal.path(1)] = b"half"
    header = SegmentHeader(number=1, epoch=1, nonce="n", journal_id="j", first_seq=1, rows=0)

    with pytest.raises(Corrupt, match=journal.path(1)):
        journal.append(header, Rows())
