"""What holds for all tests."""

import gc

import pytest

# An API of its own for each test leaves so much behind that a third of the time went into looking
# for garbage.
gc.set_threshold(50_000, 10, 10)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail where `--dist loadgroup` parts a group: each half would start a cluster of its own."""
    if session.config.getoption("loadgroup", False):
        for item in session.items:
            for group in item.iter_markers("xdist_group"):
                assert item.nodeid.endswith(f"@{group.args[0]}"), item.nodeid
