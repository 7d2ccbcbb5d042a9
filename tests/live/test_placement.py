"""Where Ray puts workers, how those without a place wait, and what is said of them meanwhile."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from cluster.actors.placement import lacking
from cluster.actors.port import MANAGER
from cluster.actors.workers import RayWorkers
from cluster.config import PoolSettings, default_config
from cluster.settings import NAMESPACE, ClusterSettings
from jobs.errors import Unavailable
from service.edge import free_port
from tests.support.eventually import eventually
from tests.support.live import WAIT_S

F = TypeVar("F", bound=Callable[..., Any])

OBJECT_STORE_BYTES = 80 * 2**20


def on_two_nodes(test: F) -> F:
    """Run it with real Ray."""
    marks = pytest.mark
    for mark in (marks.live, marks.long, marks.timeout(180), marks.usefixtures("two_nodes")):
        test = mark(test)
    return test


def a_pool(name: str, **settings: Any) -> PoolSettings:
    return PoolSettings(name=name, queues=[name], **settings)


PLAIN, GPU, SPOT = (
    a_pool("plain"),
    a_pool("gpu", num_gpus=1),
    a_pool("spot", label_selector={"tier": "in(spot, cheap)"}),
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ClusterSettings:
    store = str(tmp_path_factory.mktemp("store"))
    return ClusterSettings(store=store, shared_mount=True, config=default_config(1))


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A Ray of two nodes, one of them with a label.

    Its manager never answers: a real one has its own mind about how many workers there are.
    """

    class Silent:
        async def endpoint(self) -> None:
            pass

        async def exchange(self, _: bytes) -> None:
            await asyncio.Event().wait()

    common = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
        # Ray looks at the port of a dashboard that it won't start, and where another has the usual
        # one it leaves its socket open.
        head = common | {"include_dashboard": False, "dashboard_port": free_port()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**common, labels={"tier": "spot"})
            ray.init(cluster.address, namespace="tests", log_to_driver=False, logging_level="error")
            manager = ray.remote(Silent).options(name=MANAGER, namespace=NAMESPACE, num_cpus=0)
            kept = manager.remote()
            yield cluster
            ray.kill(kept)
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def workers(settings: ClusterSettings) -> Iterator[RayWorkers]:
    yield RayWorkers(settings)
    for name in named():
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def named() -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [a["name"] for a in found if a["namespace"] == NAMESPACE and a["name"] != MANAGER]


def node_of(worker: str) -> str:
    handle = ray.get_actor(worker, namespace=NAMESPACE)
    node: str = actors(handle._actor_id.hex())["Address"]["NodeID"]
    return node


def node_with(field: str, name: str) -> str:
    (node,) = (node["NodeID"] for node in ray.nodes() if node["Alive"] and name in node[field])
    return str(node)


def ray_status(cluster: Cluster) -> str:
    """Return what Ray tells an operator."""
    ray_command = Path(sys.executable).with_name("ray")
    done = subprocess.run(
        [ray_command, "status", "--address", cluster.address], capture_output=True, text=True
    )
    return done.stdout


async def seen(look: Callable[[], object]) -> None:
    await eventually(look, within_s=WAIT_S)


async def end(workers: RayWorkers, *names: str) -> None:
    for name in names:
        await workers.kill(name)
    await seen(lambda: not set(names) & set(named()))


@on_two_nodes
async def test_workers_that_hold_nothing_go_to_the_nodes_in_turn(workers: RayWorkers) -> None:
    names = await asyncio.gather(*(workers.spawn(PLAIN) for _ in range(4)))

    assert sorted(Counter(map(node_of, names)).values()) == [2, 2]
    assert await workers.live() == dict.fromkeys(names, "plain")
    await end(workers, *names)


@on_two_nodes
async def test_worker_runs_only_where_the_labels_are(workers: RayWorkers) -> None:
    names = await asyncio.gather(*(workers.spawn(SPOT) for _ in range(2)))

    assert {node_of(name) for name in names} == {node_with("Labels", "tier")}
    assert workers.unplaceable(SPOT) == ""
    await end(workers, *names)


@on_two_nodes
async def test_worker_waits_as_demand_until_a_node_has_what_it_holds(
    workers: RayWorkers, two_nodes: Cluster
) -> None:
    spawning = asyncio.create_task(workers.spawn(GPU))
    await seen(lambda: "{'GPU': 1.0}: 1+ pending tasks/actors" in ray_status(two_nodes))
    why = workers.unplaceable(GPU)
    (waiting,) = named()
    living = await workers.live()

    node = two_nodes.add_node(num_cpus=1, num_gpus=1, object_store_memory=OBJECT_STORE_BYTES)
    name = await asyncio.wait_for(spawning, WAIT_S)

    assert why == "no node has GPU: 1 (the largest has 0)"
    assert living == {}
    assert (name, node_of(name)) == (waiting, node.node_id)
    # A second one waits again, but only for the first to go.
    spawning = asyncio.create_task(workers.spawn(GPU))
    await seen(lambda: len(named()) == 2)
    assert (len(await workers.live()), workers.unplaceable(GPU)) == (1, "")
    await workers.kill(name)
    second = await asyncio.wait_for(spawning, WAIT_S)
    assert node_of(second) == node.node_id
    await end(workers, second)
    two_nodes.remove_node(node)


@on_two_nodes
async def test_worker_called_off_while_it_waits_leaves_nothing(workers: RayWorkers) -> None:
    spawning = asyncio.create_task(workers.spawn(a_pool("far", resources={"far": 1})))
    await seen(named)

    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning

    await seen(lambda: not named())


@on_two_nodes
async def test_what_an_earlier_manager_waited_for_is_called_off_by_the_next(
    workers: RayWorkers, settings: ClusterSettings
) -> None:
    spawning = asyncio.create_task(workers.spawn(a_pool("far", resources={"far": 1})))
    await seen(named)

    assert await workers.live() == {}
    assert len(named()) == 1
    assert await RayWorkers(settings).live() == {}

    with pytest.raises(Unavailable, match="did not start"):
        await asyncio.wait_for(spawning, WAIT_S)
    await seen(lambda: not named())


@on_two_nodes
async def test_store_in_a_folder_keeps_every_worker_on_its_node(settings: ClusterSettings) -> None:
    workers = RayWorkers(msgspec.structs.replace(settings, shared_mount=False))
    holding = a_pool("cpu", num_cpus=0.5)

    names = [await workers.spawn(pool) for pool in (PLAIN, PLAIN, holding)]

    assert {node_of(name) for name in names} == {ray.get_runtime_context().get_node_id()}
    assert (
        workers.unplaceable(SPOT)
        == "no node that has the store's folder has the label tier=in(spot,cheap)"
    )
    with pytest.raises(Unavailable, match="did not start"):
        await asyncio.wait_for(workers.spawn(a_pool("gpu", num_gpus=1)), WAIT_S)
    await end(workers, *names)


@on_two_nodes
async def test_autoscaler_is_asked_for_what_pools_hold_and_told_when_nothing_is_wanted(
    workers: RayWorkers, two_nodes: Cluster
) -> None:
    both = a_pool("both", num_gpus=2.0, label_selector={"tier": "spot"})

    await workers.ask_for([(PLAIN, 3), (both, 2)])
    await seen(lambda: "{'GPU': 2.0}: 2 from request_resources()" in ray_status(two_nodes))
    await workers.ask_for([(PLAIN, 3), (both, 0)])
    await seen(lambda: "from request_resources()" not in ray_status(two_nodes))


@on_two_nodes
@pytest.mark.parametrize(
    ("settings_of_pool", "why"),
    [
        ({"resources": {"GPU": 1}}, "Use the 'num_cpus' and 'num_gpus' keyword"),
        ({"num_cpus": 0.00001}, "precision"),
        ({"label_selector": {"tier": "in()"}}, "Invalid label selector value"),
        ({"label_selector": {"no key": "a"}}, "Invalid label key name"),
    ],
)
async def test_what_ray_cannot_make_sense_of_is_refused_in_its_words(
    workers: RayWorkers, settings_of_pool: dict[str, Any], why: str
) -> None:
    pool = a_pool("odd", **settings_of_pool)

    assert why in workers.unplaceable(pool)
    with pytest.raises(Unavailable, match="Ray refuses a worker of pool odd"):
        await workers.spawn(pool)
    assert named() == []


def a_node(labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {"Labels": labels or {}, "Resources": resources}


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"num_cpus": 8}, ""),
        ({"num_cpus": 9}, "no node has CPU: 9 (the largest has 8)"),
        ({"num_gpus": 0.5}, ""),
        ({"num_gpus": 2}, "no node has GPU: 2 (the largest has 1)"),
        ({"resources": {"tpu": 1}}, "no node has tpu: 1 (the largest has 0)"),
        ({"num_cpus": 8, "num_gpus": 1}, "no node has CPU: 8, GPU: 1 together"),
        ({"label_selector": {"tier": "spot"}}, ""),
        ({"label_selector": {"tier": "!spot"}}, ""),
        ({"label_selector": {"tier": "in(a, spot)"}}, ""),
        ({"label_selector": {"tier": "!in(spot, a)", "zone": "b"}}, ""),
        ({"label_selector": {"tier": "gold"}}, "no node has the label tier=gold"),
        ({"label_selector": {"tier": "in(a, b)"}}, "no node has the label tier=in(a,b)"),
        ({"label_selector": {"arch": "!arm"}}, "every node has the label arch=arm"),
        (
            {"label_selector": {"tier": "spot", "zone": "b"}},
            "no node has the labels tier=spot, zone=b together",
        ),
        (
            {"num_gpus": 1, "label_selector": {"tier": "spot"}},
            "no node with the label tier=spot has GPU: 1 (the largest has 0)",
        ),
    ],
)
def test_it_is_said_why_no_node_could_hold_a_worker(wish: dict[str, Any], why: str) -> None:
    nodes = [
        a_node({"tier": "spot", "arch": "arm"}, CPU=8.0),
        a_node({"zone": "b", "arch": "arm"}, CPU=4.0, GPU=1.0),
    ]

    assert lacking(a_pool("any", **wish), nodes) == why
