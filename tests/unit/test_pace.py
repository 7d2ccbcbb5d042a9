"""How much work a worker asks for beyond what it runs."""

from cluster.worker.pace import LONG_TASK_S, Pace


def test_one_task_is_welcome_ahead_while_nothing_is_known() -> None:
    assert Pace().ahead(running=1) == 1


def test_nothing_is_welcome_behind_a_long_first_task() -> None:
    pace = Pace()
    pace.longest_s = 2 * LONG_TASK_S

    assert pace.ahead(running=1) == 0


def test_short_tasks_are_asked_for_by_the_dozen() -> None:
    pace = Pace()
    pace.add(tasks=10, total_s=0.010)

    assert 10 < pace.ahead(running=1) < 100
