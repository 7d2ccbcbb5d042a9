"""The way in for HTTP, CLI and Ray jobs alike: mints ids, gathers batches, asks the manager.

Rule 1: a batch is numbered once and repeated with the same bytes until it is answered, so a lost
reply never submits twice. Rule 2: who rides in a batch may leave (a client that disconnects)
without harm to the others. Rule 3: at most `IN_FLIGHT` batches are under way; what gathers
meanwhile is the next one; beyond `PENDING_MAX` waiting submissions, or their bytes, new ones are
refused at once, and so is a flood of what the manager would refuse anyway (`refusals.py`). Rule 4:
while the manager is away submissions go to intake, finished jobs are answered from history and
those in intake as pending; only what the manager alone knows is Unavailable.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import structlog
from msgspec.structs import replace

from cluster.commit import Offload
from cluster.config import Config
from cluster.feed import Watch, Watched
from cluster.history.lineage import record_page
from cluster.history.reader import History
from cluster.history.rows import Record
from cluster.intake import IntakeScan, IntakeWriter
from cluster.protocol import (
    Accepted,
    Batch,
    Fold,
    Refused,
    Submission,
    decode_batch_reply,
    encode,
    refusal_of,
)
from cluster.queries import NO_SPEC, Query
from cluster.queue.schedule import ScheduleSpec
from cluster.queue.spec import JobSpec, encode_spec
from cluster.refusals import Refusals
from cluster.signals import Signal
from cluster.store.contract import Objects
from cluster.tasks import PAGE_MAX
from cluster.views import (
    AttemptView,
    DeadCount,
    DeadLetterQuery,
    Evicted,
    JobPage,
    JobQuery,
    JobView,
    LiveIds,
    LivePage,
    QueueView,
    ScheduleView,
    TaskPage,
    WorkerView,
)
from cluster.wire import ManagerAway
from jobs.errors import (
    Conflict,
    DraymanError,
    NotFound,
    Overloaded,
    Unavailable,
)

__all__ = ["Gateway", "ManagerAway", "ManagerPort"]

log = structlog.get_logger(__name__)

IN_FLIGHT = 2
BATCH_MAX = 1_000
BATCH_BYTES_MAX = 1 << 20
PENDING_MAX, PENDING_BYTES_MAX = 20_000, 64 << 20
#: A batch unanswered for so long goes to intake, and the manager counts as away. It may still
#: commit the batch: intake knows it by its number.
AWAY_AFTER_S = 1.0
#: So does a manager that leaves a question unanswered for so long.
ANSWER_S = 2.0
#: Taking over what piled up may take longer than any other call.
FOLD_S = 10.0
#: Objects the manager is asked to take over at once.
FOLDS_MAX = 1_000
#: How often a manager that is away is asked whether it is back.
ASK_EVERY_S = 0.25
#: How long the cancel of a job waits for the manager to take the job in from intake.
TAKEN_IN_S = 5.0

#: Questions that history and intake can answer, too.
_READS = frozenset({"job", "spec", "tasks", "attempts", "wait"})

V = TypeVar("V")


class ManagerPort(Protocol):
    """How the manager is reached; raises ManagerAway when it is not."""

    async def submit(self, payload: bytes) -> bytes:
        """Accept an encoded Batch; return an encoded BatchReply."""

    async def call(self, payload: bytes) -> bytes:
        """Answer an encoded Query."""


class _Waiting:
    """Submissions that travel together, and whoever waits for them."""

    __slots__ = ("answer", "bytes", "submissions")

    def __init__(self, submissions: list[Submission], size_bytes: int) -> None:
        self.submissions, self.bytes = submissions, size_bytes
        self.answer: asyncio.Future[list[Accepted | Refused]] = (
            asyncio.get_running_loop().create_future()
        )


class Gateway:
    """One way in. Lives on one event loop."""

    def __init__(
        self,
        manager: ManagerPort,
        *,
        new_id: Callable[[], str],
        incarnation: str,
        history: History,
        objects: Objects,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        sleep: Callable[[float], Any] = asyncio.sleep,
        offload: Offload = asyncio.to_thread,
    ) -> None:
        self._manager = manager
        self._history, self._offload, self._objects = history, offload, objects
        self._intake = IntakeWriter(objects, offload)
        self._scan = IntakeScan(objects, offload)
        self._wall = wall
        self._away = False
        self._returning: asyncio.Task[None] | None = None
        self._new_id = new_id
        self._incarnation = incarnation
        self._monotonic, self._sleep = monotonic, sleep
        self._number = 0
        self._pending: deque[_Waiting] = deque()
        #: Submissions in it, and their bytes.
        self._waiting = self._waiting_bytes = 0
        self._refusals = Refusals(monotonic)
        self._senders: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop asking for a manager that is away. What is in intake stays there."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)

    # --- submitting ---------------------------------------------------------------------------

    async def submit(self, spec: JobSpec) -> Accepted:
        """Submit one job. Durable on return.

        Raises KeyReused, Overloaded, InvalidInput, or Unavailable; after Unavailable the job may
        or may not have been accepted: repeat it with an idempotency key.
        """
        raw = encode_spec(spec)
        self.check_room(1, len(raw))
        if self._refusals and (refusal := self._refusals.of(spec, len(raw))) is not None:
            raise refusal
        floods = self._refusals.ask(spec) if self._refusals else []
        submission = Submission(self._new_id(), msgspec.Raw(raw))
        [result] = await self._line_up([submission], len(raw)).answer
        if isinstance(result, Refused):
            error = result.exception()
            if isinstance(error, Overloaded):
                self._refusals.note(spec, len(raw), error)
            raise error
        for flood in floods:
            flood.until = 0.0  # there is room
        return result

    async def submit_many(self, specs: Sequence[JobSpec]) -> list[Accepted | Refused]:
        """Submit jobs; return one result each, in order. Each is durable, or refused, by itself.

        Raises Overloaded, and has submitted none, if too many wait already.
        """
        raws = [encode_spec(spec) for spec in specs]
        self.check_room(len(raws), sum(map(len, raws)))
        refused = self._refused_already(specs, raws) if self._refusals else {}
        waiting: list[_Waiting] = []
        submissions: list[Submission] = []
        size = 0
        for place, raw in enumerate(raws):
            if place in refused:
                continue
            submissions.append(Submission(self._new_id(), msgspec.Raw(raw)))
            size += len(raw)
            if len(submissions) == BATCH_MAX or size >= BATCH_BYTES_MAX:
                waiting.append(self._line_up(submissions, size))
                submissions, size = [], 0
        if submissions:
            waiting.append(self._line_up(submissions, size))
        if waiting:
            await asyncio.wait([one.answer for one in waiting])
        answers = iter([result for one in waiting for result in _results(one)])
        results = [refused.get(place) or next(answers) for place in range(len(raws))]
        for place, result in enumerate(results):
            if isinstance(result, Refused) and place not in refused:
                error = result.exception()
                if isinstance(error, Overloaded):
                    self._refusals.note(specs[place], len(raws[place]), error)
        return results

    def check_room(self, count: int, size_bytes: int = 0, tenant: str | None = None) -> None:
        """Raise Overloaded if so many more submissions would be too many to wait at once.

        And if the manager would take none of this tenant's, whatever they are.
        """
        if (
            self._waiting + count > PENDING_MAX
            or self._waiting_bytes + size_bytes > PENDING_BYTES_MAX
        ):
            raise Overloaded("system", "too many submissions are waiting to be accepted", 1.0)
        if tenant is not None and self._refusals:
            refusal = self._refusals.of_tenant(tenant)
            if refusal is not None:
                raise refusal

    def check_spec(self, spec: JobSpec) -> None:
        """Raise Overloaded if the manager would refuse this: for who has work to do before."""
        if self._refusals and (refusal := self._refusals.of(spec, 0)) is not None:
            raise refusal

    def _refused_already(self, specs: Sequence[JobSpec], raws: list[bytes]) -> dict[int, Refused]:
        """Return what the manager need not be asked for, by its place."""
        found = (self._refusals.of(spec, len(raw)) for spec, raw in zip(specs, raws, strict=True))
        return {place: refusal_of(error) for place, error in enumerate(found) if error is not None}

    def _line_up(self, submissions: list[Submission], size_bytes: int) -> _Waiting:
        waiting = _Waiting(submissions, size_bytes)
        self._pending.append(waiting)
        self._waiting += len(submissions)
        self._waiting_bytes += size_bytes
        if len(self._senders) < IN_FLIGHT:
            self._start_sender()
        return waiting

    def _start_sender(self) -> None:
        sender = asyncio.get_running_loop().create_task(self._send())
        self._senders.add(sender)
        sender.add_done_callback(self._sender_ended)

    def _sender_ended(self, sender: "asyncio.Task[None]") -> None:
        self._senders.discard(sender)
        if not sender.cancelled() and (error := sender.exception()) is not None:
            log.error("gateway_sender_failed", exc_info=error)
        if self._pending:  # they came after its last look, before it was known to have ended
            self._start_sender()

    async def _send(self) -> None:
        while self._pending:
            batch = self._gather()
            failure: DraymanError = Unavailable("the request may or may not have been taken", 2.0)
            try:
                results = iter(await self._deliver(batch))
                for waiting in batch:
                    mine = list(islice(results, len(waiting.submissions)))
                    if not waiting.answer.done():  # its client may have left
                        waiting.answer.set_result(mine)
            except (Unavailable, Overloaded) as error:
                failure = error
            finally:  # whatever happened, nobody is left waiting
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(failure)

    def _gather(self) -> list[_Waiting]:
        """Take what fits into one batch; who travels together is never parted."""
        batch: list[_Waiting] = []
        count = size = 0
        while self._pending:
            waiting = self._pending[0]
            count += len(waiting.submissions)
            size += waiting.bytes
            if batch and (count > BATCH_MAX or size > BATCH_BYTES_MAX):
                break
            batch.append(self._pending.popleft())
            self._waiting -= len(waiting.submissions)
            self._waiting_bytes -= waiting.bytes
        return batch

    async def _deliver(self, batch: list[_Waiting]) -> list[Accepted | Refused]:
        self._number += 1
        submissions = [submission for waiting in batch for submission in waiting.submissions]
        numbered = Batch(self._incarnation, self._number, submissions)
        if not self._away:
            try:
                # Not `wait_for`: it swallows a cancellation that comes with the answer.
                async with asyncio.timeout(AWAY_AFTER_S):
                    reply = await self._manager.submit(encode(numbered))
            except (ManagerAway, TimeoutError) as error:
                log.warning("manager_away", error=str(error), next="submissions go to intake")
                self._went_away()
            else:
                return decode_batch_reply(reply).results(submissions)
        return await self._intake.accept(numbered)

    # --- while the manager is away ------------------------------------------------------------

    def _went_away(self) -> None:
        self._away = True
        if self._returning is None:
            self._returning = asyncio.get_running_loop().create_task(self._return())

    async def _return(self) -> None:
        """Ask until the manager is back, and then until it has all that this gateway wrote."""
        began = self._monotonic()
        while self._away or self._intake.outstanding():
            await self._sleep(ASK_EVERY_S)
            outstanding = self._intake.outstanding()[:FOLDS_MAX]
            try:
                missing = await self._fold(outstanding)
                if self._away:
                    # It answers, so new submissions go to it; what is in intake need not be over.
                    self._away = False
                    log.info("manager_back", away_s=round(self._monotonic() - began, 1))
                await self._intake.rewrite(missing)
            except (ManagerAway, TimeoutError):
                continue
            except Exception as error:
                # Whatever it is, it must be asked again: nobody else ends the manager's absence.
                log.warning("intake_not_folded", error=str(error), next_try_s=ASK_EVERY_S)
                continue
            unknown = set(missing)
            self._intake.settle([fold for fold in outstanding if fold.identity not in unknown])
        self._returning = None

    async def _fold(self, outstanding: list[Fold]) -> list[str]:
        query = encode(Query("fold", folds=outstanding))
        async with asyncio.timeout(FOLD_S):
            reply = await self._manager.call(query)
        if reply[:1] == b"-":
            raise msgspec.json.decode(reply[1:], type=Refused).exception()
        return msgspec.json.decode(reply[1:], type=list[str])

    async def _call(self, query: Query) -> bytes:
        """Ask the manager; Unavailable at once where it is known to be away."""
        if self._away:
            raise Unavailable("the queue manager is away", 1.0)
        try:
            async with asyncio.timeout(query.timeout_s + ANSWER_S):
                return await self._manager.call(encode(query))
        except (ManagerAway, TimeoutError) as error:
            log.warning("manager_away", error=str(error), asked=query.op)
            self._went_away()
            raise Unavailable(
                "the queue manager does not answer; the request may have been taken", 2.0
            ) from error

    # --- everything else ----------------------------------------------------------------------

    async def _ask(self, query: Query, view: type[V]) -> V:
        found = await self._ask_of_job(query, view)
        assert not isinstance(found, Record), "only a job can be over"
        return found

    async def _ask_of_job(self, query: Query, view: type[V]) -> V | Record:
        """Return the manager's answer, or the job's record if the manager does not have it."""
        for _ in range(2):
            try:
                reply = await self._call(query)
            except Unavailable:
                if query.op in _READS:
                    with contextlib.suppress(NotFound):  # then it may be the manager's
                        return await self._record_while_away(query)
                raise
            if reply[:1] == b"-":
                raise msgspec.json.decode(reply[1:], type=Refused).exception()
            if reply[:1] != b"~":
                return msgspec.json.decode(reply[1:], type=view)
            evicted = msgspec.json.decode(reply[1:], type=Evicted)
            record = await self._record(query, evicted)
            if record is not None:
                return record
            # It may have been folded between the two looks.
        raise NotFound("job", query.job_id)

    async def _record(self, query: Query, evicted: Evicted) -> Record | None:
        """Return what history, or else intake, knows of a job the manager does not have."""
        job_id, now = evicted.job_id, self._wall()
        record: Record | None = await self._offload(self._history.find, job_id, evicted.compacted)
        if record is None:
            found = self._intake.find(job_id, now)
            if found is None:  # however old: a clock that was set says nothing of it
                found = await self._scan.find(job_id, now)
            record = Record(found, 0, 0) if found is not None else None
        if record is None or query.tenant not in (None, record.view.tenant):
            return None
        if job_id != query.job_id:
            view = replace(record.view, id=query.job_id, alias_of=job_id)
            record = replace(record, view=view)
        return record

    async def _record_while_away(self, query: Query) -> Record:
        """Return what can be said without the manager: what is over, and what waits in intake.

        Raises NotFound. A job that failed is the manager's: it may have been redriven since.
        """
        job_id, now = query.job_id, self._wall()
        record: Record | None = await self._offload(self._history.find, job_id, None)
        if record is None:
            try:
                found = await self._scan.find(job_id, now)
            except Unavailable:
                found = self._intake.find(job_id, now)
            record = Record(found, 0, 0) if found is not None else None
        if (
            record is None
            or record.view.status == "failed"
            or query.tenant not in (None, record.view.tenant)
        ):
            raise NotFound("job", job_id)
        return record

    async def job(self, job_id: str, tenant: str | None) -> JobView:
        """Return a job. `tenant` None sees all. Raises NotFound."""
        found = await self._ask_of_job(Query("job", job_id, tenant), JobView)
        return found.view if isinstance(found, Record) else found

    async def spec(self, job_id: str, tenant: str | None) -> JobSpec:
        """Return a job as it was asked for. Raises NotFound, and Conflict if it is in history."""
        found = await self._ask_of_job(Query("spec", job_id, tenant), JobSpec)
        if isinstance(found, Record):
            raise _is_past(found)
        return found

    async def params(self, job_id: str, tenant: str | None) -> bytes:
        """Return a job's params as JSON. Raises NotFound, and Unavailable while it is in intake."""
        found = await self._ask_of_job(Query("spec", job_id, tenant), JobSpec)
        if not isinstance(found, Record):
            data, path = bytes(found.params), found.params_ref
        elif found.view.finished_at is None:
            raise Unavailable(f"job {job_id} waits for the queue manager to take it in")
        else:
            path = found.params_ref
            data = await self._offload(self._history.params, found.view.alias_of or found.view.id)
        if path is not None:
            data = await self._offload(self._objects.get, path)
        if data is None:
            raise NotFound("params of job", job_id)
        return data

    async def jobs(self, query: JobQuery) -> JobPage:
        """Return a page of jobs, newest first."""
        live = await self._ask(Query("jobs", jobs=query), LivePage)
        below = int(query.after) if query.after is not None else live.submitted + 1
        found = dict(zip(live.numbers, live.jobs, strict=True))
        more = live.below is not None
        floor = live.below or 0
        if query.status in (None, "completed", "failed", "cancelled"):
            # Asked after the manager: what left its memory meanwhile is found here.
            over = await self._offload(self._history.page, query, below, live.compacted)
            if len(over) == query.limit:
                more, floor = True, max(floor, over[-1].number)
            past = [record for record in over if record.number not in found]
            outdated = await self._begun_again([r for r in past if r.view.status == "failed"])
            found |= {r.number: r.view for r in past if r.view.id not in outdated}
        numbers = sorted((number for number in found if number >= floor), reverse=True)
        if len(numbers) > query.limit:
            more, numbers = True, numbers[: query.limit]
            floor = numbers[-1]
        return JobPage([found[number] for number in numbers], str(floor) if more else None)

    async def _begun_again(self, failed: list[Record]) -> set[str]:
        """Return the ids of those that are failed in history, and elsewhere are what they are now.

        The manager has its dead letters and what was redriven; history what has ended since.
        """
        if not failed:
            return set()
        live = await self._ask(Query("live", ids=[record.view.id for record in failed]), LiveIds)
        past = [record for record in failed if record.view.id not in live.ids]
        overtaken: set[str] = await self._offload(self._history.overtaken, past, live.compacted)
        return live.ids | overtaken

    async def tasks(
        self,
        job_id: str,
        tenant: str | None,
        first: int = 0,
        limit: int = PAGE_MAX,
        ids: list[str] | None = None,
    ) -> TaskPage:
        """Return some of a job's tasks: up to `limit` from place `first` on, or those named."""
        query = Query("tasks", job_id, tenant, first=first, limit=limit, ids=ids)
        found = await self._ask_of_job(query, TaskPage)
        if isinstance(found, Record):
            view = found.view
            past = partial(record_page, first=first, limit=limit, ids=ids)
            page: TaskPage = await self._offload(
                past, self._history.lineage, view.alias_of or view.id, view.steps, found.tasks
            )
            return page
        if any(task.archived for task in found.tasks):
            view = await self.job(job_id, tenant)  # files bear the id that an alias stands for
            real = view.alias_of or job_id
            filled: TaskPage = await self._offload(self._history.lineage.filled, real, found)
            return filled
        return found

    async def attempts(self, job_id: str, tenant: str | None) -> list[AttemptView]:
        """Return a job's attempts, oldest first."""
        found = await self._ask_of_job(Query("attempts", job_id, tenant), list[AttemptView])
        return found.attempts if isinstance(found, Record) else found

    async def cancel(self, job_id: str, tenant: str | None) -> JobView:
        """Cancel a job; durable on return. A running attempt is asked to stop.

        Raises Conflict if it is over, and Unavailable if it still waits in intake after a while.
        """
        deadline = self._monotonic() + TAKEN_IN_S
        while True:
            found = await self._ask_of_job(Query("cancel", job_id, tenant), JobView)
            if not isinstance(found, Record):
                return found
            if found.view.status == "cancelled":
                return found.view
            if found.view.finished_at is not None:
                raise Conflict(
                    f"job {job_id} is {found.view.status}; only unfinished jobs can be cancelled"
                )
            if self._monotonic() > deadline:
                raise Unavailable(f"job {job_id} waits for the queue manager to take it in")
            await self._sleep(ASK_EVERY_S)

    async def retry(self, job_id: str, tenant: str | None) -> JobView:
        """Give a failed job a new budget; durable on return. Conflict if it is not failed."""
        found = await self._ask_of_job(Query("retry", job_id, tenant), JobView)
        if isinstance(found, Record):
            raise _is_past(found)
        return found

    async def wait(self, job_id: str, tenant: str | None, timeout_s: float) -> JobView:
        """Return the job once it finished, or as it is when the time is over."""
        deadline = self._monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - self._monotonic())
            found = await self._ask_of_job(Query("wait", job_id, tenant, left_s), JobView)
            if not isinstance(found, Record):
                return found
            if found.view.finished_at is not None or not left_s:
                return found.view
            await self._sleep(min(left_s, ASK_EVERY_S))  # it waits in intake

    async def queues(self) -> list[QueueView]:
        """Return every queue."""
        return await self._ask(Query("queues"), list[QueueView])

    async def pause(self, queue: str) -> QueueView:
        """Start no more work of this queue; durable on return."""
        return await self._ask(Query("pause", queue=queue), QueueView)

    async def resume(self, queue: str) -> QueueView:
        """Start work of this queue again; durable on return."""
        return await self._ask(Query("resume", queue=queue), QueueView)

    async def dead_letters(self, query: DeadLetterQuery) -> JobPage:
        """Return a page of failed jobs."""
        return await self._ask(Query("dead_letters", dead=query), JobPage)

    async def dead_counts(self, query: DeadLetterQuery) -> list[DeadCount]:
        """Return how many dead letters match, by queue, type and cause."""
        return await self._ask(Query("dead_counts", dead=query), list[DeadCount])

    async def signals(self) -> list[Signal]:
        """Return what became of attempts, by queue and type, since the manager began."""
        return await self._ask(Query("signals"), list[Signal])

    async def redrive(
        self, query: DeadLetterQuery, *, rate: float = 0.0, spec: JobSpec | None = None
    ) -> int:
        """Retry every matching failed job; return how many. Durable on return.

        `rate` spreads them out, so many a second. The one job that `query` names has `spec` from
        now on; Conflict if it has several tasks.
        """
        raw = msgspec.Raw(encode_spec(spec)) if spec is not None else NO_SPEC
        return await self._ask(Query("redrive", dead=query, rate=rate, spec=raw), int)

    async def purge(self, query: DeadLetterQuery) -> int:
        """Let every matching failed job go for good; return how many. Durable on return."""
        return await self._ask(Query("purge", dead=query), int)

    async def drain_queue(self, queue: str, *, fill: bool = False) -> QueueView:
        """Take nothing new into a queue; with `fill`, take it again. Durable on return."""
        return await self._ask(
            Query("fill_queue" if fill else "drain_queue", queue=queue), QueueView
        )

    async def tell_worker(
        self, worker: str, what: Literal["pause", "resume", "drain"]
    ) -> WorkerView:
        """Give a worker nothing for now, or something again, or let it finish and end.

        A pause is forgotten with the manager's life.
        """
        ops: dict[str, Literal["pause_worker", "resume_worker", "drain_worker"]] = {
            "pause": "pause_worker",
            "resume": "resume_worker",
            "drain": "drain_worker",
        }
        return await self._ask(Query(ops[what], worker=worker), WorkerView)

    async def config(self) -> tuple[Config, int]:
        """Return what holds of what can be changed live, and its revision."""
        return await self._ask(Query("config"), tuple[Config, int])

    async def configure(self, config: Config, revision: int | None) -> int:
        """Let this config hold; return its revision. Durable on return.

        Raises InvalidInput naming what is wrong, and Conflict if `revision` does not hold any more.
        """
        return await self._ask(Query("configure", config=config, revision=revision), int)

    async def schedules(self, tenant: str | None) -> list[ScheduleView]:
        """Return a tenant's schedules, or all."""
        return await self._ask(Query("schedules", tenant=tenant), list[ScheduleView])

    async def schedule(self, name: str, tenant: str) -> ScheduleView:
        """Return one schedule. Raises NotFound."""
        return await self._ask(Query("schedule", name=name, tenant=tenant), ScheduleView)

    async def put_schedule(self, spec: ScheduleSpec) -> ScheduleView:
        """Let a schedule hold; the same again changes nothing. Durable on return."""
        return await self._ask(Query("put_schedule", schedule=spec), ScheduleView)

    async def pause_schedule(self, name: str, tenant: str, *, paused: bool) -> ScheduleView:
        """Let a schedule fire nothing, or again from its next tick on. Durable on return."""
        op: Literal["pause_schedule", "resume_schedule"]
        op = "pause_schedule" if paused else "resume_schedule"
        return await self._ask(Query(op, name=name, tenant=tenant), ScheduleView)

    async def delete_schedule(self, name: str, tenant: str) -> None:
        """Let a schedule fire no more. Durable on return; raises NotFound."""
        await self._ask(Query("delete_schedule", name=name, tenant=tenant), type(None))

    async def fire_schedule(self, name: str, tenant: str) -> str:
        """Submit the job of a schedule now, beside its ticks; return its id. Durable on return."""
        return await self._ask(Query("fire_schedule", name=name, tenant=tenant), str)

    async def workers(self) -> list[WorkerView]:
        """Return every living worker."""
        return await self._ask(Query("workers"), list[WorkerView])

    async def events(self, watch: Watch, timeout_s: float) -> Watched:
        """Return what happened to what is watched, once something did or the time is over."""
        return await self._ask(Query("events", watch=watch, timeout_s=timeout_s), Watched)

    async def ping(self) -> float:
        """Return the moment of the manager's last event; raises Unavailable if it is away."""
        return await self._ask(Query("ping"), float)


def _is_past(record: Record) -> Conflict:
    view = record.view
    if view.status == "failed":
        return Conflict(f"job {view.id} was purged; submit it anew")
    return Conflict(f"job {view.id} is {view.status}; only failed jobs can be retried")


def _results(waiting: _Waiting) -> list[Accepted | Refused]:
    """Return the answers; what failed one batch is no reason to keep the others silent."""
    error = waiting.answer.exception()
    if error is None:
        return waiting.answer.result()
    if isinstance(error, DraymanError):
        return [refusal_of(error)] * len(waiting.submissions)
    raise error
