"""What was promised of fan-outs and workflows: nothing that is done is lost, or done twice.

Rule 1: it keeps books of its own, from the durable events alone, and never asks the product's state
what a plan is: a rule that forgets a chunk must not make this forget it, too. Rule 2: at the end it
reads the pages that people read, from memory, lineage and history, and compares.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from cluster.history.lineage import Lineage, record_page
from cluster.history.reader import History
from cluster.protocol import Assignment, Output
from cluster.queue import events as e
from cluster.queue.model import State
from cluster.queue.plan import Role, task_name
from cluster.queue.spec import Plan, StepSpec, decode_spec
from cluster.store.contract import Objects
from cluster.tasks import task_page
from cluster.views import TaskPage, TaskView
from jobs.errors import DraymanError

__all__ = ["PlanAuditor"]

#: Tasks of one page: few, so that pages are turned.
PAGE = 7

_output = msgspec.json.Decoder(Output).decode


@dataclass
class _Step:
    """One step as the journal tells of it."""

    spec: StepSpec
    count: int = -1
    identity: str = ""
    #: Where the next window of chunks begins; None after a withdrawal: some may come again.
    next: int | None = 0
    ended: str = ""

    @property
    def chunks(self) -> list[str]:
        """Ids of its chunks."""
        return [task_name(self.spec, Role.CHUNK, index) for index in range(max(0, self.count))]


@dataclass
class _Job:
    """One planned job."""

    plan: Plan
    steps: dict[str, _Step]
    #: Task -> the token under which its output was committed.
    done: dict[str, int] = field(default_factory=dict)
    #: Every token under which it ever was, and tasks whose output was ever lost.
    tokens: dict[str, list[int]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    leased: dict[int, str] = field(default_factory=dict)
    #: First tasks, splits and joins that were ever added.
    added: set[str] = field(default_factory=set)
    #: Why nothing of it may begin any more.
    stop: str = ""
    over: bool = False


class PlanAuditor:
    """Follows every planned job."""

    def __init__(self, wrong: Callable[[str], None]) -> None:
        self._wrong = wrong
        self.jobs: dict[str, _Job] = {}

    # --- the journal --------------------------------------------------------------------------

    def take(self, event: e.Event) -> None:
        """Take an event, before it changes the state."""
        if isinstance(event, e.JobSubmitted):
            plan = decode_spec(event.raw).plan
            if plan is not None:
                steps = {spec.name: _Step(spec) for spec in plan.steps}
                self.jobs[event.job_id] = _Job(plan, steps)
            return
        job = self.jobs.get(getattr(event, "job_id", ""))
        if job is None:
            return
        job_id: str = event.job_id  # type: ignore[attr-defined]
        if isinstance(event, e.TasksAdded):
            self._added(job_id, job, event)
        elif isinstance(event, e.TaskLeased):
            self._leased(job_id, job, event)
        elif isinstance(event, e.TaskSucceeded):
            self._succeeded(job_id, job, event)
        elif isinstance(event, e.OutputLost):
            job.lost.add(event.task_id)
            if job.done.pop(event.task_id, None) is None:
                self._wrong(f"{job_id}/{event.task_id} lost an output that it never had")
        elif isinstance(event, e.TaskDied):
            job.dead.add(event.task_id)
        elif isinstance(event, e.TaskRedriven):
            job.dead.discard(event.task_id)
        elif isinstance(event, e.TasksWithdrawn):
            for step in job.steps.values():
                step.next = None
        elif isinstance(event, e.TaskCancelled) and event.token is None:
            job.stop = job.stop or event.reason
        elif isinstance(event, e.PlanStopped):
            job.stop = event.reason
        elif isinstance(event, e.StepEnded):
            self._step_ended(job_id, job, event)
        elif isinstance(event, e.JobEnded):
            self._ended(job_id, job)
        elif isinstance(event, e.JobRevived):
            if not job.over:
                self._wrong(f"{job_id} was revived while it ran")
            job.over, job.stop = False, ""
            for step in job.steps.values():
                step.ended = step.ended if step.ended == "succeeded" else ""
        if isinstance(event, e.AttemptEnd | e.TaskCancelled) and event.token is not None:
            job.leased.pop(event.token, None)

    def _added(self, job_id: str, job: _Job, event: e.TasksAdded) -> None:
        step = job.steps[event.step]
        # Beside a step that fails another may go on: what it adds is withdrawn, never leased.
        if job.over or job.stop not in ("", "failed"):
            self._wrong(f"{job_id} goes on after it was stopped ({job.stop or 'over'})")
        if event.role != Role.CHUNK:
            name = task_name(step.spec, Role(event.role))
            if name in job.added:
                self._wrong(f"{job_id}/{name} was added twice")
            job.added.add(name)
            return
        if step.next not in (None, event.first):
            self._wrong(f"{job_id}: chunks from {event.first} on follow those below {step.next}")
        step.next = event.first + event.count
        if not 0 <= event.first < step.next <= step.count:
            self._wrong(
                f"{job_id} has {step.count} chunks, {event.first} to {step.next} were added"
            )

    def _leased(self, job_id: str, job: _Job, event: e.TaskLeased) -> None:
        task_id = event.task_id
        if job.over or job.stop:
            why = job.stop or "over"
            self._wrong(f"{job_id}/{task_id} was leased after its job was stopped ({why})")
        if task_id in job.done:
            self._wrong(f"{job_id}/{task_id} is done, and was leased again")
        if task_id in job.leased.values():
            self._wrong(f"{job_id}/{task_id} was leased twice")
        job.leased[event.token] = task_id
        for step in job.steps.values():
            if step.spec.fans_out and task_id == task_name(step.spec, Role.JOIN):
                self._all_settled(job_id, job, step)

    def _all_settled(self, job_id: str, job: _Job, step: _Step) -> None:
        name = step.spec.name
        missing = [c for c in step.chunks if c not in job.done and c not in job.dead]
        dead = [chunk for chunk in step.chunks if chunk in job.dead]
        if step.count < 0 or missing:
            self._wrong(f"{job_id}: step {name!r} goes on without its chunks {missing[:5]}")
        if len(dead) > step.spec.tolerate * step.count + 1e-6:
            self._wrong(f"{job_id}: step {name!r} goes on though {len(dead)} chunks failed")

    def _succeeded(self, job_id: str, job: _Job, event: e.TaskSucceeded) -> None:
        job.done[event.task_id] = event.token
        job.tokens.setdefault(event.task_id, []).append(event.token)
        job.dead.discard(event.task_id)
        for step in job.steps.values():
            if step.spec.fans_out and event.task_id == task_name(step.spec, Role.SPLIT):
                output = _output(event.output)
                found = (output.chunks, output.chunks_sha256)
                if step.count >= 0 and found != (step.count, step.identity):
                    self._wrong(f"{job_id}/{event.task_id} gave other chunks than before")
                step.count, step.identity = output.chunks or 0, output.chunks_sha256

    def _step_ended(self, job_id: str, job: _Job, event: e.StepEnded) -> None:
        step = job.steps[event.step]
        if step.ended and not step.ended == event.state == "failed":  # for two reasons at once
            self._wrong(f"{job_id}: step {event.step!r} ended twice")
        step.ended = event.state
        if event.state == "failed" and not job.plan.goes_on:
            job.stop = job.stop or "failed"
        if event.state != "succeeded":
            return
        if step.spec.fans_out:
            self._all_settled(job_id, job, step)
        last = Role.JOIN if step.spec.fans_out else Role.WHOLE
        if (step.spec.join or not step.spec.fans_out) and task_name(
            step.spec, last
        ) not in job.done:
            self._wrong(f"{job_id}: step {event.step!r} succeeded, its last task did not")

    def _ended(self, job_id: str, job: _Job) -> None:
        if job.over:
            self._wrong(f"{job_id} finished twice")
        if job.leased:
            self._wrong(f"{job_id} finished while {sorted(job.leased.values())} ran")
        if not job.stop and not all(step.ended for step in job.steps.values()):
            self._wrong(f"{job_id} finished before its steps did")
        job.over = True

    # --- what tasks and people are told ---------------------------------------------------------

    def seen(self, job_id: str, tasks: Iterable[TaskView]) -> None:
        """Take it that somebody was shown these tasks: whose result is shown is durable."""
        job = self.jobs.get(job_id)
        if job is None:
            return
        for task in tasks:
            if task.state == "succeeded" and task.task_id not in job.done and not job.added:
                self._wrong(f"{job_id}/{task.task_id} was shown as done before it was durable")

    def given(self, assignment: Assignment, step: str, task_id: str, output: Output) -> None:
        """Take it that a task got the output of a step that it needs."""
        job = self.jobs[assignment.job_id]
        if assignment.token in job.leased and not job.steps[step].spec.fans_out:
            found = msgspec.json.decode(output.result)["token"]
            # It may have been lost and made again since this task was leased.
            if found not in job.tokens.get(task_id, ()):
                self._wrong(f"{assignment.job_id}/{assignment.task_id} got {found} of {task_id}")

    def joined(self, job_id: str, token: int, tasks: Iterable[TaskView]) -> None:
        """Take it that the join with this lease read these tasks."""
        job = self.jobs[job_id]
        if token not in job.leased:
            return  # a straggler: what it reads counts no more
        # What was ever lost may be on its way to be made again.
        self._compare(job_id, job, [task for task in tasks if task.task_id not in job.lost])

    def _compare(self, job_id: str, job: _Job, tasks: Iterable[TaskView]) -> None:
        for task in tasks:
            wanted = job.done.get(task.task_id)
            result = msgspec.json.decode(task.result) or {}
            found = result.get("token") if task.state == "succeeded" else None
            if found != wanted:
                told = f"{task.state} with the result of {found}, which is {wanted}"
                self._wrong(f"{job_id}/{task.task_id} is read as {told}")

    # --- the end ------------------------------------------------------------------------------

    def check_end(self, state: State, store: Objects) -> None:
        """Check that the pages of every job give each of its tasks, wherever they lie."""
        history, lineage = History(store), Lineage(store)
        for job_id, job in self.jobs.items():
            try:
                tasks = list(_pages(job_id, state, history, lineage))
            except DraymanError as error:
                self._wrong(f"{job_id}: its tasks cannot be read: {error!r}")
                continue
            self._compare(job_id, job, tasks)
            names = [task.task_id for task in tasks]
            missing = set(job.done) - set(names)
            chunks = [chunk for step in job.steps.values() for chunk in step.chunks]
            if missing or len(set(names)) != len(names) or set(chunks) - set(names):
                self._wrong(f"{job_id}: its pages give {len(names)} tasks, and not {missing}")


def _pages(job_id: str, state: State, history: History, lineage: Lineage) -> Iterable[TaskView]:
    """Yield the tasks of a job a page at a time."""
    job, first = state.jobs.get(job_id), 0
    record = None if job is not None else history.find(job_id)
    while True:
        if job is not None:
            page = lineage.filled(job_id, task_page(state, job, first, PAGE))
        elif record is not None:
            page = record_page(
                lineage, job_id, record.view.steps, record.tasks, first=first, limit=PAGE
            )
        else:
            page = TaskPage([])
        yield from page.tasks
        if page.next_after is None:
            return
        first = page.next_after
