"""A campaign to a real mail server: whoever dies on the way, nobody gets a mail twice."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.client import ApiError, Client, Job
from tests.support.live import LiveDrayman, kill, until
from tests.support.post import Post, posting

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(400)]

#: Who was put off is asked again after half a minute, and so is a batch whose handler died.
DONE_S = 180.0
PEOPLE, BATCH, BATCHES = 40, 8, 5
#: When somebody dies: after so many mails.
STRIKES = (8, 20)
MAIL = {"subject": "News for {{name}}", "text": "Dear {{name}},\n\nnews.", "batch": BATCH}


@pytest.fixture(scope="module")
def post() -> Iterator[Post]:
    with posting() as post:
        yield post


@pytest.fixture(scope="module")
def own(post: Post, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDrayman]:
    """A Drayman whose workers were told of this server, as an operator does it."""
    live = LiveDrayman(tmp_path_factory.mktemp("campaign"), options=["--no-dashboard"])
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DRAYMAN_SECRET_SMTP_URL", post.url)
            live.up()
        yield live
    finally:
        live.close()


@pytest.fixture
def client(own: LiveDrayman) -> Iterator[Client]:
    with own.client() as client:
        yield client


def address(who: str, number: int) -> str:
    return f"{who}{number}@example.org"


def upload(client: Client, path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(client.upload(path)["uri"])


def mails(post: Post, who: str) -> Counter[str]:
    """Return how many mails each of these people has."""
    return Counter(to for tos, _ in list(post.got) for to in tos if to.startswith(who))


def told(client: Client, job: Job, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the job's file says of each address."""
    (file,) = [file for file in client.files(job["id"]) if file["name"] == "results.ndjson"]
    lines = client.download(file, folder).read_text().splitlines()
    return {line["email"]: line for line in map(json.loads, lines)}


def handler_at(port: int) -> int:
    """Return the process that talks from this port; 0: it is dead already."""
    found = psutil.net_connections("tcp4")
    return next((int(one.pid) for one in found if one.pid and one.laddr.port == port), 0)


def worker_of(client: Client, job_id: str) -> int:
    """Return the process of a worker that runs some of the job."""
    running = [one["worker"] for one in client.attempts(job_id) if one["outcome"] == "running"]
    return next(int(one["pid"]) for one in client.workers() if one["name"] in running)


def test_whoever_dies_in_the_middle_each_gets_one_mail_and_the_job_says_who(
    client: Client, post: Post, tmp_path: Path
) -> None:
    """A server has a mail, and before it can say so the handler is dead, and later the worker.

    One process runs all batches, so each may lose the answer to one mail.
    """
    refused, unwanted = ([address("p", n) for n in some] for some in ((0, 34), (5, 30)))
    post.refuses = {to: ["550 no such user"] * 9 for to in refused}
    struck: list[str] = []

    def strike(to: str, port: int) -> None:
        due = len(struck) < len(STRIKES) and mails(post, "p").total() >= STRIKES[len(struck)]
        if due and (handler := handler_at(port)):
            kill(worker_of(client, job["id"]) if struck else handler)
            struck.append(to)

    post.before = strike
    rows = [f"{address('p', n)},P{n}" for n in range(PEOPLE)]
    repeated = address("P", 1).upper()
    source = upload(client, tmp_path / "list.csv", ["email,name", *rows, f"{repeated},P1"])
    suppress = upload(client, tmp_path / "out.txt", [unwanted[0], unwanted[1].upper()])

    job: Job = client.submit("email.campaign", {"source": source, "suppress": suppress, **MAIL})
    job = client.wait(job["id"], DONE_S)

    assert (job["status"], len(struck)) == ("completed", len(STRIKES)), job
    lines = told(client, job, tmp_path)
    who: dict[str, set[str]] = {}
    for line in lines.values():
        who.setdefault(line["status"], set()).add(line["email"])
    assert who["refused"] == set(refused)
    assert all(lines[to]["reason"] == "550 no such user" for to in refused)
    # Asked again only if the one who was told died before it noted that.
    assert all(len(post.refuses[to]) >= 9 - 1 - len(struck) for to in refused)
    assert who["suppressed"] == set(unwanted)
    assert who["repeated"] == {repeated}
    # Nobody can know of these, whose sender died as the server took the mail.
    assert struck[0] in who["unknown"]
    assert len(who["unknown"]) <= len(struck) * BATCHES
    wanted = {address("p", n) for n in range(PEOPLE)} - {*refused, *unwanted}
    assert who["sent"] | who["unknown"] == wanted
    got = mails(post, "p")
    assert {got[to] for to in who["sent"].union(struck)} == {1}
    assert {got[to] for to in who["unknown"]} <= {0, 1}
    assert got.keys() <= wanted
    result = job["result"]
    assert {name: result[name] for name in who} == {name: len(who[name]) for name in who}
    assert job["recoveries"] >= 1  # a worker was lost
    with pytest.raises(ApiError, match="failed"):
        client.retry(job["id"])
    assert mails(post, "p") == got


@pytest.mark.parametrize("how", ["retry", "redrive"])
def test_a_failed_campaign_that_goes_on_mails_only_those_who_have_nothing(
    client: Client, post: Post, tmp_path: Path, how: str
) -> None:
    """Everyone of the second batch is refused until somebody mends that; one is put off."""
    batch = 10
    people = [address(how, n) for n in range(3 * batch)]
    refused, later = people[batch : 2 * batch], people[5]
    post.refuses = {to: ["550 not from you"] for to in refused} | {later: ["451 try later"]}
    recipients = [{"email": to, "name": "you"} for to in people]
    params = {"recipients": recipients, **MAIL, "batch": batch}

    job = client.wait(client.submit("email.campaign", params)["id"], DONE_S)
    assert job["status"] == "failed"
    before = mails(post, how)
    if how == "retry":
        client.retry(job["id"])
    else:
        assert client.redrive(ids=[job["id"]]) == 1
    until(lambda: client.status(job["id"])["status"] != "failed")
    job = client.wait(job["id"], DONE_S)

    assert job["status"] == "completed", job
    assert before.keys().isdisjoint(refused)
    assert not any(post.refuses.values())
    assert mails(post, how) == dict.fromkeys(people, 1)
    assert {line["status"] for line in told(client, job, tmp_path).values()} == {"sent"}
