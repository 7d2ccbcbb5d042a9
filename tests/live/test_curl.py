"""The API with curl alone, as in the README: nothing of ours on the client's side."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.live import LiveDrayman, run, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


Curl = Callable[..., Answer]


@pytest.fixture
def curl(drayman: LiveDrayman, tmp_path: Path) -> Iterator[Curl]:
    def call(path: str, *options: str, token: str | None = None) -> Answer:
        head, body = tmp_path / "head", tmp_path / "body"
        shown = run(
            [
                *("curl", "--silent", "--show-error", "--max-time", "60", "--noproxy", "*"),
                # A disk that stands still is answered 503, and when to come again.
                *("--retry", "30", "--retry-max-time", "60", "-o", str(body)),
                *("-D", str(head), "-H", f"Authorization: Bearer {token or drayman.said['token']}"),
                *options,
                f"{drayman.url}{path}",
            ]
        )
        assert shown.returncode == 0, shown.stderr
        # Each try has a head; a large body is announced first, and `100 Continue` has one, too.
        first, *rest = head.read_text().strip().split("\n\n")[-1].splitlines()
        headers = dict(line.lower().split(": ", 1) for line in rest if ": " in line)
        return Answer(int(first.split()[1]), headers, body.read_text())

    return call


def submission(body: dict[str, Any], key: str) -> list[str]:
    return ["-H", f"Idempotency-Key: {key}", "-d", json.dumps(body)]


def test_submit_repeat_status_result_and_list(curl: Curl, tmp_path: Path) -> None:
    key, path = str(uuid.uuid4()), tmp_path / "effects"
    body = {"type": "live.effect", "params": {"path": str(path)}, "labels": {"curl": key}}

    first = curl("/v1/jobs", *submission(body, key))
    again = curl("/v1/jobs", *submission(body, key))
    other = curl("/v1/jobs", *submission(body | {"params": {"path": "elsewhere"}}, key))

    job_id = first.json["id"]
    assert (first.status, again.status) == (202, 202)
    assert first.headers["location"] == f"/v1/jobs/{job_id}"
    assert "idempotency-replayed" not in first.headers
    assert again.json["id"] == job_id
    assert again.headers["idempotency-replayed"] == "true"
    assert (other.status, other.headers["content-type"]) == (422, "application/problem+json")
    assert other.json["type"].endswith("/key-reused")

    waited = curl(f"/v1/jobs/{job_id}", "-H", "Prefer: wait=30")
    result = curl(f"/v1/jobs/{job_id}/result")
    listed = curl(f"/v1/jobs?label=curl={key}")

    assert waited.json["status"] == "completed"
    assert (result.status, result.json) == (200, job_id)
    assert [job["id"] for job in listed.json["jobs"]] == [job_id]
    assert path.read_text() == f"{job_id}\n"


def test_cancel_stops_a_running_job(curl: Curl, tmp_path: Path) -> None:
    begun, opened = tmp_path / "begun", tmp_path / "never"
    params = {"begun": str(begun), "opened": str(opened)}
    job_id = curl("/v1/jobs", "-d", json.dumps({"type": "live.gate", "params": params})).json["id"]
    until(begun.exists)

    cancelled = curl(f"/v1/jobs/{job_id}/cancel", "-X", "POST")
    ended = curl(f"/v1/jobs/{job_id}", "-H", "Prefer: wait=30")
    result = curl(f"/v1/jobs/{job_id}/result")

    assert cancelled.status == 202
    assert (ended.json["status"], ended.json["reason"]) == ("cancelled", "cancelled")
    assert (result.status, result.headers["content-type"]) == (409, "application/problem+json")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"type": "live.effect"', 400),
        ('{"type": "no.such"}', 422),
        ('{"type": "live.effect", "params": {"path": 5}}', 422),
    ],
)
def test_bad_input_is_a_problem(curl: Curl, body: str, status: int) -> None:
    answer = curl("/v1/jobs", "-d", body)

    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["status"] == status


def test_a_wrong_token_is_refused(curl: Curl) -> None:
    answer = curl("/v1/jobs", token="dray_wrong")

    assert (answer.status, answer.headers["content-type"]) == (401, "application/problem+json")


def test_a_job_larger_than_the_limit_is_pointed_to_uploads(curl: Curl, tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    large.write_text(json.dumps({"type": "live.effect", "params": {"path": "x" * (2 << 20)}}))

    answer = curl("/v1/jobs", "-d", f"@{large}")

    assert (answer.status, answer.headers["content-type"]) == (413, "application/problem+json")
    assert "/v1/uploads" in answer.text
