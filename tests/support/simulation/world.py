"""The world around the product: time, chance, what was seen, and the machine's processes.

`World.installed()` puts it in the place of the clocks, the entropy and the children of the
product's modules, and takes it away again. Nothing else of the product is replaced.
"""

import contextlib
import contextvars
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import UUID

import msgspec
import structlog

from cluster.store.segment import Rows, SegmentHeader
from tests.support.simulation.loop import Process, VirtualLoop, current_process
from tests.support.simulation.store import FaultyObjects

__all__ = ["NOON", "Violation", "World"]

#: The wall clock at the beginning.
NOON = 1_700_000_000.0
#: Where the loop's clock begins: not at 0, which means "never" here and there.
START_S = 1_000.0
#: In so many schedules there are limits, lanes, schedules, and operators who change all of it.
FLOWS = 0.75
#: A worker takes whatever a call raises for a manager that is away, its own mistakes included.
FAILED_CALLS = frozenset({"worker.exchange_failed", "worker.record_failed"})
EXPECTED = ("the manager", "the answer", "of epoch", "try again")


class Violation(Exception):
    """A promise was broken."""


class World:
    """One simulated machine."""

    def __init__(self, seed: int, store_kind: Any, *, sync: bool = True) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.loop._now = START_S
        self.loop.offload = self.offload
        self.loop.on_error = self._uncaught
        self.trace: list[tuple[float, str, tuple[Any, ...]]] = []
        self.violations: list[str] = []
        self.wall_offset_s = 0.0
        self.store = FaultyObjects(store_kind, self.rng, self.wall, sync=sync)
        #: Work of the store takes so long, at least and at most; and at times much longer.
        self.io_s = (0.0002, 0.004)
        self.io_slow = 0.01
        #: Until when every answer of the store is held back.
        self.stalled_until = 0.0
        #: The machine's processes, dead ones included.
        self.processes: list[Process] = []
        #: Called whenever the store did something for this process: a good moment to kill it.
        self.on_stored: Any = lambda process: None
        self.over = False
        #: Whether this seed's cluster has flow control: a part of them goes without.
        self.flows = self.rng.random() < FLOWS
        self._numbers = 0

    # --- time and chance ----------------------------------------------------------------------

    def wall(self) -> float:
        return NOON + self.loop._now - START_S + self.wall_offset_s

    def monotonic(self) -> float:
        return self.loop._now

    def uniform(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def hex(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"

    def job_id(self) -> str:
        """Mint a UUID of version 7, as a gateway does."""
        ms = int(self.wall() * 1000)
        number = ms << 80 | 0x7 << 76 | self.rng.getrandbits(12) << 64
        return str(UUID(int=number | 0b10 << 62 | self.rng.getrandbits(62)))

    def number(self) -> int:
        """Return a number that nothing has yet."""
        self._numbers += 1
        return self._numbers

    # --- what is seen -------------------------------------------------------------------------

    def note(self, what: str, *details: Any) -> None:
        """Add a line to the trace."""
        self.trace.append((self.loop._now - START_S, what, details))

    def violated(self, promise: str) -> None:
        """Note that a promise was broken; the run goes on to its end."""
        self.note("VIOLATION", promise)
        self.violations.append(promise)

    def lines(self) -> Iterator[str]:
        """Yield the trace as text."""
        for at, what, details in self.trace:
            yield f"{at:10.6f} {what:18} " + " ".join(map(str, details))

    def _uncaught(self, context: dict[str, Any]) -> None:
        if not self.over:
            self.violated(f"uncaught: {context.get('message')} {context.get('exception')!r}")

    def later(self, delay_s: float, function: Any, *args: Any) -> None:
        """Let something happen to the machine, whoever lives then."""
        self.loop.call_later(delay_s, function, *args, context=contextvars.Context())

    # --- processes ----------------------------------------------------------------------------

    def process(self, name: str) -> Process:
        process = Process(self.loop, name)
        self.processes.append(process)
        process.on_death.append(lambda: self.note("died", name))
        return process

    def offload(self, function: Any, *args: Any) -> Any:
        """Run `function` on a thread of this process, and what it asks of the store there.

        A bucket does what it was asked even if nobody is there any more to hear of it.
        """
        process = current_process()
        done = self.loop.create_future()
        before_s, after_s = self._io_s(), self._io_s()
        in_process = process is not None and self.store.kind == "disk"
        context = process.context if in_process and process else contextvars.Context()
        self.loop.call_later(
            before_s, self._work, done, process, after_s, function, args, context=context
        )
        return done

    def _io_s(self) -> float:
        if self.chance(self.io_slow):
            return self.uniform(0.05, 1.5)
        return self.uniform(*self.io_s)

    def _work(self, done: Any, process: Any, after_s: float, function: Any, args: Any) -> None:
        try:
            result, settle = self.store.run(function, *args)
        except Exception as error:
            result, settle = error, lambda: None
        if process is not None:
            self.on_stored(process)
        at = max(self.loop.time() + after_s, self.stalled_until)
        context = process.context if process is not None else contextvars.Context()
        if process is None or not process.dead:
            self.loop.call_at(at, self._worked, done, result, settle, context=context)

    def _worked(self, done: Any, result: Any, settle: Any) -> None:
        settle()
        if done.done():
            return
        if isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)

    # --- instead of clocks, entropy and children ----------------------------------------------

    @contextlib.contextmanager
    def installed(self, slot: Any) -> Iterator[None]:
        """Replace what the product's modules take from outside."""
        time = SimpleNamespace(
            time=self.wall,
            monotonic=self.monotonic,
            monotonic_ns=lambda: int(self.monotonic() * 1e9),
            time_ns=lambda: int(self.wall() * 1e9),
        )
        uuid = SimpleNamespace(uuid4=lambda: UUID(int=self.rng.getrandbits(128), version=4))
        nowhere = Path("/nonexistent/simulation")
        with contextlib.ExitStack() as stack:
            parts = ("worker", "executor", "backlog", "children", "watch", "held", "calls", "logs")
            for module in (*parts, "attempt", "pipe"):
                stack.enter_context(mock.patch(f"cluster.worker.{module}.time", time))
            stack.enter_context(mock.patch("cluster.worker.worker.random", self.rng))
            stack.enter_context(
                mock.patch("cluster.worker.worker.make_scratch", return_value=nowhere)
            )
            stack.enter_context(mock.patch("cluster.worker.children.Slot", slot))
            # Its children die with a worker, at once.
            stack.enter_context(
                mock.patch("cluster.worker.executor.wait_until_gone", mock.AsyncMock())
            )
            stack.enter_context(mock.patch("cluster.store.identity.uuid", uuid))
            stack.enter_context(mock.patch("cluster.store.objects.uuid", uuid))
            # Ten seconds between two compactions are longer than most schedules.
            stack.enter_context(mock.patch("cluster.housekeeping.COMPACT_PAUSE_S", 1.0))
            if self.seed % 100:  # Parquet is most of a run's time; now and then it is the real one
                stack.enter_context(mock.patch("cluster.store.journal.encode", encode_segment))
                stack.enter_context(mock.patch("cluster.store.journal.decode", decode_segment))
            before = structlog.get_config()
            structlog.configure(processors=[self._logged])
            try:
                yield
            finally:
                structlog.configure(**before)

    def _logged(self, logger: Any, method: str, entry: Any) -> Any:
        process = current_process()
        name = process.name if process is not None else "world"
        entry = dict(entry)
        event = entry.pop("event")
        error = entry.pop("exc_info", None)
        self.note("log", name, event, *(f"{k}={v}" for k, v in entry.items()))
        if event in FAILED_CALLS and not any(part in entry["error"] for part in EXPECTED):
            self.violated(f"{name}: {event}: {entry['error']}")
        if isinstance(error, Exception) and not self.over:
            self.violated(f"{name}: {event}: {error!r}")
        raise structlog.DropEvent


class _Segment(msgspec.Struct, array_like=True):
    header: SegmentHeader
    columns: list[Any]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Segment)


def encode_segment(header: SegmentHeader, rows: Rows) -> bytes:
    """Encode a segment quickly, as `cluster.store.segment.encode` does slowly."""
    columns = [
        rows.seq,
        [round(at * 1e6) for at in rows.at],
        rows.kind,
        rows.job_id,
        rows.task_id,
        rows.attempt,
        rows.token,
        [bytes(data) for data in rows.data],
    ]
    return _encoder.encode(_Segment(header, columns))


def decode_segment(data: bytes, path: str) -> tuple[SegmentHeader, Rows]:
    """Decode what `encode_segment` made."""
    segment = _decoder.decode(data)
    columns = segment.columns
    columns[1] = [at / 1e6 for at in columns[1]]
    return segment.header, Rows(*columns)
