"""Other queues beside Drayman, on this machine, in the same words: `make bench-peers`.

Read `systems.py` first (who, with which settings), then `questions.py` (what is asked), `posts.py`
(the same over HTTP), `peer.py` (one system that runs), `brokers.py` and `install.py` (what it
takes), and `adapters/` (a few lines each, run by the system's own Python or Node.js).
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import Figure
from benchmarks.peers.posts import APIS, Api, post_to
from benchmarks.peers.questions import Effort, ask_all, recover
from benchmarks.peers.systems import SYSTEMS, System

__all__ = ["measure", "names"]

POST_S, QUICK_POST_S = 8.0, 2.0


def names() -> list[str]:
    """Return whom `measure` can be asked for."""
    return [one.name for one in [*SYSTEMS, *APIS]]


def measure(
    names: Sequence[str] | None,
    *,
    repeats: int,
    quick: bool,
    report: Callable[[Figure], None],
    recovery: bool = False,
) -> list[Figure]:
    """Measure the peers named, or all; report each figure as it is found, and return them.

    A name may leave out ` (fsync)` or be that of an environment: `celery` means all of Celery's.
    With `recovery`, workers are killed too: some minutes more, as most take long to notice.
    Raises ValueError for a name of nobody.
    """
    everyone = [*SYSTEMS, *APIS]
    for name in names or []:
        if not any(one.answers_to(name) for one in everyone):
            raise ValueError(f"{name!r} is none of {', '.join(one.name for one in everyone)}")
    figures: list[Figure] = []

    def keep(figure: Figure) -> None:
        figures.append(figure)
        report(figure)

    systems = [one for one in SYSTEMS if names is None or any(map(one.answers_to, names))]
    apis = [one for one in APIS if names is None or any(map(one.answers_to, names))]
    with _ended_in_order():
        _measure(systems, apis, repeats, quick, keep)
        if recovery:
            _recover(systems, keep)
    return figures


def _measure(
    systems: Sequence[System],
    apis: Sequence[Api],
    repeats: int,
    quick: bool,
    report: Callable[[Figure], None],
) -> None:
    for system in systems:
        ask_all(system, Effort.of(quick, repeats), report)
    for api in apis:
        seconds = QUICK_POST_S if quick else POST_S
        post_to(api, seconds=seconds, repeats=repeats, report=report)


def _recover(systems: Sequence[System], report: Callable[[Figure], None]) -> None:
    # All at once: a wait costs nothing. How a broker syncs does not change who notices a death.
    waiting = [system for system in systems if not system.name.endswith("(fsync)")]
    with ThreadPoolExecutor(max(1, len(waiting))) as aside:
        for figure in aside.map(recover, waiting):
            report(figure)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that everything that was started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
