"""How the headers of a mail are written."""

from email.header import Header
from email.headerregistry import BaseHeader, HeaderRegistry, UnstructuredHeader
from email.policy import SMTP
from typing import Any

__all__ = ["POLICY"]


class _Header(BaseHeader):
    def fold(self, *, policy: Any) -> str:
        """Return the header in lines that servers take."""
        if self.isascii() or not isinstance(self, UnstructuredHeader):
            return super().fold(policy=policy)
        # Python's own folding, up to 3.12, loses a space between words where a line ends.
        words = Header(
            str(self), "utf-8", maxlinelen=policy.max_line_length, header_name=self.name
        ).encode(linesep=policy.linesep)
        return f"{self.name}: {words}{policy.linesep}"


#: Seven bits: what is not ASCII is encoded, since not every server passes eight.
POLICY = SMTP.clone(cte_type="7bit", header_factory=HeaderRegistry(base_class=_Header))
