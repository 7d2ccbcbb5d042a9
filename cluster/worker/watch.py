"""The watch over what runs: limits, graces, held-up loops, captures, what waits behind a long one.

Rule 1: an attempt is not killed for its limit while another kept it from having a turn: that one is
to blame. Rule 2: what stands on a child's board counts also when the child does not come to say it.
Rule 3: nothing here decides what an end means: it orders, and the executor settles what comes of
it.
"""

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from cluster.worker.capture import CAPTURE_BYTES_MAX, cut
from cluster.worker.held import BLOCKED, Held
from cluster.worker.life import kept_outcomes
from cluster.worker.pace import Pace
from cluster.worker.pipe import Ended
from cluster.worker.slot import Patience, Slot

__all__ = ["WATCH_S", "Watch", "Watched"]

log = structlog.get_logger("drayman.worker")

WATCH_S = 0.1
#: An attempt that has run so long is reported as started, and what waits behind it is taken back.
NOTICED_S = 0.05
#: How often the log of a running attempt is put into the store, if it grew.
LOG_EVERY_S = 2.0
#: A loop that has not turned for so long is blocked by a handler.
BLOCKED_LOOP_S = 2.0
#: What a child has put on its board it says at once; later it is taken from there.
SAID_S = 2.0


class Watched(Protocol):
    """Whose attempts are watched, and who acts on what is seen."""

    held: dict[int, Held]
    #: To be called when there is something to report.
    news: Callable[[], None]

    def on_ended(self, slot: Slot, ended: Ended) -> None:
        """Settle what was found on a board."""

    def ask_back(self, slot: Slot, tokens: Iterable[int]) -> None:
        """Ask a child for what it has not started."""

    def stop(self, token: int, reason: str) -> None:
        """Ask an attempt to stop."""

    def log_so_far(self, slot: Slot, held: Held) -> None:
        """Have what an attempt printed so far put into the store."""


class Watch:
    """Looks at every slot, many times a second."""

    def __init__(self, watched: Watched, patience: Patience, pace: Pace, *, is_async: bool) -> None:
        self._watched, self._patience, self._pace = watched, patience, pace
        self._is_async = is_async

    def look(self, slots: list[Slot], now: float) -> None:
        """See to everything that runs in these slots."""
        self._pace.longest_s = 0.0
        for slot in slots:
            if not slot.fed or slot.board is None:
                continue
            if self._is_async:
                running = [self._watched.held[token] for token in slot.fed]
                self._look_at_loop(slot, now)
            else:
                running = self._look_at_child(slot, now)
            for held in running:
                self._look_at(slot, held, now)

    def _look_at_child(self, slot: Slot, now: float) -> list[Held]:
        assert slot.board is not None
        token, started_ns, output_at = slot.board.running()
        held = self._watched.held.get(token)
        if held is None or token not in slot.fed:
            if slot.is_ready and now - slot.moved_s > self._patience.begin_s:
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
            self._watched.on_ended(slot, Ended(kept))
            return []
        if kept:
            self._watched.on_ended(slot, Ended(kept))
        if held.started_s is None:
            held.started_s = started_s
            self._watched.news()
        held.output_at = output_at
        self._limit_capture(slot, held)
        self._pace.longest_s = max(self._pace.longest_s, now - started_s)
        slot.stuck = True
        self._watched.ask_back(slot, [other for other in slot.fed if other != token])
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
                by=slot.running,
                running=list(slot.fed),
                next="time limits still hold; move blocking code out of async handlers",
            )
        if blocked_s > self._patience.blocked_s and len(slot.fed) > 1:
            self._end_blocker(slot)

    def _blocked_s(self, slot: Slot, now: float) -> float:
        pulsed_ns = slot.board.pulsed_ns() if slot.board is not None else 0
        return now - pulsed_ns / 1e9 if pulsed_ns else 0.0

    def _end_blocker(self, slot: Slot) -> None:
        """Kill the child for what holds its loop; if that is not known, all become suspects."""
        blocker = self._watched.held.get(slot.running)
        if blocker is None or blocker.token not in slot.fed:
            slot.kill(BLOCKED, "something it started blocked the event loop")
            return
        blocker.stop = blocker.stop or BLOCKED
        slot.kill_for(blocker.token)

    def _look_at(self, slot: Slot, held: Held, now: float) -> None:
        assert held.started_s is not None
        if held.ending is not None:
            return
        limit_s = held.spec().timeout_s
        if held.stop is None and limit_s is not None and now - held.started_s >= limit_s:
            self._watched.stop(held.token, "timeout")
        if held.stop is not None and now >= held.kill_at_s:
            if held.stop == "timeout" and self._is_held_up(slot, held, now):
                held.stop = None  # It had no turn: what had them all is to blame.
                self._end_blocker(slot)
            else:
                slot.kill_for(held.token)
        elif now - max(held.logged_s, held.started_s) >= LOG_EVERY_S:
            held.logged_s = now
            self._watched.log_so_far(slot, held)

    def _is_held_up(self, slot: Slot, held: Held, now: float) -> bool:
        return (
            self._is_async
            and len(slot.fed) > 1
            and self._blocked_s(slot, now) > BLOCKED_LOOP_S
            and slot.running != held.token
        )
