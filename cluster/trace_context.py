"""W3C trace context, and the ids of our spans, which follow from what they name."""

import hashlib
import os
import re
from collections.abc import Mapping

__all__ = ["TRACED_ENV", "attempt_context", "own_context", "parse", "span_id"]

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


def own_context(job_id: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the context of a job that begins a trace: its own span, sampled as OpenTelemetry says.

    What `OTEL_TRACES_SAMPLER` names is applied here, since the SDK stays out of the commit loop.
    """
    trace = hashlib.blake2b(job_id.encode(), digest_size=16).digest()
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").lower().removeprefix("parentbased_")
    share = 0.0 if sampler == "always_off" else 1.0
    if sampler == "traceidratio":
        share = _share(environ.get("OTEL_TRACES_SAMPLER_ARG", ""))
    sampled = int.from_bytes(trace[8:]) < round(share * 2**64)
    return f"00-{trace.hex()}-{span_id(job_id, 0)}-{sampled:02x}"


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0  # as the SDK has it


def attempt_context(
    traceparent: str | None, job_id: str, task_id: str, attempt: int, *, traced: bool
) -> str | None:
    """Return the `traceparent` for what an attempt does: of its own span, where it has one."""
    found = parse(traceparent) if traced else None
    if found is None or traceparent is None:
        return traceparent
    return f"00-{found[0]}-{span_id(job_id, task_id, attempt)}-{traceparent[-2:]}"
