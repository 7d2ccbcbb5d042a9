"""The dashboard through the real edge: the link that `up` printed, and events as they happen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from service.client import Client
from tests.support.browser import chromium
from tests.support.live import LiveDrayman

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def test_the_printed_link_opens_the_dashboard_and_it_follows_a_job(
    drayman: LiveDrayman, client: Client, browser: Any, tmp_path: Path
) -> None:
    opened = tmp_path / "opened"
    params = {"begun": str(tmp_path / "begun"), "opened": str(opened)}
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(drayman.said["dashboard"])
    page.get_by_role("heading", name="Overview").wait_for()
    page.get_by_text("Live", exact=True).wait_for()

    job = client.submit("live.gate", params)
    page.goto(f"{drayman.url}/jobs/{job['id']}")
    page.get_by_text("waiting", exact=True).wait_for()
    opened.touch()

    expect(page.locator(".job-title")).to_contain_text("completed", timeout=30_000)
    assert drayman.said["token"] not in page.url
    context.close()
