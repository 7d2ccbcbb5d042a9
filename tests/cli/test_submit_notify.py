"""`--webhook` and `--notify` of `drayman submit` and `drayman schedule put`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.library.notify_email import notify_email
from jobs.library.notify_push import notify_push
from jobs.library.notify_webhook import notify_webhook
from tests.cli.conftest import Drayman, Server
from tests.support.bundles import shop

HOOK = "https://shop.example.com/hooks?a=b:c&d=failed"
PUSH = {
    "endpoint": "https://push.example.com/abc",
    "expirationTime": None,
    "keys": {"p256dh": "B" + "AE" + "BAQE" * 21, "auth": "MDEyMzQ1Njc4OWFiY2RlZg"},
}
SUBMIT = ["submit", "greet", "--param", "name=Ada"]
ENDED = ["completed", "failed"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(notify_webhook, notify_email, notify_push)
    server.start()
    yield server
    server.stop()


def told(connected: Drayman, job_id: str) -> list[tuple[list[str], str, str]]:
    """Return on what whom is told of the job, and by which type."""
    job = json.loads(connected("status", job_id.strip(), "--json").out)
    return [(one["on"], one["type"], one["to"]) for one in job["notify"]]


def test_those_named_are_told_of_what_was_asked_for(connected: Drayman, tmp_path: Path) -> None:
    (tmp_path / "push.json").write_text(json.dumps(PUSH))

    ran = connected(
        *SUBMIT,
        *("--webhook", HOOK, "--webhook", "billing"),
        *("--notify", "email:ann@example.org"),
        *("--notify", "started,cancelled=email:ann@example.org, bob@example.org"),
        *("--notify", f"failed=webhook:{HOOK}"),
        *("--notify", f"push:@{tmp_path}/push.json"),
    )

    assert ran.code == 0, ran.err
    shown = connected("status", ran.out.strip()).out
    assert "ann@example.org when completed, failed (notify.email)" in shown
    assert f"{HOOK} when failed (notify.webhook)" in shown
    assert told(connected, ran.out) == [
        (ENDED, "notify.email", "ann@example.org"),
        (["started", "cancelled"], "notify.email", "ann@example.org, bob@example.org"),
        (["failed"], "notify.webhook", HOOK),
        (ENDED, "notify.push", PUSH["endpoint"]),
        (ENDED, "notify.webhook", HOOK),
        (ENDED, "notify.webhook", "billing"),
    ]


def test_a_job_that_brings_its_code_tells_too(
    server: Server, drayman: Drayman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop(tmp_path, "v1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAYMAN_URL", server.url)
    monkeypatch.setenv("DRAYMAN_TOKEN", server.token("ops", "admin"))

    ran = drayman(
        "submit", "--jobs", "shop", "shop.invoice", "--param", "cents=5", "--webhook", HOOK
    )

    assert ran.code == 0, ran.err
    assert told(drayman, ran.out) == [(ENDED, "notify.webhook", HOOK)]


def test_the_jobs_of_a_schedule_tell_too(connected: Drayman) -> None:
    put = ["schedule", "put", "nightly", "--cron", "@daily", "greet", "name=Ada"]
    assert connected(*put, "--notify", "failed=email:ann@example.org", "--webhook", HOOK).code == 0

    ran = connected("schedule", "run", "nightly")

    assert ran.code == 0, ran.err
    assert told(connected, ran.out) == [
        (["failed"], "notify.email", "ann@example.org"),
        (ENDED, "notify.webhook", HOOK),
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--notify", "ann@example.org"], "--notify 'ann@example.org': write email:ADDRESS"),
        (["--notify", "sms:1"], "--notify 'sms:1': write email:ADDRESS"),
        (["--notify", "email:"], "--notify 'email:': write email:ADDRESS"),
        (["--notify", "push:{"], "--notify push is not JSON"),
        (["--notify", "push:[1]"], "--notify push must be a JSON object"),
        (["--notify", "push:@nosuch.json"], "--notify push: [Errno 2]"),
        (["--notify", "push:{}"], "notify.0.push.endpoint: "),
        (["--notify", "exploded=email:a@example.org"], "notify.0.on.0: "),
        (["--notify", "=email:a@example.org"], "notify.0.on.0: "),
        (["--notify", "email:a@example.org", "--notify", "email:ann"], "notify.1.email.0: "),
        (["--notify", "email:a@example.org,,b@example.org"], "notify.0.email.1: "),
        (["--webhook", "ftp://example.org/"], "notify.0.webhook: "),
        (["--webhook", ""], "notify.0.webhook: "),
        (["--webhook", HOOK] * 11, "notify: "),
    ],
)
def test_what_is_wrong_is_named(connected: Drayman, given: list[str], reason: str) -> None:
    ran = connected(*SUBMIT, *given)

    assert (ran.code, ran.out) == (2, "")
    assert reason in plain(ran.err)


def plain(text: str) -> str:
    """Return what a box says, on one line."""
    return " ".join(text.replace("│", " ").split())
