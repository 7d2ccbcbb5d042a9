"""Enqueues what it is told to on stdin, with the adapter named on the command line.

An order is a line of JSON: `{"do": "one", "first": 7, "count": 100}`; so is the answer. `one`
enqueues job after job, `bulk` a thousand a call, `idle` one after a pause each. An adapter has
`enqueue(n, nap_s=0.0)`, may have `enqueue_many(numbers)` and `open()`, which finds an empty broker;
each may be a coroutine function.
"""

import asyncio
import functools
import importlib
import inspect
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence

A_CALL = 1000
PAUSE_S = (0.005, 0.030)


def main() -> None:
    # Libraries print too; stdout is for answers only.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    adapter = importlib.import_module(sys.argv[1])
    loop = _new_loop()
    _finish(loop, adapter.open() if hasattr(adapter, "open") else None)
    print(json.dumps({"bulk": hasattr(adapter, "enqueue_many")}), file=answers)
    for line in sys.stdin:
        print(json.dumps(_obey(loop, adapter, json.loads(line))), file=answers)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _obey(loop: asyncio.AbstractEventLoop, adapter, order: dict) -> dict:
    numbers = range(order["first"], order["first"] + order["count"])
    sent_at: list[float] = []
    call = functools.partial(adapter.enqueue, **order.get("with", {}))
    items: Iterator | Sequence = numbers
    if order["do"] == "bulk":
        call = adapter.enqueue_many
        items = [numbers[at : at + A_CALL] for at in range(0, len(numbers), A_CALL)]
    elif order["do"] == "idle":
        items = _paced(numbers, sent_at)
    each = _each_awaited if inspect.iscoroutinefunction(call) else _each
    began = time.monotonic()
    _finish(loop, each(call, items))
    return {"began": began, "ended": time.monotonic(), "sent_at": sent_at}


def _each(call, items) -> None:
    for item in items:
        call(item)


async def _each_awaited(call, items) -> None:
    for item in items:
        await call(item)


def _paced(numbers: Sequence[int], sent_at: list[float]) -> Iterator[int]:
    chance = random.Random(7)
    for n in numbers:
        time.sleep(chance.uniform(*PAUSE_S))
        sent_at.append(time.time())
        yield n


def _finish(loop: asyncio.AbstractEventLoop, result) -> None:
    if inspect.isawaitable(result):
        # Some libraries look for a running loop at import; the sync ones must not find any.
        loop.run_until_complete(result)


if __name__ == "__main__":
    main()
