"""The three charts of the report, drawn as vectors: columns, a line, and horizontal bars.

Rule 1: labels never overlap: those that would not fit are thinned or shortened, and the space of
each is measured with the font's own metrics. Rule 2: a missing value leaves a gap.
"""

import calendar
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from reportlab.graphics.shapes import Circle, Drawing, Line, PolyLine, Rect, String
from reportlab.lib.colors import Color, HexColor
from reportlab.pdfbase.pdfmetrics import stringWidth

from jobs.library.report.fonts import BODY, BOLD, printable, shortened
from jobs.library.report.headline import printed
from jobs.library.report.layout import ALERT, INK, LIGHT, MUTED, PRIMARY, RULE, TINT
from jobs.library.report.wording import MONTHS

__all__ = ["Bar", "Series", "bars", "columns", "line", "year_grid"]

LABEL_SIZE = 7.5
LEGEND_HEIGHT = 16.0
AXIS_HEIGHT = 15.0
#: Colours of the year's days, by the percentage from which each counts.
SHADES = (
    (90.0, PRIMARY, "90% and more"),
    (80.0, HexColor(0x5B8DB8), "80 to 90%"),
    (70.0, LIGHT, "70 to 80%"),
    (50.0, HexColor(0xEDB9A4), "50 to 70%"),
    (0.0, ALERT, "under 50%"),
)


@dataclass(frozen=True)
class Series:
    """Values under one name and colour, one per label."""

    name: str
    values: Sequence[float | None]
    colour: Color = PRIMARY


@dataclass(frozen=True)
class Bar:
    """One horizontal bar and the text at its end."""

    label: str
    value: float
    text: str
    colour: Color = PRIMARY
    strong: bool = False


class _Plot:
    """The area between the axes, and how values map into it."""

    def __init__(
        self, width: float, height: float, series: Sequence[Series], unit: str, zero: bool
    ) -> None:
        self.drawing = _drawing(width, height)
        values = [v for s in series for v in s.values if v is not None]
        self.ticks = _ticks(values, zero)
        step = self.ticks[1] - self.ticks[0]
        texts = [printed(float(t), _decimals(step)) + unit for t in self.ticks]
        self.left = max(stringWidth(t, BODY, LABEL_SIZE) for t in texts) + 6
        self.right, self.bottom = width, AXIS_HEIGHT
        self.top = height - (LEGEND_HEIGHT if len(series) > 1 else 6)
        for tick, text in zip(self.ticks, texts, strict=True):
            y = self.y(tick)
            colour = MUTED if tick == 0 else RULE
            self.drawing.add(Line(self.left, y, width, y, strokeColor=colour, strokeWidth=0.5))
            self.text(self.left - 5, y - LABEL_SIZE * 0.35, text, "end")
        if len(series) > 1:
            self._legend(series, height)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        height: float = self.bottom + (value - low) / (high - low) * (self.top - self.bottom)
        return height

    def text(self, x: float, y: float, text: str, anchor: str, colour: Color = MUTED) -> None:
        self.drawing.add(
            String(
                x,
                y,
                text,
                fontName=BODY,
                fontSize=LABEL_SIZE,
                fillColor=colour,
                textAnchor=anchor,
            )
        )

    def _legend(self, series: Sequence[Series], height: float) -> None:
        x, y = self.left, height - 9
        for one in series:
            self.drawing.add(Rect(x, y, 7, 7, fillColor=one.colour, strokeColor=None))
            self.text(x + 11, y + 0.5, one.name, "start", INK)
            x += 11 + stringWidth(one.name, BODY, LABEL_SIZE) + 16

    def labels(self, labels: Sequence[str]) -> float:
        """Write the labels of the x axis, every nth where all do not fit; return the slot width."""
        slot: float = (self.right - self.left) / len(labels)
        widest = max(stringWidth(label, BODY, LABEL_SIZE) for label in labels) + 4
        every = max(1, math.ceil(widest / slot))
        for n in range(0, len(labels), every):
            self.text(self.left + (n + 0.5) * slot, 3, labels[n], "middle")
        return slot


def columns(
    width: float,
    height: float,
    labels: Sequence[str],
    series: Sequence[Series],
    unit: str = "",
    *,
    in_place: bool = False,
    values: bool = False,
) -> Drawing:
    """Draw one group of columns per label, one column per series.

    With `in_place` all series share one place: for series of which only one has each value. With
    `values` each column that has the room shows its own.
    """
    plot = _Plot(width, height, series, unit, zero=True)
    slot = plot.labels(labels)
    abreast = 1 if in_place else len(series)
    column = min(slot * 0.72, 34.0) / abreast
    zero = plot.y(0)
    whole = all(v is None or v == int(v) for one in series for v in one.values)
    for k, one in enumerate(series):
        for n, value in enumerate(one.values):
            if value is None:
                continue
            x = plot.left + (n + 0.5) * slot + ((0 if in_place else k) - abreast / 2) * column
            y = plot.y(value)
            plot.drawing.add(
                Rect(
                    x,
                    min(y, zero),
                    column * 0.94,
                    abs(y - zero),
                    fillColor=one.colour,
                    strokeColor=None,
                )
            )
            label = printed(value, 0 if whole else 1)
            if values and stringWidth(label, BODY, LABEL_SIZE) + 3 <= slot / abreast:
                edge = y + 2.5 if value >= 0 else y - LABEL_SIZE
                plot.text(x + column * 0.47, edge, label, "middle", INK)
    return plot.drawing


def line(
    width: float, height: float, labels: Sequence[str], series: Sequence[Series], unit: str = ""
) -> Drawing:
    """Draw one line with dots per series; the axis need not begin at zero."""
    plot = _Plot(width, height, series, unit, zero=False)
    slot = plot.labels(labels)
    for one in series:
        run: list[float] = []
        for n, value in enumerate([*one.values, None]):
            if value is not None:
                run += [plot.left + (n + 0.5) * slot, plot.y(value)]
                continue
            if len(run) > 2:
                plot.drawing.add(PolyLine(run, strokeColor=one.colour, strokeWidth=1.6))
            for x, y in zip(run[::2], run[1::2], strict=True):
                plot.drawing.add(
                    Circle(x, y, 2.3, fillColor=one.colour, strokeColor=None, strokeWidth=0)
                )
            run = []
    return plot.drawing


def bars(
    width: float, rows: Sequence[Bar], label_width: float, row_height: float = 15.0
) -> Drawing:
    """Draw one horizontal bar per row, from zero, with its text at the end."""
    drawing = _drawing(width, row_height * len(rows))
    text_width = max(stringWidth(row.text, BOLD, 8) for row in rows) + 8
    longest = max((row.value for row in rows), default=0) or 1
    room = width - label_width - text_width
    for n, row in enumerate(rows):
        y = drawing.height - (n + 1) * row_height
        font = BOLD if row.strong else BODY
        drawing.add(
            String(
                0,
                y + row_height / 2 - 2.8,
                shortened(printable(row.label), font, 8, label_width - 8),
                fontName=font,
                fontSize=8,
                fillColor=INK,
            )
        )
        length = max(0.0, row.value) / longest * room
        drawing.add(
            Rect(
                label_width,
                y + row_height * 0.18,
                length,
                row_height * 0.64,
                fillColor=row.colour,
                strokeColor=None,
            )
        )
        drawing.add(
            String(
                label_width + length + 5,
                y + row_height / 2 - 2.8,
                row.text,
                fontName=font,
                fontSize=8,
                fillColor=INK,
            )
        )
    return drawing


def year_grid(width: float, year: int, rates: Mapping[date, float | None]) -> Drawing:
    """Draw a row of days for each month, coloured by the day's percentage."""
    row, left = 15.0, 30.0
    slot = (width - left) / 31
    drawing = _drawing(width, 12 * row + 28)

    def write(x: float, y: float, text: str, anchor: str) -> None:
        drawing.add(
            String(
                x,
                y,
                text,
                fontName=BODY,
                fontSize=LABEL_SIZE,
                fillColor=MUTED,
                textAnchor=anchor,
            )
        )

    for number in range(1, 32):
        write(left + (number - 0.5) * slot, 12 * row + 19, str(number), "middle")
    for month in range(1, 13):
        y = (12 - month) * row + 16
        write(0, y + 4, MONTHS[month][:3], "start")
        for number in range(1, calendar.monthrange(year, month)[1] + 1):
            rate = rates.get(date(year, month, number))
            colour = TINT if rate is None else _shade(rate)
            drawing.add(
                Rect(
                    left + (number - 1) * slot,
                    y,
                    slot - 1.5,
                    row - 1.5,
                    fillColor=colour,
                    strokeColor=None,
                )
            )
    x = left
    legend = [*((colour, name) for _, colour, name in SHADES), (TINT, "no flight completed")]
    for colour, name in legend:
        drawing.add(Rect(x, 0, 7, 7, fillColor=colour, strokeColor=None))
        write(x + 11, 0.5, name, "start")
        x += 11 + stringWidth(name, BODY, LABEL_SIZE) + 16
    return drawing


def _drawing(width: float, height: float) -> Drawing:
    drawing = Drawing(width, height)
    drawing.hAlign = "LEFT"
    drawing.initialFontName = BODY  # without it every page with a drawing names Helvetica
    return drawing


def _shade(rate: float) -> Color:
    return next(colour for floor, colour, _ in SHADES if rate >= floor)


def _ticks(values: Sequence[float], zero: bool) -> list[float]:
    """Return four to seven round ticks that enclose the values, and zero if asked."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9:
        high = low + 1
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def _decimals(step: float) -> int:
    """Return how many decimals tell multiples of `step` apart."""
    return next((n for n in range(4) if abs(step * 10**n - round(step * 10**n)) < 1e-9), 4)
