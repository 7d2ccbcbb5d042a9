"""The job types that benchmarks run: as close to nothing as a job can be."""

import datetime
import os
import time

from pydantic import BaseModel

from benchmarks.marks import Marks
from jobs import Context, fan_out, job
from jobs.library.table import table_model

#: How often a long job looks whether it shall stop.
LOOK_S = 0.05
#: Mapped by an earlier job of this process.
_mapped: dict[str, Marks] = {}


class Nothing(BaseModel):
    """A payload of about a hundred bytes that nobody looks at."""

    payload: str = ""


class Mark(BaseModel):
    """Which mark to leave, and how long to sleep then."""

    file: str
    n: int
    seconds: float = 0.0
    pad: str = ""


class Nap(BaseModel):
    """How long to sleep."""

    seconds: float


class Chunks(BaseModel):
    """How many chunks, and how long each sleeps."""

    chunks: int
    seconds: float = 0.0


@table_model("bench.sale")
class Sale(BaseModel):
    """A row of a large table."""

    id: int
    price: float
    quantity: int
    customer: str
    day: datetime.date
    at: datetime.datetime
    paid: bool


class Long(BaseModel):
    """Where to write that it began, and how long to run."""

    file: str
    seconds: float


@job("bench.noop")
def noop(ctx: Context, params: Nothing) -> None:
    """Do nothing."""


@job("bench.mark")
def mark(ctx: Context, params: Mark) -> None:
    """Leave a mark, and maybe sleep."""
    if params.file not in _mapped:
        _mapped[params.file] = Marks(params.file)
    _mapped[params.file].hit(params.n)
    if params.seconds:
        time.sleep(params.seconds)


@job("bench.nap")
def nap(ctx: Context, params: Nap) -> None:
    """Sleep, and leave no mark."""
    time.sleep(params.seconds)


def _numbers(ctx: Context, params: Chunks) -> range:
    return range(params.chunks)


@fan_out("bench.chunks", split=_numbers)
def chunks(ctx: Context, params: Chunks, chunk: int) -> None:
    """Do nothing, maybe for a while."""
    if params.seconds:
        time.sleep(params.seconds)


@job("bench.long", max_attempts=5)
def long(ctx: Context, params: Long) -> None:
    """Write down when it began and as which process, and run until told to stop."""
    with open(params.file, "a") as book:
        book.write(f"{time.time()} {os.getpid()}\n")
    until = time.monotonic() + params.seconds
    while time.monotonic() < until:
        ctx.check()
        time.sleep(LOOK_S)
