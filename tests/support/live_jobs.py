"""Job types for the live tests: their effects can be seen, and counted, from outside."""

import os
import signal
import subprocess
import time
from pathlib import Path

from pydantic import BaseModel

from jobs import Context, Discard, job
from tests.support.jobs_for_tests import announce


class Place(BaseModel):
    path: str


class Gate(BaseModel):
    #: Written when the handler has begun; it ends once `opened` exists.
    begun: str
    opened: str


class Nothing(BaseModel):
    pass


@job("live.effect")
def effect(ctx: Context, params: Place) -> str:
    """Append the job's id to a file that all share: a job that took effect twice is there twice."""
    fd = os.open(params.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{ctx.job_id}\n".encode())
    os.close(fd)
    return ctx.job_id


@job("live.gate")
def gate(ctx: Context, params: Gate) -> int:
    announce(params.begun, str(os.getpid()))
    while not Path(params.opened).exists():
        ctx.progress(0.5, "waiting")
        time.sleep(0.02)
    return ctx.attempt


@job("live.family")
def family(ctx: Context, params: Place) -> str:
    """Hang with a process of its own below it; the next attempt returns at once."""
    if Path(params.path).exists():
        return "again"
    sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    announce(params.path, f"{os.getpid()} {sleeper.pid} {os.getppid()}")
    time.sleep(600)
    return "not killed"


@job("live.poison")
def poison(ctx: Context, params: Place) -> str:
    """Kill the process it runs in, until the cure exists."""
    if not Path(params.path).exists():
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return "cured"


@job("live.discard")
def discard(ctx: Context, params: Nothing) -> None:
    raise Discard("it cannot work")


@job("live.lasting")
def lasting(ctx: Context, params: Place) -> int | None:
    """Say when each attempt began, save its number, and last until the end is opened."""
    announce(f"{params.path}-{ctx.attempt}", f"{os.getpid()} {time.time()}")
    ctx.checkpoint(ctx.attempt)
    while not Path(f"{params.path}-end").exists():
        ctx.check()
        time.sleep(0.005)
    resumed_from: int | None = ctx.resumed_from
    return resumed_from
