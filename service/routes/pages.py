"""The few pages for people that only tell: the API's reference, and what each problem means.

Rule: nothing on them comes from another host, and there is no script on them at all.
"""

from html import escape
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse, Response

from jobs.errors import NotFound
from service.problems import KINDS

__all__ = ["router"]

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent);
  --soft: color-mix(in srgb, currentColor 6%, transparent); }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 54rem; margin: 0 auto;
  padding: 2.5rem 1.25rem 5rem; }
nav { font-size: .875rem; margin-bottom: 2rem }
h1 { font-size: 1.9rem; margin: 0 0 .25rem } h2 { margin: 2.75rem 0 .5rem; font-size: 1.3rem }
h3 { margin: 2rem 0 .25rem; font-size: 1rem } p { margin: .4rem 0 }
code, pre { font: .875em/1.5 ui-monospace, Menlo, Consolas, monospace }
pre { background: var(--soft); padding: .9rem 1rem; border-radius: 8px; overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .5rem 0 }
td, th { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0;
  border-bottom: 1px solid var(--line) }
.method { display: inline-block; min-width: 3.6rem; font-weight: 700 }
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem; margin: .5rem 0 }
summary { cursor: pointer }
a { color: inherit; text-underline-offset: .15em }
"""


def router(app: FastAPI) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(include_in_schema=False, default_response_class=Response)

    @routes.get("/docs")
    async def docs() -> Response:
        return _page("Drayman HTTP API", _reference(app.openapi()))

    @routes.get("/problems")
    async def problems() -> Response:
        rows = "".join(
            f'<tr><td>{kind.status}</td><td><a href="/problems/{name}"><code>{name}</code></a></td>'
            f"<td>{escape(kind.title)}</td></tr>"
            for name, kind in KINDS.items()
        )
        return _page("Problems", f"<table>{rows}</table>")

    @routes.get("/problems/{name}")
    async def problem(name: str) -> Response:
        kind = KINDS.get(name)
        if kind is None:
            raise NotFound("problem", name)
        text = (
            f"<p>HTTP {kind.status} · <code>/problems/{name}</code></p><p>{_prose(kind.help)}</p>"
        )
        return _page(kind.title, text + '<p><a href="/problems">All problems</a></p>')

    return routes


_NAV = (
    '<nav><a href="/">Dashboard</a> · <a href="/docs">API</a> · <a href="/openapi.json">OpenAPI</a>'
    ' · <a href="/problems">Problems</a></nav>'
)


def _page(title: str, text: str) -> Response:
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{_NAV}<h1>{escape(title)}</h1>{text}</body></html>",
        headers=_HEADERS,
    )


def _reference(document: dict[str, Any]) -> str:
    parts = ['<p>Machine-readable: <a href="/openapi.json">openapi.json</a>.</p>']
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["other"])[0]
            by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    for tag, operations in by_tag.items():
        parts.append(f"<h2>{escape(tag.capitalize())}</h2>{''.join(operations)}")
    parts.append("<h2>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        text = msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
        parts.append(
            f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
            f"<pre>{escape(text)}</pre></details>"
        )
    return "".join(parts)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}</td>"
        f"<td>{_prose(p.get('description', ''))}</td></tr>"
        for p in operation.get("parameters", [])
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        rows.append(f"<tr><td>body</td><td>{escape(kind)}</td><td>{_schema(content)}</td></tr>")
    for status, answer in operation["responses"].items():
        shown = " ".join(map(_schema, answer.get("content", {}).values()))
        text = _prose(answer.get("description", ""))
        rows.append(f"<tr><td>{escape(status)}</td><td>{shown}</td><td>{text}</td></tr>")
    return (
        f'<h3><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h3>'
        f"<p>{_prose(operation.get('description', operation.get('summary', '')))}</p>"
        f"<table>{''.join(rows)}</table>"
    )


def _schema(content: dict[str, Any]) -> str:
    name = content["schema"].get("$ref", "").rpartition("/")[2]
    return f'<a href="#{escape(name)}">{escape(name)}</a>' if name else ""


def _prose(text: str) -> str:
    """Return text as HTML; what stands between backticks is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
