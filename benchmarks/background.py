"""A steady stream of no-op jobs, in batches: `python -m benchmarks.background URL TOKEN RATE`.

It runs until it is ended. A process of its own, so that its work does not delay the one that
measures.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks.server import ROOT, Server, clean_environment

__all__ = ["loaded"]

#: Batches a second.
BATCHES = 20
#: Before the first figure is taken.
SETTLE_S = 2.0


@contextmanager
def loaded(server: Server, rate: float) -> Iterator[None]:
    """Submit `rate` jobs a second within the block; let them be done at its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.background", server.url, server.token, str(rate)],
        cwd=ROOT,
        env=clean_environment(),
    )
    try:
        try:
            code = process.wait(SETTLE_S)
        except subprocess.TimeoutExpired:
            yield
        else:
            raise RuntimeError(f"the background load ended early, exit code {code}")
    finally:
        process.kill()
        process.wait()
    server.drain()


async def _stream(url: str, token: str, rate: float) -> None:
    from benchmarks.load import LINE

    body = b"\n".join([LINE] * max(1, round(rate / BATCHES)))
    headers = {"Authorization": f"Bearer {token}"}
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=60, trust_env=False
    ) as client:
        under_way: set[asyncio.Task[httpx.Response]] = set()
        due = loop.time()
        while True:
            under_way.add(asyncio.create_task(client.post("/v1/jobs/batch", content=body)))
            due += 1 / BATCHES
            await asyncio.sleep(max(0.0, due - loop.time()))
            for task in [task for task in under_way if task.done()]:
                task.result().raise_for_status()
                under_way.remove(task)


if __name__ == "__main__":
    asyncio.run(_stream(sys.argv[1], sys.argv[2], float(sys.argv[3])))
