"""The questions, one a file; each has an `ask` that yields its figures as they come."""

from benchmarks.asking import Question
from benchmarks.questions import (
    cost,
    depth,
    end_to_end,
    fanout,
    latency,
    overload,
    real_work,
    recovery,
    scale_out,
    submit,
    watchers,
)

__all__ = ["QUESTIONS"]

QUESTIONS: dict[str, Question] = {
    "submit": submit.ask,
    "end_to_end": end_to_end.ask,
    "latency": latency.ask,
    "recovery": recovery.ask,
    "depth": depth.ask,
    "scale_out": scale_out.ask,
    "real_work": real_work.ask,
    "fanout": fanout.ask,
    "overload": overload.ask,
    "cost": cost.ask,
    "watchers": watchers.ask,
}
