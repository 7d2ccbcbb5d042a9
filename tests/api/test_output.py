"""What a job left behind: result, files in ranges, logs; and no way out of its folder."""

import hashlib
from typing import Any

import httpx
import pytest

from cluster.protocol import FileInfo
from tests.support.api import RunningApi, file_in

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}
DATA = bytes(range(256)) * 20
NAME = 'the "report" é.pdf'


@pytest.fixture
async def done(api: RunningApi, acme: httpx.AsyncClient) -> str:
    """The path of a completed job with a file and a result."""
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    info = file_in(api.store, NAME, DATA, "application/pdf")
    await api.worker.succeed({"pages": 3}, files=[info])
    return f"/v1/jobs/{job['id']}"


async def file_url(client: httpx.AsyncClient, job: str) -> str:
    [file] = (await client.get(f"{job}/files")).json()["files"]
    return str(file["href"])


async def test_result_is_what_the_handler_returned(acme: httpx.AsyncClient, done: str) -> None:
    answer = await acme.get(f"{done}/result")

    assert (answer.json(), answer.headers["content-type"]) == ({"pages": 3}, "application/json")
    assert (await acme.get(done)).json()["result"] == {"pages": 3}


async def test_large_result_comes_from_the_store(api: RunningApi, acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    api.store.put("results/large.json", b'"' + b"x" * 3_000_000 + b'"')
    await api.worker.succeed(ref="results/large.json")

    answer = await acme.get(job["links"]["result"])

    assert answer.json() == "x" * 3_000_000
    shown = (await acme.get(job["links"]["self"])).json()
    assert shown["result"] is None
    assert "results/large.json" not in str(shown)


async def test_large_result_that_was_damaged_is_no_answer(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    api.store.put("results/large.json", b'"abc"')
    await api.worker.succeed(ref="results/large.json")

    api.store.put("results/large.json", b'"abd"')
    flipped = await acme.get(job["links"]["result"])
    api.store.delete(["results/large.json"])
    gone = await acme.get(job["links"]["result"])

    assert (flipped.status_code, flipped.json()["type"]) == (500, "/problems/corrupt")
    assert "large.json" not in flipped.text
    assert (gone.status_code, gone.json()["type"]) == (404, "/problems/not-found")


async def test_result_of_an_unfinished_job_is_409(acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()

    answer = await acme.get(job["links"]["result"])

    assert (answer.status_code, "pending" in answer.json()["detail"]) == (409, True)


async def test_result_of_a_failed_job_says_why(api: RunningApi, acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    await api.worker.fail("the printer is on fire")

    answer = await acme.get(job["links"]["result"])

    assert (answer.status_code, "on fire" in answer.json()["detail"]) == (409, True)


async def test_file_comes_whole_and_safe(acme: httpx.AsyncClient, done: str) -> None:
    answer = await acme.get(await file_url(acme, done))

    assert (answer.status_code, answer.content) == (200, DATA)
    headers = answer.headers
    assert headers["content-type"] == "application/pdf"
    assert headers["content-length"] == str(len(DATA))
    assert headers["etag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == (
        'attachment; filename="the _report_ _.pdf"; '
        "filename*=UTF-8''the%20%22report%22%20%C3%A9.pdf"
    )


@pytest.mark.parametrize(
    ("wanted", "part", "content_range"),
    [
        ("bytes=0-0", DATA[:1], "bytes 0-0/5120"),
        ("bytes=100-199", DATA[100:200], "bytes 100-199/5120"),
        ("bytes=5000-", DATA[5000:], "bytes 5000-5119/5120"),
        ("bytes=5000-99999", DATA[5000:], "bytes 5000-5119/5120"),
        ("bytes=-10", DATA[-10:], "bytes 5110-5119/5120"),
        ("bytes=-99999", DATA, "bytes 0-5119/5120"),
    ],
)
async def test_range_of_a_file(
    acme: httpx.AsyncClient, done: str, wanted: str, part: bytes, content_range: str
) -> None:
    answer = await acme.get(await file_url(acme, done), headers={"Range": wanted})

    assert (answer.status_code, answer.content) == (206, part)
    assert answer.headers["content-range"] == content_range


@pytest.mark.parametrize("wanted", ["bytes=5-1", "bytes=0-1,3-4", "lines=1-2", "bytes=-", "x", ""])
async def test_range_that_makes_no_sense_means_all(
    acme: httpx.AsyncClient, done: str, wanted: str
) -> None:
    answer = await acme.get(await file_url(acme, done), headers={"Range": wanted})

    assert (answer.status_code, answer.content) == (200, DATA)


@pytest.mark.parametrize("wanted", ["bytes=5120-", "bytes=9999-10000", "bytes=-0"])
async def test_range_past_the_end_is_416(acme: httpx.AsyncClient, done: str, wanted: str) -> None:
    answer = await acme.get(await file_url(acme, done), headers={"Range": wanted})

    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */5120")


async def test_range_of_another_version_means_all(acme: httpx.AsyncClient, done: str) -> None:
    headers = {"Range": "bytes=0-9", "If-Range": '"old"'}

    answer = await acme.get(await file_url(acme, done), headers=headers)

    assert (answer.status_code, len(answer.content)) == (200, len(DATA))


async def test_file_that_the_client_has_is_304(acme: httpx.AsyncClient, done: str) -> None:
    url = await file_url(acme, done)
    etag = (await acme.head(url)).headers["etag"]

    answer = await acme.get(url, headers={"If-None-Match": f'"x", W/{etag}'})

    assert (answer.status_code, answer.content) == (304, b"")


async def test_head_tells_the_size_and_sends_nothing(acme: httpx.AsyncClient, done: str) -> None:
    answer = await acme.head(await file_url(acme, done))

    assert (answer.headers["content-length"], answer.content) == (str(len(DATA)), b"")


@pytest.mark.parametrize(
    "name",
    [
        "nope",
        "..%2f..%2f..%2f..%2fetc%2fpasswd",
        "..%2F..%2Ftokens",
        "%2e%2e",
        "%2fetc%2fpasswd",
        "..%5c..%5cboot.ini",
        "%00",
        "a%00b",
    ],
)
async def test_name_that_the_job_did_not_write_is_404(
    acme: httpx.AsyncClient, done: str, name: str
) -> None:
    answer = await acme.get(f"{done}/files/{name}")

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


async def test_file_that_the_store_lost_is_404(
    api: RunningApi, acme: httpx.AsyncClient, done: str
) -> None:
    url = await file_url(acme, done)
    api.store.delete([info.path for info in api.store.list("results/")])

    assert (await acme.get(url)).status_code == 404


async def test_file_of_another_length_is_not_sent(
    api: RunningApi, acme: httpx.AsyncClient, done: str
) -> None:
    [info] = list(api.store.list("results/"))
    api.store.put(info.path, DATA[:-1])

    answer = await acme.get(await file_url(acme, done))

    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/corrupt")
    assert info.path not in answer.text


async def test_empty_file_is_sent(api: RunningApi, acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    info: FileInfo = file_in(api.store, "empty.txt", b"", "text/plain")
    await api.worker.succeed(files=[info])

    answer = await acme.get(f"{job['links']['files']}/empty.txt")

    assert (answer.status_code, answer.content) == (200, b"")


async def test_logs_of_all_attempts_or_of_one(api: RunningApi, acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    for number in (1, 2):
        api.store.put(f"logs/{number}.log", f"attempt {number}\n".encode())
        await api.worker.fail("no", log=f"logs/{number}.log")
        await acme.post(job["links"]["retry"])

    everything = await acme.get(job["links"]["logs"])
    one = await acme.get(f"{job['links']['logs']}?attempt=2")

    assert everything.text == "attempt 1\nattempt 2\n"
    assert one.text == "attempt 2\n"
    assert everything.headers["content-type"] == "text/plain; charset=utf-8"
    attempts = (await acme.get(job["links"]["attempts"])).json()["attempts"]
    assert [a["has_log"] for a in attempts[:2]] == [True, True]
    assert "logs/1.log" not in str(attempts)
