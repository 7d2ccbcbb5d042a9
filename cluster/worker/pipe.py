"""What a worker and its child say to each other over a socket pair: length, then JSON.

Rule 1: frames keep their order, and one that is cut off by a death never happened.
Rule 2: an assignment is started by the child or handed back `returned`, never both: the child
decides, so `Recall` and `Stop` are requests. Rule 3: every `Call` gets one `Answer`.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from cluster.protocol import NOTHING, Assignment, Outcome, Refused

__all__ = [
    "HEADER_BYTES",
    "Answer",
    "Call",
    "ChildConfig",
    "Ended",
    "Feed",
    "Frames",
    "LogSpan",
    "Moved",
    "Ready",
    "Recall",
    "Stop",
    "decode_config",
    "decode_from_child",
    "decode_to_child",
    "encode",
    "ended_frame",
    "frame",
]

HEADER_BYTES = 4


# --- worker -> child --------------------------------------------------------------------------


class ChildConfig(msgspec.Struct, frozen=True):
    """What a new child needs to know before its first task."""

    mode: Literal["process", "async"]
    concurrency: int
    store_url: str
    job_modules: list[str]
    #: A directory that goes with the child.
    scratch: str
    sys_path: list[str]


class Feed(msgspec.Struct, frozen=True, tag="feed", array_like=True):
    """Run these, in this order."""

    assignments: list[Assignment]
    #: The capture file was emptied before this was sent.
    rewound: bool = False


class Recall(msgspec.Struct, frozen=True, tag="recall", array_like=True):
    """Hand back those of these that have not started."""

    tokens: list[int]


class Stop(msgspec.Struct, frozen=True, tag="stop", array_like=True):
    """Hand the attempt back if it has not started; else ask it to stop."""

    token: int
    reason: str


class Answer(msgspec.Struct, frozen=True, tag="answer", array_like=True):
    """What came of a call: a value, or the error to raise."""

    call: int
    value: msgspec.Raw = NOTHING
    found: Literal["new", "done", "in_doubt"] = "new"
    refused: Refused | None = None


# --- child -> worker --------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """Job modules are imported; or they are not, and `error` says why."""

    error: str = ""


class LogSpan(msgspec.Struct, frozen=True, array_like=True):
    """Where an attempt's output lies: in its own file, or in the child's between two offsets."""

    token: int
    start: int
    end: int


class Ended(msgspec.Struct, frozen=True, tag="ended", array_like=True):
    """Attempts that ended, or were handed back."""

    outcomes: list[Outcome]
    logs: list[LogSpan] = []


class Moved(msgspec.Struct, frozen=True, tag="moved", array_like=True):
    """Progress of one attempt."""

    token: int
    fraction: float | None
    message: str


class Call(msgspec.Struct, frozen=True, tag="call", array_like=True):
    """Something the attempt waits for: a record to be made durable, or a secret."""

    call: int
    token: int
    op: Literal["checkpoint", "once_claim", "once_done", "secret"]
    key: str = ""
    value: msgspec.Raw = NOTHING


encode = msgspec.json.Encoder().encode
decode_config = msgspec.json.Decoder(ChildConfig).decode
decode_to_child: Any = msgspec.json.Decoder(Feed | Recall | Stop | Answer).decode
decode_from_child: Any = msgspec.json.Decoder(Ready | Ended | Moved | Call).decode


def frame(body: bytes) -> bytes:
    """Return `body` with its length in front."""
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def ended_frame(outcomes: bytes, logs: bytes = b"") -> bytes:
    """Return an Ended frame of outcomes and log spans that are encoded already, comma-joined."""
    return frame(b'["ended",[%b],[%b]]' % (outcomes, logs))


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes and yield every frame they complete."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= HEADER_BYTES:
            end = at + HEADER_BYTES + int.from_bytes(buffer[at : at + HEADER_BYTES], "big")
            if len(buffer) < end:
                break
            yield bytes(buffer[at + HEADER_BYTES : end])
            at = end
        if at:
            del buffer[:at]
