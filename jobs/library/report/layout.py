"""How a page looks: colours, type, tables, tiles, and the frame around every page."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from reportlab.lib.colors import Color, HexColor, white
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.platypus import Paragraph, Table, TableStyle

from jobs.library.report.fonts import BODY, BOLD, printable

__all__ = [
    "ALERT",
    "CONTENT_WIDTH",
    "INK",
    "LIGHT",
    "MARGIN",
    "MUTED",
    "PAGE_HEIGHT",
    "PAGE_WIDTH",
    "PRIMARY",
    "RULE",
    "STYLES",
    "TINT",
    "colour_for",
    "table",
    "text",
    "tiles",
]

INK, MUTED, RULE = HexColor(0x1B2733), HexColor(0x66727F), HexColor(0xD5DCE3)
PRIMARY, LIGHT = HexColor(0x1D4E79), HexColor(0xA9C3DB)
ALERT, TINT = HexColor(0xC8573A), HexColor(0xF2F5F8)

PAGE_WIDTH, PAGE_HEIGHT = A4
MARGIN = 20 * mm
CONTENT_WIDTH = PAGE_WIDTH - 2 * MARGIN
#: Of a cell: so many of the widest in the narrowest column still fit on a page.
CELL_LETTERS = 120

STYLES = {
    "cover_kicker": ParagraphStyle(
        "cover_kicker", fontName=BOLD, fontSize=10, leading=14, textColor=LIGHT
    ),
    "cover_title": ParagraphStyle(
        "cover_title", fontName=BOLD, fontSize=30, leading=35, textColor=white, spaceBefore=4
    ),
    "cover_subtitle": ParagraphStyle(
        "cover_subtitle", fontName=BODY, fontSize=15, leading=20, textColor=white, spaceBefore=6
    ),
    "h1": ParagraphStyle("h1", fontName=BOLD, fontSize=19, leading=23, textColor=PRIMARY),
    "h2": ParagraphStyle(
        "h2", fontName=BOLD, fontSize=10.5, leading=13, textColor=INK, spaceBefore=13, spaceAfter=5
    ),
    "lead": ParagraphStyle(
        "lead", fontName=BODY, fontSize=10.5, leading=15, textColor=INK, spaceBefore=5, spaceAfter=3
    ),
    "body": ParagraphStyle(
        "body", fontName=BODY, fontSize=9.2, leading=13.2, textColor=INK, spaceAfter=5
    ),
    "bullet": ParagraphStyle(
        "bullet",
        fontName=BODY,
        bulletFontName=BODY,
        bulletFontSize=8.5,
        fontSize=9.8,
        leading=14,
        textColor=INK,
        leftIndent=11,
        bulletIndent=0,
        spaceAfter=3.5,
    ),
    "note": ParagraphStyle(
        "note", fontName=BODY, fontSize=7.6, leading=10.4, textColor=MUTED, spaceBefore=4
    ),
    "cell": ParagraphStyle("cell", fontName=BODY, fontSize=8.3, leading=10.4, textColor=INK),
    "cell_strong": ParagraphStyle(
        "cell_strong", fontName=BOLD, fontSize=8.3, leading=10.4, textColor=PRIMARY
    ),
    "head": ParagraphStyle("head", fontName=BOLD, fontSize=7.6, leading=9.4, textColor=MUTED),
    "head_right": ParagraphStyle(
        "head_right", fontName=BOLD, fontSize=7.6, leading=9.4, textColor=MUTED, alignment=TA_RIGHT
    ),
    "tile_value": ParagraphStyle(
        "tile_value", fontName=BOLD, fontSize=21, leading=25, textColor=PRIMARY
    ),
    "tile_label": ParagraphStyle(
        "tile_label", fontName=BODY, fontSize=8.4, leading=11, textColor=MUTED
    ),
}


def text(value: str, style: str = "body") -> Paragraph:
    """Return plain text from anywhere as a paragraph; it holds no markup."""
    return Paragraph(escape(printable(value)), STYLES[style])


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[float],
    *,
    left: int = 1,
    last_is_text: bool = False,
    strong: int | None = None,
    total: bool = False,
) -> Table:
    """Return a table whose header is repeated on every page.

    The first `left` columns (and the last one with `last_is_text`) are text, which wraps and is
    cut where it is very long; the others are figures. Row `strong` is highlighted; with `total`,
    the last row is set off. `widths` are shares of the page's width.
    """
    share = CONTENT_WIDTH / sum(widths)
    texts = {*range(left), *([len(header) - 1] if last_is_text else [])}
    cells: list[list[Paragraph | str]] = [
        [text(h, "head" if n in texts else "head_right") for n, h in enumerate(header)]
    ]
    for n, row in enumerate(rows):
        style = "cell_strong" if n == strong or (total and n == len(rows) - 1) else "cell"
        cells.append(
            [text(_cut(value), style) if k in texts else value for k, value in enumerate(row)]
        )
    commands: list[tuple[object, ...]] = [
        ("FONT", (0, 0), (-1, -1), BODY, 8.3),
        ("TEXTCOLOR", (0, 1), (-1, -1), INK),
        ("ALIGN", (left, 0), (-1, -1), "RIGHT"),
        ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
        ("VALIGN", (0, 1), (-1, -1), "MIDDLE"),
        ("LINEBELOW", (0, 0), (-1, 0), 0.9, PRIMARY),
        ("LINEBELOW", (0, 1), (-1, -1), 0.35, RULE),
        ("TOPPADDING", (0, 0), (-1, -1), 2.6),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.9),
        ("LEFTPADDING", (0, 0), (-1, -1), 3),
        ("RIGHTPADDING", (0, 0), (-1, -1), 3),
        ("LEFTPADDING", (left, 0), (-1, 0), 9),
    ]
    if last_is_text:
        commands.append(("LEFTPADDING", (-1, 0), (-1, -1), 16))
    for n in [strong] if strong is not None else []:
        commands += [
            ("BACKGROUND", (0, n + 1), (-1, n + 1), TINT),
            *_bold(left, n + 1),
        ]
    if total:
        commands += [("LINEABOVE", (0, -1), (-1, -1), 0.9, PRIMARY), *_bold(left, -1)]
    return Table(
        cells,
        colWidths=[width * share for width in widths],
        repeatRows=1,
        style=TableStyle(commands),
        hAlign="LEFT",
    )


def _cut(value: str) -> str:
    return value if len(value) <= CELL_LETTERS else value[:CELL_LETTERS] + "…"


def _bold(left: int, row: int) -> list[tuple[object, ...]]:
    return [
        ("FONT", (left, row), (-1, row), BOLD, 8.3),
        ("TEXTCOLOR", (left, row), (-1, row), PRIMARY),
    ]


def tiles(figures: Sequence[tuple[str, str]], across: int = 3) -> Table:
    """Return big figures over their labels, `across` to a row."""
    gap = 8.0
    width = (CONTENT_WIDTH - gap * (across - 1)) / across
    full = STYLES["tile_value"].fontSize
    widest = max(stringWidth(value, BOLD, full) for value, _ in figures)
    style = ParagraphStyle(
        "tile_value_fitted",
        parent=STYLES["tile_value"],
        fontSize=full * min(1.0, (width - 16) / widest),
    )
    rows: list[list[object]] = []
    for start in range(0, len(figures), across):
        row: list[object] = []
        for value, label in figures[start : start + across]:
            row += [[Paragraph(escape(value), style), text(label, "tile_label")], ""]
        rows += [row[:-1] + [""] * (2 * across - len(row)), [""] * (2 * across - 1)]
    commands: list[tuple[object, ...]] = [
        ("FONTNAME", (0, 0), (-1, -1), BODY),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 10),
        ("RIGHTPADDING", (0, 0), (-1, -1), 6),
        ("TOPPADDING", (0, 0), (-1, -1), 7),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 9),
    ]
    for n in range(len(figures)):
        cell = (2 * (n % across), 2 * (n // across))
        commands += [("BACKGROUND", cell, cell, TINT), ("LINEBEFORE", cell, cell, 2.2, PRIMARY)]
    return Table(
        rows[:-1],
        colWidths=[width if n % 2 == 0 else gap for n in range(2 * across - 1)],
        rowHeights=[None if n % 2 == 0 else gap for n in range(len(rows) - 1)],
        style=TableStyle(commands),
        hAlign="LEFT",
    )


def colour_for(own: bool) -> Color:
    """Return the colour of the airline itself, or that of the others."""
    return PRIMARY if own else LIGHT
