"""Scripted handlers: each does one thing a real job might do to its worker."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jobs import Context, Discard, Retry, Snooze, job


class Nothing(BaseModel):
    pass


class Value(BaseModel):
    value: Any = None


class Number(BaseModel):
    n: int = 0


class Seconds(BaseModel):
    seconds: float = 0.0


class Marked(BaseModel):
    #: A file the handler writes to show that it runs, or how far it is.
    path: str
    n: int = 0


def announce(path: str, text: str) -> None:
    """Write the file whole or not at all: a test polls for it."""
    temporary = Path(f"{path}.new")
    temporary.write_text(text)
    temporary.rename(path)


@job("test.ok")
def ok(ctx: Context, params: Value) -> Any:
    return params.value


@job("test.noop")
def noop(ctx: Context, params: Nothing) -> None:
    return None


@job("test.about")
def about(ctx: Context, params: Nothing) -> dict[str, Any]:
    return {
        "job_id": ctx.job_id,
        "attempt": ctx.attempt,
        "tenant": ctx.tenant,
        "labels": ctx.labels,
        "resumed_from": ctx.resumed_from,
        "pid": os.getpid(),
    }


@job("test.fail_times")
def fail_times(ctx: Context, params: Number) -> int:
    if ctx.attempt <= params.n:
        raise ValueError(f"attempt {ctx.attempt} of {params.n} to fail")
    return ctx.attempt


@job("test.discard")
def discard(ctx: Context, params: Nothing) -> None:
    raise Discard("it cannot work")


@job("test.snooze")
def snooze(ctx: Context, params: Seconds) -> None:
    raise Snooze(params.seconds)


@job("test.retry")
def retry(ctx: Context, params: Seconds) -> None:
    raise Retry("busy", after_s=params.seconds)


@job("test.signal")
def crash_by_signal(ctx: Context, params: Number) -> None:
    print("about to die")
    os.kill(os.getpid(), params.n or signal.SIGSEGV)
    time.sleep(10)


@job("test.exit")
def exit_hard(ctx: Context, params: Number) -> None:
    os._exit(params.n)


@job("test.sys_exit")
def exit_softly(ctx: Context, params: Number) -> None:
    sys.exit(params.n)


@job("test.sleep")
def sleep(ctx: Context, params: Seconds) -> str:
    time.sleep(params.seconds)
    return "slept"


@job("test.hold", timeout_s=None)
def hold(ctx: Context, params: Marked) -> str:
    """Run until a stop is asked for; obey it at the next context call."""
    announce(params.path, str(os.getpid()))
    while True:
        ctx.progress(0.5, "holding")
        time.sleep(0.005)


@job("test.stubborn")
def stubborn(ctx: Context, params: Marked) -> str:
    """Never listen."""
    announce(params.path, str(os.getpid()))
    while True:
        time.sleep(0.05)


@job("test.finish_when_stopped")
def finish_when_stopped(ctx: Context, params: Marked) -> str:
    announce(params.path, str(os.getpid()))
    while not ctx.cancelled:
        time.sleep(0.005)
    return "finished all the same"


@job("test.gil")
def hold_gil(ctx: Context, params: Marked) -> None:
    """Sleep in C without letting go of the interpreter lock."""
    announce(params.path, str(os.getpid()))
    ctypes.PyDLL(None).sleep(60)


@job("test.family")
def family(ctx: Context, params: Marked) -> None:
    """Start a child, a grandchild in a session of its own, and one that forked twice."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    plain = subprocess.Popen(["sleep", "300"], **quiet)
    session = subprocess.Popen(["sleep", "300"], start_new_session=True, **quiet)
    script = "sleep 300 >/dev/null 2>&1 & echo $!"
    twice = subprocess.run(["setsid", "sh", "-c", script], capture_output=True, check=True)
    pids = [os.getpid(), plain.pid, session.pid, int(twice.stdout)]
    announce(params.path, " ".join(map(str, pids)))
    while True:
        ctx.check()
        time.sleep(0.01)


@job("test.print")
def print_lines(ctx: Context, params: Number) -> None:
    for line in range(params.n):
        print(f"line {line}")


@job("test.print_everywhere")
def print_everywhere(ctx: Context, params: Nothing) -> None:
    print("printed")
    print("to stderr", file=sys.stderr)
    ctx.log("logged")
    os.write(1, b"written\n")
    subprocess.run(["echo", "from a program"], check=True)


@job("test.print_and_hold")
def print_and_hold(ctx: Context, params: Marked) -> None:
    print("already told")
    announce(params.path, str(os.getpid()))
    while True:
        ctx.check()
        time.sleep(0.01)


@job("test.big")
def big(ctx: Context, params: Number) -> str:
    return "x" * params.n


@job("test.not_json")
def not_json(ctx: Context, params: Nothing) -> object:
    return threading.Lock()


@job("test.model")
def model(ctx: Context, params: Number) -> Number:
    return params


@job("test.files")
def files(ctx: Context, params: Value) -> str:
    ctx.files.write("out.txt", b"hello")
    scratch = ctx.files.workdir / "scratch"
    scratch.write_text("temporary")
    ctx.files.save(scratch, "kept.csv")
    return str(ctx.files.workdir)


@job("test.half_file")
def half_file(ctx: Context, params: Nothing) -> None:
    output = ctx.files.open_output("half.txt")
    output.write(b"half")
    raise ValueError("before the rest")


@job("test.fetch")
def fetch(ctx: Context, params: Value) -> str:
    return ctx.files.fetch(params.value).read_text()


@job("test.checkpoint")
def checkpoint(ctx: Context, params: Value) -> Any:
    ctx.checkpoint(params.value)
    return "saved"


@job("test.once")
def once(ctx: Context, params: Value) -> Any:
    return ctx.once("pay", lambda key: {"key": key})


@job("test.secret")
def secret(ctx: Context, params: Value) -> Any:
    value = ctx.secret(params.value)
    print("the secret is", value)
    ctx.progress(0.5, f"using {value}")
    return {"it": value, value: [value]}


@job("test.secret_fails")
def secret_fails(ctx: Context, params: Value) -> None:
    raise ValueError(f"no entry with {ctx.secret(params.value)}")


@job("test.progress")
def progress(ctx: Context, params: Number) -> None:
    for step in range(params.n):
        ctx.progress(step / params.n, f"step {step}")
    ctx.progress(1.0, "last step")
    time.sleep(0.3)


@job("test.count")
def count(ctx: Context, params: Marked) -> int:
    """Append a line: how often a task ran can be counted."""
    fd = os.open(params.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{params.n}\n".encode())
    os.close(fd)
    return params.n


@job("test.async_ok")
async def async_ok(ctx: Context, params: Seconds) -> str:
    await asyncio.sleep(params.seconds)
    print(f"task {ctx.task_id} slept")
    return "slept"


@job("test.async_hold")
async def async_hold(ctx: Context, params: Marked) -> None:
    announce(params.path, str(os.getpid()))
    await asyncio.Event().wait()


@job("test.async_stubborn")
async def async_stubborn(ctx: Context, params: Marked) -> None:
    announce(params.path, str(os.getpid()))
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


@job("test.async_block")
async def async_block(ctx: Context, params: Marked) -> None:
    announce(params.path, str(os.getpid()))
    time.sleep(60)  # noqa: ASYNC251 - the fault it stands for


@job("test.async_once")
async def async_once(ctx: Context, params: Value) -> Any:
    await asyncio.to_thread(ctx.checkpoint, params.value)
    return await asyncio.to_thread(ctx.once, "pay", lambda key: key)


@job("test.print_without_end")
def print_without_end(ctx: Context, params: Marked) -> None:
    """Announce itself once the file it prints to was emptied under it."""
    line, largest = 0, 0
    while True:
        for line in range(line, line + 500):  # noqa: B020 - it goes on where it was
            print(f"line {line} {'x' * 1000}")
        size = os.fstat(1).st_size
        if size < largest:
            announce(params.path, str(line))
        largest = max(largest, size)
        ctx.check()


@job("test.gil_for")
def hold_gil_for(ctx: Context, params: Number) -> str:
    """Sleep so many seconds in C without letting go of the interpreter lock."""
    ctypes.PyDLL(None).sleep(params.n)
    return "held"


@job("test.eat")
def eat(ctx: Context, params: Marked) -> str:
    """Hold so many MiB, page for page; then wait to be noticed."""
    print("eating", flush=True)
    held = bytearray(params.n << 20)
    held[::4096] = b"x" * len(held[::4096])
    announce(params.path, str(os.getpid()))
    time.sleep(5)
    return f"still there with {len(held)}"


@job("test.eat_below")
def eat_below(ctx: Context, params: Number) -> str:
    """The same, in a program that the handler started."""
    script = f"held = bytearray({params.n} << 20); held[::4096] = b'x' * len(held[::4096])"
    subprocess.run([sys.executable, "-c", f"{script}; import time; time.sleep(8)"], check=False)
    return "still there"


_leaked: list[bytearray] = []


@job("test.leak")
def leak(ctx: Context, params: Number) -> int:
    """Hold so many MiB beyond its own end."""
    held = bytearray(params.n << 20)
    held[::4096] = b"x" * len(held[::4096])
    _leaked.append(held)
    return os.getpid()


@job("test.async_eat")
async def async_eat(ctx: Context, params: Number) -> str:
    held = bytearray(params.n << 20)
    held[::4096] = b"x" * len(held[::4096])
    await asyncio.sleep(5)
    return f"still there with {len(held)}"


@job("test.async_signal")
async def async_signal(ctx: Context, params: Number) -> None:
    await asyncio.sleep(0.05)
    os.kill(os.getpid(), params.n)


@job("test.hold_socket")
def hold_socket(ctx: Context, params: Marked) -> str:
    """Leave a process behind that holds all that is open here and bears no mark."""
    everything = [int(fd) for fd in os.listdir("/proc/self/fd")]
    alive = [fd for fd in everything if fd > 2 and Path(f"/proc/self/fd/{fd}").exists()]
    heir = subprocess.Popen(
        ["sleep", "300"], env={}, pass_fds=alive, start_new_session=True, stdout=subprocess.DEVNULL
    )
    announce(params.path, f"{os.getpid()} {heir.pid}")
    time.sleep(60)
    return "not killed"


@job("test.stop_self")
def stop_self(ctx: Context, params: Marked) -> str:
    """Be stopped by a signal, as by a debugger, once; the next attempt returns."""
    if Path(params.path).exists():
        return "again"
    announce(params.path, str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


@job("test.steps")
def steps(ctx: Context, params: Marked) -> list[int]:
    """Save each of ten steps; from the fourth on each lasts, until a stop comes."""
    first = ctx.resumed_from or 0
    done = []
    for step in range(first, 10):
        fd = os.open(params.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{step}\n".encode())
        os.close(fd)
        done.append(step)
        ctx.checkpoint(step + 1)
        while params.n and step >= params.n and first == 0:
            ctx.check()
            time.sleep(0.005)
    return done
