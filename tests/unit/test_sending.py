"""Sending an object whose client leaves at the worst moment."""

import asyncio
import threading
from typing import BinaryIO

from cluster.store.memory import MemoryObjects
from service.sending import stream_objects
from tests.support.eventually import eventually


class SlowToOpen(MemoryObjects):
    """A store that opens an object once it may, and keeps what it gave out."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.asked, self.may = threading.Event(), threading.Event()
        self.given: list[BinaryIO] = []

    def open_read(self, path: str) -> BinaryIO:
        self.asked.set()
        self.may.wait(30)
        self.given.append(super().open_read(path))
        return self.given[-1]


async def test_a_file_that_is_opened_for_a_client_that_left_is_closed() -> None:
    store = SlowToOpen()
    store.put("log", b"text")
    reading = asyncio.ensure_future(anext(stream_objects(store, ["log"])))
    await asyncio.to_thread(store.asked.wait, 30)

    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    store.may.set()

    await eventually(lambda: store.given and store.given[0].closed)
    assert reading.cancelled()
