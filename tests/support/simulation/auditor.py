"""Knows what really happened, and what was promised: design.md, section 4.

It follows the journal as it becomes durable, what clients were told, and what handlers really did.
Rule 1: it decides nothing and no product code sees it. Rule 2: what it calls a violation is one in
every schedule: where the world had an excuse (a dead worker, a worker silent for as long as its
pool allows), it knows that too.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from cluster.commit import CommitLog
from cluster.protocol import Assignment, Orders, Output, decode_batch
from cluster.queue import events as e
from cluster.queue.engine import evolve, job_status
from cluster.queue.model import Job, State, Task
from cluster.queue.snapshot import dump, load
from cluster.queue.spec import decode_spec
from cluster.queue.state import TERMINAL, TaskState
from cluster.store import journal
from cluster.store.segment import Rows, SegmentHeader
from jobs.errors import DraymanError
from tests.support.builders import canonical
from tests.support.simulation.flow import FlowAuditor
from tests.support.simulation.loop import Process
from tests.support.simulation.plans import PlanAuditor
from tests.support.simulation.world import World

__all__ = ["Auditor"]

#: A worker may be given up after so long a silence; its pool's setting, less a tick or two.
SILENCE_S = 14.0
#: An excuse counts for decisions that become durable so much later.
EXCUSED_S = 60.0
RECOVERIES_MAX = 3
#: A task may be given back unstarted so often, in all the trouble of one schedule.
RETURNED_MAX = 20
#: A snapshot is tried at each so manieth segment: a real one is made in few schedules.
SNAPSHOT_EVERY = 40
#: Nobody waits in a schedule's time for a moment that is so far away.
FAR_S = 300.0

_output = msgspec.json.Decoder(Output).decode


@dataclass
class Lease:
    """One lease, as the journal and the handler tell of it."""

    job_id: str
    task_id: str
    attempt: int
    worker: str
    ended: bool = False


class Auditor:
    """Checks every promise that exists."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: What the durable journal says.
        self.state = State()
        self.segments: dict[int, tuple[SegmentHeader, Rows]] = {}
        self._number = 0
        self._epoch = 0
        self._leases: dict[int, Lease] = {}
        #: Jobs in intake by object, jobs that ever were there, and what keys stood for there.
        self._intake: dict[str, list[str]] = {}
        self._taken_in: set[str] = set()
        self._intake_keys: dict[str, set[str]] = {}
        #: Jobs that clients know are accepted.
        self.acked: dict[str, None] = {}
        self._keys: dict[str, dict[str, str]] = {}
        self._requests: dict[str, str] = {}
        self._cancelled: set[str] = set()
        self._refused: set[str] = set()
        #: token -> where it runs.
        self._live: dict[int, tuple[Process, Process]] = {}
        self._endings: dict[int, str] = {}
        self._attempts: set[tuple[str, str, int]] = set()
        self._checkpoints: dict[tuple[str, str], int] = {}
        self._effects: Counter[tuple[str, str, str]] = Counter()
        self._succeeded: set[tuple[str, str]] = set()
        self.plans = PlanAuditor(self._wrong)
        self.flow = FlowAuditor(self._wrong, world.monotonic)
        #: Jobs that an attempt submits if it succeeds, by its token; and those whose attempt did.
        self._submits: dict[int, list[str]] = {}
        self._submitted: dict[str, None] = {}
        #: How often a task was given back unstarted.
        self._returned: Counter[tuple[str, str]] = Counter()
        #: Workers by name, and when a report of each last reached a manager.
        self.workers: dict[str, Process] = {}
        self._heard_at: dict[str, float] = {}
        self._silent_until: dict[str, float] = {}
        #: Whether two managers live, of which one is about to learn that it was replaced.
        self.is_doubtful: Callable[[], bool] = lambda: False
        #: Jobs that were accepted and left memory since, and how they ended.
        self._evicted: dict[str, str] = {}
        #: How often each thing happened, to see that schedules are worth running.
        self.counts: Counter[str] = Counter()

    def _wrong(self, promise: str) -> None:
        self._world.violated(promise)

    # --- the journal --------------------------------------------------------------------------

    def durable(self, path: str, data: bytes) -> None:
        """Take what the store made durable."""
        if path.startswith("intake/"):
            self._take_intake(path, data)
        elif path.startswith("journal/"):
            self._take_segment(path, data)

    def _take_intake(self, path: str, data: bytes) -> None:
        batch = decode_batch(data.rpartition(b"\n")[0])  # without its checksum
        ids = [submission.job_id for submission in batch.submissions]
        self._world.note("durable", path, *ids)
        self.counts["intake"] += 1
        self._intake[path] = ids
        self._taken_in.update(ids)
        for submission in batch.submissions:
            spec = decode_spec(submission.spec)
            if path.startswith("intake/keys/") and spec.key is not None:
                self._intake_keys.setdefault(spec.key, set()).add(spec.fingerprint)

    def deleted(self, path: str) -> None:
        """Take it that an object is going to be deleted."""
        for job_id in self._intake.pop(path, []):
            is_kept = any(job_id in ids for ids in self._intake.values())
            # One whose key another job had first is deleted by its gateway, and was never promised.
            if job_id in self.acked and self._status(job_id) is None and not is_kept:
                self._wrong(f"{job_id} was deleted from intake before it was taken over")

    def _take_segment(self, path: str, data: bytes) -> None:
        header, rows = journal.decode(data, path)
        self._world.note("durable", header.number, f"epoch={header.epoch}", *rows.kind)
        if header.number != self._number + 1:
            self._wrong(f"segment {header.number} is durable after {self._number}")
        if header.epoch < self._epoch:
            self._wrong(f"segment {header.number} of epoch {header.epoch} after {self._epoch}")
        self._number, self._epoch = header.number, max(self._epoch, header.epoch)
        self.segments[header.number] = (header, rows)
        events = list(_events(rows))
        # Seen in a folder it is taken over, durable there or not: then it was admitted before.
        outside = not any(isinstance(one, e.BatchAccepted) and one.intake for _, one in events)
        for at, event in events:
            self._before(event)
            if isinstance(event, e.Evicted):
                self._evict(event)
            evolve(self.state, event, at)
            self._after(event)
            self.flow.take(event, at, self.state, self._epoch, outside=outside)
        if header.number % SNAPSHOT_EVERY == 0:
            again = load(dump(self.state))
            self._compare(f"a snapshot at segment {header.number}", self.state, again)

    def _before(self, event: e.Event) -> None:
        self.counts[event.kind] += 1
        self.plans.take(event)
        if isinstance(event, e.TaskLeased):
            self._leases[event.token] = Lease(
                event.job_id, event.task_id, event.attempt, event.worker
            )
        elif isinstance(event, e.JobSubmitted):
            spec = decode_spec(event.raw)
            request = spec.labels.get("request")
            if request in self._requests:
                self._wrong(f"request {request} became two jobs")
            if request is not None:
                self._requests[request] = event.job_id
            if spec.parent is not None and event.job_id not in self._submitted:
                self._wrong(f"{event.job_id} was submitted by an attempt that did not succeed")
        elif isinstance(event, e.OutputLost):
            self._succeeded.discard((event.job_id, event.task_id))
            if event.task_id.rpartition(".")[2].isdigit():
                # Of most chunks that were done only their end is remembered: they start anew.
                self._checkpoints.pop((event.job_id, event.task_id), None)
        elif isinstance(event, e.JobRefused):
            self._refused.add(event.job_id)
            if event.cause != "idempotency_key_reused":
                self._wrong(f"{event.job_id} was acknowledged, then refused: {event.error}")
        elif isinstance(event, e.AttemptEnd) or (
            isinstance(event, e.TaskCancelled) and event.token is not None
        ):
            self._lease_ends(event)

    def _evict(self, event: e.Evicted) -> None:
        for job in self.state.finished:
            if job.finished_seq <= event.through:
                self._evicted[job.id] = job_status(job)

    def _status(self, job_id: str) -> str | None:
        """Return a job's status as the journal has it; None if it is not there."""
        job_id = self.state.aliases.get(job_id, job_id)
        job = self.state.jobs.get(job_id)
        return job_status(job) if job is not None else self._evicted.get(job_id)

    def _lease_ends(self, event: Any) -> None:
        token = event.token
        lease = self._leases[token]
        lease.ended = True
        how = self._endings.get(token, "")
        excused = self._excused(lease.worker)
        if token in self._live and not excused:
            self._wrong(f"lease {token} ended ({event.kind}) while it runs on {lease.worker}")
        if isinstance(event, e.TaskSucceeded):
            self._success(event, how)
        elif isinstance(event, e.LeaseReleased) and not event.started:
            if token in self._live or how:
                self._wrong(f"lease {token} was returned though it had started")
            task = event.job_id, event.task_id
            self._returned[task] += 1
            if self._returned[task] == RETURNED_MAX:
                self._wrong(f"{event.job_id} is handed to and fro and never started")
        elif isinstance(event, e.AttemptFailed) or (
            isinstance(event, e.TaskDied) and event.charged == "attempt"
        ):
            if how.startswith("killed") and event.cause != "timeout":
                self._wrong(f"the crash of lease {token} was charged as an attempt")
            if how == "stopped" and event.cause != "timeout":
                self._wrong(f"lease {token} did as it was told, and was charged for it")
        elif isinstance(event, e.AttemptCrashed):
            # Fed to an async child, it counts as begun: it may have been killed before that.
            fair = how.startswith("killed") or (not how and token not in self._live)
            if not (fair or excused):
                self._wrong(f"lease {token} was charged a recovery; it ended: {how or 'not'}")

    def _success(self, event: e.TaskSucceeded, how: str) -> None:
        task = (event.job_id, event.task_id)
        if task in self._succeeded:
            self._wrong(f"the result of {event.job_id} was committed twice")
        self._succeeded.add(task)
        self._submitted |= dict.fromkeys(self._submits.get(event.token, ()))
        result = msgspec.json.decode(_output(event.output).result)
        if how != "ok" or result["token"] != event.token:
            self._wrong(f"lease {event.token} was completed with the result of {result}")

    def _after(self, event: e.Event) -> None:
        if not isinstance(event, e.LeaseEvent | e.TaskCancelled):
            return
        job = self.state.jobs[event.job_id]
        for task in job.tasks:
            if task.failures > job.spec.max_attempts or task.recoveries > RECOVERIES_MAX:
                self._wrong(f"{job.id} has {task.failures} failures, {task.recoveries} recoveries")

    # --- clients ------------------------------------------------------------------------------

    def accepted(self, job_id: str, key: str | None, fingerprint: str) -> None:
        """Take it that a client was told: accepted, as this job."""
        self.counts["acks"] += 1
        self.acked[job_id] = None
        if self._status(job_id) is None and job_id not in self._taken_in:
            self._wrong(f"{job_id} was acknowledged before it was durable")
        if key is not None:
            self._keys.setdefault(key, {})[job_id] = fingerprint

    def key_refused(self, key: str, fingerprint: str) -> None:
        """Take it that a client was told: this key was used for something else."""
        self.counts["key_refused"] += 1
        holder = self.state.keys.find(key, self.state.at)
        others = self._intake_keys.get(key, set()) - {fingerprint}
        if (holder is None or holder[1] == fingerprint) and not others:
            self._wrong(f"key {key} was refused, its holder is {holder}")

    def refused(self, error: DraymanError) -> None:
        """Take it that a client was refused for a reason it did not give."""
        self._wrong(f"a good request was refused: {error!r}")

    def cancel_accepted(self, job_id: str) -> None:
        """Take it that a client was told: it is or will be cancelled."""
        self.counts["cancels"] += 1
        self._cancelled.add(job_id)

    def seen(self, job_id: str, status: str) -> None:
        """Take it that a client was told a job's status."""
        durable = self._status(job_id)
        if durable is None and job_id in self._taken_in:
            if status not in ("pending", "scheduled"):
                self._wrong(f"{job_id} is in intake and was shown as {status}")
        elif durable is None:
            self._wrong(f"{job_id} was shown before it was durable")
        elif status in ("completed", "cancelled") and durable != status:
            self._wrong(f"{job_id} was shown as {status}, durable is {durable}")

    def not_found(self, job_id: str) -> None:
        """Take it that a client was told: there is no such job."""
        # One who was replaced and does not know it yet may answer reads from before.
        if job_id in self.acked and not self.is_doubtful():
            self._wrong(f"{job_id} was acknowledged and is not found")

    # --- workers ------------------------------------------------------------------------------

    def ordered(self, worker: str, orders: Orders) -> None:
        """Take it that orders left a manager."""
        for assignment in orders.assignments:
            if assignment.token not in self._leases:
                self._wrong(f"lease {assignment.token} left for {worker} before it was durable")

    def heard(self, worker: str) -> None:
        """Take it that a report of this worker reached a manager."""
        now = self._world.monotonic()
        before = self._heard_at.get(worker, now)
        if now - before >= SILENCE_S:
            self._silent_until[worker] = now
        self._heard_at[worker] = now

    def managers_back(self) -> None:
        """Take it that no manager could hear anybody until now: that excuses nothing."""
        for worker in self._heard_at:
            self._heard_at[worker] = self._world.monotonic()

    def _excused(self, worker: str) -> bool:
        process = self.workers.get(worker)
        now = self._world.monotonic()
        return (
            process is None
            or process.dead
            or now - self._heard_at.get(worker, 0.0) >= SILENCE_S
            or now - self._silent_until.get(worker, -EXCUSED_S) < EXCUSED_S
        )

    # --- handlers -----------------------------------------------------------------------------

    def attempt_started(self, assignment: Assignment, worker: Process, child: Process) -> None:
        """Take it that a handler runs."""
        self.counts["attempts"] += 1
        token, job_id, task_id = assignment.token, assignment.job_id, assignment.task_id
        self._world.note("started", token, job_id, assignment.attempt, child.name)
        lease = self._leases.get(token)
        if lease is None:
            self._wrong(f"lease {token} runs before it is durable")
        elif lease.ended and not self._excused(worker.name):
            self._wrong(f"lease {token} began on {worker.name} after it had ended")
        if token in self._live or token in self._endings:
            self._wrong(f"lease {token} was started twice")
        for other in self._live:
            held = self._leases[other]
            if (held.job_id, held.task_id) == (job_id, task_id) and not self._excused(held.worker):
                self._wrong(f"{job_id} runs twice: leases {other} and {token}")
        number = (job_id, task_id, assignment.attempt)
        if number in self._attempts:
            self._wrong(f"attempt {assignment.attempt} of {job_id} was run twice")
        self._attempts.add(number)
        resumes_at = msgspec.json.decode(assignment.checkpoint) or 0
        if resumes_at < self._checkpoints.get((job_id, task_id), 0):
            self._wrong(f"{job_id} resumes at {resumes_at}, behind its checkpoint")
        self._live[token] = (worker, child)
        self.flow.began(assignment, self._world.wall())

    def attempt_ended(self, token: int, how: str) -> None:
        """Take it that a handler runs no more."""
        self._world.note("ended", token, how)
        self._live.pop(token, None)
        self._endings[token] = how
        self.flow.ended(token)

    def checkpointed(self, assignment: Assignment, at: int) -> None:
        """Take it that a handler was told: your checkpoint is durable."""
        self.counts["checkpoints"] += 1
        task = (assignment.job_id, assignment.task_id)
        self._checkpoints[task] = max(at, self._checkpoints.get(task, 0))

    def effect(self, assignment: Assignment, key: str) -> None:
        """Take it that a side effect under `once` happened."""
        self.counts["effects"] += 1
        effect = (assignment.job_id, assignment.task_id, key)
        self._effects[effect] += 1
        if self._effects[effect] > 1:
            self._wrong(f"effect {key!r} of {assignment.job_id} happened twice")

    def submits(self, token: int, job_id: str) -> None:
        """Take it that an attempt submits this job, if it succeeds."""
        self._submits.setdefault(token, []).append(job_id)

    # --- operators ----------------------------------------------------------------------------

    def dead(self) -> list[Job]:
        """Return the dead letters there are."""
        return [task.job for task in self.state.dead.values()]

    def configured(self, revision: int) -> None:
        """Take it that somebody was told: this config holds."""
        self.flow.configured(revision, self.state)

    def worker_paused(self, worker: str) -> None:
        """Take it that somebody was told: this worker gets nothing, while its manager lives."""
        self.flow.worker_paused(worker, self._epoch)

    def behind(self) -> list[str]:
        """Return schedules that have ticks due which did not fire."""
        return self.flow.behind(self._world.wall())

    # --- managers -----------------------------------------------------------------------------

    def life_ended(self, name: str, commit: CommitLog) -> None:
        """Compare what a manager had in memory to what its journal gives."""
        self.counts["lives"] += 1
        replayed = State()
        for number in range(1, commit.number + 1):
            if number not in self.segments:
                self._wrong(f"{name} counts on segment {number}, which is not durable")
                return
            for at, event in _events(self.segments[number][1]):
                evolve(replayed, event, at)
        for batch in (commit._writing, commit._open):
            if batch is not None:
                for event, at in zip(batch.events, batch.ats, strict=True):
                    evolve(replayed, e.from_row(e.to_row(event)), at)
        if commit.base:  # it began at a snapshot, which leaves out what history has
            _forget_finished(replayed, self.segments[commit.base][1].seq[-1])
        self.flow.check_books(commit.state)
        self._compare(f"{name}: its journal", commit.state, replayed)

    def _compare(self, what: str, state: State, other: State) -> None:
        live, again = canonical(state), canonical(other)
        if live != again:
            different = [field for field in live if live[field] != again[field]]
            self._wrong(f"{what} gives other {', '.join(different)}")

    # --- the end ------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether every job there is has ended, and every attempt."""
        return not self.unsettled()

    def unsettled(self) -> list[str]:
        """Return what has not ended."""
        return (
            [
                f"{job.id} is {task.state.value} ({task.worker or 'nowhere'}, due {task.due_at})"
                for job in self.state.order
                for task in job.tasks
                if job.plan is None and task.state not in TERMINAL and not self._is_far(task)
            ]
            + [
                f"{job.id} goes on: {', '.join(map(_told, job.tasks)) or 'it has no task'}"
                for job in self.state.order
                if job.plan is not None
                and not (job.finished_at or any(map(self._is_far, job.tasks)))
            ]
            + [
                f"{job_id} is acknowledged and not in the journal"
                for job_id in self.acked
                if self._status(job_id) is None
            ]
            + [f"{ids} lie in {path}" for path, ids in self._intake.items()]
            + [f"lease {token} runs" for token in self._live]
        )

    def _is_far(self, task: Task) -> bool:
        """Whether it was asked to wait for long, by a client whose clock was wrong."""
        return task.state is TaskState.WAITING and task.due_at > self._world.wall() + FAR_S

    def check_end(self) -> None:
        """Check what must hold when all faults have stopped and time enough has passed."""
        for what in self.unsettled():
            self._wrong(f"in the end {what}")
        for key, acked in self._keys.items():
            firsts = {self.state.aliases.get(job_id, job_id) for job_id in acked}
            ran = {job_id for job_id in firsts if job_id not in self._refused}
            if len(ran) > 1:
                self._wrong(f"key {key} stood for {sorted(ran)}")
        for job_id in self._submitted:
            if self._status(job_id) is None:
                self._wrong(
                    f"{job_id} was submitted by an attempt that succeeded, and is not there"
                )
        self.plans.check_end(self.state, self._world.store)
        self.flow.check_end(self.state)
        for job_id in self._cancelled:
            if self._status(job_id) != "cancelled":
                self._wrong(f"{job_id} was cancelled, and is {self._status(job_id)}")


def _told(task: Task) -> str:
    return f"{task.id} {task.state.value} ({task.worker or 'nowhere'}, due {task.due_at})"


def _events(rows: Rows) -> Any:
    columns = (rows.kind, rows.job_id, rows.task_id, rows.attempt, rows.token, rows.data)
    for at, *row in zip(rows.at, *columns, strict=True):
        yield at, e.from_row(tuple(row))  # type: ignore[arg-type]


def _forget_finished(state: State, through: int) -> None:
    """Let jobs go that finished for good up to this event, as `Evicted` does."""
    while state.finished and state.finished[0].finished_seq <= through:
        job = state.finished.popleft()
        del state.jobs[job.id]
        state.order.remove(job)
