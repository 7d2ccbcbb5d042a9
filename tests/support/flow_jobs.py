"""Job types for the live tests of flow control: each takes a known time, and leaves a mark."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from jobs import Context, Discard, job

__all__ = ["Mark", "marks"]


class Nap(BaseModel):
    lasts_s: float = 0.0
    #: A file that gets a line from each run as it begins.
    path: str = ""


class Steps(BaseModel):
    count: int
    step_s: float
    #: A file that gets a line from each step.
    path: str


class Hunger(BaseModel):
    mb: int


class Module(BaseModel):
    module: str


class Fragile(BaseModel):
    #: It fails until this file exists.
    cure: str


@dataclass(frozen=True)
class Mark:
    """One run, or step of one."""

    job_id: str
    tenant: str
    attempt: int
    at: float
    step: int


def marks(path: Path) -> list[Mark]:
    """Return what was left there, in order."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Mark(job, who, int(n), float(at), int(step)) for job, who, n, at, step in lines]


def leave_mark(ctx: Context, path: str, step: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{ctx.job_id} {ctx.tenant} {ctx.attempt} {time.time()} {step}\n".encode())
    os.close(fd)


@job("flow.nap")
def nap(ctx: Context, params: Nap) -> None:
    """Take a worker and none of its CPU, so that two cores can show more workers."""
    if params.path:
        leave_mark(ctx, params.path)
    time.sleep(params.lasts_s)


#: The same as types of their own, so that there is something to learn of each.
quick = job("flow.quick")(nap.handler)
usual = job("flow.usual")(nap.handler)
lasting = job("flow.lasting")(nap.handler)
overlong = job("flow.overlong")(nap.handler)


@job("flow.steps", resumable=True, max_attempts=1)
def steps(ctx: Context, params: Steps) -> int:
    """Save a checkpoint after each step; return the step that this attempt began with."""
    first: int = ctx.resumed_from or 0
    for step in range(first, params.count):
        time.sleep(params.step_s)
        leave_mark(ctx, params.path, step)
        ctx.checkpoint(step + 1)
    return first


@job("flow.hungry", max_attempts=1)
def hungry(ctx: Context, params: Hunger) -> int:
    """Hold so much memory, for long enough to be seen."""
    held = b"x" * (params.mb << 20)
    time.sleep(2.0)
    return len(held)


@job("flow.fragile")
def fragile(ctx: Context, params: Fragile) -> str:
    if not Path(params.cure).exists():
        raise Discard("there is no cure yet")
    return params.cure


@job("flow.loaded")
async def loaded(ctx: Context, params: Module) -> bool:
    """Return whether something else in this process imported the module."""
    return params.module in sys.modules
