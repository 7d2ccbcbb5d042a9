"""Job types to look at: each shows one thing that the dashboard has to draw."""

import io
import os
import signal
import time
from collections.abc import Iterator
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs import Context, Discard, Results, RetryPolicy, fan_out, job, workflow

QUICK = RetryPolicy(base_s=0.05)


class Size(StrEnum):
    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


class Line(BaseModel):
    """One position of an order."""

    model_config = ConfigDict(extra="forbid")

    article: Annotated[str, Field(min_length=1, max_length=40)]
    count: Annotated[int, Field(ge=1, le=99)] = 1
    size: Size = Size.MEDIUM


class Address(BaseModel):
    model_config = ConfigDict(extra="forbid")

    street: str
    city: str


class Order(BaseModel):
    """What a customer wants."""

    model_config = ConfigDict(extra="forbid")

    customer: Annotated[str, Field(pattern=r"^[A-Za-z ]+$", description="Who ordered")]
    lines: Annotated[list[Line], Field(min_length=1, max_length=5)]
    deliver: Annotated[Literal["post", "courier"], Field(description="How it travels")] = "post"
    address: Address | None = None
    gift: bool = False
    discount: Annotated[float | None, Field(ge=0, le=1, description="0.1 is ten per cent")] = None
    due: date | None = None
    notes: dict[str, str] = {}


class Text(BaseModel):
    text: str = ""


class Pages(BaseModel):
    title: str = "Report"
    pages: Annotated[int, Field(ge=1, le=20)] = 2


class Long(BaseModel):
    seconds: Annotated[float, Field(ge=0, le=3600, description="How long it works")] = 5.0
    #: It ends at once when this file exists.
    until: str = ""


class Diary(BaseModel):
    go: str
    over: str
    note: str = ""


class Failing(BaseModel):
    message: str = "the warehouse did not answer"


class Flaky(BaseModel):
    failures: int = 1


class Count(BaseModel):
    count: Annotated[int, Field(ge=1, le=1000)] = 6
    seconds: float = 0.0


@job("shop.order")
def order(ctx: Context, params: Order) -> dict[str, object]:
    """Take an order: a form with everything in it."""
    total = sum(line.count for line in params.lines)
    ctx.log(f"{total} things for {params.customer}")
    return {"customer": params.customer, "things": total, "deliver": params.deliver}


@job("shop.sleep")
def sleep(ctx: Context, params: Long) -> str:
    """Work for a while, and tell how far it is."""
    began = time.monotonic()
    while (done := (time.monotonic() - began) / max(params.seconds, 0.001)) < 1:
        ctx.check()
        if params.until and Path(params.until).exists():
            break
        ctx.progress(done, f"shelf {int(done * 40) + 1} of 40")
        time.sleep(0.05)
    print("all shelves are counted")
    return "done"


@job("shop.diary")
def diary(ctx: Context, params: Diary) -> None:
    """Write many lines, one more once it may, and the last once it is to end."""
    print(*(f"line {number}" for number in range(400)), sep="\n", flush=True)
    for path, line in ((params.go, "and then"), (params.over, "the end")):
        while not Path(path).exists():
            ctx.check()
            time.sleep(0.02)
        print(line, flush=True)


@job("shop.echo")
def echo(ctx: Context, params: Text) -> str:
    """Say it again: in the log, in the progress, in a file, and as the result."""
    ctx.progress(0.5, params.text)
    print(params.text)
    ctx.files.write("note.txt", params.text.encode())
    ctx.files.write("page.html", f"<h1>{params.text}</h1><script>alert(1)</script>".encode())
    return params.text


@job("shop.tick")
async def tick(ctx: Context, params: Text) -> None:
    """Do nothing, a great many at once."""


@job("shop.fail", max_attempts=3, retry=QUICK)
def fail(ctx: Context, params: Failing) -> None:
    """Fail each time."""
    print(f"attempt {ctx.attempt}: calling the warehouse ...")
    raise RuntimeError(params.message)


@job("shop.reject")
def reject(ctx: Context, params: Failing) -> None:
    """Fail for good at once."""
    raise Discard(params.message)


@job("shop.flaky", retry=QUICK)
def flaky(ctx: Context, params: Flaky) -> int:
    """Fail some times, then succeed."""
    print(f"attempt {ctx.attempt}")
    time.sleep(0.1)
    if ctx.attempt <= params.failures:
        raise ConnectionError("connection reset by the warehouse")
    return ctx.attempt


@job("shop.crash", max_attempts=2)
def crash(ctx: Context, params: Text) -> None:
    """Take its process down with it."""
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@job("shop.invoice")
def invoice(ctx: Context, params: Pages) -> dict[str, int]:
    """Make a PDF."""
    from reportlab.lib.pagesizes import A5
    from reportlab.pdfgen.canvas import Canvas

    kept = io.BytesIO()
    canvas = Canvas(kept, pagesize=A5, invariant=True)
    for page in range(1, params.pages + 1):
        canvas.setFont("Helvetica-Bold", 22)
        canvas.drawString(40, 520, params.title)
        canvas.setFont("Helvetica", 11)
        for row in range(18):
            canvas.drawString(40, 480 - row * 22, f"Position {row + 1}")
            canvas.drawRightString(380, 480 - row * 22, f"{(row + 1) * 12.5:.2f}")
        canvas.drawString(40, 40, f"Page {page} of {params.pages}")
        canvas.showPage()
        ctx.progress(page / params.pages, f"page {page}")
    canvas.save()
    ctx.files.write("invoice.pdf", kept.getvalue())
    return {"pages": params.pages}


@job("shop.picture")
def picture(ctx: Context, params: Text) -> dict[str, int]:
    """Make an image."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (640, 360), "#0f172a")
    draw = ImageDraw.Draw(image)
    for step in range(40):
        draw.line((step * 16, 360, 640, 360 - step * 9), fill=(90, 120 + step * 3, 220), width=2)
    kept = io.BytesIO()
    image.save(kept, "PNG")
    ctx.files.write("picture.png", kept.getvalue())
    table = "shelf,things\n" + "".join(f"{i},{i * i}\n" for i in range(1, 30))
    ctx.files.write("shelves.csv", table.encode())
    return {"width": 640, "height": 360}


@job("shop.film")
def film(ctx: Context, params: Text) -> dict[str, int]:
    """Make a short video."""
    import av
    import numpy as np

    kept = io.BytesIO()
    with av.open(kept, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=12, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for number in range(24):
            shades = np.linspace(number * 8, 255, 320, dtype=np.uint8)
            pixels = np.broadcast_to(shades[None, :, None], (180, 320, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    ctx.files.write("film.mp4", kept.getvalue())
    return {"frames": 24}


def shelves(ctx: Context, params: Count) -> Iterator[int]:
    yield from range(params.count)


def add(ctx: Context, params: Count, results: Results[int]) -> int:
    return sum(results.values())


@fan_out("shop.stock", split=shelves, join=add)
def count_shelf(ctx: Context, params: Count, chunk: int) -> int:
    """Count every shelf by itself."""
    time.sleep(params.seconds)
    return chunk * 3


night = workflow("shop.night", Count)
_close = night.step("close", "shop.echo", {"text": "closing"})
_stock = night.step("stock", count_shelf, {"count": 6, "seconds": 0.05}, after=[_close])
_bills = night.step("bills", invoice, {"title": "Bills of the day"}, after=[_close])
_chart = night.step("chart", picture, {"text": "shelves"}, after=[_stock])
night.step("report", "shop.echo", {"text": "good night"}, after=[_chart, _bills])
