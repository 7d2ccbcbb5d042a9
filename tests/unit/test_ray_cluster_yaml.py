"""ray-cluster.yaml, as Ray itself reads it. No cloud is asked anything."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import default_config
from service.config_file import read_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """The configuration with Ray's defaults filled in, as `ray up` would use it."""
    from ray.autoscaler._private.util import prepare_config

    config = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
    found: dict[str, Any] = prepare_config(config)
    return found


def commands(prepared: dict[str, Any], kind: str) -> list[str]:
    found: list[str] = prepared[kind]
    return found


def test_rays_own_validator_accepts_it(prepared: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)


def test_there_is_a_head_and_a_worker_type_for_cpu_and_gpu(prepared: dict[str, Any]) -> None:
    types = prepared["available_node_types"]

    assert prepared["head_node_type"] == "head"
    assert types["cpu"]["resources"]["CPU"] > 0
    assert types["gpu"]["resources"]["GPU"] > 0
    assert [types[name]["labels"]["drayman-pool"] for name in ("cpu", "gpu")] == ["cpu", "gpu"]


def test_no_work_lands_on_the_head(prepared: dict[str, Any]) -> None:
    (start,) = [c for c in commands(prepared, "head_start_ray_commands") if "ray start" in c]

    assert prepared["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert "--num-cpus=0" in start


def test_no_default_of_ray_installs_another_ray(prepared: dict[str, Any]) -> None:
    everything = yaml.safe_dump(prepared)

    assert "ray-wheels" not in everything
    assert commands(prepared, "worker_setup_commands") == commands(prepared, "setup_commands")


@pytest.mark.parametrize("kind", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_demands_the_token(prepared: dict[str, Any], kind: str) -> None:
    starting = [c for c in commands(prepared, kind) if re.search(r"ray start|drayman up", c)]

    assert starting
    assert all("RAY_AUTH_MODE=token" in command for command in starting)
    assert "/home/ray/.ray/auth_token" in prepared["file_mounts"]


def test_the_dashboard_stays_on_loopback(prepared: dict[str, Any]) -> None:
    hosts = re.findall(r"--dashboard-host=(\S+)", yaml.safe_dump(prepared, width=10_000))

    assert hosts == ["127.0.0.1"]


def test_nodes_run_the_ray_that_is_pinned(prepared: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    images = [prepared["docker"]["image"]]
    images += [
        node["docker"]["worker_image"]
        for node in prepared["available_node_types"].values()
        if "docker" in node
    ]

    assert pinned is not None
    assert all(image.startswith(f"rayproject/ray:{pinned[1]}-py311") for image in images)


def test_every_pool_fits_on_a_machine_that_can_be_had(prepared: dict[str, Any]) -> None:
    from cluster.actors.placement import lacking

    config = read_config(ROOT / "ray-cluster.toml", default_config(1))
    types = prepared["available_node_types"].values()
    nodes = [{"Resources": each["resources"], "Labels": each.get("labels", {})} for each in types]
    (up,) = [c for c in commands(prepared, "head_start_ray_commands") if "drayman up" in c]

    assert {name: lacking(pool, nodes) for name, pool in config.pools.items()} == dict.fromkeys(
        ["cpu", "io", "gpu"], ""
    )
    assert all(pool.shape for pool in config.pools.values()), "it would never be worth a machine"
    assert "--config /home/ray/drayman/ray-cluster.toml" in up
