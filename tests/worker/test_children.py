"""Which children step aside, and which end, for code that waits; no process is started here."""

import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.code import Unpacked
from cluster.protocol import NOTHING, Assignment
from cluster.queue.spec import JobSpec, encode_spec
from cluster.worker.backlog import Backlog
from cluster.worker.children import ASIDE_MAX, Children
from cluster.worker.codes import Codes
from cluster.worker.held import Held
from cluster.worker.pipe import Call, Ended, Moved
from cluster.worker.slot import Death, Patience, Slot, SlotConfig

SPEC = msgspec.Raw(encode_spec(JobSpec(type="test.noop", params=msgspec.Raw(b"{}"))))
CODES = ["", "a", "b", "c", "d"]
ENDLESS_S = 1e9


class Owner:
    """Starts no process and hears of none: what a child does is the test's to say."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        work.close()

    def feed(self) -> None: ...
    def ask_back(self, slot: Slot, tokens: Iterable[int]) -> None: ...
    def on_ready(self, slot: Slot) -> None: ...
    def on_broken(self, slot: Slot, error: str) -> None: ...
    def on_ended(self, slot: Slot, ended: Ended) -> None: ...
    def on_moved(self, moved: Moved) -> None: ...
    def on_called(self, slot: Slot, call: Call) -> None: ...
    def on_died(self, slot: Slot, death: Death) -> None: ...


class Worker:
    """The slots of a worker that runs so many at once, and what waits there."""

    def __init__(self, concurrency: int, *, code_idle_s: float = ENDLESS_S) -> None:
        patience = Patience(code_s=0.0, code_idle_s=code_idle_s)
        config = SlotConfig("process", concurrency, "memory://", (), patience=patience)
        self.held: dict[int, Held] = {}
        self.backlog = Backlog(self.held, suspects_apart=False)
        heard: dict[str, Any] = dict.fromkeys(("arrived", "broken", "missed"), print)
        codes = Codes(dict, Path(), 1.0, **heard)  # type: ignore[arg-type]
        codes._unpacked |= {code: Unpacked(code, Path(), []) for code in CODES if code}
        self.known = codes
        self.children = Children(config, Path(), Owner(), self.backlog, codes)
        self.children.slots += [self.children._made(solo=False) for _ in range(concurrency)]
        for slot in self.children.slots:
            slot.is_ready, slot.moved_s = True, time.monotonic()
        #: The codes of what began, in order.
        self.ran: list[str] = []

    @property
    def all(self) -> list[Slot]:
        return [*self.children.slots, *self.children.aside]

    @property
    def codes(self) -> list[str]:
        return [slot.code for slot in self.all]

    def wait(self, code: str) -> None:
        token = len(self.held) + 1
        assignment = Assignment(token, "j", "t", 1, SPEC, NOTHING, code=code)
        self.held[token] = Held(assignment)
        self.backlog.add(self.held[token])

    def feed(self) -> None:
        self.children.arrange()
        for slot in self.children.slots:
            line = self.backlog.lines.get(slot.code)
            if line and slot.is_ready and not slot.fed:
                slot.fed[line.popleft()] = None
                slot.moved_s = time.monotonic()
                self.ran.append(slot.code)

    def come_up(self, *slots: Slot) -> None:
        for slot in slots or self.all:
            slot.is_ready = True
            self.known.works(slot.code)

    def end(self) -> None:
        for slot in self.all:
            slot.fed.clear()

    def turn(self) -> None:
        """Let everything that runs end, and everything that starts come up."""
        self.end()
        self.come_up()
        self.feed()


codes = st.sampled_from(CODES)
steps = st.lists(st.tuples(st.sampled_from(["wait", "wait", "up", "end"]), codes, st.integers(0)))


@given(st.integers(1, 4), steps)
def test_a_code_used_lately_keeps_a_child_while_there_is_room_aside(
    concurrency: int, steps: list[tuple[str, str, int]]
) -> None:
    worker = Worker(concurrency)
    fed = worker.children.slots
    for action, code, at in steps:
        if action == "wait":
            worker.wait(code)
        else:
            slot = worker.all[at % len(worker.all)]
            if action == "up":
                worker.come_up(slot)
            else:
                slot.fed.clear()
        before = worker.codes
        up = {slot: slot.code for slot in worker.all if slot.is_ready}
        worker.feed()

        assert worker.children.slots is fed
        assert len(fed) == concurrency
        assert len(worker.children.aside) <= ASIDE_MAX
        assert not any(slot.fed for slot in worker.children.aside)
        if len(worker.children.aside) < ASIDE_MAX:
            assert set(before) <= set(worker.codes)
            assert all(before.count(was) > 1 for slot, was in up.items() if not slot.is_ready)
    waiting = sum(map(len, worker.backlog.lines.values()))
    for _ in range(4 * waiting + 4):
        worker.turn()
    assert not any(worker.backlog.lines.values())


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_lines_that_never_end_starve_no_other(concurrency: int) -> None:
    worker = Worker(concurrency)
    for _ in range(100):
        for code in CODES:
            worker.wait(code)
        worker.turn()

    assert all(worker.ran.count(code) > 10 for code in CODES)


def test_two_codes_in_turn_start_a_child_each_and_no_more() -> None:
    worker = Worker(1)
    for code in ["a", "b"] * 20:
        worker.wait(code)
        worker.turn()
        worker.turn()
    assert worker.ran == ["a", "b"] * 20
    assert sorted(worker.codes) == ["", "a", "b"]


def test_a_code_waits_beside_what_runs_while_its_child_comes_up() -> None:
    worker = Worker(1)
    worker.wait("a")
    worker.feed()
    worker.wait("")
    worker.feed()
    assert worker.ran == [""]  # the child that is there goes on

    worker.end()
    worker.feed()
    assert worker.children.slots[0].code == ""

    worker.come_up()
    worker.feed()
    assert worker.ran == ["", "a"]


def test_code_that_never_came_up_is_imported_aside_however_idle_the_others_are() -> None:
    worker = Worker(3, code_idle_s=-1.0)
    for _ in range(4):
        worker.wait("a")
        worker.feed()

    assert [slot.code for slot in worker.children.slots] == [""] * 3
    assert [slot.code for slot in worker.children.aside] == ["a"]


def test_of_several_idle_children_as_many_change_as_there_is_work_for() -> None:
    worker = Worker(3)
    worker.known.works("a")
    worker.wait("a")
    worker.feed()

    assert sorted(worker.codes) == ["", "", "a"]
    assert worker.children.aside == []


def test_a_line_that_presses_ends_no_child_while_there_is_room_aside() -> None:
    worker = Worker(2)
    worker.known.works("a")
    worker.wait("a")
    worker.turn()
    worker.turn()
    worker.wait("")
    worker.feed()
    for code in ("a", ""):
        worker.wait(code)
    slot = next(slot for slot in worker.children.slots if not slot.code)
    slot.fed.clear()
    worker.feed()

    assert sorted(worker.codes) == ["", "a", "a"]
    assert worker.ran == ["a", "", ""]  # the new one comes up aside


def test_a_child_that_was_not_used_for_a_while_changes_its_code_in_place() -> None:
    worker = Worker(1, code_idle_s=-1.0)
    worker.known.works("a")
    worker.wait("a")
    worker.feed()

    assert worker.codes == ["a"]


def test_what_stands_aside_ends_when_it_was_not_used_for_a_while() -> None:
    worker = Worker(1)
    worker.wait("a")
    worker.turn()
    worker.turn()
    worker.end()
    assert sorted(worker.codes) == ["", "a"]

    worker.children.free_idle(time.monotonic() + 2 * ENDLESS_S)
    worker.children.free_idle(time.monotonic() + 2 * ENDLESS_S)

    assert worker.codes == [""]
    assert worker.children.slots[0].is_ready  # the one that stood aside, and not a new one
