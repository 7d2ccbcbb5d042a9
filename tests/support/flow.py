"""What live tests of flow control share: other settings for a while, and someone to be called."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from service.client import Client, Json

__all__ = ["Receiver", "configured", "moment", "most_within", "seconds", "workers_of"]


@contextmanager
def configured(client: Client, **changes: Mapping[str, Any] | Any) -> Iterator[None]:
    """Let settings hold beside those in force, then those that were; tables are added to."""
    before, _ = client.config()
    after = {
        name: before[name] | value if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    client.configure(before | after)
    try:
        yield
    finally:
        client.configure(before)


def workers_of(client: Client, pool: str) -> list[Json]:
    """Return the workers of a pool that are to stay."""
    return [w for w in client.workers() if w["pool"] == pool and not w["draining"]]


def moment(text: str) -> float:
    """Return a moment of the API in seconds."""
    return datetime.fromisoformat(text).timestamp()


def seconds(job: Json, since: str, until: str) -> float:
    """Return how long it was from one moment of a job to another."""
    return moment(job[until]) - moment(job[since])


def most_within(moments: list[float], window_s: float) -> int:
    """Return how many of them lie in the fullest window of this length."""
    most = first = 0
    for last, at in enumerate(moments):
        while at - moments[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


class Receiver:
    """A real HTTP server that notes when it was called, and with what."""

    def __init__(self, answers_after_s: float = 0.0) -> None:
        self.calls: list[float] = []
        #: The last call of each path, on the wall clock.
        self.came: dict[str, float] = {}
        self.bodies: list[Any] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                receiver.calls.append(time.monotonic())
                receiver.came[self.path] = time.time()
                time.sleep(answers_after_s)
                self._answer()

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                receiver.bodies.append(json.loads(self.rfile.read(length)))
                self._answer()

            def _answer(self) -> None:
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: pytest shows what is on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
