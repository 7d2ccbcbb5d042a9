"""What is asked of every system; the words are those of Drayman's own questions.

Rule 1: a window is timed only if it lasts about a second or more: the number of jobs is found by
trying. Rule 2: what can't be answered is a figure without values and with a note, never an end of
the whole.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, percentile
from benchmarks.peers.install import NotInstalled
from benchmarks.peers.peer import Peer, running
from benchmarks.peers.processes import Failed, cpu_s, last_line, pss_mb
from benchmarks.peers.systems import System

__all__ = ["Effort", "ask_all", "recover"]

Report = Callable[[Figure], None]
#: What was measured in one go, by the name of the figure.
Measured = dict[str, float]

ONE, BULK = "enqueue, one at a time", "enqueue, bulk"
TOGETHER, TOGETHER_BULK = "submit and run together", "submit and run together, bulk"
DRAIN = "backlog drain"
P50, P99 = "idle submit to start p50", "idle submit to start p99"
MEMORY, CPU = "memory", "CPU per job"
KILLED = "killed worker, started again after"

#: Question and unit of each figure.
FIGURES = {
    ONE: ("submit", "jobs/s"),
    BULK: ("submit", "jobs/s"),
    P50: ("latency", "ms"),
    P99: ("latency", "ms"),
    TOGETHER: ("end_to_end", "jobs/s"),
    TOGETHER_BULK: ("end_to_end", "jobs/s"),
    MEMORY: ("cost", "MB PSS"),
    CPU: ("cost", "µs"),
    DRAIN: ("end_to_end", "jobs/s"),
    KILLED: ("recovery", "s"),
}

IDLE_JOBS = 200
FEWEST, MOST, STEP = 200, 1_500_000, 20
#: A window may be so much shorter than asked for.
SHORT = 0.75

NAP_S, KILL_AFTER_S, GIVE_UP_S = 20.0, 2.0, 120.0


@dataclass(frozen=True)
class Effort:
    """How long and how often."""

    window_s: float
    repeats: int

    @classmethod
    def of(cls, quick: bool, repeats: int) -> "Effort":
        """Return that of a whole run or of a quick one."""
        return cls(1.4 if quick else 4.5, repeats)


def ask_all(system: System, effort: Effort, report: Report) -> None:
    """Ask one system everything but how it recovers."""
    asked: set[str] = set()

    def answer(figure: Figure) -> None:
        asked.add(figure.what)
        report(figure)

    try:
        with running(system) as peer:
            _Asking(peer, effort, answer).all()
    # The border to a dozen libraries and four servers: whatever they do, the others are measured.
    except Exception as error:
        for what in FIGURES:
            if what not in {*asked, KILLED}:
                report(_figure(system, what, note=_why(error)))


def recover(system: System) -> Figure:
    """Kill the worker of a running job; see when the job starts again on the other worker."""
    try:
        with running(system) as peer:
            peer.fresh()
            if not system.is_embedded:
                peer.start_workers(at_least=2)
            peer.warm_up()
            after_s = _started_again_after(peer)
    except Exception as error:  # as in `ask_all`
        return _figure(system, KILLED, note=_why(error))
    if after_s is None:
        return _figure(system, KILLED, note=f"not within {GIVE_UP_S:g} s")
    return _figure(system, KILLED, [after_s], system.note)


def _started_again_after(peer: Peer) -> float | None:
    numbers = peer.counts.take_timed(1)
    n = numbers.start
    peer.ask("one", numbers, nap_s=NAP_S)
    peer.watch(numbers)
    time.sleep(KILL_AFTER_S)
    first, pid = peer.counts.started(n)
    killed_at = time.time()
    peer.kill_worker(pid)
    while time.time() < killed_at + GIVE_UP_S:
        again, _ = peer.counts.started(n)
        if again > first:
            return again - killed_at
        time.sleep(0.01)
    return None


class _Asking:
    """The questions to one system, in an order that spares restarts."""

    def __init__(self, peer: Peer, effort: Effort, report: Report) -> None:
        self.peer, self.effort, self.report = peer, effort, report
        self.system = peer.system
        self.is_warm = False

    def all(self) -> None:
        self.peer.fresh()
        self._enqueueing()
        self._running()
        self._draining()

    def _enqueueing(self) -> None:
        if self.system.is_embedded:
            # Its workers can't be stopped, so they had better not be starting.
            self._workers_warm()
        self._rate(ONE, lambda count: self._enqueue("one", count))
        if self.peer.has_bulk:
            self._rate(BULK, lambda count: self._enqueue("bulk", count))
        else:
            self._without(BULK, "no bulk API")

    def _running(self) -> None:
        with self._or_note(P50, P99):
            self._workers_warm()
            self._repeat([P50, P99], [self._idle() for _ in range(self.effort.repeats)])
        with self._or_note(TOGETHER, MEMORY, CPU):
            self._workers_warm()
            runs = self._timed(lambda count: self._together("one", count))
            self._repeat([TOGETHER, MEMORY, CPU], runs)
        if not self.peer.has_bulk:
            self._without(TOGETHER_BULK, "no bulk API")
            return
        with self._or_note(TOGETHER_BULK):
            self._workers_warm()
            runs = self._timed(lambda count: self._together("bulk", count))
            self._repeat([TOGETHER_BULK], runs)

    def _workers_warm(self) -> None:
        if self.is_warm:
            return
        if not self.system.is_embedded:
            self.peer.fresh()
            self.peer.start_workers()
        self.peer.warm_up()
        self.is_warm = True

    def _draining(self) -> None:
        if self.system.is_embedded:
            self._without(DRAIN, "no backlog without its workers")
        else:
            self._rate(DRAIN, self._drain)

    def _enqueue(self, do: str, count: int) -> Measured:
        if not self.system.is_embedded:
            self.peer.fresh()
        numbers = self.peer.counts.take(count)
        answer = self.peer.ask(do, numbers)
        if self.system.is_embedded:
            self.peer.watch(numbers)
        return _rated(ONE if do == "one" else BULK, count, answer["ended"] - answer["began"])

    def _together(self, do: str, count: int) -> Measured:
        numbers = self.peer.counts.take(count)
        before_s = cpu_s(self.peer.pids)
        self.peer.order(do, numbers)
        ended = self.peer.watch(numbers).all
        used_s = cpu_s(self.peer.pids) - before_s
        began = self.peer.answer()["began"]
        if do == "bulk":
            return _rated(TOGETHER_BULK, count, ended - began)
        memory = pss_mb([*self.peer.broker.pids, *self.peer.worker_pids])
        cost = {MEMORY: memory, CPU: used_s / count * 1e6}
        return _rated(TOGETHER, count, ended - began) | cost

    def _drain(self, count: int) -> Measured:
        self.peer.fresh()
        numbers = self.peer.counts.take(count)
        self.peer.ask("bulk" if self.peer.has_bulk else "one", numbers)
        self.peer.start_workers()
        passed = self.peer.watch(numbers)
        # So the start of the workers is not in it, nor what they do only once.
        return _rated(DRAIN, math.floor(count * 0.9), passed.all - passed.tenth)

    def _idle(self) -> Measured:
        numbers = self.peer.counts.take_timed(IDLE_JOBS)
        sent_at = self.peer.ask("idle", numbers)["sent_at"]
        self.peer.watch(numbers)
        starts = [self.peer.counts.started(n)[0] for n in numbers]
        waits = [(start - sent) * 1000 for start, sent in zip(starts, sent_at, strict=True)]
        return {P50: percentile(waits, 0.5), P99: percentile(waits, 0.99)}

    def _rate(self, what: str, run: Callable[[int], Measured]) -> None:
        with self._or_note(what):
            self._repeat([what], self._timed(run))

    def _timed(self, run: Callable[[int], Measured]) -> list[Measured]:
        """Find how many jobs fill the window; run as many as often as was asked for."""
        count = FEWEST
        while (first := run(count))["seconds"] < SHORT * self.effort.window_s and count < MOST:
            longer = min(STEP, self.effort.window_s / max(first["seconds"], 1e-6))
            count = min(MOST, math.ceil(count * longer))
        return [first, *(run(count) for _ in range(self.effort.repeats - 1))]

    def _repeat(self, whats: Sequence[str], runs: Sequence[Measured]) -> None:
        twice, self.peer.twice = self.peer.twice, 0
        notes = [self.system.note, f"{twice} jobs ran twice" if twice else ""]
        for what in whats:
            values = [run[what] for run in runs]
            self.report(_figure(self.system, what, values, "; ".join(filter(None, notes))))

    def _without(self, what: str, why: str) -> None:
        self.report(_figure(self.system, what, note=why))

    @contextlib.contextmanager
    def _or_note(self, *whats: str) -> Iterator[None]:
        try:
            yield
        except Failed as failure:
            for what in whats:
                self._without(what, f"{failure}; {last_line(self.peer.log)}")
            self.peer.fresh()
            self.is_warm = False


def _rated(what: str, count: int, seconds: float) -> Measured:
    return {what: count / max(seconds, 1e-9), "seconds": seconds}


def _figure(system: System, what: str, values: Sequence[float] = (), note: str = "") -> Figure:
    question, unit = FIGURES[what]
    return Figure(question, system.name, what, unit, values, note)


def _why(error: Exception) -> str:
    if isinstance(error, Failed | NotInstalled):
        return str(error)
    return f"{type(error).__name__}: {error}"
