"""What lies in a store, looked at from outside: every object of Drayman's own, and what is amiss.

Rule 1: it changes nothing, and may look while a manager writes and a compactor deletes. Rule 2: it
goes on after the first thing amiss: whoever repairs a store wants the whole list. Rule 3: what it
calls whole, a manager starts from; it replays the journal with the same rules to be sure.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import pyarrow as pa

from cluster.fold import fold, read_event
from cluster.intake import unseal
from cluster.queue.engine import job_status
from cluster.queue.events import Event, ManagerStarted, ManagerStopped
from cluster.queue.snapshot import SNAPSHOT_VERSION
from cluster.store.contract import ObjectInfo, Objects
from cluster.store.identity import Identity, read_identities
from cluster.store.journal import Journal
from cluster.store.objects import PROBE_PREFIX
from cluster.store.parquet import open_table
from cluster.store.sealed import locate
from cluster.store.segment import Rows, SegmentHeader
from cluster.store.snapshot import Snapshots
from jobs.errors import Corrupt, DraymanError, NotFound

__all__ = ["Level", "Seen", "survey"]

Level = Literal["ok", "note", "wrong"]

_SEGMENT = re.compile(r"journal/(\d{20})\.parquet")
_SNAPSHOT = re.compile(r"snapshots/(\d{20})\.parquet")
_HISTORY = re.compile(r"history/(jobs|attempts)/date=\d{4}-\d\d-\d\d/(\d{20})-(\d{20})\.parquet")
_IDENTITIES = ("store/identity.json", "journal-identity.json")
#: Files of jobs and of the API: counted, not read.
_COUNTED = ("results/", "logs/", "uploads/", "tokens/", "params/", "code/", "lineage/")


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing found: where, what, and for programs the numbers of it."""

    path: str
    level: Level
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


def survey(store: Objects, journal: Objects | None = None) -> Iterator[Seen]:
    """Look at everything in the store, and in the journal's own if it has one.

    Raises Unavailable where the store does not answer.
    """
    beside = journal or store
    # The journal is listed first: what compaction deletes meanwhile is then in the snapshots.
    segments = list(beside.list("journal/"))
    rest = [i for i in store.list("") if beside is not store or not i.path.startswith("journal/")]
    yield from _Survey(store, beside, segments, rest).all()


class _Survey:
    def __init__(
        self, store: Objects, beside: Objects, segments: list[ObjectInfo], rest: list[ObjectInfo]
    ) -> None:
        self._store, self._beside = store, beside
        self._segments, self._rest = segments, rest
        self._journal_id: str | None = None
        self._is_damaged = False
        #: What the newest snapshot covers; 0 without one.
        self._base = self._base_seq = 0
        #: The last claim, its moment, and whether its manager stopped in good order.
        self._claim: tuple[ManagerStarted, float] | None = None
        self._stopped = False

    def all(self) -> Iterator[Seen]:
        if not self._segments and not self._rest:
            yield Seen(self._store.url, "note", "is empty: `drayman up` makes a new store of it")
            return
        parts = (self._identity, self._snapshots, self._journal, self._history, self._intake)
        for seen in (seen for part in (*parts, self._others) for seen in part()):
            self._is_damaged |= seen.level == "wrong"
            yield seen
        if not self._is_damaged:
            yield from self._state()

    def _named(self, prefix: str) -> list[ObjectInfo]:
        return [info for info in self._rest if info.path.startswith(prefix)]

    # --- identity -----------------------------------------------------------------------------

    def _identity(self) -> Iterator[Seen]:
        try:
            known, beside = read_identities(self._store, self._beside)
        except Corrupt as error:
            yield Seen(error.path, "wrong", error.reason)
            return
        pair = known or beside
        self._journal_id = pair.journal_id if pair else None
        yield _identity(known, beside, self._store.url, self._beside.url)

    # --- snapshots ----------------------------------------------------------------------------

    def _snapshots(self) -> Iterator[Seen]:
        for info in self._named("snapshots/"):
            match = _SNAPSHOT.fullmatch(info.path)
            if match is None:
                yield Seen(info.path, "wrong", "foreign file: move it out of snapshots/")
                continue
            snapshots = Snapshots(self._store, self._journal_id or "", SNAPSHOT_VERSION)
            try:
                header, rows = snapshots.read(int(match[1]))
                count = sum(1 for _ in rows)
            except NotFound:
                yield _gone(info)
                continue
            except Corrupt as error:
                yield Seen(info.path, "wrong", _where(self._store, error), {"bytes": info.bytes})
                # It covers what may be deleted: no gap below it is the journal's fault.
                self._base, self._base_seq = int(match[1]), 0
                continue
            self._base, self._base_seq = header.last, header.seq
            yield Seen(
                info.path,
                "ok",
                f"checksum ok; {count} rows, up to segment {header.last} and event {header.seq}",
                {"last": header.last, "seq": header.seq, "rows": count, "bytes": info.bytes},
            )

    # --- the journal --------------------------------------------------------------------------

    def _journal(self) -> Iterator[Seen]:
        journal = Journal(self._beside)
        previous: SegmentHeader | None = None
        expected = 0  # of the part after the snapshot; 0 before its first
        numbers = []
        for info in self._segments:
            if (match := _SEGMENT.fullmatch(info.path)) is None:
                yield Seen(info.path, "wrong", "foreign file: move it out of journal/")
            else:
                numbers.append(int(match[1]))
        for number, read in journal.read_each(numbers):
            path = journal.path(number)
            if number > self._base:
                expected = expected or self._base + 1
                if number != expected:
                    yield _gap(journal, expected, number)
                expected = number + 1
            if previous is not None and number != previous.number + 1:
                previous = None  # compaction deleted what lay between, or it is told
            if isinstance(read, NotFound):
                yield Seen(path, "note", "was deleted while this looked, by a compaction")
                previous = None
                continue
            if isinstance(read, Corrupt):
                yield Seen(path, "wrong", _where(self._beside, read), {"number": number})
                previous = None
                continue
            header, rows = read
            amiss = list(self._amiss(path, number, header, rows, previous))
            yield _segment(path, header, rows, amiss)
            previous = header
        if not numbers:
            yield Seen("journal/", "note", "holds no segment: no manager ever started here")
        elif self._claim is not None:
            yield _owner(*self._claim, self._stopped)

    def _amiss(
        self,
        path: str,
        number: int,
        header: SegmentHeader,
        rows: Rows,
        previous: SegmentHeader | None,
    ) -> Iterator[str]:
        if header.number != number:
            yield f"holds segment {header.number}: put it back under its name"
        if self._journal_id is not None and header.journal_id != self._journal_id:
            yield f"belongs to another journal, {header.journal_id}, not {self._journal_id}"
        if previous is not None and header.first_seq != previous.first_seq + previous.rows:
            yield f"begins with event {header.first_seq}, out of order"
        if number == self._base + 1 and self._base_seq and header.first_seq != self._base_seq + 1:
            yield f"begins with event {header.first_seq}, the snapshot ends with {self._base_seq}"
        if previous is not None and header.epoch < previous.epoch:
            yield f"has epoch {header.epoch} after {previous.epoch}"
        for seq, at, row in zip(
            rows.seq, rows.at, zip(*rows.event_columns, strict=True), strict=True
        ):
            try:
                self._note_owner(read_event(path, seq, row), at)
            except Corrupt as error:
                yield error.reason

    def _note_owner(self, event: Event, at: float) -> None:
        if isinstance(event, ManagerStarted):
            self._claim, self._stopped = (event, at), False
        elif isinstance(event, ManagerStopped):
            self._stopped = True

    # --- everything else ----------------------------------------------------------------------

    def _history(self) -> Iterator[Seen]:
        for info in self._named("history/"):
            if _HISTORY.fullmatch(info.path) is None:
                yield Seen(info.path, "note", "unknown file in history/: not read by Drayman")
                continue
            try:
                with self._store.open_read(info.path) as file:
                    rows = sum(batch.num_rows for batch in open_table(file).iter_batches())
            except NotFound:
                yield _gone(info)
            except (pa.ArrowException, OSError) as error:
                yield Seen(info.path, "wrong", f"is no Parquet file, or damaged: {error}")
            else:
                facts = {"rows": rows, "bytes": info.bytes}
                yield Seen(info.path, "ok", f"{rows} rows", facts)

    def _intake(self) -> Iterator[Seen]:
        for info in self._named("intake/"):
            try:
                batch = unseal(info.path, self._store.get(info.path))
            except NotFound:
                yield _gone(info)
            except Corrupt as error:
                yield Seen(info.path, "wrong", f"{error.reason}: move it out of intake/")
            else:
                jobs = len(batch.submissions)
                text = f"{jobs} jobs, accepted while the manager was away; the next one takes them"
                yield Seen(info.path, "note", text, {"jobs": jobs})

    def _others(self) -> Iterator[Seen]:
        known = (*_COUNTED, "snapshots/", "history/", "intake/")
        for prefix in _COUNTED:
            infos = self._named(prefix)
            if infos:
                size = sum(info.bytes for info in infos)
                text = f"{len(infos)} objects, {size} bytes"
                yield Seen(prefix, "ok", text, {"objects": len(infos), "bytes": size})
        strangers = [i for i in self._rest if not i.path.startswith(known)]
        for info in strangers:
            if info.path.startswith(PROBE_PREFIX):
                yield Seen(info.path, "note", "left by a start that was killed; may be deleted")
            elif info.path not in _IDENTITIES:
                yield Seen(info.path, "note", "unknown file: Drayman neither reads nor needs it")

    def _state(self) -> Iterator[Seen]:
        """Replay what is whole, as the next manager will."""
        if not self._segments or self._journal_id is None:
            return
        journal = Journal(self._beside, journal_id=self._journal_id)
        snapshots = Snapshots(self._store, self._journal_id, SNAPSHOT_VERSION)
        try:
            folded = fold(journal, snapshots)
        except DraymanError as error:
            if list(self._store.list("snapshots/")) == self._named("snapshots/"):
                yield Seen("journal/", "wrong", f"can't be replayed: {error}")
            else:
                yield Seen("journal/", "note", "was compacted while this looked; look again")
            return
        jobs = folded.state.jobs.values()
        by_status = Counter(job_status(job) for job in jobs if job.tasks)
        told = ", ".join(f"{count} {status}" for status, count in sorted(by_status.items()))
        yield Seen(
            "journal/",
            "ok",
            f"replays to event {folded.state.seq}; jobs in memory: {told or 'none'}",
            {"segments": len(self._segments), "seq": folded.state.seq, "jobs": dict(by_status)},
        )


def _identity(known: Identity | None, beside: Identity | None, url: str, journal_url: str) -> Seen:
    path = _IDENTITIES[0]
    if known is None and beside is None:
        return Seen(path, "wrong", "is missing: restore it, or this is no store of Drayman's")
    if known is None:
        text = f"is missing: the journal at {journal_url} was written for another store"
        return Seen(path, "wrong", text)
    facts = msgspec.to_builtins(known)
    if beside is None:
        text = f"the journal is not at {journal_url}; it was written at {known.journal_url}"
        return Seen(_IDENTITIES[1], "wrong", text, facts)
    if beside != known:
        text = f"is of journal {beside.journal_id}; this store's is {known.journal_id}"
        return Seen(_IDENTITIES[1], "wrong", text, facts)
    text = f"store {known.store_id}, journal {known.journal_id}, made at {known.journal_url}"
    return Seen(path, "ok", text, facts)


def _segment(path: str, header: SegmentHeader, rows: Rows, amiss: list[str]) -> Seen:
    last = header.first_seq + header.rows - 1
    facts = {
        "number": header.number,
        "epoch": header.epoch,
        "rows": header.rows,
        "first_seq": header.first_seq,
        "last_seq": last,
        "from": _moment(rows.at[0]) if rows.at else None,
        "to": _moment(rows.at[-1]) if rows.at else None,
    }
    text = f"checksum ok; {header.rows} rows, events {header.first_seq} to {last}"
    if amiss:
        return Seen(path, "wrong", f"{text}; but {'; '.join(amiss)}", facts)
    return Seen(path, "ok", f"{text}, epoch {header.epoch}, {facts['to']}", facts)


def _gap(journal: Journal, expected: int, number: int) -> Seen:
    missing = (
        f"segments {expected} to {number - 1} are missing"
        if number - expected > 1
        else f"segment {expected} is missing"
    )
    text = f"{missing}, though {number} is there: restore from a copy"
    facts = {"first_missing": expected, "last_missing": number - 1}
    return Seen(journal.path(expected), "wrong", text, facts)


def _owner(claim: ManagerStarted, at: float, stopped: bool) -> Seen:
    facts = {
        "cluster_id": claim.cluster_id,
        "epoch": claim.epoch,
        "version": claim.version,
        "started_at": _moment(at),
        "stopped": stopped,
    }
    text = (
        f"last used by cluster {claim.cluster_id or '(unnamed)'}, version "
        f"{claim.version or '(unknown)'}, since {facts['started_at']}"
    )
    if stopped:
        return Seen("owner", "ok", f"{text}; stopped in good order: any cluster may start", facts)
    return Seen("owner", "note", f"{text}; it runs, or did not stop in good order", facts)


def _where(objects: Objects, error: Corrupt) -> str:
    """Return what is wrong with a sealed file, and which part of it."""
    try:
        place = locate(objects.get(error.path))
    except NotFound:
        return error.reason
    return f"{error.reason} ({place})" if place else error.reason


def _gone(info: ObjectInfo) -> Seen:
    return Seen(info.path, "note", "was deleted while this looked")


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
