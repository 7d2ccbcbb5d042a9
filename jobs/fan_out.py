"""Large jobs: split into chunks, run each as a task of its own, join what they returned.

    def pages(ctx, params: Book) -> Iterator[Page]: ...
    def bind(ctx, params: Book, results: Results[int]) -> str: ...

    @fan_out("book.print", split=pages, join=bind)
    def print_page(ctx, params: Book, chunk: Page) -> int: ...

Rule 1: the split's order numbers the chunks, and its outcome is kept: it is never made again once a
chunk is out. Rule 2: limits, attempts and backoff are those of each task: the split, every chunk,
the join. Rule 3: what travels between the three is typed: the chunk by `run`'s third parameter, its
result by the join's `Results[...]`.
"""

import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from jobs.definition import DEFAULT_MAX_ATTEMPTS, Handler, JobDefinition, declared, params_model
from jobs.results import item_type
from jobs.retry import RetryPolicy

__all__ = ["DEFAULT_AT_ONCE", "FanOut", "fan_out"]

#: Chunks of one job that are in line or running at once; more only wait elsewhere.
DEFAULT_AT_ONCE = 1_000


@dataclass(frozen=True, kw_only=True)
class FanOut(JobDefinition):
    """A job type that runs in chunks. `handler` is what runs one of them."""

    split: Handler
    #: None: the job's result is how many chunks there were.
    join: Handler | None = None
    #: The share of chunks that may fail without the job failing, 0 to 1.
    tolerate: float = 0.0
    #: How many chunks may be in line or running at once.
    at_once: int = DEFAULT_AT_ONCE

    @cached_property
    def chunk(self) -> TypeAdapter[Any]:
        """Reads and writes what the split yields."""
        return TypeAdapter(_annotation(self.handler, 2, Any))

    @cached_property
    def value(self) -> TypeAdapter[Any]:
        """Reads what a chunk returned, for the join."""
        kind = Any if self.join is None else _annotation(self.join, 2, Any)
        return TypeAdapter(item_type(kind))


def fan_out(
    name: str,
    *,
    split: Handler,
    join: Handler | None = None,
    tolerate: float = 0.0,
    at_once: int = DEFAULT_AT_ONCE,
    queue: str | None = None,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    timeout_s: float | None = None,
    grace_s: float = 10.0,
    retry: RetryPolicy | None = None,
    unique_for_s: float | None = None,
    unique_by: tuple[str, ...] = (),
    limits: tuple[str, ...] = (),
) -> Callable[[Handler], FanOut]:
    """Declare `run(ctx, params, chunk)` as the job type `name`, one call a chunk.

    `split(ctx, params)` returns or yields the chunks, `join(ctx, params, results)` gets a
    `Results`. Each may be plain or `async def` (a split then returns a list). With
    `tolerate=0.01` the job succeeds while at most 1 % of its chunks have failed; the join finds
    them in `results.failed`. `limits` are as in `job`; each chunk counts. Raises TypeError or
    ValueError at import, naming what to change.
    """

    def declare(run: Handler) -> FanOut:
        for role, function, shape in (
            ("split", split, "(ctx, params)"),
            ("run", run, "(ctx, params, chunk)"),
            ("join", join, "(ctx, params, results)"),
        ):
            if function is None:
                continue
            wanted = shape.count(",") + 1
            if len(inspect.signature(function).parameters) != wanted:
                raise TypeError(f"job {name!r}: write {role} as {role}{shape}")
        models = {params_model(name, f) for f in (split, run, join) if f is not None}
        if len(models) != 1:
            told = ", ".join(sorted(model.__name__ for model in models))
            raise TypeError(f"job {name!r}: split, run and join take different params: {told}")
        if not (math.isfinite(tolerate) and 0 <= tolerate <= 1):
            raise ValueError(f"job {name!r}: tolerate is a share from 0 to 1, got {tolerate}")
        if at_once < 1:
            raise ValueError(f"job {name!r}: at_once must be at least 1, got {at_once}")
        return declared(
            FanOut,
            name,
            run,
            queue=queue,
            max_attempts=max_attempts,
            retry=retry,
            timeout_s=timeout_s,
            grace_s=grace_s,
            unique_for_s=unique_for_s,
            unique_by=unique_by,
            limits=limits,
            split=split,
            join=join,
            tolerate=tolerate,
            at_once=at_once,
        )

    return declare


def _annotation(function: Handler, at: int, default: Any) -> Any:
    name = list(inspect.signature(function).parameters)[at]
    return typing.get_type_hints(function, include_extras=True).get(name, default)
