"""A browser, and a Drayman in this process with something of everything in it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from service.client import Client
from tests.support.browser import WAIT_MS, chromium
from tests.support.dashboard import Board, board

#: What must never run, in places that each want other quotes.
HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\'"</pre></title>'


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They share one browser and one Drayman, so one line of tests has them all."""
    for item in items:
        # The fixtures start a browser and workers.
        if "/tests/browser/" in str(item.path):
            item.add_marker(pytest.mark.xdist_group("browser"))
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def drayman(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with board(tmp_path_factory.mktemp("board")) as one:
        yield one


@pytest.fixture(scope="module")
def shop(drayman: Board) -> dict[str, str]:
    """Jobs of every kind that are over, by a name each."""
    with drayman.client() as client:
        hostile = {"labels": {"note": HOSTILE}}
        ids = {
            "invoice": client.submit("shop.invoice", {"title": "Bill"})["id"],
            "picture": client.submit("shop.picture", {})["id"],
            "film": client.submit("shop.film", {})["id"],
            "night": client.submit("shop.night", {"count": 4})["id"],
            "stock": client.submit("shop.stock", {"count": 4})["id"],
            "flaky": client.submit("shop.flaky", {})["id"],
            "failed": client.submit("shop.fail", {"message": HOSTILE}, **hostile)["id"],
            "echo": client.submit("shop.echo", {"text": HOSTILE}, **hostile)["id"],
        }
        for job_id in ids.values():
            client.wait(job_id, timeout_s=90)
        return ids


@pytest.fixture
def client(drayman: Board) -> Iterator[Client]:
    with drayman.client() as client:
        yield client


@pytest.fixture
def neighbour() -> Iterator[str]:
    """The address of a server of somebody else, on this machine."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<h1>Somebody else</h1>")

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Any, drayman: Board) -> Iterator[Any]:
    """A page that is signed in; whatever a script or the policy complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(drayman.link)
    page.get_by_role("heading", name="Overview").wait_for()
    yield page
    context.close()
    # A request that was refused is told on the console, too; some are what a test asks for.
    assert [text for text in wrong if not text.startswith("Failed to load resource")] == []
