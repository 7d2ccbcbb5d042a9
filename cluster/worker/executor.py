"""What a worker holds: every token, from its assignment to the outcome that awaits confirmation.

    backlog -> fed to a child -> (running) -> ended -> confirmed
       ^______________|  handed back unstarted

Rule 1: a token is started at most once; one that was handed back had not started, by the child's
word or by its death. Rule 2: who ordered an end is decided here and stands in the outcome:
`stopped` for a stop, `failed`/`timeout` for a limit, `crashed` only for a death nobody ordered.
Rule 3: what was killed for another's sake is `returned`: it is not charged. Rule 4: an outcome is
told after its log is in the store.

What waits is in `backlog`, where it can run in `children`; `watch` sees to what runs, `calls`
answers what it asks.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from cluster.protocol import Assignment, Outcome, Progress
from cluster.worker.backlog import Backlog, Line
from cluster.worker.calls import Calls
from cluster.worker.capture import CAPTURE_BYTES_MAX
from cluster.worker.child_async import output_path
from cluster.worker.children import Children
from cluster.worker.codes import Codes, Verdict, remove
from cluster.worker.ephemeral import Holder
from cluster.worker.held import Held, as_ordered, crashed, refused
from cluster.worker.keeper import CODE_FOLDER
from cluster.worker.logs import Logs
from cluster.worker.pace import Pace
from cluster.worker.pipe import Call, Ended, Moved, until_start_s
from cluster.worker.remains import wait_until_gone
from cluster.worker.slot import HUNG, NOT_READY, Death, Slot, SlotConfig
from cluster.worker.watch import WATCH_S, Watch

__all__ = ["Executor"]

log = structlog.get_logger("drayman.worker")

#: A token that was let go is remembered until so many others were.
FORGOTTEN_TOKENS_MAX = 65_536


class Executor:
    """Runs what it is assigned in the slots of one worker."""

    def __init__(
        self,
        config: SlotConfig,
        concurrency: int,
        scratch: Path,
        *,
        record: Callable[[bytes], Awaitable[bytes]],
        ask: Callable[[bytes], Awaitable[bytes]],
        logs: Logs,
        news: Callable[[], None],
        holder: Holder | None = None,
    ) -> None:
        self._config, self._concurrency = config, concurrency
        self._is_async = config.mode == "async"
        self._logs, self.news = logs, news
        #: Every token whose outcome is not confirmed, in order of assignment.
        self.held: dict[int, Held] = {}
        #: Outcomes not yet confirmed. Those of `held` that are here have ended.
        self.ended: dict[int, Outcome] = {}
        #: Latest progress not yet reported.
        self.progress: dict[int, Progress] = {}
        #: Tokens let go lately, never to be started again.
        self._gone: set[int] = set()
        self._gone_in_order: deque[int] = deque(maxlen=FORGOTTEN_TOKENS_MAX)
        self.draining = False
        self._pace = Pace()
        self._calls = Calls(record, ask, self._open_store, holder)
        self._codes = Codes(
            self._open_store,
            scratch / CODE_FOLDER,
            config.patience.backlog_s,
            arrived=self._on_code,
            broken=self._fail_code,
            missed=self._give_back,
        )
        self._backlog = Backlog(self.held, suspects_apart=self._is_async)
        self._lines = self._backlog.lines
        self._children = Children(config, scratch, self, self._backlog, self._codes)
        self._slots = self._children.slots
        self._watch = Watch(self, config.patience, self._pace, is_async=self._is_async)
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Done when a part of this broke: whoever owns it must not go on as if it worked.
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the slots. They take work when their children are ready."""
        await self._children.start()
        self.spawn(self._tend())

    async def close(self) -> None:
        """End every child; returns when nothing of any attempt lives."""
        self.draining = True  # so that no slot is opened any more
        tasks = self._tasks.union(*(slot.readers for slot in self._children.living))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._children.close()

    def _open_store(self) -> Any:
        from cluster.store.objects import open_store

        return open_store(self._config.store_url)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for slot in self._children.living:
                slot.tend(now)
            if self.held:
                self._watch.look(list(self._slots), now)
                self._give_up_starved(now)
            self._children.free_idle(now)

    def _give_up_starved(self, now: float) -> None:
        """Give back what no child is there for: on another worker there may be one."""
        if len(self._lines) > 1:
            self.feed()  # for the line that has begun to press
        serves, patience_s = self._children.serves, self._config.patience.backlog_s
        for code, tokens in self._backlog.take_starved(serves, patience_s, now):
            if code and self._children.is_coming(code):
                log.warning("worker.import_slow", code=code, given_back=len(tokens))
                told = f"the import of the job's code takes long: over {patience_s:g} s"
                verdict = self._codes.is_slow(code, told)
                for token in tokens:
                    self._conclude(self.held[token], refused(self.held[token], verdict))
                continue
            log.error(
                "worker.no_child", given_back=len(tokens), code=code, next="a child is started"
            )
            for token in tokens:
                self._conclude(self.held[token], Outcome(token, "returned"))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run in a task that ends with this; if it breaks, so does this."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._noticed)

    def _noticed(self, task: "asyncio.Task[Any]") -> None:
        if task.cancelled() or self.broken.done():
            return
        if error := task.exception():
            self.broken.set_exception(error)

    # --- what the worker reports --------------------------------------------------------------

    def appetite(self) -> tuple[int, int]:
        """Return (free, prefetch): what could start now, and what is welcome beyond."""
        ready = self._children.ready()
        if self.draining or ready == 0:
            return 0, 0
        capacity = ready * (self._concurrency if self._is_async else 1)
        open_tokens = len(self.held) - len(self.ended)
        if len(self._lines) > 1:
            # What waits for an import is in nobody's way.
            open_tokens -= min(capacity, self._children.count_awaited())
        free = max(0, capacity - open_tokens)
        ahead = capacity + self._pace.ahead(capacity) - open_tokens
        return free, max(0, ahead - free)

    def started(self) -> list[int]:
        """Return the tokens that have started, ended ones included."""
        now = time.monotonic()
        for slot in self._slots:
            if not self._is_async and slot.fed and slot.board is not None:
                token, started_ns, _ = slot.board.running()
                held = self.held.get(token)
                begun = started_ns / 1e9 <= now  # else it waits for its moment
                if begun and held is not None and held.started_s is None and token in slot.fed:
                    held.started_s = started_ns / 1e9
        ended = self.ended
        return [
            token
            for token, held in self.held.items()
            if token in ended or held.started_s is not None
        ]

    def types(self) -> dict[str, str]:
        """Return the fingerprint of the code of each job type that can run here."""
        return next((slot.types for slot in self._slots if slot.types), {})

    @property
    def idle(self) -> bool:
        """Whether no attempt waits or runs here."""
        return len(self.held) == len(self.ended)

    # --- orders -------------------------------------------------------------------------------

    def assign(self, assignments: Iterable[Assignment]) -> None:
        """Take over attempts; one that was seen before is left as it is."""
        for assignment in assignments:
            token = assignment.token
            if token in self.held or token in self._gone:
                continue
            self.held[token] = Held(assignment)
            if self.draining:
                self._conclude(self.held[token], Outcome(token, "returned"))
            elif assignment.after:
                self.spawn(self._assign_after(self.held[token]))
            else:
                self._queue(self.held[token])
        self.feed()

    async def _assign_after(self, held: Held) -> None:
        await wait_until_gone(held.assignment.after)
        if self.held.get(held.token) is held and held.token not in self.ended:
            self._queue(held)
            self.feed()

    def _queue(self, held: Held) -> None:
        code = held.assignment.code
        if code:
            verdict = self._codes.verdict(code)
            # Slow is what is coming: a child that was let go for another code's sake is not.
            if verdict is not None and (
                verdict.kind != "snoozed" or self._children.is_coming(code)
            ):
                self._conclude(held, refused(held, verdict))
                return
            if self._codes.wants(code):
                self.spawn(self._codes.fetch(code))
        self._backlog.add(held)

    def confirm(self, tokens: Iterable[int]) -> None:
        """Forget tokens: their outcomes are durable."""
        for token in tokens:
            self.ended.pop(token, None)
            self.held.pop(token, None)
            if len(self._gone_in_order) == FORGOTTEN_TOKENS_MAX:
                self._gone.discard(self._gone_in_order[0])
            self._gone_in_order.append(token)
            self._gone.add(token)

    def recall(self, tokens: Iterable[int]) -> None:
        """Give back those that have not started; the others go on."""
        for token in tokens:
            held = self.held.get(token)
            if held is None or token in self.ended or held.ending or held.started_s is not None:
                continue
            held.wanted_back = True
            if held.slot is None:
                self._backlog.remove(token)
                self._conclude(held, Outcome(token, "returned"))
            else:
                self.ask_back(held.slot, [token])

    def stop(self, token: int, reason: str, within_s: float | None = None) -> None:
        """Ask an attempt to stop, and kill it when its grace, or `within_s`, is over.

        Repeating changes nothing.
        """
        held = self.held.get(token)
        if held is None or token in self.ended or held.ending or held.stop == reason:
            return
        first = held.stop is None
        held.stop = reason
        if held.slot is None:
            self._backlog.remove(token)
            self._conclude(held, Outcome(token, "returned"))
            return
        if first:
            grace_s = held.spec().grace_s
            grace_s = grace_s if within_s is None else min(grace_s, within_s)
            held.kill_at_s = time.monotonic() + grace_s
        held.slot.stop(token, reason)
        if not self._is_async:
            self.ask_back(held.slot, [other for other in held.slot.fed if other != token])

    def drop(self, tokens: Iterable[int]) -> None:
        """Kill attempts that are nobody's any more, and say nothing more of them."""
        for token in tokens:
            held = self.held.get(token)
            if held is None:
                continue
            if token in self.ended or held.slot is None:
                self._backlog.remove(token)
                self._let_go(token)
                continue
            held.dropped = True
            slot = held.slot
            if self._is_async and not slot.solo:
                # Its neighbours are innocent: ask first, kill when its grace is over.
                slot.stop(token, "dropped")
                held.kill_at_s = held.kill_at_s or time.monotonic() + held.spec().grace_s
                held.stop = held.stop or "dropped"
            elif held.started_s is not None or slot.running == token:
                slot.kill_for(held.token)
            else:
                self.ask_back(slot, [token])

    def drain(self) -> None:
        """Take no more, hand back what has not started, finish the rest."""
        self.draining = True
        self.recall(list(self.held))

    # --- feeding ------------------------------------------------------------------------------

    def feed(self) -> None:
        """Hand out what waits, as far as children have room."""
        if self.draining:
            return  # What waits goes back, and no child is started for it.
        if self._backlog.suspects:
            self._feed_suspects()
        if len(self._lines) > 1 or any(slot.unpacked for slot in self._slots):
            self._children.arrange()
        for code, line in list(self._lines.items()):
            if line:
                self._feed_line(code, line)
            elif code:
                del self._lines[code]

    def _feed_line(self, code: str, line: Line) -> None:
        slots = [
            slot
            for slot in self._slots
            if slot.is_ready
            and not slot.exclusive
            and not slot.solo
            and not slot.retiring
            and slot.code == code
        ]
        pressing = self._children.pressing
        yields = pressing is not None and pressing[0] != code and pressing[1] < line[0]
        limit = self._pace.child_ahead()
        if self._is_async:
            retiring = (slot for slot in self._slots if slot.retiring and slot.code == code)
            limit = self._concurrency - sum(len(slot.fed) for slot in retiring)
        slots.sort(key=lambda slot: len(slot.fed))
        for at, slot in enumerate(slots):
            if slot.stuck or (yields and slot.fed):
                continue
            room = limit - len(slot.fed)
            # Half empty before it is filled again: fewer and larger frames.
            if slot.fed and not self._is_async and room * 2 < limit:
                continue
            if slot.output_bytes > CAPTURE_BYTES_MAX:
                if slot.fed:
                    continue
                slot.rewind()
            if slot.is_bloated:
                if not slot.fed:
                    slot.kill()  # For what earlier attempts left in it, the next is not to blame.
                continue
            if self._config.renews:
                room = min(room, self._children.left(slot))
            share = -(-len(line) // (len(slots) - at))
            self._feed_slot(slot, line, min(room, share))
            if not line:
                return

    def _feed_slot(self, slot: Slot, line: Line, room: int) -> None:
        batch: list[Held] = []
        while line and len(batch) < room:
            held = self.held[line[0]]
            if held.assignment.alone and (slot.fed or batch):
                break  # A suspect waits until a child is empty; whatever follows waits with it.
            line.popleft()
            batch.append(held)
            if held.assignment.alone:
                slot.exclusive = True
                break
        if batch and (len(self._lines) > 1 or slot.unpacked):
            line.fed_s = time.monotonic()
        self._hand_over(slot, batch)

    def _feed_suspects(self) -> None:
        for code, token in self._backlog.first_suspects().items():
            solo = self._children.solo_for(code)
            if solo is not None and solo.is_ready and not solo.fed:
                self._backlog.suspects.remove(token)
                self._hand_over(solo, [self.held[token]])

    def _hand_over(self, slot: Slot, batch: list[Held]) -> None:
        if not batch:
            return
        now = time.monotonic()
        if not slot.fed:
            slot.moved_s = now
        secrets = slot.secrets
        for held in batch:
            held.slot = slot
            held.secrets = secrets
            held.recalled = False
            slot.fed[held.token] = None
            if self._is_async:
                held.started_s = now + until_start_s(held.assignment)
        slot.feed([held.assignment for held in batch])
        slot.taken += len(batch)
        if self._config.renews and not self.draining:
            self._children.see_to_wear(slot)

    def ask_back(self, slot: Slot, tokens: Iterable[int]) -> None:
        """Ask a child for what it has not started, once for each."""
        asked = [token for token in tokens if not self.held[token].recalled]
        for token in asked:
            self.held[token].recalled = True
        if asked:
            slot.recall(asked)

    # --- bundles ------------------------------------------------------------------------------

    def _on_code(self, sha: str) -> None:
        """Feed what waited for a bundle; forget bundles that nobody needs."""
        used = {sha, *self._lines, *self._backlog.first_suspects(), *self._children.codes()}
        if folders := self._codes.forget_unused(used):
            self.spawn(asyncio.to_thread(remove, folders))
        self.feed()

    def _fail_code(self, sha: str, reason: str) -> None:
        """End what waits for a bundle that cannot work, and what comes for it in a while."""
        self._refuse(sha, self._codes.fails(sha, reason))

    def _refuse(self, sha: str, verdict: Verdict) -> None:
        for held in self._backlog.take(sha):
            self._conclude(held, refused(held, verdict))

    def _give_back(self, sha: str) -> None:
        """Give back what waits for a bundle that does not come: the store is away."""
        taken = self._backlog.take(sha)
        log.error("worker.code_missed", code=sha, given_back=len(taken))
        for held in taken:
            self._conclude(held, Outcome(held.token, "returned"))

    # --- news from the slots ------------------------------------------------------------------

    def on_ready(self, slot: Slot) -> None:
        """Feed a new child."""
        if slot.unpacked is not None:
            slot.moved_s = time.monotonic()
            self._codes.works(slot.code)
        self.feed()
        self.news()

    def on_broken(self, slot: Slot, error: str) -> None:
        """Discard what waits for a bundle that cannot be imported; the slot is for others then."""
        sha = slot.code
        if not sha:
            return  # The cluster's own code: the slot tries again, and the backlog is given back.
        if self._codes.is_whole(sha):
            self._fail_code(sha, error)
        elif self._codes.wants(sha):  # Somebody cleaned this machine's temporary files.
            self.spawn(self._codes.fetch(sha))
        self._children.leave_code(slot)
        self.feed()

    def on_moved(self, moved: Moved) -> None:
        """Note progress for the next report."""
        held = self.held.get(moved.token)
        if held is not None and moved.token not in self.ended:
            self.progress[moved.token] = Progress(moved.token, moved.fraction, moved.message)
            self.news()

    def on_ended(self, slot: Slot, ended: Ended) -> None:
        """Settle attempts that ended; queue again those that came back."""
        spans = {span.token: span for span in ended.logs}
        back: list[int] = []
        tasks, total_s = 0, 0.0
        for outcome in ended.outcomes:
            token = outcome.token
            if token not in slot.fed:
                continue  # Seen before, on the board.
            held = self.held[token]
            if outcome.kind == "returned":
                del slot.fed[token]
                slot.taken -= 1
                held.slot, held.started_s = None, None
                if not self._settled_unstarted(held):
                    back.append(token)
                continue
            tasks += 1
            total_s += outcome.ended_at - outcome.started_at
            if span := spans.get(token) if spans else None:
                slot.output_bytes = max(slot.output_bytes, span.end)
                held.output_at = span.start
                self._end_with_log(slot, held, outcome, span.end)
            elif held.stop is None and not held.dropped:
                # The common case, short: everything else is in `_conclude`.
                del slot.fed[token]
                held.slot = None
                self.ended[token] = outcome
                if self.progress:
                    self.progress.pop(token, None)
            else:
                del slot.fed[token]
                self._retire(slot, held, outcome)
        self._backlog.put_back(back)
        self._pace.add(tasks, total_s)
        slot.moved_s = time.monotonic()
        if tasks:
            slot.stuck = False
        if not slot.fed:
            slot.exclusive = False
            self._children.close_solo(slot)
        if self._config.renews and not self.draining:
            self._children.see_to_wear(slot)
        self.feed()
        self.news()

    def on_called(self, slot: Slot, call: Call) -> None:
        """Answer in a task of its own: it may wait for the manager."""
        self.spawn(self._answer(slot, slot.lives, call))

    async def _answer(self, slot: Slot, life: int, call: Call) -> None:
        held = self.held.get(call.token)
        if held is not None and (held.dropped or call.token in self.ended):
            held = None
        answer = await self._calls.answer(held, call)
        if slot.lives == life:  # else the next child would take it for the answer to its own call
            slot.answer(answer)

    def on_died(self, slot: Slot, death: Death) -> None:
        """Settle what a dead child held. A new child is on its way."""
        guilty, slot.guilty = slot.guilty, None
        changing, slot.changing = slot.changing, False
        if slot.unpacked is not None and not death.was_ready and not changing:
            self._on_died_unready(slot, death)
        self.on_ended(slot, Ended(death.kept))
        orphans = [self.held[token] for token in slot.fed]
        slot.fed.clear()
        slot.exclusive = slot.stuck = False
        back: list[int] = []
        running = [held for held in orphans if self._is_async or held.token == death.running]
        for held in orphans:
            held.slot = None
            if held.ending is not None:
                self._conclude(held, held.ending)
            elif held.token == guilty:
                self._read(slot, held, self._bury(held, death, held.stop or "killed", alone=True))
            elif held not in running:
                held.started_s = None
                if not self._settled_unstarted(held):
                    back.append(held.token)
            elif guilty is not None or death.cause == HUNG:
                cause = "killed with another" if guilty is not None else HUNG
                self._conclude(held, Outcome(held.token, "stopped", cause=cause))
            else:
                alone = len(running) == 1
                self._read(slot, held, self._bury(held, death, death.cause, alone=alone))
        self._backlog.put_back(back)
        if guilty is None and not changing:
            log.warning(
                "worker.child_died",
                cause=death.cause,
                running=[held.token for held in running],
                requeued=len(back),
                next="a new child is started",
            )
        self.spawn(self._unlink_after(list(slot.readers), death.output))
        self._children.close_solo(slot)
        if self._config.renews:
            self._children.stand_in(slot)
        self.feed()
        self.news()

    def _on_died_unready(self, slot: Slot, death: Death) -> None:
        """Fail what waits for a bundle whose children die, or hang, while they import it."""
        sha = slot.code
        if death.cause == NOT_READY:
            told = f"the import of the job's code took over {self._config.patience.ready_s:g} s"
        elif death.cause != HUNG and self._codes.died(sha):
            told = f"its process died while it imported the job's code: {death.cause}"
        else:
            return
        self._refuse(sha, self._codes.fails(sha, told, death.cause))
        self._children.leave_code(slot)

    def _read(self, slot: Slot, held: Held, reading: Coroutine[Any, Any, None]) -> None:
        """Conclude in a task that reads the log first; its files are kept as long."""
        held.ending = held.ending or Outcome(held.token, "crashed")
        task = asyncio.ensure_future(reading)
        slot.readers.add(task)
        task.add_done_callback(slot.readers.discard)
        task.add_done_callback(self._noticed)

    async def _unlink_after(self, readers: list[asyncio.Task[None]], output: Path) -> None:
        await asyncio.gather(*readers)
        await asyncio.to_thread(output.unlink, missing_ok=True)

    async def _bury(self, held: Held, death: Death, cause: str, *, alone: bool) -> None:
        """Conclude an attempt whose process died, once its log is kept."""
        path, held.output_at = death.output, death.output_at
        if self._is_async:
            path, held.output_at = output_path(death.output.parent, held.token), 0
        else:
            held.started_s = death.started_ns / 1e9
        printed, where = await self._logs.keep(held, path)
        outcome = crashed(held, death, cause, printed, where, alone=alone)
        if self._is_async:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        self._conclude(held, outcome)

    # --- how attempts end ---------------------------------------------------------------------

    def _settled_unstarted(self, held: Held) -> bool:
        """Conclude an attempt that came back unstarted, unless it is to be fed again."""
        held.recalled = False
        if held.stop or held.dropped or held.wanted_back or self.draining:
            self._conclude(held, Outcome(held.token, "returned"))
            return True
        return False

    def _end_with_log(self, slot: Slot, held: Held, outcome: Outcome, end: int) -> None:
        path = self._output_of(slot, held.token)
        held.ending = outcome
        del slot.fed[held.token]
        self._read(slot, held, self._store_log(slot, held, outcome, path, end))

    def _output_of(self, slot: Slot, token: int) -> Path:
        return output_path(slot.scratch, token) if self._is_async else slot.output_path

    async def _store_log(
        self, slot: Slot, held: Held, outcome: Outcome, path: Path, end: int
    ) -> None:
        _, where = await self._logs.keep(held, path, end)
        if self._is_async:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        held.ending = None
        self._retire(slot, held, msgspec.structs.replace(outcome, log=where))

    def log_so_far(self, slot: Slot, held: Held) -> None:
        """Have what a running attempt printed so far put into the store."""
        self.spawn(self._logs.keep_so_far(held, self._output_of(slot, held.token)))

    def _retire(self, slot: Slot, held: Held, outcome: Outcome) -> None:
        """Conclude; after an ordered stop only once whatever the attempt left running is dead."""
        cut_short = held.stop is not None and outcome.kind != "ok"
        if not cut_short or self._is_async or slot.fed or not slot.is_ready:
            held.slot = None
            self._conclude(held, outcome)
            return
        held.ending = outcome
        slot.fed[held.token] = None
        slot.kill_for(held.token)

    def _conclude(self, held: Held, outcome: Outcome) -> None:
        """Fix the outcome for the report. Whoever ordered its end is named here."""
        token = held.token
        self.progress.pop(token, None)
        if held.dropped:
            self._let_go(token)
        elif token in self.held:
            self.ended[token] = outcome if held.stop is None else as_ordered(held, outcome)
        self.news()

    def _let_go(self, token: int) -> None:
        self.progress.pop(token, None)
        self.confirm([token])
