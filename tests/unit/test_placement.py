"""Where a store may be, given the nodes of Ray, and how long its commits wait for company."""

import pytest
import ray

from cluster.actors.manager import start_manager
from cluster.config import default_config
from cluster.settings import ClusterSettings
from jobs.errors import InvalidInput

MACHINE = default_config(2)


@pytest.mark.parametrize(
    ("settings", "needs_one_node"),
    [
        (ClusterSettings(config=MACHINE, store="file:///store"), True),
        (ClusterSettings(config=MACHINE, store="/store"), True),
        (ClusterSettings(config=MACHINE, store="s3://bucket", journal="file:///fast"), True),
        (ClusterSettings(config=MACHINE, store="file:///nfs", shared_mount=True), False),
        (ClusterSettings(config=MACHINE, store="s3://bucket"), False),
    ],
)
def test_a_folder_keeps_drayman_on_one_node_unless_it_is_mounted_on_all(
    settings: ClusterSettings, needs_one_node: bool
) -> None:
    assert settings.needs_one_node is needs_one_node


def test_a_folder_is_refused_where_ray_has_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}, {"Alive": True}])

    with pytest.raises(InvalidInput, match=r"this Ray has 2; use a bucket, or say --shared-mount"):
        start_manager(ClusterSettings(config=MACHINE, store="file:///store"))


@pytest.mark.parametrize(
    ("settings", "linger_s"),
    [
        (ClusterSettings(config=MACHINE, store="file:///store"), 0.0),
        (ClusterSettings(config=MACHINE, store="s3://bucket"), 0.025),
        (ClusterSettings(config=MACHINE, store="s3://bucket", journal="file:///fast"), 0.0),
        (ClusterSettings(config=MACHINE, store="s3://bucket", commit_linger_ms=5), 0.005),
    ],
)
def test_only_commits_to_a_bucket_wait_for_company_by_themselves(
    settings: ClusterSettings, linger_s: float
) -> None:
    assert settings.linger_s == linger_s
