"""Jobs of many tasks: which tasks there are, which come next, and when the job is over.

    step of a workflow      one task, named as the step
    fan-out                 split -> chunks 0, 1, 2, ... -> join, named `<step>.split`, `<step>.0`
    fan-out that is no step the same, without the step's name

Here is what a plan is; `plan_next` says what follows from it, `plan_changes` what events change.

Rule 1: what comes next is read off the state by `next_events`, and happens by the command
`Advance`, which follows every other in the same commit: a plan never stands still. Rule 2: chunks
enter the line in a window, and leave memory when they are done: what stays of each is a bit, and a
row until a compaction has it. Rule 3: a chunk's number names the same slice for ever: a split that
was made again must give the same manifest.
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from cluster.protocol import Output
from cluster.queue.model import Job, PastAttempt, State, Task
from cluster.queue.spec import JobSpec, Plan, StepSpec, decode_spec
from cluster.queue.state import TERMINAL, TaskState

__all__ = [
    "CHUNKS_MAX",
    "IN_LINE",
    "OVER",
    "FinishedTask",
    "PlanState",
    "Role",
    "Step",
    "StepState",
    "StepTask",
    "adopt_plan",
    "decode_finished",
    "decode_output",
    "identity_of",
    "last_task",
    "locate",
    "plan_status",
    "steps_of",
    "task_name",
]

#: Chunks of one step: a bit each stays in memory, and a row until a compaction has it.
CHUNKS_MAX = 10_000_000

S = TaskState
#: Before a lease, not waiting for another task.
IN_LINE = (S.READY, S.PARKED, S.BACKING_OFF)
#: Why a job that was stopped ends as cancelled.
OVER = frozenset({"cancelled", "expired"})


class StepState(StrEnum):
    """Where a step is."""

    __hash__ = str.__hash__

    #: Steps it needs have not succeeded.
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    #: A step that it needs failed.
    SKIPPED = "skipped"


class Role(StrEnum):
    """What a task does for its step."""

    __hash__ = str.__hash__

    WHOLE = "whole"
    SPLIT = "split"
    CHUNK = "chunk"
    JOIN = "join"


class StepTask(Task, eq=False, gc=False):
    """A task of a planned job."""

    step: "Step" = None  # type: ignore[assignment]  # always given; a Struct wants a default here
    role: Role = Role.WHOLE
    #: Number of its chunk.
    index: int = -1
    #: Tasks whose output it lacks, while it is WAITING for them.
    needs: list[str] = []

    @property
    def limits(self) -> tuple[str, ...]:
        """Keys of limits that its attempts count against: not those that split or join."""
        if self.role is Role.SPLIT or self.role is Role.JOIN:
            return ()
        return self.job.limits if self.step.limits is None else self.step.limits


class FinishedTask(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is known of a chunk that is done, for its join and for whoever asks."""

    #: Number of the event that finished it.
    seq: int
    attempt: int
    failures: int
    recoveries: int
    interruptions: int
    worker: str
    leased_at: float
    started_at: float
    ended_at: float
    output: bytes
    log: str
    past: list[PastAttempt] = []


decode_finished = msgspec.msgpack.Decoder(FinishedTask).decode
decode_output = msgspec.json.Decoder(Output).decode


class Step(msgspec.Struct, eq=False):
    """One step of one job."""

    spec: StepSpec
    state: StepState = StepState.WAITING
    #: Chunks there are; -1 until it is split.
    count: int = -1
    #: Checksum of the manifest that lists them.
    manifest: str = ""
    #: Chunks below this are done or in memory.
    next: int = 0
    #: A bit a chunk that is done.
    done: bytearray = msgspec.field(default_factory=bytearray)
    succeeded: int = 0
    #: Chunks in memory in each state.
    counts: dict[TaskState, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys(TaskState, 0)
    )
    #: Encoded FinishedTask of each chunk that is done and in no lineage file yet, as they finished.
    finished: dict[int, bytes] = msgspec.field(default_factory=dict)
    #: Keys of limits that its tasks count against; None: the job's.
    limits: tuple[str, ...] | None = None
    #: What its chunks get, made when first asked for: no part of the state.
    raw: bytes = b""
    inputs: bytes = b""

    def is_done(self, index: int) -> bool:
        """Whether chunk `index` is done."""
        return bool(self.done[index >> 3] & (1 << (index & 7)))

    @property
    def dead(self) -> int:
        """Chunks that failed for good."""
        return self.counts[S.DEAD]

    @property
    def tolerated(self) -> int:
        """Chunks that may fail."""
        # 0.29 * 100 is a little less than 29.
        return int(self.spec.tolerate * self.count + 1e-6)

    @property
    def is_settled(self) -> bool:
        """Whether every chunk is done or failed for good."""
        return self.succeeded + self.dead == self.count


class PlanState:
    """How far a planned job is."""

    __slots__ = (
        "asked",
        "attempts",
        "counts",
        "decoded",
        "followers",
        "open",
        "rebuilt",
        "recoveries",
        "remade",
        "spec",
        "started_at",
        "steps",
        "stop",
        "tasks",
        "unsure",
        "waiting",
    )

    def __init__(self, spec: Plan) -> None:
        self.spec = spec
        self.steps = {
            step.name: Step(step, limits=None if step.limits is None else tuple(step.limits))
            for step in spec.steps
        }
        #: Steps that have not ended.
        self.open = dict(self.steps)
        #: Steps of which something may follow: of all others nothing does. No part of the state.
        self.unsure = dict(self.steps)
        #: Those that need a step, by its name.
        self.followers: dict[str, list[str]] = {}
        for step in spec.steps:
            for name in step.needs:
                self.followers.setdefault(name, []).append(step.name)
        #: The job's spec, once it was asked for. No part of the state.
        self.decoded: JobSpec | None = None
        #: Those in memory, by id.
        self.tasks: dict[str, StepTask] = {}
        #: Those of them that are WAITING.
        self.waiting: dict[str, StepTask] = {}
        self.counts: dict[TaskState, int] = dict.fromkeys(TaskState, 0)
        #: Why it does not go on: `cancelled`, `expired`, `failed`.
        self.stop = ""
        #: Leased tasks that were asked to stop.
        self.asked = 0
        #: When a task of it was first leased, or 0; how many attempts and recoveries there were.
        self.started_at = 0.0
        self.attempts = 0
        self.recoveries = 0
        #: How often a task's output was lost, by its id.
        self.rebuilt: dict[str, int] = {}
        #: Of chunks that were made again: the attempt that did, when no row says so any more.
        self.remade: dict[str, int] = {}

    @property
    def started(self) -> bool:
        """Whether a task of it was ever leased."""
        return self.started_at > 0

    def spec_of(self, raw: bytes) -> JobSpec:
        """Return the whole spec of this plan's job, which has these bytes."""
        if self.decoded is None:
            self.decoded = msgspec.structs.replace(decode_spec(raw), plan=self.spec)
        return self.decoded

    def recount(self, task: Task, old: TaskState, new: TaskState) -> None:
        """Keep the counts of a task that moved."""
        assert isinstance(task, StepTask)
        self.unsure[task.step.spec.name] = task.step
        self.counts[old] -= 1
        self.counts[new] += 1
        if new is S.WAITING:
            self.waiting[task.id] = task
        elif old is S.WAITING:
            del self.waiting[task.id]
        if task.role is Role.CHUNK:
            task.step.counts[old] -= 1
            task.step.counts[new] += 1
            task.line.chunks += (old in TERMINAL) - (new in TERMINAL)

    def add(self, task: StepTask) -> None:
        """Take a task into memory."""
        self.tasks[task.id] = task
        self.unsure[task.step.spec.name] = task.step
        if task.state is S.WAITING:
            self.waiting[task.id] = task
        task.line.counts[task.state] += 1
        self.counts[task.state] += 1
        if task.role is Role.CHUNK:
            task.step.counts[task.state] += 1
            task.line.chunks += task.state not in TERMINAL

    def forget(self, task: StepTask) -> None:
        """Let a task go from memory."""
        del self.tasks[task.id]
        self.unsure[task.step.spec.name] = task.step
        self.waiting.pop(task.id, None)
        task.line.counts[task.state] -= 1
        self.counts[task.state] -= 1
        if task.role is Role.CHUNK:
            task.step.counts[task.state] -= 1
            task.line.chunks -= task.state not in TERMINAL

    def is_done(self, task_id: str) -> bool:
        """Whether the task's output is there."""
        task = self.tasks.get(task_id)
        if task is not None:
            return task.state is S.SUCCEEDED
        step, _, index = locate(self, task_id)
        return 0 <= index < step.count and step.is_done(index)


def adopt_plan(state: State, job: Job, plan: PlanState) -> None:
    """Give a new job its plan."""
    job.plan = plan
    job.tasks = plan.tasks.values()
    state.plans[job.id] = job


def steps_of(job: Job) -> Iterable[Step]:
    """Return the steps of a job; of one that is not planned, none."""
    return job.plan.steps.values() if job.plan is not None else ()


def task_name(step: StepSpec, role: Role, index: int = -1) -> str:
    """Return the id of a step's task."""
    if role is Role.WHOLE:
        return step.name
    last = str(index) if role is Role.CHUNK else role.value
    return f"{step.name}.{last}" if step.name else last


def locate(plan: PlanState, task_id: str) -> tuple[Step, Role, int]:
    """Return what a task's id says. Raises KeyError for an id of no task of this plan."""
    step = plan.steps.get(task_id)
    if step is not None and not step.spec.fans_out:
        return step, Role.WHOLE, -1
    name, _, last = task_id.rpartition(".")
    step = plan.steps[name]
    if step.spec.fans_out:
        if last == "split" or (last == "join" and step.spec.join):
            return step, Role(last), -1
        # The one name of each number: "007" is none, nor is what int() takes beside digits.
        if last.isascii() and last.isdecimal() and len(last) < 10 and str(int(last)) == last:
            return step, Role.CHUNK, int(last)
    raise KeyError(task_id)


def last_task(step: StepSpec) -> str:
    """Return the id of the task whose output is the step's; a fan-out without join has none."""
    return task_name(step, Role.JOIN if step.fans_out else Role.WHOLE)


def plan_status(job: Job) -> str:
    """Derive the status users see."""
    plan = job.plan
    assert plan is not None
    if job.finished_at:
        if plan.stop in OVER:
            return "cancelled"
        failed = any(step.state is StepState.FAILED for step in plan.steps.values())
        return "failed" if failed else "completed"
    if plan.started:
        return "processing"
    waiting = any(task.due_at for task in plan.tasks.values() if task.state is S.WAITING)
    return "scheduled" if waiting else "pending"


def identity_of(output: Output) -> str:
    """Return what tells one split from another."""
    file = output.manifest.sha256 if output.manifest is not None else ""
    return output.chunks_sha256 or file
