"""The report's letters: Lato in two weights, embedded, so that a page looks the same everywhere.

Lato writes Latin with all its diacritics, Greek and Cyrillic, and all its digits are equally wide.
Rule: text from the data passes `printable` before it is measured or drawn, so what is measured is
what is drawn. A letter that Lato lacks is written as its plain form where that is one letter (a
full-width `A` as `A`), and else as `□`, so that a reader sees that something is missing.
"""

import re
import unicodedata
from bisect import bisect_right
from functools import cache

from fontpkg_lato import ROOT
from reportlab.pdfbase.pdfmetrics import registerFont, stringWidth
from reportlab.pdfbase.ttfonts import TTFont

__all__ = ["BODY", "BOLD", "MISSING", "printable", "shortened", "use_fonts"]

BODY, BOLD = "Lato", "Lato-Bold"
MISSING = "□"
#: Categories of controls and formats (joiners, soft hyphens, direction), which are never drawn, and
#: of marks, which leave nothing behind where there is no glyph for them.
CONTROLS, MARKS = {"Cc", "Cf"}, {"Mn", "Me"}
#: All but the space that must not break, which headings use.
SPACES = re.compile(r"[^\S\u00a0]+")


@cache
def use_fonts() -> frozenset[int]:
    """Make the fonts known to reportlab, once a process; return the letters that both have."""
    faces = []
    for name, file in ((BODY, "Lato-Regular.ttf"), (BOLD, "Lato-Bold.ttf")):
        # Shaped text would differ with what else is installed; the file must not.
        font = TTFont(name, ROOT / "files" / file, asciiReadable=False, shapable=False)
        registerFont(font)
        faces.append(font.face.charToGlyph)
    both = faces[0].keys() & faces[1].keys()
    return frozenset(c for c in both if unicodedata.category(chr(c)) not in CONTROLS)


def printable(value: str) -> str:
    """Return the text in one line, in letters that the fonts have."""
    known = use_fonts()
    line = SPACES.sub(" ", unicodedata.normalize("NFC", value)).strip()
    if known.issuperset(map(ord, line)):
        return line
    return "".join(c if ord(c) in known else _stand_in(c, known) for c in line)


def _stand_in(letter: str, known: frozenset[int]) -> str:
    if unicodedata.category(letter) in CONTROLS | MARKS:
        return ""
    spelt = unicodedata.normalize("NFKD", letter)
    unmarked = "".join(c for c in spelt if unicodedata.category(c) not in MARKS)
    for plain in (unicodedata.normalize("NFC", spelt), unmarked):
        if len(plain) == 1 and ord(plain) in known:
            return plain
    return MISSING


def shortened(text: str, font: str, size: float, width: float) -> str:
    """Return as much of a printable text as the width has room for, with `…` for the rest."""
    if stringWidth(text, font, size) <= width:
        return text
    lengths = range(len(text))
    fits = bisect_right(lengths, width, key=lambda n: stringWidth(text[:n] + "…", font, size))
    return text[: max(0, fits - 1)].rstrip() + "…"
