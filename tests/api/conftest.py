"""One running API a test."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.api import RunningApi, running_api


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api() as running:
        yield running


@pytest.fixture
def acme(api: RunningApi) -> httpx.AsyncClient:
    """A client of the tenant `acme` that may submit and read."""
    return api.client("acme")


@pytest.fixture
def admin(api: RunningApi) -> httpx.AsyncClient:
    return api.client("ops", "admin")
