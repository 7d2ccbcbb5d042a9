"""What an operator can set of a pool with `drayman up --pool`."""

import pytest

from cluster.config import default_config
from cluster.settings import tuned
from jobs.errors import InvalidInput


def test_wishes_change_what_they_name_and_nothing_else() -> None:
    config = default_config(cpus=4)

    found = tuned(config, ["cpu:memory_limit_mb=2000", "cpu:heartbeat_timeout_s=7.5"])

    cpu = found.pools["cpu"]
    assert (cpu.memory_limit_mb, cpu.heartbeat_timeout_s, cpu.min, cpu.max) == (2000, 7.5, 4, 4)
    assert found.pools["io"] == config.pools["io"]


def test_a_size_is_both_the_least_and_the_most() -> None:
    cpu = tuned(default_config(cpus=4), ["cpu:size=3"]).pools["cpu"]

    assert (cpu.min, cpu.max) == (3, 3)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("cpu", "cpu:size=4"),
        ("cpu:name=x", "what can be set: size, concurrency"),
        ("disk:size=2", "there are: cpu, io"),
        ("cpu:size=many", "'many' in 'cpu:size=many' is not a number"),
        ("cpu:size=0", "size is 1 at least; got 0"),
        ("cpu:heartbeat_timeout_s=nan", "heartbeat_timeout_s is 2 at least"),
        ("cpu:heartbeat_timeout_s=inf", "heartbeat_timeout_s is 2 at least"),
        ("cpu:memory_limit_mb=1", "memory_limit_mb is 128 at least"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_refused_with_what_can_be(wish: str, said: str) -> None:
    with pytest.raises(InvalidInput, match="pool") as refused:
        tuned(default_config(cpus=4), [wish])

    assert said in str(refused.value)


def test_pools_suit_the_machine() -> None:
    small, large = default_config(cpus=1), default_config(cpus=16, gpus=2)

    assert (small.pools["cpu"].max, list(small.pools)) == (2, ["cpu", "io"])
    assert (large.pools["cpu"].max, large.pools["gpu"].shape) == (16, {"GPU": 1.0})
    assert large.checked() == large
