"""Submissions while the manager is away: gateways write them to the store, the manager folds them.

    intake/<gateway>-<batch number>.json         the submissions of one batch that have no key
    intake/<gateway>-<batch number>-<job>.json   one that has a key
    intake/keys/<hash of tenant and key>.json    the same once more: its first writer decides

Each is an encoded Batch, the very bytes the manager would have got, and a line with their
SHA-256. Rule 1: an object is durable before its jobs are acknowledged, and holds all that is needed
to run them. Rule 2: its identity (gateway, batch number, and the job if it is keyed) is journalled
in the commit that folds it, so no copy of it that turns up again runs twice. Rule 3: what was
acknowledged is never refused: a job that cannot run ends as failed, and says why. Rule 4: the
gateway that wrote an object keeps it in memory until the manager has it, and writes it again if it
is gone. Rule 5: what is not what was written stays where it is, for a person to look at, and harms
nothing else. Rule 6: a name under which a job is kept is never used again, so that a manager that
was held up and is late to delete what it took over deletes nothing else; beneath `keys/` names are
used again, and what lies there is a copy.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec
import structlog

from cluster.commit import CommitLog, Offload
from cluster.history.reader import History
from cluster.protocol import (
    Accepted,
    Batch,
    Fold,
    Refused,
    Submission,
    decode_batch,
    encode,
    refusal_of,
)
from cluster.queue import commands as c
from cluster.queue.events import BatchAccepted
from cluster.queue.spec import JobSpec, SpecHead, decode_head, decode_spec
from cluster.room import Room
from cluster.store.contract import Objects
from cluster.views import JobView
from jobs.errors import (
    Corrupt,
    DraymanError,
    KeyReused,
    NotFound,
    Overloaded,
    Unavailable,
)

__all__ = ["IntakeFolder", "IntakeScan", "IntakeWriter", "minted_at", "unseal"]

log = structlog.get_logger(__name__)

PREFIX = "intake/"
#: What one gateway may have in intake that the manager has not taken over; tenants share it.
JOBS_MAX = 12_500
BYTES_MAX = 64 << 20
#: Told to who finds no room: the manager is usually back by then.
FULL_S = 2.0
#: Marks of a gateway that was silent for so long may be gone, so its jobs are looked up one by one.
MARKS_KEPT_S = 24 * 3600.0
#: A write unanswered for so long is in doubt; no other is begun until it is settled.
WRITE_S = 5.0
#: Objects that are read at once.
READS = 32


@dataclass(frozen=True, slots=True)
class _Written:
    """An object of ours that the manager has not taken over yet."""

    names: list[str]
    batch: Batch
    data: bytes
    #: Of each submission the tenant, and the bytes that it takes.
    takes: list[tuple[str, int]]


def minted_at(job_id: str) -> float:
    """Return when an id, a UUIDv7, was minted; 0 for what is none."""
    try:
        return int(job_id.replace("-", "")[:12], 16) / 1000
    except ValueError:
        return 0.0


def _seal(batch: Batch) -> bytes:
    data = encode(batch)
    return b"%b\n%b" % (data, hashlib.sha256(data).hexdigest().encode())


def unseal(name: str, sealed: bytes) -> Batch:
    """Return what was written under `name`; Corrupt if this is not it."""
    data, _, checksum = sealed.rpartition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != checksum:
        raise Corrupt(name, "its checksum does not match")
    try:
        return decode_batch(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(name, f"is no batch: {error}") from error


def _name(identity: str) -> str:
    return f"{PREFIX}{identity}.json"


def _name_of_key(key: str) -> str:
    return f"{PREFIX}keys/{key}.json"


def _by_number(name: str) -> tuple[str, int, str]:
    """Sort a gateway's batches as it sent them: a late one is told from new by its number."""
    gateway, _, rest = name.removesuffix(".json").partition("-")
    number = rest.partition("-")[0]
    return gateway, int(number) if number.isdigit() else 0, name


def _identity(batch: Batch, *, keyed: bool) -> str:
    job = f"-{batch.submissions[0].job_id}" if keyed else ""
    return f"{batch.gateway}-{batch.number}{job}"


def _pending(submission: Submission, spec: JobSpec, now: float) -> JobView:
    return JobView(
        id=submission.job_id,
        type=spec.type,
        status="scheduled" if spec.run_at is not None and spec.run_at > now else "pending",
        queue=spec.queue,
        tenant=spec.tenant,
        priority=spec.priority,
        submitted_at=minted_at(submission.job_id),
        attempts=0,
        max_attempts=spec.max_attempts,
        labels=spec.labels,
        run_at=spec.run_at,
        expires_at=spec.expires_at,
        traceparent=spec.traceparent,
    )


# --- the gateway's side -----------------------------------------------------------------------


class IntakeWriter:
    """Accepts batches for one gateway while the manager is away."""

    def __init__(self, objects: Objects, offload: Offload) -> None:
        self._objects, self._offload = objects, offload
        self._written: dict[str, _Written] = {}
        self._jobs = Room("intake, while the manager is away", JOBS_MAX, "jobs", FULL_S)
        self._bytes = Room("intake, while the manager is away", BYTES_MAX, "bytes", FULL_S)
        self._stuck: asyncio.Future[bool] | None = None

    async def accept(self, batch: Batch) -> list[Accepted | Refused]:
        """Make the batch durable; one result each, in order.

        What there is no room for is refused as Overloaded. A submission that could not be written
        is refused as Unavailable: it may or may not exist.
        """
        specs = [decode_spec(submission.spec) for submission in batch.submissions]
        sizes = [len(memoryview(submission.spec)) for submission in batch.submissions]
        takes = [(spec.tenant, size) for spec, size in zip(specs, sizes, strict=True)]
        results = self._take(takes)
        fits = [i for i in range(len(specs)) if i not in results]
        keyed = [i for i in fits if specs[i].key is not None]
        plain = [i for i in fits if specs[i].key is None]
        by_key: dict[str | None, list[int]] = {}
        for i in keyed:
            by_key.setdefault(specs[i].key, []).append(i)

        async def accept_in_turn(places: list[int]) -> None:
            for i in places:  # two of a batch may have one key
                mine = Batch(batch.gateway, batch.number, [batch.submissions[i]])
                results[i] = await self._attempt(self._write(mine, [takes[i]], specs[i]))

        await asyncio.gather(*map(accept_in_turn, by_key.values()))
        if plain:
            submissions = [batch.submissions[i] for i in plain]
            mine = Batch(batch.gateway, batch.number, submissions)
            refused = await self._attempt(self._write(mine, [takes[i] for i in plain], None))
            for i in plain:
                accepted = Accepted(batch.submissions[i].job_id)
                results[i] = accepted if isinstance(refused, Accepted) else refused
        return [results[i] for i in range(len(specs))]

    def _take(self, takes: list[tuple[str, int]]) -> dict[int, Accepted | Refused]:
        """Hold room for each; return the refusals of those there is none for, by place.

        Before anything is written: others are being written meanwhile.
        """
        refused: dict[int, Accepted | Refused] = {}
        for i, (tenant, size) in enumerate(takes):
            try:
                self._jobs.take(tenant, 1)
                try:
                    self._bytes.take(tenant, size)
                except Overloaded:
                    self._jobs.give(tenant, 1)
                    raise
            except Overloaded as error:
                refused[i] = refusal_of(error)
        return refused

    def _give(self, takes: list[tuple[str, int]]) -> None:
        for tenant, size in takes:
            self._jobs.give(tenant, 1)
            self._bytes.give(tenant, size)

    async def _attempt(self, writing: Awaitable[Accepted]) -> Accepted | Refused:
        try:
            return await writing
        except DraymanError as error:
            return refusal_of(error)

    async def _write(
        self, batch: Batch, takes: list[tuple[str, int]], keyed: JobSpec | None
    ) -> Accepted:
        """Make the batch durable; `keyed` is its only job's spec, if that has a key."""
        data = _seal(batch)
        identity = _identity(batch, keyed=keyed is not None)
        names = [_name(identity)]
        kept = False
        try:
            await self._put(names[0], data)  # if it is there, it is from a try before
            if keyed is not None and keyed.key is not None:
                names.append(_name_of_key(keyed.key))
                if not await self._put(names[1], data):
                    held: Batch | None = await self._offload(self._found, names[1])
                    if held is None:  # it was taken over in this very moment
                        raise Unavailable("the queue manager is coming back", 0.5)
                    if held != batch:
                        # Ours was acknowledged to nobody; were it taken over, it would be an alias.
                        await self._offload(self._objects.delete, names[:1])
                        return _replay(held, keyed.fingerprint)
            self._written[identity] = _Written(names, batch, data, takes)
            kept = True
        finally:
            if not kept:
                self._give(takes)
        return Accepted(batch.submissions[0].job_id)

    async def _put(self, name: str, data: bytes) -> bool:
        if self._stuck is not None and not self._stuck.done():
            raise Unavailable("nothing durable can be written now", 2.0)
        writing = asyncio.ensure_future(self._offload(self._objects.put_if_absent, name, data))
        await asyncio.wait([writing], timeout=WRITE_S)
        if not writing.done():
            self._stuck = writing
            writing.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise Unavailable("the store does not answer; the request may have been taken", 2.0)
        created: bool = writing.result()
        return created

    def _found(self, name: str) -> Batch | None:
        try:
            return unseal(name, self._objects.get(name))
        except NotFound:
            return None

    def outstanding(self) -> list[Fold]:
        """Return what the manager has not taken over."""
        return [
            Fold(name, identity)
            for identity, written in self._written.items()
            for name in written.names
        ]

    def settle(self, folds: list[Fold]) -> None:
        """Forget objects: the manager has them."""
        for fold in folds:
            if (written := self._written.pop(fold.identity, None)) is not None:
                self._give(written.takes)

    async def rewrite(self, identities: list[str]) -> None:
        """Write objects again that the manager neither found nor ever folded."""
        for identity in identities:
            if (written := self._written.get(identity)) is not None:
                await self._offload(self._objects.put_if_absent, written.names[0], written.data)

    def find(self, job_id: str, now: float) -> JobView | None:
        """Return a job that this gateway wrote and the manager has not taken over."""
        for written in self._written.values():
            for submission in written.batch.submissions:
                if submission.job_id == job_id:
                    return _pending(submission, decode_spec(submission.spec), now)
        return None


def _replay(found: Batch, fingerprint: str | None) -> Accepted:
    first = found.submissions[0]
    if decode_spec(first.spec).fingerprint != fingerprint:
        raise KeyReused(first.job_id)
    return Accepted(first.job_id, replayed=True)


class IntakeScan:
    """Finds a job in any gateway's intake."""

    def __init__(self, objects: Objects, offload: Offload) -> None:
        self._objects, self._offload = objects, offload
        #: What was read is not read again: an object never changes, but its name may be used again.
        self._batches: dict[tuple[str, datetime], Batch] = {}
        self._lock = asyncio.Lock()
        self._looks = 0

    async def find(self, job_id: str, now: float) -> JobView | None:
        """Return the job if it waits in intake, as of a moment after this call.

        Whoever asks while someone looks shares the next look.
        """
        asked = self._looks
        async with self._lock:
            if self._looks == asked:
                self._looks += 1
                await self._look()
        for batch in self._batches.values():
            for submission in batch.submissions:
                if submission.job_id == job_id:
                    return _pending(submission, decode_spec(submission.spec), now)
        return None

    async def _look(self) -> None:
        infos = await self._offload(lambda: list(self._objects.list(PREFIX)))
        batches = self._batches
        missing = [info for info in infos if (info.path, info.modified_at) not in batches]
        read = await _read(self._objects, self._offload, [info.path for info in missing])
        for info, sealed in zip(missing, read, strict=True):
            if sealed is not None:
                try:
                    batches[info.path, info.modified_at] = unseal(info.path, sealed)
                except Corrupt as error:  # the manager reports it; its jobs cannot be known
                    log.debug("intake_is_corrupt", object=info.path, reason=error.reason)
        listed = {(info.path, info.modified_at) for info in infos}
        self._batches = {known: batches[known] for known in batches if known in listed}


async def _read(objects: Objects, offload: Offload, names: list[str]) -> list[bytes | None]:
    """Return the objects; None for each that was taken over meanwhile."""

    def get(name: str) -> bytes | None:
        try:
            return objects.get(name)
        except NotFound:
            return None

    found: list[bytes | None] = []
    for at in range(0, len(names), READS):
        found += await asyncio.gather(*(offload(get, name) for name in names[at : at + READS]))
    return found


# --- the manager's side -----------------------------------------------------------------------


class IntakeFolder:
    """Takes over what gateways wrote while the manager was away."""

    def __init__(
        self, objects: Objects, commit: CommitLog, history: History, offload: Offload
    ) -> None:
        self._objects, self._commit = objects, commit
        self._history, self._offload = history, offload
        self._lock = asyncio.Lock()

    async def fold(self, wanted: list[Fold] | None = None) -> list[str]:
        """Take over what is asked for, or all there is; durable on return.

        Returns the identities of those wanted that are neither there nor were ever folded.
        """
        async with self._lock:
            if wanted is None:
                names = await self._offload(self._names)
            else:
                folded = self._commit.state.folded
                names = [fold.name for fold in wanted if fold.identity not in folded]
            taken: list[str] = []
            names = sorted(names, key=_by_number)
            for at in range(0, len(names), READS):
                some = names[at : at + READS]
                read = await _read(self._objects, self._offload, some)
                for name, sealed in zip(some, read, strict=True):
                    if sealed is not None and await self._take(name, sealed):
                        taken.append(name)
            await self._commit.barrier()
            if taken:
                await self._offload(self._objects.delete, taken)
                log.info("intake_folded", objects=len(taken))
        folded = self._commit.state.folded
        return [fold.identity for fold in wanted or () if fold.identity not in folded]

    def _names(self) -> list[str]:
        return [info.path for info in self._objects.list(PREFIX)]

    async def _take(self, name: str, sealed: bytes) -> bool:
        """Take over one object; False if it has to stay where it is."""
        try:
            batch = unseal(name, sealed)
            specs = [decode_spec(submission.spec) for submission in batch.submissions]
            if not specs:
                raise Corrupt(name, "holds no job")
        except (Corrupt, msgspec.MsgspecError) as error:
            log.error("intake_is_corrupt", object=name, reason=str(error))
            return False
        state = self._commit.state
        identity = _identity(batch, keyed=specs[0].key is not None)
        if identity in state.folded:
            return True
        over: set[str] = set()
        asked: set[str] = set()
        while doubtful := [job_id for job_id in self._doubtful(batch) if job_id not in asked]:
            over.update(await self._offload(self._in_history, doubtful, self._covered()))
            asked.update(doubtful)
        # No await from here on: it is folded in one commit, by what was known just now.
        now = self._commit.now()
        for submission in batch.submissions:
            if submission.job_id not in over:
                raw = bytes(submission.spec)
                self._submit(submission.job_id, decode_head(raw), raw, now)
        self._commit.record(BatchAccepted(batch.gateway, batch.number, intake=identity))
        return True

    def _doubtful(self, batch: Batch) -> list[str]:
        """Return jobs that may have come by themselves and be over.

        That its batch was committed is no proof: what was refused there was acknowledged here.
        """
        state = self._commit.state
        marks = state.gateways.get(batch.gateway)
        age_s = self._commit.now() - minted_at(batch.submissions[0].job_id)
        came = marks is not None and (
            marks.was_committed(batch.number) or marks.too_old(batch.number)
        )
        if not came and age_s < MARKS_KEPT_S:
            return []
        ids = (submission.job_id for submission in batch.submissions)
        return [job_id for job_id in ids if job_id not in state.jobs]

    def _covered(self) -> int:
        return max(self._commit.state.compacted, self._commit.base)

    def _in_history(self, job_ids: Iterable[str], as_of: int) -> list[str]:
        return [job_id for job_id in job_ids if self._history.find(job_id, as_of) is not None]

    def _submit(self, job_id: str, spec: SpecHead, raw: bytes, now: float) -> None:
        try:
            events = self._commit.run(c.Submit(job_id, spec, raw, admitted=True), now)
            if not events and spec.key is not None:
                holder = self._commit.state.keys.find(spec.key, now)
                if holder is not None and holder[0] != job_id:
                    self._commit.run(c.Alias(job_id, holder[0]), now)
        except DraymanError as error:
            cause = "idempotency_key_reused" if isinstance(error, KeyReused) else "refused"
            self._commit.run(c.Refuse(job_id, raw, str(error), cause), now)
