"""Folding the journal: what is over goes into history, what is not into a snapshot.

Runs outside the manager, so that the commit loop never waits for it. Rule 1: everything written is
named after the segments it covers and made of nothing else, so a compaction that died half-way is
done again to the same end. Rule 2: history first, then the snapshot; only then does the manager
journal that both are there, and only then are jobs evicted. Rule 3: a segment that holds a claim is
never deleted: the name that a manager which slept through all this would write next stays taken.
"""

from collections.abc import Iterable
from typing import Protocol

import msgspec

from cluster.fold import fold
from cluster.history.rows import finished_after
from cluster.history.writer import maintain
from cluster.history.writer import write as write_history
from cluster.queue.plan import steps_of
from cluster.queue.snapshot import SNAPSHOT_VERSION, dump
from cluster.store.contract import Objects
from cluster.store.identity import known_identity
from cluster.store.journal import Journal
from cluster.store.snapshot import Snapshots
from jobs.errors import Corrupt

__all__ = ["CompactionDone", "CompactionPlan", "CompactorPort", "compact"]


class CompactionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a compactor is to do."""

    #: Segments to fold.
    first: int
    last: int
    #: Segments that an earlier compaction covered, and that may be deleted now but for the claims.
    covered: int
    claims: list[int]
    #: History older than this many days goes, with the results and logs of its jobs.
    retention_days: float | None = None


class CompactionDone(msgspec.Struct, frozen=True, kw_only=True):
    """What was folded; durable."""

    last: int
    #: Number of the last event in it.
    seq: int
    #: Jobs, and chunks of jobs, that are in history now; and rows of the snapshot.
    finished: int
    rows: int
    #: Size of the snapshot.
    snapshot_bytes: int = 0


class CompactorPort(Protocol):
    """Where a compaction runs."""

    async def compact(self, plan: bytes) -> bytes:
        """Carry out an encoded CompactionPlan; return an encoded CompactionDone."""


def compact(
    store: Objects,
    journal_objects: Objects,
    plan: CompactionPlan,
    *,
    now: float,
) -> CompactionDone:
    """Fold the planned segments. Safe to repeat, also after it died anywhere."""
    journal_id = known_identity(store, journal_objects).journal_id
    journal = Journal(journal_objects, journal_id=journal_id)
    snapshots = Snapshots(store, journal_id, SNAPSHOT_VERSION)
    folded = fold(journal, snapshots, upto=plan.last)
    if folded.number != plan.last:
        raise Corrupt(journal.path(plan.last), f"was to be folded, but {folded.number} is the last")
    # A store may lose a file. Where the snapshot that covers them was not what this began with,
    # they are all there is until this has written its own.
    if folded.base >= plan.covered:
        _clean(journal_objects, journal, snapshots, plan.covered, plan.claims)
    state = folded.state
    done = CompactionDone(last=plan.last, seq=state.seq, finished=0, rows=0)
    if folded.base != plan.last:  # else an earlier try got this far
        # History may have more than the snapshot that this began with.
        finished = finished_after(state, max(folded.base_seq, state.compacted_seq))
        write_history(store, plan.first, plan.last, finished, state)
        chunks = sum(len(s.finished) for j in state.plans.values() for s in steps_of(j))
        rows = list(dump(state, through=state.seq))
        size = snapshots.write(plan.last, state.seq, rows)
        done = CompactionDone(
            last=plan.last,
            seq=state.seq,
            finished=len(finished) + chunks,
            rows=len(rows),
            snapshot_bytes=size,
        )
    maintain(store, now, plan.retention_days)
    return done


def _clean(
    journal_objects: Objects,
    journal: Journal,
    snapshots: Snapshots,
    covered: int,
    claims: Iterable[int],
) -> None:
    """Delete what an earlier compaction covered."""
    if not covered:
        return
    kept = set(claims)
    old = [number for number in journal.numbers_upto(covered) if number not in kept]
    journal_objects.delete(map(journal.path, old))
    snapshots.delete_before(covered)
