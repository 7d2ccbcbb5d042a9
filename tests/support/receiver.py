"""A server that others tell things, in threads: what it answers is set by the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Heard", "Receiver", "Say", "receiving"]


@dataclass
class Say:
    """An answer. `endless` writes its body again and again, until the other side has enough."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    endless: bool = False
    #: The headers come, and then nothing.
    hangs: bool = False


@dataclass
class Heard:
    """A request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Takes every POST; `answers` are given one after the other, the last for ever."""

    def __init__(self) -> None:
        #: `drop` hangs up once it has the request, `hang` says nothing.
        self.answers: list[Say | str] = [Say()]
        self.heard: list[Heard] = []
        #: Bytes of endless bodies that were written.
        self.written = 0
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    pass  # The other side hung up; that is what some tests are about.

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.heard.append(Heard(self.path, headers, body))
                answers = receiver.answers
                say = answers.pop(0) if len(answers) > 1 else answers[0]
                self.close_connection = True
                if say == "hang":
                    receiver._ended.wait(20)
                if not isinstance(say, Say):
                    return
                self.send_response_only(say.status)
                for name, value in say.headers.items():
                    self.send_header(name, value)
                if not say.endless:
                    self.send_header("Content-Length", str(len(say.body) + say.hangs))
                self.end_headers()
                self.wfile.write(say.body)
                while say.endless and receiver.written < 100 << 20:
                    receiver.written += self.wfile.write(say.body)
                if say.hangs:
                    receiver._ended.wait(20)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.close()
