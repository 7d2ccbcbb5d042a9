"""What a worker and its child say to each other over a socket pair: length, then JSON.

Rule 1: frames keep their order, and one that is cut off by a death never happened.
Rule 2: an assignment is started by the child or handed back `returned`, never both: the child
decides, so `Recall` and `Stop` are requests. Rule 3: every `Call` gets one `Answer`.
Rule 4: an outcome that cannot be read fails its own attempt and no other. Rule 5: an attempt that
is to begin at a moment begins then by both sides' reckoning, see `until_start_s`.
"""

import re
import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from cluster.protocol import NOTHING, START_AHEAD_S, Assignment, Outcome, Refused
from cluster.worker.board import SEPARATOR

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
    "salvage",
    "salvage_ended",
    "until_start_s",
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
    #: The bundle it runs (`cluster/code.py`); empty: only what the cluster was started with.
    code: str = ""
    #: Those of `job_modules` that are the bundle's: where two declare one type, theirs counts.
    code_modules: list[str] = []
    #: It is to tell on its board by how much it has grown.
    weighs: bool = False


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
    found: Literal["new", "done", "in_doubt", "evicted"] = "new"
    refused: Refused | None = None


# --- child -> worker --------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """Job modules are imported; or they are not, and `error` says why."""

    error: str = ""
    #: Fingerprint of the code of each job type.
    code: dict[str, str] = {}


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
    """Something the attempt waits for: a record to be made durable, a secret, tasks of a job.

    hold     the holder takes the local file `value` as this attempt's output `key`, and the answer
             is the path it has from then on, or null: keep it in the store
    bring    what is held under the path `key` is written to the local file `value`
    missing  those of the paths `value` that are gone
    endpoint          the tenant's webhook endpoint `key`
    disable_endpoint  it is to get nothing more; `value` says why
    """

    call: int
    token: int
    op: Literal[
        "checkpoint",
        "once_claim",
        "once_done",
        "secret",
        "endpoint",
        "disable_endpoint",
        "tasks",
        "hold",
        "bring",
        "missing",
    ]
    key: str = ""
    value: msgspec.Raw = NOTHING


encode = msgspec.json.Encoder().encode
decode_config = msgspec.json.Decoder(ChildConfig).decode
decode_to_child: Any = msgspec.json.Decoder(Feed | Recall | Stop | Answer).decode
decode_from_child: Any = msgspec.json.Decoder(Ready | Ended | Moved | Call).decode


_decode_outcome = msgspec.json.Decoder(Outcome).decode
_decode_spans = msgspec.json.Decoder(list[LogSpan]).decode
_TOKEN = re.compile(rb"\[(\d{1,19}),")
_ENDED, _LOGS = b'["ended",[', b"\n],["


def until_start_s(assignment: Assignment) -> float:
    """Return how long its handler has to wait: a clock that is off makes that no longer."""
    if not assignment.starts_at:
        return 0.0
    return min(max(0.0, assignment.starts_at - time.time()), START_AHEAD_S)


def frame(body: bytes) -> bytes:
    """Return `body` with its length in front."""
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def ended_frame(outcomes: bytes, logs: bytes = b"") -> bytes:
    """Return an Ended frame of outcomes as a board keeps them and log spans, comma-joined."""
    return frame(b"%b%b%b%b]]" % (_ENDED, outcomes, _LOGS, logs))


def salvage_ended(body: bytes) -> tuple[Ended, bool]:
    """Return what can be read of an Ended frame that cannot as a whole, and whether it is all."""
    outcomes, found, logs = body.removeprefix(_ENDED).rpartition(_LOGS)
    if not (found and body.startswith(_ENDED)):
        return Ended([]), False
    kept, whole = salvage(outcomes)
    try:
        return Ended(kept, _decode_spans(b"[" + logs.removesuffix(b"]"))), whole
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Ended(kept), False


def salvage(outcomes: bytes) -> tuple[list[Outcome], bool]:
    """Return outcomes one by one, a bad one as failed; and whether each had a token to go by."""
    kept, whole = [], True
    for encoded in outcomes.split(SEPARATOR):
        try:
            kept.append(_decode_outcome(encoded))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            if token := _TOKEN.match(encoded):
                told = f"its outcome could not be read: {error}"
                now = time.time()
                kept.append(Outcome(int(token[1]), "failed", now, now, error=told, cause="error"))
            else:
                whole = False
    return kept, whole


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
