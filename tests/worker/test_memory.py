"""Memory: a child past its limit is killed, named `oom`, and nobody else is charged."""

import re
import signal
from pathlib import Path
from typing import Any

from cluster.protocol import Outcome
from cluster.worker.memory import MIB, held_bytes, oom_kills, resident_bytes
from tests.support.eventually import written

#: A child that has imported everything holds some 60 MiB.
LIMIT = 300 * MIB


async def test_child_past_its_limit_is_killed_and_told_how_much_it_held(
    start: Any, tmp_path: Path
) -> None:
    bench = await start(memory_limit_bytes=LIMIT)

    token = bench.manager.submit("test.eat", {"path": str(tmp_path / "pid"), "n": 400})
    outcome = await bench.manager.outcome(token)

    assert (outcome.kind, outcome.cause, outcome.alone) == ("crashed", "oom", True)
    assert "MiB of memory, and the limit is 300 MiB" in outcome.error
    assert "eating" in outcome.error


async def test_only_the_attempt_that_ran_is_blamed_for_memory_in_a_batch(
    start: Any, tmp_path: Path
) -> None:
    bench = await start(memory_limit_bytes=LIMIT)
    await bench.manager.all_outcomes([bench.manager.submit("test.noop") for _ in range(500)])
    bench.manager.eager = True

    eater = bench.manager.submit("test.eat", {"path": str(tmp_path / "pid"), "n": 400})
    behind = [bench.manager.submit("test.noop") for _ in range(20)]
    outcome = await bench.manager.outcome(eater)
    others = await bench.manager.all_outcomes(behind)

    assert (outcome.kind, outcome.cause, outcome.alone) == ("crashed", "oom", True)
    assert held_mib(outcome) > 300
    assert {other.kind for other in others} == {"ok"}


def held_mib(outcome: Outcome) -> int:
    """Return how much memory an error says was held."""
    told = re.search(r"it held (\d+) MiB of memory, and the limit is 300 MiB", outcome.error)
    assert told, outcome.error
    return int(told[1])


async def test_memory_of_what_a_handler_started_counts(start: Any) -> None:
    bench = await start(memory_limit_bytes=LIMIT)

    outcome = await bench.manager.outcome(bench.manager.submit("test.eat_below", {"n": 400}))

    assert (outcome.kind, outcome.cause) == ("crashed", "oom")


async def test_handler_within_its_limit_is_left_alone(start: Any, tmp_path: Path) -> None:
    bench = await start(memory_limit_bytes=LIMIT)

    token = bench.manager.submit("test.hold", {"path": str(tmp_path / "pid")}, timeout_s=1.5)
    await written(tmp_path / "pid")
    outcome = await bench.manager.outcome(token)

    assert (outcome.kind, outcome.cause) == ("failed", "timeout")


async def test_leak_of_one_attempt_is_not_charged_to_the_next(start: Any, result: Any) -> None:
    bench = await start(memory_limit_bytes=LIMIT)

    outcomes = [
        await bench.manager.outcome(bench.manager.submit("test.leak", {"n": 150})) for _ in range(4)
    ]

    assert [outcome.kind for outcome in outcomes] == ["ok"] * 4
    assert len({result(outcome) for outcome in outcomes}) == 4


async def test_neighbours_on_a_loop_are_suspects_until_the_eater_is_known(start: Any) -> None:
    bench = await start(mode="async", concurrency=10, memory_limit_bytes=LIMIT)
    others = [bench.manager.submit("test.async_ok", {"seconds": 60}) for _ in range(3)]
    await bench.manager.reported(lambda report: set(others) <= set(report.started))

    eater = bench.manager.submit("test.async_eat", {"n": 400})
    outcomes = await bench.manager.all_outcomes([eater, *others])
    alone = await bench.manager.outcome(
        bench.manager.submit("test.async_eat", {"n": 400}, alone=True)
    )

    assert {(o.kind, o.cause, o.alone) for o in outcomes} == {("crashed", "oom", False)}
    assert (alone.kind, alone.cause, alone.alone) == ("crashed", "oom", True)
    assert min(held_mib(outcome) for outcome in [*outcomes, alone]) > 300


async def test_plain_kill_is_not_taken_for_want_of_memory(start: Any) -> None:
    bench = await start(memory_limit_bytes=LIMIT)

    outcome = await bench.manager.outcome(
        bench.manager.submit("test.signal", {"n": int(signal.SIGKILL)})
    )

    assert outcome.cause == "signal 9"


def test_kills_of_the_own_container_come_before_those_of_the_machine(tmp_path: Path) -> None:
    own, machine = tmp_path / "cgroup", tmp_path / "vmstat"
    machine.write_text("pgfault 7\noom_kill 9\n")
    folder = tmp_path / "fs" / "jobs" / "one"
    folder.mkdir(parents=True)
    own.write_text("0::/jobs/one\n")
    first = oom_kills(tmp_path / "fs", own, machine)

    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")

    assert (first, oom_kills(tmp_path / "fs", own, machine)) == (9, 2)


def test_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    own, machine = tmp_path / "cgroup", tmp_path / "vmstat"
    own.write_text("7:cpu:/\n4:memory:/docker/abc\n0::/\n")
    (tmp_path / "fs" / "memory").mkdir(parents=True)

    # In a container its own group is the root of what it sees.
    (tmp_path / "fs" / "memory" / "memory.oom_control").write_text("under_oom 0\noom_kill 4\n")

    assert oom_kills(tmp_path / "fs", own, machine) == 4


def test_what_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"

    assert oom_kills(nothing, nothing, nothing) == 0
    assert resident_bytes(2**22 + 1) == 0
    assert held_bytes(2**22 + 1) == 0
