"""The report as a PDF: cover, sections, and the frame around each page.

Rule 1: the pages are built twice, since only the first run knows how many there are and where each
section begins. Rule 2: the second run must break where the first did, so nothing that depends on a
page number may change a height.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Frame,
    FrameBreak,
    NextPageTemplate,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

from jobs.library.report.brief import brief, cover_figures
from jobs.library.report.fonts import BODY, BOLD, printable, shortened, use_fonts
from jobs.library.report.gather import Report
from jobs.library.report.layout import (
    CONTENT_WIDTH,
    INK,
    MARGIN,
    MUTED,
    PAGE_HEIGHT,
    PAGE_WIDTH,
    PRIMARY,
    RULE,
    STYLES,
    text,
    tiles,
)
from jobs.library.report.section import Section
from jobs.library.report.sections import sections_of

__all__ = ["compose"]

BAND_HEIGHT = 82 * mm
#: Of the band, for the text in it.
HEAD_HEIGHT = BAND_HEIGHT - 24 * mm
#: Of the airline's name on the cover. At the last one a name and a title of the widest letters fit.
COVER_SIZES = (30, 25, 20, 16)
HEADER_Y = PAGE_HEIGHT - 14 * mm
FOOTER_Y = 11 * mm


@dataclass
class _Pages:
    """What a run learns about its pages."""

    total: int = 0
    #: Page of each section, by its title.
    starts: dict[str, int] = field(default_factory=dict)


def compose(report: Report, on_page: Callable[[int], None]) -> tuple[bytes, int]:
    """Return the PDF and its number of pages; `on_page` is called before each page is drawn."""
    use_fonts()
    first = _Pages()
    _build(report, _Pages(), first, on_page, _Draft)
    pages = _Pages()
    data = _build(report, first, pages, on_page, Canvas)
    return data, pages.total


def _build(
    report: Report,
    known: _Pages,
    found: _Pages,
    on_page: Callable[[int], None],
    canvas: type[Any],
) -> bytes:
    out = BytesIO()
    sections = sections_of(report)
    document = _Document(out, report, known, found, on_page)
    document.build([*_cover(report, sections, known), *_body(sections)], canvasmaker=canvas)
    return out.getvalue()


class _Draft(Canvas):  # type: ignore[misc]
    """What the first run draws on; nobody sees it, so no file is made of it."""

    def save(self) -> None:
        """Leave the fonts out, and the file."""


class _Document(BaseDocTemplate):  # type: ignore[misc]
    """Two page templates, and a bookmark per section."""

    def __init__(
        self,
        out: BytesIO,
        report: Report,
        known: _Pages,
        found: _Pages,
        on_page: Callable[[int], None],
    ) -> None:
        super().__init__(
            out,
            pagesize=(PAGE_WIDTH, PAGE_HEIGHT),
            title=f"{report.airline} - {report.title} {report.year}",
            author="Drayman",
            subject=f"Flights of {report.carrier} in {report.year}",
            creator="Drayman report.annual",
            invariant=1,  # no dates and no random id: the same input, the same bytes
            lang="en",
            initialFontName=BODY,
        )
        self._report, self._known, self._found, self._on_page = report, known, found, on_page
        flush = {"leftPadding": 0, "rightPadding": 0, "topPadding": 0, "bottomPadding": 0}
        band = PAGE_HEIGHT - BAND_HEIGHT
        self.addPageTemplates(
            [
                PageTemplate(
                    "cover",
                    [
                        Frame(MARGIN, band, CONTENT_WIDTH, HEAD_HEIGHT, **flush),
                        Frame(MARGIN, 18 * mm, CONTENT_WIDTH, band - 27 * mm, **flush),
                    ],
                    onPage=self._draw_cover,
                ),
                PageTemplate(
                    "page",
                    [Frame(MARGIN, 18 * mm, CONTENT_WIDTH, PAGE_HEIGHT - 40 * mm, **flush)],
                    onPage=self._draw_page,
                ),
            ]
        )

    def afterFlowable(self, flowable: Any) -> None:  # noqa: N802 - reportlab's name
        """Note where a section begins, and bookmark it."""
        title = getattr(flowable, "section_title", None)
        if title is not None:
            self._found.starts[title] = self.page
            key = _anchor(title)
            self.canv.bookmarkPage(key)
            self.canv.addOutlineEntry(title, key, level=0)

    def _draw_cover(self, canvas: Any, _: Any) -> None:
        self._on_page(self.page)
        canvas.setFillColor(PRIMARY)
        canvas.rect(0, PAGE_HEIGHT - BAND_HEIGHT, PAGE_WIDTH, BAND_HEIGHT, stroke=0, fill=1)
        self._draw_footer(canvas)

    def _draw_page(self, canvas: Any, _: Any) -> None:
        self._on_page(self.page)
        right = printable(f"{self._report.title} {self._report.year}")
        right = shortened(right, BODY, 8, CONTENT_WIDTH * 0.5)
        room = CONTENT_WIDTH - stringWidth(right, BODY, 8) - 16
        canvas.setFont(BOLD, 8)
        canvas.setFillColor(PRIMARY)
        left = shortened(printable(self._report.airline), BOLD, 8, room)
        canvas.drawString(MARGIN, HEADER_Y, left)
        canvas.setFont(BODY, 8)
        canvas.setFillColor(MUTED)
        canvas.drawRightString(PAGE_WIDTH - MARGIN, HEADER_Y, right)
        _rule(canvas, HEADER_Y - 5)
        self._draw_footer(canvas)

    def _draw_footer(self, canvas: Any) -> None:
        self._found.total = max(self._found.total, self.page)
        _rule(canvas, FOOTER_Y + 10)
        canvas.setFont(BODY, 8)
        canvas.setFillColor(MUTED)
        left = f"{self._report.carrier} · {self._report.year}"
        canvas.drawString(MARGIN, FOOTER_Y, left)
        right = f"Page {self.page} of {self._known.total or 0}"
        canvas.drawRightString(PAGE_WIDTH - MARGIN, FOOTER_Y, right)


def _rule(canvas: Any, y: float) -> None:
    canvas.setStrokeColor(RULE)
    canvas.setLineWidth(0.5)
    canvas.line(MARGIN, y, PAGE_WIDTH - MARGIN, y)


def _cover(report: Report, sections: Sequence[Section], known: _Pages) -> list[Any]:
    return [
        *_cover_head(report),
        FrameBreak(),
        tiles(cover_figures(report)),
        text("The year in brief", "h2"),
        *(
            Paragraph(escape(printable(point)), STYLES["bullet"], bulletText="•")
            for point in brief(report)
        ),
        text("Contents", "h2"),
        _contents(sections, known),
        NextPageTemplate("page"),
    ]


def _cover_head(report: Report) -> list[Paragraph]:
    """Return the lines in the band of the cover, the airline's name as large as all of them fit."""
    head: list[Paragraph] = []
    for size in COVER_SIZES:
        style = ParagraphStyle(
            f"cover_title_{size}",
            parent=STYLES["cover_title"],
            fontSize=size,
            leading=size * 7 / 6,
        )
        head = [
            text(f"{report.carrier} · {report.year}", "cover_kicker"),
            Paragraph(escape(printable(report.airline)), style),
            text(f"{report.title} {report.year}", "cover_subtitle"),
        ]
        height = sum(p.wrap(CONTENT_WIDTH, BAND_HEIGHT)[1] + p.getSpaceBefore() for p in head)
        if height <= HEAD_HEIGHT:
            break
    return head


def _contents(sections: Sequence[Section], known: _Pages) -> Table:
    rows = [
        [
            Paragraph(
                f'<link destination="{_anchor(s.title)}">{escape(s.title)}</link>',
                STYLES["cell"],
            ),
            str(known.starts.get(s.title, "")),
        ]
        for s in sections
    ]
    return Table(
        rows,
        colWidths=[CONTENT_WIDTH - 40, 40],
        style=TableStyle(
            [
                ("ALIGN", (1, 0), (1, -1), "RIGHT"),
                ("FONT", (0, 0), (-1, -1), BODY, 8.3),
                ("TEXTCOLOR", (1, 0), (1, -1), INK),
                ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
                ("LINEBELOW", (0, 0), (-1, -1), 0.35, RULE),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2.4),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("RIGHTPADDING", (0, 0), (-1, -1), 0),
            ]
        ),
        hAlign="LEFT",
    )


def _body(sections: Sequence[Section]) -> list[Any]:
    story: list[Any] = []
    for section in sections:
        heading = text(section.title, "h1")
        heading.section_title = section.title
        story += [PageBreak(), heading, text(section.lead, "lead"), *section.content()]
        story.append(Spacer(1, 6))
    return story


def _anchor(title: str) -> str:
    return "section-" + "-".join(title.lower().split())
