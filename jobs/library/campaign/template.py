"""Text with merge fields: `{{name}}`, or `{{name|friend}}` where the list has no name.

Rule: a template says nothing but which fields stand where: no conditions, no code. What a field
holds is data: escaped in HTML, quoted in a URL, one line in a subject.
"""

import re
from collections.abc import Callable, Mapping
from html import escape
from urllib.parse import quote

__all__ = ["Fields", "fields_of", "filled", "in_html", "in_subject", "in_text", "in_url"]

_FIELD = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_.-]{0,62})\s*(?:\|([^{}]{0,200}))?\}\}")

#: What a recipient's row says.
Fields = Mapping[str, str]


def fields_of(template: str) -> dict[str, bool]:
    """Return the fields that stand in it, and whether a row may lack each."""
    found: dict[str, bool] = {}
    for match in _FIELD.finditer(template):
        found[match[1]] = found.get(match[1], True) and match[2] is not None
    left = _FIELD.sub("", template)
    if "{{" in left or "}}" in left:
        at = max(left.find("{{"), left.find("}}"))
        raise ValueError(
            f"{left[at : at + 30]!r} is no merge field; write {{{{name}}}} or {{{{name|friend}}}}"
        )
    return found


def filled(template: str, fields: Fields, shown: Callable[[str], str]) -> str:
    """Return it with every field in its place; each must be there or have a default."""

    def value(match: "re.Match[str]") -> str:
        return shown(fields.get(match[1]) or (match[2] or "").strip())

    return _FIELD.sub(value, template)


def in_text(value: str) -> str:
    """Return it as it is."""
    return value


def in_html(value: str) -> str:
    """Return it escaped, also for an attribute."""
    return escape(value)


def in_subject(value: str) -> str:
    """Return it on one line."""
    return " ".join(value.split())


def in_url(value: str) -> str:
    """Return it quoted, as a part of a path or of a query."""
    return quote(value, safe="")
