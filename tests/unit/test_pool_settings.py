"""What an operator can set of a pool with `drayman up --pool`."""

import pytest

from cluster.settings import default_pools, tuned_pools
from jobs.errors import InvalidInput


def test_wishes_change_what_they_name_and_nothing_else() -> None:
    pools = default_pools(cpus=4)

    cpu, io = tuned_pools(pools, ["cpu:memory_limit_mb=2000", "cpu:heartbeat_timeout_s=7.5"])

    assert (cpu.memory_limit_mb, cpu.heartbeat_timeout_s, cpu.size) == (2000, 7.5, 4)
    assert io == pools[1]


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
        tuned_pools(default_pools(cpus=4), [wish])

    assert said in str(refused.value)
