"""Submissions while the manager is away: gateways write them to the store, the manager folds them.

    intake/<gateway>-<batch number>.json     the submissions of one batch that have no key
    intake/keys/<hash of tenant and key>.json    one submission that has: its first writer decides

Either is an encoded Batch, the very bytes the manager would have got. Rule 1: an object is durable
before its jobs are acknowledged, and holds all that is needed to run them. Rule 2: its identity
(gateway, batch number, and the job if it is keyed) is journalled in the commit that folds it, so no
copy of it that turns up again runs twice. Rule 3: what was acknowledged is never refused: a job
that cannot run ends as failed, and says why. Rule 4: the gateway that wrote an object keeps it in
memory until the manager has it, and writes it again if it is gone.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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
from cluster.queue.spec import JobSpec, decode_spec
from cluster.store.contract import Objects
from cluster.views import JobView
from jobs.errors import DraymanError, KeyReused, NotFound, Unavailable

__all__ = ["IntakeFolder", "IntakeScan", "IntakeWriter", "is_recent", "minted_at"]

log = structlog.get_logger(__name__)

PREFIX = "intake/"
#: What one gateway may have in intake that the manager has not taken over.
JOBS_MAX = 10_000
BYTES_MAX = 64 << 20
#: Marks of a gateway that was silent for so long may be gone, so its jobs are looked up one by one.
MARKS_KEPT_S = 24 * 3600.0
#: Only an id minted so lately may still lie in intake unseen.
RECENT_S = 600.0
#: How often a scan looks at the store again.
SCAN_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Written:
    """An object of ours that the manager has not taken over yet."""

    name: str
    batch: Batch
    data: bytes


def minted_at(job_id: str) -> float:
    """Return when an id, a UUIDv7, was minted; 0 for what is none."""
    try:
        return int(job_id.replace("-", "")[:12], 16) / 1000
    except ValueError:
        return 0.0


def is_recent(job_id: str, now: float) -> bool:
    """Whether the job may lie in intake, unseen by the manager."""
    return abs(now - minted_at(job_id)) < RECENT_S


def _identity(name: str, batch: Batch) -> str:
    keyed = name.startswith(f"{PREFIX}keys/")
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
        self._jobs = self._bytes = 0

    async def accept(self, batch: Batch) -> list[Accepted | Refused]:
        """Make the batch durable; one result each, in order.

        A submission that could not be written is refused as Unavailable: it may or may not exist.
        """
        specs = [decode_spec(submission.spec) for submission in batch.submissions]
        keyed = [i for i, spec in enumerate(specs) if spec.key is not None]
        plain = [i for i, spec in enumerate(specs) if spec.key is None]
        results: dict[int, Accepted | Refused] = {}
        # One after the other: two of a batch may have one key.
        for i in keyed:
            results[i] = await self._attempt(self._accept_keyed(batch, i, specs[i]))
        if plain:
            submissions = [batch.submissions[i] for i in plain]
            mine = Batch(batch.gateway, batch.number, submissions)
            name = f"{PREFIX}{batch.gateway}-{batch.number}.json"
            refused = await self._attempt(self._write(name, mine))
            for i in plain:
                accepted = Accepted(batch.submissions[i].job_id)
                results[i] = accepted if isinstance(refused, Accepted) else refused
        return [results[i] for i in range(len(specs))]

    async def _attempt(self, writing: Awaitable[Accepted]) -> Accepted | Refused:
        try:
            return await writing
        except DraymanError as error:
            return refusal_of(error)

    async def _accept_keyed(self, batch: Batch, i: int, spec: JobSpec) -> Accepted:
        submission = batch.submissions[i]
        name = f"{PREFIX}keys/{spec.key}.json"
        mine = Batch(batch.gateway, batch.number, [submission])
        return await self._write(name, mine, fingerprint=spec.fingerprint)

    async def _write(self, name: str, batch: Batch, fingerprint: str | None = None) -> Accepted:
        data = encode(batch)
        if self._jobs + len(batch.submissions) > JOBS_MAX or self._bytes + len(data) > BYTES_MAX:
            raise Unavailable("the queue manager is away, and intake is full", 2.0)
        job_id = batch.submissions[0].job_id
        if not await self._offload(self._objects.put_if_absent, name, data):
            found = await self._offload(self._found, name)
            if found is None:  # it was taken over in this very moment
                raise Unavailable("the queue manager is coming back", 0.5)
            if found != batch:
                return _replay(found, fingerprint)
        self._written[_identity(name, batch)] = _Written(name, batch, data)
        self._jobs += len(batch.submissions)
        self._bytes += len(data)
        return Accepted(job_id)

    def _found(self, name: str) -> Batch | None:
        try:
            return decode_batch(self._objects.get(name))
        except NotFound:
            return None

    def outstanding(self) -> list[Fold]:
        """Return what the manager has not taken over."""
        return [Fold(written.name, identity) for identity, written in self._written.items()]

    def settle(self, folds: list[Fold]) -> None:
        """Forget objects: the manager has them."""
        for fold in folds:
            if (written := self._written.pop(fold.identity, None)) is not None:
                self._jobs -= len(written.batch.submissions)
                self._bytes -= len(written.data)

    async def rewrite(self, identities: list[str]) -> None:
        """Write objects again that the manager neither found nor ever folded."""
        for identity in identities:
            if (written := self._written.get(identity)) is not None:
                await self._offload(self._objects.put_if_absent, written.name, written.data)

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
    """Finds a job in any gateway's intake. Blocks; what was read once is not read again."""

    def __init__(self, objects: Objects, monotonic: Callable[[], float]) -> None:
        self._objects, self._monotonic = objects, monotonic
        self._batches: dict[str, Batch] = {}
        self._looked_at = float("-inf")

    def find(self, job_id: str, now: float) -> JobView | None:
        """Return the job if it waits in intake."""
        if self._monotonic() - self._looked_at >= SCAN_EVERY_S:
            self._look()
        for batch in self._batches.values():
            for submission in batch.submissions:
                if submission.job_id == job_id:
                    return _pending(submission, decode_spec(submission.spec), now)
        return None

    def _look(self) -> None:
        batches: dict[str, Batch] = {}
        for info in self._objects.list(PREFIX):
            known = None if info.path.startswith(f"{PREFIX}keys/") else self._batches.get(info.path)
            try:
                batches[info.path] = known or decode_batch(self._objects.get(info.path))
            except NotFound:
                continue  # taken over since it was listed
        self._batches, self._looked_at = batches, self._monotonic()


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
            for name in names:
                data: bytes | None = await self._offload(self._get, name)
                if data is not None:
                    await self._take(name, data)
                    taken.append(name)
            await self._commit.barrier()
            if taken:
                await self._offload(self._objects.delete, taken)
                log.info("intake_folded", objects=len(taken))
        folded = self._commit.state.folded
        return [fold.identity for fold in wanted or () if fold.identity not in folded]

    def _names(self) -> list[str]:
        return [info.path for info in self._objects.list(PREFIX)]

    def _get(self, name: str) -> bytes | None:
        try:
            return self._objects.get(name)
        except NotFound:
            return None

    async def _take(self, name: str, data: bytes) -> None:
        try:
            batch = decode_batch(data)
            identity = _identity(name, batch)
        except (msgspec.MsgspecError, IndexError) as error:
            # It was never acknowledged: objects appear whole or not at all.
            log.error("intake_is_foreign", object=name, error=str(error))
            return
        over = await self._ended(batch)
        # No await from here on: it is folded in one commit.
        state = self._commit.state
        if identity in state.folded:
            return
        marks = state.gateways.get(batch.gateway)
        if marks is None or not marks.was_committed(batch.number):
            now = self._commit.now()
            for submission in batch.submissions:
                if submission.job_id not in over:
                    self._submit(submission, now)
        self._commit.record(BatchAccepted(batch.gateway, batch.number, intake=identity))

    async def _ended(self, batch: Batch) -> set[str]:
        """Return jobs that ran already, where the marks of their gateway cannot tell any more."""
        marks = self._commit.state.gateways.get(batch.gateway)
        age_s = self._commit.now() - minted_at(batch.submissions[0].job_id)
        if marks.too_old(batch.number) if marks is not None else age_s > MARKS_KEPT_S:
            ids = [submission.job_id for submission in batch.submissions]
            found = [await self._offload(self._history.find, job_id, None) for job_id in ids]
            return {job_id for job_id, record in zip(ids, found, strict=True) if record is not None}
        return set()

    def _submit(self, submission: Submission, now: float) -> None:
        raw = bytes(submission.spec)
        spec = decode_spec(raw)
        job_id = submission.job_id
        try:
            events = self._commit.run(c.Submit(job_id, spec, raw, admitted=True), now)
            if not events and spec.key is not None:
                holder = self._commit.state.keys.find(spec.key, now)
                if holder is not None and holder[0] != job_id:
                    self._commit.run(c.Alias(job_id, holder[0]), now)
        except DraymanError as error:
            cause = "idempotency_key_reused" if isinstance(error, KeyReused) else "refused"
            self._commit.run(c.Refuse(job_id, raw, str(error), cause), now)
