"""Which of Drayman's figures answer what other systems were asked, in the words of `peers/`.

Drayman has two ways in, so it has two rows. What stands in none of them has no counterpart: other
systems have no restart of a manager with a million jobs, and no history.
"""

from collections.abc import Iterable
from dataclasses import replace

from benchmarks.asking import DRAYMAN
from benchmarks.figures import Figure

__all__ = ["comparable"]

#: By row and by what all systems were asked: what it is called among Drayman's own questions.
WORDS = {
    f"{DRAYMAN} over HTTP": {
        "enqueue, one at a time": "Python client, one at a time",
        "enqueue, bulk": "NDJSON batches of 10,000",
        "POST, 64 connections": "single POSTs, 64 connections",
        "POST, 1 connection, p50": "single POSTs, 1 connection, p50",
        "idle submit to start p50": "idle, HTTP, submit to start, p50",
        "idle submit to start p99": "idle, HTTP, submit to start, p99",
        "submit and run together": "submit and run, one at a time",
        "submit and run together, bulk": "submit and run, batches streamed",
        "CPU per job": "submit and run, one at a time: CPU",
        "backlog drain": "backlog drain",
        "memory": "memory (PSS), idle, all processes",
        "killed worker, started again after": (
            "child, keeper and worker killed: body starts elsewhere, p50"
        ),
    },
    f"{DRAYMAN} from a Ray driver": {
        "enqueue, one at a time": "Ray driver, one at a time",
        "enqueue, bulk": "Ray driver, batches of 500",
        "idle submit to start p50": "idle, Ray driver, submit to start, p50",
        "idle submit to start p99": "idle, Ray driver, submit to start, p99",
        "submit and run together": "submit and run, Ray driver, one at a time",
        "CPU per job": "submit and run, Ray driver, one at a time: CPU",
    },
}


def comparable(figures: Iterable[Figure]) -> list[Figure]:
    """Return Drayman's figures under the common words, and those of all others as they are."""
    figures = list(figures)
    ours = {figure.what: figure for figure in figures if figure.system == DRAYMAN}
    others = [figure for figure in figures if figure.system != DRAYMAN]
    questions = {figure.what: figure.question for figure in others}
    renamed = [
        replace(ours[own], question=questions[what], system=system, what=what)
        for system, words in WORDS.items()
        for what, own in words.items()
        if own in ours and what in questions
    ]
    return renamed + others
