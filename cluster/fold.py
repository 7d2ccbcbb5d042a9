"""The state as the store has it: the newest snapshot, and the segments after it.

Rule 1: nothing is passed over: the first thing amiss is Corrupt. Rule 2: reading changes nothing,
and may go on while a manager writes and a compactor deletes.
"""

from dataclasses import dataclass

from cluster.queue.engine import evolve
from cluster.queue.events import from_row
from cluster.queue.model import State
from cluster.queue.snapshot import SNAPSHOT_VERSION, load
from cluster.store.contract import Objects
from cluster.store.identity import open_identity
from cluster.store.journal import Journal
from cluster.store.snapshot import Snapshots
from jobs.errors import Corrupt, NotFound

__all__ = ["Folded", "fold", "fold_store"]


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
        load(rows, state)
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
        columns = (
            segment.kind,
            segment.job_id,
            segment.task_id,
            segment.attempt,
            segment.token,
            segment.data,
        )
        for at, *row in zip(segment.at, *columns, strict=True):
            evolve(state, from_row(tuple(row)), at)
        folded.number = found.number
        if found.number == upto:
            break
    return folded


def fold_store(store: Objects, journal_objects: Objects) -> Folded:
    """Rebuild the state of a store that may be in use. Changes nothing."""
    identity = open_identity(store, journal_objects)
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
