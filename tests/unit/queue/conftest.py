"""A queue with no history, for tests that write one."""

import pytest

from tests.support.builders import Rulebook


@pytest.fixture
def book() -> Rulebook:
    return Rulebook()
