"""Fan-outs, and steps that read what others made: each does one thing to its worker."""

import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from jobs import Context, Results, fan_out, job
from jobs.errors import InvalidInput
from jobs.workflow import param, workflow


class Book(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pages: int = 3
    what: str = ""


class Page(BaseModel):
    number: int
    text: str = ""


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Named(BaseModel):
    model_config = ConfigDict(extra="forbid")
    uri: str = ""
    how: str = "fetch"


# --- fan-outs ---------------------------------------------------------------------------------


def pages(ctx: Context, params: Book) -> Any:
    match params.what:
        case "file":
            ctx.files.write("chunks.parquet", b"not the manifest")
        case "text":
            return "abc"
        case "nothing":
            return None
        case "wrong":
            return [Page(number=0), "one"]
        case "endless":
            return (Page(number=n) for n in itertools.count())
        case "breaks":
            return (Page(number=1 // (3 - n)) for n in range(9))
    return [Page(number=n, text="é" * (n % 3)) for n in range(params.pages)]


def bind(ctx: Context, params: Book, results: Results[int]) -> dict[str, Any]:
    if params.what == "beside":
        return {"pairs": [(a.value, b.value) for a, b in zip(results, results, strict=True)]}
    walked = [(result.index, result.value) for result in results]
    return {
        "count": len(results),
        "in_order": walked == sorted(walked),
        "sum": sum(results.values()) if params.what == "twice" else sum(v for _, v in walked),
        "failed": [(failure.index, failure.error) for failure in results.failed],
        "files": [uri for result in results for uri in result.files.values()][:2]
        if params.what == "files"
        else [],
        "pages": params.pages,
    }


@fan_out("parts.book", split=pages, join=bind)
def print_page(ctx: Context, params: Book, chunk: Page) -> Any:
    return [chunk.number, params.pages, chunk.text]


async def async_pages(ctx: Context, params: Book) -> list[int]:
    return list(range(params.pages))


async def async_bind(ctx: Context, params: Book, results: Results[int]) -> int:
    return sum(results.values())


@fan_out("parts.async", split=async_pages, join=async_bind)
async def async_page(ctx: Context, params: Book, chunk: int) -> int:
    return chunk * 10


def numbers(ctx: Context, params: Book) -> Iterator[int]:
    yield from range(params.pages)


@fan_out("parts.no_join", split=numbers)
def number(ctx: Context, params: Book, chunk: int) -> int:
    return chunk


# --- steps ------------------------------------------------------------------------------------


@job("parts.echo")
def echo(ctx: Context, params: Anything) -> Any:
    return params


@job("parts.read")
def read(ctx: Context, params: Named) -> str:
    if params.how == "open":
        with ctx.files.open(params.uri) as file:
            return file.read().decode()
    return ctx.files.fetch(params.uri).read_text()


@job("parts.swallow")
def swallow(ctx: Context, params: Named) -> str:
    """Take whatever happens for no reason to fail."""
    try:
        return ctx.files.fetch(params.uri).read_text()
    except BaseException:
        if params.how == "raise":
            raise ValueError("something else") from None
        return "swallowed"


flow = workflow("parts.flow", Named)
flow.step("read", read, {"uri": param("uri")})


@job("parts.submit")
def submit(ctx: Context, params: Book) -> Any:
    match params.what:
        case "jobs":
            first = ctx.submit("parts.echo", {"a": 1}, queue="io", priority=3, labels={"x": "y"})
            return [
                first,
                ctx.submit("parts.book", Book(pages=9)),
                ctx.submit("parts.flow", {"uri": "u"}),
            ]
        case "large":
            return ctx.submit("parts.echo", {"a": "x" * 20_000})
        case "many":
            return [ctx.submit("parts.echo", {}) for _ in range(params.pages)]
        case "fails":
            ctx.submit("parts.echo", {})
            raise ValueError("after it was submitted")
        case "caught":
            try:
                ctx.submit("parts.nope", {})
            except InvalidInput:
                return ctx.submit("parts.echo", {})
        case "type":
            ctx.submit("parts.nope", {})
        case "params":
            ctx.submit("parts.book", {"pages": "many"})
        case "option":
            ctx.submit("parts.echo", {}, prio=1)
        case "range":
            ctx.submit("parts.echo", {}, max_attempts=0)
        case "flow":
            ctx.submit("parts.flow", {"uri": 7})
    return None
