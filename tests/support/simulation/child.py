"""The one part of a worker that is replaced: the child process, behind the interface of `Slot`.

Its handlers are little programs in the job's params, a list of steps such as `["work", 0.5]`; those
of a fan-out have one for its split, its chunks and its join.
Rule 1: what `cluster/worker/child.py` promises holds here: a token starts or goes back, never both;
an outcome is on the board before the next starts. Rule 2: what handlers really do is told to the
auditor at once: it knows more than any message says.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from cluster.history.lineage import Lineage
from cluster.protocol import NOTHING, Assignment, FileInfo, Inputs, Outcome, Submission
from cluster.queue.spec import JobSpec, decode_spec, encode_spec
from cluster.views import TaskPage, TaskView
from cluster.worker.attempt import Attempt, SplitResult
from cluster.worker.pipe import Answer, Call, Ended, Feed, Moved, Recall, Stop, until_start_s
from cluster.worker.reading import BEING_MADE, InputLost
from cluster.worker.slot import Death, Slot, SlotConfig, SlotOwner
from jobs.errors import DraymanError, NotFound, Unavailable
from jobs.outcome import Discard, Retry, Snooze, StopRequested
from jobs.result import encode_result
from tests.support.simulation.auditor import Auditor
from tests.support.simulation.loop import Process, current_process
from tests.support.simulation.world import World

__all__ = ["SimSlot", "slots_of"]

PIPE_S = (0.00005, 0.002)
START_S = (0.02, 0.3)


class HandlerError(Exception):
    """What a handler raises."""


class SimBoard:
    """What a child leaves behind when it dies."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.begun = (0, 0, 0)

    def running(self) -> tuple[int, int, int]:
        return self.begun

    def pulsed_ns(self) -> int:
        return 0

    def kept(self) -> bytes:
        return b",".join(map(msgspec.json.encode, self.outcomes))


class Pipe:
    """Messages to one process, in order, a moment later."""

    def __init__(self, world: World, to: Process, take: Callable[[Any], None]) -> None:
        self._world, self._to, self._take = world, to, take
        self._last_at = 0.0

    def send(self, message: Any) -> None:
        loop = self._world.loop
        self._last_at = max(self._last_at, loop.time() + self._world.uniform(*PIPE_S))
        if not self._to.dead:
            loop.call_at(self._last_at, self._take, message, context=self._to.context)

    def after_all(self) -> float:
        """Return how long until everything sent has arrived."""
        return max(0.0, self._last_at - self._world.loop.time()) + 1e-6


class NoFile:
    """A capture file with nothing in it."""

    parent = Path("/nonexistent")

    def stat(self) -> Any:
        return SimpleNamespace(st_size=0)

    def open(self, *_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    def unlink(self, missing_ok: bool = False) -> None:
        pass


def slots_of(world: World, auditor: Auditor) -> Any:
    """Return what makes a slot in this world."""

    def make(config: SlotConfig, scratch: Path, owner: SlotOwner, *, solo: bool) -> SimSlot:
        return SimSlot(world, auditor, config, scratch, owner, solo=solo)

    return make


class SimSlot(Slot):
    """A slot whose child is simulated: all that the executor keeps here is the real one's."""

    def __init__(
        self,
        world: World,
        auditor: Auditor,
        config: SlotConfig,
        scratch: Path,
        owner: SlotOwner,
        *,
        solo: bool,
    ) -> None:
        super().__init__(config, scratch, owner, solo=solo)
        self.child: SimChild | None = None
        self._board: SimBoard | None = None
        self._file = NoFile()
        self._secrets: list[str] = []
        self._world, self._auditor = world, auditor
        self._slot = world.number()
        process = current_process()
        assert process is not None
        self.worker = process

    @property
    def board(self) -> Any:
        return self._board

    @property
    def output_path(self) -> Any:
        return self._file

    @property
    def secrets(self) -> list[str]:
        return self._secrets

    @property
    def is_bloated(self) -> bool:
        return False

    async def start(self) -> None:
        self.worker.on_death.append(self._orphaned)
        self._fork()

    async def close(self) -> None:
        self._closing, self.is_ready = True, False
        if self.child is not None:
            self.child.die("closed")

    def _fork(self) -> None:
        if self._closing:
            return
        self.lives += 1
        self._board, self._secrets = SimBoard(), []
        name = f"{self.worker.name}/child{self._slot}.{self.lives}{'s' * self.solo}"
        child = self.child = SimChild(self._world, self._auditor, self, name)
        self.worker.call(self._world.uniform(*START_S), self._ready, child)

    def _ready(self, child: "SimChild") -> None:
        if child is self.child and not child.process.dead and not self._closing:
            self.is_ready = True
            self._owner.on_ready(self)  # type: ignore[arg-type]

    # --- orders to the child ------------------------------------------------------------------

    def feed(self, assignments: list[Assignment]) -> None:
        self._send(Feed(assignments))

    def recall(self, tokens: Iterable[int]) -> None:
        self._send(Recall(list(tokens)))

    def stop(self, token: int, reason: str) -> None:
        self._send(Stop(token, reason))

    def answer(self, answer: Answer) -> None:
        self._send(answer)

    def kill(self, cause: str = "", told: str = "") -> None:
        self.is_ready = False
        if self.child is not None:
            child = self.child
            self._world.later(self._world.uniform(0.0005, 0.01), child.die, cause or "signal 9")

    def rewind(self) -> None:
        self.output_bytes = 0

    def tend(self, now: float) -> None:
        pass

    def _send(self, message: Any) -> None:
        if self.child is not None:
            self.child.inbox.send(message)

    # --- news from the child ------------------------------------------------------------------

    def received(self, child: "SimChild", message: Any) -> None:
        """Take one message, which a child sent while it was ours."""
        if child is not self.child:
            return
        if isinstance(message, Ended):
            self._owner.on_ended(self, message)  # type: ignore[arg-type]
        elif isinstance(message, Call):
            self._owner.on_called(self, message)  # type: ignore[arg-type]
        elif isinstance(message, Moved):
            self._owner.on_moved(message)

    def died(self, child: "SimChild", cause: str) -> None:
        """Tell of a death, after the last message it sent was read."""
        if child is not self.child or self._closing:
            return
        board = self._board
        assert board is not None
        self.child, self._board, self.is_ready = None, None, False
        running, started_ns, output_at = board.running()
        death = Death(cause, board.outcomes, running, started_ns, output_at, self.output_path)
        self._owner.on_died(self, death)  # type: ignore[arg-type]
        self.worker.call(self._world.uniform(*START_S), self._fork)

    def _orphaned(self) -> None:
        """End the child: its worker is dead, and its keeper sees that soon."""
        if self.child is not None:
            child = self.child
            self._world.later(self._world.uniform(0.0, 0.05), child.die, "orphaned")


class SimChild:
    """One child process and the attempts in it."""

    def __init__(self, world: World, auditor: Auditor, slot: SimSlot, name: str) -> None:
        self._world, self._auditor, self._slot = world, auditor, slot
        self._board: SimBoard = slot.board
        self.process = world.process(name)
        self.process.on_death.append(self._dead)
        self._cause = "with its machine"
        self.inbox = Pipe(world, self.process, self._take)
        self._outbox = Pipe(world, slot.worker, lambda message: slot.received(self, message))
        self._waiting: dict[int, Assignment] = {}
        self._line: deque[Assignment] = deque()
        self._running: dict[int, asyncio.Event] = {}
        #: Those of them whose handler began: others wait for their moment.
        self._begun: dict[int, None] = {}
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = 0
        #: What an Attempt wants of its host.
        self.stops: dict[int, str] = {}
        self.secrets: list[str] = []
        self.scratch = Path("/nonexistent")

    def die(self, cause: str) -> None:
        """End it, and have the slot told."""
        if self.process.dead:
            return
        self._cause = cause
        self.process.kill()
        delay_s = self._outbox.after_all() + self._world.uniform(0.0, 0.01)
        self._slot.worker.call(delay_s, self._slot.died, self, cause)

    def _dead(self) -> None:
        for token in self._begun:
            self._auditor.attempt_ended(token, f"killed: {self._cause}")

    def write_log(self, attempt: Attempt, text: str) -> None:
        """Keep nothing of it."""

    # --- messages -----------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        if isinstance(message, Feed):
            for assignment in message.assignments:
                self._waiting[assignment.token] = assignment
                self._line.append(assignment)
            self._next()
        elif isinstance(message, Recall):
            self._hand_back(message.tokens)
        elif isinstance(message, Stop):
            if not self._hand_back([message.token]):
                self.stops[message.token] = message.reason
                if woken := self._running.get(message.token):
                    woken.set()
        elif (call := self._calls.pop(message.call, None)) is not None and not call.done():
            call.set_result(message)

    def _hand_back(self, tokens: list[int]) -> bool:
        back = [token for token in tokens if self._waiting.pop(token, None) is not None]
        if back:
            self._outbox.send(Ended([Outcome(token, "returned") for token in back]))
        return bool(back)

    def _next(self) -> None:
        together = self._slot.config.mode == "async"
        while self._line and (together or not self._running):
            assignment = self._line.popleft()
            if self._waiting.pop(assignment.token, None) is not None:
                starts_s = self._world.monotonic() + until_start_s(assignment)
                if not together:
                    self._board.begun = (assignment.token, int(starts_s * 1e9), 0)
                self._running[assignment.token] = asyncio.Event()
                self.process.spawn(self._attempt(assignment))

    # --- one attempt --------------------------------------------------------------------------

    async def _attempt(self, assignment: Assignment) -> None:
        token = assignment.token
        attempt = Attempt(self, assignment)  # type: ignore[arg-type]
        if await self._comes_to_start(assignment):
            attempt.started_at = self._world.wall()
            outcome = await self._run(attempt, assignment)
        else:
            outcome = attempt.unstarted()
        self._board.outcomes.append(outcome)
        del self._running[token]
        # A short one may wait for company; then it is on the board only.
        self.process.call(self._world.rng.choice([0.0, 0.0, 0.003]), self._flush)
        self._next()

    async def _comes_to_start(self, assignment: Assignment) -> bool:
        """Wait for its moment; False if a stop came before."""
        if wait_s := until_start_s(assignment):
            try:
                await asyncio.wait_for(self._running[assignment.token].wait(), wait_s)
            except TimeoutError:
                return True
            return False
        return True

    async def _run(self, attempt: Attempt, assignment: Assignment) -> Outcome:
        token = assignment.token
        self._begun[token] = None
        self._auditor.attempt_started(assignment, self._slot.worker, self.process)
        try:
            await self._perform(attempt, assignment)
            outcome = attempt.succeeded(encode_result({"token": token}))
        except (Exception, StopRequested, InputLost) as error:
            outcome = attempt.failed(error)
        del self._begun[token]
        self._auditor.attempt_ended(token, outcome.kind)
        return outcome

    def _flush(self) -> None:
        if self._board.outcomes:
            sent = list(self._board.outcomes)
            self._outbox.send(Ended(sent))
            # Sent and not cleared yet: a worker may see an outcome twice.
            self.process.call(0.0, self._clear, sent)

    def _clear(self, sent: list[Outcome]) -> None:
        kept = [outcome for outcome in self._board.outcomes if outcome not in sent]
        self._board.outcomes[:] = kept

    async def _perform(self, attempt: Attempt, assignment: Assignment) -> None:
        params = msgspec.json.decode(decode_spec(assignment.spec).params)
        if bytes(assignment.inputs) == b"null":
            await self._program(attempt, assignment, params["steps"])
            return
        inputs = msgspec.json.decode(assignment.inputs, type=Inputs)
        if inputs.role == "whole":
            for name, (task_id, output) in inputs.outputs.items():
                if output is None:
                    attempt.reading.lose(task_id, BEING_MADE)
                if output.result != NOTHING and output.chunks is None:
                    self._auditor.plans.given(assignment, name, task_id, output)
            await self._program(attempt, assignment, params["steps"])
        elif inputs.role == "split":
            await self._program(attempt, assignment, params["split"])
            await self._split(attempt, assignment, params)
        else:
            manifest = await self._manifest(attempt, assignment, inputs)
            if inputs.role == "chunk":
                steps = manifest["odd"].get(str(inputs.index), manifest["run"])
                await self._program(attempt, assignment, steps)
            else:
                await self._program(attempt, assignment, manifest["join"])
                await self._join(attempt, assignment, inputs)

    async def _program(self, attempt: Attempt, assignment: Assignment, steps: list[Any]) -> None:
        resumed = msgspec.json.decode(assignment.checkpoint) or 0
        for at, (op, *args) in enumerate(steps):
            if at < resumed:
                continue
            self._check(assignment.token)
            if op in ("lose", "spoil", "submit"):
                await self._planned_step(attempt, assignment, op, *args)
            else:
                await self._step(assignment, at, op, *args)

    def _check(self, token: int) -> None:
        reason = self.stops.get(token)
        if reason is not None:
            raise StopRequested(reason)

    async def _step(self, assignment: Assignment, at: int, op: str, *args: Any) -> None:
        token = assignment.token
        if op == "work":
            woken = self._running[token]
            try:
                await asyncio.wait_for(woken.wait(), args[0])
            except TimeoutError:
                return
            self._check(token)
        elif op == "stubborn":
            await asyncio.sleep(args[0])
        elif op == "checkpoint":
            await self._call(token, "checkpoint", "", at + 1)
            self._auditor.checkpointed(assignment, at + 1)
        elif op == "once":
            await self._once(assignment, *args)
        elif op == "progress":
            self._outbox.send(Moved(token, 0.5, "half"))
        elif op == "crash" and assignment.attempt <= args[0]:
            self._world.later(0.0, self.die, "signal 11")
            await asyncio.sleep(3600.0)
        elif op == "oom" and assignment.attempt <= args[0]:
            self._world.later(0.0, self.die, "oom")
            await asyncio.sleep(3600.0)
        elif op == "fail" and assignment.attempt <= args[0]:
            raise HandlerError(f"attempt {assignment.attempt}")
        elif op == "retry" and assignment.attempt <= args[0]:
            raise Retry("later", after_s=args[1])
        elif op == "snooze" and assignment.attempt <= args[0]:
            raise Snooze(args[1])
        elif op == "discard":
            raise Discard("no use")

    # --- planned jobs -------------------------------------------------------------------------

    async def _split(self, attempt: Attempt, assignment: Assignment, params: Any) -> None:
        """Write the manifest: what chunks and join do."""
        told = {name: params[name] for name in ("run", "odd", "join")}
        data = msgspec.json.encode(told)
        path = f"results/{assignment.job_id}/{assignment.task_id}/{assignment.attempt}/chunks"
        await self._insist(assignment.token, self._world.store.put, path, data)
        digest = hashlib.sha256(data).hexdigest()
        content = f"{digest}/{assignment.attempt}" if params["changes"] else digest
        file = FileInfo("chunks", path, len(data), digest)
        attempt.chunks = SplitResult(params["count"], file, content)

    async def _manifest(self, attempt: Attempt, assignment: Assignment, inputs: Inputs) -> Any:
        file = inputs.manifest
        if file is None:
            attempt.reading.lose(inputs.split[0], BEING_MADE)
        try:
            data = await self._insist(assignment.token, self._world.store.get, file.path)
        except NotFound:
            attempt.reading.lose(*inputs.split)
        assert hashlib.sha256(data).hexdigest() == file.sha256
        return msgspec.json.decode(data)

    async def _join(self, attempt: Attempt, assignment: Assignment, inputs: Inputs) -> None:
        """Read every chunk, a page at a time."""
        failed = {index for index, _ in inputs.failed}
        prefix = inputs.split[0].removesuffix("split")
        for first in range(0, inputs.count, 8):
            last = min(first + 8, inputs.count)
            names = [f"{prefix}{i}" for i in range(first, last) if i not in failed]
            views = await self._tasks(assignment, names)
            for view in views:
                attempt.reading.insist_on(assignment.job_id, view)
            self._auditor.plans.joined(assignment.job_id, assignment.token, views)

    async def _tasks(self, assignment: Assignment, ids: list[str]) -> list[TaskView]:
        answer = await self._call(assignment.token, "tasks", assignment.job_id, {"ids": ids})
        if answer.found == "evicted":
            raise HandlerError("its job is over")
        page = msgspec.json.decode(answer.value, type=TaskPage)
        if any(task.archived for task in page.tasks):
            filled = Lineage(self._world.store).filled
            page = await self._insist(assignment.token, filled, assignment.job_id, page)
        return page.tasks

    async def _planned_step(
        self, attempt: Attempt, assignment: Assignment, op: str, *args: Any
    ) -> None:
        if op == "lose" and assignment.attempt <= args[1]:
            [task] = await self._tasks(assignment, [args[0]])
            attempt.reading.lose(task.task_id, task.attempts)
        elif op == "spoil" and assignment.attempt == 1:
            file = msgspec.json.decode(assignment.inputs, type=Inputs).manifest
            assert file is not None
            await self._insist(assignment.token, self._world.store.delete, [file.path])
        elif op == "submit":
            for number in range(args[0]):
                attempt.submit("program", [["work", 0.05]], {"number": number})

    def submission(
        self, attempt: Attempt, type: str, params: Any, options: dict[str, Any]
    ) -> Submission:
        """Return a job that the attempt submits, as the host of a real one does."""
        assignment, job_id = attempt.assignment, self._world.job_id()
        mine = decode_spec(assignment.spec)
        request = f"{assignment.job_id}/{assignment.task_id}/{options['number']}"
        spec = JobSpec(
            type,
            params=msgspec.Raw(msgspec.json.encode({"steps": params})),
            queue=mine.queue,
            retry=mine.retry,
            labels={"request": request},
            parent=assignment.job_id,
        )
        self._auditor.submits(assignment.token, job_id)
        return Submission(job_id, msgspec.Raw(encode_spec(spec)))

    async def _insist(self, token: int, work: Callable[..., Any], *args: Any) -> Any:
        """Repeat what a store in trouble refused, until a stop is asked for."""
        while True:
            try:
                return await self._world.offload(work, *args)
            except Unavailable:
                self._check(token)
                await asyncio.sleep(0.1)

    # --- records and questions ----------------------------------------------------------------

    async def _once(self, assignment: Assignment, key: str, in_doubt: str) -> None:
        """Do what `Context.once` does, which would block the loop."""
        token = assignment.token
        answer = await self._call(token, "once_claim", key, None)
        if answer.found == "done" or (answer.found == "in_doubt" and in_doubt == "skip"):
            return
        if answer.found == "in_doubt":
            raise HandlerError(f"once({key!r}): in doubt")
        self._auditor.effect(assignment, key)
        await asyncio.sleep(self._world.uniform(0.0, 0.01))
        await self._call(token, "once_done", key, token)

    async def _call(self, token: int, op: Any, key: str, value: Any) -> Answer:
        self._numbers += 1
        call = self._calls[self._numbers] = asyncio.get_running_loop().create_future()
        raw = NOTHING if value is None else msgspec.Raw(msgspec.json.encode(value))
        self._outbox.send(Call(self._numbers, token, op, key, raw))
        answer = await call
        if answer.refused is not None:
            error = answer.refused.exception()
            assert isinstance(error, DraymanError)
            raise error
        return answer
