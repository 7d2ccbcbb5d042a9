"""Files that tasks alone read: they are listed, and neither sent nor told where they lie."""

from typing import Any

import httpx

from cluster.protocol import FileInfo
from tests.support.api import RunningApi

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}
PATH = "ray:0123abcd/job/0/1/part.csv"


async def test_ephemeral_file_is_listed_and_answers_409(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()
    info = FileInfo("part.csv", PATH, 3, "0" * 64, "text/csv")
    await api.worker.succeed({}, [info])

    listed = await acme.get(job["links"]["files"])
    [file] = listed.json()["files"]
    for method in ("GET", "HEAD"):
        answer = await acme.request(method, file["href"])
        assert answer.status_code == 409
    told = await acme.get(file["href"])

    assert (file["name"], file["bytes"], file["ephemeral"]) == ("part.csv", 3, True)
    assert (
        told.json()["detail"] == "the file 'part.csv' is ephemeral: only tasks of its job read it"
    )
    assert "0123abcd" not in listed.text + told.text
