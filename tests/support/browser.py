"""Debian's Chromium, driven by Playwright, whose own browsers are never downloaded.

Rule: Playwright's loop runs in this thread while a browser is open, and then no other may. So a
browser lives as long as a module of tests that has no `async` ones.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["WAIT_MS", "chromium"]

#: How long a test waits for what it expects to see.
WAIT_MS = 30_000


@contextmanager
def chromium() -> Iterator[Any]:
    """Start one. Where there is none the test is skipped; in CI it fails."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed")
        pytest.skip("needs chromium")
    from playwright.sync_api import expect, sync_playwright

    # A bound against hangs: other tests start whole clusters beside it.
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        # As root, which CI is, Chromium starts no sandbox of its own.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()
