"""Makes a process of ours small and quick: its imports, its garbage, the turns of its threads.

For the manager, the workers and the compactor, which run no code but ours. Never for a child: what
a handler imports is its own business.
"""

import gc
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["keep_garbage", "rarely_collect", "take_turns", "without_pandas"]

#: How long a thread may keep the interpreter from another that wants it.
SWITCH_INTERVAL_S = 0.0005


class _Absent(MetaPathFinder):
    """Says of some modules that they are not installed."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Raise ModuleNotFoundError for what is to be absent; leave the rest to others."""
        if name in self._names:
            raise ModuleNotFoundError(f"this process does without {name}", name=name)


def without_pandas() -> None:
    """Let pyarrow think that there is no pandas, unless it is imported already.

    It imports pandas, where it is installed, to make its first array of a list: 50 MB and a quarter
    of a second, in the middle of the first commit.
    """
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _Absent("pandas"))


def rarely_collect(young: int = 50_000) -> None:
    """Never look at what lives now for garbage, and at what comes once there are `young` objects.

    A full look stops the loop for as long as the heap is large, and little of ours is ever garbage
    that counting references does not free. A web server's requests are: each leaves a hundred
    objects that name each other, and who lets fifty thousand gather stands still for 100 ms then.
    """
    gc.freeze()
    gc.set_threshold(young, 50, 200)


def take_turns() -> None:
    """Let threads have the interpreter sooner than after Python's 5 ms.

    What writes the journal, or hears of Ray's replies, needs it for microseconds between two system
    calls. Waiting for the loop each time, it would take many times as long as its own work.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def keep_garbage() -> None:
    """Look for no garbage at all: for a process that ends before it would matter."""
    gc.disable()
