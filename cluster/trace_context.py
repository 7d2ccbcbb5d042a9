"""W3C trace context, and the ids of our spans, which follow from what they name."""

import hashlib
import re

__all__ = ["TRACED_ENV", "attempt_context", "parse", "span_id"]

#: Set in the environment of workers and their children where attempts have spans.
TRACED_ENV = "DRAYMAN_TRACED"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def span_id(*names: str | int) -> str:
    """Return the id of the span of what has these names: a job's is that of (job id, 0)."""
    text = "\n".join(map(str, names))
    found = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return found if found.strip("0") else "1".zfill(16)  # all zeros is no id


def parse(traceparent: str | None) -> tuple[str, str] | None:
    """Return trace and span id of a context that is sampled; None of any other."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None or not int(found[3], 16) & 1:
        return None
    return found[1], found[2]


def attempt_context(
    traceparent: str | None, job_id: str, task_id: str, attempt: int, *, traced: bool
) -> str | None:
    """Return the `traceparent` for what an attempt does: of its own span, where it has one."""
    found = parse(traceparent) if traced else None
    if found is None or traceparent is None:
        return traceparent
    return f"00-{found[0]}-{span_id(job_id, task_id, attempt)}-{traceparent[-2:]}"
