"""The transition table: complete, connected, in use, and closed to everything else."""

import ast
import inspect
from itertools import product

import pytest

from cluster.queue import engine, gates, plan_changes
from cluster.queue.state import TERMINAL, TRANSITIONS, IllegalTransition, Move, TaskState, moved

UNLISTED = [(s, m) for s, m in product(TaskState, Move) if m not in TRANSITIONS[s]]


def test_every_state_is_a_key() -> None:
    assert set(TRANSITIONS) == set(TaskState)


def test_every_state_can_be_reached_from_where_a_task_begins() -> None:
    reached = {TaskState.WAITING, TaskState.READY}
    while found := {to for s in reached for to in TRANSITIONS[s].values()} - reached:
        reached |= found

    assert reached == set(TaskState)


def test_every_move_is_in_the_table_and_made_by_the_engine() -> None:
    listed = {move for moves in TRANSITIONS.values() for move in moves}
    tree = ast.parse("".join(map(inspect.getsource, (engine, gates, plan_changes))))
    made = {
        Move[node.attr]
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Move"
    }

    assert listed == set(Move)
    assert made == set(Move)


@pytest.mark.parametrize(("state", "move"), UNLISTED)
def test_an_unlisted_move_raises_and_names_both(state: TaskState, move: Move) -> None:
    with pytest.raises(IllegalTransition) as caught:
        moved(state, move)

    assert (caught.value.state, caught.value.move) == (state, move)


def test_only_an_operator_or_the_loss_of_an_output_leaves_a_terminal_state() -> None:
    leaving = {(s, m) for s in TERMINAL for m in TRANSITIONS[s]}

    assert leaving == {
        (TaskState.DEAD, Move.REDRIVEN),
        (TaskState.DEAD, Move.REDRIVEN_LATER),
        (TaskState.SUCCEEDED, Move.OUTPUT_LOST),
    }
