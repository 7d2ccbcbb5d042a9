"""What attempts printed: read from the capture file, cut to size, redacted.

Rule 1: a log has at most `LOG_BYTES_MAX`: its head and its tail, and a line that says what is gone.
Rule 2: secrets are masked before anything is cut, so that no half of one slips through.
Rule 3: a partial log ends with a whole line, for the same reason.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from jobs.redact import redact_bytes

__all__ = ["CAPTURE_BYTES_MAX", "LOG_BYTES_MAX", "cut", "last_lines", "read_log"]

LOG_BYTES_MAX = 1 << 20
#: A capture file beyond this is cut under the attempt that fills it, or emptied between two.
CAPTURE_BYTES_MAX = 64 << 20
#: A masked secret may shrink the text; so much more is read than kept.
_MARGIN_BYTES = 64 * 1024
_TOLD_LINES = 10
_TOLD_BYTES = 2048
_READ_BYTES = 64 * 1024


def read_log(
    path: Path,
    start: int,
    end: int,
    secrets: Sequence[str] = (),
    *,
    partial: bool = False,
    beginning: bytes = b"",
) -> bytes:
    """Return what lies between two offsets of a capture file, fit to be kept.

    `beginning` is what `cut` returned, if the file was cut while the attempt ran.
    """
    half = LOG_BYTES_MAX // 2
    if beginning:
        rest = read_log(path, start, end, secrets, partial=partial)[-half:]
        return redact_bytes(beginning, secrets)[:half] + b"\n... cut here ...\n" + rest
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        end = min(end, os.fstat(fd).st_size)
        if end - start <= LOG_BYTES_MAX + 2 * _MARGIN_BYTES:
            data = redact_bytes(_read(fd, start, end), secrets)
            if partial:
                data = data[: data.rfind(b"\n") + 1]
            if len(data) <= LOG_BYTES_MAX:
                return data
            head, tail, length = data[:half], data[-half:], len(data)
        else:
            length = end - start
            head = redact_bytes(_read(fd, start, start + half + _MARGIN_BYTES), secrets)[:half]
            tail = redact_bytes(_read(fd, end - half - _MARGIN_BYTES, end), secrets)[-half:]
            if partial:
                tail = tail[: tail.rfind(b"\n") + 1]
    return b"%b\n... %d bytes left out ...\n%b" % (head, length - len(head) - len(tail), tail)


def cut(path: Path, start: int) -> bytes:
    """Empty a capture file that grew too large and return the head of what began at `start`.

    Its writers append, so they go on at the new end, which is its beginning.
    """
    with path.open("rb+", buffering=0) as file:
        beginning = _read(file.fileno(), start, start + LOG_BYTES_MAX // 2 + _MARGIN_BYTES)
        file.truncate(0)
    return beginning


def last_lines(log: bytes) -> str:
    """Return the last few lines, to be quoted as the cause of a crash.

    Of the stack that Python dumps when it dies of a signal, only the innermost frame is quoted.
    """
    said, fatal, dump = log[-_READ_BYTES:].rpartition(b"Fatal Python error: ")
    if not fatal:
        said, dump = dump, b""
    lines = said[-_TOLD_BYTES:].decode(errors="replace").strip().splitlines()[-_TOLD_LINES:]
    frame = re.search(rb"\(most recent call first\):\n *(.*)", dump)
    if frame:
        lines.append(frame[1].decode(errors="replace"))
    return "\n".join(lines)


def _read(fd: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (block := os.pread(fd, end - start, start)):
        parts.append(block)
        start += len(block)
    return b"".join(parts)
