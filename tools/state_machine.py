"""Write docs/state-machine.md from the transition table, so that the two cannot differ."""

from pathlib import Path

from cluster.queue.state import TERMINAL, TRANSITIONS, TaskState

PAGE = Path(__file__).parents[1] / "docs" / "state-machine.md"

HEAD = """# The states of a task

Made by `make docs` from `cluster/queue/state.py`; do not edit it by hand. A move that is not here
is refused and changes nothing. What a user sees as the status of a job is derived from the states
of its tasks.

```mermaid
stateDiagram-v2
"""

TABLE = """```

| from | move | to |
|---|---|---|
"""


def page() -> str:
    """Return the page as it should be."""
    rows = [(s, move, to) for s in TRANSITIONS for move, to in TRANSITIONS[s].items()]
    starts = [f"    [*] --> {state}" for state in (TaskState.WAITING, TaskState.READY)]
    arrows = [f"    {state} --> {to}: {move}" for state, move, to in rows]
    ends = [f"    {state} --> [*]" for state in TaskState if state in TERMINAL]
    table = [f"| `{state}` | `{move}` | `{to}` |" for state, move, to in rows]
    return HEAD + "\n".join([*starts, *arrows, *ends]) + "\n" + TABLE + "\n".join(table) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
