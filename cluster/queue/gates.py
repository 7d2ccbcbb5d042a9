"""Gates, where jobs that share a limit wait: so many run at once, so many start a second.

Rule 1: of each queue no more tasks are READY than there is room for at each of their gates; others
are PARKED at the first that has none, off the line, where they take turns as in a line. So a worker
that asks never meets what may not start, and nothing spins. Rule 2: what has room is told by
`openings`, in the same commit that made it, or when its time comes. Rule 3: a start takes its place
in time when it is leased, and the worker begins it then: calls are evenly spaced however commits
are.

The rates are kept a little below what was asked for, so that the way to the other side, which is
now quicker and now slower, brings no two calls too close together.
"""

import heapq
from collections.abc import Iterable, Iterator

from cluster.queue import events as e
from cluster.queue.model import OPENINGS_MIN, Gate, Side, State, Task
from cluster.queue.rules import Limit
from cluster.queue.state import Move, TaskState

__all__ = [
    "forget_idle",
    "gates_of",
    "give_back",
    "has_room",
    "is_idle",
    "leave_gates",
    "limit_of",
    "line_up",
    "make_room",
    "next_opening",
    "on_unparked",
    "openings",
    "pass_gates",
    "place_of",
    "put_limits",
    "recall",
    "restore_gates",
    "settle_gates",
]

#: A start is planned so long after its lease: as long as the way to a worker takes.
LEAD_S = 0.008
#: A place in time is given out so long before it comes, that commits are no brake.
AHEAD_S = 0.025
#: Moments closer than this are the same.
NEARLY_S = 1e-6
#: Of the rate that was asked for, so much is used.
USED = 0.98

S = TaskState


def limit_of(state: State, key: str) -> Limit | None:
    """Return the limit of a key: its own, or that of the longest pattern it begins with."""
    found = state.limits.get(key)
    if found is not None:
        return found
    pattern = next((begin for begin in state.patterns if key.startswith(begin)), None)
    return None if pattern is None else state.limits[f"{pattern}*"]


def gates_of(state: State, task: Task) -> list[Gate]:
    """Return the gates that a task passes, those that are new included."""
    found = []
    for key in task.limits if state.limits else ():
        gate = state.gates.get(key)
        if gate is None and (limit := limit_of(state, key)) is not None:
            gate = state.gates[key] = Gate(key, limit)
        if gate is not None:
            found.append(gate)
    return found


def _side(state: State, gate: Gate, task: Task) -> Side:
    name = task.line.name
    side = gate.sides.get(name)
    if side is None:
        side = gate.sides[name] = Side(name, state.shares)
    return side


def _interval_s(limit: Limit) -> float:
    return 1.0 / (limit.rate * USED) if limit.rate else 0.0


def has_room(gate: Gate, count: int, at: float) -> bool:
    """Whether so many could be leased now, one after the other."""
    limit = gate.limit
    if limit.concurrency is not None and gate.in_use + count > limit.concurrency:
        return False
    if limit.rate is None:
        return True
    last = max(gate.tat, at + LEAD_S) + (count - limit.burst) * _interval_s(limit)
    return last <= at + AHEAD_S + NEARLY_S


def _room_at(gate: Gate, count: int, at: float) -> float:
    """Return when there is room for `count`, as far as only time is lacking; else 0."""
    limit = gate.limit
    if limit.concurrency is not None and gate.in_use + count > limit.concurrency:
        return 0.0
    later_s = (count - limit.burst) * _interval_s(limit)
    # More than fit at once: one of them has to start before.
    return gate.tat + later_s - AHEAD_S if LEAD_S + later_s <= AHEAD_S + NEARLY_S else 0.0


def line_up(state: State, task: Task, at: float) -> None:
    """Put a task that became READY in line, or park it."""
    if not (state.limits and task.limits) or _admit(state, task, at):
        task.line.push(task)


def _admit(state: State, task: Task, at: float) -> bool:
    """Take a place at each gate of a READY task; park it at the first that has none."""
    gates = gates_of(state, task)
    # Who waits already goes first.
    full = next((g for g in gates if _has_waiting(g, task) or not _has_place(g, task, at)), None)
    if full is None:
        for gate in gates:
            _side(state, gate, task).ready[task] = None
        return True
    _park(state, full, _side(state, full, task), task, at)
    for gate in gates:
        forget_idle(state, gate, at)
    return False


def _has_waiting(gate: Gate, task: Task) -> bool:
    side = gate.sides.get(task.line.name)
    return side is not None and side.size > 0


def _has_place(gate: Gate, task: Task, at: float) -> bool:
    side = gate.sides.get(task.line.name)
    return has_room(gate, 1 if side is None else len(side.ready) + 1, at)


def _park(state: State, gate: Gate, side: Side, task: Task, at: float) -> None:
    task.move(Move.PARKED)
    side.push(task)
    _settle(state, gate, side, at)


def give_back(state: State, task: Task, token: int, at: float) -> None:
    """Put a READY task back in line, or first at a limit, that lost a lease which it never used."""
    gates = gates_of(state, task)
    for gate in gates:
        if gate.last == token:
            # Of any other the place in time is lost: what came after it begins where it was told.
            gate.tat, gate.last = gate.before, 0
    full = next((g for g in gates if not _has_place(g, task, at)), None)
    if full is None:
        for gate in gates:
            _side(state, gate, task).ready[task] = None
        if task.ticket:
            task.line.push_front(task)
        else:  # it was moved here meanwhile, and has no place to go back to
            task.line.push(task)
    else:
        task.move(Move.PARKED)
        _side(state, full, task).push_first(task)
    for gate in gates:
        _settle_all(state, gate, at)


def recall(state: State, task: Task, at: float) -> None:
    """Put a task in line again that stepped back for one that was picked beside it."""
    _, side = place_of(state, task)
    side.remove(task)
    task.move(Move.UNPARKED)
    for gate in gates_of(state, task):
        _side(state, gate, task).ready[task] = None
    task.line.push(task)


def pass_gates(state: State, task: Task, token: int, at: float) -> None:
    """Let a task that was leased through its gates, and say when it may begin."""
    gates = gates_of(state, task)
    begins = max((_begins_at(g, at) for g in gates if g.limit.rate is not None), default=0.0)
    for gate in gates:
        del _side(state, gate, task).ready[task]
        gate.in_use += 1
        if gate.limit.rate is not None:
            gate.last, gate.before = token, gate.tat
            gate.tat = max(gate.tat, begins) + _interval_s(gate.limit)
    for gate in gates:
        for side in list(gate.sides.values()):
            while side.ready and not has_room(gate, len(side.ready), at):
                # Another queue was quicker, or another limit lets this one begin later.
                last = min(side.ready, key=lambda task: (task.job.priority, -task.ticket))
                _step_back(state, gate, side, last, at)
            _settle(state, gate, side, at)
    if begins:
        state.starts[token] = begins


def _begins_at(gate: Gate, at: float) -> float:
    return max(at + LEAD_S, gate.tat - (gate.limit.burst - 1) * _interval_s(gate.limit))


def _step_back(state: State, gate: Gate, side: Side, task: Task, at: float) -> None:
    task.line.remove(task)
    task.move(Move.PARKED)
    side.push_first(task)
    for other in gates_of(state, task):
        there = _side(state, other, task)
        del there.ready[task]
        if other is not gate:
            _settle(state, other, there, at)


def make_room(state: State, task: Task, at: float) -> None:
    """Let the end of a lease make room."""
    for gate in gates_of(state, task):
        gate.in_use -= 1
        _settle_all(state, gate, at)


def leave_gates(state: State, task: Task, at: float) -> None:
    """Take a task that is READY or PARKED, and will not run now, from its gates."""
    for gate in gates_of(state, task):
        side = _side(state, gate, task)
        if task.state is S.READY:
            del side.ready[task]
        elif task in side:
            side.remove(task)
        _settle_all(state, gate, at)


def _settle_all(state: State, gate: Gate, at: float) -> None:
    for side in list(gate.sides.values()):
        _settle(state, gate, side, at)
    forget_idle(state, gate, at)


def _settle(state: State, gate: Gate, side: Side, at: float) -> None:
    """Note what one side waits for now; forget what holds nothing."""
    name = gate.key, side.line
    was, side.due_at = side.due_at, 0.0
    state.opening.pop(name, None)
    if side.size:
        count = len(side.ready) + 1
        if has_room(gate, count, at):
            state.opening[name] = None
        elif due_at := _room_at(gate, count, at):
            side.due_at = due_at
            if due_at != was:
                heapq.heappush(state.openings, (due_at, *name))
                _tidy_openings(state)
    elif not side.ready:
        gate.sides.pop(side.line, None)
        forget_idle(state, gate, at)


def _tidy_openings(state: State) -> None:
    if len(state.openings) > state.openings_tidy_at:
        live = {entry for entry in state.openings if _is_due(state, entry)}
        state.openings = sorted(live)
        state.openings_tidy_at = 2 * len(live) + OPENINGS_MIN


def is_idle(gate: Gate, at: float) -> bool:
    """Whether a gate holds nothing, and holds nobody back: it is like a new one."""
    return not (gate.in_use or gate.sides) and gate.tat <= at


def forget_idle(state: State, gate: Gate, at: float) -> None:
    """Forget a gate that is like a new one."""
    if is_idle(gate, at):
        state.gates.pop(gate.key, None)


def next_opening(state: State) -> float | None:
    """Return when time opens a gate next."""
    heap = state.openings
    while heap and not _is_due(state, heap[0]):
        heapq.heappop(heap)
    return heap[0][0] if heap else None


def _is_due(state: State, entry: tuple[float, str, str]) -> bool:
    gate = state.gates.get(entry[1])
    side = gate.sides.get(entry[2]) if gate is not None else None
    return side is not None and side.due_at == entry[0]


def openings(state: State, at: float, limit: int, aged_before: float) -> Iterator[e.TaskUnparked]:
    """Yield up to `limit` tasks for which there is room, those of one gate in turn.

    `aged_before`: as for a line.
    """
    names = dict(state.opening)
    heap = state.openings
    front = [0] if heap else []
    while front:  # down the heap from its top, as far as it is due
        entry_at = front.pop()
        if heap[entry_at][0] > at + NEARLY_S:
            continue
        if _is_due(state, heap[entry_at]):
            names[heap[entry_at][1:]] = None
        front += [child for child in (2 * entry_at + 1, 2 * entry_at + 2) if child < len(heap)]
    for key, line in names:
        gate = state.gates[key]
        side = gate.sides[line]
        count = len(side.ready)
        for _, task in side.in_turn(aged_before):
            count += 1
            if not limit or not has_room(gate, count, at):
                break
            limit -= 1
            yield e.TaskUnparked(task.job.id, task.id)


def on_unparked(state: State, task: Task, at: float) -> None:
    """Put a parked task in line, or park it where it lacks room still."""
    gate, side = place_of(state, task)
    side.remove(task, served=True)
    task.move(Move.UNPARKED)
    gates = gates_of(state, task)
    # Elsewhere room is enough, whoever waits there: two that wait for each other's turn would
    # change places for ever.
    full = next((g for g in gates if not _has_place(g, task, at)), None)
    if full is None:
        for other in gates:
            _side(state, other, task).ready[task] = None
        task.line.push(task)
        for other in gates:
            if other is not gate:
                _settle(state, other, _side(state, other, task), at)
    else:
        _park(state, full, _side(state, full, task), task, at)
        for other in gates:
            forget_idle(state, other, at)
    _settle(state, gate, side, at)


def place_of(state: State, task: Task) -> tuple[Gate, Side]:
    """Return where a parked task waits."""
    return next(
        (gate, side)
        for key in task.limits  # not `gates_of`, which makes those that are not there
        if (gate := state.gates.get(key)) is not None
        and (side := gate.sides.get(task.line.name)) is not None
        and task in side
    )


def restore_gates(state: State, tasks: Iterable[Task]) -> None:
    """Let tasks take the places that they have, each in the order of tickets."""
    for task in tasks:
        for gate in gates_of(state, task):
            if task.state is S.LEASED:
                gate.in_use += 1
            elif task.state is S.READY:
                _side(state, gate, task).ready[task] = None


def settle_gates(state: State, at: float) -> None:
    """Note of every gate what it waits for."""
    for gate in list(state.gates.values()):
        _settle_all(state, gate, at)


def put_limits(state: State, limits: dict[str, Limit], at: float) -> None:
    """Let these limits hold from now on: all that waits is lined up anew."""
    if limits == state.limits:
        return
    tasks = [task for job in state.order for task in job.tasks if task.limits]
    waiting = [task for task in tasks if task.state in (S.READY, S.PARKED)]
    for task in waiting:
        if task.state is S.READY:
            task.line.remove(task)
        else:
            task.move(Move.UNPARKED)
    before = list(state.gates.values())
    for held in (state.gates, state.opening, state.openings):
        held.clear()
    state.limit_by(limits)
    for task in tasks:
        if task.state is S.LEASED:
            for gate in gates_of(state, task):
                gate.in_use += 1
    for old in before:
        limit = limit_of(state, old.key)
        if limit is not None and limit.rate is not None and old.tat > at:
            # What was used up stays so, in starts rather than in seconds.
            gate = state.gates.setdefault(old.key, Gate(old.key, limit))
            gate.tat = at + (old.tat - at) * _interval_s(limit) / _interval_s(old.limit)
    for task in sorted(waiting, key=lambda task: (task.ready_at, task.job.number)):
        line_up(state, task, at)
