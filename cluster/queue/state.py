"""Where a task can be, and every way it can move.

Rule 1: only this file says which moves exist. Rule 2: an unlisted move raises and changes nothing.
Rule 3: nothing here knows the time, Ray, or which worker asked. Policy (is this failure the last
one allowed?) lives in `engine.decide`; legality lives here.
"""

from collections.abc import Mapping
from enum import StrEnum

from jobs.errors import DraymanError, Kind

__all__ = [
    "TERMINAL",
    "TRANSITIONS",
    "UNFINISHED",
    "IllegalTransition",
    "Move",
    "TaskState",
    "moved",
]


class TaskState(StrEnum):
    """Where a task is. Written only by `evolve`."""

    # Enum hashes by name, in Python; these are looked up several times a job.
    __hash__ = str.__hash__

    #: Something it needs is not there yet: a moment (`run_at`), the output of another task that was
    #: lost, or the job's going on. The timer, or its plan, moves it on.
    WAITING = "waiting"
    #: In line. A worker's exchange moves it on.
    READY = "ready"
    #: A worker holds the token. Its report, or its death, moves it on.
    LEASED = "leased"
    #: Failed or snoozed; runs again at `due_at`. The timer moves it on.
    BACKING_OFF = "backing_off"
    #: Its output is committed. Final, unless that output is lost and still needed.
    SUCCEEDED = "succeeded"
    #: In the dead-letter queue with every error kept. Only an operator moves it on.
    DEAD = "dead"
    #: Final.
    CANCELLED = "cancelled"
    #: Off the line: as much runs as a limit allows. Whoever leaves, or time, makes room.
    PARKED = "parked"


class Move(StrEnum):
    """What can happen to a task. Each is caused by exactly one kind of journal event."""

    __hash__ = str.__hash__

    NEEDS_MET = "needs_met"
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CRASHED = "crashed"
    RELEASED = "released"
    SNOOZED = "snoozed"
    BACKOFF_ELAPSED = "backoff_elapsed"
    EXHAUSTED = "exhausted"
    CANCELLED = "cancelled"
    REDRIVEN = "redriven"
    WITHDRAWN = "withdrawn"
    INPUTS_LOST = "inputs_lost"
    OUTPUT_LOST = "output_lost"
    PARKED = "parked"
    UNPARKED = "unparked"
    REDRIVEN_LATER = "redriven_later"


S, M = TaskState, Move

TRANSITIONS: Mapping[TaskState, Mapping[Move, TaskState]] = {
    S.WAITING: {M.NEEDS_MET: S.READY, M.CANCELLED: S.CANCELLED},
    S.READY: {
        M.LEASED: S.LEASED,
        M.CANCELLED: S.CANCELLED,
        M.WITHDRAWN: S.WAITING,  # its job will not go on without an operator
        M.PARKED: S.PARKED,
    },
    S.PARKED: {
        M.UNPARKED: S.READY,
        M.CANCELLED: S.CANCELLED,
        M.WITHDRAWN: S.WAITING,
    },
    S.LEASED: {
        M.SUCCEEDED: S.SUCCEEDED,
        M.FAILED: S.BACKING_OFF,  # charged an attempt, more are left
        M.CRASHED: S.READY,  # charged a recovery, more are left
        M.RELEASED: S.READY,  # charged nothing
        M.SNOOZED: S.BACKING_OFF,
        M.INPUTS_LOST: S.WAITING,  # charged nothing; those that made them run again first
        M.EXHAUSTED: S.DEAD,
        M.CANCELLED: S.CANCELLED,  # the stop bit; until then it stays LEASED and holds its slot
    },
    S.BACKING_OFF: {
        M.BACKOFF_ELAPSED: S.READY,
        M.CANCELLED: S.CANCELLED,
        M.WITHDRAWN: S.WAITING,
    },
    S.SUCCEEDED: {M.OUTPUT_LOST: S.READY},
    S.DEAD: {M.REDRIVEN: S.READY, M.REDRIVEN_LATER: S.BACKING_OFF},
    S.CANCELLED: {},
}

TERMINAL = frozenset({S.SUCCEEDED, S.DEAD, S.CANCELLED})
UNFINISHED = frozenset(S) - TERMINAL


class IllegalTransition(DraymanError):
    """The state has no such move; nothing was changed. Reaching a user, it is our bug."""

    kind = Kind.CONFLICT

    def __init__(self, state: str, move: str) -> None:
        super().__init__(state, move)
        self.state, self.move = state, move

    def __str__(self) -> str:
        return f"a task that is {self.state} cannot be {self.move}"


def moved(state: TaskState, move: Move) -> TaskState:
    """Return where `move` leads from `state`; raise IllegalTransition if nowhere."""
    target = TRANSITIONS[state].get(move)
    if target is None:
        raise IllegalTransition(state, move)
    return target
