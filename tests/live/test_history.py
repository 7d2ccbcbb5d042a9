"""Finished jobs leave the manager for history, while all goes on."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from service.client import Client
from tests.support.live import WAIT_S, LiveDrayman, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


def test_a_job_that_left_for_history_is_answered_as_before(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    params = {"path": str(tmp_path / "effects")}
    job_id = client.submit("live.effect", params, labels={"for": "history"})["id"]
    before = client.wait(job_id, WAIT_S)
    attempts = client.attempts(job_id)
    tables = drayman.store / "history" / "jobs"

    def is_in_history() -> bool:
        return job_id in finished_in(tables)

    until(is_in_history)

    assert client.status(job_id) == before
    assert client.attempts(job_id) == attempts
    assert [job["id"] for job in client.jobs(label="for=history")] == [job_id]
    assert client.result(job_id) == before["result"]


def finished_in(tables: Path) -> set[str]:
    return {
        job_id
        for path in tables.rglob("*.parquet")
        for job_id in pq.read_table(path, columns=["id"], partitioning=None)["id"].to_pylist()
    }
