"""The slots of a worker: how many there are, with which code, and when a child makes way.

Rule 1: an attempt runs in a child with the code it names: a slot changes its child's code between
two attempts, or, where children run many at once, a bundle gets a slot beside the others. Rule 2:
no line waits behind the others for long. Rule 3: a child that is worn is renewed between two
attempts, and a spare one, up before, takes over from it. Rule 4: what a slot is fed is the
executor's to say. Rule 5: where children run one at a time, the last child of a code that was used
lately is not ended for another code while there is room aside: it steps aside, and back when there
is work for it. What stands aside is never fed, so that no more run at once than may. Rule 6: a
bundle with which no child has come up yet is imported aside: that may take for ever.
"""

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol

from cluster.code import Unpacked
from cluster.worker.backlog import Backlog
from cluster.worker.codes import Codes
from cluster.worker.slot import Slot, SlotConfig, SlotOwner

__all__ = ["Children", "ChildrenOwner"]

#: Children of an `io` worker that run bundles, beside the one with the cluster's own code.
CODE_SLOTS_MAX = 8
#: Children of other workers that stand aside, with code that was used lately or is wanted next.
ASIDE_MAX = 2
#: A child that has done this part of what it may do has a spare one started beside it.
SPARE_AT = 0.5
#: Children of an `io` worker that end what they have, at most, while the next takes what comes.
RETIRING_MAX = 4


class ChildrenOwner(SlotOwner, Protocol):
    """Who feeds the children."""

    def feed(self) -> None:
        """Hand out what waits: there is room that was not there before."""

    def ask_back(self, slot: Slot, tokens: Iterable[int]) -> None:
        """Ask a child for what it has not started."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run in a task that ends with the worker."""


class Children:
    """All slots of one worker."""

    def __init__(
        self,
        config: SlotConfig,
        scratch: Path,
        owner: ChildrenOwner,
        backlog: Backlog,
        codes: Codes,
    ) -> None:
        self._config, self._scratch, self._owner = config, scratch, owner
        self._backlog, self._lines, self._codes = backlog, backlog.lines, codes
        self._is_async = config.mode == "async"
        #: Those that are fed, the same list always.
        self.slots: list[Slot] = []
        #: Those that change places with one that is fed, when there is work for their code.
        self.aside: list[Slot] = []
        #: Takes over from the next child that is due to be renewed; it has the cluster's own code.
        self.spare: Slot | None = None
        #: Slots on their way out.
        self._leaving: set[Slot] = set()
        #: The code of the line that waited too long and the token at its head: others drain.
        self.pressing: tuple[str, int] | None = None

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the slots. They take work when their children are ready."""
        count = 1 if self._is_async else self._config.concurrency
        self.slots += [self._made(solo=False) for _ in range(count)]
        await asyncio.gather(*(slot.start() for slot in self.slots))

    async def close(self) -> None:
        """End every child; returns when nothing of any attempt lives."""
        await asyncio.gather(*(slot.close() for slot in (*self.living, *self._leaving)))

    @property
    def living(self) -> list[Slot]:
        """Every slot that is to have a child."""
        spare = [] if self.spare is None else [self.spare]
        return [*self.slots, *self.aside, *spare]

    def _made(self, *, solo: bool) -> Slot:
        return Slot(self._config, self._scratch, self._owner, solo=solo)

    def _open(self, unpacked: Unpacked | None, *, solo: bool, aside: bool = False) -> None:
        slot = self._made(solo=solo)
        slot.unpacked = unpacked
        slot.moved_s = time.monotonic()
        (self.aside if aside else self.slots).append(slot)
        self._owner.spawn(slot.start())

    def _close(self, slot: Slot) -> None:
        for slots in (self.slots, self.aside):
            if slot in slots:
                slots.remove(slot)
                self._leaving.add(slot)
                self._owner.spawn(self._close_after_readers(slot))

    async def _close_after_readers(self, slot: Slot) -> None:
        await asyncio.gather(*slot.readers, return_exceptions=True)
        await slot.close()
        self._leaving.discard(slot)

    # --- suspects -----------------------------------------------------------------------------

    def solo_for(self, code: str) -> Slot | None:
        """Return the slot for suspects with this code; None while it is only being opened."""
        for slot in self.slots:
            if slot.solo and slot.code == code:
                return slot
        unpacked = self._codes.get(code) if code else None
        if unpacked is not None or not code:
            self._open(unpacked, solo=True)
        return None

    def close_solo(self, slot: Slot) -> None:
        """Close a slot that was made for suspects when no more of them wait."""
        if slot.solo and not slot.fed and slot.code not in self._backlog.first_suspects():
            self._close(slot)

    # --- slots by code ------------------------------------------------------------------------

    def ready(self) -> int:
        """Return how many children take work now, each of them with the worker's concurrency."""
        # Slots with code of bundles come beside the first one of an async worker: they share its
        # concurrency.
        own_only = self._is_async
        return sum(
            slot.is_ready
            and not slot.solo
            and not slot.retiring
            and not (own_only and slot.unpacked)
            for slot in self.slots
        )

    def serves(self, code: str) -> bool:
        """Whether there is a child for this code, or one that could change to it."""
        ready = [s for s in self.slots if s.is_ready and not (s.solo or s.retiring)]
        if any(slot.code == code for slot in ready):
            return True
        # Else the next slot that runs empty will be.
        can_change = not self._is_async and (not code or self._codes.is_proven(code))
        return can_change and bool(ready)

    def is_coming(self, code: str) -> bool:
        """Whether a child with this code is being started."""
        return any(s.code == code and not (s.is_ready or s.solo) for s in self.living)

    def count_awaited(self) -> int:
        """Return how many attempts wait for a code with which no child is up."""
        up = {slot.code for slot in (*self.slots, *self.aside) if slot.is_ready}
        return sum(len(line) for code, line in self._lines.items() if code and code not in up)

    def codes(self) -> set[str]:
        """Return every code that a child may have."""
        return {slot.code for slot in (*self.slots, *self.aside, *self._leaving)}

    def arrange(self) -> None:
        """See to it that every line has a child with its code, the one that waits longest first."""
        now = time.monotonic()
        self.pressing = None
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
        slots = [slot for slot in self.slots if slot.unpacked and not slot.solo]
        if not code or any(slot.code == code and not slot.retiring for slot in slots):
            return
        if len(slots) >= CODE_SLOTS_MAX:
            idle = [slot for slot in slots if not slot.fed and not self._lines.get(slot.code)]
            if not idle:
                return
            self._close(min(idle, key=lambda slot: slot.moved_s))
        self._open(unpacked, solo=False)

    def _arrange_slots(self, head: int, code: str, unpacked: Unpacked | None, now: float) -> None:
        """Let slots that have nothing to do turn to this code, as many as its line needs.

        If there is none and the line has waited for long, it gets the next slot that runs empty
        although that one's own line goes on, unless what waits there has waited longer.
        """
        line = self._lines[code]
        empty: dict[str, list[Slot]] = {}
        for slot in self.slots:
            if not slot.fed:
                empty.setdefault(slot.code, []).append(slot)
        coming = len(empty.pop(code, ()))
        room = [
            slot
            for other, slots in empty.items()
            for slot in slots[len(self._lines.get(other, ())) :]
            if slot.is_ready
        ]
        # Those of which there are most, and of these the one that was used least lately.
        room.sort(key=lambda slot: (-len(empty[slot.code]), slot.moved_s))
        is_proven = not code or self._codes.is_proven(code)
        kept: list[Slot] = []
        for slot in room:
            if coming >= len(line):
                return
            if self._swap(slot, code):
                coming += 1
            elif is_proven and self._is_dispensable(slot, now):
                slot.change(unpacked)
                coming += 1
            else:
                kept.append(slot)
        if coming or any(slot.code == code and not slot.is_ready for slot in self.aside):
            return
        if (kept or not self._count(code)) and self._bring(code, unpacked):
            return
        if not is_proven:
            up = [slot for slot in self.aside if slot.is_ready]
            if up and now - line.fed_s >= self._config.patience.code_s:
                min(up, key=lambda slot: slot.moved_s).change(unpacked)
            return
        if kept:
            kept[0].change(unpacked)
            return
        if now - line.fed_s < self._config.patience.code_s or self.pressing:
            return
        for other, slots in empty.items():
            if (waiting := self._lines.get(other)) and waiting[0] < head:
                continue
            for slot in slots:
                if slot.is_ready:
                    if not (self._swap(slot, code) or self._bring(code, unpacked)):
                        slot.change(unpacked)
                    return
        self.pressing = code, head

    def _count(self, code: str) -> int:
        """Return how many children have this code or are to have it."""
        return sum(slot.code == code for slot in (*self.slots, *self.aside))

    def _is_dispensable(self, slot: Slot, now: float) -> bool:
        """Whether its code has another child, or was not used for a while."""
        idle_s = now - slot.moved_s
        return idle_s > self._config.patience.code_idle_s or self._count(slot.code) > 1

    def _swap(self, slot: Slot, code: str) -> bool:
        """Let a child with this code that stands aside, if one is up, change places with this."""
        for at, other in enumerate(self.aside):
            if other.code == code and other.is_ready:
                self.slots[self.slots.index(slot)], self.aside[at] = other, slot
                return True
        return False

    def _bring(self, code: str, unpacked: Unpacked | None) -> bool:
        """Start a child with this code aside, if there is room or one that can be done without."""
        if len(self.aside) < ASIDE_MAX:
            self._open(unpacked, solo=False, aside=True)
            return True
        idle = [s for s in self.aside if s.is_ready and not self._lines.get(s.code)]
        if not idle:
            return False
        least = min(idle, key=lambda slot: (self._count(slot.code) == 1, slot.moved_s))
        least.change(unpacked)
        return True

    def leave_code(self, slot: Slot) -> None:
        """Let go of a bundle with which no child comes up."""
        if self._is_async or slot in self.aside:
            self._close(slot)
        else:
            slot.unpacked = None

    def free_idle(self, now: float) -> None:
        """End children that have had nothing to do for a while; the cluster's own code stays."""
        for slot in (*self.slots, *self.aside):
            aside = slot in self.aside
            idle = (aside or slot.unpacked) and not slot.solo and not slot.fed and slot.is_ready
            if not idle or self._lines.get(slot.code):
                continue
            if now - slot.moved_s > self._config.patience.code_idle_s:
                if self._is_async or aside:
                    self._close(slot)
                elif not self._swap(slot, ""):
                    slot.change(None)

    # --- renewal ------------------------------------------------------------------------------

    def left(self, slot: Slot) -> int:
        """Return how many attempts may still be fed to its child."""
        if slot.growth >= 1.0:
            return 0
        tasks_max = self._config.tasks_max
        return tasks_max - slot.taken if tasks_max else sys.maxsize

    def see_to_wear(self, slot: Slot) -> None:
        """See to it that a worn child is renewed as soon as it runs nothing."""
        wear = slot.wear
        if wear >= SPARE_AT and self.spare is None and not slot.code and not slot.solo:
            self.spare = self._made(solo=False)
            self._owner.spawn(self.spare.start())
        if not slot.is_ready or slot not in self.slots or (wear < 1.0 and not slot.retiring):
            return
        if self._is_async and not slot.solo:
            self._retire_child(slot)
        elif not slot.fed:
            slot.renew()
        elif slot.growth >= 1.0:
            self._owner.ask_back(slot, slot.fed)

    def _retire_child(self, slot: Slot) -> None:
        """Let another child take what comes; this one, once it runs nothing, is renewed.

        For a slot with code of a bundle, `_arrange_beside` finds the other.
        """
        slot.retiring = True
        same = [s for s in self.slots if s.code == slot.code and not s.solo]
        followed = any(not s.retiring for s in same)
        spare = self.spare
        if not (followed or slot.code) and len(same) <= RETIRING_MAX:
            if spare is not None and (slot.fed or spare.is_ready):
                self.slots.append(spare)
                self.spare = None
                asyncio.get_running_loop().call_soon(self._owner.feed)
                followed = True
            elif slot.fed:
                self._open(None, solo=False)
        if slot.fed:
            return
        slot.retiring = False
        if not followed:
            if slot.is_ready:
                slot.renew()
        elif slot.code or self.spare is not None:
            self._close(slot)
        else:
            self.slots.remove(slot)
            self.spare = slot
            if slot.is_ready:
                slot.renew()

    def stand_in(self, slot: Slot) -> None:
        """Let the spare child serve at once in place of one that is dead."""
        spare = self.spare
        if slot.retiring:
            self._retire_child(slot)
        elif (
            spare is not None
            and spare.is_ready
            and slot in self.slots
            and not (slot.code or slot.solo)
        ):
            self.slots[self.slots.index(slot)] = spare
            self.spare = slot
