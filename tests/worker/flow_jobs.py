"""Handlers that tell which process ran them, and when."""

import asyncio
import os
import time
from pathlib import Path

from pydantic import BaseModel

from jobs import Context, job

_kept: list[bytearray] = []


class Counted(BaseModel):
    path: str = ""
    n: int = 0
    #: MiB that stay in the process.
    leaks: int = 0
    lasts_s: float = 0.0


class Gate(BaseModel):
    begun: str
    opened: str


class Nothing(BaseModel):
    pass


def touched(mib: int) -> bytearray:
    """Return so much memory, each page of it in use."""
    held = bytearray(mib << 20)
    held[::4096] = b"x" * len(held[::4096])
    return held


@job("flow.count")
def count(ctx: Context, params: Counted) -> int:
    """Append a line; return the process it ran in."""
    if params.path:
        with open(params.path, "a") as file:
            file.write(f"{params.n}\n")
    if params.leaks:
        _kept.append(touched(params.leaks))
    time.sleep(params.lasts_s)
    return os.getpid()


@job("flow.use")
def use(ctx: Context, params: Counted) -> int:
    """Hold memory for as long as it runs."""
    held = touched(params.leaks)
    assert held
    return os.getpid()


@job("flow.gate")
async def gate(ctx: Context, params: Gate) -> int:
    """Announce itself, and return the process it ran in once the gate is open."""
    Path(params.begun).touch()  # noqa: ASYNC240
    while not Path(params.opened).exists():  # noqa: ASYNC110, ASYNC240 - another process opens it
        await asyncio.sleep(0.005)
    return os.getpid()


@job("flow.async_leak")
async def async_leak(ctx: Context, params: Counted) -> int:
    _kept.append(touched(params.leaks))
    return os.getpid()


@job("flow.moment")
def moment(ctx: Context, params: Nothing) -> float:
    return time.time()


@job("flow.async_moment")
async def async_moment(ctx: Context, params: Nothing) -> float:
    return time.time()


@job("flow.allowed")
def allowed(ctx: Context, params: Nothing) -> str | None:
    return os.environ.get("DRAYMAN_HTTP_ALLOW")
