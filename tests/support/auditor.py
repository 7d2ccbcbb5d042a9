"""What must hold of limits and counts under any history, checked against the tasks themselves."""

from collections import defaultdict

from cluster.queue import events as e
from cluster.queue.gates import gates_of, has_room, limit_of
from cluster.queue.model import Gate, Side, State, Task, Usage
from cluster.queue.plan import Role, StepTask
from cluster.queue.rules import Limit
from cluster.queue.state import TERMINAL, TaskState

__all__ = ["StartsAudit", "check_counts", "check_gates"]

S = TaskState
#: Moments are told apart as well as floats of this size allow.
NEARLY_S = 1e-5


def _tasks(state: State) -> list[Task]:
    return [task for job in state.order for task in job.tasks]


def check_counts(state: State) -> None:
    """Counts by tenant, of all, and bytes by queue are those of the unfinished jobs."""
    usage: defaultdict[str, Usage] = defaultdict(Usage)
    size: defaultdict[str, int] = defaultdict(int)
    for job in state.order:
        if not job.finished_at:
            usage[job.tenant].jobs += 1
            usage[job.tenant].bytes += len(job.raw)
            size[job.queue] += len(job.raw)
    assert state.usage == usage
    assert state.total == Usage(
        sum(one.jobs for one in usage.values()), sum(one.bytes for one in usage.values())
    )
    for name, line in state.lines.items():
        mine = [task for task in _tasks(state) if task.line is line]
        assert line.bytes == size[name]
        assert line.chunks == sum(
            isinstance(task, StepTask)
            and task.role is Role.CHUNK
            and task.state not in TERMINAL
            and not (task.job.finished_at and task.state is S.WAITING)
            for task in mine
        )


def check_gates(state: State, *, ticked: bool = False) -> None:
    """Of each gate everything agrees with the tasks; `ticked`: all that time opens is open."""
    at = state.at
    tasks = [task for task in _tasks(state) if task.limits]
    before = dict(state.gates)
    for task in tasks:
        if task.state in (S.READY, S.LEASED):
            gates_of(state, task)
    assert state.gates == before  # no gate is missing, or the above had made it
    assert not state.opening
    for key, gate in state.gates.items():
        assert gate.limit == limit_of(state, key)
        assert gate.in_use or gate.sides or gate.tat, f"nothing is left of {key}"
        mine = [task for task in tasks if key in task.limits]
        assert gate.in_use == sum(task.state is S.LEASED for task in mine)
        ready: defaultdict[str, set[Task]] = defaultdict(set)
        for task in mine:
            if task.state is S.READY:
                ready[task.line.name].add(task)
        assert {name: set(side.ready) for name, side in gate.sides.items() if side.ready} == ready
        for name, side in gate.sides.items():
            assert side.ready or side.size, f"nothing is left of {key} in {name}"
            if side.ready:
                assert has_room(gate, len(side.ready), at), f"more is ready of {key} than may run"
            _check_parked(state, gate, name, side, ticked=ticked)
    parked = [task for task in tasks if task.state is S.PARKED]
    assert parked == [task for task in _tasks(state) if task.state is S.PARKED]
    sides = [side for gate in state.gates.values() for side in gate.sides.values()]
    places = [task for side in sides for _, task in side.in_turn()]
    assert len(places) == len(parked)
    assert set(places) == set(parked)
    assert len(state.openings) <= state.openings_tidy_at


def _check_parked(state: State, gate: Gate, name: str, side: Side, *, ticked: bool) -> None:
    waiting = [task for _, task in side.in_turn()]
    assert len(waiting) == side.size
    assert all(task.line.name == name and gate.key in task.limits for task in waiting)
    assert not side.due_at or (side.due_at, gate.key, name) in state.openings
    if not waiting:
        return
    count = len(side.ready) + 1
    if has_room(gate, count, state.at):
        # Room that time made is given by the next tick.
        assert 0 < side.due_at <= state.at + NEARLY_S
        assert not ticked
    if has_room(gate, count, gate.tat + count / (gate.limit.rate or 1.0)):
        assert side.due_at, f"nobody tells when {gate.key} opens"


class StartsAudit:
    """Sees every event, and holds starts against the limits that they had."""

    def __init__(self, state: State) -> None:
        self._state = state
        #: By key: the limit, and when attempts under it began, by token.
        self._starts: dict[str, tuple[Limit, dict[int, float]]] = {}
        #: By key: how many may run at once; more only where a limit was lowered below what ran.
        self._most: dict[str, int] = {}

    def saw(self, event: e.Event) -> None:
        """Take in an event that was applied."""
        state = self._state
        if isinstance(event, e.TaskLeased):
            task = state.leases[event.token]
            for key in task.limits:
                limit = limit_of(state, key)
                if limit is not None and limit.rate is not None:
                    begins = state.starts[event.token]
                    known, starts = self._starts.get(key, (limit, {}))
                    starts = starts if known == limit else {}
                    self._starts[key] = limit, {**starts, event.token: begins}
                    _check_rate(limit, sorted(self._starts[key][1].values()))
        elif isinstance(event, e.LeaseReleased) and not event.started:
            for _, starts in self._starts.values():
                starts.pop(event.token, None)
        elif isinstance(event, e.ConfigSet):
            self._starts = {
                key: (known, starts)
                for key, (known, starts) in self._starts.items()
                if limit_of(state, key) == known
            }
            self._most = {key: gate.in_use for key, gate in state.gates.items()}
        self._check_concurrency()

    def _check_concurrency(self) -> None:
        for key, gate in self._state.gates.items():
            limit = gate.limit.concurrency
            if limit is None:
                self._most.pop(key, None)
                continue
            most = self._most.get(key, gate.in_use)
            assert gate.in_use <= max(limit, most), f"{gate.in_use} run of {key}, not {limit}"
            self._most[key] = gate.in_use if gate.in_use > limit else 0


def _check_rate(limit: Limit, starts: list[float]) -> None:
    assert limit.rate is not None
    for first, begins in enumerate(starts):
        for last in range(first, len(starts)):
            most = limit.burst + limit.rate * (starts[last] - begins + NEARLY_S)
            assert last - first + 1 <= most, f"{starts[first : last + 1]} under {limit}"
