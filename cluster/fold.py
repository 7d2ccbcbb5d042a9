"""The state as the store has it: the newest snapshot, and the segments after it.

Rule 1: nothing is passed over: the first thing amiss is Corrupt. Rule 2: reading changes nothing,
and may go on while a manager writes and a compactor deletes.
"""

from dataclasses import dataclass
from itertools import groupby

from cluster.queue.engine import evolve_all
from cluster.queue.events import Event, Row, from_row
from cluster.queue.model import State
from cluster.queue.snapshot import SNAPSHOT_VERSION, load
from cluster.queue.state import IllegalTransition
from cluster.store.contract import Objects
from cluster.store.identity import known_identity
from cluster.store.journal import Journal
from cluster.store.segment import Rows
from cluster.store.snapshot import Snapshots
from jobs.errors import Corrupt, NotFound

__all__ = ["Folded", "fold", "fold_store", "read_event"]

#: What reading bytes of another making ends in, here or in the rules that meet them.
_FOREIGN = (LookupError, TypeError, ValueError, AttributeError, AssertionError)


@dataclass(slots=True)
class Folded:
    """The state after some segment."""

    state: State
    #: The last segment folded in, and the segment its snapshot covers (0: there was none).
    number: int
    base: int
    #: Number of the last event that snapshot holds.
    base_seq: int


def fold(
    journal: Journal, snapshots: Snapshots, *, upto: int | None = None, state: State | None = None
) -> Folded:
    """Rebuild the state from the newest snapshot and the segments after it.

    `upto` ends it at that segment. Raises Corrupt at the first thing amiss: nothing is passed over.
    """
    bases = [n for n in snapshots.numbers() if upto is None or n <= upto]
    base = bases[-1] if bases else 0
    state = State() if state is None else state
    if base:
        header, rows = snapshots.read(base)
        try:
            load(rows, state)
        except _FOREIGN as error:
            raise Corrupt(
                snapshots.path(base), f"holds a row nobody can read: {error!r}"
            ) from error
        if state.seq != header.seq:
            raise Corrupt(snapshots.path(base), f"holds event {state.seq}, not {header.seq}")
    folded = Folded(state, base, base, state.seq)
    if upto is not None and base >= upto:
        return folded
    for found, segment in journal.read(after=base):
        if found.first_seq != state.seq + 1:
            raise Corrupt(
                journal.path(found.number),
                f"begins with event {found.first_seq}, though {state.seq} came before it",
            )
        _apply(journal.path(found.number), segment, state)
        folded.number = found.number
        if found.number == upto:
            break
    return folded


def _apply(path: str, segment: Rows, state: State) -> None:
    """Evolve by a segment's events. Corrupt, naming the event, where one is foreign or amiss."""
    rows: list[Row] = list(zip(*segment.event_columns, strict=True))
    before = state.seq
    try:
        for at, group in groupby(range(len(rows)), segment.at.__getitem__):
            evolve_all(state, [from_row(rows[i]) for i in group], at)
    except (*_FOREIGN, IllegalTransition) as error:
        number = state.seq + 1
        row = rows[number - 1 - before]
        read_event(path, number, row)
        raise Corrupt(
            path, f"event {number} ({row[0]}) does not follow from those before it: {error!r}"
        ) from error


def read_event(path: str, number: int, row: Row) -> Event:
    """Return the event a row stands for; Corrupt says what a foreign one is."""
    try:
        return from_row(row)
    except KeyError:
        raise Corrupt(
            path,
            f"event {number} is of a kind that this version does not know, {row[0]!r}; start the "
            "newer version",
        ) from None
    except _FOREIGN as error:
        raise Corrupt(path, f"event {number} ({row[0]}) can't be read: {error}") from error


def fold_store(store: Objects, journal_objects: Objects) -> Folded:
    """Rebuild the state of a store that may be in use. Changes nothing."""
    identity = known_identity(store, journal_objects)
    journal = Journal(journal_objects, journal_id=identity.journal_id)
    snapshots = Snapshots(store, identity.journal_id, SNAPSHOT_VERSION)
    while True:
        newest = snapshots.numbers()[-1:]
        try:
            return fold(journal, snapshots)
        except (Corrupt, NotFound):
            # What was listed may have been covered and deleted meanwhile; then there is a newer
            # snapshot to begin at.
            if snapshots.numbers()[-1:] == newest:
                raise
