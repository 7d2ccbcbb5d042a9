"""Params come from anybody who may submit: what they may name on the worker's own disk."""

from pathlib import Path
from typing import Any

import pytest

from cluster.settings import DATA_DIRS_ENV
from jobs.buckets import OWN_URLS_ENV


async def test_local_file_is_fetched_only_from_folders_that_were_opened(
    start: Any, result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, secret = tmp_path / "opened", tmp_path / "secret.txt"
    opened.mkdir()
    (opened / "a.txt").write_text("local")
    secret.write_text("not yours")
    (opened / "link.txt").symlink_to(secret)
    monkeypatch.setenv(DATA_DIRS_ENV, str(opened))
    bench = await start()

    async def fetch(uri: str) -> Any:
        return await bench.manager.outcome(bench.manager.submit("test.fetch", {"value": uri}))

    inside = await fetch(f"file://{opened}/a.txt")
    outside = [
        await fetch(f"file://{path}")
        for path in (secret, opened / "link.txt", opened / ".." / "secret.txt")
    ]
    web = await fetch("http://127.0.0.1/a.txt")

    assert result(inside) == "local"
    assert all("outside the folders that jobs may read" in refused.error for refused in outside)
    assert "use upload:, output:, file:///, s3://, gs:// or az://" in web.error


async def test_a_bucket_is_not_opened_where_drayman_keeps_its_own(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN_URLS_ENV, "s3://bucket/drayman\n")
    bench = await start()

    uri = "s3://bucket/drayman/uploads/another-tenant/a.txt"
    refused = await bench.manager.outcome(bench.manager.submit("test.fetch", {"value": uri}))

    assert "leads into Drayman's own store" in refused.error
