"""A Ray driver that submits through its own gateway, as code inside the cluster would.

`Driver` starts it (`python -m benchmarks.driver`) and asks it line by line: a question is a line
of JSON, and so is the answer. A process of its own, because this Ray's settings must stand in the
environment before Ray is imported.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.marks import Marks
from benchmarks.server import ROOT, Server, clean_environment

__all__ = ["Driver", "driving"]

BATCH, UNDER_WAY = 500, 4
TENANT = "default"
WAIT_S = 30.0
#: Answers are told by it from whatever else is printed.
MARK = "answer: "


class Driver:
    """The other end, in the benchmark's process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have it do one of the things below; return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"the driver ended, exit code {self._process.wait()}")


@contextmanager
def driving(server: Server) -> Iterator[Driver]:
    """Run a driver on the server's Ray."""
    run = server.run
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.driver", run.ray_address, run.ray_token_path, run.store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=clean_environment(),
    )
    try:
        yield Driver(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


# --- in the driver ----------------------------------------------------------------------------


async def batches(gateway: Any, marks: Marks, seconds: float) -> dict[str, float]:
    """Submit 500 at a time, several such calls under way; say how many were accepted."""
    began, numbers = time.time(), itertools.count()

    async def submit() -> int:
        accepted = 0
        while time.time() - began < seconds:
            specs = [_spec(marks, n) for n in itertools.islice(numbers, BATCH)]
            answers = await gateway.submit_many(specs)
            accepted += sum(hasattr(answer, "job_id") for answer in answers)
        return accepted

    jobs = sum(await asyncio.gather(*(submit() for _ in range(UNDER_WAY))))
    return {"began": began, "jobs": jobs, "seconds": time.time() - began}


async def single(gateway: Any, marks: Marks, seconds: float, outstanding: int) -> dict[str, float]:
    """Submit one by one, up to so many unanswered; say how many were accepted."""
    began, numbers = time.time(), itertools.count()

    async def submit() -> int:
        accepted = 0
        while time.time() - began < seconds:
            await gateway.submit(_spec(marks, next(numbers)))
            accepted += 1
        return accepted

    jobs = sum(await asyncio.gather(*(submit() for _ in range(outstanding))))
    return {"began": began, "jobs": jobs, "seconds": time.time() - began}


async def waited(gateway: Any, marks: Marks, pauses_s: list[float]) -> dict[str, list[float]]:
    """Submit and wait for the end, one after the other; say when each was sent and known done."""
    sent, done = [], []
    for n, pause_s in enumerate(pauses_s):
        await asyncio.sleep(pause_s)
        sent.append(time.time())
        accepted = await gateway.submit(_spec(marks, n))
        await gateway.wait(accepted.job_id, TENANT, WAIT_S)
        done.append(time.time())
    return {"sent": sent, "done": done}


def _spec(marks: Marks, n: int) -> Any:
    import msgspec

    from cluster.queue.spec import JobSpec

    return JobSpec(type="bench.mark", params=msgspec.Raw(marks.params(n)))


DEEDS: dict[str, Callable[..., Awaitable[Any]]] = {
    "batches": batches,
    "single": single,
    "waited": waited,
}


async def _serve(store: str) -> None:
    from cluster.actors.gateway import connect_gateway
    from cluster.actors.port import manager_handle
    from cluster.store.objects import open_store
    from service.deployment import store_url

    gateway = connect_gateway(manager_handle(), open_store(store_url(store)))
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        deed, marks = DEEDS[asked.pop("do")], Marks(asked.pop("file"))
        print(MARK + json.dumps(await deed(gateway, marks, **asked)), flush=True)
    await gateway.close()


def _main(address: str, token_path: str, store: str) -> None:
    from service.head import Head, environment

    if token_path:
        os.environ.update(environment(Path(token_path)))
    Head.join(address)
    asyncio.run(_serve(store))


if __name__ == "__main__":
    _main(*sys.argv[1:])
