"""What a job that waits for a worker is told of who holds what the worker needs."""

from typing import Any

import pytest

from cluster.config import PoolSettings
from cluster.queue.spec import JobSpec
from tests.support.cluster import GatedObjects, life


def pools(train: dict[str, Any], cpu: dict[str, Any]) -> list[PoolSettings]:
    """Return a pool whose first worker has yet to come, and one whose workers are there."""
    return [
        PoolSettings(name="train", queues=["train"], **train),
        PoolSettings(name="cpu", queues=["default"], min=0, max=2, **cpu),
    ]


async def why(train: dict[str, Any], cpu: dict[str, Any]) -> str | None:
    """Return why a job of `train` waits while two workers of `cpu` live."""
    async with life(GatedObjects(), "w1", "w2", pools=pools(train, cpu)) as now:
        job_id = (await now.gateway.submit(JobSpec(type="noop", queue="train"))).job_id
        view = await now.gateway.job(job_id, None)
        queues = {queue.name: queue for queue in await now.gateway.queues()}
        assert queues["train"].pending_reason == view.pending_reason
        return view.pending_reason


async def test_a_worker_that_needs_what_others_hold_is_not_just_on_its_way() -> None:
    told = await why({"num_gpus": 1}, {"num_gpus": 0.5, "num_cpus": 1})

    assert told == "a worker of pool train starts once it has GPU: 1; pool cpu holds GPU: 1"


async def test_resources_that_an_operator_named_are_held_as_well() -> None:
    told = await why(
        {"num_cpus": 2, "resources": {"licence": 1}}, {"num_cpus": 1, "resources": {"licence": 1}}
    )

    assert told == (
        "a worker of pool train starts once it has CPU: 2, licence: 1; "
        "pool cpu holds CPU: 2, licence: 2"
    )


@pytest.mark.parametrize("needs", [{}, {"num_gpus": 1}])
async def test_a_worker_that_needs_nothing_that_others_hold_is_on_its_way(
    needs: dict[str, Any],
) -> None:
    assert await why(needs, {"num_cpus": 1}) == "a worker of pool train is on its way"


@pytest.mark.parametrize(("needs", "gpus"), [({}, 0.0), ({"num_gpus": 2}, 2.0)])
async def test_a_worker_is_shown_with_the_gpus_that_it_holds(
    needs: dict[str, Any], gpus: float
) -> None:
    async with life(GatedObjects(), "w1", pools=pools({}, needs)) as now:
        (worker,) = await now.gateway.workers()

    assert worker.gpus == gpus
