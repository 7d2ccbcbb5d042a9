"""The job types that benchmarks run: as close to nothing as a job can be."""

import time
from typing import Any

from pydantic import BaseModel

from jobs import Context, job


class Nothing(BaseModel):
    """A payload of about a hundred bytes that nobody looks at."""

    payload: str = ""


class Nap(BaseModel):
    """How long to sleep."""

    seconds: float = 0.01


@job("bench.noop")
def noop(ctx: Context, params: Nothing) -> None:
    """Do nothing."""


@job("bench.sleep")
def sleep(ctx: Context, params: Nap) -> None:
    """Sleep."""
    time.sleep(params.seconds)


@job("bench.echo")
async def echo(ctx: Context, params: Nothing) -> Any:
    """Return the payload, on the `io` pool."""
    return params.payload
