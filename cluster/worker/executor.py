"""What a worker holds: every token, from its assignment to the outcome that awaits confirmation.

    backlog -> fed to a child -> (running) -> ended -> confirmed
       ^______________|  handed back unstarted

Rule 1: a token is started at most once; one that was handed back had not started, by the child's
word or by its death. Rule 2: who ordered an end is decided here and stands in the outcome:
`stopped` for a stop, `failed`/`timeout` for a limit, `crashed` only for a death nobody ordered.
Rule 3: what was killed for another's sake is `returned`: it is not charged. Rule 4: an outcome is
told after its log is in the store. Rule 5: an attempt runs in a child with the code it names; each
code has a line that keeps its order, and none waits behind the others for long. Rule 6: a child
that is worn is renewed between two attempts, and a spare one, up before, takes over from it.
"""

import asyncio
import sys
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import structlog

from cluster.code import Unpacked
from cluster.protocol import (
    Assignment,
    Outcome,
    Progress,
    Record,
    Recorded,
    Refused,
    decode_record_reply,
    encode,
    refusal_of,
)
from cluster.worker.capture import cut, last_lines
from cluster.worker.child_async import output_path
from cluster.worker.codes import Codes, remove
from cluster.worker.ephemeral import Holder
from cluster.worker.held import BLOCKED, Held, as_ordered
from cluster.worker.keeper import CODE_FOLDER
from cluster.worker.logs import Logs, read_quietly
from cluster.worker.pace import Pace
from cluster.worker.pipe import Answer, Call, Ended, Moved, until_start_s
from cluster.worker.remains import wait_until_gone
from cluster.worker.secrets import read_secret
from cluster.worker.slot import HUNG, Death, Slot, SlotConfig, kept_outcomes
from jobs.errors import DraymanError, LeaseLost, NotFound
from jobs.redact import redact

__all__ = ["Executor"]

log = structlog.get_logger("drayman.worker")

WATCH_S = 0.1
#: An attempt that has run so long is reported as started, and what waits behind it is taken back.
NOTICED_S = 0.05
#: How often the log of a running attempt is put into the store, if it grew.
LOG_EVERY_S = 2.0
#: A capture file beyond this is cut under the attempt that fills it, or emptied between two.
CAPTURE_BYTES_MAX = 64 << 20
#: A loop that has not turned for so long is blocked by a handler.
BLOCKED_LOOP_S = 2.0
#: What a child has put on its board it says at once; later it is taken from there.
SAID_S = 2.0
ERROR_CHARS_MAX = 4096
RETRY_MIN_S, RETRY_MAX_S = 0.05, 1.0
#: A token that was let go is remembered until so many others were.
FORGOTTEN_TOKENS_MAX = 65_536
#: Children of an `io` worker that run bundles, beside the one with the cluster's own code.
CODE_SLOTS_MAX = 8
#: A child that has done this part of what it may do has a spare one started beside it.
SPARE_AT = 0.5
#: Children of an `io` worker that end what they have, at most, while the next takes what comes.
RETIRING_MAX = 4


class _Line(deque[int]):
    """What waits for one code, in order; a token that is put back goes to the front."""

    def __init__(self) -> None:
        super().__init__()
        #: When it was last fed, or last began to wait.
        self.fed_s = 0.0
        #: Since when no child is there for it; None while one is.
        self.starved_since_s: float | None = None


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
        self._scratch = scratch
        self._record, self._ask, self._news = record, ask, news
        self._holder = holder
        self._logs = logs
        self._slots: list[Slot] = []
        #: By code; the line of the cluster's own is always there.
        self._lines: dict[str, _Line] = {"": _Line()}
        #: The code of the line that waited too long and the token at its head: others drain.
        self._pressing: tuple[str, int] | None = None
        self._codes = Codes(
            self._open_store,
            scratch / CODE_FOLDER,
            config.patience.backlog_s,
            arrived=self._on_code,
            broken=self._fail_code,
            missed=self._give_back,
        )
        self._suspects: deque[int] = deque()
        self._pace = Pace()
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Slots on their way out.
        self._leaving: set[Slot] = set()
        #: Takes over from the next child that is due to be renewed; it has the cluster's own code.
        self._spare: Slot | None = None
        #: Records sent so far.
        self._records = 0
        #: Tokens let go lately, never to be started again.
        self._gone: set[int] = set()
        self._gone_in_order: deque[int] = deque(maxlen=FORGOTTEN_TOKENS_MAX)
        self.draining = False
        #: Every token whose outcome is not confirmed, in order of assignment.
        self.held: dict[int, Held] = {}
        #: Outcomes not yet confirmed. Those of `held` that are here have ended.
        self.ended: dict[int, Outcome] = {}
        #: Latest progress not yet reported.
        self.progress: dict[int, Progress] = {}
        #: Done when a part of this broke: whoever owns it must not go on as if it worked.
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the slots. They take work when their children are ready."""
        slots = 1 if self._is_async else self._concurrency
        self._slots = [Slot(self._config, self._scratch, self, solo=False) for _ in range(slots)]
        await asyncio.gather(*(slot.start() for slot in self._slots))
        self._spawn(self._watch())

    async def close(self) -> None:
        """End every child; returns when nothing of any attempt lives."""
        self.draining = True  # so that no slot is opened any more
        tasks = self._tasks.union(*(slot.readers for slot in self._living))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(slot.close() for slot in (*self._living, *self._leaving)))

    @property
    def _living(self) -> list[Slot]:
        """Every slot that is to have a child."""
        return self._slots if self._spare is None else [*self._slots, self._spare]

    def _open_store(self) -> Any:
        from cluster.store.objects import open_store

        return open_store(self._config.store_url)

    @cached_property
    def _endpoints(self) -> Any:
        from cluster.endpoints import Endpoints

        return Endpoints(self._open_store())

    @property
    def _is_async(self) -> bool:
        return self._config.mode == "async"

    def _spawn(self, work: Any) -> None:
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
        # Slots with code of bundles come beside the first one of an async worker: they share its
        # concurrency.
        own_only = self._is_async
        ready = sum(
            slot.is_ready
            and not slot.solo
            and not slot.retiring
            and not (own_only and slot.unpacked)
            for slot in self._slots
        )
        if self.draining or ready == 0:
            return 0, 0
        capacity = ready * (self._concurrency if self._is_async else 1)
        open_tokens = len(self.held) - len(self.ended)
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
                self._spawn(self._assign_after(self.held[token]))
            else:
                self._queue(self.held[token])
        self._feed()

    async def _assign_after(self, held: Held) -> None:
        await wait_until_gone(held.assignment.after)
        if self.held.get(held.token) is held and held.token not in self.ended:
            self._queue(held)
            self._feed()

    def _queue(self, held: Held) -> None:
        code = held.assignment.code
        if code:
            if reason := self._codes.reason(code):
                self._conclude(held, _discarded(held, reason))
                return
            if self._codes.wants(code):
                self._spawn(self._codes.fetch(code))
        if held.assignment.alone and self._is_async:
            self._suspects.append(held.token)
        else:
            self._line(code).append(held.token)

    def _line(self, code: str) -> _Line:
        line = self._lines.get(code)
        if line is None:
            line = self._lines[code] = _Line()
        if not line:
            line.fed_s = time.monotonic()
        return line

    def _put_back(self, tokens: list[int]) -> None:
        """Put what one child has not started in front of its line again."""
        if not tokens:
            return
        suspects = [t for t in tokens if self._is_async and self.held[t].assignment.alone]
        self._suspects.extendleft(reversed(suspects))
        others = [token for token in tokens if token not in suspects] if suspects else tokens
        if others:
            self._line(self.held[others[0]].assignment.code).extendleft(reversed(others))

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
                self._unqueue(token)
                self._conclude(held, Outcome(token, "returned"))
            else:
                self._ask_back(held.slot, [held])

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
            self._unqueue(token)
            self._conclude(held, Outcome(token, "returned"))
            return
        if first:
            grace_s = held.spec().grace_s
            grace_s = grace_s if within_s is None else min(grace_s, within_s)
            held.kill_at_s = time.monotonic() + grace_s
        held.slot.stop(token, reason)
        if not self._is_async:
            self._ask_back(held.slot, self._others(held))

    def drop(self, tokens: Iterable[int]) -> None:
        """Kill attempts that are nobody's any more, and say nothing more of them."""
        for token in tokens:
            held = self.held.get(token)
            if held is None:
                continue
            if token in self.ended or held.slot is None:
                self._unqueue(token)
                self._let_go(token)
                continue
            held.dropped = True
            slot = held.slot
            if self._is_async and not slot.solo:
                # Its neighbours are innocent: ask first, kill when its grace is over.
                slot.stop(token, "dropped")
                held.kill_at_s = held.kill_at_s or time.monotonic() + held.spec().grace_s
                held.stop = held.stop or "dropped"
            elif held.started_s is not None or self._running(slot) == token:
                self._kill(slot, held)
            else:
                self._ask_back(slot, [held])

    def drain(self) -> None:
        """Take no more, hand back what has not started, finish the rest."""
        self.draining = True
        self.recall(list(self.held))

    # --- feeding ------------------------------------------------------------------------------

    def _feed(self) -> None:
        if self._suspects:
            self._feed_suspects()
        if len(self._lines) > 1 or any(slot.unpacked for slot in self._slots):
            self._arrange()
        for code, line in list(self._lines.items()):
            if line:
                self._feed_line(code, line)
            elif code:
                del self._lines[code]

    def _feed_line(self, code: str, line: _Line) -> None:
        slots = [
            slot
            for slot in self._slots
            if slot.is_ready
            and not slot.exclusive
            and not slot.solo
            and not slot.retiring
            and slot.code == code
        ]
        pressing = self._pressing
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
                room = min(room, self._left(slot))
            share = -(-len(line) // (len(slots) - at))
            self._feed_slot(slot, line, min(room, share))
            if not line:
                return

    def _feed_slot(self, slot: Slot, line: _Line, room: int) -> None:
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
        firsts: dict[str, int] = {}
        for token in self._suspects:
            firsts.setdefault(self.held[token].assignment.code, token)
        for code, token in firsts.items():
            solo = next((slot for slot in self._slots if slot.solo and slot.code == code), None)
            if solo is None:
                unpacked = self._codes.get(code) if code else None
                if unpacked is not None or not code:
                    self._open(unpacked, solo=True)
            elif solo.is_ready and not solo.fed:
                self._suspects.remove(token)
                self._hand_over(solo, [self.held[token]])

    def _close_solo(self, slot: Slot) -> None:
        if slot.solo and not slot.fed:
            wanted = {self.held[token].assignment.code for token in self._suspects}
            if slot.code not in wanted:
                self._close(slot)

    def _open(self, unpacked: Unpacked | None, *, solo: bool) -> None:
        slot = Slot(self._config, self._scratch, self, solo=solo)
        slot.unpacked = unpacked
        slot.moved_s = time.monotonic()
        self._slots.append(slot)
        self._spawn(slot.start())

    def _close(self, slot: Slot) -> None:
        if slot in self._slots:
            self._slots.remove(slot)
            self._leaving.add(slot)
            self._spawn(self._close_after_readers(slot))

    async def _close_after_readers(self, slot: Slot) -> None:
        await asyncio.gather(*slot.readers, return_exceptions=True)
        await slot.close()
        self._leaving.discard(slot)

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
        if self._config.renews:
            self._see_to_wear(slot)

    def _others(self, held: Held) -> list[Held]:
        assert held.slot is not None
        return [self.held[token] for token in held.slot.fed if token != held.token]

    def _ask_back(self, slot: Slot, held: list[Held]) -> None:
        asked = [item for item in held if not item.recalled]
        for item in asked:
            item.recalled = True
        if asked:
            slot.recall(item.token for item in asked)

    # --- slots by code ------------------------------------------------------------------------

    def _arrange(self) -> None:
        """See to it that every line has a child with its code, the one that waits longest first."""
        now = time.monotonic()
        self._pressing = None
        for head, code in sorted((line[0], code) for code, line in self._lines.items() if line):
            unpacked = self._codes.get(code) if code else None
            if code and unpacked is None:
                continue  # It is on its way, and then this is called again.
            if self._is_async:
                self._arrange_beside(code, unpacked)
            else:
                self._arrange_slots(head, code, unpacked, now)

    def _arrange_beside(self, code: str, unpacked: Unpacked | None) -> None:
        """Give a bundle a slot of its own, beside that of the cluster's code."""
        slots = [slot for slot in self._slots if slot.unpacked and not slot.solo]
        if not code or any(slot.code == code and not slot.retiring for slot in slots):
            return
        if len(slots) >= CODE_SLOTS_MAX:
            idle = [slot for slot in slots if not slot.fed and not self._lines.get(slot.code)]
            if not idle:
                return
            self._close(min(idle, key=lambda slot: slot.moved_s))
        self._open(unpacked, solo=False)

    def _arrange_slots(self, head: int, code: str, unpacked: Unpacked | None, now: float) -> None:
        """Let slots that have nothing to do change to this code, as many as its line needs.

        If there is none and the line has waited for long, it gets the next slot that runs empty
        although that one's own line goes on, unless what waits there has waited longer.
        """
        line = self._lines[code]
        empty: dict[str, list[Slot]] = {}
        for slot in self._slots:
            if not slot.fed:
                empty.setdefault(slot.code, []).append(slot)
        coming = len(empty.pop(code, ()))
        spare = [
            slot
            for other, slots in empty.items()
            for slot in slots[len(self._lines.get(other, ())) :]
            if slot.is_ready
        ]
        # Those of which there are most, and of these the one that was used least lately.
        spare.sort(key=lambda slot: (-len(empty[slot.code]), slot.moved_s))
        for slot in spare[: max(0, len(line) - coming)]:
            slot.change(unpacked)
            coming += 1
        if coming or now - line.fed_s < self._config.patience.code_s or self._pressing:
            return
        for other, slots in empty.items():
            if (waiting := self._lines.get(other)) and waiting[0] < head:
                continue
            for slot in slots:
                if slot.is_ready:
                    slot.change(unpacked)
                    return
        self._pressing = code, head

    def _on_code(self, sha: str) -> None:
        """Feed what waited for a bundle; forget bundles that nobody needs."""
        used = {slot.code for slot in (*self._slots, *self._leaving)}
        used.update(self._lines)
        used.update(self.held[token].assignment.code for token in self._suspects)
        if folders := self._codes.forget_unused(used | {sha}):
            self._spawn(asyncio.to_thread(remove, folders))
        self._feed()

    def _waiting_for(self, sha: str) -> list[Held]:
        tokens = [*self._lines.get(sha, ()), *self._suspects]
        return [self.held[t] for t in tokens if self.held[t].assignment.code == sha]

    def _fail_code(self, sha: str, reason: str) -> None:
        """End what waits for a bundle that cannot work, and what comes for it in a while."""
        self._codes.fails(sha, reason)
        for held in self._waiting_for(sha):
            self._unqueue(held.token)
            self._conclude(held, _discarded(held, reason))

    def _give_back(self, sha: str) -> None:
        """Give back what waits for a bundle that does not come: the store is away."""
        waiting = self._waiting_for(sha)
        log.error("worker.code_missed", code=sha, given_back=len(waiting))
        for held in waiting:
            self._unqueue(held.token)
            self._conclude(held, Outcome(held.token, "returned"))

    def _leave_code(self, slot: Slot) -> None:
        """Let go of a bundle with which no child comes up."""
        if self._is_async:
            self._close(slot)
        else:
            slot.unpacked = None

    def _free_idle(self, now: float) -> None:
        """Turn slots that have had nothing to do for a while back to the cluster's own code."""
        for slot in list(self._slots):
            idle = slot.unpacked and not slot.solo and not slot.fed and slot.is_ready
            if not idle or self._lines.get(slot.code):
                continue
            if now - slot.moved_s > self._config.patience.code_idle_s:
                if self._is_async:
                    self._close(slot)
                else:
                    slot.change(None)

    # --- renewal ------------------------------------------------------------------------------

    def _left(self, slot: Slot) -> int:
        """Return how many attempts may still be fed to its child."""
        if slot.growth >= 1.0:
            return 0
        tasks_max = self._config.tasks_max
        return tasks_max - slot.taken if tasks_max else sys.maxsize

    def _see_to_wear(self, slot: Slot) -> None:
        """See to it that a worn child is renewed as soon as it runs nothing."""
        if self.draining:
            return
        wear = slot.wear
        if wear >= SPARE_AT and self._spare is None and not slot.code and not slot.solo:
            self._spare = Slot(self._config, self._scratch, self, solo=False)
            self._spawn(self._spare.start())
        if not slot.is_ready or slot not in self._slots or (wear < 1.0 and not slot.retiring):
            return
        if self._is_async and not slot.solo:
            self._retire_child(slot)
        elif not slot.fed:
            slot.renew()
        elif slot.growth >= 1.0:
            self._ask_back(slot, [self.held[token] for token in slot.fed])

    def _retire_child(self, slot: Slot) -> None:
        """Let another child take what comes; this one, once it runs nothing, is renewed.

        For a slot with code of a bundle, `_arrange_beside` finds the other.
        """
        slot.retiring = True
        same = [s for s in self._slots if s.code == slot.code and not s.solo]
        followed = any(not s.retiring for s in same)
        spare = self._spare
        if not (followed or slot.code) and len(same) <= RETIRING_MAX:
            if spare is not None and (slot.fed or spare.is_ready):
                self._slots.append(spare)
                self._spare = None
                asyncio.get_running_loop().call_soon(self._feed)
                followed = True
            elif slot.fed:
                self._open(None, solo=False)
        if slot.fed:
            return
        slot.retiring = False
        if not followed:
            if slot.is_ready:
                slot.renew()
        elif slot.code or self._spare is not None:
            self._close(slot)
        else:
            self._slots.remove(slot)
            self._spare = slot
            if slot.is_ready:
                slot.renew()

    def _stand_in(self, slot: Slot) -> None:
        """Let the spare child serve at once in place of one that is dead."""
        spare = self._spare
        if slot.retiring:
            self._retire_child(slot)
        elif (
            spare is not None
            and spare.is_ready
            and slot in self._slots
            and not (slot.code or slot.solo)
        ):
            self._slots[self._slots.index(slot)] = spare
            self._spare = slot

    # --- news from the slots ------------------------------------------------------------------

    def on_ready(self, slot: Slot) -> None:
        """Feed a new child."""
        if slot.unpacked is not None:
            slot.moved_s = time.monotonic()
            self._codes.works(slot.code)
        self._feed()
        self._news()

    def on_broken(self, slot: Slot, error: str) -> None:
        """Discard what waits for a bundle that cannot be imported; the slot is for others then."""
        sha = slot.code
        if not sha:
            return  # The cluster's own code: the slot tries again, and the backlog is given back.
        if self._codes.is_whole(sha):
            self._fail_code(sha, error)
        elif self._codes.wants(sha):  # Somebody cleaned this machine's temporary files.
            self._spawn(self._codes.fetch(sha))
        self._leave_code(slot)
        self._feed()

    def on_moved(self, moved: Moved) -> None:
        """Note progress for the next report."""
        held = self.held.get(moved.token)
        if held is not None and moved.token not in self.ended:
            self.progress[moved.token] = Progress(moved.token, moved.fraction, moved.message)
            self._news()

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
        self._put_back(back)
        self._pace.add(tasks, total_s)
        slot.moved_s = time.monotonic()
        if tasks:
            slot.stuck = False
        if not slot.fed:
            slot.exclusive = False
            self._close_solo(slot)
        if self._config.renews:
            self._see_to_wear(slot)
        self._feed()
        self._news()

    def on_called(self, slot: Slot, call: Call) -> None:
        """Answer in a task of its own: it may wait for the manager."""
        self._spawn(self._answer(slot, slot.lives, call))

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
        self._put_back(back)
        if guilty is None and not changing:
            log.warning(
                "worker.child_died",
                cause=death.cause,
                running=[held.token for held in running],
                requeued=len(back),
                next="a new child is started",
            )
        self._spawn(self._unlink_after(list(slot.readers), death.output))
        self._close_solo(slot)
        if self._config.renews:
            self._stand_in(slot)
        self._feed()
        self._news()

    def _on_died_unready(self, slot: Slot, death: Death) -> None:
        """Fail what waits for a bundle whose children die while they import it."""
        sha = slot.code
        if death.cause == HUNG or not self._codes.died(sha):
            return
        now = time.time()
        error = f"its process died while it imported the job's code: {death.cause}"
        for held in self._waiting_for(sha):
            self._unqueue(held.token)
            failed = Outcome(held.token, "failed", now, now, error=error, cause=death.cause)
            self._conclude(held, failed)
        self._leave_code(slot)

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
        """Make the outcome of an attempt whose process died, with what it printed last."""
        path, start = death.output, death.output_at
        if self._is_async:
            path, start = output_path(death.output.parent, held.token), 0
        held.output_at = start
        if not self._is_async:
            held.started_s = death.started_ns / 1e9
        data = await asyncio.to_thread(read_quietly, held, path, start)
        where = await self._logs.put(held, data)
        told = redact(last_lines(data), held.secrets)
        died = f"its process died: {cause}" + (f" ({death.told})" if death.told else "")
        now = time.time()
        ran_s = time.monotonic() - (held.started_s or time.monotonic())
        started_at = now - max(0.0, ran_s)  # it may have died while it waited for its moment
        outcome = Outcome(
            held.token,
            "crashed",
            started_at,
            now,
            error=f"{died}\n{told}".strip()[:ERROR_CHARS_MAX],
            cause=cause,
            alone=alone,
            log=where,
        )
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
        path = slot.output_path
        if self._is_async:
            path = output_path(slot.scratch, held.token)
        held.ending = outcome
        del slot.fed[held.token]
        self._read(slot, held, self._store_log(slot, held, outcome, path, end))

    async def _store_log(
        self, slot: Slot, held: Held, outcome: Outcome, path: Path, end: int
    ) -> None:
        data = await asyncio.to_thread(read_quietly, held, path, held.output_at, end)
        where = await self._logs.put(held, data)
        if self._is_async:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        held.ending = None
        self._retire(slot, held, msgspec.structs.replace(outcome, log=where))

    def _retire(self, slot: Slot, held: Held, outcome: Outcome) -> None:
        """Conclude; after an ordered stop only once whatever the attempt left running is dead."""
        cut_short = held.stop is not None and outcome.kind != "ok"
        if not cut_short or self._is_async or slot.fed or not slot.is_ready:
            held.slot = None
            self._conclude(held, outcome)
            return
        held.ending = outcome
        slot.fed[held.token] = None
        self._kill(slot, held)

    def _conclude(self, held: Held, outcome: Outcome) -> None:
        """Fix the outcome for the report. Whoever ordered its end is named here."""
        token = held.token
        self.progress.pop(token, None)
        if held.dropped:
            self._let_go(token)
        elif token in self.held:
            self.ended[token] = outcome if held.stop is None else as_ordered(held, outcome)
        self._news()

    def _let_go(self, token: int) -> None:
        self.progress.pop(token, None)
        self.confirm([token])

    def _unqueue(self, token: int) -> None:
        code = self.held[token].assignment.code if token in self.held else ""
        for line in (self._lines.get(code, ()), self._suspects):
            if token in line:
                line.remove(token)  # type: ignore[union-attr]

    def _kill(self, slot: Slot, held: Held) -> None:
        if slot.guilty is None:
            slot.guilty = held.token
            slot.kill()

    def _running(self, slot: Slot) -> int:
        return slot.board.running()[0] if slot.board is not None else 0

    # --- calls --------------------------------------------------------------------------------

    async def _answer(self, slot: Slot, life: int, call: Call) -> None:
        try:
            answer = await self._found(call)
        except DraymanError as error:
            answer = Answer(call.call, refused=refusal_of(error))
        if slot.lives == life:  # else the next child would take it for the answer to its own call
            slot.answer(answer)

    async def _found(self, call: Call) -> Answer:
        held = self.held.get(call.token)
        if held is None or held.dropped or call.token in self.ended:
            raise LeaseLost(call.token)
        if call.op == "secret":
            value = await asyncio.to_thread(read_secret, call.key)
            if value not in held.secrets:
                held.secrets.append(value)
            return Answer(call.call, msgspec.Raw(encode(value)))
        if call.op == "endpoint" or call.op == "disable_endpoint":
            return await asyncio.to_thread(self._endpoint, held, call)
        if call.op == "tasks":
            return await self._tasks_of(held, call)
        if call.op == "hold" or call.op == "bring" or call.op == "missing":
            return Answer(call.call, await self._ephemeral(held.assignment, call))
        self._records += 1
        message = encode(Record(call.token, call.op, call.key, call.value, self._records))
        reply = decode_record_reply(await self._insist(self._record, message))
        if isinstance(reply, Recorded):
            return Answer(call.call, reply.value, reply.found)
        return Answer(call.call, refused=reply)

    def _endpoint(self, held: Held, call: Call) -> Answer:
        """Look up a webhook endpoint of the attempt's tenant, or disable it. Blocks."""
        endpoints, tenant = self._endpoints, held.spec().tenant
        if call.op == "disable_endpoint":
            reason = msgspec.json.decode(call.value, type=str)
            endpoints.disable(tenant, call.key, reason, time.time())
            return Answer(call.call)
        found = endpoints.delivery(tenant, call.key, time.time())
        held.secrets += [one for one in found.secrets if one not in held.secrets]
        return Answer(call.call, msgspec.Raw(encode(found)))

    async def _tasks_of(self, held: Held, call: Call) -> Answer:
        """Ask for tasks of a job that the attempt's tenant may see."""
        query = msgspec.json.decode(call.value)
        query |= {"op": "tasks", "job_id": call.key, "tenant": held.spec().tenant}
        reply = await self._insist(self._ask, encode(query))
        kind, body = reply[:1], reply[1:]
        if kind == b"~":  # it is not in the manager's memory: the attempt looks at history
            return Answer(call.call, found="evicted")
        if kind == b"-":
            return Answer(call.call, refused=msgspec.json.decode(body, type=Refused))
        return Answer(call.call, msgspec.Raw(body))

    async def _ephemeral(self, of: Assignment, call: Call) -> msgspec.Raw:
        """See to a file that is held instead of stored; without a holder, none is."""
        holder, value = self._holder, msgspec.json.decode(call.value)
        answer: str | list[str] | None = None
        if call.op == "hold" and holder is not None:
            key = f"{of.job_id}/{of.task_id}/{of.attempt}/{call.key}"
            answer = await holder.hold(key, Path(value))
        elif call.op == "missing":
            answer = value if holder is None else await holder.missing(value)
        elif call.op == "bring":
            if holder is None:
                raise NotFound("file", call.key)
            await holder.bring(call.key, Path(value))
        return msgspec.Raw(encode(answer))

    async def _insist(self, call: Callable[[bytes], Awaitable[bytes]], message: bytes) -> bytes:
        """Repeat until the manager answers: while it is away, the attempt waits."""
        pause_s = RETRY_MIN_S
        while True:
            try:
                return await call(message)
            except Exception as error:
                # Whatever the carrier raises, it means: not known to be durable. Records repeat
                # harmlessly, and a child that died meanwhile takes this task with its slot.
                log.warning("worker.call_failed", error=str(error), next_try_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(RETRY_MAX_S, pause_s * 2)

    # --- the watchdog -------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for slot in list(self._living):
                slot.tend(now)
            if self.held:
                self._look(now)
            self._free_idle(now)

    def _look(self, now: float) -> None:
        """See to limits, graces, live logs, and tasks stuck behind a long one."""
        self._pace.longest_s = 0.0
        for slot in list(self._slots):
            if not slot.fed or slot.board is None:
                continue
            if self._is_async:
                watched = [self.held[token] for token in slot.fed]
                self._look_at_loop(slot, now)
            else:
                watched = self._look_at_child(slot, now)
            for held in watched:
                self._look_at(slot, held, now)
        self._look_at_backlog(now)

    def _look_at_backlog(self, now: float) -> None:
        """Give back what no child is there for: on another worker there may be one."""
        if len(self._lines) > 1:
            self._feed()  # for the line that has begun to press
        for code, line in self._lines.items():
            if not line or self._is_served(code):
                line.starved_since_s = None
            elif line.starved_since_s is None:
                line.starved_since_s = now
            elif now - line.starved_since_s > self._config.patience.backlog_s:
                line.starved_since_s = None
                log.error(
                    "worker.no_child",
                    given_back=len(line),
                    code=code,
                    next="a child is started",
                )
                for token in list(line):
                    line.remove(token)
                    self._conclude(self.held[token], Outcome(token, "returned"))

    def _is_served(self, code: str) -> bool:
        ready = [s for s in self._slots if s.is_ready and not (s.solo or s.retiring)]
        if any(slot.code == code for slot in ready):
            return True
        # Else the next slot that runs empty will be.
        can_change = not self._is_async and (not code or self._codes.get(code) is not None)
        return can_change and bool(ready)

    def _look_at_child(self, slot: Slot, now: float) -> list[Held]:
        assert slot.board is not None
        token, started_ns, output_at = slot.board.running()
        held = self.held.get(token)
        if held is None or token not in slot.fed:
            if slot.is_ready and now - slot.moved_s > self._config.patience.begin_s:
                log.error("worker.child_stuck", unstarted=len(slot.fed), next="it is replaced")
                slot.kill()
            return []
        started_s = started_ns / 1e9
        if now - started_s < NOTICED_S:
            return []
        kept = kept_outcomes(slot.board)
        ended = next((outcome for outcome in kept if outcome.token == token), None)
        if ended is not None and time.time() - ended.ended_at < SAID_S:
            return []  # The child is about to say so.
        if ended is not None:
            self.on_ended(slot, Ended(kept))
            return []
        if kept:
            self.on_ended(slot, Ended(kept))
        if held.started_s is None:
            held.started_s = started_s
            self._news()
        held.output_at = output_at
        self._limit_capture(slot, held)
        self._pace.longest_s = max(self._pace.longest_s, now - started_s)
        slot.stuck = True
        self._ask_back(slot, self._others(held))
        return [held]

    def _limit_capture(self, slot: Slot, held: Held) -> None:
        start = 0 if held.beginning else held.output_at
        if slot.output_path.stat().st_size - start > CAPTURE_BYTES_MAX:
            beginning = cut(slot.output_path, start)
            held.beginning = held.beginning or beginning

    def _look_at_loop(self, slot: Slot, now: float) -> None:
        blocked_s = self._blocked_s(slot, now)
        if BLOCKED_LOOP_S < blocked_s < BLOCKED_LOOP_S + 1.5 * WATCH_S:
            log.warning(
                "worker.loop_blocked",
                blocked_s=round(blocked_s, 1),
                by=self._running(slot),
                running=list(slot.fed),
                next="time limits still hold; move blocking code out of async handlers",
            )
        if blocked_s > self._config.patience.blocked_s and len(slot.fed) > 1:
            self._end_blocker(slot)

    def _blocked_s(self, slot: Slot, now: float) -> float:
        pulsed_ns = slot.board.pulsed_ns() if slot.board is not None else 0
        return now - pulsed_ns / 1e9 if pulsed_ns else 0.0

    def _end_blocker(self, slot: Slot) -> None:
        """Kill the child for what holds its loop; if that is not known, all become suspects."""
        blocker = self.held.get(self._running(slot))
        if blocker is None or blocker.token not in slot.fed:
            slot.kill(BLOCKED, "something it started blocked the event loop")
            return
        blocker.stop = blocker.stop or BLOCKED
        self._kill(slot, blocker)

    def _look_at(self, slot: Slot, held: Held, now: float) -> None:
        assert held.started_s is not None
        if held.ending is not None:
            return
        limit_s = held.spec().timeout_s
        if held.stop is None and limit_s is not None and now - held.started_s >= limit_s:
            self.stop(held.token, "timeout")
        if held.stop is not None and now >= held.kill_at_s:
            if held.stop == "timeout" and self._is_held_up(slot, held, now):
                held.stop = None  # It had no turn: what had them all is to blame.
                self._end_blocker(slot)
            else:
                self._kill(slot, held)
        elif now - max(held.logged_s, held.started_s) >= LOG_EVERY_S:
            held.logged_s = now
            self._spawn(self._log_so_far(slot, held))

    def _is_held_up(self, slot: Slot, held: Held, now: float) -> bool:
        return (
            self._is_async
            and len(slot.fed) > 1
            and self._blocked_s(slot, now) > BLOCKED_LOOP_S
            and self._running(slot) != held.token
        )

    # --- logs ---------------------------------------------------------------------------------

    async def _log_so_far(self, slot: Slot, held: Held) -> None:
        path = output_path(slot.scratch, held.token) if self._is_async else slot.output_path
        start = 0 if self._is_async else held.output_at
        data = await asyncio.to_thread(read_quietly, held, path, start, None, True)
        crc = zlib.crc32(data)
        if crc == held.log_crc or held.slot is None or held.ending is not None:
            return
        held.log_crc = crc
        await self._logs.put(held, data)


def _discarded(held: Held, reason: str) -> Outcome:
    now = time.time()
    told = f"the job's code cannot run: {reason}"[:ERROR_CHARS_MAX]
    return Outcome(held.token, "discarded", now, now, error=told, cause="discarded")
