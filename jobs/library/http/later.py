"""`Retry-After`: when a server wants to be asked again (RFC 9110, 10.2.3)."""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

__all__ = ["retry_after_s"]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the answer asks to wait; None if it does not, or not legibly.

    A date counts from the answer's own `Date`, so that clocks need not agree.
    """
    told = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", told):
        return float(told)
    moment = _timestamp(told)
    if moment is None:
        return None
    now = _timestamp(headers.get("date", ""))
    return max(0.0, moment - (time.time() if now is None else now))


def _timestamp(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
