"""Job types for the live tests: their effects can be seen, and counted, from outside."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from jobs import Context, Discard, Results, Retry, RetryPolicy, fan_out, job
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


@job("live.spoken")
def spoken(ctx: Context, params: Gate) -> None:
    print("it begins", flush=True)
    while not Path(params.opened).exists():
        ctx.check()
        time.sleep(0.02)
    print("it ends", flush=True)


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


# --- fan-outs and steps ---------------------------------------------------------------------------

AT_ONCE = RetryPolicy(base_s=0)


class Folder(BaseModel):
    #: Where the tasks leave marks, and look for those of the test.
    folder: str


class Sum(Folder):
    parts: list[int]
    #: Fail until the file of this name exists.
    cure: str = ""


class Slices(Folder):
    count: int
    #: What each chunk reads. Empty: they read nothing.
    of: list[str] = []
    lasts_s: float = 0.0
    #: Chunks that wait until `open-chunks` exists, and whether the join does for `open-join`.
    held: list[int] = []
    join_held: bool = False
    #: The join fails until the file of this name exists.
    cure: str = ""


class Slice(BaseModel):
    index: int
    of: str = ""


class Sliced(BaseModel):
    files: list[str]
    sizes: list[int]
    text: str


class Reading(Folder):
    files: list[str]


class Brood(Folder):
    children: int
    #: The first attempt fails, or else lasts until it is killed, having submitted them all.
    fails: bool


class Frail(Folder):
    count: int
    lasts_s: float = 0.0
    #: Chunks that cannot work until the cure exists, and those that last so long.
    bad: list[int]
    held: list[int] = []


class Many(BaseModel):
    count: int
    lasts_s: float = 0.0


def mark(ctx: Context, params: Folder) -> None:
    """Count this run: the file `runs` has a line with the task's id for each."""
    fd = os.open(f"{params.folder}/runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{ctx.task_id}\n".encode())
    os.close(fd)


def wait_for(ctx: Context, params: Folder, name: str) -> None:
    """Say that this attempt has begun, and wait until the test makes the file `name`."""
    announce(f"{params.folder}/begun-{ctx.task_id}-{ctx.attempt}", f"{os.getpid()} {os.getppid()}")
    while not Path(params.folder, name).exists():
        ctx.check()
        time.sleep(0.01)


@job("live.sum", retry=AT_ONCE, max_attempts=2)
def add_up(ctx: Context, params: Sum) -> int:
    mark(ctx, params)
    if params.cure and not Path(params.folder, params.cure).exists():
        raise Discard("there is no cure yet")
    return sum(params.parts)


def to_slices(ctx: Context, params: Slices) -> Iterator[Slice]:
    mark(ctx, params)
    for index in range(params.count):
        yield Slice(index=index, of=params.of[index] if params.of else "")


def join_slices(ctx: Context, params: Slices, results: Results[int]) -> Sliced:
    mark(ctx, params)
    if params.join_held:
        wait_for(ctx, params, "open-join")
    if params.cure and not Path(params.folder, params.cure).exists():
        raise Discard("there is no cure yet")
    files = [result.files["slice"] for result in results]
    text = " ".join(ctx.files.fetch(uri).read_text() for uri in files)
    return Sliced(files=files, sizes=list(results.values()), text=text)


@fan_out("live.slices", split=to_slices, join=join_slices, retry=AT_ONCE)
def make_slice(ctx: Context, params: Slices, chunk: Slice) -> int:
    """Keep a file that says what it was made from; return its size."""
    mark(ctx, params)
    if chunk.index in params.held:
        wait_for(ctx, params, "open-chunks")
    time.sleep(params.lasts_s)
    before = ctx.files.fetch(chunk.of).read_text() + ">" if chunk.of else ""
    text = f"{before}{ctx.task_id}"
    ctx.files.write("slice", text.encode())
    return len(text)


@job("live.read", retry=AT_ONCE)
def read_all(ctx: Context, params: Reading) -> str:
    """Return what the files hold, once `open-read` exists."""
    mark(ctx, params)
    wait_for(ctx, params, "open-read")
    return " ".join(ctx.files.fetch(uri).read_text() for uri in params.files)


@job("live.brood", retry=AT_ONCE)
def brood(ctx: Context, params: Brood) -> list[str]:
    effects = Place(path=f"{params.folder}/effects")
    children = [ctx.submit("live.effect", effects) for _ in range(params.children)]
    if ctx.attempt == 1:
        if params.fails:
            raise Retry("once more")
        wait_for(ctx, params, "never")
    return children


def frail_chunks(ctx: Context, params: Frail) -> Iterator[int]:
    yield from range(params.count)


def join_frail(ctx: Context, params: Frail, results: Results[int]) -> dict[str, list[int]]:
    return {
        "good": [result.index for result in results],
        "bad": [failure.index for failure in results.failed],
    }


def run_frail(ctx: Context, params: Frail, chunk: int) -> int:
    mark(ctx, params)
    if chunk in params.bad and not Path(params.folder, "cure").exists():
        raise Discard(f"chunk {chunk} cannot work")
    if chunk in params.held:
        wait_for(ctx, params, "cure")
    time.sleep(params.lasts_s)
    return chunk


brittle = fan_out("live.brittle", split=frail_chunks, join=join_frail)(run_frail)
tolerant = fan_out("live.tolerant", split=frail_chunks, join=join_frail, tolerate=0.5)(run_frail)


def numbers(ctx: Context, params: Many) -> Iterator[int]:
    yield from range(params.count)


@fan_out("live.many", split=numbers)
def one_of_many(ctx: Context, params: Many, chunk: int) -> None:
    time.sleep(params.lasts_s)


@job("live.now")
def now(ctx: Context, params: Nothing) -> float:
    """Return when it started."""
    return time.time()
