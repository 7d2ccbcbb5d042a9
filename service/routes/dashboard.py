"""The dashboard: one page and its modules, sent from memory.

Rule 1: nothing on it comes from another host, no script stands in the page, and what jobs and users
say becomes text, never HTML: `POLICY` has browsers refuse all three. Rule 2: a name from the client
is looked up among the files there are; it never becomes a path. Rule 3: the address of a file holds
a hash of all of them, so browsers keep each for good and never mix two versions.
"""

import gzip
import hashlib
from functools import cache
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from jobs.errors import NotFound

__all__ = ["POLICY", "router", "unknown_page"]

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self'",
        "connect-src 'self'",
        "frame-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No string of whatever origin can become HTML or a script.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: The page is the same at each of them; its script shows what the address says.
PATHS = (
    "/",
    "/jobs",
    "/jobs/{job_id}",
    "/queues",
    "/dead-letters",
    "/schedules",
    "/schedules/{name}",
    "/workers",
    "/submit",
)
PAGE = "index.html"
#: What lies here is never a page.
API_PATH = "/v1/"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


class _Asset(NamedTuple):
    data: bytes
    gzipped: bytes
    media_type: str


class _Assets(NamedTuple):
    #: Hash of them all.
    version: str
    files: dict[str, _Asset]


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter(include_in_schema=False, default_response_class=Response)

    async def page(request: Request) -> Response:
        return _page_for(request)

    for path in PATHS:
        routes.add_api_route(path, page, methods=["GET", "HEAD"])

    @routes.get("/assets/{version}/{name:path}")
    async def asset(request: Request, version: str, name: str) -> Response:
        assets = _load()
        if version != assets.version or name not in assets.files:
            raise NotFound("asset", name[:100])
        return _answer(
            request,
            assets.files[name],
            {"Cache-Control": "public, max-age=31536000, immutable"},
        )

    return routes


def unknown_page(request: Request) -> Response | None:
    """Return the page for a browser that asks for one there isn't: its script says so."""
    wanted = "text/html" in request.headers.get("accept", "")
    if not wanted or request.method != "GET" or request.url.path.startswith(API_PATH):
        return None
    answer = _page_for(request)
    answer.status_code = 404
    return answer


def _page_for(request: Request) -> Response:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return _answer(request, _load().files[PAGE], headers)


def _answer(request: Request, asset: _Asset, headers: dict[str, str]) -> Response:
    headers = _HEADERS | headers | {"Vary": "Accept-Encoding"}
    data = asset.data
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        data = asset.gzipped
    return Response(data, headers=headers, media_type=asset.media_type)


@cache
def _load() -> _Assets:
    """Return the files, read once, when the first is asked for."""
    found = dict(_walk(files("service.dashboard"), ""))
    digest = hashlib.sha256()
    for name, data in sorted(found.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    version = digest.hexdigest()[:16]
    found[PAGE] = _page(found[PAGE].decode(), version, sorted(found)).encode()
    return _Assets(
        version,
        {
            name: _Asset(data, gzip.compress(data, mtime=0), _TYPES[name.rpartition(".")[2]])
            for name, data in found.items()
        },
    )


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            found.append((prefix + entry.name, entry.read_bytes()))
    return found


def _page(text: str, version: str, names: list[str]) -> str:
    """Return the page with the addresses of its files, every module among them.

    A module is else asked for only when the one that imports it has come.
    """
    at = f"/assets/{version}"
    modules = "\n".join(
        f'<link rel="modulepreload" href="{at}/{escape(name)}">'
        for name in names
        if name.endswith(".js") and name != "theme.js"
    )
    return text.replace("<!-- modules -->", modules).replace("{assets}", at)
