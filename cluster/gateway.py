"""The way in for HTTP, CLI and Ray jobs alike: mints ids, gathers batches, asks the manager.

Rule 1: a batch is numbered once and repeated with the same bytes until it is answered, so a lost
reply never submits twice. Rule 2: who rides in a batch may leave (a client that disconnects)
without harm to the others. Rule 3: at most `IN_FLIGHT` batches are under way; what gathers
meanwhile is the next one; beyond `PENDING_MAX` waiting submissions new ones are refused at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from cluster.commit import Offload
from cluster.history.reader import History
from cluster.history.rows import Record
from cluster.protocol import (
    Accepted,
    Batch,
    Refused,
    Submission,
    decode_batch_reply,
    encode,
)
from cluster.queries import Query
from cluster.queue.spec import JobSpec, encode_spec
from cluster.views import (
    AttemptView,
    DeadLetterQuery,
    JobPage,
    JobQuery,
    JobView,
    LivePage,
    QueueView,
    TaskView,
    WorkerView,
)
from jobs.errors import (
    Conflict,
    DraymanError,
    InvalidInput,
    NotFound,
    Overloaded,
    Unavailable,
)

__all__ = ["Gateway", "ManagerAway", "ManagerPort"]

log = structlog.get_logger(__name__)

IN_FLIGHT = 2
BATCH_MAX = 500
BATCH_BYTES_MAX = 1 << 20
PENDING_MAX = 20_000
#: How long a call is repeated while the manager is away. A restart takes about two seconds.
PATIENCE_S = 10.0
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 0.5

V = TypeVar("V")


class ManagerAway(Exception):
    """The manager does not answer: it is restarting, or out of reach. The call may have run."""


class ManagerPort(Protocol):
    """How the manager is reached; raises ManagerAway when it is not."""

    async def submit(self, payload: bytes) -> bytes:
        """Accept an encoded Batch; return an encoded BatchReply."""

    async def call(self, payload: bytes) -> bytes:
        """Answer an encoded Query."""


class _Waiting:
    """One submission on its way, and whoever waits for it."""

    __slots__ = ("answer", "submission")

    def __init__(self, submission: Submission, answer: "asyncio.Future[Accepted | Refused]"):
        self.submission, self.answer = submission, answer


class Gateway:
    """One way in. Lives on one event loop."""

    def __init__(
        self,
        manager: ManagerPort,
        *,
        new_id: Callable[[], str],
        incarnation: str,
        history: History,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Any] = asyncio.sleep,
        offload: Offload = asyncio.to_thread,
    ) -> None:
        self._manager = manager
        self._history, self._offload = history, offload
        self._new_id = new_id
        self._incarnation = incarnation
        self._monotonic, self._sleep = monotonic, sleep
        self._number = 0
        self._pending: deque[_Waiting] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    # --- submitting ---------------------------------------------------------------------------

    async def submit(self, spec: JobSpec) -> Accepted:
        """Submit one job. Durable on return.

        Raises KeyReused, Overloaded, InvalidInput, or Unavailable; after Unavailable the job may
        or may not have been accepted: repeat it with an idempotency key.
        """
        result = await self._enqueue(spec)
        if isinstance(result, Refused):
            raise result.exception()
        return result

    async def submit_many(self, specs: list[JobSpec]) -> list[Accepted | Refused]:
        """Submit jobs; return one result each, in order. Each is durable, or refused, by itself."""
        if len(self._pending) + len(specs) > PENDING_MAX:
            raise self._overloaded()
        waiting = [self._enqueue(spec) for spec in specs]
        return [await answer for answer in waiting]

    def _enqueue(self, spec: JobSpec) -> "asyncio.Future[Accepted | Refused]":
        if len(self._pending) >= PENDING_MAX:
            raise self._overloaded()
        answer: asyncio.Future[Accepted | Refused] = asyncio.get_running_loop().create_future()
        submission = Submission(self._new_id(), msgspec.Raw(encode_spec(spec)))
        self._pending.append(_Waiting(submission, answer))
        if len(self._senders) < IN_FLIGHT:
            self._start_sender()
        return answer

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

    @staticmethod
    def _overloaded() -> Overloaded:
        return Overloaded("system", "too many submissions are waiting to be accepted", 1.0)

    async def _send(self) -> None:
        while self._pending:
            batch = self._gather()
            failure: DraymanError = Unavailable("the request may or may not have been taken", 2.0)
            try:
                results = await self._deliver(batch)
                for waiting, result in zip(batch, results, strict=True):
                    if not waiting.answer.done():  # its client may have left
                        waiting.answer.set_result(result)
            except (Unavailable, Overloaded) as error:
                failure = error
            finally:  # whatever happened, nobody is left waiting
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(failure)

    def _gather(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._pending and len(batch) < BATCH_MAX and size < BATCH_BYTES_MAX:
            waiting = self._pending.popleft()
            size += len(memoryview(waiting.submission.spec))
            batch.append(waiting)
        return batch

    async def _deliver(self, batch: list[_Waiting]) -> list[Accepted | Refused]:
        self._number += 1
        payload = encode(
            Batch(self._incarnation, self._number, [waiting.submission for waiting in batch])
        )
        reply = await self._patiently(self._manager.submit, payload)
        return decode_batch_reply(reply).results

    async def _patiently(self, method: Callable[[bytes], Any], payload: bytes) -> bytes:
        """Call the manager; while it is away repeat the same bytes, up to `PATIENCE_S`."""
        deadline = self._monotonic() + PATIENCE_S
        wait_s = RETRY_FIRST_S
        while True:
            try:
                reply: bytes = await method(payload)
            except ManagerAway as error:
                if self._monotonic() + wait_s > deadline:
                    log.warning("manager_away", error=str(error))
                    raise Unavailable(
                        "the queue manager does not answer; the request may have been taken", 2.0
                    ) from error
                await self._sleep(wait_s)
                wait_s = min(RETRY_MAX_S, wait_s * 2)
                continue
            return reply

    # --- everything else ----------------------------------------------------------------------

    async def _ask(self, query: Query, view: type[V]) -> V:
        found = await self._ask_of_job(query, view)
        assert not isinstance(found, Record), "only a job can be over"
        return found

    async def _ask_of_job(self, query: Query, view: type[V]) -> V | Record:
        """Return the manager's answer, or the job's record if it has left the manager's memory."""
        reply = await self._patiently(self._manager.call, encode(query))
        if reply[:1] == b"-":
            raise msgspec.json.decode(reply[1:], type=Refused).exception()
        if reply[:1] == b"~":
            return await self._record(query, msgspec.json.decode(reply[1:], type=int))
        return msgspec.json.decode(reply[1:], type=view)

    async def _record(self, query: Query, as_of: int) -> Record:
        record: Record | None = await self._offload(self._history.find, query.job_id, as_of)
        if record is None or query.tenant not in (None, record.view.tenant):
            raise NotFound("job", query.job_id)
        return record

    async def job(self, job_id: str, tenant: str | None) -> JobView:
        """Return a job. `tenant` None sees all. Raises NotFound."""
        found = await self._ask_of_job(Query("job", job_id, tenant), JobView)
        return found.view if isinstance(found, Record) else found

    async def jobs(self, query: JobQuery) -> JobPage:
        """Return a page of jobs, newest first."""
        live = await self._ask(Query("jobs", jobs=query), LivePage)
        below = int(query.after) if query.after is not None else live.submitted + 1
        found = dict(zip(live.numbers, live.jobs, strict=True))
        more = live.below is not None
        floor = live.below or 0
        if query.status in (None, "completed", "cancelled"):
            # Asked after the manager: what left its memory meanwhile is found here.
            over = await self._offload(self._history.page, query, below, live.compacted)
            more = more or len(over) == query.limit
            for record in over:
                if record.number >= floor:
                    found.setdefault(record.number, record.view)
        numbers = sorted(found, reverse=True)
        if len(numbers) > query.limit:
            more, numbers = True, numbers[: query.limit]
            floor = numbers[-1]
        elif len(numbers) == query.limit:
            floor = numbers[-1]
        return JobPage([found[number] for number in numbers], str(floor) if more else None)

    async def tasks(self, job_id: str, tenant: str | None) -> list[TaskView]:
        """Return a job's tasks."""
        found = await self._ask_of_job(Query("tasks", job_id, tenant), list[TaskView])
        return found.tasks if isinstance(found, Record) else found

    async def attempts(self, job_id: str, tenant: str | None) -> list[AttemptView]:
        """Return a job's attempts, oldest first."""
        found = await self._ask_of_job(Query("attempts", job_id, tenant), list[AttemptView])
        return found.attempts if isinstance(found, Record) else found

    async def cancel(self, job_id: str, tenant: str | None) -> JobView:
        """Cancel a job; durable on return. A running attempt is asked to stop."""
        found = await self._ask_of_job(Query("cancel", job_id, tenant), JobView)
        if not isinstance(found, Record):
            return found
        if found.view.status == "cancelled":
            return found.view
        raise Conflict(
            f"job {job_id} is {found.view.status}; only unfinished jobs can be cancelled"
        )

    async def retry(self, job_id: str, tenant: str | None) -> JobView:
        """Give a failed job a new budget; durable on return. Conflict if it is not failed."""
        found = await self._ask_of_job(Query("retry", job_id, tenant), JobView)
        if isinstance(found, Record):
            raise Conflict(f"job {job_id} is {found.view.status}; only failed jobs can be retried")
        return found

    async def wait(self, job_id: str, tenant: str | None, timeout_s: float) -> JobView:
        """Return the job once it finished, or as it is when the time is over."""
        found = await self._ask_of_job(Query("wait", job_id, tenant, timeout_s), JobView)
        return found.view if isinstance(found, Record) else found

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

    async def redrive(self, query: DeadLetterQuery) -> int:
        """Retry every matching failed job; return how many. Durable on return."""
        if query.limit < 1:
            raise InvalidInput("limit", "must be at least 1")
        return await self._ask(Query("redrive", dead=query), int)

    async def workers(self) -> list[WorkerView]:
        """Return every living worker."""
        return await self._ask(Query("workers"), list[WorkerView])

    async def ping(self) -> float:
        """Return the moment of the manager's last event; raises Unavailable if it is away."""
        return await self._ask(Query("ping"), float)
